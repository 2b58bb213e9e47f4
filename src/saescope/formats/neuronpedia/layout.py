"""Names in Neuronpedia's bulk layout: models, sources, files, addresses, identities.

    v1/config/*.jsonl                                    kinds of explanations and the models that write them
    v1/{model}/{source}/{release,model,sourceset,source}.jsonl
    v1/{model}/{source}/{features,activations,explanations}/batch-{n}.jsonl.gz

A *source* is one dictionary: the layer it reads and the set it belongs to, `6-res-mine`, perhaps with a suffix after two
underscores. What the files hold is the project's own database, table by table (its importer, read in August 2026).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import quote

SITE = "https://www.neuronpedia.org"
VERSION = "v1"
# the site shows examples of a few known creators only; this is the one that it gives to imported data
DEFAULT_CREATOR = "clkht01d40000jv08hvalcvly"
KINDS = ("features", "activations", "explanations")

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SOURCE = re.compile(r"(?P<layer>\d+)-(?P<set>[A-Za-z0-9][A-Za-z0-9._-]*?)(__(?P<suffix>[A-Za-z0-9._-]+))?")


@dataclass(frozen=True)
class Place:
    """Where a dictionary stands on the site."""

    model_id: str
    source_id: str
    source_set: str


def find_place(model_id: str, source_id: str | None, layer: int | None, source_set: str | None) -> Place:
    """Check the names of a model and a source; the source as a whole, or as layer and set. `ValueError` if malformed."""
    if not _MODEL.fullmatch(model_id):
        raise ValueError(f"{model_id!r} is no model id: use letters, digits, '-', '.' and '_', such as gpt2-small")
    if source_id is None:
        if layer is None or source_set is None:
            raise ValueError(
                "say where the dictionary belongs: give the source id, such as 6-res-mine, or its layer and its set"
            )
        source_id = f"{layer}-{source_set}"
    elif layer is not None or source_set is not None:
        raise ValueError("give either the source id, or the layer and the set that it is made of, not both")
    found = _SOURCE.fullmatch(source_id)
    if found is None:
        raise ValueError(
            f"{source_id!r} is no source id: it is the layer's number, '-', and the set's name of letters, digits, '-' "
            "and '.', such as 6-res-mine, with '__' before a suffix if there is one"
        )
    return Place(model_id, source_id, found["set"])


def neuronpedia_url(model_id: str, source_id: str, index: int | None = None) -> str:
    """The address of a feature's page on Neuronpedia, or without `index` that of the whole dictionary."""
    parts = [model_id, source_id, *([] if index is None else [str(index)])]
    return "/".join([SITE, *(quote(part, safe="") for part in parts)])


def stable_id(*parts: str) -> str:
    """25 letters and digits in the style of a cuid, the same for the same parts: writing again gives the same lines."""
    digest = hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    number, letters = int.from_bytes(digest, "big"), []
    for _ in range(24):
        number, letter = divmod(number, 36)
        letters.append("0123456789abcdefghijklmnopqrstuvwxyz"[letter])
    return "c" + "".join(letters)
