"""What became of planted features: each kind is there once, by weights alone and with firings; and what the store gets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse

from saescope.dictionaries import ReLU
from saescope.evaluation.matching.firings import FiringSets
from saescope.evaluation.matching.relations import KINDS, RelationConfig, random_bar, relations
from saescope.evaluation.matching.relations_in_store import AUTHOR, write_relations
from saescope.store import AnalysisRecord, DictionaryRecord, EvaluationResult, Feature, FeatureRecord, Note, Store

D, T = 256, 400


def dictionary(rows: torch.Tensor):
    made = ReLU(ReLU.Config(d_in=rows.shape[1], d_sae=len(rows)))
    with torch.no_grad():
        made.W_dec.copy_(rows)
    return made


def direction(**parts: float) -> torch.Tensor:
    row = torch.zeros(D)
    for axis, size in parts.items():
        row[int(axis[1:])] = size
    return row


def codes(*firings: range | list[int]) -> sparse.csr_array:
    dense = np.zeros((T, len(firings)), dtype=np.float32)
    for feature, tokens in enumerate(firings):
        dense[list(tokens), feature] = 1 + feature
    return sparse.csr_array(dense)


A = dictionary(torch.stack([direction(e0=1), direction(e1=2), direction(e2=1), direction(e3=1), direction(e4=1)]))
A_CODES = codes(range(50), range(50, 150), range(150, 250), range(250, 300), [])
B = dictionary(
    torch.stack(
        [
            direction(e0=3),  # 0: shared with 0
            direction(e1=1, e8=1.1),  # 1: half of 1
            direction(e1=1, e9=1.5),  # 2: the other half
            direction(e2=1),  # 3: shared with 2, but silent where the next one fires
            direction(e2=0.6, e10=0.8),  # 4: absorbs 2
            direction(e0=1, e12=0.1),  # 5: a second copy of 0
            direction(e11=1),  # 6: new
            direction(e3=-1),  # 7: the other way round
            direction(e4=1),  # 8: dead on the sample, and so is 4 of A
        ]
    )
)
B_CODES = codes(
    range(48), range(50, 104), range(100, 150), range(150, 220), range(220, 250), range(50), range(300, 330),
    range(250, 300), [],
)  # fmt: skip


def test_each_planted_feature_is_told():
    found = relations(A, B, codes=(A_CODES, B_CODES))
    assert found.kinds.tolist() == ["shared", "split", "split", "shared", "absorbed", "near", "new", "new", "dead"]
    assert found.nearest[[0, 1, 2, 3, 4, 5]].tolist() == [0, 1, 1, 2, 2, 0]
    assert found.cosines[:5] == pytest.approx([1, 1 / math.hypot(1, 1.1), 1 / math.hypot(1, 1.5), 1, 0.6])
    assert found.nearest[8] == -1
    assert np.isnan(found.cosines[8])
    (split,) = found.splits
    assert (split.feature, split.parts, split.cover, split.largest) == (1, (1, 2), 1.0, 0.54)
    (absorption,) = found.absorptions
    assert (absorption.feature, absorption.of, absorption.match) == (4, 2, 3)
    assert (absorption.num_tokens, absorption.silent, absorption.silent_elsewhere) == (30, 1.0, 0.0)
    assert absorption.cosine == pytest.approx(0.6)
    assert found.num_gone == 1  # 3, whose row is only there with the other sign; 4 is dead
    assert found.overlap == pytest.approx((48 / 50 + 70 / 100) / 2)
    study = found.study()
    assert {kind: study[f"num_{kind}"].value for kind in KINDS} == found.counts()
    assert found.counts() == {"shared": 2, "split": 2, "absorbed": 1, "near": 1, "new": 2, "dead": 1}
    assert study.tables["kinds"][0] == {"kind": "shared", "num_features": 2, "share_of_alive": 0.25}
    assert study.tables["absorptions"][0]["match"] == 3
    assert list(found.features())[4] == {"feature": 4, "kind": "absorbed", "nearest": 2, "cosine": pytest.approx(0.6)}
    assert list(found.features())[8] == {"feature": 8, "kind": "dead", "nearest": None, "cosine": None}


def test_weights_alone_say_less():
    found = relations(A, B)
    assert found.kinds.tolist() == ["shared", "split", "split", "shared", "new", "near", "new", "new", "shared"]
    assert [(split.feature, split.parts, split.cover) for split in found.splits] == [(1, (1, 2), None)]
    assert found.absorptions == ()
    study = found.study()
    assert study["num_absorbed"].value is None
    assert "firings" in study["num_absorbed"].reason
    assert study["shared_firing_overlap"].value is None
    assert any("weights alone" in note for note in study.notes)


def test_a_half_above_the_bar_is_shared_and_the_other_absorbs():
    rows = B.W_dec.detach().clone()
    rows[1] = direction(e1=1, e8=0.4)
    found = relations(A, dictionary(rows), codes=(A_CODES, B_CODES))
    assert found.kinds.tolist()[1:3] == ["shared", "absorbed"]
    assert found.splits == ()


@pytest.mark.parametrize(
    ("changed", "of_feature", "kind"),
    [
        ((2, range(100, 120)), 2, "new"),  # the halves cover 74 % together
        ((2, range(100, 180)), 2, "new"),  # it fires mostly elsewhere
        ((1, range(50, 145)), 1, "new"),  # one alone covers it
        ((4, range(220, 229)), 4, "new"),  # too few firings
        ((4, range(220, 320)), 4, "new"),  # not within the feature of A
        ((3, range(150, 250)), 4, "new"),  # the match fires there too
        ((3, range(150, 160)), 4, "new"),  # the match is silent on 86 % elsewhere as well
    ],
)
def test_what_a_line_is_drawn_for(changed, of_feature, kind):
    dense = B_CODES.toarray()
    place, tokens = changed
    dense[:, place] = 0
    dense[list(tokens), place] = 1
    found = relations(A, B, codes=(A_CODES, sparse.csr_array(dense)))
    assert found.kinds[of_feature] == kind


def test_a_shared_feature_may_absorb_too():
    a = dictionary(torch.stack([direction(e0=1), direction(e0=0.5, e5=0.8)]))
    b = dictionary(torch.stack([direction(e0=1), direction(e0=0.5, e5=0.8)]))
    a_codes = codes(range(100), range(80, 100))
    found = relations(a, b, codes=(a_codes, codes(range(80), range(80, 100))))
    assert found.kinds.tolist() == ["shared", "shared"]
    assert [(x.feature, x.of, x.match) for x in found.absorptions] == [(1, 0, 0)]
    assert any("absorb as well" in note for note in found.study().notes)
    assert relations(a, b, codes=(a_codes, a_codes)).absorptions == ()


def test_identity_rotated_and_random_dictionaries():
    rows = torch.randn(80, 48, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    found = relations(dictionary(rows), dictionary(rows[order]))
    assert set(found.kinds) == {"shared"}
    assert found.nearest.tolist() == order.tolist()
    assert found.num_gone == 0
    rotation = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(2))).Q
    other = torch.randn(90, 48, generator=torch.Generator().manual_seed(3))
    for strange in (rows @ rotation, -rows, other):
        found = relations(dictionary(rows), dictionary(strange))
        assert found.counts()["new"] >= len(strange) - 2
        assert found.counts()["shared"] == 0
        assert found.num_gone == 80


def test_the_bar_is_never_below_what_random_directions_reach():
    """In two dimensions, where it is known in closed form, in more by drawing, and in use."""
    one = random_bar(1, 2, 0.9)
    assert one == pytest.approx(math.cos(0.1 * math.pi))  # the angle is uniform
    assert random_bar(7, 2, 0.9) == pytest.approx(math.cos((1 - 0.9 ** (1 / 7)) * math.pi))
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(20_000, 50, 6))
    cosines = rows[..., 0] / np.linalg.norm(rows, axis=-1)  # with the first axis
    assert random_bar(50, 6, 0.9) == pytest.approx(np.quantile(cosines.max(1), 0.9), abs=0.01)
    assert random_bar(65536, 1) == 1.0
    assert 0.5 < random_bar(65536, 64) < random_bar(1 << 20, 64) < 0.9
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    found = relations(dictionary(rows), dictionary(torch.randn(300, 4, generator=torch.Generator().manual_seed(1))))
    assert found.bar == found.part_bar == random_bar(300, 4) > 0.95
    low = relations(dictionary(rows), dictionary(rows), config=RelationConfig(quantile=0.0))
    assert (low.bar, low.part_bar) == (0.7, 0.3)


def test_firings_are_sets_of_tokens():
    stored_zero = sparse.csr_array(
        (np.array([0.0, 2.0, 1.0]), (np.array([0, 3, 1]), np.array([0, 0, 1]))), shape=(5, 2)
    )
    sets = FiringSets(stored_zero)
    assert sets.counts.tolist() == [1, 1]
    assert sets.of(0).tolist() == [3]
    assert sets.marked(0).tolist() == [False, False, False, True, False]
    assert sets.overlap(0, np.array([1, 3])) == 0.5
    assert stored_zero.nnz == 3  # it was not changed


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        (torch.eye(3), torch.eye(4), {}, "width 3, those of B 4"),
        (torch.full((2, 3), torch.inf), torch.eye(3), {}, "decoder of A"),
        (torch.zeros(2, 3), torch.eye(3), {}, "all features of A are dead"),
        (torch.eye(3), torch.eye(3), {"codes": (codes([1], [2]), codes([1], [2], [3]))}, "A has 3 features"),
        (
            torch.eye(3),
            torch.eye(3),
            {"codes": (codes([1], [2], [3]), codes([1], [2], [3])[:9])},
            "same tokens, got 400 and 9",
        ),
        (
            torch.eye(3),
            torch.eye(3),
            {"codes": (codes([1], [2], [3]), codes([], [], []))},
            "of B are dead on this sample",
        ),
    ],
)
def test_what_does_not_fit_is_refused(a, b, options, words):
    with pytest.raises(ValueError, match=words):
        relations(dictionary(a), dictionary(b), **options)


@pytest.mark.parametrize("bad", [{"shared_cosine": 1.5}, {"min_firings": 0}, {"min_silent": -0.1}])
def test_settings_without_sense_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RelationConfig(**bad)


# The store


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "features.db") as opened:
        for name, size in (("b", 9), ("small", 3)):
            record = DictionaryRecord(name=name, model="m", hook_point="h", architecture="relu", d_in=D, d_sae=size)
            features = [
                Feature(record=FeatureRecord(index=i, num_firings=1, density=0.1, max_activation=1.0))
                for i in range(size)
            ]
            opened.write(record, AnalysisRecord(dataset="d", context_size=8, num_tokens=T), features, [], [])
        yield opened


def everything(store: Store) -> dict:
    return {
        "tags": {i: store.page("b", i).tags for i in range(9)},
        "notes": {i: [(n.author, n.text) for n in store.page("b", i).notes] for i in range(9)},
        "numbers": [(e.study, e.metric, e.variant, e.value) for e in store.evaluations("b")],
    }


def test_the_store_gets_tags_notes_and_numbers(store):
    write_relations(store, "b", relations(A, B, codes=(A_CODES, B_CODES)), against="a")
    kept = everything(store)
    assert [kept["tags"][i] for i in range(9)] == [
        ("shared with a",), ("split from a",), ("split from a",), ("shared with a",), ("absorbs from a",), ("near a",),
        ("new against a",), ("new against a",), (),
    ]  # fmt: skip
    assert kept["notes"][0] == [(AUTHOR, "against a: shared with feature 0 (cosine 1.000)")]
    assert kept["notes"][1] == [(AUTHOR, "against a: part of feature 1, with 2")]
    assert kept["notes"][4] == [(AUTHOR, "against a: absorbs feature 2: 3 is silent on 100% of 30 tokens")]
    assert kept["notes"][6] == []
    assert ("relations", "num_shared", "against a", 2.0) in kept["numbers"]
    assert ("relations", "num_new", "against a", 2.0) in kept["numbers"]
    details = store.evaluations("b")[0].details
    assert details["bar"] == 0.7
    assert details["settings"]["min_cover"] == 0.8
    assert [r.index for r in store.features("b", tag="new against a", sort="index", descending=False).features] == [
        6,
        7,
    ]


def test_writing_again_replaces_what_was_written_and_nothing_else(store):
    store.tag("b", 0, "mine")
    store.add_note("b", 0, Note(text="against a: my own words", author="me"))
    store.add_evaluations("b", [EvaluationResult(study="core", metric="l0", value=3.0)])
    write_relations(store, "b", relations(A, B), against="another")
    before = everything(store)
    with_codes = relations(A, B, codes=(A_CODES, B_CODES))
    write_relations(store, "b", relations(A, B), against="a")
    write_relations(store, "b", with_codes, against="a")
    once = everything(store)
    write_relations(store, "b", with_codes, against="a")
    assert everything(store) == once
    assert once["tags"][0] == ("mine", "shared with a", "shared with another")
    assert ("me", "against a: my own words") in once["notes"][0]
    assert sum(text.startswith("against a: ") for _, text in once["notes"][1]) == 1
    assert set(before["numbers"]) <= set(once["numbers"])
    assert len(once["numbers"]) == len(before["numbers"]) + len(with_codes.study().numbers)


def test_all_of_it_or_nothing(store, monkeypatch):
    write_relations(store, "b", relations(A, B), against="a")
    before = everything(store)

    def fail(*_):
        raise RuntimeError("the last step fails")

    monkeypatch.setattr("saescope.evaluation.matching.relations_in_store.add_evaluations", fail)
    with pytest.raises(RuntimeError, match="last step"):
        write_relations(store, "b", relations(A, B, codes=(A_CODES, B_CODES)), against="a")
    assert everything(store) == before


def test_what_the_store_does_not_have_is_refused(store):
    found = relations(A, B)
    with pytest.raises(ValueError, match="no dictionary named 'c'"):
        write_relations(store, "c", found, against="a")
    with pytest.raises(ValueError, match="3 features in the store, and 9 were compared"):
        write_relations(store, "small", found, against="a")
    with pytest.raises(ValueError, match="needs a name"):
        write_relations(store, "b", found, against=" ")
    assert store.tags("small") == {}
