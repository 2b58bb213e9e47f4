"""Writing a dictionary of a store in Neuronpedia's bulk layout: one pass over its pages, in bounded memory.

The folder is written beside and renamed when everything in it is on the disk, so it is there whole or not at all.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from saescope.formats.neuronpedia import descriptions, lines
from saescope.formats.neuronpedia.layout import DEFAULT_CREATOR, KINDS, VERSION, Place, find_place, neuronpedia_url
from saescope.store.records import FeaturePage

if TYPE_CHECKING:
    from saescope.store import Store

Vectors = Callable[[int], Sequence[float]] | Sequence[Sequence[float]]

PARTIAL = ".partial"
_BATCH_BYTES = 100_000_000  # of JSON in one file: the importer takes a file whole, and 200 MB are too much for it
_COMPRESSION = 6
_CONFIG_FILES = ("explanation_model_type", "explanation_type", "explanation_score_model", "explanation_score_type",
                 "eval_type")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NeuronpediaExport:
    """What was written, and the address it will have on the site."""

    folder: Path
    source_id: str
    url: str
    num_features: int
    num_activations: int
    num_explanations: int


def export_neuronpedia(
    store: Store,
    folder: str | Path,
    *,
    name: str | None = None,
    analysis: str | None = None,
    model_id: str,
    source_id: str | None = None,
    layer: int | None = None,
    source_set: str | None = None,
    release: str | None = None,
    description: str = "",
    creator_name: str = "",
    creator_email: str | None = None,
    creator_id: str = DEFAULT_CREATOR,
    urls: Sequence[str] = (),
    hf_repo: str | None = None,
    hf_folder: str | None = None,
    num_layers: int = 0,
    neurons_per_layer: int = 0,
    model_owner: str = "",
    visibility: Literal["PUBLIC", "UNLISTED", "PRIVATE"] = "UNLISTED",
    bands: Literal["width", "quantile"] = "width",
    vectors: Vectors | None = None,
    indices: Iterable[int] | None = None,
    batch_size: int = 1024,
    created_at: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> NeuronpediaExport:
    """Write one analysis of a dictionary into `folder`, as `v1/{model}/{source}/...` and `v1/config/...`.

    The layout is that of the public bucket `neuronpedia-datasets`, read from the project's importer in August 2026. An
    example is written once: among the strongest if it is one of them, else under the band that it was drawn for. Numbers
    are written as the store has them, rounded nowhere. The same store gives the same bytes.

    Args:
        store: read in a stream of pages; a page at a time is in memory.
        folder: made by this call; one that exists is refused.
        name: the dictionary; `analysis`: its analysis; None as everywhere in the store.
        model_id: the site's name of the model, such as `gpt2-small`.
        source_id: the dictionary's id there, `{layer}-{set}`; or give `layer` and `source_set`.
        release: what the set belongs to; the set's name if not given.
        num_layers: with `neurons_per_layer` and `model_owner` of use only for a model that the site does not know.
        bands: which bands the drawn examples stand for. The site's own are of equal width.
        vectors: decoder rows, `[d_sae][d_in]`, or a function from the index to a row. Without them steering is not
            offered on the site.
        indices: only these features.
        batch_size: features per file, fewer where their examples are long.
        created_at: the moment that the lines carry; by default that of the analysis.
        progress: called with the number of features written so far.

    Raises:
        FileExistsError: there is something at `folder`.
        ValueError: malformed ids, a batch size below 1, an unknown dictionary or feature, a value that is not finite.
    """
    folder = Path(folder).expanduser()
    place = find_place(model_id, source_id, layer, source_set)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but a file holds at least one feature")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give the export a folder of its own")
    dictionary = store.dictionary(name)
    record = store.analysis(dictionary.name, analysis)
    moment = lines.timestamp(created_at or record.created_at)

    beside = folder.with_name(folder.name + PARTIAL)
    if beside.exists():
        shutil.rmtree(beside)
    source = beside / VERSION / place.model_id / place.source_id
    config = beside / VERSION / "config"
    try:
        for path in (*(source / kind for kind in KINDS), config):
            path.mkdir(parents=True)
        with _Batches(source, batch_size) as batches:
            found = _Found()
            for page in store.pages(dictionary.name, analysis=record.name, indices=indices):
                _write_page(page, batches, found, place, creator_id, moment, bands, vectors)
                if progress is not None:
                    progress(batches.counts["features"])
        about = {
            "release": release or place.source_set,
            "description": description
            or f"{dictionary.name}: {dictionary.architecture}, {dictionary.d_sae:,} features",
            "creator_name": creator_name,
            "creator_email": creator_email,
            "urls": urls,
            "visibility": visibility,
            "hf_repo": hf_repo,
            "hf_folder": hf_folder,
            "has_map": found.has_map,
            "has_clusters": found.has_clusters,
            "band_kind": bands,
        }
        model = descriptions.model_line(
            place, creator_id, moment, num_layers=num_layers, neurons_per_layer=neurons_per_layer, owner=model_owner,
            visibility=visibility,
        )  # fmt: skip
        _write_lines(source / "release.jsonl", [descriptions.release_line(place, creator_id, moment, about)])
        _write_lines(source / "model.jsonl", [model])
        source_set_line = descriptions.source_set_line(place, creator_id, moment, about, dictionary)
        _write_lines(source / "sourceset.jsonl", [source_set_line])
        source_line = descriptions.source_line(place, creator_id, moment, about, dictionary, record)
        _write_lines(source / "source.jsonl", [source_line])
        config_lines = {
            "explanation_type": [
                descriptions.explanation_type_line(kind, creator_id, creator_name, moment)
                for kind in sorted(found.methods)
            ],
            "explanation_model_type": [
                descriptions.explanation_model_line(author, creator_name, moment) for author in sorted(found.authors)
            ],
        }
        for kind in _CONFIG_FILES:
            _write_lines(config / f"{kind}.jsonl", config_lines.get(kind, []))
        for path in (path for path in (beside, *beside.rglob("*")) if path.is_dir()):
            _sync(path)
        if folder.exists():
            raise FileExistsError(f"{folder} was made while the export was written; give it another folder")
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync(folder.parent)
    return NeuronpediaExport(
        folder=folder,
        source_id=place.source_id,
        url=neuronpedia_url(place.model_id, place.source_id),
        num_features=batches.counts["features"],
        num_activations=batches.counts["activations"],
        num_explanations=batches.counts["explanations"],
    )


class _Found:
    """What the descriptions of the whole have to say about the features."""

    def __init__(self) -> None:
        self.has_map = self.has_clusters = False
        self.methods: set[str] = set()
        self.authors: set[str] = set()


class _Batches:
    """The numbered files of each kind. One that would hold no line is not made: the importer wants a first line."""

    def __init__(self, source: Path, num_features: int) -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self._source = source
        self._num_features = num_features
        self._number = -1
        self._open: dict[str, gzip.GzipFile] = {}
        self._files = ExitStack()
        self._features = self._bytes = 0

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, *what: object) -> None:
        self._files.close()

    def begin_feature(self) -> None:
        """Go on to the next batch if this one is full."""
        if self._number < 0 or self._features == self._num_features or self._bytes >= _BATCH_BYTES:
            self._files.close()
            self._open.clear()
            self._number += 1
            self._features = self._bytes = 0
        self._features += 1

    def write(self, kind: str, line: lines.Line) -> None:
        if kind not in self._open:
            path = self._source / kind / f"batch-{self._number}.jsonl.gz"
            file = self._files.enter_context(path.open("wb"))
            self._files.callback(_sync_file, file)
            # no name and no time in the header: the same lines are the same bytes
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=file, mtime=0)
            self._open[kind] = packed
            self._files.callback(packed.close)
        text = lines.dump_line(line)
        self._open[kind].write(text)
        self._bytes += len(text)
        self.counts[kind] += 1


def _write_page(
    page: FeaturePage,
    batches: _Batches,
    found: _Found,
    place: Place,
    creator_id: str,
    moment: str,
    bands: str,
    vectors: Vectors | None,
) -> None:
    record = page.feature
    batches.begin_feature()
    vector = _vector(vectors, record.index)
    batches.write("features", lines.feature_line(page, place, creator_id, moment, vector))
    for line in lines.activation_lines(page, place, creator_id, moment, bands):
        batches.write("activations", line)
    for line in lines.explanation_lines(page, place, creator_id, moment):
        batches.write("explanations", line)
        found.methods |= {line["typeName"]} - {None}
        found.authors |= {line["explanationModelName"]} - {None}
    found.has_map |= record.map_x is not None
    found.has_clusters |= record.cluster is not None


def _vector(vectors: Vectors | None, index: int) -> list[float]:
    if vectors is None:
        return []
    row = vectors(index) if callable(vectors) else vectors[index]
    return [float(value) for value in row]


def _write_lines(path: Path, rows: Iterable[lines.Line]) -> None:
    with open(path, "wb") as file:
        file.writelines(map(lines.dump_line, rows))
        _sync_file(file)


def _sync_file(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
