"""The examples of a feature in groups, each with the rule by which its windows were chosen, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from saescope.store.records import BAND_KINDS, FeaturePage, PageExample
from saescope.web.bins import bands_of, reach
from saescope.web.example_html import example_rows
from saescope.web.numbers import percent, whole


@dataclass(frozen=True, kw_only=True)
class Group:
    """A heading, the rule, and the examples as list items of HTML."""

    identity: str
    """Unique on the page."""
    kind: str
    """"top", "quantile", "width" or "silent"."""
    title: str
    rule: tuple[str, ...]
    rows: Markup
    is_empty: bool = False


BAND_WORDS = {"quantile": "equal shares of firings", "width": "equal widths"}


def band_kinds(page: FeaturePage) -> tuple[str, ...]:
    """The kinds of bands that the page has a sample of; all it has if there is none."""
    there = tuple(kind for kind in BAND_KINDS if bands_of(page.detail, kind))
    drawn = tuple(kind for kind in there if any(getattr(e, f"{kind}_band") is not None for e in page.all_examples))
    return drawn or there


def groups_of(page: FeaturePage, *, whole_windows: bool = False, only_top: bool = False) -> tuple[Group, ...]:
    """Top, each band from the strongest down, near misses, drawn by lot; what the page has none of is left out."""
    made = _groups(page, whole_windows)
    return (next(made),) if only_top else tuple(made)


def _groups(page: FeaturePage, whole_windows: bool) -> Iterator[Group]:
    def rows(examples: Sequence[PageExample]) -> Markup:
        return example_rows(examples, page.feature.max_activation, whole_windows=whole_windows)

    top = page.examples
    rule = f"the {whole(len(top))} windows in which it peaks highest" if len(top) > 1 else "where it peaks highest"
    yield Group(identity="top", kind="top", title="Top", rule=(rule,) if top else (), rows=rows(top), is_empty=not top)
    for kind in band_kinds(page):
        for band in bands_of(page.detail, kind):
            said = []
            if band.share is not None:
                said.append(f"{percent(band.share)} of firings")
            if band.num_windows is not None:
                said.append(f"peak of {whole(band.num_windows)} window{'' if band.num_windows == 1 else 's'}")
            sample = page.in_band(kind, band.number)
            yield Group(
                identity=f"{kind}-{band.number}", kind=kind, title=reach(band, page.detail), rule=tuple(said),
                rows=rows(sample), is_empty=not sample,
            )  # fmt: skip
    for negative, title, words in (
        ("near_miss", "Near misses", "it is silent, and its nearest neighbour fires at the dashed mark"),
        ("silent", "Drawn by lot", "from all windows in which it does not fire"),
    ):
        if found := page.negatives(negative):
            yield Group(identity=negative, kind="silent", title=title, rule=(words,), rows=rows(found))
