"""The README of a dictionary on the hub: what it is, where it sits, how it is opened, what was measured.

Everything in it comes from the dictionary, its metadata and its evaluation; what is not known is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from saescope.dictionaries import Dictionary
from saescope.formats.hub import Place

_ARTICLE = {"A", "E", "I", "O", "U"}
_ROWS = {
    "model_name": "model", "hook_name": "hook point", "hf_hook_name": "module of the Hugging Face model",
    "hook_name_out": "hook point that is rebuilt", "context_size": "tokens of a training context",
    "prepend_bos": "contexts begin with the special token", "dataset_path": "text it was trained on",
    "neuronpedia_id": "Neuronpedia",
}  # fmt: skip
_NUMBERS = {
    "l0": "features that fire at a token (L0)", "explained_variance": "explained variance", "mse": "mean squared error",
    "cosine": "cosine with the activation", "l2_ratio": "norm of the reconstruction, as a share",
    "ce_loss_recovered": "loss recovered (against zero ablation)", "kl_recovered": "KL recovered (against zero ablation)",
    "dead_share": "features that never fired", "dense_share": "features that fire at more than 10 % of tokens",
    "num_tokens": "tokens measured on",
}  # fmt: skip


def model_card(
    dictionary: Dictionary,
    place: Place,
    *,
    metadata: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    saelens_opens_it: bool = True,
) -> str:
    """The text of a README.md.

    Args:
        place: where it will lie.
        evaluation: numbers by name, as in an ``eval.json``; names that are not known here are left out.
        saelens_opens_it: whether SAELens has this architecture.
    """
    parts = [
        _front_matter(metadata, saelens_opens_it),
        f"# {_line(place.path.rpartition('/')[2] or place.repo.partition('/')[2])}\n\n{_sentence(dictionary, metadata)}",
        _table(_facts(dictionary, metadata)),
        "## Open it\n\n" + _how_to_open(place, saelens_opens_it),
    ]
    if measured := _measured(evaluation or {}):
        parts.append("## Measured\n\n" + measured)
    return "\n\n".join(parts) + "\n"


def _front_matter(metadata: Mapping[str, Any], saelens_opens_it: bool) -> str:
    model = str(metadata.get("model_name") or "")
    lines = {
        "library_name": "saelens" if saelens_opens_it else "saescope",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "saescope"],
        **({"base_model": model} if re.fullmatch(r"[\w.-]+/[\w.-]+", model) else {}),
    }
    return "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()) + "---"


def _sentence(dictionary: Dictionary, metadata: Mapping[str, Any]) -> str:
    name = dictionary.architecture.replace("_", " ")
    kind = "dictionary" if "coder" in name else "sparse autoencoder"
    article = "An" if name[0].upper() in _ARTICLE else "A"
    of = "".join(
        f" {word} {_line(metadata[key])}"
        for word, key in (("for", "hook_name"), ("of", "model_name"))
        if metadata.get(key)
    )
    width = f"width {dictionary.d_in}"
    return f"{article} {name} {kind} with {dictionary.d_sae:,} features{of}, for activations of {width}."


def _facts(dictionary: Dictionary, metadata: Mapping[str, Any]) -> dict[str, str]:
    settings = {name: value for name, value in dictionary.settings().items() if name not in ("d_in", "d_sae", "seed")}
    own = metadata.get("saescope")
    run = own.get("run", {}) if isinstance(own, Mapping) else {}
    tokens = run.get("training", {}).get("num_tokens") if isinstance(run, Mapping) else None
    return {
        "architecture": dictionary.architecture,
        "width": str(dictionary.d_in),
        "features": f"{dictionary.d_sae:,}",
        "stored as": str(dictionary.W_dec.dtype).removeprefix("torch."),
        "settings": ", ".join(f"{name} = {value}" for name, value in settings.items() if value is not None),
        "normalisation of its input": dictionary.input_normalization.name,
        **{words: str(metadata[key]) for key, words in _ROWS.items() if metadata.get(key) not in (None, "")},
        **({"training tokens": f"{tokens:,}"} if isinstance(tokens, int) else {}),
    }


def _how_to_open(place: Place, saelens_opens_it: bool) -> str:
    ours = f'import saescope\n\ndictionary = saescope.load("{place}")'
    if not saelens_opens_it:
        return f"{_code(ours)}\n\nSAELens has no architecture that computes this."
    if place.path:
        revision = "" if place.revision == "main" else f"  # as it is at main, not at {place.revision}"
        theirs = f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{place.repo}", "{place.path}"){revision}'
    else:  # SAELens looks for a folder inside a repository
        revision = "" if place.revision == "main" else f', revision="{place.revision}"'
        theirs = (
            "from huggingface_hub import snapshot_download\nfrom sae_lens import SAE\n\n"
            f'sae = SAE.load_from_disk(snapshot_download("{place.repo}"{revision}))'
        )
    return f"{_code(ours)}\n\nWith SAELens 6 or later:\n\n{_code(theirs)}"


def _measured(evaluation: Mapping[str, Any]) -> str:
    numbers = {words: evaluation.get(name) for name, words in _NUMBERS.items()}
    rows = {words: _number(value) for words, value in numbers.items() if _is_number(value)}
    if not rows:
        return ""
    context = evaluation.get("context")
    held_out = context.get("held_out") if isinstance(context, Mapping) else None
    text = held_out.get("name") if isinstance(held_out, Mapping) else None
    return (f"On held-out text of {_line(text)}:\n\n" if text else "") + _table(rows)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _table(rows: Mapping[str, str]) -> str:
    body = "".join(f"\n| {_line(name)} | {_line(value)} |" for name, value in rows.items() if value != "")
    return f"| | |\n|---|---|{body}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _line(text: object) -> str:
    """Text from a file as one line that is no markup."""
    return re.sub(r"([|<>`\[\]\\])", r"\\\1", " ".join(str(text).split()))
