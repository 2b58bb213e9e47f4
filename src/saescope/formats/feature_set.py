"""What a reader of a foreign format gives: records of the store, ready to be written into one.

The long parts are read from the files each time somebody iterates over them, so a feature set of any size can be handed
on in little memory. Numbers that the format does not know are None; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from saescope.store.records import (
    AnalysisRecord,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Explanation,
    Feature,
    Note,
    Window,
)

if TYPE_CHECKING:
    from saescope.store import Store

T = TypeVar("T")


class Repeatable(Generic[T]):
    """An iterable that begins anew each time: `make` is called for every iteration."""

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[T]:
        return self._make()


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """One analysed dictionary as found in files, and what people had written about its features."""

    dictionary: DictionaryRecord
    analysis: AnalysisRecord
    features: Iterable[Feature]
    windows: Iterable[Window]
    examples: Iterable[Example]
    explanations: Iterable[tuple[int, Explanation]] = ()
    """Pairs of a feature's index and what was said about it; tags and notes likewise."""
    tags: Iterable[tuple[int, str]] = ()
    notes: Iterable[tuple[int, Note]] = ()
    bookmarks: Iterable[int] = ()
    evaluations: tuple[EvaluationResult, ...] = ()
    remarks: tuple[str, ...] = ()
    """Sentences for whoever asked: what the files lack, what was left out."""

    def write_to(self, store: Store, *, overwrite: bool = False) -> None:
        """Write analysis and evaluations in one transaction, and what people had written in another.

        Writing the same set again with `overwrite` adds no explanation and no note twice. Raises what
        `Store.write` raises, and `ValueError` for a damaged file; until the analysis is whole nothing is written.
        """
        store.write(
            self.dictionary,
            self.analysis,
            self.features,
            self.windows,
            self.examples,
            evaluations=self.evaluations,
            overwrite=overwrite,
        )
        store.add_remarks(
            self.dictionary.name,
            explanations=self.explanations,
            tags=self.tags,
            notes=self.notes,
            bookmarks=self.bookmarks,
        )
