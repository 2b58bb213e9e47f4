"""Our dictionaries behind SAEBench's interface: the same function, rows of norm 1, everything that it asks for."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest
import torch

from saescope.dictionaries import Crosscoder, Dictionary, Gated, Transcoder, architecture, architectures
from saescope.dictionaries.normalization import LayerNorm, Whitening
from saescope.evaluation.saebench.interface import as_saebench, folded_weights

D, FEATURES = 6, 10
SIZES = {"d_in": D, "d_sae": FEATURES, "k": 3, "d_out": 5, "residual_threshold": 0.25, "source_widths": (2, 4)}
ABOUT = {"model_name": "pythia-70m-deduped", "hook_name": "blocks.3.hook_resid_post", "context_size": 128}
NAMES = sorted(architectures())
REFUSED = [name for name in NAMES if issubclass(architecture(name), Transcoder | Crosscoder)]
OFFERED = [name for name in NAMES if name not in REFUSED]


def make(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dictionary:
    """Everything random, decoder rows of unequal norms where they may be."""
    cls = architecture(name)
    known = {field.name for field in fields(cls.Config)}
    assert {field.name for field in fields(cls.Config) if field.default is MISSING} <= set(SIZES)
    dictionary = cls(cls.Config(**{key: value for key, value in SIZES.items() if key in known})).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in [*dictionary.named_parameters(), *dictionary.named_buffers()]:
            if tensor.is_floating_point() and key not in ("residual_threshold", "points", "mixture"):
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            if key == "threshold":
                tensor.abs_()
        if cls.unit_norm is None:
            dictionary.normalise_decoder()
        elif "W_dec" in dict(dictionary.named_parameters()):
            dictionary.W_dec *= torch.linspace(0.3, 4, FEATURES, dtype=torch.float64)[:, None]
    return dictionary.to(dtype)


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.randn(*shape, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


def test_all_architectures_are_one_or_the_other() -> None:
    assert len(OFFERED) >= 17
    assert len(REFUSED) >= 24


@pytest.mark.parametrize("name", OFFERED)
def test_the_same_function_on_rows_of_norm_one(name: str) -> None:
    dictionary = make(name)
    sae = as_saebench(dictionary, ABOUT)
    x = tokens(4, 5)
    with torch.no_grad():
        f, x_hat = dictionary.encode(x), dictionary(x)
    norms = dictionary.W_dec.detach().norm(dim=-1)
    torch.testing.assert_close(sae.encode(x), f * norms, rtol=1e-12, atol=1e-13)
    assert torch.equal(sae.encode(x) != 0, f != 0)
    assert 0 < float((f != 0).double().mean()) < 1
    torch.testing.assert_close(sae(x), x_hat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x), rtol=0, atol=0)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(FEATURES, dtype=torch.float64), rtol=0, atol=1e-12)
    # decode is what the attributes say, not something beside them
    torch.testing.assert_close(sae.decode(f), f @ sae.W_dec + sae.b_dec, rtol=0, atol=0)
    shapes = [tuple(tensor.shape) for tensor in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)]
    assert shapes == [(D, FEATURES), (FEATURES, D), (FEATURES,), (D,)]


@pytest.mark.parametrize("name", ["relu", "jumprelu"])
def test_shown_weights_are_the_encoder(name: str) -> None:
    """Where each activation depends on its own pre-activation alone, the shown weights make it, thresholds folded too."""
    dictionary = make(name)
    sae = as_saebench(dictionary, ABOUT)
    x = tokens(9)
    pre = (x - dictionary.b_dec) @ sae.W_enc + sae.b_enc
    threshold = getattr(dictionary, "threshold", torch.zeros(FEATURES)) * dictionary.W_dec.norm(dim=-1)
    torch.testing.assert_close(sae.encode(x), torch.where(pre > threshold, pre, 0).detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["gated", "gated_archetypal"])
def test_the_bias_of_a_gated_dictionary_is_where_saebench_looks(name: str) -> None:
    dictionary = make(name)
    assert isinstance(dictionary, Gated)
    sae = as_saebench(dictionary, ABOUT)
    assert sae.cfg.architecture == "gated"
    torch.testing.assert_close(sae.b_mag, (dictionary.b_mag * dictionary.W_dec.norm(dim=-1)).detach())
    assert not sae.b_enc.any()
    assert not hasattr(as_saebench(make("relu"), ABOUT), "b_mag")


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_the_interface_would_be_false(name: str) -> None:
    dictionary = make(name)
    why = "another hook point than it reads" if isinstance(dictionary, Transcoder) else "several at once"
    for offer in (lambda: as_saebench(dictionary, ABOUT), lambda: folded_weights(dictionary)):
        with pytest.raises(ValueError, match=why):
            offer()


def test_a_dictionary_that_needs_its_input_again_is_refused() -> None:
    dictionary = make("topk")
    dictionary.input_normalization = LayerNorm()
    with pytest.raises(ValueError, match="without the input"):
        as_saebench(dictionary, ABOUT)


def test_whitened_matching_pursuit_in_raw_units() -> None:
    dictionary = make("matching_pursuit")
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    dictionary.input_normalization = Whitening(mean, matrix, torch.linalg.inv(matrix))
    sae = as_saebench(dictionary, ABOUT)
    x = tokens(8)
    with torch.no_grad():
        torch.testing.assert_close(sae(x), dictionary(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(FEATURES, dtype=torch.float64))
    rows = dictionary.W_dec.detach() @ torch.linalg.inv(matrix)
    torch.testing.assert_close(sae.W_dec, torch.nn.functional.normalize(rows, dim=-1), rtol=1e-9, atol=1e-9)
    # products with the whitened row, by the raw input: (x - mean) @ matrix @ d_i
    torch.testing.assert_close(
        sae.W_enc, matrix @ dictionary.W_dec.detach().T * rows.norm(dim=-1), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["topk", "gated", "batch_topk"])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    dictionary = make(name, dtype=torch.float32)
    before = {key: tensor.clone() for key, tensor in dictionary.state_dict().items()}
    sae = as_saebench(dictionary, ABOUT).to(device=torch.device("cpu"), dtype=dtype)
    assert (sae.dtype, sae.device.type) == (dtype, "cpu")
    assert (sae.cfg.dtype, sae.cfg.device) == (str(dtype).removeprefix("torch."), "cpu")
    x = tokens(3, 5, dtype=dtype)
    assert {sae.encode(x).dtype, sae(x).dtype, sae.W_enc.dtype, sae.b_enc.dtype} == {dtype}
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5  # SAEBench's own
    assert float((sae.W_dec.norm(dim=-1) - 1).abs().max()) < tolerance
    # the dictionary itself was left alone
    assert all(torch.equal(tensor, before[key]) for key, tensor in dictionary.state_dict().items())
    with torch.no_grad():
        error = (sae(x).float() - dictionary(x.float())).norm() / dictionary(x.float()).norm()
    assert error < (0.2 if dtype == torch.bfloat16 else 1e-6)


def test_a_row_of_zeros_stays_one() -> None:
    dictionary = make("relu")
    with torch.no_grad():
        dictionary.W_dec[2] = 0
    sae = as_saebench(dictionary, ABOUT)
    assert not sae.W_dec[2].any()
    assert bool(sae.W_dec.isfinite().all())
    torch.testing.assert_close(sae.encode(tokens(5))[:, 2], dictionary.encode(tokens(5))[:, 2].detach())


def test_cfg_has_what_saebench_reads_and_takes_what_it_writes() -> None:
    more = {"prepend_bos": False, "hook_head_index": 2, "model_from_pretrained_kwargs": {"n_devices": 1}}
    sae = as_saebench(make("topk"), {**ABOUT, **more, "unknown": 1})
    wanted = {
        "model_name": "pythia-70m-deduped", "d_in": D, "d_sae": FEATURES, "hook_layer": 3,
        "hook_name": "blocks.3.hook_resid_post", "hook_head_index": 2, "context_size": 128, "prepend_bos": False,
        "architecture": "topk", "dtype": "float64", "model_from_pretrained_kwargs": {"n_devices": 1},
    }  # fmt: skip
    plain = sae.cfg.to_dict()
    assert wanted.items() <= plain.items()
    cfg: Any = sae.cfg
    cfg.metadata, cfg.architecture_str = object(), "topk"  # as SAEBench does on loading
    assert sae.cfg.to_dict() == plain
    json.dumps(plain)
    # calls that it makes around hook_z
    sae.turn_off_forward_pass_hook_z_reshaping()
    assert sae.hook_z_reshaping_mode is False


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "give model_name and hook_name in metadata or by name"),
        ({"model_name": "m"}, "give hook_name in metadata"),
        (
            {"model_name": "m", "hook_name": "transformer.h.1"},
            "TransformerLens, which has no hook point 'transformer.h.1'",
        ),
    ],
)
def test_what_saebench_could_not_find_is_refused(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_saebench(make("relu"), metadata)
    sae = as_saebench(make("relu"), metadata, model_name="gpt2", hook_name="blocks.11.attn.hook_z")
    assert (sae.cfg.model_name, sae.cfg.hook_layer) == ("gpt2", 11)
