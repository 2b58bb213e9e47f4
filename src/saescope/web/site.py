"""What every page is made with: the store, the network if there is one, the templates, and addresses of pages.

`Links` knows where pages are, so that the same templates serve a running server and files on a disk.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from saescope import __version__
from saescope.store import DictionaryRecord, Store
from saescope.web.guard import Limits
from saescope.web.live import Live
from saescope.web.one_file import environment


class Links:
    """Addresses on a running server. Names may hold anything, slashes included."""

    is_live = True

    def home(self) -> str:
        return "/"

    def features(self, name: str, **query: Any) -> str:
        return f"/d/{_quoted(name)}{_query(query)}"

    def feature(self, name: str, index: int, **query: Any) -> str:
        return f"/d/{_quoted(name)}/f/{index}{_query(query)}"

    def page(self, name: str, kind: str, **query: Any) -> str:
        """Another page of a dictionary: "map", "try", "steer", "training"."""
        return f"/d/{_quoted(name)}/{kind}{_query(query)}"

    def compare(self, **query: Any) -> str:
        return f"/compare{_query(query)}"

    def runs(self, **query: Any) -> str:
        return f"/runs{_query(query)}"

    def api(self, path: str) -> str:
        """The JSON twin of a page's path."""
        return f"/api{path}"

    def asset(self, name: str) -> str:
        """A file of ``static/``, under an address that changes with its content."""
        return f"/static/{_fingerprint()}/{name}"


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _query(values: dict[str, Any]) -> str:
    given = {key: value for key, value in values.items() if value is not None}
    return f"?{urlencode(given, doseq=True)}" if given else ""


@cache
def _fingerprint() -> str:
    """Of all files under ``static/``, so that a browser keeps them until one of them changes."""
    digest = hashlib.sha256()
    folder = files("saescope.web") / "static"
    with_names = sorted((str(path.name), path) for path in _all_files(folder))
    for name, path in with_names:
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _all_files(folder: Any) -> list[Any]:
    found: list[Any] = []
    for entry in folder.iterdir():
        found += _all_files(entry) if entry.is_dir() else [entry]
    return found


def island(identity: str, data: Any) -> Markup:
    """Data for the page's scripts, inside the page: a browser runs nothing of it."""
    return Markup('<script type="application/json" id="{}">{}</script>').format(
        identity, Markup(htmlsafe_json_dumps(data, dumps=_dumps))
    )


def _dumps(data: Any, **_: Any) -> str:
    return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


@cache
def templates() -> Environment:
    """The templates, with all that the report's have and what the pages add."""
    made = environment()
    made.globals.update(
        island=island,
        version=__version__,
    )
    return made


@dataclass(kw_only=True)
class Site:
    """Everything that a page needs.

    Attributes:
        live: the networks, or None where the server has none.
        run_folders: where training runs are looked for.
        embed: gives vectors of texts, for the search by meaning; `embedder` is its name in the store.
    """

    store: Store
    live: Live | None = None
    run_folders: tuple[Path, ...] = ()
    limits: Limits = field(default_factory=Limits)
    embedder: str | None = None
    embed: Any = None
    links: Links = field(default_factory=Links)

    def render(self, template: str, *, dictionary: DictionaryRecord | None = None, **values: Any) -> str:
        """A page from ``templates/app``. `dictionary` is the one that the page's navigation belongs to.

        Every template sees `links`, `dictionary`, `live_absent` (a sentence, or None where the model can be asked), `embed`
        (the page stands in a frame) and `analysis_name` (the analysis that links keep, None for the newest).
        """
        values = {"embed": False, "analysis_name": None, **values}
        absent = None if dictionary is None else self.absent(dictionary.name)
        return (
            templates()
            .get_template(f"app/{template}")
            .render(links=self.links, dictionary=dictionary, live_absent=absent, **values)
        )

    def absent(self, name: str) -> str | None:
        """Why texts can not be tried on a dictionary; None where they can."""
        if self.live is None:
            return (
                "This server was started without models, so that texts can not be tried here; "
                "`saescope serve --model` gives it one."
            )
        return self.live.absent(name)


def error_page(status: int, message: str) -> str:
    """A page about what went wrong."""
    return (
        templates()
        .get_template("app/error.html")
        .render(
            links=Links(),
            dictionary=None,
            embed=False,
            analysis_name=None,
            live_absent=None,
            status=status,
            message=message,
        )
    )
