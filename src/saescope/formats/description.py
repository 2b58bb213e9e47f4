"""What is known of a dictionary from the headers of its files, as plain data and as sentences.

No weight is read, so that a dictionary of any size is described at once. What the function is, in full::

    x' = normalise(x) (- b_dec)      centring
    f  = gate(x' @ W_enc + b_enc)    gate
    x_hat = undo(f @ W_dec + b_dec)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from saescope.dictionaries import architecture
from saescope.formats.foreign import Foreign
from saescope.formats.loading import format_named, read_foreign
from saescope.formats.source import Source

_FAMILIES = ("archetypal", "crosscoder", "skip_transcoder", "transcoder")  # endings of architectures' names
_GATES = {
    "relu": "a feature fires where its pre-activation is positive",
    "topk": "the k largest pre-activations of a token fire, where positive",
    "abs_topk": "the k pre-activations of a token that are largest in size fire, with their sign",
    "batch_topk": "a feature fires where its pre-activation exceeds one threshold for all (BatchTopK in training)",
    "matryoshka": "a feature fires where its pre-activation exceeds one threshold for all (nested widths in training)",
    "ordered": "the k largest pre-activations of a token fire, where positive (features in order of importance)",
    "jumprelu": "a feature fires where its pre-activation exceeds its own threshold",
    "gated": "a gate of its own decides where a feature fires, and another bias how strongly",
    "group_max": "the largest pre-activation of each of k equal groups fires, where positive",
    "matching_pursuit": "features are chosen one after the other, each the one that fits what is left best",
}
_NORMALIZATIONS = {
    "none": "activations are taken as the model gives them",
    "layer_norm": "each token less its mean, by its standard deviation; undone after decoding",
    "constant_norm_rescale": "each token is brought to norm sqrt(d_in); undone after decoding",
    "saescope/whitening": "activations are whitened; undone after decoding",
}
_KNOWN = {  # SAELens' names, and ours in sentences
    "model_name": "model", "hook_name": "hook point", "hook_name_out": "rebuilds", "hf_hook_name": "Hugging Face module",
    "hf_hook_name_out": "rebuilds the Hugging Face module", "hook_head_index": "head", "context_size": "context size",
    "prepend_bos": "windows open with BOS", "exclude_special_tokens": "trained without special tokens",
    "dataset_path": "data set", "neuronpedia_id": "at Neuronpedia", "training_architecture": "trained as",
    "model_from_pretrained_kwargs": "model loaded with",
}  # fmt: skip


def describe(ref: str | Path | Source, **how: Any) -> dict[str, Any]:
    """What is known of a dictionary without reading a weight; ``how`` as in :func:`saescope.formats.loading.read_foreign`.

    Raises:
        FileNotFoundError, ValueError, OSError: as there.
    """
    return description_of(read_foreign(ref, shapes_only=True, **how))


def description_of(foreign: Foreign) -> dict[str, Any]:
    """The description of what a reader found."""
    found = format_named(foreign.format)
    host, family = _parts(foreign.architecture)
    centred = _setting(foreign, "apply_b_dec_to_input")
    metadata = foreign.metadata
    own = metadata.get("saescope")
    return {
        "format": found.name,
        "title": found.title,
        "checked_against": found.checked_against or None,
        "architecture": foreign.architecture,
        "kind": family or "autoencoder",
        "d_in": foreign.d_in,
        "d_out": foreign.d_out,
        "d_sae": foreign.d_sae,
        "dtype": str(foreign.dtype).removeprefix("torch."),
        "bytes": foreign.num_bytes,
        "parameters": sum(tensor.numel() for tensor in foreign.tensors.values()),
        "tensors": {name: list(tensor.shape) for name, tensor in foreign.tensors.items()},
        "settings": {name: _plain(value) for name, value in foreign.settings.items()},
        "gate": _GATES.get(host, f"that of the architecture {host}"),
        "centring": "b_dec is subtracted from the input" if centred else "nothing is subtracted from the input",
        "normalization": foreign.normalization,
        "normalization_words": _NORMALIZATIONS.get(foreign.normalization, foreign.normalization),
        "said": list(foreign.said),
        "metadata": {name: _plain(value) for name, value in metadata.items() if name not in ("saescope", "published")},
        "published": _plain(metadata.get("published") or {}),
        "provenance": _plain(own) if isinstance(own, Mapping) else None,
    }


def description_lines(description: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The description as pairs of what it is about and words."""
    settings = {
        name: value for name, value in description["settings"].items() if name not in ("d_out", "apply_b_dec_to_input")
    }
    lines = [
        ("format", f"{description['title']} ({description['format']})"),
        (
            "architecture",
            description["architecture"] + "".join(f", {name} = {value}" for name, value in settings.items()),
        ),
        ("size", _size(description)),
        ("gate", description["gate"]),
        ("centring", description["centring"]),
        ("normalisation", description["normalization_words"]),
    ]
    lines += [("read", said) for said in description["said"]]
    metadata = description["metadata"]
    lines += [
        (words, _words(metadata[name])) for name, words in _KNOWN.items() if metadata.get(name) not in (None, "", {})
    ]
    if not any(metadata.get(name) for name in ("model_name", "hook_name", "hf_hook_name")):
        lines.append(("model", "its files do not say what it was trained on"))
    lines += [(f"published {name}", _words(value)) for name, value in published_claims(description).items()]
    provenance = description["provenance"]
    if provenance:
        lines += _provenance(provenance)
    if description["checked_against"]:
        lines.append(("reader", f"checked against {description['checked_against']}"))
    return lines


def published_claims(description: Mapping[str, Any]) -> dict[str, Any]:
    """What was published of its quality (``l0``, ``variance_explained``): in the registry, or in its own metadata."""
    metadata = description["metadata"]
    own = {name: metadata[name] for name in ("l0", "variance_explained") if metadata.get(name) is not None}
    return {**own, **description["published"]}


def _size(description: Mapping[str, Any]) -> str:
    d_in, d_out = description["d_in"], description["d_out"]
    widths = f"d_in {d_in:,}" + (f", d_out {d_out:,}" if d_out != d_in else "")
    return f"d_sae {description['d_sae']:,}, {widths}; {description['dtype']}, {_bytes(description['bytes'])}"


def _bytes(number: int) -> str:
    size = float(number)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{number} bytes" if unit == "bytes" else f"{size:.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            held = ", ".join(
                f"{key} {_words(each)}"
                for key, each in value.items()
                if not isinstance(each, Mapping | list) and each not in (None, "")
            )
            lines.append((f"saescope's {name}", held or "recorded"))
        elif name != "architecture":
            lines.append((f"saescope's {name}", _words(value)))
    return lines


def _parts(name: str) -> tuple[str, str]:
    """The architecture whose encoder it is, and what is made of it."""
    for family in _FAMILIES:
        if name == family:
            return "relu", family
        if name.endswith(f"_{family}"):
            return name.removesuffix(f"_{family}"), family
    return name, ""


def _setting(foreign: Foreign, name: str) -> Any:
    """A setting as the file has it, else the architecture's own."""
    if name in foreign.settings:
        return foreign.settings[name]
    defaults = {field.name: field.default for field in fields(architecture(foreign.architecture).Config)}
    found = defaults.get(name, MISSING)
    return None if found is MISSING else found


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
