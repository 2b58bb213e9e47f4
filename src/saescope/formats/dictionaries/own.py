"""saescope's own files: SAELens' layout, with the architecture's own name and settings under ``metadata.saescope``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saescope.dictionaries import Dictionary, save_dictionary
from saescope.dictionaries.saving import CONFIG_FILE, WEIGHTS_FILE, settings_in
from saescope.formats.foreign import Foreign
from saescope.formats.format import Format
from saescope.formats.source import Source
from saescope.formats.tensor_files import read_json


def is_our_own(source: Source) -> bool:
    """Whether saescope wrote it."""
    if not source.has(CONFIG_FILE, WEIGHTS_FILE) or source.only not in ("", WEIGHTS_FILE):
        return False
    try:
        metadata = read_json(source.path(CONFIG_FILE)).get("metadata")
    except (OSError, ValueError):
        return False
    own = metadata.get("saescope") if isinstance(metadata, dict) else None
    return isinstance(own, dict) and isinstance(own.get("architecture"), str)


def _read(source: Source) -> Foreign:
    config = read_json(source.path(CONFIG_FILE))
    cls, settings = settings_in(config, source.label)
    tensors = source.tensors(WEIGHTS_FILE)
    return Foreign(
        format="saescope",
        architecture=cls.architecture,
        settings={name: value for name, value in settings.items() if name not in ("d_in", "d_sae")},
        tensors={name: tensors.take(name) for name in tensors},
        sizes=(settings["d_in"], settings["d_sae"], settings.get("d_out", settings["d_in"])),
        normalization=config.get("normalize_activations", "none"),
        metadata=found if isinstance(found := config.get("metadata"), dict) else {},
    )


def _write(dictionary: Dictionary, folder: Path, metadata: Mapping[str, Any]) -> None:
    own = metadata.get("saescope")
    others = {key: value for key, value in metadata.items() if key != "saescope"}
    save_dictionary(
        dictionary, folder, metadata=others, saescope=own if isinstance(own, dict) else None, overwrite=True
    )


SAESCOPE = Format(
    name="saescope",
    title="saescope",
    layout=f"{CONFIG_FILE} with metadata.saescope, and {WEIGHTS_FILE}",
    recognise=is_our_own,
    read=_read,
    reads="every architecture",
    write=_write,
    writes="every architecture, by SAELens' name where it computes the same",
)
