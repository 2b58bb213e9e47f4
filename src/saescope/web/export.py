"""Pages of an analysis as files: a folder of them, or one file for a handful of features. They open from a disk, without a
server, and ask the network for nothing.

They are the server's own pages, made from the same templates with other addresses. What the server would answer later (the
rows of the list, for sorting and searching) lies beside them as data. An export appears when it is whole.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import chain, islice
from pathlib import Path
from typing import Any

from saescope import __version__
from saescope.store import AnalysisRecord, DictionaryRecord, FeatureMarks, FeaturePage, Store
from saescope.store.words import searchable
from saescope.web.bundle import app_script
from saescope.web.feature import neighbours_of, render_feature
from saescope.web.features import Listed, Row, list_page, row_as_json
from saescope.web.one_file import replace_file
from saescope.web.site import Site, island
from saescope.web.whole_folder import MARKER, WholeFolder

MOST_IN_ONE_FILE = 60
MOST_BYTES_IN_ONE_FILE = 5_000_000
ROWS_DRAWN = 500
"""Rows of the list that are there without scripts; with them all are."""

_TOGETHER = 128  # pages in memory at once, whose neighbours' labels are asked for in one question
_READ_ALL = 0.25  # share of the features from which on it is quicker to read all in order
_NO_MARKS = FeatureMarks()
_GENERATOR = f"saescope {__version__}, export"
_BY_SCRIPTS = "window.SAESCOPE_ROWS = "


class FileLinks:
    """Addresses from one file of an export to others.

    Args:
        to_start: the folder of the start page as seen from the page that has these links: "" or "../".
        indices: features that have a page; None for all that are asked for.
    """

    is_live = False
    policy = (
        "default-src 'none'; script-src 'self' file:; style-src-elem 'self' file:; style-src-attr 'unsafe-inline'; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'self' file:"
    )
    """What a browser may do with the page: run and draw with the files beside it, and no more."""
    generator = _GENERATOR

    def __init__(self, to_start: str = "", indices: Collection[int] | None = None) -> None:
        self._to_start, self._indices = to_start, indices
        self.assets: set[str] = set()
        """The files of ``static/`` that pages have asked for."""

    def home(self) -> str:
        return f"{self._to_start}index.html"

    def features(self, name: str, **query: Any) -> str:
        return f"{self._to_start}index.html"

    def feature(self, name: str, index: int, **query: Any) -> str | None:
        """The address of a feature's page; None where it has none."""
        if self._indices is not None and index not in self._indices:
            return None
        return f"{index}.html" if self._to_start else f"f/{index}.html"

    def asset(self, name: str) -> str:
        self.assets.add(name)
        return self._to_start + _flat(name)


class _OneFileLinks(FileLinks):
    """Addresses inside of a page that is all there is."""

    def __init__(self, policy: str) -> None:
        super().__init__()
        self.policy = policy

    def home(self) -> str:
        return "#main"

    def features(self, name: str, **query: Any) -> str:
        return "#main"

    def feature(self, name: str, index: int, **query: Any) -> str:
        return f"#feature-{index}"

    def asset(self, name: str) -> str:
        return f"inline:{name}"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    path: Path
    """The page to open."""
    num_features: int
    num_bytes: int


def export_folder(
    store: Store,
    folder: Path,
    *,
    name: str | None = None,
    indices: Sequence[int] | None = None,
    analysis: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Exported:
    """Write a start page with the list of features, and a page for each.

    Args:
        folder: where; it must not be there yet, unless `overwrite` and it is an earlier export.
        indices: the features; None for all that were analysed.
        progress: told how many pages are written.

    Raises:
        ValueError: the store does not hold what is asked for.
        FileExistsError: there is something at `folder` that may not be replaced.
    """
    chosen = _choose(store, name, analysis, indices)
    with WholeFolder(folder, overwrite=overwrite, is_ours=_is_name_of_ours) as place:
        on_pages, on_start = FileLinks("../", frozenset(chosen.indices)), FileLinks()
        site = Site(store=store, links=on_pages)  # type: ignore[arg-type]
        beside = {index: (before, after) for before, index, after in _threes(chosen.indices)}
        rows: list[dict[str, Any]] = []
        drawn: list[Row] = []
        for page, row, labels in _pages(store, chosen):
            previous, following = beside[page.feature.index]
            html = render_feature(site, page, labels, previous=previous, following=following)
            place.write(f"f/{page.feature.index}.html", html)
            rows.append(_row_as_data(row, page))
            drawn.append(row)
            progress(len(rows))
        start = list_page(
            Site(store=store, links=on_start),  # type: ignore[arg-type]
            chosen.dictionary,
            chosen.analysis,
            _first_drawn(drawn),
        )
        place.write("index.html", start)
        place.write("rows.js", f"{_BY_SCRIPTS}{_as_script(rows)};\n")
        for asset in sorted(on_pages.assets | on_start.assets - {"rows.js"}):
            place.write(_flat(asset), app_script() if asset == "app.js" else _static(asset))
        about = {"saescope_export": 1, "version": __version__, "dictionary": chosen.dictionary.name,
                 "analysis": chosen.analysis.name, "num_features": len(rows)}  # fmt: skip
        place.write(MARKER, json.dumps(about, indent=1) + "\n")
    return Exported(path=folder / "index.html", num_features=len(rows), num_bytes=place.num_bytes)


def export_file(
    store: Store,
    path: Path,
    *,
    name: str | None = None,
    indices: Sequence[int] | None = None,
    analysis: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Exported:
    """Write one page that holds the list and the cards of some features, with all that it needs.

    Args and errors are those of `export_folder`; and `ValueError` where there are too many features for one page.
    """
    if path.is_dir() or (path.exists() and not (overwrite and _is_file_of_ours(path))):
        raise FileExistsError(_in_the_way(path, overwrite))
    chosen = _choose(store, name, analysis, indices)
    if len(chosen.indices) > MOST_IN_ONE_FILE:
        raise ValueError(
            f"{len(chosen.indices):,} features are too many for one file, which can have {MOST_IN_ONE_FILE}; "
            "choose fewer with --features or --limit, or give a folder as --out"
        )
    pages, rows = [], []
    for page, row, _ in _pages(store, chosen):
        pages.append(page)
        rows.append(row)
        progress(len(pages))
    data = [_row_as_data(row, page) for row, page in zip(rows, pages, strict=True)]
    script = f'{_BY_SCRIPTS}JSON.parse(document.getElementById("rows").textContent);\n{app_script()}'
    style = "".join(_static(asset) for asset in ("look.css", "app/app.css", "app/features.css"))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src-elem {_hash(style)}; "
        "style-src-attr 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    added = {
        "pages": pages,
        "linked": frozenset(chosen.indices),
        "labels": {page.feature.index: page.feature.label.text for page in pages if page.feature.label},
        "rows_island": island("rows", data),
    }
    site = _OneFileSite(store=store, links=_OneFileLinks(policy), added=added)  # type: ignore[arg-type]
    html = _inlined(list_page(site, chosen.dictionary, chosen.analysis, _first_drawn(rows)), style, script)
    size = len(html.encode())
    if size > MOST_BYTES_IN_ONE_FILE:
        raise ValueError(
            f"these features make a page of {size / 1e6:,.1f} MB, and one file can have "
            f"{MOST_BYTES_IN_ONE_FILE / 1e6:,.1f} MB, which open in a second or two; choose fewer, or give a folder as --out"
        )
    replace_file(path, html)
    return Exported(path=path, num_features=len(pages), num_bytes=size)


@dataclass(kw_only=True)
class _OneFileSite(Site):
    """The list of features with their cards below it."""

    added: dict[str, Any] = field(default_factory=dict)

    def render(self, template: str, **values: Any) -> str:
        assert template == "features.html"
        return super().render("one_file.html", **values, **self.added)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What is exported."""

    dictionary: DictionaryRecord
    analysis: AnalysisRecord
    indices: tuple[int, ...]
    """In order, none twice."""
    num_analysed: int


def _choose(store: Store, name: str | None, analysis: str | None, indices: Iterable[int] | None) -> _Chosen:
    dictionary = store.dictionary(name)
    looked_at = store.analysis(dictionary.name, analysis)
    analysed = store.order(dictionary.name, analysis=looked_at.name, sort="index", descending=False)
    wanted = tuple(analysed) if indices is None else tuple(sorted(set(indices)))
    missing = sorted(set(wanted) - set(analysed))
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else "")
        raise ValueError(
            f"analysis {looked_at.name!r} of {dictionary.name!r} has no feature {shown}; it has {len(analysed):,} "
            f"of its {dictionary.d_sae:,} features"
        )
    if not wanted:
        raise ValueError("no feature is chosen, so that there is nothing to export")
    return _Chosen(dictionary=dictionary, analysis=looked_at, indices=wanted, num_analysed=len(analysed))


def _pages(store: Store, chosen: _Chosen) -> Iterator[tuple[FeaturePage, Row, dict[int, str]]]:
    """The pages in order, each with its row of the list and the labels of its neighbours."""
    named = {"name": chosen.dictionary.name, "analysis": chosen.analysis.name}
    wanted = frozenset(chosen.indices)
    read_all = len(wanted) >= _READ_ALL * chosen.num_analysed
    found = store.pages(**named, indices=None if read_all else chosen.indices)
    pages = (page for page in found if page.feature.index in wanted)
    while together := list(islice(pages, _TOGETHER)):
        labels = store.labels(chosen.dictionary.name, set(chain.from_iterable(map(neighbours_of, together))),
                              analysis=chosen.analysis.name)  # fmt: skip
        marks = store.marks(chosen.dictionary.name, [page.feature.index for page in together])
        for page in together:
            index = page.feature.index
            yield page, Row(record=page.feature, marks=marks.get(index, _NO_MARKS)), labels


def _row_as_data(row: Row, page: FeaturePage) -> dict[str, Any]:
    """A row as the scripts of the list want it; what it has not is left out."""
    given = {
        key: value for key, value in row_as_json(row).items() if not (value is None or value is False or value == [])
    }
    return {**given, "words": words_of(page)}


def words_of(page: FeaturePage) -> str:
    """What a search looks through: as in the store, the words of the label, of explanations, and of tokens on which the top
    examples fire."""
    label = [] if page.feature.label is None else [page.feature.label.text]
    fired = (
        example.window.text[slice(*example.window.token_ranges[position])]
        for example in page.examples
        for position, value in enumerate(example.activations)
        if value
    )
    return searchable(chain(label, (explanation.text for explanation in page.explanations), fired))


def _first_drawn(rows: list[Row]) -> Listed:
    """The start of the list as it is sorted when nobody has said how."""
    ordered = sorted(rows, key=lambda row: (-row.record.density, row.record.index))
    return Listed(rows=tuple(ordered[:ROWS_DRAWN]), total=len(rows))


def _threes(indices: Sequence[int]) -> Iterator[tuple[int | None, int, int | None]]:
    """Every feature with the one before and the one after it."""
    return zip((None, *indices[:-1]), indices, (*indices[1:], None), strict=True)


def _flat(asset: str) -> str:
    return asset.rpartition("/")[2]


def _static(asset: str) -> str:
    return (files("saescope.web") / "static" / asset).read_text(encoding="utf-8")


def _as_script(data: Any) -> str:
    return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_ICON = re.compile(r'(?<=<link rel="icon" href=")inline:[^"]+(?=">)')
_STYLES = re.compile(r'<link rel="stylesheet" href="inline:[^"]+">\s*')
_SCRIPTS = re.compile(r'<script defer src="inline:[^"]+"></script>\s*')


def _inlined(html: str, style: str, script: str) -> str:
    """The page with its files in it. Scripts go to the end: there is no waiting for the page inside of one."""
    icon = base64.b64encode(_static("app/icon.svg").encode()).decode()
    html = _ICON.sub(f"data:image/svg+xml;base64,{icon}", html, count=1)
    html = _SCRIPTS.sub("", _STYLES.sub("", html))
    head, _, rest = html.partition("</head>")
    body, _, end = rest.rpartition("</body>")
    return f"{head}<style>{style}</style>\n</head>{body}<script>{script}</script>\n</body>{end}"


def _is_name_of_ours(name: str) -> bool:
    return bool(re.fullmatch(r"f/\d+\.html|index\.html|[a-z]+\.(css|js|svg)", name)) or name == MARKER


def _is_file_of_ours(path: Path) -> bool:
    with open(path, "rb") as file:
        return b'<meta name="generator" content="saescope ' in file.read(4096)


def _in_the_way(path: Path, overwrite: bool) -> str:
    if path.is_dir():
        return f"{path} is a folder; name a file, or leave the .html away to fill a folder"
    if overwrite:
        return f"{path} is there and no earlier export, so that it is not replaced; move it away or name another file"
    return f"{path} is there already; --overwrite replaces an earlier export"
