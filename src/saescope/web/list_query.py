"""What a list of features is asked for, in an address: sorting, bounds on any number, words, a tag, bookmarks, a place.

A field of a form that was left empty asks for nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model

from saescope.store.filters import KEYS, SCORE, Bounds

BOUNDED = (*KEYS, SCORE)
"""Keys that have bounds."""
MOST_ROWS = 200  # on one page
_LONGEST_SEARCH = 500
_LONGEST_NAME = 1000


def _given(value: Any) -> Any:
    return None if value == "" else value


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("the text holds the character \\x00, which no database keeps")
    return value


_Given = BeforeValidator(_given)
Name = Annotated[Annotated[str, Field(max_length=_LONGEST_NAME), AfterValidator(_text)] | None, _Given]
_Words = Annotated[Annotated[str, Field(max_length=_LONGEST_SEARCH), AfterValidator(_text)] | None, _Given]
_Bound = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, _Given]


class WhichFeatures(BaseModel):
    """Which features, in which order. `min_KEY` and `max_KEY` are in `FeaturesQuery`."""

    analysis: Name = Field(default=None, description="Name of an analysis; the newest where it is left out.")
    sort: str = Field(default="density", max_length=100, description="One of: " + ", ".join(KEYS) + ".")
    dir: Literal["asc", "desc"] = "desc"
    search: _Words = Field(default=None, description="Words, each of which must begin a word of the feature.")
    mode: Literal["words", "meaning"] = Field(
        default="words",
        description='"meaning" sorts by how near explanations are to the search, where the server can do that.',
    )
    tag: Name = Field(default=None, description="Only features with this tag.")
    bookmarked: Annotated[bool | None, _Given] = Field(default=None, description="Only features with a bookmark.")

    @cached_property
    def where(self) -> dict[str, Bounds]:
        """The bounds that were given."""
        pairs = ((key, getattr(self, f"min_{key}", None), getattr(self, f"max_{key}", None)) for key in BOUNDED)
        return {key: (low, high) for key, low, high in pairs if (low, high) != (None, None)}

    @property
    def is_filtered(self) -> bool:
        """Not all features are wanted."""
        return bool(self.search or self.tag or self.bookmarked or self.where)

    @property
    def by_meaning(self) -> bool:
        """The list is sorted by how near explanations are to the search."""
        return self.mode == "meaning" and bool(self.search)

    def given(self, **changes: Any) -> dict[str, Any]:
        """What differs from the defaults, as it stands in an address; with changes, None takes something out."""
        given = {key: value for key, value in self.model_dump(exclude_defaults=True).items() if value is not None}
        changed = {key: value for key, value in (given | changes).items() if value not in (None, False)}
        return {key: int(value) if value is True else value for key, value in changed.items()}


class _WhichPage(WhichFeatures):
    after: Name = Field(default=None, description="`next` of the page before.")
    limit: int = Field(default=50, ge=1, le=MOST_ROWS)
    add: _Words = Field(default=None, description="A key for which the page of the list shows empty fields for bounds.")


_BOUNDS: dict[str, Any] = {
    f"{end}_{key}": (_Bound, Field(default=None, description=f"{words} {key}, included."))
    for key in BOUNDED
    for end, words in (("min", "The lowest"), ("max", "The highest"))
}

if TYPE_CHECKING:
    OrderQuery = WhichFeatures
    FeaturesQuery = _WhichPage
else:
    OrderQuery = create_model("OrderQuery", __base__=WhichFeatures, **_BOUNDS)
    FeaturesQuery = create_model("FeaturesQuery", __base__=_WhichPage, **_BOUNDS)
