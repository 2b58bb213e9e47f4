"""Direct logit attribution against the full product in float64 and against the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from saescope.analysis.logits import logit_effects, through_unembedding
from saescope.models.language_model import Unembedding
from saescope.store.records import Histogram


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(weight, **changes):
    """An unembedding without a norm before it."""
    nothing = {"bias": None, "norm_weight": None, "norm_bias": None, "norm_kind": None}
    return Unembedding(weight=weight, **{**nothing, **changes})


def uncentred(rows, unembedding):
    """The full product in float64, written out."""
    rows = rows.double()
    if unembedding.norm_kind == "layer_norm":
        rows = rows - rows.mean(1, keepdim=True)
    if unembedding.norm_weight is not None:
        rows = rows * unembedding.norm_weight.double()
    return (rows @ unembedding.weight.double().T).numpy()


CASES = {
    "layer_norm": lambda: plain(normal(301, 16), norm_weight=normal(16, seed=1), norm_kind="layer_norm"),
    "rms_norm": lambda: plain(normal(301, 16), norm_weight=normal(16, seed=1), norm_kind="rms_norm"),
    "no norm": lambda: plain(normal(301, 16)),
    "biases count for nothing": lambda: plain(normal(301, 16), bias=normal(301, seed=2), norm_bias=normal(16, seed=3)),
    "bfloat16": lambda: plain(normal(301, 16).bfloat16()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_effects_equal_the_full_product(case, dtype, rel):
    unembedding = CASES[case]()
    rows = normal(20, 16, seed=4)
    full = uncentred(rows, unembedding)
    found = list(logit_effects(rows, unembedding, num_tokens=4, num_bins=11, dtype=dtype, chunk_rows=7))
    assert len(found) == 20
    for before, effect in zip(full, found, strict=True):
        centred = before - before.mean()
        order = np.argsort(-centred)
        assert effect.top_ids == order[:4].tolist()
        assert effect.bottom_ids == order[::-1][:4].tolist()
        assert effect.top_values == pytest.approx(centred[order[:4]], rel=rel)
        assert effect.bottom_values == pytest.approx(centred[order[::-1][:4]], rel=rel)
        assert effect.mean == pytest.approx(before.mean(), rel=1e-9)  # in float64 whatever the products are
        assert effect.std == pytest.approx(centred.std(), rel=rel)
        assert effect.skew == pytest.approx(stats.skew(centred), rel=rel, abs=rel)
        assert effect.kurtosis == pytest.approx(stats.kurtosis(centred, fisher=False), rel=rel)
        counts, edges = np.histogram(centred, bins=11)
        assert effect.histogram.edges == pytest.approx(edges, rel=rel, abs=rel)
        if dtype == torch.float64:
            assert effect.histogram.counts == tuple(counts)
        assert sum(effect.histogram.counts) == 301


def test_a_real_final_norm_and_fifty_bins_are_the_default(tiny):
    rows = normal(5, 16)
    full = uncentred(rows, tiny.unembedding())
    for before, effect in zip(full, logit_effects(rows, tiny.unembedding(), dtype=torch.float64), strict=True):
        counts, edges = np.histogram(before - before.mean(), bins=50)
        assert effect.histogram.counts == tuple(counts)
        assert effect.histogram.edges == pytest.approx(edges)
        assert len(effect.top_ids) == len(effect.bottom_ids) == 10


def test_the_size_of_chunks_changes_no_more_than_rounding():
    unembedding, rows = CASES["layer_norm"](), normal(23, 16, seed=4)
    whole, *others = (list(logit_effects(rows, unembedding, chunk_rows=size)) for size in (None, 1, 5, 23, 100))
    for effects in others:
        for a, b in zip(whole, effects, strict=True):
            assert (a.top_ids, a.bottom_ids) == (b.top_ids, b.bottom_ids)
            assert a.mean == pytest.approx(b.mean, rel=1e-12)
            assert a.top_values == pytest.approx(b.top_values, rel=1e-5)
            assert a.bottom_values == pytest.approx(b.bottom_values, rel=1e-5)
            assert (a.std, a.skew, a.kurtosis) == pytest.approx((b.std, b.skew, b.kurtosis), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_are_done_in_any_number_of_threads(num_threads):
    rows, unembedding = normal(7, 16), CASES["no norm"]()
    before, one = torch.get_num_threads(), list(logit_effects(rows, unembedding, chunk_rows=1, dtype=torch.float64))
    torch.set_num_threads(num_threads)
    try:
        found = list(logit_effects(rows, unembedding, dtype=torch.float64))
    finally:
        torch.set_num_threads(before)
    assert [effect.top_ids for effect in found] == [effect.top_ids for effect in one]
    assert [effect.histogram.counts for effect in found] == [effect.histogram.counts for effect in one]


def test_equal_effects_are_in_the_order_of_token_ids():
    # whole numbers, so that products are exact: effects 0, 1 and 2 in turn
    weight = torch.tensor([[0.0], [1.0], [2.0]]).repeat(100, 1)
    (effect,) = logit_effects(torch.ones(1, 1), plain(weight), num_tokens=150)
    order = [*range(2, 300, 3), *range(1, 300, 3), *range(0, 300, 3)]
    assert effect.top_ids == order[:150]
    assert effect.top_values == [1.0] * 100 + [0.0] * 50
    assert effect.bottom_ids == [*range(0, 300, 3), *range(1, 150, 3)]
    assert effect.bottom_values == [-1.0] * 100 + [0.0] * 50


def test_more_tokens_than_the_vocabulary_has_are_all_of_them():
    weight = normal(6, 4)
    (effect,) = logit_effects(normal(1, 4, seed=1), plain(weight), num_tokens=50)
    assert sorted(effect.top_ids) == list(range(6))
    assert effect.bottom_ids == effect.top_ids[::-1]


def test_the_largest_effect_lies_in_the_last_bin_and_edges_decide():
    # effects -1, ..., 1 in steps of 0.2 lie on the edges of ten bins, which floating point does not hit evenly
    weight = (torch.arange(11, dtype=torch.float64)[:, None] - 5) / 5
    (effect,) = logit_effects(torch.ones(1, 1), plain(weight), num_bins=10, dtype=torch.float64)
    values = (weight - weight.mean())[:, 0].numpy()
    edges = np.array(effect.histogram.edges)
    assert effect.histogram.counts == tuple(np.histogram(values, bins=edges)[0])
    assert effect.histogram.counts[-1] >= 1


@pytest.mark.parametrize("rows", [torch.zeros(1, 16), torch.full((1, 16), 0.1)])
def test_a_row_without_effect_has_no_shape(rows):
    """Of zeros; or of one number, of which a LayerNorm leaves nothing."""
    (effect,) = logit_effects(rows, CASES["layer_norm"](), num_tokens=3)
    assert effect.top_values == effect.bottom_values == [0.0, 0.0, 0.0]
    assert effect.top_ids == effect.bottom_ids == [0, 1, 2]
    assert (effect.mean, effect.std, effect.skew, effect.kurtosis) == (0.0, 0.0, None, None)
    assert effect.histogram == Histogram()


def test_no_rows_have_no_effects():
    assert list(logit_effects(torch.empty(0, 16), CASES["no norm"]())) == []


def test_a_constant_added_to_the_unembedding_changes_the_mean_alone(tiny):
    unembedding = tiny.unembedding()
    shift = normal(16, seed=9)
    shifted = Unembedding(**{**vars(unembedding), "weight": unembedding.weight + shift})
    rows = normal(5, 16)
    torch.testing.assert_close(
        through_unembedding(rows, shifted), through_unembedding(rows, unembedding), atol=1e-4, rtol=1e-4
    )
    moved = ((rows.double() - rows.double().mean(1, keepdim=True)) * unembedding.norm_weight.double()) @ shift.double()
    for a, b, step in zip(logit_effects(rows, shifted), logit_effects(rows, unembedding), moved, strict=True):
        assert a.mean - b.mean == pytest.approx(float(step), rel=1e-4)
        assert a.std == pytest.approx(b.std, rel=1e-4)


def test_the_effect_is_the_change_in_logits_with_the_final_norm_frozen(tiny):
    """A step along a row in the last residual stream, scale of the final norm held, moves logits as attributed."""
    ids = torch.tensor([[0, 5, 9, 33]])
    x = tiny.read(ids, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"][0, -1].double()
    norm = tiny.module.transformer.ln_f
    scale = (x.var(unbiased=False) + norm.eps).sqrt()
    row = normal(16, seed=3).double()

    def logits(v):
        normed = (v - v.mean()) / scale * norm.weight.double() + norm.bias.double()
        return normed @ tiny.module.lm_head.weight.double().T

    change = logits(x + row) - logits(x)
    attributed = through_unembedding(row[None], tiny.unembedding(), dtype=torch.float64)[0] / scale
    torch.testing.assert_close(change - change.mean(), attributed, atol=1e-9, rtol=1e-9)
    (effect,) = logit_effects(row[None], tiny.unembedding(), num_tokens=1, dtype=torch.float64)
    assert effect.top_values[0] / float(scale) == pytest.approx(float((change - change.mean()).max()), rel=1e-9)


def test_memory_for_effects_is_bounded_however_large_the_vocabulary(monkeypatch):
    from saescope.analysis import loops

    sizes = []
    in_parts = loops.in_parts

    def watched(job, num_items, effects, *arrays, **options):
        sizes.append(effects.nbytes)
        in_parts(job, num_items, effects, *arrays, **options)

    monkeypatch.setattr(loops, "in_parts", watched)
    list(logit_effects(normal(400, 2), plain(normal(100_000, 2)), num_tokens=1, num_bins=1))
    assert sum(sizes) == 400 * 100_000 * 4
    assert max(sizes) <= 128 << 20
    assert len(sizes) == 2


def broken(rows):
    rows[3, 1] = torch.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "weight", "options", "words"),
    [
        (normal(3, 8), normal(20, 16), {}, "residual stream"),
        (broken(normal(5, 16)), normal(20, 16), {}, "row 3 holds NaN"),
        (normal(5, 16), broken(normal(20, 16)), {}, "the unembedding holds NaN"),
        (normal(5, 16), normal(20, 16), {"num_tokens": 0}, "num_tokens must be at least 1"),
        (normal(5, 16), normal(20, 16), {"num_bins": 0}, "num_bins must be at least 1"),
        (normal(5, 16), normal(20, 16), {"chunk_rows": 0}, "chunk_rows must be at least 1"),
        (normal(5, 16), normal(20, 16), {"dtype": torch.bfloat16}, "not in torch.bfloat16"),
    ],
)
def test_what_has_no_effects_is_refused_at_once(rows, weight, options, words):
    with pytest.raises(ValueError, match=words):
        logit_effects(rows, plain(weight), **options)
