"""What a reference means: one resolver for every command.

    NAME                                a dictionary in the store
    PATH                                a folder or a file; the folder of a run is its dictionary
    hf:org/repo[/subfolder][@revision]  a place on the Hugging Face hub
    RELEASE/ID                          SAELens' names of published dictionaries; ids have slashes of their own
    MODEL/SAE-ID                        the same dictionaries by their page at Neuronpedia

They are tried in this order. What begins with ``./``, ``../``, ``/`` or ``~`` is a path and nothing else, what begins with
``hf:`` a place on the hub. Any other reference that means two different things is an error that shows both, each with a
way to say it that means one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.formats import registry
from saescope.formats.hub import PREFIX, Hub, HubSource, Place
from saescope.formats.source import LocalSource, Source

StorePaths = Callable[[], Mapping[str, str | Path]]
"""Gives names of dictionaries in a store, and where each lies (or is to be had)."""


def in_default_store() -> dict[str, str | Path]:
    """What the store of ``$SAESCOPE_STORE``, else ``features.db`` here, knows of where its dictionaries lie.

    A store that is not there, or can not be read, knows nothing: other references are not to suffer from it.
    """
    from saescope.store import Store
    from saescope.store.address import resolve_address

    try:
        address = resolve_address(None)
        if isinstance(address, Path) and not address.is_file():
            return {}
        with Store.open(address, must_exist=True) as store:
            known = {record.name: record.details.get("source") for record in store.dictionaries()}
    except (OSError, ValueError):
        return {}
    return {name: source for name, source in known.items() if isinstance(source, str) and source}


@dataclass(frozen=True)
class Meaning:
    """One thing that a reference can mean.

    Attributes:
        words: what it is.
        alone: a reference that means this and nothing else.
        target: the folder or file, or the published dictionary, or the place on the hub.
    """

    words: str
    alone: str
    target: Path | registry.Published | Place


def resolve(
    ref: str | Path,
    *,
    store_paths: StorePaths | None = in_default_store,
    overrides: Mapping[str, Any] | None = None,
    lenient: bool = False,
    shapes_only: bool = False,
    hub: Hub | None = None,
) -> Source:
    """The files that a reference means. Only a place on the hub is looked up there, and none of its files is fetched.

    Args:
        store_paths: gives the dictionaries of a store by name; None for no store.
        overrides: what the user says where a file does not.
        hub: how the hub is reached.

    Raises:
        FileNotFoundError: it means nothing; what was tried is listed, and the nearest names.
        ValueError: it means more than one thing.
        OSError: the hub can not be reached, or refuses.
    """
    said: dict[str, Any] = {"overrides": dict(overrides or {}), "lenient": lenient, "shapes_only": shapes_only}
    target = meaning(ref, store_paths=store_paths).target
    if isinstance(target, Path):
        return LocalSource.of(target, **said)
    if isinstance(target, registry.Published):
        return _of_published(target, hub, said)
    published = registry.at(target.repo, target.path) if target.revision == "main" else None
    return HubSource.of(target, hub=hub, published=published, **said)


def published_source(
    release: str,
    sae_id: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    lenient: bool = False,
    hub: Hub | None = None,
) -> HubSource:
    """The files of a published dictionary; a release that is a repository of the hub has ids that are its folders.

    Raises:
        FileNotFoundError: there is none; the nearest are listed.
        OSError: the hub can not be reached, or refuses.
    """
    said: dict[str, Any] = {"overrides": dict(overrides or {}), "lenient": lenient}
    found = registry.find(f"{release}/{sae_id}")
    if found is not None:
        return _of_published(found, hub, said)
    if registry.release(release) or release.count("/") != 1:
        near = registry.nearest(f"{release}/{sae_id}")
        raise FileNotFoundError(f"no published dictionary is {sae_id} of {release}{_like(near)}")
    place = Place.parse(f"{PREFIX}{release}/{sae_id}")
    return HubSource.of(place, hub=hub, published=registry.at(place.repo, place.path), **said)


def _of_published(published: registry.Published, hub: Hub | None, said: Mapping[str, Any]) -> HubSource:
    return HubSource.of(Place.parse(published.place), hub=hub, published=published, **said)


def meaning(ref: str | Path, *, store_paths: StorePaths | None = in_default_store) -> Meaning:
    """The one thing that a reference means; nothing is opened or asked. Raises as :func:`resolve`."""
    elsewhere = isinstance(ref, Path) or ref.startswith(PREFIX) or _only_a_path(ref)
    names = {} if store_paths is None or elsewhere else store_paths()
    found = meanings(ref, names)
    if not found:
        raise FileNotFoundError(_nothing(ref, names, with_store=store_paths is not None))
    if len(found) > 1:
        listed = "; ".join(f"{each.words} ({each.alone})" for each in found)
        raise ValueError(
            f"{ref} can mean {len(found)} things: {listed}. Write what stands in brackets for the one you mean"
        )
    return found[0]


def meanings(ref: str | Path, in_store: Mapping[str, str | Path]) -> list[Meaning]:
    """Everything that a reference can mean, in the order in which it is looked for; what comes to the same once."""
    text = str(ref)
    if isinstance(ref, str) and text.startswith(PREFIX):
        place = Place.parse(text)
        return [Meaning("a place on the hub", str(place), place)]
    path = Path(text).expanduser()
    there = Meaning(f"the {'folder' if path.is_dir() else 'file'} {path}", _as_path(text), _dictionary_in(path))
    if _only_a_path(ref):
        return [there] if path.exists() else []
    found = []
    if text in in_store:
        found.append(_stored(text, in_store[text]))
    if path.exists() and not (found and _same(found[0].target, there.target)):
        found.append(there)
    by_id, by_page = registry.find(text), registry.find_neuronpedia(text)
    if by_id is not None:
        found.append(Meaning(f"the published dictionary {by_id.id} of {by_id.release}", by_id.place, by_id))
    if by_page is not None and (by_id is None or by_id.place != by_page.place):
        found.append(Meaning(f"{by_page.ref}, by its page at Neuronpedia", by_page.place, by_page))
    return found


def _stored(name: str, source: str | Path) -> Meaning:
    """What the store says of where a dictionary of it is."""
    path = Path(source).expanduser()
    if path.exists() or isinstance(source, Path) or _only_a_path(source):
        words = f"the dictionary {name} in the store, which lies in {path}"
        return Meaning(words, _as_path(str(path)), _dictionary_in(path))
    of_source = meaning(source, store_paths=None)
    return Meaning(f"the dictionary {name} in the store, which is {of_source.words}", of_source.alone, of_source.target)


def _only_a_path(ref: str | Path) -> bool:
    return isinstance(ref, Path) or ref in (".", "..") or ref.startswith(("./", "../", "/", "~"))


def _as_path(text: str) -> str:
    return text if _only_a_path(text) else f"./{text}"


def _dictionary_in(path: Path) -> Path:
    """The path itself, or the dictionary in the folder of a run."""
    inside = path / "dictionary"
    return inside if (inside / "cfg.json").exists() and not (path / "cfg.json").exists() else path


def _same(one: object, other: object) -> bool:
    return isinstance(one, Path) and isinstance(other, Path) and _dictionary_in(one).resolve() == other.resolve()


def _nothing(ref: str | Path, in_store: Mapping[str, str | Path], *, with_store: bool) -> str:
    """What was looked for, and what there is that looks like it."""
    if isinstance(ref, Path) or _only_a_path(ref):
        return f"there is no {ref}{_like(_beside(str(ref)))}"
    if len(of_release := registry.release(ref.rstrip("/"))) > 0:
        first = of_release[0].ref
        return (
            f"{ref} is a release of {len(of_release)} dictionaries; name one, such as {first} (saescope list pretrained "
            f"{ref.rstrip('/')} lists them)"
        )
    tried = ["no folder or file", "no published dictionary of SAELens' registry", "no page of Neuronpedia"]
    if with_store:
        tried.insert(0, "no dictionary in the store")
    near = [*difflib.get_close_matches(ref, in_store, n=2, cutoff=0.6), *_beside(ref), *registry.nearest(ref)]
    hint = (
        f"; if it is a repository of the hub, write {PREFIX}{ref}" if ref.count("/") and not ref.endswith("/") else ""
    )
    return f"{ref} is nothing that is known here: {', '.join(tried)} of this name{_like(near)}{hint}"


def _beside(ref: str) -> list[str]:
    """Names in the folder where it should be."""
    path = Path(ref).expanduser()
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=2, cutoff=0.6)]


def _like(names: list[str]) -> str:
    return f"; nearest are {', '.join(dict.fromkeys(names))}" if names else ""
