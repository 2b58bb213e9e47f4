"""Advice on L0: what constructed curves say, what single dictionaries are told, and the picture."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saescope.dictionaries import TopK
from saescope.dictionaries.topk import TopKConfig
from saescope.evaluation.l0.advice import (
    L0Advice,
    L0AdviceConfig,
    L0Measures,
    SweepPoint,
    advise,
    judge_l0,
    measure_l0,
    random_overlap,
    warning,
)
from saescope.evaluation.l0.plots import plot_l0
from saescope.evaluation.sample import TokenSample

GRID = (4, 8, 16, 32, 64, 128, 256)
MINIMUM = (0.10, 0.07, 0.03, 0.01, 0.04, 0.07, 0.09)
ELBOW = (0.10, 0.08, 0.05, 0.021, 0.020, 0.0205, 0.020)


def sweep(c_dec, s=None, *, early=None, early_s=None, grid=GRID, noise=(0.0,)) -> list[SweepPoint]:
    """Dictionaries with these values at each L0, one for every number of ``noise``, which is added to them."""
    s = c_dec if s is None else s

    def measures(l0, c, value):
        return L0Measures(l0=float(l0), c_dec=c, s={12.0: 9.0, 15.0: value, 18.0: -9.0})

    points = []
    for i, l0 in enumerate(grid):
        for seed, shift in enumerate(noise):
            before = None
            if early is not None:
                before = measures(l0, early[i] + shift, (early if early_s is None else early_s)[i] + shift)
            points.append(
                SweepPoint(setting=l0, seed=seed, final=measures(l0, c_dec[i] + shift, s[i] + shift), early=before)
            )
    return points


def words(advice: L0Advice) -> str:
    return " ".join(advice.sentences)


def test_a_clean_minimum():
    advice = advise(sweep(MINIMUM, early=MINIMUM))
    assert advice.kind == "minimum"
    # half-way to the neighbours on a logarithmic scale: sqrt(16 * 32) and sqrt(32 * 64)
    assert (advice.low, advice.high) == pytest.approx((22.627, 45.255), abs=1e-3)
    assert [v.measure for v in advice.verdicts] == ["c_dec", "s_15"]
    assert [v.best for v in advice.verdicts] == [32, 32]
    assert advice.sentences[-1] == "Recommended L0: 22.6 to 45.3."
    assert "a minimum of 0.01 at L0 32" in words(advice)
    assert [advice.place(l0) for l0 in (22, 23, 45, 46)] == ["too low", "right", "right", "too high"]


def test_neighbours_that_are_nearly_as_low_belong_to_the_range():
    curve = (0.10, 0.07, 0.03, 0.010, 0.018, 0.07, 0.09)  # a tenth of the depth is 0.009
    advice = advise(sweep(curve, early=curve))
    assert (advice.low, advice.high) == pytest.approx((math.sqrt(16 * 32), math.sqrt(64 * 128)))
    advice = advise(sweep(curve, early=curve), L0AdviceConfig(near_share=0.05))
    assert advice.high == pytest.approx(math.sqrt(32 * 64))


def test_an_elbow_as_on_language_models():
    advice = advise(sweep(ELBOW, early=ELBOW))
    assert (advice.kind, advice.low, advice.high) == ("elbow", 32, 64)
    assert "elbow just above the jump is at 32" in words(advice)


def test_two_flat_settings_at_the_end_are_no_elbow():
    curve = (0.10, 0.09, 0.08, 0.07, 0.05, 0.020, 0.0205)
    advice = advise(sweep(curve, early=curve))
    assert (advice.kind, advice.low) == ("widen_up", None)
    assert advise(sweep(curve, early=curve), L0AdviceConfig(num_flat=2)).kind == "elbow"


@pytest.mark.parametrize("level", [0.0, 0.05, -3.0])
def test_a_flat_curve_says_nothing(level):
    curve = tuple(level + 0.001 * abs(level) * (i % 2) for i in range(7))
    advice = advise(sweep(curve, early=curve))
    assert (advice.kind, advice.low, advice.high) == ("flat", None, None)
    assert "says nothing" in words(advice)
    assert advice.sentences[-1] == "No L0 is recommended from this sweep."
    assert advice.place(30) == "unknown"


def test_a_minimum_at_an_edge_says_where_to_widen():
    falling, rising = tuple(reversed(range(1, 8))), tuple(range(1, 8))
    up, down = advise(sweep(falling, early=falling)), advise(sweep(rising, early=rising))
    assert (up.kind, up.low) == ("widen_up", None)
    assert "at the highest L0, 256: no minimum inside the sweep (4 to 256); widen it to higher L0" in words(up)
    assert (down.kind, down.low) == ("widen_down", None)
    assert "at the lowest L0, 4: no minimum inside the sweep (4 to 256); widen it to lower L0" in words(down)


def test_a_minimum_that_wanders_is_not_judged():
    # as deep as the final curve and never far from it, but lowest three settings further up
    final = (0.10, 0.06, 0.02, 0.030, 0.030, 0.030, 0.09)
    early = (0.10, 0.06, 0.035, 0.035, 0.030, 0.02, 0.09)
    advice = advise(sweep(final, early=early))
    assert (advice.kind, advice.low) == ("undertrained", None)
    assert "wandered from 128 to 16 since the snapshot" in words(advice)
    assert "Train longer" in advice.sentences[-1]
    # by one neighbour it may
    early = (0.10, 0.06, 0.035, 0.02, 0.030, 0.035, 0.09)
    assert advise(sweep(final, early=early)).kind == "minimum"


def test_an_elbow_that_wanders_is_not_judged():
    early = (0.10, 0.08, 0.055, 0.038, 0.036, 0.021, 0.0200)  # nowhere a quarter of the depth away
    advice = advise(sweep(ELBOW, early=early))
    assert advice.kind == "undertrained"
    assert "wandered" in words(advice)
    # a flat end may have its very lowest point anywhere
    lowest_elsewhere = (0.10, 0.08, 0.05, 0.020, 0.021, 0.021, 0.0205)
    assert advise(sweep(ELBOW, early=lowest_elsewhere)).kind == "elbow"


def test_a_curve_that_still_moves_is_not_judged():
    # a quarter of the depth of 0.09 is 0.0225
    assert advise(sweep(MINIMUM, early=[v + 0.022 for v in MINIMUM])).kind == "minimum"
    advice = advise(sweep(MINIMUM, early=[v + 0.023 for v in MINIMUM]))
    assert (advice.kind, advice.low) == ("undertrained", None)
    assert "still moving: since the snapshot it has changed by up to 0.023" in words(advice)
    # one of the two measures is enough
    advice = advise(sweep(MINIMUM, early=MINIMUM, early_s=[v + 0.05 for v in MINIMUM]))
    assert [v.kind for v in advice.verdicts] == ["minimum", "undertrained"]
    assert (advice.kind, advice.low) == ("undertrained", None)


def test_without_snapshots_the_advice_says_so():
    advice = advise(sweep(MINIMUM))
    assert advice.low is not None
    assert "whether they are trained to the end is not known" in words(advice)
    assert "not known" not in words(advise(sweep(MINIMUM, early=MINIMUM)))


def test_the_mean_over_seeds_decides():
    noisy = sweep(MINIMUM, early=MINIMUM, noise=(-0.002, 0.002))
    assert advise(noisy).low == pytest.approx(math.sqrt(16 * 32))
    # one seed is lowest elsewhere
    points = [*sweep(MINIMUM, early=MINIMUM), *sweep(ELBOW, early=ELBOW)]
    assert advise(points).verdicts[0].best == 32


def test_depth_within_the_noise_of_seeds_is_flat():
    # two seeds 2 e apart have a standard error of their mean of e; the depth is 0.09
    assert advise(sweep(MINIMUM, early=MINIMUM, noise=(-0.05, 0.05))).kind == "flat"
    assert advise(sweep(MINIMUM, early=MINIMUM, noise=(-0.023, 0.023))).kind == "flat"
    assert advise(sweep(MINIMUM, early=MINIMUM, noise=(-0.022, 0.022))).kind == "minimum"


def test_settings_within_the_noise_are_near_the_minimum():
    curve = (0.10, 0.07, 0.03, 0.010, 0.021, 0.07, 0.09)
    assert advise(sweep(curve, early=curve, noise=(-0.005, 0.005))).high == pytest.approx(math.sqrt(32 * 64))
    assert advise(sweep(curve, early=curve, noise=(-0.006, 0.006))).high == pytest.approx(math.sqrt(64 * 128))


def test_two_measures():
    later = (0.12, 0.10, 0.08, 0.07, 0.03, 0.01, 0.05)
    advice = advise(sweep(MINIMUM, later, early=MINIMUM, early_s=later))
    assert "lowest at different L0: the range covers both" in words(advice)
    assert (advice.low, advice.high) == pytest.approx((math.sqrt(16 * 32), math.sqrt(128 * 256)))
    flat = [0.05] * 7
    advice = advise(sweep(MINIMUM, flat, early=MINIMUM, early_s=flat))
    assert (advice.kind, advice.high) == ("minimum", pytest.approx(math.sqrt(32 * 64)))
    assert "different L0" not in words(advice)
    # what they have in common: c_dec is nearly as low at 64, s_15 at 16
    one, other = (0.10, 0.07, 0.03, 0.010, 0.018, 0.07, 0.09), (0.10, 0.07, 0.018, 0.010, 0.03, 0.07, 0.09)
    advice = advise(sweep(one, other, early=one, early_s=other))
    assert [(round(v.low, 1), round(v.high, 1)) for v in advice.verdicts] == [(22.6, 90.5), (11.3, 45.3)]
    assert (advice.low, advice.high) == pytest.approx((22.627, 45.255), abs=1e-3)
    # side by side they have no setting in common
    one, other = MINIMUM, (0.10, 0.08, 0.07, 0.03, 0.01, 0.07, 0.09)
    advice = advise(sweep(one, other, early=one, early_s=other))
    assert (advice.low, advice.high) == pytest.approx((22.627, 90.510), abs=1e-3)


def test_which_n_is_judged_by():
    assert advise(sweep(MINIMUM)).verdicts[1].measure == "s_15"  # the middle one
    assert advise(sweep(MINIMUM), L0AdviceConfig(n=12.0)).verdicts[1].kind == "flat"
    with pytest.raises(ValueError, match="s_13 was not measured; there are s_12, s_15, s_18"):
        advise(sweep(MINIMUM), L0AdviceConfig(n=13))


def test_what_can_not_be_advised_on():
    with pytest.raises(ValueError, match="at least three L0, got 2"):
        advise(sweep((1, 2), grid=(4, 8)))
    other = SweepPoint(setting=4, final=L0Measures(l0=4, c_dec=0.1, s={}))
    with pytest.raises(ValueError, match="different n"):
        advise([*sweep(MINIMUM), other])
    for wrong in ({"near_share": 0.0}, {"most_drift": 1.0}, {"num_flat": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            L0AdviceConfig(**wrong)


def test_dictionaries_without_a_value_are_no_number():
    points = [SweepPoint(setting=l0, final=L0Measures(l0=l0, c_dec=None, s={})) for l0 in GRID]
    advice = advise(points)
    assert (advice.kind, advice.low) == ("missing", None)
    assert "c_dec alone is judged" in words(advice)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.lists(st.floats(-1, 1), min_size=9, max_size=9))
def test_a_recommended_range_lies_inside_the_sweep_and_holds_the_lowest_point(curve, early):
    grid = [2.0**i for i in range(len(curve))]
    advice = advise(sweep(curve, early=early, grid=grid))
    assert (advice.low is None) == (advice.kind not in ("minimum", "elbow"))
    if advice.low is not None:
        assert grid[0] < advice.low < advice.high <= grid[-1]
        if advice.kind == "minimum":
            assert advice.low < grid[int(np.argmin(curve))] < advice.high
    assert L0Advice.from_dict(json.loads(json.dumps(advice.as_dict()))) == advice


# Dictionaries


@pytest.fixture(scope="module")
def sample() -> TokenSample:
    generator = torch.Generator().manual_seed(0)
    return TokenSample.of_activations(torch.randn(200, 8, generator=generator), document=np.arange(200) // 10)


@pytest.fixture(scope="module")
def topk() -> TopK:
    return TopK(TopKConfig(d_in=8, d_sae=24, k=3), seed=0)


def test_measures_of_a_dictionary(sample, topk):
    found = measure_l0(topk, sample, [5, 8], batch_size_tokens=64)
    with torch.no_grad():
        fired = [sum(value != 0 for value in row) for row in topk.encode(sample.x).tolist()]
        units = topk.W_dec / topk.W_dec.norm(dim=-1, keepdim=True)
        z = (sample.x.double() - topk.b_dec.double()) @ units.double().T
    assert found.l0 == pytest.approx(sum(fired) / 200)
    batches = [sorted(z[first : first + 64].flatten().tolist(), reverse=True) for first in (0, 64, 128)]
    assert found.s == pytest.approx({n: sum(b[n * 64] for b in batches) / 3 for n in (5, 8)}, rel=1e-6)
    pairs = [abs(float(units[i].double() @ units[j].double())) for i in range(24) for j in range(i)]
    assert found.c_dec == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)
    assert measure_l0(topk, sample, []).s == {}


def test_a_single_dictionary_is_measured_and_sent_to_a_sweep(sample, topk):
    result = judge_l0(topk, sample, batch_size_tokens=50)
    assert result.study == "l0"
    measured = measure_l0(
        topk, sample, [6], batch_size_tokens=50
    )  # a quarter; a sixteenth and an eighth are below its L0
    assert [n.name for n in result.numbers] == ["l0", "c_dec", "c_dec_random", "s_6"]
    assert result["l0"].value == measured.l0
    assert result["l0"].low is not None
    assert result["l0"].low <= measured.l0 <= result["l0"].high
    assert result["c_dec"].value == measured.c_dec
    assert result["s_6"].value == measured.s[6]
    assert result["s_6"].low < result["s_6"].value < result["s_6"].high
    (row,) = result.tables["advice"]
    assert row["verdict"] == "unknown"
    assert "advise-l0" in row["reason"]


def test_a_dictionary_is_warned_of_its_l0(sample, topk):
    def judged(grid):
        curve = advise(sweep(MINIMUM, early=MINIMUM, grid=grid))
        result = judge_l0(topk, sample, advice=curve)
        (row,) = result.tables["advice"]
        return row, " ".join(result.notes), result

    row, notes, result = judged(GRID)
    assert row["verdict"] == "too low"
    assert "an L0 of 3 looks too low (recommended is 22.6 to 45.3): features that go together" in notes
    assert result["s_15"].value is not None  # as in the sweep
    row, notes, _ = judged([value / 64 for value in GRID])
    assert row["verdict"] == "too high"
    assert "looks too high" in notes
    row, notes, _ = judged([value / 10 for value in GRID])
    assert (row["verdict"], row["low"]) == ("right", pytest.approx(2.2627, abs=1e-4))
    assert "is in the recommended range" in notes
    refused = advise(sweep(MINIMUM, early=[v + 1 for v in MINIMUM]))
    (row,) = judge_l0(topk, sample, advice=refused).tables["advice"]
    assert row["verdict"] == "unknown"
    assert "still moving" in row["reason"]
    assert "is not known" in warning(3.0, refused)


def test_dictionaries_that_say_little(sample):
    dense = TopK(TopKConfig(d_in=8, d_sae=6, k=6), seed=0)
    with torch.no_grad():
        dense.b_enc.fill_(100)
    result = judge_l0(dense, sample)
    assert result["l0"].value == 6
    assert not [n.name for n in result.numbers if n.name.startswith("s_")]
    assert "s_n is left out" in " ".join(result.notes)
    with torch.no_grad():
        dense.W_dec[1:] = 0
    result = judge_l0(dense, sample)
    assert result["c_dec"].value is None
    assert "fewer than two" in result["c_dec"].reason
    assert "5 decoder rows of norm 0" in " ".join(result.notes)
    with torch.no_grad():
        dense.W_enc[:] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        judge_l0(dense, sample)


def test_the_overlap_of_random_directions():
    assert random_overlap(1) == pytest.approx(1)
    assert random_overlap(2) == pytest.approx(2 / math.pi)  # the mean of |cos| over a circle
    assert random_overlap(3) == pytest.approx(0.5)
    assert random_overlap(100) == pytest.approx(math.sqrt(2 / (math.pi * 100)), rel=0.003)
    rows = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0))
    units = rows / rows.norm(dim=-1, keepdim=True)
    assert random_overlap(20) == pytest.approx(float((units[:1000] @ units[1000:].T).abs().mean()), rel=0.01)


# The picture


def green(path) -> int:
    """Number of pixels of the shade of the recommended range."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((np.abs(pixels - (0xDC, 0xEF, 0xE0)).sum(-1) < 6).sum())


def test_the_picture_shades_what_is_recommended(tmp_path):
    points = sweep(MINIMUM, early=MINIMUM, noise=(-0.003, 0.003))
    wide = advise(points, L0AdviceConfig(near_share=0.5))
    shaded = [
        green(plot_l0(points, advice, tmp_path / "new" / f"{i}.png")) for i, advice in enumerate((advise(points), wide))
    ]
    assert 5_000 < shaded[0] < shaded[1]
    flat = sweep([0.05] * 7)
    assert green(plot_l0(flat, advise(flat), tmp_path / "flat.png")) == 0


def test_the_picture_of_points_without_s_n(tmp_path):
    points = [
        SweepPoint(setting=l0, final=L0Measures(l0=l0, c_dec=c, s={})) for l0, c in zip(GRID, MINIMUM, strict=True)
    ]
    assert green(plot_l0(points, advise(points), tmp_path / "plot.png")) > 5_000
