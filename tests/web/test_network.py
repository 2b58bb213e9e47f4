"""The networks of a real server on a tiny model: what pages are given equals what analyses and interventions compute."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig
from saescope.analysis import AnalysisConfig, analyze
from saescope.dictionaries import TopK, TopKConfig, save_dictionary
from saescope.formats.loading import load
from saescope.interventions import Add, Clamp, Site, side_by_side
from saescope.models import LanguageModel
from saescope.store import AnalysisRecord, DictionaryRecord, NotInStoreError, Store
from saescope.web.live import BusyError, Change, NoModelError, Piece
from saescope.web.network import Networks
from saescope.web.readings import spans_of
from saescope.web.whereabouts import options_by_name

HOOK = "blocks.1.hook_resid_post"
LONG = 20.0
CONFIG = AnalysisConfig(num_examples=4, num_bands=2, num_per_band=2, num_negatives=1, num_logits=2, map="none")
TEXTS = [
    "def alpha(x, beta):\n    return x + 7\n",
    "a😀b 👩‍👩‍👧",
    "漢字 kana かな",
    "e\u0301 q\u0323\u0307 x",
    "one\r\ntwo\r\n\n\tthree",
    "a<|endoftext|>b",
    "<|endoftext|>",
    "\x00\x07 \u202e\u2028 \ufffd",
    "    ",
]


@pytest.fixture(scope="module")
def files(tiny: LanguageModel, documents: Any, tmp_path_factory: Any) -> Path:
    """A folder with the model, and with two dictionaries and the store that their analyses were written to."""
    folder = tmp_path_factory.mktemp("files")
    tiny.module.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")  # type: ignore[union-attr]
    model = LanguageModel.load(folder / "model")
    with Store.open(folder / "features.db") as store:
        for name, opens, seed in (("open", True, 1), ("shut", False, 2)):
            dictionary = TopK(TopKConfig(d_in=16, d_sae=24, k=3), seed=seed)
            with torch.no_grad():
                dictionary.encoder_rows[7] = 0  # a feature that never fires
            save_dictionary(dictionary, folder / name, metadata={"prepend_bos": opens, "hook_name": HOOK})
            windows = TokenWindows.build(documents, model.tokenizer, WindowConfig(context_size=32, prepend_bos=opens))  # type: ignore[arg-type]
            loaded = load(folder / name)
            analyze(
                loaded, model, windows, HOOK, name=name, store=store, config=CONFIG, dataset="w", source=folder / name
            )
    return folder


@pytest.fixture
def store(files: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copy(files / "features.db", tmp_path / "features.db")
    with Store.open(tmp_path / "features.db") as store:
        yield store


class Loads:
    """Opens what is asked for and counts it; can be held up, and can fail."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.dictionaries = 0
        self.may_go, self.begun = threading.Event(), threading.Event()
        self.may_go.set()
        self.fails: Exception | None = None

    def model(self, place: str, **how: Any) -> LanguageModel:
        self.begun.set()
        assert self.may_go.wait(LONG)
        if self.fails:
            raise self.fails
        self.models.append(place)
        return LanguageModel.load(place, **how)

    def dictionary(self, source: Any, **how: Any) -> Any:
        self.dictionaries += 1
        return load(source, **how)


@pytest.fixture
def loads() -> Loads:
    return Loads()


@pytest.fixture
def make(store: Store, loads: Loads) -> Iterator[Callable[..., Networks]]:
    made: list[Networks] = []

    def networks(**options: Any) -> Networks:
        made.append(Networks(store, load_model=loads.model, load_dictionary=loads.dictionary, **options))
        return made[-1]

    yield networks
    for each in made:
        each.close()


@pytest.fixture
def networks(make: Callable[..., Networks]) -> Networks:
    return make()


def test_a_window_of_the_store_has_the_activations_that_the_analysis_stored(networks: Networks, store: Store):
    """Of both ways to begin a window. Words at its ends may be cut, and then other tokens are made of its text."""
    for name in ("open", "shut"):
        compared = fired = 0
        for index in range(24):
            for example in store.page(name, index).all_examples:
                window = example.window
                first = 1 if name == "open" else 0  # the opening token is no part of the text
                text = window.text[window.token_ranges[first][0] :]
                if name == "open" and window.token_ids[1] == 0:
                    continue  # the text would begin with what is taken for the opening token
                try:
                    reading = networks.read_text(name, text, feature=index)
                except ValueError:  # a cut word makes more tokens than there is room for
                    continue
                ids = tuple(token for piece in reading.pieces for token in piece.token_ids)
                assert "".join(piece.text for piece in reading.pieces) == text
                if ids != window.token_ids[first:]:
                    continue
                stored = example.activations[first:]
                places = np.cumsum([0, *(len(piece.token_ids) for piece in reading.pieces)])
                wanted = [max(stored[a:b], key=abs) for a, b in pairwise(places)]
                np.testing.assert_allclose([piece.activation for piece in reading.pieces], wanted, atol=1e-4)
                compared += 1
                fired += any(stored)
        assert compared > 30
        assert fired > 20


def test_strongest_features_are_those_of_the_dense_activations(networks: Networks, files: Path):
    text = "a😀b def alpha(漢)"
    model, dictionary = LanguageModel.load(files / "model"), load(files / "open")
    ids = model.tokenizer(text)["input_ids"]  # type: ignore[misc]
    x = model.read(torch.tensor([[0, *ids]]), [HOOK])[HOOK][0, 1:]
    dense = dictionary.encode(x).detach().numpy()  # [N, 24]
    for number, apart in ((2, ()), (3, (0, 1, 2, 3, 4, 5, 6, 8, 9, 10)), (32, ())):
        reading = networks.read_text("open", text, num_per_token=number, apart=apart)
        assert reading.num_tokens == len(ids)
        assert any(len(piece.token_ids) > 1 for piece in reading.pieces)
        first = 0
        for piece in reading.pieces:
            rows = dense[first : first + len(piece.token_ids)]
            first += len(piece.token_ids)
            strongest = rows.max(0)
            ranked = sorted(np.flatnonzero(strongest).tolist(), key=lambda i: (-strongest[i], i))
            kept = [i for i in ranked if i in [i for i in ranked if i in apart][:number]]
            kept += [i for i in ranked if i not in apart][:number]
            kept.sort(key=ranked.index)
            assert [index for index, _ in piece.features] == kept
            np.testing.assert_allclose([value for _, value in piece.features], strongest[kept], rtol=1e-5)
            assert piece.activation == 0
        assert first == len(ids)
        strongest = dense.max(0)
        ranked = sorted(np.flatnonzero(strongest).tolist(), key=lambda i: (-strongest[i], i))
        assert [index for index, _, _ in reading.features] == ranked
        np.testing.assert_allclose([value for _, value, _ in reading.features], strongest[ranked], rtol=1e-5)
        assert [count for _, _, count in reading.features] == np.count_nonzero(dense, axis=0)[ranked].tolist()


def test_a_text_that_begins_with_the_opening_token_has_it_once(networks: Networks):
    """So the text of a stored window, its opening token included, is what the analysis read."""
    typed, plain = (networks.read_text("open", text) for text in ("<|endoftext|>def alpha", "def alpha"))
    assert typed.pieces[1:] == plain.pieces
    other = networks.read_text("shut", "<|endoftext|>def alpha")
    assert other.pieces[1:] != networks.read_text("shut", "def alpha").pieces


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["open", "shut"])
def test_pieces_together_are_the_text(networks: Networks, name: str, text: str):
    reading = networks.read_text(name, text)
    assert "".join(piece.text for piece in reading.pieces) == text
    for piece in reading.pieces:
        piece.text.encode()  # no half character
        assert piece.is_special == (piece.token_ids == (0,))
        assert not (piece.is_special and piece.features)
    if "<|endoftext|>" in text:
        assert Piece(text="<|endoftext|>", token_ids=(0,), is_special=True) in reading.pieces


@pytest.mark.parametrize("text", ["Hello  WORLD é", "x\u0301y Ａ", " a ", "\u1e9e"])
def test_tokenizers_that_change_what_they_read_still_show_what_was_typed(text: str):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        "[UNK]": 0,
        **{f"{mark}{sign}": 1 + i for i, sign in enumerate("abcdehlorwxyz") for mark in ("", "##")},
    }
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model = type("M", (), {"tokenizer": PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")})()
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    spans = spans_of(model, text, ids)
    assert "".join(span.text for span in spans) == text
    assert [number for span in spans for number in span.tokens] == list(range(len(ids)))


def test_texts_that_are_refused(networks: Networks):
    with pytest.raises(ValueError, match="no token"):
        networks.read_text("open", "")
    with pytest.raises(ValueError, match=r"the text has 40 tokens, and .*model reads at most 31"):
        networks.read_text("open", "\x01" * 40)
    with pytest.raises(ValueError, match="character 2 of the text is half of a pair"):
        networks.read_text("open", "a\ud800")
    with pytest.raises(ValueError, match="feature 24 is out of range"):
        networks.read_text("open", "a", feature=24)
    with pytest.raises(NotInStoreError, match="no dictionary named 'x'"):
        networks.read_text("x", "a")
    with pytest.raises(NotInStoreError, match="no analysis named 'x'"):
        networks.read_text("open", "a", analysis="x")


def steps_of(items: Iterator[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    found = [item for item in items if "state" not in item]
    json.dumps(found, allow_nan=False)
    assert list(found[-1]) == ["done"]
    return found[:-1], found[-1]["done"]


@pytest.mark.parametrize("name", ["open", "shut"])
@pytest.mark.parametrize(("temperature", "seed"), [(0.0, 0), (1.0, 3), (5.0, 2**53 - 1)])
def test_steering_writes_and_measures_what_side_by_side_does(
    networks: Networks, store: Store, files: Path, name: str, temperature: float, seed: int
):
    live = sorted(range(24), key=lambda index: -store.page(name, index).feature.max_activation)[:2]
    changes = [Change(feature=live[0], strength=3.0), Change(feature=live[1], strength=-0.5, kind="clamp")]
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "seed": seed}
    steps, done = steps_of(networks.steer(name, "def alpha(é", changes, **how))

    model = LanguageModel.load(files / "model")
    site = Site.in_store(store, name, load(files / name), model)
    made = [Add(site, live[0], 3.0), Clamp(site, live[1], -0.5)]
    wanted = side_by_side(model, "def alpha(é", made, prepend_bos=True if name == "open" else None, **how)
    for side, written in (("plain", wanted.plain), ("steered", wanted.steered)):
        tokens = [step[side] for step in steps if step[side] is not None]
        assert tokens[-1]["text"] == written.texts[0]
        assert [token["is_last"] for token in tokens] == [False] * (len(tokens) - 1) + [True]
        np.testing.assert_allclose(
            [token["log_probability"] for token in tokens], written.log_probabilities[0], atol=1e-9
        )
    assert done["num_tokens"] == len(wanted.steered.new_ids[0])
    assert done["kl_per_token"] == pytest.approx(wanted.kl_per_token, abs=1e-9)
    assert done["kl_per_token"] > 0.01
    assert done["perplexity_plain"] == pytest.approx(wanted.perplexity_plain, rel=1e-9)
    assert done["perplexity_steered"] == pytest.approx(wanted.perplexity_steered, rel=1e-9)
    steered = [step["steered"] for step in steps if step["steered"] is not None]
    np.testing.assert_allclose([token["kl"] for token in steered], wanted.scores.kl[0], atol=1e-4)
    plain = wanted.scores.log_probabilities_plain[0]
    np.testing.assert_allclose([token["log_probability_plain"] for token in steered], plain, atol=1e-4)


def test_what_can_not_be_steered_is_said_at_once(networks: Networks, loads: Loads):
    with pytest.raises(ValueError, match="feature 7 never fired"):
        networks.steer("open", "a", [Change(feature=7, strength=1.0)])
    with pytest.raises(NotInStoreError, match="feature 24"):
        networks.steer("open", "a", [Change(feature=24, strength=1.0)])
    with pytest.raises(ValueError, match='"add" or "clamp"'):
        networks.steer("open", "a", [Change(feature=0, strength=1.0, kind="x")])
    with pytest.raises(ValueError, match="finite"):
        networks.steer("open", "a", [Change(feature=0, strength=float("inf"))])
    with pytest.raises(ValueError, match="nothing is to be changed"):
        networks.steer("open", "a", [])
    with pytest.raises(ValueError, match="half of a pair"):
        networks.steer("open", "\udfff", [Change(feature=0, strength=1.0)])
    assert loads.models == []
    too_long = networks.steer("open", "a", [Change(feature=0, strength=1.0)], max_new_tokens=40)
    with pytest.raises(ValueError, match="40 are to follow, more than the 32"):
        list(too_long)
    assert networks.read_text("open", "a").num_tokens == 1  # it goes on


def test_a_stream_that_is_left_frees_the_model(networks: Networks):
    steps = networks.steer("open", "a", [Change(feature=0, strength=1.0)], max_new_tokens=30)
    while "plain" not in next(steps):
        pass
    steps.close()  # type: ignore[attr-defined]
    assert networks.read_text("open", "ab").num_tokens > 0
    assert list(steps) == []


def test_what_waits_is_told_what_it_waits_for(make: Callable[..., Networks], loads: Loads):
    networks = make(max_waiting=1)
    loads.may_go.clear()
    assert networks.state("open")["state"] == "cold"
    first = networks.steer("open", "a", [Change(feature=0, strength=1.0)], max_new_tokens=2)
    state = next(first)["state"]
    assert loads.begun.wait(LONG)
    while state["state"] != "loading":
        state = next(first)["state"]
    assert "Loading the " in state["words"]
    second = networks.steer("open", "b", [Change(feature=0, strength=1.0)], max_new_tokens=2)
    state = next(second)["state"]
    assert state["words"].startswith(("Loading the model", "Loading the dictionary"))
    assert networks.state("open")["num_waiting"] == 1
    with pytest.raises(BusyError, match="1 requests wait for the model already"):
        networks.read_text("open", "c")
    loads.may_go.set()
    assert len(steps_of(first)[0]) == len(steps_of(second)[0]) == 2
    assert networks.state("open") == {"state": "ready", "words": "The model is loaded.", "num_waiting": 0}


def test_dictionaries_of_one_model_share_it_and_few_stay_open(make: Callable[..., Networks], loads: Loads, files: Path):
    networks = make(num_open=2)
    for name in ("open", "shut", "open", "shut"):
        networks.read_text(name, "a")
    assert loads.models == [str(files / "model")]
    assert loads.dictionaries == 2
    networks = make(num_open=1)
    for name in ("open", "open", "shut", "open"):
        networks.read_text(name, "a")
    assert loads.dictionaries == 2 + 3


def test_what_is_written_anew_is_read_anew(networks: Networks, store: Store, loads: Loads, files: Path, tmp_path: Path):
    place = tmp_path / "moved"
    shutil.copytree(files / "open", place)
    record = store.dictionary("open")
    networks._places = networks._shelf._places = replace(networks._places, sources={"open": str(place)})
    before = networks.read_text("open", "def alpha")
    assert networks.read_text("open", "def alpha") == before
    assert loads.dictionaries == 1
    shutil.rmtree(place)
    other = TopK(TopKConfig(d_in=16, d_sae=24, k=3), seed=9)
    save_dictionary(other, place, metadata={"prepend_bos": True, "hook_name": HOOK})
    assert networks.read_text("open", "def alpha") != before
    assert loads.dictionaries == 2
    assert record.name == "open"


def test_maxima_follow_the_analysis(networks: Networks, store: Store):
    live = max(range(24), key=lambda index: store.page("open", index).feature.max_activation)
    ask = lambda: steps_of(networks.steer("open", "a", [Change(feature=live, strength=2.0)], max_new_tokens=4))  # noqa: E731
    before = ask()
    record, analysis = store.dictionary("open"), store.analysis("open")
    page = store.page("open", live)
    from saescope.store.records import Feature

    store.write(
        record,
        AnalysisRecord(name="other", dataset="x", context_size=4, num_tokens=1),
        [Feature(record=replace(page.feature, max_activation=5 * page.feature.max_activation))],
        [],
        [],
    )
    changes = [Change(feature=live, strength=2.0)]
    stronger = [Change(feature=live, strength=10.0)]
    now = steps_of(networks.steer("open", "a", changes, max_new_tokens=4))  # the newest analysis
    wanted = steps_of(networks.steer("open", "a", stronger, max_new_tokens=4, analysis=analysis.name))
    assert now == wanted
    assert now != before


def test_a_failed_load_is_said_and_tried_again(networks: Networks, loads: Loads):
    loads.fails = OSError("the disk is on fire")
    with pytest.raises(NoModelError, match="open can not be opened here: the disk is on fire"):
        networks.read_text("open", "a")
    assert networks.state("open")["state"] == "failed"
    assert "on fire" in networks.state("open")["words"]
    with pytest.raises(NoModelError, match="on fire"):
        list(networks.steer("open", "a", [Change(feature=0, strength=1.0)]))
    loads.fails = None
    assert networks.read_text("open", "a").num_tokens == 1
    assert networks.state("open")["state"] == "ready"


def test_too_little_memory_is_no_mistake(networks: Networks, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("saescope.web.network.read_features", full)
    with pytest.raises(BusyError, match="not enough memory"):
        networks.read_text("open", "a")


def test_other_places_can_be_named(make: Callable[..., Networks], store: Store, loads: Loads, files: Path):
    for models in ({"open": "M"}, {str(files / "model"): "M"}, {"": "M"}):
        there = {key: str(files / "model") + "/." for key in models}
        networks = make(models=there)
        networks.read_text("open", "a")
        assert loads.models[-1] == str(files / "model") + "/."
    networks = make(sources={"open": str(files / "shut")})
    assert networks.read_text("open", "def alpha") != make().read_text("open", "def alpha")


def write(store: Store, name: str, **fields: Any) -> None:
    given: dict[str, Any] = {"model": "bundled", "hook_point": HOOK, "architecture": "topk", "d_in": 16, "d_sae": 24}
    record = DictionaryRecord(name=name, **(given | fields))
    store.write(record, AnalysisRecord(dataset="x", context_size=4, num_tokens=1), [], [], [])


def test_why_texts_can_not_be_tried(networks: Networks, store: Store, files: Path, loads: Loads, tmp_path: Path):
    there = {"source": str(files / "open")}
    assert networks.absent("open") is None
    assert networks.absent("open", steering=True) is None
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("no weights", {}, "the weights of this dictionary lie; `saescope serve --dictionary 'no weights=PATH'`"),
        ("gone", {"details": {"source": "/nowhere/at/all"}}, "lay in /nowhere/at/all, which is gone"),
        ("no model", {"details": there, "model": ""}, "--model 'no model=PATH'"),
        ("gone model", {"details": there, "model": "/nowhere/model"}, "The model of this dictionary lay in /nowhere/model"),
        ("hub", {"details": there, "model": "nobody/has-this"}, "is not on this machine"),
        ("sequences", {"details": there, "architecture": "temporal"}, "reads whole texts from their first token on"),
    ]  # fmt: skip
    for name, fields, words in cases:
        write(store, name, **fields)
        assert words in (networks.absent(name) or ""), name
        with pytest.raises(NoModelError):
            networks.read_text(name, "a")
        with pytest.raises(NoModelError):
            networks.steer(name, "a", [Change(feature=0, strength=1.0)])
    assert loads.dictionaries == 0
    (tmp_path / "masked").mkdir()
    (tmp_path / "masked" / "config.json").write_text('{"model_type": "bert"}')
    write(store, "masked", details=there, model=str(tmp_path / "masked"))
    assert networks.absent("masked") is None
    assert "needs a model that writes" in (networks.absent("masked", steering=True) or "")
    with pytest.raises(NotInStoreError):
        networks.absent("nothing")


def test_absence_is_cheap_to_ask_for(networks: Networks, monkeypatch: pytest.MonkeyPatch):
    """Every page asks; the store and the disk are asked now and then."""
    assert networks.absent("open") is None
    monkeypatch.setattr(Store, "dictionary", lambda *_: pytest.fail("asked again"))
    assert networks.absent("open") is None


def test_options_name_dictionaries_and_models(tmp_path: Path):
    known = ["a", "a=b", "c"]
    assert options_by_name(["a=/x", "/y"], known) == {"a": "/x", "": "/y"}
    assert options_by_name(["a=b=/x=y"], known) == {"a=b": "/x=y"}
    (tmp_path / "p=q").mkdir()
    assert options_by_name([str(tmp_path / "p=q")], known) == {"": str(tmp_path / "p=q")}
    with pytest.raises(ValueError, match="nothing in the store is named 'd'; there is a, a=b, c"):
        options_by_name(["d=/x"], known)
    with pytest.raises(ValueError, match="named twice"):
        options_by_name(["/x", "/y"], known)
    with pytest.raises(ValueError, match="a path is missing"):
        options_by_name(["c="], known)


def test_two_dictionaries_are_matched_by_their_weights(networks: Networks, loads: Loads, files: Path):
    from saescope.web.live import Live
    from saescope.web.matching import match_dictionaries

    live: Live = networks
    assert live.match("open", "shut") == match_dictionaries(load(files / "open"), load(files / "shut"))
    assert loads.models == []
    assert networks.state("open")["state"] == "cold"
    networks.read_text("open", "a")
    before = loads.dictionaries
    networks.match("open", "open")
    assert loads.dictionaries == before
