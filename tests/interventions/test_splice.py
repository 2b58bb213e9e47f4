"""Reconstructions in the place of activations: error terms, codes, gradients, and what is undone on the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, TopK
from saescope.dictionaries.normalization import ConstantNorm, LayerNorm, Whitening
from saescope.interventions import Ablate, Add, Clamp, Intervention, ProjectOut, Scale, Site, Splice

PLACE = "blocks.1.hook_resid_post"
EVERYTHING = ["relu", "topk", "jumprelu", "gated", "matching_pursuit"]


@pytest.fixture
def site(tiny_model: Any, make_dictionary: Any) -> Site:
    return Site(make_dictionary(), tiny_model("llama"), hook_point=PLACE)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "neox", "qwen3", "opt", "phi"])
def test_with_its_error_a_splice_changes_nothing(
    kind: str, tiny_model: Any, make_dictionary: Any, blocks: Any, ids: Tensor
) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = tiny_model(kind, dtype)
        plain = model.logits(ids)
        for architecture in EVERYTHING:
            dictionary = make_dictionary(architecture, dtype=dtype)
            site = Site(dictionary, model, hook_point=f"{blocks(kind)}.1")
            for splice in (
                Splice(site),
                Splice(site, error_term="frozen"),
                Splice(site, codes=lambda f: f),
                Splice(site, error_term="frozen", codes=lambda f: f.clone()),
            ):
                with Intervention(splice):
                    assert torch.equal(model.logits(ids), plain), (architecture, splice)
            with Intervention(Splice(site, error_term=False)):
                assert not torch.equal(model.logits(ids), plain), architecture


def test_codes_are_what_is_decoded(site: Site, ids: Tensor) -> None:
    model, d = site.model, site.dictionary
    x = model.read(ids, [PLACE])[PLACE]
    f = d.encode(x).detach()

    def in_place(codes: Tensor) -> Tensor:
        codes[..., :12] *= 2
        codes[..., 20] = 1.5
        return codes

    changed = in_place(f.clone())
    for error_term, expected in [
        (False, d.decode(changed)),
        (True, d.decode(changed) + (x - d.decode(f))),
        ("frozen", d.decode(changed) + (x - d.decode(f))),
    ]:
        with Intervention(Splice(site, error_term=error_term, codes=in_place)):
            found = model.read(ids, [PLACE])[PLACE]
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    with Intervention([Splice(site, codes=in_place), Ablate(site, 3), Add(site, 4, 2.0, "activation")]):
        found = model.read(ids, [PLACE])[PLACE]
    by_hand = d.decode(changed) + (x - d.decode(f)) - f[..., [3]] * d.W_dec[3] + 2.0 * d.W_dec[4]
    torch.testing.assert_close(found, by_hand.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("error_term", [True, False, "frozen"])
def test_gradients_at_the_codes(error_term: Any, tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    model = tiny_model("gpt2")  # whose norms are in float64 throughout
    site = Site(make_dictionary(), model, hook_point=PLACE)
    leaves: list[Tensor] = []

    def leaf(f: Tensor) -> Tensor:
        leaves.append(f.detach().clone().requires_grad_())
        return leaves[-1]

    with Intervention(Splice(site, error_term=error_term, codes=leaf)):
        logits = model.logits(ids)
    assert len(leaves) == 1
    target = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((logits * target).sum(), leaves[0])
    assert float(gradient.abs().max()) > 0
    moves = torch.randn((6, *gradient.shape), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for move in moves:
        ends = []
        for step in (1e-5, -1e-5):
            with (
                torch.no_grad(),
                Intervention(Splice(site, error_term=error_term, codes=lambda f, by=step * move: f + by)),
            ):
                ends.append(float((model.logits(ids) * target).sum()))
        torch.testing.assert_close(float((gradient * move).sum()), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_what_a_frozen_error_means_for_the_gradient(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    """With the error as a constant, what comes before reaches what comes after through the features alone."""
    model = tiny_model("gpt2")
    dictionary = make_dictionary()
    site = Site(dictionary, model, hook_point=PLACE)
    h = model.module.transformer
    x = model.read(ids, [PLACE])[PLACE]

    def onwards(stream: Tensor) -> Tensor:
        for block in h.h[2:]:
            stream = block(stream)
            stream = stream[0] if isinstance(stream, tuple) else stream
        logits: Tensor = model.module.lm_head(h.ln_f(stream))
        return logits[0, -1, 5] - logits[0, -1, 6]

    for error_term in (True, "frozen", False):
        early = x.clone().requires_grad_()
        f = dictionary.encode(early)
        error = early - dictionary.decode(f)
        whole = {
            True: dictionary.decode(f) + error,
            "frozen": dictionary.decode(f) + error.detach(),
            False: dictionary.decode(f),
        }[error_term]
        (expected,) = torch.autograd.grad(onwards(whole), early)
        shift = torch.zeros_like(x, requires_grad=True)
        with model.edit({PLACE: lambda value, by=shift: value + by}), Intervention(Splice(site, error_term=error_term)):
            logits = model.logits(ids)
        (found,) = torch.autograd.grad(logits[0, -1, 5] - logits[0, -1, 6], shift)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert dictionary.W_dec.grad is None


def test_no_graph_is_built_for_the_dictionary(site: Site, ids: Tensor) -> None:
    model = site.model
    assert site.dictionary.W_dec.requires_grad
    with Intervention([Add(site, 1, 1.0, "activation"), Ablate(site, 2), Splice(site, error_term=False)]):
        logits = model.logits(ids)
    assert not logits.requires_grad
    shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    with (
        model.edit({"blocks.0.hook_resid_post": lambda value: value + shift}),
        Intervention(Clamp(site, 1, 1.0, "activation")),
    ):
        model.logits(ids).sum().backward()  # type: ignore[no-untyped-call]
    assert shift.grad is not None
    assert all(parameter.grad is None for parameter in site.dictionary.parameters())


def test_codes_of_another_shape(site: Site, ids: Tensor) -> None:
    for wrong, got in [(lambda f: f[0], r"\(7, 24\)"), (lambda f: None, "NoneType")]:
        with (
            Intervention(Splice(site, codes=wrong)),  # type: ignore[arg-type]
            pytest.raises(ValueError, match=rf"Splice at {PLACE} became {got}; expected .*\(2, 7, 24\)"),
        ):
            site.model.logits(ids)
    with pytest.raises(ValueError, match='"frozen", not'):
        Splice(site, error_term="thawed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spliced twice"):
        Intervention([Splice(site), Splice(site, error_term=False)])


# Transcoders


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "topk_skip_transcoder"])
def test_transcoders_read_one_place_and_write_another(
    architecture: str, tiny_model: Any, make_dictionary: Any, by_hand: Any, ids: Tensor
) -> None:
    model = tiny_model("llama")
    d = make_dictionary(architecture, d_out=16)
    site = Site(d, model, hook_point="blocks.1.hook_mlp_in", hook_point_out="blocks.1.hook_mlp_out")
    x = model.read(ids, ["model.layers.1.post_attention_layernorm.input"])[
        "model.layers.1.post_attention_layernorm.input"
    ]
    f = d.encode(x).detach()
    feature = int(f.sum((0, 1)).argmax())
    rebuilt = f @ d.W_dec + d.b_dec + (x @ d.W_skip.T if d.has_skip else 0)
    row = d.W_dec[feature].detach()
    for change, function in [
        (Splice(site, error_term=False), lambda y: rebuilt.detach()),
        (Add(site, feature, 2.0, "activation"), lambda y: y + 2.0 * row),
        (Ablate(site, feature), lambda y: y - f[..., [feature]] * row),
        (Scale(site, feature, 2.0), lambda y: y + f[..., [feature]] * row),
    ]:
        with by_hand(model, "model.layers.1.mlp", function):
            expected = model.logits(ids)
        with Intervention(change):
            torch.testing.assert_close(model.logits(ids), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(expected, model.logits(ids), atol=1e-4), change
    with Intervention(Splice(site)):
        assert torch.equal(model.logits(ids), model.logits(ids))


def test_a_transcoders_output_has_units_of_its_own(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    """What normalises its input is not undone on what it writes."""
    model = tiny_model("llama")
    d = make_dictionary("transcoder", d_out=16)
    d.input_normalization = LayerNorm()
    names = ["blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"]
    site = Site(d, model, hook_point=names[0], hook_point_out=names[1])
    found = model.read(ids, names)
    f = d.encode(found[names[0]]).detach()
    i = int(f.sum((0, 1)).argmax())
    for change, expected in [
        (Ablate(site, i), found[names[1]] - f[..., [i]] * d.W_dec[i]),
        (Add(site, i, 2.0, "activation"), found[names[1]] + 2.0 * d.W_dec[i]),
    ]:
        with Intervention(change):
            torch.testing.assert_close(model.read(ids, names[1:])[names[1]], expected.detach(), rtol=0, atol=1e-12)


def test_a_transcoder_that_reads_after_it_writes(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    model = tiny_model("llama")
    site = Site(
        make_dictionary("transcoder", d_out=16),
        model,
        hook_point="blocks.1.hook_mlp_out",
        hook_point_out=PLACE.replace("1", "0"),
    )
    with Intervention(Ablate(site, 3)), pytest.raises(ValueError, match="comes to before it reads"):
        model.logits(ids)
    with Intervention(Add(site, 3, 1.0, "activation")):
        model.logits(ids)  # needs no reading


# What is done to an activation before a dictionary sees it


def normalised(dictionary: Dictionary, kind: str) -> Dictionary:
    generator = torch.Generator().manual_seed(4)
    matrix = torch.eye(16, dtype=torch.float64) + 0.2 * torch.randn((16, 16), generator=generator, dtype=torch.float64)
    mean = torch.randn(16, generator=generator, dtype=torch.float64)
    dictionary.input_normalization = {
        "layer_norm": LayerNorm(),
        "constant_norm": ConstantNorm(),
        "whitening": Whitening(mean, matrix, torch.linalg.inv(matrix)),
    }[kind]
    return dictionary


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm", "whitening"])
def test_normalised_dictionaries(kind: str, tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    """Against differences of decoded codes: what a feature writes is what decoding it changes."""
    model = tiny_model("llama")
    d = normalised(make_dictionary(), kind)
    site = Site(d, model, hook_point=PLACE)
    x = model.read(ids, [PLACE])[PLACE]
    f = d.encode(x).detach()
    i, j = f.sum((0, 1)).topk(2).indices.tolist()

    def decoded(**changes: Any) -> Tensor:
        codes = f.clone()
        for feature, value in changes.items():
            codes[..., int(feature[1:])] = value
        return d.decode(codes, x).detach()

    whole = decoded()
    for change, expected in [
        (Add(site, i, 2.0, "activation"), x + decoded(**{f"f{i}": f[..., i] + 2.0}) - whole),
        (Clamp(site, i, 0.5, "activation"), x + decoded(**{f"f{i}": 0.5}) - whole),
        (Scale(site, i, 3.0), x + decoded(**{f"f{i}": 3 * f[..., i]}) - whole),
        (Ablate(site, [i, j]), x + decoded(**{f"f{i}": 0, f"f{j}": 0}) - whole),
        (Splice(site, error_term=False), whole),
    ]:
        with Intervention(change):
            found = model.read(ids, [PLACE])[PLACE]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    along = decoded(**{f"f{i}": f[..., i] + 1.0}) - whole
    with Intervention(ProjectOut(site, i)):
        found = model.read(ids, [PLACE])[PLACE]
    torch.testing.assert_close((found * along).sum(-1), torch.zeros(2, 7, dtype=torch.float64), rtol=0, atol=1e-10)
    residue = x - found
    torch.testing.assert_close(
        residue, (residue * along).sum(-1, keepdim=True) / along.square().sum(-1, keepdim=True) * along
    )


def test_centred_streams(tiny_model: Any, make_dictionary: Any, by_hand: Any, ids: Tensor) -> None:
    model = tiny_model("gpt2")
    d = make_dictionary()
    d.metadata = {"hook_name": PLACE, "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    site = Site(d, model)
    x = model.read(ids, [PLACE])[PLACE]
    mean = x.mean(-1, keepdim=True)
    f = d.encode(x - mean).detach()
    feature = int(f.sum((0, 1)).argmax())
    row = d.W_dec[feature].detach()
    for change, expected in [
        (Add(site, feature, 2.0, "activation"), x + 2.0 * row),
        (Ablate(site, feature), x - f[..., [feature]] * row),
        (Splice(site, error_term=False), d.decode(f).detach() + mean),
        (Splice(site), x),
    ]:
        with Intervention(change):
            found = model.read(ids, [PLACE])[PLACE]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with by_hand(model, "transformer.h.1", lambda v: d.decode(d.encode(v - v.mean(-1, keepdim=True))).detach()):
        without_the_mean = model.logits(ids)
    with Intervention(Splice(site, error_term=False)):  # LayerNorms do not see the mean
        torch.testing.assert_close(model.logits(ids), without_the_mean, rtol=0, atol=2e-4)


def test_one_head(tiny_model: Any, make_dictionary: Any, by_hand: Any, ids: Tensor) -> None:
    model = tiny_model("gpt2")
    d = make_dictionary("relu", 8, 12)
    name = "blocks.1.attn.hook_z"
    d.metadata = {"hook_name": name, "hook_head_index": 1}
    site = Site(d, model)
    x = model.read(ids, [name])[name]
    f = d.encode(x[..., 8:]).detach()
    feature = int(f.sum((0, 1)).argmax())
    for change, head in [
        (Add(site, feature, 2.0, "activation"), x[..., 8:] + 2.0 * d.W_dec[feature]),
        (Ablate(site, feature), x[..., 8:] - f[..., [feature]] * d.W_dec[feature]),
        (Splice(site, error_term=False), d.decode(f)),
    ]:
        with Intervention(change):
            found = model.read(ids, [name])[name]
            logits = model.logits(ids)
        assert torch.equal(found[..., :8], x[..., :8])
        torch.testing.assert_close(found[..., 8:], head.detach(), rtol=0, atol=1e-12)
        with by_hand(model, "transformer.h.1.attn.c_proj", lambda v, to=found: to, "input"):
            assert torch.equal(model.logits(ids), logits)


# Dtypes


@pytest.mark.parametrize("of_model", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of_dictionary", [torch.float64, torch.float32, torch.bfloat16])
def test_every_pair_of_dtypes(
    of_model: Any, of_dictionary: Any, tiny_model: Any, make_dictionary: Any, ids: Tensor
) -> None:
    model = tiny_model("gpt2", of_model)
    site = Site(make_dictionary(dtype=of_dictionary), model, hook_point=PLACE)
    x = model.read(ids, [PLACE])[PLACE]
    f = site.dictionary.encode(x.to(of_dictionary)).detach()
    i = int(f.sum((0, 1)).argmax())
    row = site.dictionary.W_dec[i].detach()
    wide = torch.promote_types(of_model, of_dictionary)
    for change, expected in [
        (Add(site, i, 2.0, "activation"), x.to(wide) + 2.0 * row),
        (Ablate(site, i), x.to(wide) - f[..., [i]] * row),
        (Splice(site, error_term=False), site.dictionary.decode(f).detach()),
    ]:
        with Intervention(change):
            found = model.read(ids, [PLACE])[PLACE]
        assert torch.equal(found, expected.to(of_model)), change
    with Intervention(Splice(site)):
        assert torch.equal(model.read(ids, [PLACE])[PLACE], x)


def test_a_dictionary_in_the_middle_of_a_block_changes_the_stream(tiny) -> None:
    """Its file names the MLP's norm too, which reads the same value; an edit there would reach the MLP alone."""
    dictionary = TopK(TopK.Config(d_in=16, d_sae=24, k=4)).requires_grad_(False)
    name = "blocks.1.hook_resid_mid"
    ids = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with Intervention(Splice(Site(dictionary, tiny, hook_point=name), error_term=False)):
        wanted = tiny.logits(ids)
    dictionary.metadata = {"hook_name": name, "hf_hook_name": "transformer.h.1.ln_2.input"}
    site = Site(dictionary, tiny)
    assert [each.name for each in site.reads] == [name]
    with Intervention(Splice(site, error_term=False)):
        assert torch.equal(tiny.logits(ids), wanted)
    dictionary.metadata = {"hook_name": "blocks.0.hook_resid_post", "hf_hook_name": "transformer.h.1.output"}
    assert [each.name for each in Site(dictionary, tiny).reads] == ["transformer.h.1.output"]  # where they differ
