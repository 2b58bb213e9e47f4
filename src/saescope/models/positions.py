"""How many positions a Hugging Face model has, and from which number a text's positions count."""

from __future__ import annotations

from typing import Any

from torch import nn


def text_config(module: nn.Module) -> Any:
    """The config of the part that reads text; None for a module without one."""
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def context_size(module: nn.Module) -> int | None:
    """Tokens of the longest window that the positions allow; None where nothing limits it."""
    limit = getattr(text_config(module), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return limit - first_position(module)


def first_position(module: nn.Module) -> int:
    """The number of a text's first position: 0, but for RoBERTa, which counts from ``padding_idx + 1``."""
    for path, submodule in module.named_modules():
        if path.rpartition(".")[2] == "position_embeddings" and isinstance(submodule, nn.Embedding):
            return 0 if submodule.padding_idx is None else submodule.padding_idx + 1
    return 0
