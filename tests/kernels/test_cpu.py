"""Numba's kernels against the reference, dense autograd and sums written out; and what threads may not change."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cases
import pytest
import torch
from torch import Tensor

from saescope.kernels import AdamStep, FlatCodes, Gradients, cpu, reference

DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-10}}
EXACT = ["ties", "duplicates", "constant", "rising", "falling", "crowded"]  # sums of these are right to the last bit


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["whole", "tiled"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with sizes so small that every case is made of several tiles, slices and a sample."""
    if request.param == "tiled":
        for name, size in (("_TILE_TOKENS", 2), ("_TILE_FEATURES", 64), ("_SLICE", 4), ("_SAMPLE", 2)):
            monkeypatch.setattr(cpu, name, size)
        monkeypatch.setattr(cpu, "_own", threading.local())  # its workspaces have the sizes of before


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, **TOLERANCE[dtype])


def _same(a: FlatCodes, b: FlatCodes) -> bool:
    return all(getattr(a, name).equal(getattr(b, name)) for name in ("starts", "features", "values"))


def _first_of_equals(pre: Tensor, count: int) -> Tensor:
    """``[..., N]``, what wins where equal numbers win in the order of their places."""
    values, places = pre.sort(descending=True, stable=True)
    count = min(count, pre.shape[-1])
    winners = values[..., :count].where(values[..., :count] > 0, 0)
    return torch.zeros_like(pre).scatter(-1, places[..., :count], winners)


# Selection


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.ENCODINGS)
def test_topk(name, dtype, cut):
    case = cases.encoding(name, dtype)
    codes = cpu.topk(case.x, case.rows, case.bias, case.k)
    cases.assert_topk(codes, case, atol=TOLERANCE[dtype]["atol"])
    wanted = reference.topk(case.x, case.rows, case.bias, case.k)
    assert codes.starts.equal(wanted.starts)
    if name not in EXACT:
        assert codes.features.equal(wanted.features)
        _close(codes.values, wanted.values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.ENCODINGS)
@pytest.mark.parametrize("of", [0.5, 1, 3, 1e9])
def test_batch_topk(name, of, dtype, cut):
    """``of`` times k B are wanted, up to everything there is."""
    case = cases.encoding(name, dtype)
    num_tokens, num_features = len(case.x), len(case.rows)
    count = min(num_tokens * num_features, max(1, int(of * case.k * num_tokens)))
    codes = cpu.batch_topk(case.x, case.rows, case.bias, count)
    cases.assert_batch_topk(codes, case, count, atol=TOLERANCE[dtype]["atol"])
    if name not in EXACT:
        wanted = reference.batch_topk(case.x, case.rows, case.bias, count)
        assert codes.starts.equal(wanted.starts)
        assert codes.features.equal(wanted.features)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_of_equal_numbers_the_first_win_whatever_the_number_of_threads(name, num_threads, dtype, cut):
    case = cases.encoding(name, dtype)
    torch.set_num_threads(num_threads)
    assert cpu.topk(case.x, case.rows, case.bias, case.k).to_dense().equal(_first_of_equals(case.pre, case.k))
    for count in (1, case.k * len(case.x), case.k * len(case.x) + 1):
        expected = _first_of_equals(case.pre.flatten(), count).view_as(case.pre)
        for _ in range(3):
            found = cpu.batch_topk(case.x, case.rows, case.bias, count).to_dense()
            assert found.equal(expected)


def test_the_first_of_equals_win_though_tiles_come_in_another_order(monkeypatch):
    """A full list is cut to places of several tokens before later features of the first of them are seen."""
    for name, size in (("_TILE_TOKENS", 8), ("_TILE_FEATURES", 64), ("_own", threading.local())):
        monkeypatch.setattr(cpu, name, size)
    pre = torch.full((8, 150), 2.0)
    for count in (65, 200, 700):
        found = cpu.batch_topk(torch.ones(8, 1), pre[0][:, None], None, count).to_dense()
        assert found.equal(_first_of_equals(pre.flatten(), count).view_as(pre))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.ENCODINGS)
def test_above(name, dtype, cut):
    case = cases.encoding(name, dtype)
    floor = torch.linspace(-0.3, 0.7, len(case.rows), dtype=dtype)
    codes = cpu.above(case.x, case.rows, case.bias, floor, case.pre.numel())
    wanted = reference.above(case.x, case.rows, case.bias, floor, case.pre.numel())
    assert codes is not None
    assert wanted is not None
    cases.assert_sound(codes, case, atol=TOLERANCE[dtype]["atol"])
    assert codes.starts.equal(wanted.starts)
    assert codes.features.equal(wanted.features)
    _close(codes.values, wanted.values, dtype)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["random", "ties", "negative", "N_past_a_tile"])
def test_above_gives_nothing_where_one_is_over_the_limit(name, num_threads, cut):
    torch.set_num_threads(num_threads)
    case = cases.encoding(name)
    floor = torch.zeros(len(case.rows))
    num_above = int((case.pre > 0).sum())
    codes = cpu.above(case.x, case.rows, case.bias, floor, num_above)
    assert codes is not None
    assert len(codes.values) == num_above
    if num_above:
        assert cpu.above(case.x, case.rows, case.bias, floor, num_above - 1) is None
        assert cpu.above(case.x, case.rows, case.bias, floor, 0) is None


def test_above_takes_one_floor_for_all_and_does_not_pass_what_equals_it():
    case = replace(cases.encoding("rising"), k=1)
    x = torch.ones(2, 4)
    for num_features in (150, 128):  # of which 128 fills its chunks
        bias = torch.arange(num_features) / 8
        codes = cpu.above(x, case.rows[:num_features], bias, torch.tensor(5.0).expand(num_features), 10_000)
        assert codes is not None
        assert codes.to_dense().equal(torch.where(bias > 5, bias, 0).expand(2, -1))
        assert cpu.above(x, case.rows[:num_features], bias, torch.full((num_features,), torch.nan), 10) is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_tiles_of_full_size(dtype, num_threads):
    """A token and some features more than a tile holds."""
    torch.set_num_threads(num_threads)
    generator = torch.Generator().manual_seed(5)
    x, rows = (torch.randn(n, 9, generator=generator, dtype=torch.float64).to(dtype) for n in (514, 1030))
    bias = torch.randn(1030, generator=generator, dtype=torch.float64).to(dtype)
    floor = torch.full((1030,), 7.0, dtype=dtype)
    found = cpu.topk(x, rows, bias, 5), cpu.batch_topk(x, rows, bias, 2000), cpu.above(x, rows, bias, floor, 40_000)
    wanted = (
        reference.topk(x, rows, bias, 5), reference.batch_topk(x, rows, bias, 2000),
        reference.above(x, rows, bias, floor, 40_000),
    )  # fmt: skip
    for codes, expected in zip(found, wanted, strict=True):
        assert codes is not None
        assert expected is not None
        assert len(codes.values) >= 2000
        _close(codes.to_dense(), expected.to_dense(), dtype)


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("num_features", [1, 63, 64, 65, 1030])
def test_what_lies_beyond_the_last_feature_is_never_chosen(num_features, rubbish, monkeypatch):
    own = threading.local()
    own.workspace = torch.full((cpu._TILE_TOKENS * cpu._TILE_FEATURES,), rubbish)
    monkeypatch.setattr(cpu, "_own", own)
    generator = torch.Generator().manual_seed(num_features)
    x, rows = torch.randn(7, 4, generator=generator), torch.randn(num_features, 4, generator=generator)
    case = cases.Encoding(x, rows, None, num_features)
    everything = case.pre.numel()
    expected = case.pre.relu()
    floor = torch.zeros(num_features)
    found = cpu.topk(x, rows, None, num_features), cpu.batch_topk(x, rows, None, everything)
    for codes in (*found, cpu.above(x, rows, None, floor, everything)):
        own.workspace.fill_(rubbish)
        assert codes is not None
        torch.testing.assert_close(codes.to_dense(), expected)


@pytest.mark.parametrize("strength", [100.0, 0.001])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_sample_that_is_not_typical_costs_a_second_walk_and_nothing_else(strength, num_threads, monkeypatch):
    torch.set_num_threads(num_threads)
    walks, largest = [], cpu._largest
    monkeypatch.setattr(cpu, "_largest", lambda *a: walks.append(a[3]) or largest(*a))
    generator = torch.Generator().manual_seed(2)
    x, rows = torch.randn(256, 6, generator=generator), torch.randn(90, 6, generator=generator)
    x[::4] *= strength  # the tokens that are sampled
    case = cases.Encoding(x, rows, None, 0)
    count = 256 * 5
    cases.assert_batch_topk(cpu.batch_topk(x, rows, None, count), case, count, atol=1e-3)
    bounds = [0.0, pytest.approx(walks[1]), 0.0] if strength > 1 else [0.0, pytest.approx(walks[1])]
    assert walks == bounds
    assert walks[1] > 0 or strength < 1


def test_lists_are_cut_again_and_again(monkeypatch):
    """Every number is larger than all before it: nothing that is kept stays."""
    cuts, keep = [], cpu._keep_largest
    monkeypatch.setattr(cpu, "_keep_largest", lambda *a: cuts.append(a[2]) or keep(*a))
    num_tokens, num_features, count = 60, 1024, 50
    x = torch.arange(1.0, num_tokens + 1)[:, None] * num_features
    bias = torch.arange(float(num_features))
    case = cases.Encoding(x, torch.ones(num_features, 1), bias, 3)
    codes = cpu.batch_topk(x, case.rows, bias, count)
    assert codes.to_dense().equal(_first_of_equals(case.pre.flatten(), count).view_as(case.pre))
    assert cpu.topk(x, case.rows, bias, 3).to_dense().equal(_first_of_equals(case.pre, 3))
    for order in (torch.arange(num_features).flip(0), torch.randperm(num_features)):
        found = cpu.topk(x, case.rows, bias[order], 3)
        assert found.to_dense().equal(_first_of_equals(case.pre[:, order], 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_activations_of_another_dtype_are_brought_to_that_of_the_weights(dtype):
    case = cases.encoding("ties")
    x = case.x.to(dtype).T.contiguous().T
    for found, wanted in (
        (cpu.topk(x, case.rows, case.bias, 5), cpu.topk(case.x, case.rows, case.bias, 5)),
        (cpu.batch_topk(x, case.rows, case.bias, 9), cpu.batch_topk(case.x, case.rows, case.bias, 9)),
    ):
        assert _same(found, wanted)
        assert found.values.dtype == torch.float32


def test_weights_and_biases_need_not_be_contiguous_and_are_left_alone():
    case = cases.encoding("random")
    rows, bias = case.rows.T.contiguous().T, torch.stack([case.bias, case.bias], 1)[:, 0]
    assert not rows.is_contiguous()
    assert not bias.is_contiguous()
    before = case.x.clone(), rows.clone(), bias.clone()
    assert _same(cpu.topk(case.x, rows, bias, 4), cpu.topk(case.x, case.rows, case.bias, 4))
    assert all(now.equal(then) for now, then in zip((case.x, rows, bias), before, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_stays_with_its_token(bad):
    case = cases.encoding("ties")
    x = case.x.clone()
    x[2, 1] = bad
    clean = cpu.topk(case.x, case.rows, case.bias, 5).to_dense()
    floor = torch.zeros(40)
    for codes in (cpu.topk(x, case.rows, case.bias, 5), cpu.above(x, case.rows, case.bias, floor, 1000)):
        assert codes is not None
        f = codes.to_dense()
        rest = [0, 1, 3, 4, 5]
        assert f[rest].isfinite().all()
        if codes.values.numel() == len(cpu.topk(x, case.rows, case.bias, 5).values):
            assert f[rest].equal(clean[rest])
        assert not f[2].isnan().any()  # no bound lets it through; a loss sees it in the reconstruction's target


@pytest.mark.parametrize("function", ["topk", "batch_topk"])
def test_tensors_of_another_device_or_width_are_refused(function):
    case = cases.encoding("random")
    with pytest.raises((RuntimeError, TypeError)):
        getattr(cpu, function)(case.x.to("meta"), case.rows, case.bias, 4)
    with pytest.raises(RuntimeError, match="shape"):
        getattr(cpu, function)(case.x[:, 1:], case.rows, case.bias, 4)


# Decoding and gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.STEPS)
def test_decode(name, dtype):
    case = cases.step(name, dtype)
    found = cpu.decode(case.codes, case.decoder, case.offset, case.widths)
    _close(found, reference.decode(case.codes, case.decoder, case.offset, case.widths), dtype)
    f = case.codes.to_dense()
    for x_hat, width in zip(found, case.widths, strict=True):
        _close(x_hat, case.offset + f[:, :width] @ case.decoder[:width], dtype)


def _buffers(case: cases.Step, fill: float = 7.0) -> Gradients:
    """Buffers with rubbish in them; zeros for what was not given, so that something is to be kept."""
    out = Gradients.like(case.x.new_zeros(case.codes.d_sae, case.x.shape[1]), case.decoder)
    for buffer in (out.encoder, out.decoder, out.bias, out.squares):
        buffer.copy_(fill + torch.arange(buffer.numel()).view_as(buffer) % 5)
    return out


def _gradients(module: Any, case: cases.Step, *, unit_norm: bool) -> tuple[Tensor, ...]:
    out = _buffers(case)
    d_values = module.gradients(
        case.codes, case.direct, case.g, case.x, case.decoder, case.widths, out, unit_norm=unit_norm, kept=case.kept
    )
    return d_values, out.encoder, out.decoder, out.bias, out.squares


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("name", cases.STEPS)
def test_gradients(name, unit_norm, dtype):
    case = cases.step(name, dtype)
    found, wanted = (_gradients(module, case, unit_norm=unit_norm) for module in (cpu, reference))
    for tensor, expected in zip(found[:-1], wanted[:-1], strict=True):
        _close(tensor, expected, dtype)
    torch.testing.assert_close(found[-1], wanted[-1], rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-10)
    assert found[-1].tolist() == pytest.approx(
        [float(found[2].double().square().sum()), float(found[1].double().square().sum())], rel=1e-12
    )


@pytest.mark.parametrize("name", [name for name in cases.STEPS if name != "direct_alone"])
def test_gradients_are_those_of_autograd(name):
    """Of a loss that is linear in reconstructions, with gradients g, and in activations, with gradients ``direct``."""
    case = replace(cases.step(name, torch.float64), kept=None)
    codes = case.codes
    assert case.g is not None
    direct = torch.zeros_like(codes.values) if case.direct is None else case.direct
    encoder = torch.zeros(codes.d_sae, case.x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(codes.d_sae, dtype=torch.float64, requires_grad=True)
    decoder = case.decoder.clone().requires_grad_()
    values = codes.values.clone().requires_grad_()
    place = codes.tokens, codes.features.long()
    pre = (case.x @ encoder.T + bias)[place]  # 0, with the gradient of pre-activations
    f = torch.zeros(len(case.x), codes.d_sae, dtype=torch.float64)
    f = f.index_put(place, values + pre.where(codes.values > 0, 0))
    loss = (direct * f[place]).sum()
    for g, width in zip(case.g, case.widths, strict=True):
        loss = loss + (g * (f[:, :width] @ decoder[:width])).sum()
    expected = torch.autograd.grad(loss, [values, encoder, decoder, bias], materialize_grads=True)
    found = _gradients(cpu, case, unit_norm=False)
    for tensor, gradient in zip(found, expected, strict=False):
        _close(tensor, gradient, torch.float64)
    projected = _gradients(cpu, case, unit_norm=True)[2]
    assert (projected * case.decoder).sum(-1).abs().max() < 1e-12
    difference = expected[2] - projected  # only ever along the rows
    along = torch.nn.functional.normalize(case.decoder, dim=-1)
    _close((difference * along).sum(-1, keepdim=True) * along, difference, torch.float64)


def test_rows_that_are_not_kept_hold_nothing_of_what_was_there():
    """Buffers are used again from step to step, NaN of a step that was not taken included."""
    case = replace(cases.step("random"), kept=torch.arange(20) == 3)
    clean, soiled = (_buffers(case, fill) for fill in (0.0, torch.nan))
    for out in (clean, soiled):
        out.encoder[3], out.decoder[3], out.bias[3] = 1.0, 2.0, 3.0
        cpu.gradients(
            case.codes, None, case.g, case.x, case.decoder, case.widths, out, unit_norm=False, kept=case.kept
        )  # fmt: skip
    for name in ("encoder", "decoder", "bias", "squares"):
        assert getattr(clean, name).equal(getattr(soiled, name))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.STEPS)
def test_ordered(name, dtype, cut):
    case = cases.step(name, dtype)
    errors, left = cpu.ordered_errors(case.codes, case.residual, case.decoder, case.before)
    wanted_errors, wanted_left = reference.ordered_errors(case.codes, case.residual, case.decoder, case.before)
    _close(errors, wanted_errors, dtype)
    _close(left, wanted_left, dtype)
    found, wanted = (torch.full_like(case.decoder, torch.nan) for _ in range(2))
    arguments = case.codes, wanted_left, case.decoder, case.before, 0.3
    pairs = zip(cpu.ordered_gradients(*arguments, found), reference.ordered_gradients(*arguments, wanted), strict=True)
    for tensor, expected in (*pairs, (found, wanted)):
        torch.testing.assert_close(
            tensor,
            expected,
            rtol=1e-4 if dtype == torch.float32 else 1e-10,
            atol=1e-4 if dtype == torch.float32 else 1e-10,
        )


@pytest.mark.parametrize("name", cases.STEPS)
def test_ordered_is_the_sum_over_all_prefixes(name):
    """sum_l p(l) |r - f[:, :l] @ W[:l]|^2 with its gradients by autograd, l = 1 ... d_sae."""
    case = cases.step(name, torch.float64)
    codes, num_features = case.codes, case.codes.d_sae
    generator = torch.Generator().manual_seed(1)
    probabilities = torch.rand(num_features, generator=generator, dtype=torch.float64)
    probabilities /= probabilities.sum()
    before = probabilities.cumsum(0) - probabilities
    values, decoder, residual = (t.clone().requires_grad_() for t in (codes.values, case.decoder, case.residual))
    f = torch.zeros(len(residual), num_features, dtype=torch.float64)
    f = f.index_put((codes.tokens, codes.features.long()), values)
    errors = sum(
        p * (residual - f[:, :width] @ decoder[:width]).square().sum(-1)
        for width, p in enumerate(probabilities, start=1)
    )
    assert isinstance(errors, Tensor)
    found, left = cpu.ordered_errors(codes, case.residual, case.decoder, before)
    _close(found, errors.detach(), torch.float64)
    _close(left, (residual - f @ decoder).detach(), torch.float64)
    expected = torch.autograd.grad(0.7 * errors.sum(), [values, residual, decoder], materialize_grads=True)
    d_decoder = torch.full_like(case.decoder, torch.nan)
    d_values, d_residual = cpu.ordered_gradients(codes, left, case.decoder, before, 0.7, d_decoder)
    for tensor, gradient in zip((d_values, d_residual, d_decoder), expected, strict=True):
        _close(tensor, gradient, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (9, 1), (7, 19)])
def test_adam(shape, unit_norm, dtype):
    generator = torch.Generator().manual_seed(3)
    state = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]
    state[3] = state[3].square()
    own = [tensor.clone() for tensor in state]
    for step in (1, 2, 3, 1000):
        how = AdamStep(
            lr=0.03, beta1=0.9, beta2=0.999, eps=1e-8, step=step, gradient_factor=0.4, unit_norm=unit_norm
        )  # fmt: skip
        cpu.adam(*own, how)
        reference.adam(*state, how)
        for tensor, expected in zip(own, state, strict=True):
            _close(tensor, expected, dtype)


# Threads


def _everything(case: cases.Encoding, step: cases.Step) -> list[Tensor]:
    """All that the kernels compute on two cases."""
    selections = [
        cpu.topk(case.x, case.rows, case.bias, case.k),
        cpu.batch_topk(case.x, case.rows, case.bias, case.k * len(case.x)),
        cpu.above(case.x, case.rows, case.bias, torch.zeros(len(case.rows), dtype=case.rows.dtype), case.pre.numel()),
    ]
    found = [tensor for codes in selections if codes for tensor in (codes.starts, codes.features, codes.values)]
    found.append(cpu.decode(step.codes, step.decoder, step.offset, step.widths))
    found += _gradients(cpu, step, unit_norm=True)
    errors, left = cpu.ordered_errors(step.codes, step.residual, step.decoder, step.before)
    d_decoder = torch.empty_like(step.decoder)
    found += [errors, left, *cpu.ordered_gradients(step.codes, left, step.decoder, step.before, 0.5, d_decoder)]
    weights, m, v = step.decoder.clone(), step.decoder * 0.1, step.decoder.square()
    how = AdamStep(lr=0.1, beta1=0.9, beta2=0.99, eps=1e-8, step=3, unit_norm=True)
    cpu.adam(weights, d_decoder, m, v, how)
    return [*found, d_decoder, weights, m, v]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(dtype, cut):
    """Also where threads are more than tokens or slices; of sums in selections those that round to nothing."""
    step = cases.step("prefixes", dtype)
    for name in EXACT:
        case = cases.encoding(name, dtype)
        expected = _everything(case, step)
        for num_threads in (2, 3, 16, 1):
            torch.set_num_threads(num_threads)
            for _ in range(3):
                for tensor, first in zip(_everything(case, step), expected, strict=True):
                    assert tensor.equal(first)
            assert torch.get_num_threads() == num_threads


def test_repeated_calls_give_the_same_bits_where_tokens_come_twice():
    """As the first token of every context does: which of equals win may not depend on which thread is done first."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=generator).repeat(20, 1)
    rows = torch.randn(300, 16, generator=generator)
    torch.set_num_threads(3)
    first = cpu.batch_topk(x, rows, None, 2015)
    assert all(_same(first, cpu.batch_topk(x, rows, None, 2015)) for _ in range(20))


def test_the_order_of_tokens_changes_nothing(cut):
    case = cases.encoding("ties", torch.float64)
    order = torch.randperm(len(case.x), generator=torch.Generator().manual_seed(1))
    f = cpu.topk(case.x, case.rows, case.bias, case.k).to_dense()
    assert cpu.topk(case.x[order], case.rows, case.bias, case.k).to_dense().equal(f[order])
    step = cases.step("prefixes", torch.float64)
    order = torch.randperm(len(step.x), generator=torch.Generator().manual_seed(2))
    f = step.codes.to_dense()[order]
    assert step.g is not None
    shuffled = replace(step, codes=FlatCodes.from_mask(f, f > 0), x=step.x[order], g=step.g[:, order])
    for tensor, expected in zip(
        _gradients(cpu, shuffled, unit_norm=True)[1:], _gradients(cpu, step, unit_norm=True)[1:], strict=True
    ):
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)


def test_two_threads_may_call_at_once():
    torch.set_num_threads(2)
    names = ["ties", "duplicates", "crowded", "rising"]
    step = cases.step("prefixes")
    expected = {name: _everything(cases.encoding(name), step) for name in names}

    def work(name: str) -> bool:
        torch.set_num_threads(2)
        case = cases.encoding(name)
        return all(
            tensor.equal(first)
            for _ in range(15)
            for tensor, first in zip(_everything(case, step), expected[name], strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, names))


def _in_a_thread(job: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(job).result()


@pytest.mark.parametrize("num_threads", [2, 3, 5])
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 40])
def test_torchs_number_of_threads_is_what_it_was(num_threads, num_tokens, monkeypatch):
    """Here, and in threads that are made later: fewer parts than threads must not make it fewer threads."""
    cpu._pool.cache_clear()
    torch.set_num_threads(num_threads)
    case = cases.encoding("random")
    cpu.topk(case.x[:1].expand(num_tokens, -1), case.rows, case.bias, 4)
    assert torch.get_num_threads() == num_threads
    assert _in_a_thread(torch.get_num_threads) == num_threads


def test_a_thread_of_the_pool_computes_on_one_core_before_and_after_its_work():
    torch.set_num_threads(3)
    case = cases.encoding("N_past_a_tile")
    seen: set[tuple[str, int]] = set()
    gate = threading.Barrier(3)

    def look() -> None:
        gate.wait(20)  # so that each of them is asked
        seen.add((threading.current_thread().name, torch.get_num_threads()))

    for _ in range(2):
        for job in [cpu._pool(3).submit(look) for _ in range(3)]:
            job.result()
        assert len(seen) == 3
        assert {number for _, number in seen} == {1}
        cpu.topk(case.x, case.rows, case.bias, 4)  # which makes workspaces so large that torch would share the work


def test_one_thread_is_the_callers(monkeypatch):
    """A thread that was told to use one core makes no others work."""
    monkeypatch.setattr(cpu, "_pool", lambda number: pytest.fail("nobody asked for threads"))
    torch.set_num_threads(3)
    case, step = cases.encoding("random"), cases.step("random")

    def alone() -> bool:
        torch.set_num_threads(1)
        return bool(_everything(case, step))

    assert _in_a_thread(alone)
    torch.set_num_threads(1)
    assert _everything(case, step)


def test_an_error_in_a_part_comes_out():
    torch.set_num_threads(2)

    def job(first: int, last: int) -> None:
        raise ZeroDivisionError(f"{first}")

    with pytest.raises(ZeroDivisionError):
        cpu._in_parts(job, 2)


@pytest.mark.parametrize("num_items", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_parts_cover_everything_once(num_items, num_threads):
    torch.set_num_threads(num_threads)
    for work in (None, [0] * num_items, [0, *[5] * (num_items - 1)], [1000, *[1] * (num_items - 1)]):
        sums = None if work is None else torch.tensor([0, *work[:num_items]]).cumsum(0).numpy()
        parts: list[tuple[int, int]] = []
        number = cpu._in_parts(lambda first, last: parts.append((first, last)), num_items, sums)  # noqa: B023
        assert number == len(parts)
        assert sorted(i for first, last in parts for i in range(first, last)) == list(range(num_items))


# Memory


def test_no_step_holds_a_number_for_every_token_and_feature():
    """Peak memory of whole steps of training on a shape where such a tensor has 420 MB."""
    script = textwrap.dedent(
        """
        import resource, torch
        from saescope.dictionaries import architecture
        from saescope.training import TrainingConfig, loss_for
        from saescope.training.losses import Batch
        from saescope.training.losses.sparse_pass import reconstruct
        from saescope.training.stepper import Stepper

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        def run(num_tokens, d_sae):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(num_tokens, 4, generator=generator)
            for name in ("topk", "batch_topk", "ordered", "matryoshka", "relu", "jumprelu"):
                cls = architecture(name)
                k = {} if name in ("relu", "jumprelu") else {"k": 4}
                widths = {"widths": (d_sae // 2, d_sae)} if name == "matryoshka" else {}
                dictionary = cls(cls.Config(d_in=4, d_sae=d_sae, **k, **widths), seed=1)
                with torch.no_grad():
                    if name == "relu":
                        dictionary.b_enc -= 2.5
                    if name == "jumprelu":
                        dictionary.threshold.fill_(2.5)
                config = TrainingConfig(num_tokens=100 * num_tokens, batch_size_tokens=num_tokens,
                                        sparse_kernels="always")
                stepper = Stepper(dictionary, config, loss_for(dictionary))
                stepper._dense = None  # calling it is an error
                dead = torch.arange(d_sae) < 20
                step = stepper.take(Batch(x, x, dead, num_steps=100))
                assert step.was_taken and (num_tokens == 64 or len(step.terms.f.values) > num_tokens), name
                reconstruct(stepper.kernels, dictionary, x) if name != "batch_topk" else None

        run(64, 128)
        before = peak()
        run(2048, 51200)
        print(peak() - before, flush=True)
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100  # MB
