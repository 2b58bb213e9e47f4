"""Triton's kernels against the reference: in Triton's interpreter, or on the GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import cases
import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="needs Triton: pip install -c constraints.txt -e '.[dev]'")

from saescope.kernels import AdamStep, FlatCodes, Gradients, gpu, reference  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# what the interpreter can do in float64 is checked there: it takes milliseconds for every program, so nothing is done twice
EXACT = torch.float32 if DEVICE == "cuda" else torch.float64
TOLERANCE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.float64: {"rtol": 1e-11, "atol": 1e-11}}
ENCODINGS = [(name, torch.float32, "whole") for name in cases.ENCODINGS]
ENCODINGS += [("random", EXACT, "whole"), ("ties", EXACT, "whole")]
IN_BLOCKS = ["random", "ties", "few_positive", "duplicates", "crowded", "uneven", "one_feature"]
ENCODINGS += [(name, torch.float32, "in_blocks") for name in IN_BLOCKS]
STEPS = [(name, EXACT, "whole") for name in cases.STEPS] + [("random", torch.float32, "whole")]
IN_PIECES = ["everything_fires", "heavy_features", "d_past_a_tile", "prefixes", "some_rows_kept"]
STEPS += [(name, EXACT, "in_pieces") for name in IN_PIECES]


@pytest.fixture(autouse=True)
def _interpreted() -> None:
    """Fails in words where Triton was imported too early to be interpreted."""
    compiled = triton.runtime.JITFunction
    if DEVICE == "cpu" and (isinstance(gpu._select, compiled) or isinstance(triton.language.sum, compiled)):
        pytest.fail("TRITON_INTERPRET=1 was set after something had imported Triton; it must come first")


@pytest.fixture
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes so small that every case is cut: tokens, features, groups, columns of entries and of numbers."""
    if request.param == "whole":
        return
    sizes = {
        "_BLOCK_TOKENS": 4,
        "_LANES": 32,
        "_SAMPLE": 2,
        "_SPARE": 0,
        "_LONGEST": 2,
        "_SPAN": 16,
        "_SLAB_NUMBERS": 1,
    }
    for name, size in sizes.items():
        monkeypatch.setattr(gpu, name, size)


def _each(parts: list[tuple[str, torch.dtype, str]]) -> pytest.MarkDecorator:
    """One test for each, named after the case, the dtype and how it is cut."""
    names = [f"{name}-{str(dtype)[6:]}-{cut}" for name, dtype, cut in dict.fromkeys(parts)]
    return pytest.mark.parametrize(("name", "dtype", "cut"), list(dict.fromkeys(parts)), ids=names, indirect=["cut"])


# Selections


@_each(ENCODINGS)
def test_topk(name, dtype, cut):
    case = cases.encoding(name, dtype, DEVICE)
    codes = gpu.topk(case.x, case.rows, case.bias, case.k)
    cases.assert_topk(codes, case)


@pytest.mark.parametrize("share", [0.5, 1.0, 3.0])
@_each(ENCODINGS)
def test_batch_topk(name, dtype, cut, share):
    case = cases.encoding(name, dtype, DEVICE)
    count = max(1, int(share * case.k * len(case.x)))
    codes = gpu.batch_topk(case.x, case.rows, case.bias, count)
    cases.assert_batch_topk(codes, case, count)


@_each(ENCODINGS)
def test_above(name, dtype, cut):
    case = cases.encoding(name, dtype, DEVICE)
    floor = torch.linspace(-1.9, 2.1, len(case.rows)).to(case.rows)
    expected = reference.above(case.x, case.rows, case.bias, floor, 10**6)
    assert expected is not None
    num_entries = len(expected.values)
    codes = gpu.above(case.x, case.rows, case.bias, floor, num_entries)
    assert codes is not None
    _assert_same(codes, expected, TOLERANCE[dtype])
    if num_entries:
        assert gpu.above(case.x, case.rows, case.bias, floor, num_entries - 1) is None


def test_one_floor_for_all_features():
    case = cases.encoding("random", device=DEVICE)
    floor = torch.tensor(0.7, device=DEVICE)
    expected = reference.above(case.x, case.rows, case.bias, floor, 10**6)
    codes = gpu.above(case.x, case.rows, case.bias, floor, 10**6)
    assert codes is not None
    assert expected is not None
    _assert_same(codes, expected, TOLERANCE[torch.float32])


def test_the_lowest_features_win_among_equals():
    case = cases.encoding("constant", device=DEVICE)
    codes = gpu.topk(case.x, case.rows, case.bias, 5)
    assert codes.features.view(3, 5).tolist() == [[0, 1, 2, 3, 4]] * 3
    codes = gpu.batch_topk(case.x, case.rows, case.bias, 4)
    assert codes.tokens.tolist() == [0] * 4
    assert codes.features.tolist() == [0, 1, 2, 3]


def test_rows_without_room_for_their_candidates_are_sorted(monkeypatch):
    """All candidates of "crowded" are in one of 32 groups; equal numbers in "constant" all reach the bound."""
    sorted_rows = []
    original = gpu._sorted_topk
    monkeypatch.setattr(gpu, "_sorted_topk", lambda pre, k: sorted_rows.append(len(pre)) or original(pre, k))
    monkeypatch.setattr(gpu, "_LANES", 32)
    x, rows = torch.ones(3, 4, device=DEVICE), torch.ones(300, 4, device=DEVICE)
    x[1] = 0
    codes = gpu.topk(x, rows, None, 2)
    assert sorted_rows == [2]
    assert codes.starts.tolist() == [0, 2, 2, 4]
    assert codes.features.tolist() == [0, 1, 0, 1]
    monkeypatch.setattr(gpu, "_WIDEST", 1)
    case = cases.encoding("few_positive", device=DEVICE)
    cases.assert_topk(gpu.topk(case.x, case.rows, case.bias, case.k), case)
    assert sorted_rows == [2, len(case.x)]


def test_not_a_number_is_never_chosen():
    case = cases.encoding("random", device=DEVICE)
    x = case.x.clone()
    x[2] = torch.nan
    whole = gpu.topk(case.x, case.rows, case.bias, case.k).starts.diff()
    codes = gpu.topk(x, case.rows, case.bias, case.k)
    assert codes.starts.diff().tolist() == [0 if b == 2 else n for b, n in enumerate(whole.tolist())]
    codes = gpu.batch_topk(x, case.rows, case.bias, 9)
    assert codes.starts.diff()[2] == 0
    assert codes.values.isfinite().all()
    assert len(codes.values) == 9


def test_no_tokens_and_no_wanted():
    rows = torch.ones(5, 3, device=DEVICE)
    x = torch.ones(0, 3, device=DEVICE)
    for codes in (gpu.topk(x, rows, None, 2), gpu.batch_topk(x, rows, None, 2)):
        assert codes.starts.tolist() == [0]
        assert codes.num_tokens == len(codes.values) == 0
    codes = gpu.batch_topk(torch.ones(2, 3, device=DEVICE), rows, None, 0)
    assert codes.starts.tolist() == [0, 0, 0]


def test_the_same_bits_again():
    case = cases.encoding("ties", device=DEVICE)
    first, second = (gpu.batch_topk(case.x, case.rows, case.bias, 17) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.features, second.features)


@pytest.mark.parametrize("name", ["random", "few_positive", "no_bias", "one_token", "k_is_N", "constant"])
def test_values_chosen_in_bfloat16_are_exact(name):
    """Only selections at the border may differ; values are those of float32, and what is not above 0 is left out."""
    case = cases.encoding(name, device=DEVICE)
    arguments = (case.x, case.rows, case.bias)
    k, count = min(case.k, len(case.rows)), case.k * len(case.x)
    exact, codes = reference.topk(*arguments, case.k), gpu.topk(*arguments, case.k, bfloat16=True)
    cases.assert_sound(codes, case)
    assert (codes.values > 0).all()
    assert (codes.starts.diff() <= k).all()
    # a candidate too many makes up for rounding: the sums of what is chosen agree to far below bfloat16's 2^-8
    torch.testing.assert_close(codes.to_dense().sum(-1), exact.to_dense().sum(-1), rtol=1e-3, atol=2e-2)
    exact, codes = reference.batch_topk(*arguments, count), gpu.batch_topk(*arguments, count, bfloat16=True)
    cases.assert_sound(codes, case)
    assert (codes.values > 0).all()
    assert len(codes.values) <= count
    torch.testing.assert_close(codes.values.sum(), exact.values.sum(), rtol=1e-3, atol=2e-2)
    floor = torch.full_like(case.rows[:, 0], 0.3)
    above, all_above = gpu.above(*arguments, floor, 10**4, bfloat16=True), reference.above(*arguments, floor, 10**4)
    assert above is not None
    assert all_above is not None
    cases.assert_sound(above, case)
    assert (above.values > 0.3).all()
    torch.testing.assert_close(above.to_dense().sum(-1), all_above.to_dense().sum(-1), rtol=1e-2, atol=0.35)


def test_bfloat16_decides_by_float32_among_a_few_more_than_wanted():
    """Two features that bfloat16 can not tell apart: the larger wins, though its number is higher."""
    x = torch.tensor([[1.0, 1.0]], device=DEVICE)
    rows = torch.zeros(40, 2, device=DEVICE)
    rows[5], rows[30] = torch.tensor([[1.0, 0.0], [1.0, 0.0005]])
    codes = gpu.topk(x, rows, None, 1, bfloat16=True)
    assert codes.features.tolist() == [30]
    torch.testing.assert_close(codes.values, torch.tensor([1.0005], device=DEVICE), rtol=0, atol=1e-6)
    rows[7] = torch.tensor([1.005, 0.0])  # 1.0078 in bfloat16, which is over the floor
    codes = gpu.above(x, rows, None, torch.full((40,), 1.006, device=DEVICE), 10, bfloat16=True)
    assert codes is not None
    assert codes.features.tolist() == []


def test_numbers_that_differ_in_their_last_bit_are_told_apart():
    bias = 1 + torch.arange(20, device=DEVICE).flip(0) * 2.0**-23
    codes = gpu.topk(torch.zeros(1, 2, device=DEVICE), torch.zeros(20, 2, device=DEVICE), bias, 5)
    assert codes.features.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(codes.values, bias[:5])


def test_what_is_positive_in_bfloat16_alone_is_left_out():
    x, rows = torch.ones(1, 3, device=DEVICE), torch.zeros(20, 3, device=DEVICE)
    rows[4] = torch.tensor([0.5, 0.5030, -1.0038])  # -0.0008; 0.5 + 0.5039 - 1 in bfloat16
    rows[9, 0] = 2
    assert float((x.bfloat16() @ rows[4].bfloat16()).float()) > 0
    floor = torch.zeros(20, device=DEVICE)
    for codes in (
        gpu.topk(x, rows, None, 2, bfloat16=True),
        gpu.batch_topk(x, rows, None, 2, bfloat16=True),
        gpu.above(x, rows, None, floor, 9, bfloat16=True),
    ):
        assert codes is not None
        assert codes.features.tolist() == [9]


# Decoding and gradients


@_each(STEPS)
def test_decode(name, dtype, cut):
    case = cases.step(name, dtype, DEVICE)
    arguments = (case.codes, case.decoder, case.offset, case.widths)
    torch.testing.assert_close(gpu.decode(*arguments), reference.decode(*arguments), **TOLERANCE[dtype])


@_each(STEPS)
def test_gradients(name, dtype, cut):
    _check_gradients(name, dtype, unit_norm=True)


@pytest.mark.parametrize("name", ["random", "direct_alone", "some_rows_kept"])
def test_gradients_of_a_decoder_with_free_norms(name):
    _check_gradients(name, EXACT, unit_norm=False)


def _check_gradients(name: str, dtype: torch.dtype, *, unit_norm: bool) -> None:
    case = cases.step(name, dtype, DEVICE)
    results = []
    for kernels in (reference, gpu):
        out = _filled(case)  # what is in the buffers must count where rows are kept, and nowhere else
        d_values = kernels.gradients(
            case.codes, case.direct, case.g, case.x, case.decoder, case.widths, out, unit_norm=unit_norm, kept=case.kept
        )
        results.append([d_values, out.encoder, out.decoder, out.bias, out.squares])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE[dtype])


def test_direct_gradients_are_left_as_they_are():
    case = cases.step("thresholds", device=DEVICE)
    assert case.direct is not None
    before = case.direct.clone()
    gpu.gradients(case.codes, case.direct, case.g, case.x, case.decoder, case.widths, _filled(case), unit_norm=True)
    assert torch.equal(case.direct, before)


@_each(STEPS)
def test_ordered(name, dtype, cut):
    case = cases.step(name, dtype, DEVICE)
    arguments = (case.codes, case.residual, case.decoder, case.before)
    expected, left = reference.ordered_errors(*arguments)
    errors, found_left = gpu.ordered_errors(*arguments)
    torch.testing.assert_close(errors, expected, **TOLERANCE[dtype])
    torch.testing.assert_close(found_left, left, **TOLERANCE[dtype])
    results = []
    for kernels in (reference, gpu):
        d_decoder = torch.full_like(case.decoder, 7.0)
        found = kernels.ordered_gradients(case.codes, left, case.decoder, case.before, 0.3, d_decoder)
        results.append([*found, d_decoder])
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, **TOLERANCE[dtype])


# Adam


@pytest.mark.parametrize("beta1", [0.9, 0.3, 0.0])
@pytest.mark.parametrize("d", [5, 531])
@pytest.mark.parametrize("dtype", dict.fromkeys([torch.float32, EXACT]))
def test_adam_is_that_of_torch(dtype, d, beta1):
    generator = torch.Generator().manual_seed(d)
    weights = torch.randn(3, d, generator=generator, dtype=dtype).to(DEVICE)
    expected = torch.nn.Parameter(weights.clone())
    theirs = torch.optim.Adam([expected], lr=1e-2, betas=(beta1, 0.999), eps=1e-6, foreach=False)
    m, v = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(1, 6):
        gradient = torch.randn(3, d, generator=generator, dtype=dtype).to(DEVICE)
        expected.grad = 0.4 * gradient
        theirs.step()
        how = AdamStep(lr=1e-2, beta1=beta1, beta2=0.999, eps=1e-6, step=step, gradient_factor=0.4)
        gpu.adam(weights, gradient, m, v, how)
    if beta1 == 0:
        assert torch.equal(m, expected.grad)  # nothing is left of the one before, not even by rounding
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else TOLERANCE[dtype]
    torch.testing.assert_close(weights, expected.data, **tolerance)
    torch.testing.assert_close(m, theirs.state[expected]["exp_avg"], **tolerance)
    torch.testing.assert_close(v, theirs.state[expected]["exp_avg_sq"], **tolerance)


@pytest.mark.parametrize("dtype", dict.fromkeys([torch.float32, EXACT]))
def test_adam_with_unit_norm(dtype):
    generator = torch.Generator().manual_seed(0)
    gradient, rows = (torch.randn(4, 37, generator=generator, dtype=dtype).to(DEVICE) for _ in range(2))
    rows[2], gradient[2] = 0, 0  # nothing to divide by
    how = AdamStep(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, step=3, unit_norm=True)
    results = []
    for kernels in (reference, gpu):
        weights, m, v = rows.clone(), torch.zeros_like(rows), torch.zeros_like(rows)
        kernels.adam(weights, gradient, m, v, how)
        results.append((weights, m, v))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE[dtype])
    assert results[1][0][2].tolist() == [0.0] * 37
    torch.testing.assert_close(results[1][0][[0, 1, 3]].norm(dim=-1), torch.ones(3, dtype=dtype, device=DEVICE))


def test_adam_takes_the_clip_factor_from_the_device():
    results = []
    for factor in (0.25, torch.tensor(0.25, dtype=torch.float64, device=DEVICE)):
        weights, m, v = (
            torch.ones(2, 3, device=DEVICE),
            torch.zeros(2, 3, device=DEVICE),
            torch.zeros(2, 3, device=DEVICE),
        )
        how = AdamStep(lr=1e-2, beta1=0.9, beta2=0.999, eps=1.0, step=1)
        gpu.adam(weights, torch.ones_like(weights), m, v, replace(how, gradient_factor=factor))
        results.append(weights)
    assert torch.equal(*results)
    assert results[0][0, 0] != 1


# As a whole


def test_without_a_tensor_of_all_pre_activations(monkeypatch):
    """The encoder's product is made block by block: 8 tokens never meet 640 features in one tensor."""
    largest = []
    original = gpu._products

    def watched(*arguments: object) -> Iterator[tuple[int, Tensor]]:
        for begin, pre in original(*arguments):
            largest.append(pre.untyped_storage().nbytes() // pre.element_size())
            yield begin, pre

    monkeypatch.setattr(gpu, "_products", watched)
    monkeypatch.setattr(gpu, "_BLOCK_NUMBERS", 1500)
    x, rows = torch.randn(8, 4, device=DEVICE), torch.randn(640, 4, device=DEVICE)
    gpu.topk(x, rows, None, 3)
    gpu.above(x, rows, None, rows.new_full((640,), 2.0), 10**4)
    assert largest
    assert max(largest) <= 1500


def test_every_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path):
    """The interpreter takes much that the compiler refuses; the compiler needs no GPU, only a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # what an earlier run has compiled proves nothing
    script = os.path.join(os.path.dirname(__file__), "compile_gpu.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(done.stdout.split()) == {
        name for name, value in vars(gpu).items() if name.startswith("_") and _is_entry(value)
    }  # fmt: skip


def _is_entry(value: object) -> bool:
    """Whether it is a kernel, and not one of the functions that kernels call."""
    helpers = (gpu._load_keys, gpu._kth, gpu._choose, gpu._passing)
    return value not in helpers and type(value) is type(gpu._select)


def _filled(case: cases.Step) -> Gradients:
    """Gradient buffers that hold numbers already."""
    generator = torch.Generator().manual_seed(3)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.x)

    d_sae = case.codes.d_sae
    squares = torch.full((2,), torch.nan, dtype=torch.float64, device=case.x.device)
    return Gradients(numbers(d_sae, case.x.shape[1]), numbers(*case.decoder.shape), numbers(d_sae), squares)


def _assert_same(codes: FlatCodes, expected: FlatCodes, tolerance: dict[str, float]) -> None:
    assert torch.equal(codes.starts, expected.starts)
    assert torch.equal(codes.features, expected.features)
    torch.testing.assert_close(codes.values, expected.values, **tolerance)
