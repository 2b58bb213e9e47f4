"""The first readings of a dump: which SAE and analysis are meant, where their features are, which rows they point to.

Every array is read and checked here, so a damaged dump is found before anything of it is handed on. What is kept: the
place of each feature's document, the edges of its bands, and one number per distinct row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saescope.formats.lm_saes.arranging import Arrangement, arrange
from saescope.formats.lm_saes.bson_files import BsonFile, Document
from saescope.formats.lm_saes.gridfs import GridFS
from saescope.formats.lm_saes.samples import Sample, checked_number, read_samples
from saescope.formats.lm_saes.texts import SamplePoint, TextSource


@dataclass
class Scan:
    """One analysis of one SAE in the open files of a dump."""

    analysis: str
    file: BsonFile
    """The features."""
    gridfs: GridFS
    places: dict[int, int]
    """Of each feature with this analysis: where its document begins."""
    num_repeated: int
    """Features that have the analysis several times."""
    num_left_out: int
    """Features that do not have it."""
    edges: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Of a feature's bands, where it has some."""
    windows: dict[SamplePoint, int] = field(default_factory=dict)
    """Their numbers, in the order of their first use."""
    lengths: list[int] = field(default_factory=list)
    """Of each window: tokens up to the last one on which a feature fires."""
    has_text: list[bool] = field(default_factory=list)
    num_tokens: Counter[int] = field(default_factory=Counter)
    """How often features say that so many tokens were analysed; 0 where they do not say."""
    num_samples: Counter[str] = field(default_factory=Counter)
    """By the name of the sampling."""
    num_examples: int = 0
    num_examples_without_text: int = 0
    num_active_silent: int = 0
    num_empty: int = 0

    def documents(self) -> Iterator[tuple[int, Document, Document]]:
        """Each feature's index, document and analysis: of several with the name, the last one."""
        for index, place in self.places.items():
            document = self.file.at(place)
            *_, analysis = (entry for entry in document["analyses"] if entry["name"] == self.analysis)
            yield index, document, analysis

    def arrangements(self) -> Iterator[tuple[int, list[Sample], Arrangement]]:
        """Each feature's index, samples and what examples they make."""
        for index, _, analysis in self.documents():
            what = self.what(index)
            maximum = checked_number(analysis.get("max_feature_acts"), f"{what}, max_feature_acts")
            samples = list(read_samples(analysis, self.gridfs, what))
            yield index, samples, arrange(samples, maximum)

    def what(self, index: int) -> str:
        """How messages name a feature."""
        return f"{self.file.path}: feature {index}, analysis {self.analysis!r}"


def choose_sae(database: Path, sae: str | None, series: str | None) -> Document:
    """The one SAE that `sae` and `series` mean. `ValueError` with all their names if they mean none or several."""
    with BsonFile(database, "saes") as file:
        found = [document for _, document in file]
        path = file.path
    if not found:
        raise ValueError(f"{path} holds no SAE")
    for document in found:
        if not isinstance(document.get("name"), str) or not isinstance(document.get("series"), str):
            raise ValueError(f"{path} has an SAE without a name and a series")
    matching = [
        document
        for document in found
        if (sae is None or document["name"] == sae) and (series is None or document["series"] == series)
    ]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(f"{document['name']!r} of the series {document['series']!r}" for document in found)
    if not matching:
        wanted = " and ".join(
            [*([f"the name {sae!r}"] if sae else []), *([f"the series {series!r}"] if series else [])]
        )
        raise ValueError(f"{path} has no SAE with {wanted}; it has {names}")
    raise ValueError(f"{path} has {len(matching)} SAEs that can be meant; choose one by name and series: {names}")


def open_analysis(database: Path, chosen: Document, analysis: str | None, texts: TextSource | None) -> Scan:
    """Find the analysis of the SAE `chosen` and read it through, arrays and all."""
    file = BsonFile(database, "features")
    found: dict[int, tuple[int, list[str]]] = {}
    for place, document in file:
        if document.get("sae_name") == chosen["name"] and document.get("sae_series") == chosen["series"]:
            index = _feature_index(document, file, place)
            if index in found:
                raise ValueError(f"{file.path} has the feature {index} of {chosen['name']!r} twice")
            found[index] = place, _analysis_names(document, f"{file.path}: feature {index}")
    names = sorted({name for _, of_feature in found.values() for name in of_feature})
    if not names:
        raise ValueError(f"{file.path} has no analysis of the SAE {chosen['name']!r}")
    if analysis is None:
        if len(names) > 1:
            raise ValueError(f"the SAE {chosen['name']!r} has {len(names)} analyses; choose one of {', '.join(names)}")
        (analysis,) = names
    if analysis not in names:
        raise ValueError(f"the SAE {chosen['name']!r} has no analysis {analysis!r}; it has {', '.join(names)}")
    scan = Scan(
        analysis=analysis,
        file=file,
        gridfs=GridFS(database),
        places={index: place for index, (place, of_feature) in sorted(found.items()) if analysis in of_feature},
        num_repeated=sum(of_feature.count(analysis) > 1 for _, of_feature in found.values()),
        num_left_out=sum(analysis not in of_feature for _, of_feature in found.values()),
    )
    _read_through(scan, texts)
    return scan


def _read_through(scan: Scan, texts: TextSource | None) -> None:
    for index, _, analysis in scan.documents():
        scan.num_tokens[num_tokens_of(analysis, scan.what(index))] += 1
    for index, samples, arrangement in scan.arrangements():
        scan.num_samples.update(sample.sampling for sample in samples)
        if arrangement.edges:
            scan.edges[index] = arrangement.edges
        scan.num_active_silent += arrangement.num_active_silent
        scan.num_empty += arrangement.num_empty
        scan.num_examples += len(arrangement.examples)
        for example in arrangement.examples:
            number = scan.windows.setdefault(example.point, len(scan.windows))
            if number == len(scan.lengths):
                scan.lengths.append(1)
                scan.has_text.append(texts is not None and example.point in texts)
            if example.positions:
                scan.lengths[number] = max(scan.lengths[number], example.positions[-1] + 1)
            scan.num_examples_without_text += not scan.has_text[number]


def num_tokens_of(analysis: Document, what: str) -> int:
    """How many tokens were analysed; 0 if the dump does not say."""
    found = analysis.get("n_analyzed_tokens")
    return 0 if found is None else int(checked_number(found, f"{what}, n_analyzed_tokens", is_count=True))


def _feature_index(document: Document, file: BsonFile, place: int) -> int:
    index: Any = document.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 1 << 31:
        raise ValueError(f"{file.path}: the feature at byte {place:,} has the index {index!r}")
    return int(index)


def _analysis_names(document: Document, what: str) -> list[str]:
    found = document.get("analyses") or []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{what}: analyses is not a list of analyses")
    names = [entry.get("name") for entry in found]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} has an analysis without a name")
    return names
