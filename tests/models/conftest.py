"""Tiny random models of every family in the table, built once for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from saescope.models import LanguageModel

VOCAB = 40
# Heads are wider than d_model / n_heads where the architecture allows it, so that a mix-up of widths shows.
_SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_MODERN = {**_SHAPE, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 12, "max_position_embeddings": 32}
_QWEN2 = {key: value for key, value in _MODERN.items() if key != "head_dim"}
_NEOX = {**_SHAPE, "intermediate_size": 24, "max_position_embeddings": 32}
_GPT = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
_GEMMA = {**_MODERN, "sliding_window": 3}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

CONFIGS = {
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "neox": ("gpt_neox", _NEOX),
    "neox_sequential": ("gpt_neox", {**_NEOX, "use_parallel_residual": False}),
    "llama": ("llama", _MODERN),
    "mistral": ("mistral", _MODERN),
    "qwen2": ("qwen2", _QWEN2),
    "qwen3": ("qwen3", _MODERN),
    "gemma2": ("gemma2", {**_GEMMA, "query_pre_attn_scalar": 12}),
    "gemma3": ("gemma3_text", _GEMMA),
    "gemma3_images": ("gemma3", {"text_config": {**_GEMMA, **_IDS}, "vision_config": _VISION}),
    "opt": ("opt", {**_SHAPE, "ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16}),
    "opt_post_norm": (
        "opt",
        {
            **_SHAPE,
            "ffn_dim": 24,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
        },
    ),
    "bert": ("bert", {**_SHAPE, "intermediate_size": 24, "max_position_embeddings": 32}),
    "roberta": ("roberta", {**_SHAPE, "intermediate_size": 24, "max_position_embeddings": 34}),
    "phi": ("phi", {**_SHAPE, "intermediate_size": 24, "max_position_embeddings": 32}),
}


@cache
def _build(kind: str) -> LanguageModel:
    model_type, settings = CONFIGS[kind]
    config = AutoConfig.for_model(model_type, **settings, **_IDS)
    auto = AutoModelForMaskedLM if kind in ("bert", "roberta") else AutoModelForCausalLM
    module = auto.from_config(config)
    generator = torch.Generator().manual_seed(len(kind))
    for parameter in module.parameters():  # the default weights are so small that mistakes would drown in rounding
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return LanguageModel(module, None, f"tiny-{kind}")


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], LanguageModel]:
    """``tiny("gpt2")``: a model with 3 blocks, d_model 16, 40 token ids; shared, so leave it as it was."""
    return _build


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids ``[2, 7]``, without the special ones."""
    return torch.randint(2, VOCAB, (2, 7), generator=torch.Generator().manual_seed(5))
