"""A row of the list of features, as HTML and as JSON.

The HTML is put together here and not in the template: fifty rows of a dozen cells each are most of what the page takes.
``static/app/listrow.js`` draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from saescope.store import FeatureMarks, FeatureRecord
from saescope.web.columns import NEARNESS, Column, cell, density_bar, written
from saescope.web.drawing import visible

NO_MARKS = FeatureMarks()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A feature as a list shows it."""

    record: FeatureRecord
    marks: FeatureMarks = NO_MARKS
    similarity: float | None = None
    """How near its explanation is to the search, where that was asked for."""


def row_as_json(row: Row) -> dict[str, Any]:
    """A row as JSON values: the numbers under the names of the record, and what was added to the feature."""
    feature, explanation = row.record, row.marks.explanation
    said = None
    if explanation is not None:
        said = {name: getattr(explanation, name) for name in ("text", "method", "author", "score")}
    return {
        **vars(feature),  # as `page_json.feature_as_json` gives it; `asdict` copies, which takes ten times as long
        "label": None if feature.label is None else dict(vars(feature.label)),
        "tags": list(row.marks.tags),
        "is_bookmarked": row.marks.is_bookmarked,
        "explanation": said,
        **({} if row.similarity is None else {"similarity": row.similarity}),
    }


def row_as_html(row: Row, shown: Sequence[Column], *, href: str, sort: str, with_star: bool) -> Markup:
    """A row of the table.

    Args:
        shown: the columns of numbers.
        href: where the feature's page is.
        sort: key of the column by which the list is sorted.
        with_star: bookmarks can be set.
    """
    feature, link = row.record, escape(href)
    parts = [
        f'<tr data-index="{feature.index}"><th scope="row" class="c-index"><a href="{link}">{feature.index}</a></th>'
    ]
    if with_star:
        on = row.marks.is_bookmarked
        parts.append(
            f'<td class="c-star"><button type="button" class="star" aria-pressed="{"true" if on else "false"}" '
            f'aria-label="Bookmark feature {feature.index}" disabled>{"★" if on else "☆"}</button></td>'
        )
    parts += ['<td class="c-label"><div>', *_said(row, link), "</div></td>"]
    for column in shown:
        is_sorted = column.key == sort or column is NEARNESS
        bar = ""
        if column.key == "density":
            bar = f'<span class="amount" style="--w:{density_bar(feature.density)}%"></span>'
        text = written(row.similarity, column.kind) if column is NEARNESS else cell(feature, column)
        parts.append(f'<td class="n c-{column.key}{" sorted" if is_sorted else ""}">{bar}{text}</td>')
    return Markup("".join([*parts, "</tr>"]))


def _said(row: Row, link: str) -> list[str]:
    """What the feature means, as far as somebody said so."""
    label, explanation, parts = row.record.label, row.marks.explanation, []
    if label is not None:
        parts.append(f'<a class="label" href="{link}" tabindex="-1">{visible(label.text)}</a>')
    elif explanation is None:
        parts.append(f'<span class="unlabelled">{"dead" if row.record.is_dead else "unlabelled"}</span>')
    if explanation is not None:
        parts.append(f'<a class="said" href="{link}" tabindex="-1">{visible(explanation.text)}</a>')
        if explanation.score is not None:
            score = written(explanation.score, "decimal")
            parts.append(f'<span class="chip" title="Score of the explanation: {explanation.score}">{score}</span>')
    parts += [f'<span class="chip tag">{visible(tag)}</span>' for tag in row.marks.tags]
    return parts
