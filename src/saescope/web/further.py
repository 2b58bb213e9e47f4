"""The numbers of a feature that do not stand at its head, each with a name that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saescope.store.records import FeaturePage
from saescope.web.numbers import decimal, percent, whole

_DECIMALS = {
    "mean_activation": "mean over all tokens",
    "std_activation": "std over all tokens",
    "decoder_norm": "decoder norm",
    "encoder_norm": "encoder norm",
    "encoder_bias": "encoder bias",
    "encoder_decoder_cosine": "cosine of encoder and decoder",
    "logit_mean": "mean logit effect",
    "logit_std": "std of logit effects",
    "logit_skew": "skew of logit effects",
    "logit_kurtosis": "kurtosis of logit effects",
}
_COUNTS = {
    "num_windows": "windows it fires in",
    "first_firing": "first firing, token",
    "last_firing": "last firing, token",
    "cluster": "cluster",
}


def further_numbers(page: FeaturePage) -> list[tuple[str, str]]:
    """Names and numbers; what was not measured is left out."""
    feature = page.feature
    numbers: list[tuple[str, Any, Callable[..., str]]] = []
    numbers += [(words, getattr(feature, name), whole) for name, words in _COUNTS.items()]
    numbers += [("on special tokens", feature.special_share, percent)]
    numbers += [(words, getattr(feature, name), decimal) for name, words in _DECIMALS.items()]
    sources = page.dictionary.hook_point.split(", ")
    for place, norm in enumerate(page.detail.sources):
        numbers.append((f"decoder norm in {sources[place] if place < len(sources) else place}", norm, decimal))
    shown = [(words, written(value)) for words, value, written in numbers if value is not None]
    if feature.map_x is not None and feature.map_y is not None:
        shown.append(("place on the map", f"{decimal(feature.map_x, 3)}, {decimal(feature.map_y, 3)}"))
    return shown
