"""What a dictionary was trained on, from a plain model: equal to the stream of a model whose weights are centred."""

from __future__ import annotations

import copy

import pytest
import torch

import saescope as ss
from saescope.activations import Document, TokenWindows, WindowConfig, of
from saescope.activations.of_dictionary import preparations
from saescope.models import LanguageModel
from saescope.training import TrainingBatch


def centred_copy(model: LanguageModel) -> LanguageModel:
    """The model with everything that writes to the stream less its mean along d_model, as TransformerLens centres it."""
    module = copy.deepcopy(model.module)
    transformer = module.transformer
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())  # tied: it reads, and stays
    with torch.no_grad():
        for layer in transformer.h:
            for written in (layer.attn.c_proj, layer.mlp.c_proj):  # [in, d_model]: the last axis is the stream's
                written.weight -= written.weight.mean(-1, keepdim=True)
                written.bias -= written.bias.mean()
        for table in (transformer.wte, transformer.wpe):
            table.weight = torch.nn.Parameter(table.weight - table.weight.mean(-1, keepdim=True))
    return LanguageModel(module, model.tokenizer, "centred")


def biased(model: LanguageModel) -> LanguageModel:
    """The model with random biases, which a new one has not."""
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return LanguageModel(module, model.tokenizer, "biased")


def trained_at(hook_point: str, *, d_in: int = 16, **metadata: object) -> ss.Dictionary:
    dictionary = ss.ReLU(ss.ReLU.Config(d_in=d_in, d_sae=8))
    dictionary.metadata = {"hook_name": hook_point, **metadata}
    return dictionary


CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("site", SITES)
def test_the_centred_stream_is_that_of_the_centred_model(tiny, windows, layer, site):
    """On the plain model, as the metadata asks for it; without being asked for the stream stays as it is."""
    plain = biased(tiny)
    centred = centred_copy(plain)
    name = f"blocks.{layer}.hook_{site}"
    ids = windows.batch(range(4)).ids
    assert torch.allclose(
        plain.logits(ids), centred.logits(ids), atol=1e-4
    )  # the same model to those who read its answers
    (expected,) = centred.read(ids, [name]).values()
    found = next(of(trained_at(name, exclude_special_tokens=False, **CENTRED), plain, windows))[: 4 * 32]
    expected = expected.reshape(-1, 16)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    raw = next(of(trained_at(name, exclude_special_tokens=False), plain, windows))[: 4 * 32]
    assert torch.equal(raw, plain.read(ids, [name])[name].reshape(-1, 16))
    assert (raw - expected).abs().max() > 0.01 * expected.abs().max()


def test_names_of_modules_are_centred_as_well(tiny, windows):
    for name, centred in (
        ("transformer.h.1", True), ("transformer.h.1.input", True), ("transformer.h.1.ln_2.input", True),
        ("transformer.h.1.mlp.output", True), ("transformer.h.1.mlp.c_fc.output", False), ("blocks.1.attn.hook_z", False),
    ):  # fmt: skip
        (found,) = preparations({"hook_name": name, **CENTRED}, tiny, None, tiny.width(name))
        assert found.centre is centred, name


def test_a_model_with_rms_norms_is_left_alone(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = LanguageModel(LlamaForCausalLM(config), tokenizer, "llama")
    (found,) = preparations({"hook_name": "blocks.1.hook_resid_pre", **CENTRED}, model, None, 16)
    assert not found.centre


def test_windows_follow_the_metadata(tiny, documents):
    texts = [document.text for document in documents[:6]]
    dictionary = trained_at("blocks.1.hook_resid_post", context_size=16, prepend_bos=False)
    x = torch.cat(list(of(dictionary, tiny, texts)))
    config = WindowConfig(context_size=16, prepend_bos=False)
    shape = TokenWindows.build([Document("", text) for text in texts], tiny.tokenizer, config)
    assert len(x) == shape.num_tokens
    with_bos = trained_at("blocks.1.hook_resid_post", context_size=16, prepend_bos=True, exclude_special_tokens=False)
    (first, *_) = of(with_bos, tiny, texts)
    read = tiny.read(torch.zeros((1, 1), dtype=torch.long), ["blocks.1.hook_resid_post"])
    assert torch.allclose(first[::16], read["blocks.1.hook_resid_post"][0], atol=1e-6)  # every window opens with BOS
    few = list(of(dictionary, tiny, texts, num_tokens=10))
    assert len(few) == 1
    alone = trained_at("blocks.1.hook_resid_post", context_size=512, disable_concat_sequences=True)
    assert sum(map(len, of(alone, tiny, texts))) > 0


def test_positions_that_were_not_trained_on_are_left_out(tiny, windows):
    dictionary = trained_at("blocks.1.hook_resid_post", exclude_special_tokens=False, seqpos_slice=[4, 20])
    x = next(of(dictionary, tiny, windows))
    whole = tiny.read(windows.batch(range(16)).ids, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    assert torch.equal(x, whole[:, 4:20].reshape(-1, 16))


def test_one_head_is_its_stretch_of_the_heads_results(tiny, windows):
    dictionary = trained_at("blocks.1.attn.hook_z", d_in=8, hook_head_index=1, exclude_special_tokens=False)
    x = next(of(dictionary, tiny, windows))
    whole = tiny.read(windows.batch(range(16)).ids, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]
    assert torch.equal(x, whole[..., 8:].reshape(-1, 8))
    with pytest.raises(ValueError, match="head 2 of width 8"):
        next(of(trained_at("blocks.1.attn.hook_z", d_in=8, hook_head_index=2), tiny, windows))


def test_a_transcoder_gets_what_it_rebuilds(tiny, windows):
    transcoder = ss.architecture("transcoder")
    dictionary = transcoder(transcoder.Config(d_in=16, d_out=16, d_sae=8))
    dictionary.metadata = {"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "blocks.1.hook_mlp_out", **CENTRED}
    batch = next(of(dictionary, tiny, windows))
    assert isinstance(batch, TrainingBatch)
    plain = tiny.read(windows.batch(range(16)).ids, ["blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"])
    keep = windows.batch(range(16)).keep
    for found, name in ((batch.x, "blocks.1.hook_mlp_in"), (batch.target, "blocks.1.hook_mlp_out")):
        expected = plain[name][keep]
        assert torch.allclose(found, expected - expected.mean(-1, keepdim=True), atol=1e-6)


def test_embeddings_of_gemma_with_and_without_their_factor(tokenizer, windows):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    model = LanguageModel(Gemma2ForCausalLM(config), tokenizer, "gemma")
    dictionary = trained_at("hook_embed", exclude_special_tokens=False)
    ids = windows.batch(range(16)).ids
    rows = model.module.get_input_embeddings().weight.detach()[ids].reshape(-1, 16)
    assert torch.allclose(next(of(dictionary, model, windows, scaled_embeddings=False)), rows, atol=1e-6)
    scaled = next(of(dictionary, model, windows, scaled_embeddings=True))
    assert torch.allclose(scaled, 4 * rows, atol=1e-6)
    first = model.read(ids, ["blocks.0.hook_resid_pre"])["blocks.0.hook_resid_pre"].reshape(-1, 16)
    assert torch.allclose(scaled, first, atol=1e-6)
    with pytest.raises(ValueError, match="is none"):
        next(of(trained_at("blocks.0.hook_resid_pre"), model, windows, scaled_embeddings=True))


def test_what_can_not_be_had_is_refused(tiny, windows):
    with pytest.raises(ValueError, match="which hook point"):
        next(of(trained_at(""), tiny, windows))
    with pytest.raises(ValueError, match="has width 12 there"):
        next(of(trained_at("blocks.1.hook_resid_post", d_in=12), tiny, windows))
    with pytest.raises(ValueError, match="nearest"):
        next(of(trained_at("blocks.1.hook_resid_past"), tiny, windows))
    folded = trained_at("blocks.1.attn.hook_z", model_from_pretrained_kwargs={"fold_value_biases": True})
    with pytest.raises(ValueError, match="fold_value_biases"):
        next(of(folded, tiny, windows))


def test_the_module_that_is_named_goes_before_the_other_name(tiny):
    (found,) = preparations(
        {"hook_name": "blocks.0.hook_resid_post", "hf_hook_name": "transformer.h.1"}, tiny, None, 16
    )
    assert found.name == "transformer.h.1"
    (found,) = preparations({"hook_name": "blocks.0.hook_resid_post", "hf_hook_name": "model.layers.1"}, tiny, None, 16)
    assert found.name == "blocks.0.hook_resid_post"
