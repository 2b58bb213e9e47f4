"""`Store`: open an address, write an analysis in one transaction, read it back as records.

This module imports no database library; `Store.open` does. Commands that only mention a store stay quick to start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import local
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from saescope.store.address import resolve_address
from saescope.store.records import (
    AnalysisRecord,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Explanation,
    Feature,
    FeatureList,
    FeatureMarks,
    FeaturePage,
    FeatureRecord,
    Note,
    StoreInfo,
    Summary,
    TrainingRun,
    Window,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from saescope.store.embeddings import Embed
    from saescope.store.filters import Bounds
    from saescope.store.map_points import MapPoints


class Store:
    """Features of analysed dictionaries, in an SQLite file or a PostgreSQL database. Made by `Store.open`.

    Any number of processes may read while one writes: a reader sees the state before or after a write, nothing between.
    In every method the name of a dictionary may be None where the store holds only one, and the name of an analysis may
    be None for the one that was written last. Unknown names are refused with `ValueError` and the nearest known ones.
    """

    def __init__(self, engine: Engine, place: Path | str) -> None:
        self._engine = engine
        self._place = place
        self._here = local()  # the transaction of `one_state` that a thread is in, if any

    @classmethod
    def open(cls, address: str | Path | None = None, *, must_exist: bool = False) -> Self:
        """Open the store at `address`: a path, a `sqlite:///` or a `postgresql://` URL.

        `None` means `$SAESCOPE_STORE`, else `./features.db`. A file that is missing is created, or with `must_exist`
        refused with `FileNotFoundError`. Raises `PermissionError` where nothing can be created, and `ValueError` for an
        address that is no store. Close it with `close()`, or use it in a `with` statement.
        """
        place = resolve_address(address)
        from saescope.store.engines import open_engine

        return cls(*open_engine(place, must_exist=must_exist))

    def close(self) -> None:
        """Give back connections; the store cannot be used any more."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Analyses

    def write(
        self,
        dictionary: DictionaryRecord,
        analysis: AnalysisRecord,
        features: Iterable[Feature],
        windows: Iterable[Window],
        examples: Iterable[Example],
        *,
        evaluations: Iterable[EvaluationResult] = (),
        run: TrainingRun | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write one analysis, all of it or nothing.

        The iterables are read once, in this order and in batches, so they may be generators. Until the last one has
        ended readers see the old content; if one of them raises, or the process dies, the old content stays. The
        dictionary is made, or found by its name; its series and details become those given. `created_at` is filled in.

        Raises:
            ValueError: there is an analysis of this name (`overwrite` replaces it; what people added stays), the name
                belongs to a dictionary of another model, place, architecture or size (`overwrite` replaces it as long as it
                has no other analysis and nobody added anything), or the records do not fit together.
        """
        from saescope.store.engines import settle
        from saescope.store.writing import write_analysis

        with self._writing() as connection:
            write_analysis(
                connection,
                dictionary,
                analysis,
                features,
                windows,
                examples,
                evaluations=evaluations,
                run=run,
                overwrite=overwrite,
            )
        settle(self._engine)

    def update(
        self, name: str | None, values: Iterable[tuple[int, Mapping[str, Any]]], *, analysis: str | None = None
    ) -> int:
        """Change fields of features that were analysed, in one transaction; returns how many features were named.

        `values` are pairs of a feature's index and the fields to change, named as in `FeatureRecord` (but not `index`)
        and `FeatureDetail`: `(17, {"logit_mean": 0.1, "top_logits": (...)})`. Raises `ValueError` for a field or a
        feature that is not there.
        """
        from saescope.store.updating import update_features

        with self._writing() as connection:
            return update_features(connection, name, analysis, values)

    def dictionaries(self) -> list[DictionaryRecord]:
        """All dictionaries in the store, by name."""
        from saescope.store.finding import all_dictionaries

        with self._reading() as connection:
            return all_dictionaries(connection)

    def dictionary(self, name: str | None = None) -> DictionaryRecord:
        """The dictionary called `name`."""
        from saescope.store.finding import find_dictionary

        with self._reading() as connection:
            return find_dictionary(connection, name)[1]

    def analyses(self, name: str | None = None) -> list[AnalysisRecord]:
        """All analyses of a dictionary, in the order in which they were written."""
        from saescope.store.finding import all_analyses, find_dictionary

        with self._reading() as connection:
            return all_analyses(connection, find_dictionary(connection, name)[0])

    def analysis(self, name: str | None = None, analysis: str | None = None) -> AnalysisRecord:
        """The analysis called `analysis`."""
        from saescope.store.finding import find

        with self._reading() as connection:
            return find(connection, name, analysis).analysis

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """What this thread reads inside is of one state of the store, even while someone writes.

        A page asks several questions: so what it shows belongs together, and asking takes less time.
        """
        from saescope.store.finding import remembering

        with self._reading() as connection:
            before, self._here.connection = self._inside, remembering(connection)
            try:
                yield
            finally:
                self._here.connection = before

    # Features

    def features(
        self,
        name: str | None = None,
        *,
        analysis: str | None = None,
        sort: str = "density",
        descending: bool = True,
        limit: int = 20,
        after: str | None = None,
        where: Mapping[str, Bounds] | None = None,
        search: str | None = None,
        tag: str | None = None,
        bookmarked: bool = False,
        with_total: bool = False,
    ) -> FeatureList:
        """A page of the features of one analysis, sorted and filtered.

        Args:
            sort: "index", a number of `FeatureRecord`, or of its label "precision", "recall", "lift". Features without
                this number come last, in both directions; equal ones go by index.
            limit: features on a page.
            after: the `next` of the page before, which was sorted in the same way.
            where: by the same keys, or "explanation_score" (the best among its explanations), the lowest and the highest
                value, both included; None for no bound. Features without a value are left out where there is a bound.
            search: words, each of which must begin a word of the label, of an explanation or of a token on which one of
                the top examples fires.
            tag: only features with this tag.
            bookmarked: only those with a bookmark.
            with_total: count all features of the list as well, which takes less than to ask `count` besides.

        Raises:
            ValueError: an unknown key, a place in another list, a search without any word.
        """
        from saescope.store.listing import read_features

        with self._reading() as connection:
            return read_features(
                connection,
                name,
                analysis,
                sort=sort,
                descending=descending,
                limit=limit,
                after=after,
                where=where or {},
                search=search,
                tag=tag,
                bookmarked=bookmarked,
                with_total=with_total,
            )

    def count(
        self,
        name: str | None = None,
        *,
        analysis: str | None = None,
        where: Mapping[str, Bounds] | None = None,
        search: str | None = None,
        tag: str | None = None,
        bookmarked: bool = False,
    ) -> int:
        """How many features `features` would give in all."""
        from saescope.store.listing import count_features

        with self._reading() as connection:
            return count_features(
                connection, name, analysis, where=where or {}, search=search, tag=tag, bookmarked=bookmarked
            )

    def order(
        self,
        name: str | None = None,
        *,
        analysis: str | None = None,
        sort: str = "density",
        descending: bool = True,
        where: Mapping[str, Bounds] | None = None,
        search: str | None = None,
        tag: str | None = None,
        bookmarked: bool = False,
    ) -> list[int]:
        """The indices of all features that `features` would give page after page, in the same order."""
        from saescope.store.ordering import read_order

        with self._reading() as connection:
            return read_order(
                connection,
                name,
                analysis,
                sort=sort,
                descending=descending,
                where=where or {},
                search=search,
                tag=tag,
                bookmarked=bookmarked,
            )

    def records(self, name: str | None, indices: Iterable[int], *, analysis: str | None = None) -> list[FeatureRecord]:
        """Some features, in the order of `indices`. Raises `ValueError` for one that was not analysed."""
        from saescope.store.ordering import read_records

        with self._reading() as connection:
            return read_records(connection, name, analysis, indices)

    def draw(self, name: str | None = None, *, analysis: str | None = None) -> int:
        """The index of a feature drawn by lot, each with the same chance. Raises `ValueError` where there is none."""
        from saescope.store.ordering import draw_index

        with self._reading() as connection:
            return draw_index(connection, name, analysis)

    def page(self, name: str | None, index: int, *, analysis: str | None = None) -> FeaturePage:
        """One feature with everything that its page shows, in one statement and one round trip.

        Raises `ValueError` if the dictionary has no feature `index`, or it was not analysed.
        """
        from saescope.store.engines import single_statement
        from saescope.store.pages import read_page

        with single_statement(self._engine, self._inside) as connection:
            return read_page(connection, name, index, analysis)

    def pages(
        self, name: str | None = None, *, analysis: str | None = None, indices: Iterable[int] | None = None
    ) -> Iterator[FeaturePage]:
        """The pages of all features in order, or of those in `indices` in theirs; a few are in memory at a time.

        All are of one state of the store, that of the first one, even if someone writes meanwhile.
        """
        from saescope.store.pages import read_pages

        with self._reading() as connection:
            yield from read_pages(connection, name, analysis, indices)

    def map_points(self, name: str | None = None, *, analysis: str | None = None) -> MapPoints:
        """All features of an analysis that have a place on its map, as columns of numpy; none where no map was made."""
        from saescope.store.map_points import read_map_points

        with self._reading() as connection:
            return read_map_points(connection, name, analysis)

    def summary(self, name: str | None = None, *, analysis: str | None = None) -> Summary:
        """An analysis at a glance: how many features are dead or dense, quantiles, evaluations."""
        from saescope.store.overview import read_summary

        with self._reading() as connection:
            return read_summary(connection, name, analysis)

    # What people and language models add

    def explain(self, name: str | None, index: int, explanation: Explanation) -> int:
        """Add an explanation to a feature; returns its id."""
        from saescope.store import remarks

        with self._writing() as connection:
            return remarks.explain(connection, name, index, explanation)

    def forget_explanation(self, identity: int) -> None:
        """Remove an explanation, with its vectors, by its id."""
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.forget_explanation(connection, identity)

    def explanations(self, name: str | None = None, index: int | None = None) -> list[tuple[int, Explanation]]:
        """Explanations of all features, or of one, as pairs of the feature's index and the explanation."""
        from saescope.store import remarks

        with self._reading() as connection:
            return remarks.read_explanations(connection, name, index)

    def tag(self, name: str | None, index: int, tag: str) -> None:
        """Give a feature a tag; once is enough."""
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.add_tag(connection, name, index, tag)

    def untag(self, name: str | None, index: int, tag: str) -> None:
        """Take a tag away. Raises `ValueError` where the feature does not have it."""
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.remove_tag(connection, name, index, tag)

    def tags(self, name: str | None = None) -> dict[str, int]:
        """All tags of a dictionary, by name, and how many features have each."""
        from saescope.store import remarks

        with self._reading() as connection:
            return remarks.read_tags(connection, name)

    def bookmark(self, name: str | None, index: int, on: bool = True) -> None:
        """Put a bookmark on a feature, or take it away."""
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.set_bookmark(connection, name, index, on)

    def add_note(self, name: str | None, index: int, note: Note) -> int:
        """Add a note to a feature; returns its id."""
        from saescope.store import remarks

        with self._writing() as connection:
            return remarks.add_note(connection, name, index, note)

    def edit_note(self, identity: int, text: str) -> None:
        """Change the text of a note."""
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.edit_note(connection, identity, text)

    def delete_note(self, identity: int) -> None:
        """Remove a note."""
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.delete_note(connection, identity)

    def add_remarks(
        self,
        name: str | None,
        *,
        explanations: Iterable[tuple[int, Explanation]] = (),
        tags: Iterable[tuple[int, str]] = (),
        notes: Iterable[tuple[int, Note]] = (),
        bookmarks: Iterable[int] = (),
    ) -> None:
        """Add what was written about many features, each with the feature's index, in one transaction.

        Explanations of the same text, method and author, and notes of the same text, that a feature has already are not
        added again.
        """
        from saescope.store import remarks

        with self._writing() as connection:
            remarks.add_remarks(
                connection, name, explanations=explanations, tags=tags, notes=notes, bookmarks=bookmarks
            )

    def marks(self, name: str | None, indices: Iterable[int]) -> dict[int, FeatureMarks]:
        """Tags, bookmarks and the best explanations of some features, by index, those that have any."""
        from saescope.store.marks import read_marks

        with self._reading() as connection:
            return read_marks(connection, name, indices)

    def labels(self, name: str | None, indices: Iterable[int], *, analysis: str | None = None) -> dict[int, str]:
        """The labels of some features, those that have one, by index."""
        from saescope.store.listing import read_labels

        with self._reading() as connection:
            return read_labels(connection, name, analysis, indices)

    def embed(self, name: str | None, embedder: str, embed: Embed, *, batch: int = 256) -> int:
        """Give every explanation that lacks one a vector of this embedder; returns how many got one.

        `embed` takes a list of at most `batch` texts and gives an array `[texts, width]`. Each batch is kept as soon as it
        is there, so an embedder that fails later has not worked in vain. Raises `ValueError` where the width is not that
        of this embedder's earlier vectors.
        """
        from saescope.store import embeddings
        from saescope.store.finding import find_dictionary

        with self._reading() as connection:
            dictionary_id, _ = find_dictionary(connection, name)
            missing = embeddings.missing_texts(connection, dictionary_id, embedder)
        count = 0
        for start in range(0, len(missing), batch):
            rows = embeddings.embedded(missing[start : start + batch], embedder, embed)
            with self._writing() as connection:
                count += embeddings.keep(connection, rows)
        return count

    def similar(
        self, name: str | None, vector: Any, embedder: str, limit: int = 20, *, analysis: str | None = None
    ) -> list[tuple[FeatureRecord, Explanation, float]]:
        """Explanations of analysed features by the cosine of their vectors with `vector`, the nearest first.

        `vector` must come from the same embedder. Raises `ValueError` for a vector of another width, or where no
        explanation has a vector of this embedder.
        """
        from saescope.store.embeddings import read_similar

        with self._reading() as connection:
            return read_similar(connection, name, analysis, vector, embedder, limit)

    # What is known of the dictionary

    def add_evaluations(self, name: str | None, results: Iterable[EvaluationResult]) -> None:
        """Add numbers of evaluations; those of the same study, metric, variant and code version are replaced."""
        from saescope.store.evaluations import add_evaluations
        from saescope.store.finding import find_dictionary

        with self._writing() as connection:
            add_evaluations(connection, find_dictionary(connection, name)[0], results)

    def evaluations(self, name: str | None = None) -> list[EvaluationResult]:
        """All numbers of evaluations, by study and metric."""
        from saescope.store.evaluations import read_evaluations
        from saescope.store.finding import find_dictionary

        with self._reading() as connection:
            return read_evaluations(connection, find_dictionary(connection, name)[0])

    def add_run(self, name: str | None, run: TrainingRun) -> None:
        """Keep how the dictionary was trained; the same run is kept once."""
        from saescope.store.evaluations import add_run
        from saescope.store.finding import find_dictionary

        with self._writing() as connection:
            add_run(connection, find_dictionary(connection, name)[0], run)

    def runs(self, name: str | None = None) -> list[TrainingRun]:
        """The training runs of a dictionary, in the order in which they were added."""
        from saescope.store.evaluations import read_runs
        from saescope.store.finding import find_dictionary

        with self._reading() as connection:
            return read_runs(connection, find_dictionary(connection, name)[0])

    def set_series(self, name: str | None, series: str) -> None:
        """Let a dictionary belong to a series (a project), or with an empty name to none."""
        from saescope.store.finding import find_dictionary
        from saescope.store.places import put_into_series

        with self._writing() as connection:
            put_into_series(connection, find_dictionary(connection, name)[0], series)

    def series(self) -> dict[str, list[str]]:
        """Names of dictionaries by series."""
        from saescope.store.evaluations import read_series

        with self._reading() as connection:
            return read_series(connection)

    # The whole

    def delete(self, name: str, analysis: str | None = None) -> None:
        """Delete an analysis; with the last one, or where none is named, the dictionary with all that is its own.

        Nothing of it is left in any table, and the file of an SQLite store shrinks, unless a reader is in the way.
        """
        from saescope.store.deleting import delete_named
        from saescope.store.engines import settle

        with self._writing() as connection:
            delete_named(connection, name, analysis)
        settle(self._engine, shrink=True)

    def export(self, path: str | Path, name: str | None = None, analysis: str | None = None) -> None:
        """Write one analysis, with its dictionary and all that people added, to a file: an SQLite store of its own.

        The file appears when it is whole. Raises `FileExistsError` where there is one already.
        """
        from saescope.store.moving import export

        with self._reading() as connection:
            export(connection, Path(path), name, analysis)

    def take(
        self,
        path: str | Path,
        *,
        names: Iterable[str] | None = None,
        rename: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> list[str]:
        """Copy dictionaries from another store (a file, or any address) into this one; returns their names here.

        All or nothing. Analyses, explanations and the rest are added to what a dictionary of the same name has.

        Args:
            names: of dictionaries there; None for all.
            rename: other names for some of them here, by their names there.
            overwrite: replace analyses that are there by name.

        Raises:
            ValueError: an analysis of that name is here already, or a different dictionary has the name.
        """
        from saescope.store.engines import settle
        from saescope.store.moving import take

        with Store.open(path, must_exist=True) as other, other._reading() as source, self._writing() as connection:
            taken = take(connection, source, names=names, rename=rename or {}, overwrite=overwrite)
        settle(self._engine)
        return taken

    def info(self) -> StoreInfo:
        """Where the store is, how large, and what it holds."""
        from saescope.store.overview import read_info

        with self._reading() as connection:
            return read_info(connection, self._place)

    def _reading(self) -> AbstractContextManager[Connection]:
        from saescope.store.engines import read_transaction

        return read_transaction(self._engine, self._inside)

    @property
    def _inside(self) -> Connection | None:
        return getattr(self._here, "connection", None)

    def _writing(self) -> AbstractContextManager[Connection]:
        from saescope.store.engines import write_transaction

        return write_transaction(self._engine)
