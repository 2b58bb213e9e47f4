"""Dictionaries on the Hugging Face hub: a repository's files are listed, and one is fetched when it is asked for.

    hf:org/repo[/subfolder][@revision]

One request gives the names of all files at a revision and the commit that this is. A file is fetched into the cache that
all tools share, once; a connection that breaks off is taken up where it broke. With ``HF_HUB_OFFLINE=1`` nothing is
asked, and what was fetched before is all there is.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from saescope.formats.registry import Published
from saescope.formats.source import Source
from saescope.formats.tensor_files import require_plain_file, safe_name

PREFIX = "hf:"
GRAMMAR = "hf:org/repo[/subfolder][@revision]"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEPTH = 3  # folders below the one that is named, as on this machine
_TIMEOUT = 10.0  # seconds for an answer
_PASSING = {408, 429, 500, 502, 503, 504}  # states of a server that may be over in a moment
_NETWORK = {"httpx2", "httpx", "httpcore", "requests", "urllib3"}  # what versions of huggingface_hub speak through

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A place on the hub: a repository, a folder or file in it, and a revision."""

    repo: str
    path: str = ""
    revision: str = "main"

    @classmethod
    def parse(cls, ref: str) -> Place:
        """What ``hf:org/repo[/subfolder][@revision]`` says; ValueError where it does not fit."""
        text, sign, revision = ref.removeprefix(PREFIX).partition("@")
        parts = text.strip("/").split("/")
        repo, path = "/".join(parts[:2]), "/".join(parts[2:])
        if not _REPO.fullmatch(repo) or ".." in repo or (sign and not revision.strip("/")) or "" in parts:
            raise ValueError(f"{ref} names no place on the hub; it should look like {GRAMMAR}")
        return cls(repo, safe_name(path) if path else "", revision or "main")

    def __str__(self) -> str:
        where = f"{self.repo}/{self.path}" if self.path else self.repo
        return f"{PREFIX}{where}" + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True)
class Hub:
    """How the hub is reached; what is None is as huggingface_hub has it from its environment.

    Attributes:
        endpoint: its address; None for ``HF_ENDPOINT``, else the usual one.
        token: for private repositories; None for ``HF_TOKEN`` or the one of ``hf auth login``.
        cache: folder of files fetched before.
        waits: seconds between attempts while the hub's server is in trouble.
    """

    endpoint: str | None = None
    token: str | None = None
    cache: str | Path | None = None
    waits: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def api(self) -> Any:
        """huggingface_hub's client."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self._endpoint, token=self.token, library_name="saescope")

    def listing(self, place: Place) -> tuple[str, tuple[str, ...]]:
        """The commit of a revision and the names of all files in it; offline, of those that were fetched before.

        Raises:
            FileNotFoundError: no such repository or revision; offline, nothing of it was fetched before.
            PermissionError: it is private or gated, and the token does not open it.
            ConnectionError: the hub can not be reached, or is in trouble.
        """
        if self.offline:
            return self._cached(place)
        with self.in_words(place):
            revision = None if place.revision == "main" else place.revision
            found = self.tried(lambda: self.api.model_info(place.repo, revision=revision, timeout=_TIMEOUT))
        return str(found.sha), tuple(sorted(str(each.rfilename) for each in found.siblings or ()))

    def fetch(self, place: Place, commit: str) -> Path:
        """A file on this machine, fetched if it was not before. Raises as :meth:`listing`."""
        from huggingface_hub import hf_hub_download

        where: dict[str, Any] = {
            "repo_id": place.repo, "filename": place.path, "cache_dir": self.cache, "endpoint": self._endpoint,
            "token": self.token, "library_name": "saescope", "etag_timeout": _TIMEOUT,
        }  # fmt: skip
        with self.in_words(place):
            # by the name of the revision, so that it is found again offline by this name
            found = Path(self.tried(lambda: hf_hub_download(**where, revision=place.revision)))
            if commit not in found.parts:  # the branch has moved on since files were listed
                found = Path(self.tried(lambda: hf_hub_download(**where, revision=commit)))
        return require_plain_file(found)

    @property
    def offline(self) -> bool:
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    @property
    def _endpoint(self) -> str | None:
        return self.endpoint or os.environ.get("HF_ENDPOINT") or None

    def _snapshot(self, place: Place) -> Path | None:
        """The cache's folder of a revision: ``models--org--repo/snapshots/COMMIT``, the commit standing in ``refs``."""
        from huggingface_hub import constants

        home = Path(self.cache or constants.HF_HUB_CACHE).expanduser() / "--".join(["models", *place.repo.split("/")])
        try:
            commit = (home / "refs" / safe_name(place.revision)).read_text().strip()
        except OSError:
            commit = place.revision
        found = home / "snapshots" / commit
        return found if _COMMIT.fullmatch(commit) and found.is_dir() else None

    def _cached(self, place: Place) -> tuple[str, tuple[str, ...]]:
        folder = self._snapshot(place)
        if folder is None:
            raise FileNotFoundError(
                f"HF_HUB_OFFLINE is set, and nothing of {place.repo} at {place.revision} was fetched before; fetch it once "
                "without"
            )
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return folder.name, tuple(sorted(names))

    def tried(self, ask: Callable[[], T]) -> T:
        """What a question gives, asked again while the hub's server is in trouble."""
        for wait in self.waits:
            try:
                return ask()
            except Exception as error:
                if not _may_pass(error):
                    raise
            time.sleep(wait)
        return ask()

    @contextmanager
    def in_words(self, place: Place) -> Iterator[None]:
        """What huggingface_hub raises within comes out in words, as OSError or ValueError."""
        try:
            yield
        except Exception as error:
            said = self._said(error, place)
            if said is None:
                raise
            raise said from error

    def _said(self, error: BaseException, place: Place) -> OSError | ValueError | None:
        """The error to raise in place of huggingface_hub's; None to let it pass."""
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError):
            cause = error.__cause__
            if cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled):
                return self._said(cause, place) or FileNotFoundError(f"{place} can not be fetched: {error}")
            return FileNotFoundError(f"HF_HUB_OFFLINE is set, and {place} was not fetched before")
        if isinstance(error, errors.GatedRepoError):
            return PermissionError(
                f"{place.repo} is gated: accept its conditions on its page, and name a token of that account ({_TOKEN})"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            sent = "the token that was sent does not open it" if self._has_token() else "no token was sent"
            return FileNotFoundError(f"the hub has no repository {place.repo}, or it is private: {sent} ({_TOKEN})")
        if isinstance(error, errors.RevisionNotFoundError):
            return FileNotFoundError(
                f"{place.repo} has no revision {place.revision}; name a branch, a tag or a whole commit"
            )
        if isinstance(error, errors.EntryNotFoundError):
            return FileNotFoundError(f"{place.repo} has no file {place.path} at {place.revision}")
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            if status in (401, 403):
                return PermissionError(
                    f"the hub refuses {place.repo} (error {status}): the token is not valid, or not allowed this ({_TOKEN})"
                )
            return ConnectionError(f"the hub answers for {place.repo} with error {status}{_again(status)}")
        if type(error) is RuntimeError:  # of an upload
            said = self._said(error.__cause__, place) if error.__cause__ else None
            return said or OSError(str(error))
        if isinstance(error, json.JSONDecodeError):
            return ValueError(f"what answers at {self.api.endpoint} is no hub; see HF_ENDPOINT")
        if _is_network(error):
            kept = self._snapshot(place) is not None
            more = "; some of it was fetched before, and HF_HUB_OFFLINE=1 opens that" if kept else ""
            return ConnectionError(f"the hub at {self.api.endpoint} can not be reached for {place.repo}: {error}{more}")
        return None

    def _has_token(self) -> bool:
        from huggingface_hub import get_token

        return bool(self.token or get_token())


_TOKEN = "HF_TOKEN, or hf auth login"


def _again(status: int) -> str:
    return ", again and again; try later" if status in _PASSING else ""


def _is_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK or isinstance(error, ConnectionError | TimeoutError)


def _may_pass(error: Exception) -> bool:
    """Whether the next attempt may go better. Where nothing listens it will not: that fails at once."""
    response = getattr(error, "response", None)
    if response is not None:
        return bool(response.status_code in _PASSING)
    return _is_network(error) and "Connect" not in type(error).__name__ and not isinstance(error, ConnectionError)


@dataclass(frozen=True, kw_only=True)
class HubSource(Source):
    """Files of a folder of a repository.

    Attributes:
        place: as it was named; ``folder`` is the folder in it, ``commit`` the commit that the revision is.
        published: what is known of it beside its files; readers get it as overrides that the user left out.
        failures: files that could not be fetched. Formats that look for their own files pass over them.
    """

    hub: Hub
    place: Place
    commit: str
    folder: str
    in_repo: tuple[str, ...]
    label: str
    only: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    published: Published | None = None
    lenient: bool = False
    shapes_only: bool = False
    failures: list[OSError] = field(default_factory=list)

    @classmethod
    def of(cls, ref: str | Place, *, hub: Hub | None = None, **more: Any) -> HubSource:
        """What lies in a place of the hub: a folder, or one file and what lies beside it.

        Raises:
            FileNotFoundError: no such repository, revision, folder or file; those like it are listed.
            OSError: as :meth:`Hub.listing`.
        """
        hub = hub or Hub()
        place = ref if isinstance(ref, Place) else Place.parse(ref)
        commit, names = hub.listing(place)
        for name in names:
            safe_name(name)
        path, only = place.path, ""
        if path in names:
            path, _, only = path.rpartition("/")
        elif path and not any(name.startswith(f"{path}/") for name in names):
            if f"{path}.safetensors" not in names:  # Gemma Scope names files without their ending
                raise FileNotFoundError(_no_such_folder(place, names, offline=hub.offline))
            path, _, only = f"{path}.safetensors".rpartition("/")
        label = f"{place.repo}/{path}" if path else place.repo
        return cls(hub=hub, place=place, commit=commit, folder=path, in_repo=names, label=label, only=only, **more)

    @cached_property
    def names(self) -> tuple[str, ...]:
        inside = f"{self.folder}/" if self.folder else ""
        found = (name[len(inside) :] for name in self.in_repo if name.startswith(inside))
        return tuple(name for name in found if name.count("/") < _DEPTH)

    def path(self, name: str) -> Path:
        full = f"{self.folder}/{safe_name(name)}" if self.folder else safe_name(name)
        if full not in self.in_repo:
            raise FileNotFoundError(f"{self.label} has no file {name}")
        try:
            return self.hub.fetch(Place(self.place.repo, full, self.place.revision), self.commit)
        except OSError as error:
            self.failures.append(error)
            raise

    def override(self, name: str, default: Any = None) -> Any:
        facts = self.published.facts if self.published else {}
        return self.overrides.get(name, facts.get(name, default))

    def completed(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """A dictionary's metadata, with what is known of it beside its files."""
        return self.published.completed(metadata) if self.published else dict(metadata)


def _no_such_folder(place: Place, names: tuple[str, ...], *, offline: bool) -> str:
    """In words: how far the path is right, and what is there."""
    parts = place.path.split("/")
    good = max(
        n for n in range(len(parts)) if n == 0 or any(name.startswith("/".join(parts[:n]) + "/") for name in names)
    )
    inside = "".join(part + "/" for part in parts[:good])
    below = {name[len(inside) :].partition("/") for name in names if name.startswith(inside)}
    there = sorted({first for first, slash, _ in below if slash}, key=_natural) or sorted(f for f, _, _ in below)
    alike = difflib.get_close_matches(parts[good], there, n=3, cutoff=0.5)
    near = [each for each in there if each in alike]
    listed = ", ".join(near or there[:8]) + ("" if near or len(there) <= 8 else f" and {len(there) - 8} more")
    where = f"{place.repo}/{inside}".rstrip("/")
    known = "was not fetched before (HF_HUB_OFFLINE is set)" if offline else "is not there"
    return f"{parts[good]} {known}; {where} at {place.revision} has {listed or 'no files'}"


def _natural(text: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
