"""Tiny random models of several families and random dictionaries for them; hooks written by hand to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from saescope.dictionaries import Dictionary, architecture
from saescope.models import LanguageModel

VOCAB = 40
_SHAPE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_PLAIN = {**_SHAPE, "intermediate_size": 24, "max_position_embeddings": 32}
_MODERN = {**_PLAIN, "num_key_value_heads": 1, "head_dim": 12}
_GPT = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

# kind -> model type, config, path of the blocks
CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("gpt2", _GPT, "transformer.h"),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}, "transformer.h"),
    "neox": ("gpt_neox", _PLAIN, "gpt_neox.layers"),
    "llama": ("llama", _MODERN, "model.layers"),
    "qwen3": ("qwen3", _MODERN, "model.layers"),
    "gemma2": ("gemma2", {**_MODERN, "sliding_window": 3, "query_pre_attn_scalar": 12}, "model.layers"),
    "opt": ("opt", {**_PLAIN, "ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder.layers"),
    "phi": ("phi", _PLAIN, "model.layers"),
    "mixtral": ("mixtral", {**_MODERN, "num_local_experts": 2, "num_experts_per_tok": 1}, "model.layers"),
}


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCAB)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def _build(kind: str, dtype: torch.dtype = torch.float64) -> LanguageModel:
    model_type, settings, _ = CONFIGS[kind]
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings, **_IDS))
    generator = torch.Generator().manual_seed(len(kind))
    for parameter in module.parameters():  # the default weights are so small that mistakes would drown in rounding
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    module.generation_config.eos_token_id = None  # texts of the length that was asked for
    return LanguageModel(module.to(dtype), _tokenizer(), f"tiny-{kind}")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., LanguageModel]:
    """``tiny_model("gpt2", torch.float64)``: 3 blocks, width 16, 40 ids of which 0 and 1 are special; shared."""
    return cache(_build)


@pytest.fixture(scope="session")
def blocks() -> Callable[[str], str]:
    """The path of a family's blocks."""
    return lambda kind: CONFIGS[kind][2]


@pytest.fixture(scope="session")
def make_dictionary() -> Callable[..., Dictionary]:
    """``make_dictionary("topk", 16, 24, k=3)``: random weights in float64, of which about half the features fire."""

    def make(kind: str = "relu", d_in: int = 16, d_sae: int = 24, dtype: Any = torch.float64, **settings: Any) -> Any:
        made = architecture(kind)
        if "topk" in kind:
            settings.setdefault("k", 4)
        dictionary = made(made.Config(d_in=d_in, d_sae=d_sae, **settings), seed=3).double()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in dictionary.named_parameters():
                moved = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                if not (name == "W_dec" and dictionary.encoder_rows is None):  # matching pursuit needs unit rows
                    parameter.add_(moved.abs() if name == "threshold" else moved)
        if "threshold" in dict(dictionary.named_buffers()):
            dictionary.threshold.fill_(0.3)  # what training a BatchTopK sets
        return dictionary.to(dtype)

    return make


@pytest.fixture
def ids() -> Tensor:
    """Token ids ``[2, 7]``, without special ones."""
    return torch.randint(2, VOCAB, (2, 7), generator=torch.Generator().manual_seed(5))


Function = Callable[[Tensor], Tensor]


@contextmanager
def _by_hand(model: LanguageModel, path: str, function: Function, side: str = "output") -> Iterator[None]:
    module = model.module.get_submodule(path)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

    def after(_: Any, args: Any, output: Any) -> Any:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def by_hand() -> Any:
    """``by_hand(model, path, function, side="output")``: a plain torch hook that replaces ``[B, T, d]``."""
    return _by_hand


def _hooks(model: LanguageModel) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.module.modules()
    )


@pytest.fixture(scope="session")
def count_hooks() -> Callable[[LanguageModel], int]:
    """How many hooks there are on all modules of a model."""
    return _hooks
