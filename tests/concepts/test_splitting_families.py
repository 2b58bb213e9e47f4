"""Models of other architectures: the activations of a batch are those of its texts alone, padded on either side."""

from __future__ import annotations

import pytest
import torch
import transformers

from saescope.concepts.splitting import ModelWithSplitPoints

_SHAPE = {
    "vocab_size": 330, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40,
}  # fmt: skip
_WIDE = {**_SHAPE, "intermediate_size": 12}
_BART = {
    "vocab_size": 330, "d_model": 8, "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 2,
    **{f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")},
    **{f"{side}_ffn_dim": 8 for side in ("encoder", "decoder")},
}  # fmt: skip
FAMILIES = {
    "llama with a head for classes": ("LlamaForSequenceClassification", "LlamaConfig", _WIDE, 1),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_SHAPE, "ffn_dim": 12, "word_embed_proj_dim": 8}, 1),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 330, "dim": 8, "hidden_dim": 12, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40},
        1,
    ),
    "bart": ("BartForSequenceClassification", "BartConfig", _BART, "model.encoder.layers.1"),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 330, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2},
        "encoder.block.1",
    ),
    "deberta": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**_WIDE, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        1,
    ),
}


def build(name):
    model_class, config_class, settings, split_point = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model, split_point


@pytest.mark.parametrize("name", FAMILIES)
def test_neither_side_nor_company_matters(name, byte_level, reviews):
    network, split_point = build(name)
    model = ModelWithSplitPoints(network, split_point, tokenizer=byte_level, batch_size=3)
    (point,) = model.split_points
    texts = reviews[3:6]
    alone = torch.cat([model.get_activations([text], "ALL_TOKENS")[point] for text in texts])
    assert alone.std(0).min() > 1e-3
    for side in (None, "left", "right"):
        together = model.get_activations(texts, "ALL_TOKENS", pad_side=side)[point]
        torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-9)


def test_classes_of_a_llama_in_a_batch(byte_level, reviews):
    network, split_point = build("llama with a head for classes")
    assert network.config.pad_token_id is None
    model = ModelWithSplitPoints(network, split_point, tokenizer=byte_level, batch_size=5)
    with torch.no_grad():
        alone = torch.cat([network(torch.tensor([byte_level(text)["input_ids"]])).logits for text in reviews[:5]])
    encoding = model.selection(reviews[:5], "TOKEN").encoding
    found = model.split_forward(encoding, model.split_points[0], lambda a: a)
    torch.testing.assert_close(found.detach(), alone, rtol=1e-9, atol=1e-9)
    assert network.config.pad_token_id is None


def test_half_precision_becomes_float32(byte_level, reviews):
    network, split_point = build("opt")
    model = ModelWithSplitPoints(network.bfloat16(), split_point, tokenizer=byte_level)
    (point,) = model.split_points
    for granularity in ("TOKEN", "SAMPLE"):
        assert model.get_activations(reviews[:1], granularity)[point].dtype == torch.float32
    assert model.dtype == torch.bfloat16


def test_tokens_flattened_into_a_matrix_are_refused(byte_level):
    network, _ = build("opt")
    with pytest.raises(
        ValueError, match=r"fc1 does not give one vector per token, .*, but a tensor of shape \(2, 12\)"
    ):
        ModelWithSplitPoints(network, "model.decoder.layers.0.fc1", tokenizer=byte_level)
