"""Bring a dictionary to the hub, with a card that says what it is.

Its files and the card are written on this machine first; only when all of them stand does anything leave it, and then in
one commit: a repository has the whole dictionary or nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from saescope.dictionaries import Dictionary
from saescope.formats.dictionaries.own import SAESCOPE
from saescope.formats.hub import Hub, Place
from saescope.formats.model_card import model_card

_CONFIG, _CARD = "cfg.json", "README.md"


def push(
    dictionary: Dictionary,
    target: str | Place,
    *,
    metadata: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    private: bool = False,
    overwrite: bool = False,
    hub: Hub | None = None,
) -> str:
    """Write a dictionary in SAELens' layout with a model card, and commit both to a repository of the hub.

    The repository is made if it is not there. In a folder of a repository the card lies beside the dictionary, and at the
    top as well where the repository has none.

    Args:
        target: ``hf:org/repo[/subfolder][@branch]``.
        metadata: what is known of model and hook point; None for what the dictionary knows.
        evaluation: numbers for the card, as in an ``eval.json``.
        private: a repository that is made now is private; one that is there has to be.
        overwrite: replace a dictionary that lies there; the hub keeps the one before in its history.

    Returns:
        Address of the commit.

    Raises:
        ValueError: the place names none, or the repository is public where ``private`` is asked for.
        FileExistsError: a dictionary lies there, and ``overwrite`` is not set.
        OSError: the hub can not be reached, or refuses; nothing was committed.
    """
    hub, place = hub or Hub(), target if isinstance(target, Place) else Place.parse(target)
    metadata = dict(dictionary.metadata if metadata is None else metadata)
    if hub.offline:
        raise ConnectionError("HF_HUB_OFFLINE is set: nothing can be pushed")
    with TemporaryDirectory(prefix="saescope-push-") as temporary:
        folder = Path(temporary) / "dictionary"
        _write(dictionary, place, folder, metadata, evaluation)
        return _commit(folder, place, hub, private=private, overwrite=overwrite)


def _write(
    dictionary: Dictionary,
    place: Place,
    folder: Path,
    metadata: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> None:
    assert SAESCOPE.write is not None
    folder.mkdir()
    SAESCOPE.write(dictionary, folder, metadata)
    named = json.loads((folder / _CONFIG).read_text())["architecture"]
    card = model_card(
        dictionary, place, metadata=metadata, evaluation=evaluation, saelens_opens_it=not named.startswith("saescope/")
    )
    (folder / _CARD).write_text(card, encoding="utf-8")


def _commit(folder: Path, place: Place, hub: Hub, *, private: bool, overwrite: bool) -> str:
    from huggingface_hub import CommitOperationAdd

    api = hub.api
    inside = f"{place.path}/" if place.path else ""
    with hub.in_words(place):
        api.create_repo(place.repo, private=private, exist_ok=True)
        if private and not hub.tried(lambda: api.model_info(place.repo, timeout=10.0)).private:
            raise ValueError(
                f"{place.repo} is there and public; make it private on its page, or push without --private (private=False)"
            )
    _, names = hub.listing(place)
    if f"{inside}{_CONFIG}" in names and not overwrite:
        raise FileExistsError(
            f"{place} holds a dictionary; name another folder of the repository, or pass --overwrite (overwrite=True)"
        )
    files = {f"{inside}{path.name}": path for path in sorted(folder.iterdir())}
    if _CARD not in names:
        files[_CARD] = folder / _CARD
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
    with hub.in_words(replace(place, path="")):
        done = api.create_commit(
            place.repo,
            added,
            commit_message=f"Dictionary {place.path or place.repo.partition('/')[2]}",
            revision=place.revision,
        )
    return str(done.commit_url)
