"""Temporal dictionaries: the formulas token by token and head by head, what they refuse, and the form on disk."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Temporal, TemporalConfig, architectures, load_dictionary, save_dictionary
from saescope.dictionaries.normalization import LayerNorm
from saescope.dictionaries.temporal import ConstantScalar

D, N = 6, 12


@torch.no_grad()
def made(*, factor: float = 1.0, seed: int = 0, **settings: object) -> Temporal:
    """Everything random."""
    sizes = {"d_in": D, "d_sae": N, "n_heads": 2, "bottleneck_factor": 3, "n_attn_layers": 2, "kval_topk": 3}
    dictionary = Temporal(TemporalConfig(**{**sizes, "activation_normalization_factor": factor, **settings})).double()
    generator = torch.Generator().manual_seed(seed)
    for tensor in dictionary.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    if factor != 1:
        dictionary.input_normalization = ConstantScalar()
    return dictionary.eval().requires_grad_(False)


def sequences(seed: int = 0, batch: int = 2, tokens: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return 3 * torch.randn(batch, tokens, D, generator=generator, dtype=torch.float64)


def by_hand(dictionary: Temporal, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Novel codes, predicted codes and reconstruction of one sequence ``[T, d_in]``, token by token."""
    config = dictionary.config
    s, W_dec, W_enc = config.activation_normalization_factor, dictionary.W_dec, dictionary.W_enc
    lam = 1 / (4 * D)
    rest = [s * row - (dictionary.b_dec if config.apply_b_dec_to_input else 0) for row in x]
    predicted = [torch.zeros(N, dtype=x.dtype) for _ in x]
    for layer in dictionary.attn_layers:
        codes = [(lam * row @ W_enc).clamp(min=0) for row in rest]
        past = [torch.zeros(N, dtype=x.dtype), *codes[:-1]]
        width, wide = N // config.bottleneck_factor // config.n_heads, N // config.n_heads
        for t in range(len(x)):
            joined = []
            for head in range(config.n_heads):
                keys, values = slice(head * width, (head + 1) * width), slice(head * wide, (head + 1) * wide)
                q = (layer.q_target.weight @ codes[t] + layer.q_target.bias)[keys]
                scores = [
                    math.exp(float(q @ (layer.k_ctx.weight @ past[u] + layer.k_ctx.bias)[keys]) / math.sqrt(width))
                    for u in range(t + 1)
                ]
                joined.append(
                    sum(
                        (score / sum(scores)) * (layer.v_ctx.weight @ past[u] + layer.v_ctx.bias)[values]
                        for u, score in enumerate(scores)
                    )
                )
            p = (layer.c_proj.weight @ torch.cat(joined) + layer.c_proj.bias).clamp(min=0)
            written = p @ W_dec
            share = (written @ rest[t]) / (written.norm() + 1e-6) ** 2
            predicted[t] = predicted[t] + share * p
            rest[t] = rest[t] - share * written
    f = torch.stack([(lam * row @ W_enc).clamp(min=0) for row in rest])
    if config.sae_diff_type == "topk" and config.kval_topk is not None:
        least = f.sort(dim=-1, descending=True).values[:, config.kval_topk - 1, None]
        f = torch.where(f >= least, f, 0)
    bias = dictionary.b_dec if config.apply_b_dec_to_input or not config.tied_weights else 0
    codes_hat = torch.stack(predicted)
    return f, codes_hat, ((f + codes_hat) @ W_dec + bias) / s


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied_weights": False},
        {"apply_b_dec_to_input": False},
        {"apply_b_dec_to_input": False, "tied_weights": False},
        {"sae_diff_type": "relu"},
        {"kval_topk": None},
        {"factor": 0.3},
        {"n_attn_layers": 1, "n_heads": 1, "bottleneck_factor": 12},
    ],
    ids=str,
)
def test_it_computes_the_formulas(settings: dict[str, object]) -> None:
    dictionary, x = made(**settings), sequences()
    f, predicted, x_hat = (torch.stack(part) for part in zip(*(by_hand(dictionary, row) for row in x), strict=True))
    torch.testing.assert_close(dictionary.encode(x), f, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dictionary.predicted(x), predicted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dictionary(x), x_hat, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dictionary.decode(f, x), x_hat, rtol=1e-10, atol=1e-12)
    assert 0 < (f > 0).double().mean() < 1
    assert predicted.abs().max() > 0.01  # else nothing of it was tested


def test_a_token_is_predicted_from_those_before_it_alone() -> None:
    dictionary, x = made(), sequences()
    changed = x.clone()
    changed[:, 4] += 1
    assert torch.equal(dictionary.encode(changed)[:, :4], dictionary.encode(x)[:, :4])
    assert not torch.equal(dictionary.encode(changed)[:, 5:], dictionary.encode(x)[:, 5:])
    torch.testing.assert_close(dictionary.encode(x[:1]), dictionary.encode(x)[:1])


def test_directions_are_what_a_feature_adds() -> None:
    dictionary, x = made(factor=0.3), sequences()
    f = dictionary.encode(x)
    more = f.clone()
    more[..., 5] += 2
    added = dictionary.decode(more, x) - dictionary.decode(f, x)
    torch.testing.assert_close(added, (2 * dictionary.direction(5)).expand_as(added))


def test_tokens_without_their_sequence_are_refused() -> None:
    dictionary, x = made(), sequences()
    with pytest.raises(ValueError, match="whole sequences"):
        dictionary.encode(x[0])
    with pytest.raises(ValueError, match="whole sequences"):
        dictionary.encode_sparse(x[0])
    with pytest.raises(ValueError, match="need the sequences again"):
        dictionary.decode(dictionary.encode(x))
    with pytest.raises(ValueError, match="width d_in = 6"):
        dictionary.encode(x[..., :5])
    with pytest.raises(ValueError, match="nothing can be folded"):
        dictionary.fold_scale(2.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_heads": 5}, "multiple of n_heads x bottleneck_factor"),
        ({"n_heads": 0}, "n_heads must be"),
        ({"sae_diff_type": "jump"}, "relu or topk"),
        ({"kval_topk": 13}, "kval_topk must be"),
        ({"factor": 0.0}, "must be a positive number"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(**settings)


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_opened(tmp_path, tied: bool) -> None:
    dictionary, x = made(factor=0.3, tied_weights=tied), sequences()
    save_dictionary(dictionary, tmp_path / "d")
    opened = load_dictionary(tmp_path / "d")
    assert isinstance(opened, Temporal)
    assert opened.config == dictionary.config
    assert torch.equal(opened(x), dictionary(x))
    assert "temporal" not in architectures()  # nothing trains it
    assert opened.reads_sequences


def test_layer_norm_is_undone() -> None:
    dictionary, x = made(), sequences()
    dictionary.input_normalization = LayerNorm()
    spread = x.std(-1, keepdim=True)
    inner = made()
    wanted = inner((x - x.mean(-1, keepdim=True)) / (spread + 1e-5)) * spread + x.mean(-1, keepdim=True)
    torch.testing.assert_close(dictionary(x), wanted)
