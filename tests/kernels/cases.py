"""Cases on which every implementation of the kernels must agree with the reference, as data.

Numbers are drawn on the CPU in float64 from a seed that the name decides, then brought to the dtype and device asked for.
Many are whole numbers or eighths: their sums are exact in any order, so that ties are ties in every implementation.

B  tokens, d  width of the input, d_out  width of what is rebuilt, N  features, n  entries, L  prefixes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from saescope.kernels.codes import FlatCodes


@dataclass(frozen=True)
class Encoding:
    """What the selections are asked about."""

    x: Tensor  # [B, d]
    rows: Tensor  # [N, d]
    bias: Tensor | None  # [N]
    k: int

    @property
    def pre(self) -> Tensor:
        """Pre-activations, ``[B, N]``."""
        return torch.nn.functional.linear(self.x, self.rows, self.bias)


@dataclass(frozen=True)
class Step:
    """What decoding and gradients are asked about."""

    codes: FlatCodes
    x: Tensor  # [B, d]
    decoder: Tensor  # [N, d_out]
    offset: Tensor  # [d_out]
    widths: list[int]  # [L]
    g: Tensor | None  # [L, B, d_out]
    direct: Tensor | None  # [n]
    kept: Tensor | None  # bool, [N]
    residual: Tensor  # [B, d_out]: for the ordered functions
    before: Tensor  # float64, [N], rising from 0


def encoding(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Encoding:
    """The case of that name; see :data:`ENCODINGS`."""
    case = ENCODINGS[name](_generator(name))
    moved = {key: _to(value, dtype, device) for key, value in _values(case).items()}
    if name == "x_not_contiguous":
        moved["x"] = moved["x"].T.contiguous().T
        assert not moved["x"].is_contiguous()
    return Encoding(**moved)


def step(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Step:
    """The case of that name; see :data:`STEPS`."""
    case = STEPS[name](_generator(name))
    moved = {key: _to(value, dtype, device) for key, value in _values(case).items()}
    moved["before"] = case.before.to(device)
    if name == "not_contiguous":
        moved["x"], moved["g"] = moved["x"].T.contiguous().T, moved["g"].transpose(1, 2).contiguous().transpose(1, 2)
    return Step(**moved)


# Encoders


def _random(generator: torch.Generator, B: int, d: int, N: int, k: int, *, bias: bool = True) -> Encoding:
    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Encoding(numbers(B, d), numbers(N, d), numbers(N) if bias else None, k)


def _whole(generator: torch.Generator, B: int, d: int, N: int, k: int) -> Encoding:
    """Few different numbers, so that most pre-activations are shared by several features."""

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator).double()

    return Encoding(numbers(B, d), numbers(N, d), numbers(N), k)


def _negative(generator: torch.Generator) -> Encoding:
    case = _random(generator, 4, 6, 20, 3)
    return replace(case, x=case.x.abs(), rows=-case.rows.abs(), bias=-1 - case.rows[:, 0].abs())


def _zero_tokens(generator: torch.Generator) -> Encoding:
    """Tokens of zeros, without a bias: no pre-activation is above 0, or different from another."""
    case = _random(generator, 5, 6, 20, 3, bias=False)
    x = case.x.clone()
    x[[0, 3]] = 0
    return replace(case, x=x)


def _zero_features(generator: torch.Generator) -> Encoding:
    """Features of zeros, whose pre-activation is exactly 0 everywhere, among few that are positive."""
    case = _random(generator, 4, 6, 20, 5, bias=False)
    rows = case.rows.clone()
    rows[3:] = 0
    return replace(case, rows=rows)


def _duplicates(generator: torch.Generator) -> Encoding:
    """Every feature four times and every token twice."""
    case = _whole(generator, 3, 7, 9, 6)
    assert case.bias is not None
    return replace(case, x=case.x.repeat(2, 1), rows=case.rows.repeat(4, 1), bias=case.bias.repeat(4))


def _few_positive(generator: torch.Generator) -> Encoding:
    case = _random(generator, 5, 6, 24, 8)
    assert case.bias is not None
    return replace(case, bias=case.bias - 4)


def _constant(generator: torch.Generator) -> Encoding:
    """All pre-activations are the same positive number: a bound lets everything pass, or nothing."""
    case = _whole(generator, 3, 4, 150, 2)
    return replace(case, x=torch.ones_like(case.x), rows=torch.ones_like(case.rows), bias=None)


def _rising(generator: torch.Generator, *, falling: bool = False) -> Encoding:
    """Pre-activations in rising order of feature: a running bound is always one step behind."""
    case = _whole(generator, 3, 4, 150, 7)
    numbers = torch.arange(1, 151).double() / 8
    return replace(case, x=torch.ones_like(case.x), rows=case.rows * 0, bias=numbers.flip(0) if falling else numbers)


def _crowded(generator: torch.Generator) -> Encoding:
    """All winners among features whose numbers leave the same remainder, as if laid out against strided groups."""
    case = _random(generator, 3, 4, 640, 6, bias=False)
    numbers = torch.zeros(640, dtype=torch.float64)
    numbers[::32] = 1 + torch.arange(20).double()
    return replace(case, x=torch.ones_like(case.x), rows=torch.zeros_like(case.rows), bias=numbers)


def _uneven(generator: torch.Generator) -> Encoding:
    """Nearly all large numbers in one late token: a sample of the batch says little about the rest."""
    case = _random(generator, 9, 5, 40, 2)
    x = case.x * 0.01
    x[7] = 100 * case.x[7]
    return replace(case, x=x, bias=None)


ENCODINGS: dict[str, Callable[[torch.Generator], Encoding]] = {
    "random": lambda g: _random(g, 6, 8, 40, 4),
    "no_bias": lambda g: _random(g, 6, 8, 40, 4, bias=False),
    "ties": lambda g: _whole(g, 6, 4, 40, 5),
    "negative": _negative,
    "zero_tokens": _zero_tokens,
    "zero_features": _zero_features,
    "duplicates": _duplicates,
    "few_positive": _few_positive,
    "constant": _constant,
    "rising": _rising,
    "falling": lambda g: _rising(g, falling=True),
    "crowded": _crowded,
    "uneven": _uneven,
    "k_1": lambda g: _random(g, 4, 8, 33, 1),
    "k_is_N": lambda g: _random(g, 4, 5, 19, 19),
    "k_over_N": lambda g: _random(g, 4, 5, 19, 25),
    "one_token": lambda g: _random(g, 1, 8, 40, 4),
    "one_feature": lambda g: _random(g, 3, 4, 1, 1),
    "N_past_a_tile": lambda g: _random(g, 3, 17, 1031, 9),
    "x_not_contiguous": lambda g: _random(g, 6, 5, 40, 4),
}


# Codes, decoders and gradients


def _step(
    generator: torch.Generator,
    *,
    B: int = 6,
    d: int = 8,
    d_out: int | None = None,
    N: int = 20,
    share: float = 0.2,
    widths: list[int] | None = None,
) -> Step:
    """Codes in which each feature fires on a token with probability ``share``."""
    d_out, widths = d_out or d, widths or [N]

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(B, N, generator=generator) < share
    codes = FlatCodes.from_mask(numbers(B, N).abs() + 0.1, mask)
    before = torch.linspace(0, 1, N + 1, dtype=torch.float64)[:-1] ** 2
    return Step(
        codes, numbers(B, d), numbers(N, d_out), numbers(d_out), widths, numbers(len(widths), B, d_out), None, None,
        numbers(B, d_out), before,
    )  # fmt: skip


def _some_kept(generator: torch.Generator) -> Step:
    case = _step(generator)
    return replace(case, kept=torch.arange(20) % 3 == 0)


def _thresholds(generator: torch.Generator) -> Step:
    """Some entries have the value 0 and a gradient of their own, which must not reach the encoder."""
    case = _step(generator, share=0.4)
    values = case.codes.values.clone()
    values[::3] = 0
    direct = torch.randn(len(values), generator=generator, dtype=torch.float64)
    return replace(case, codes=case.codes.with_values(values), direct=direct)


def _direct_alone(generator: torch.Generator) -> Step:
    """No gradient of reconstructions: the decoder's is in its buffer already."""
    case = _step(generator)
    return replace(case, g=None, direct=torch.randn(len(case.codes.values), generator=generator, dtype=torch.float64))


def _silent_tokens(generator: torch.Generator) -> Step:
    case = _step(generator, widths=[4, 20])
    f = case.codes.to_dense()
    f[[0, 2, 5]] = 0
    return replace(case, codes=FlatCodes.from_mask(f, f > 0))


def _heavy(generator: torch.Generator) -> Step:
    """Two features that fire on every token, beside rare ones."""
    case = _step(generator, B=11, share=0.05)
    f = case.codes.to_dense()
    f[:, [0, 13]] = 0.25 + torch.rand(11, 2, generator=generator, dtype=torch.float64)
    return replace(case, codes=FlatCodes.from_mask(f, f > 0))


def _zero_row(generator: torch.Generator) -> Step:
    """A decoder row of zeros has no direction to be projected on."""
    case = _step(generator)
    decoder = case.decoder.clone()
    decoder[int(case.codes.features[0])] = 0
    return replace(case, decoder=decoder)


STEPS: dict[str, Callable[[torch.Generator], Step]] = {
    "random": _step,
    "silent_tokens": _silent_tokens,
    "silence": lambda g: _step(g, share=-1.0),
    "everything_fires": lambda g: _step(g, B=4, N=9, share=2.0),
    "heavy_features": _heavy,
    "one_token": lambda g: _step(g, B=1),
    "d_5": lambda g: _step(g, d=5, N=13),
    "d_17": lambda g: _step(g, d=17, N=13),
    "d_past_a_tile": lambda g: _step(g, B=3, d=531, N=7, share=0.4),
    "transcoder": lambda g: _step(g, d=5, d_out=17),
    "prefixes": lambda g: _step(g, widths=[1, 5, 12, 20]),
    "some_rows_kept": _some_kept,
    "thresholds": _thresholds,
    "direct_alone": _direct_alone,
    "zero_decoder_row": _zero_row,
    "not_contiguous": lambda g: _step(g, d=5, widths=[7, 20]),
}


# What selections must have in common: which of several equal numbers wins is open


def assert_topk(codes: FlatCodes, case: Encoding, *, atol: float = 1e-5) -> None:
    """Fail unless the codes are the k largest positive pre-activations of each token, some choice among equals."""
    assert_sound(codes, case, atol=atol)
    k = min(case.k, len(case.rows))
    expected = case.pre.clamp_min(0).topk(k).values  # [B, k]
    found = codes.to_dense().topk(k).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
    assert torch.equal(codes.starts.diff(), (case.pre > 0).sum(-1).clamp_max(k))


def assert_batch_topk(codes: FlatCodes, case: Encoding, count: int, *, atol: float = 1e-5) -> None:
    """Fail unless the codes are the ``count`` largest positive pre-activations of the batch."""
    assert_sound(codes, case, atol=atol)
    positive = case.pre.flatten()
    positive = positive[positive > 0].sort(descending=True).values[:count]
    torch.testing.assert_close(codes.values.sort(descending=True).values, positive, rtol=1e-5, atol=atol)


def assert_sound(codes: FlatCodes, case: Encoding, *, atol: float = 1e-5) -> None:
    """Fail unless features rise within tokens and every value is its pre-activation."""
    assert codes.starts.dtype == torch.int64
    assert codes.features.dtype == torch.int32
    assert codes.values.dtype == case.rows.dtype
    assert codes.d_sae == len(case.rows)
    assert codes.num_tokens == len(case.x)
    assert int(codes.starts[0]) == 0
    assert int(codes.starts[-1]) == len(codes.values) == len(codes.features)
    places = codes.tokens * codes.d_sae + codes.features.long()
    assert (places.diff() > 0).all(), "features must rise within a token, and each can be there once"
    torch.testing.assert_close(codes.values, case.pre[codes.tokens, codes.features.long()], rtol=1e-5, atol=atol)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _values(case: Encoding | Step) -> dict[str, object]:
    return {field.name: getattr(case, field.name) for field in fields(case)}


def _to(value, dtype: torch.dtype, device: torch.device | str):  # type: ignore[no-untyped-def]
    """Tensors, and the tensors of codes, on that device; floating ones in that dtype."""
    if isinstance(value, FlatCodes):
        moved = (value.starts, value.features, value.values)
        return FlatCodes(*(_to(tensor, dtype, device) for tensor in moved), value.d_sae)
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    return value
