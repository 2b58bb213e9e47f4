"""Reading an analysis out of a dump of the Language-Model-SAEs (Llamascopium) database.

What the dump says is kept: how often and how strongly each feature fires, its logits, its interpretation, what people
marked. Its samplings are kept as examples: those of `top_activations` in order of their peaks, the others in five bands
of equal width by their peaks. Those others were not drawn evenly (the workflow kept the strongest below a share of the
largest value seen so far), so their bands come without counts. Of its "non-activating" samples only those are examples
of silence in which the feature is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saescope.formats.feature_set import FeatureSet, Repeatable
from saescope.formats.lm_saes.annotations import explanations, read_bookmarks, read_metrics
from saescope.formats.lm_saes.arranging import SILENT, bands
from saescope.formats.lm_saes.bson_files import BsonFile, Document, find_database, plain, require_bson
from saescope.formats.lm_saes.samples import checked_number
from saescope.formats.lm_saes.scan import Scan, choose_sae, num_tokens_of, open_analysis
from saescope.formats.lm_saes.texts import TextSource
from saescope.store.records import (
    AnalysisRecord,
    DictionaryRecord,
    Example,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Note,
    TokenLogit,
    Window,
)

NO_TOKEN, NO_TEXT = -1, "□"  # id and text of a token that nobody knows


def read_lm_saes(
    dump: str | Path,
    *,
    sae: str | None = None,
    series: str | None = None,
    analysis: str | None = None,
    name: str | None = None,
    texts: TextSource | None = None,
    num_tokens: int | None = None,
) -> FeatureSet:
    """Read one analysis of one SAE from a `mongodump` folder. Layout: pymongo's BSON, arrays in GridFS as `numpy.save`.

    The whole analysis is checked before this returns, so of a damaged dump nothing is ever handed on. The files are
    read again for each of the iterables; memory grows with the number of distinct rows that samples come from.

    Args:
        dump: the folder, or that of the database in it; `.bson` or `.bson.gz`.
        sae: which SAE, by name and `series`; needed if the dump holds several.
        analysis: which analysis; needed if that SAE has several. Of several runs under one name the last one counts.
        name: what to call the dictionary; by default as in the dump.
        texts: the text behind the samples, such as `DatasetTexts`. Where it has none, a window shows one `□` per token
            up to the last one on which a feature fires, and `remarks` say how many examples that are.
        num_tokens: tokens analysed, for dumps that do not say.

    Raises:
        ImportError: pymongo is not installed.
        FileNotFoundError: no such dump.
        ValueError: nothing or too much to choose from, or a file that is damaged or does not hold what it should; the
            message names the file.
    """
    require_bson()
    database = find_database(Path(dump).expanduser())
    chosen = choose_sae(database, sae, series)
    scan = open_analysis(database, chosen, analysis, texts)
    record = _analysis_record(scan, texts, num_tokens)
    dictionary = _dictionary_record(chosen, name, scan)
    for _ in _features(scan, record.num_tokens):
        pass  # to check every number
    for _ in explanations(scan):
        pass
    all_marks = read_bookmarks(database, chosen, dictionary.d_sae)
    marks = [mark for mark in all_marks if mark.feature in scan.places]
    remarks = [*_remarks(scan, database, dictionary.d_sae)]
    if len(marks) < len(all_marks):
        remarks.append(f"{len(all_marks) - len(marks):,} bookmarks of features without the analysis were left out")
    return FeatureSet(
        dictionary=dictionary,
        analysis=record,
        features=Repeatable(lambda: _features(scan, record.num_tokens)),
        windows=Repeatable(lambda: _windows(scan, texts)),
        examples=Repeatable(lambda: _examples(scan)),
        explanations=Repeatable(lambda: explanations(scan)),
        tags=tuple((mark.feature, tag) for mark in marks for tag in mark.tags),
        notes=tuple((mark.feature, Note(text=mark.note, created_at=mark.created_at)) for mark in marks if mark.note),
        bookmarks=tuple(mark.feature for mark in marks),
        evaluations=read_metrics(scan),
        remarks=tuple(remarks),
    )


def _dictionary_record(chosen: Document, name: str | None, scan: Scan) -> DictionaryRecord:
    config: Any = chosen.get("cfg")
    config = config if isinstance(config, dict) else {}
    reads = _hooks(config, "hook_point_in", "hook_points", "hook_points_in")
    writes = _hooks(config, "hook_point_out", "hook_points_out")
    width = _size(config, "d_model") or _size(config, "d_in") or 0
    size = _size(config, "d_sae")
    factor = config.get("expansion_factor")
    if size is None and isinstance(factor, int | float) and 0 < factor < 1 << 20:
        size = int(width * factor)
    highest = max(scan.places)
    if size and highest >= size:
        raise ValueError(f"{scan.file.path} has a feature {highest} of {chosen['name']!r}, but its d_sae is {size}")
    kind, activation = config.get("sae_type"), str(config.get("act_fn") or "unknown")
    return DictionaryRecord(
        name=name or chosen["name"],
        model=str(chosen.get("model_name") or "unknown"),
        hook_point=reads or "unknown",
        hook_point_out=writes if writes != reads else "",
        architecture=activation if kind in (None, "sae") else f"{activation} {kind}",
        d_in=width,
        d_sae=size or highest + 1,
        series=chosen["series"],
        details={"source": "lm-saes", "path": plain(chosen.get("path")), "cfg": plain(config)},
    )


def _hooks(config: Document, *keys: str) -> str:
    """The first of these settings that is there; several points with commas between."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value:
            return ",".join(map(str, value))
    return ""


def _size(config: Document, key: str) -> int | None:
    value = config.get(key)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31 else None


def _analysis_record(scan: Scan, texts: TextSource | None, num_tokens: int | None) -> AnalysisRecord:
    counted = max(scan.num_tokens) or num_tokens
    if not counted:
        raise ValueError(f"{scan.file.path} does not say how many tokens were analysed; give num_tokens")
    return AnalysisRecord(
        name=scan.analysis,
        dataset=", ".join(sorted({point.dataset for point in scan.windows})) or "unknown",
        context_size=texts.context_size if texts is not None else max(scan.lengths, default=1),
        num_tokens=counted,
        details={
            "source": "lm-saes",
            "samplings": dict(scan.num_samples),
            "bands": "by the peaks of all samplings but the strongest; not drawn evenly, so without counts",
            "num_windows_without_text": scan.has_text.count(False),
            "num_examples_without_text": scan.num_examples_without_text,
            "num_firing_in_non_activating": scan.num_active_silent,
        },
    )


def _features(scan: Scan, num_tokens: int) -> Iterator[Feature]:
    for index, document, analysis in scan.documents():
        what = scan.what(index)
        num_firings = int(checked_number(analysis.get("act_times"), f"{what}, act_times", is_count=True))
        counted = num_tokens_of(analysis, what) or num_tokens
        if num_firings > counted:
            raise ValueError(f"{what} fires on {num_firings:,} of {counted:,} tokens")
        norms = [checked_number(norm, f"{what}, decoder_norms") for norm in _list(analysis, "decoder_norms", what)]
        yield Feature(
            record=FeatureRecord(
                index=index,
                num_firings=num_firings,
                density=num_firings / counted,
                max_activation=checked_number(analysis.get("max_feature_acts"), f"{what}, max_feature_acts"),
                mean_activation=None,
                std_activation=None,
                mean_positive=None,
                median_positive=None,
                decoder_norm=norms[0] if len(norms) == 1 else None,
            ),
            detail=FeatureDetail(
                bands=bands(scan.edges.get(index, ())),
                top_logits=_logits(document, "top_positive", what),
                bottom_logits=_logits(document, "top_negative", what),
                sources=tuple(norms) if len(norms) > 1 else (),
            ),
        )


def _logits(document: Document, side: str, what: str) -> tuple[TokenLogit, ...]:
    """The tokens that the feature pushes most, the furthest first. Their ids are not in a dump."""
    logits = document.get("logits")
    found = []
    for entry in _list(logits if isinstance(logits, dict) else {}, side, what):
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            raise ValueError(f"{what}: {side} has an entry without a token: {entry!r}")
        logit = checked_number(entry.get("logit"), f"{what}, {side}")
        found.append(TokenLogit(token_id=NO_TOKEN, text=entry["token"], logit=logit))
    return tuple(sorted(found, key=lambda entry: entry.logit, reverse=side == "top_positive"))


def _list(document: Document, key: str, what: str) -> list[Any]:
    value = document.get(key)
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{what}: {key} is {type(value).__name__}, expected a list")
    return value or []


def _windows(scan: Scan, texts: TextSource | None) -> Iterator[Window]:
    for (point, number), length, has_text in zip(scan.windows.items(), scan.lengths, scan.has_text, strict=True):
        if texts is None or not has_text:
            yield Window.of_texts(
                id=number,
                document=point.document,
                offset=0,
                token_ids=[NO_TOKEN] * length,
                token_texts=[NO_TEXT] * length,
            )
            continue
        found = texts.read(point)
        if len(found.ids) < length:
            raise ValueError(
                f"{point.document} has {len(found.ids)} tokens, but a feature fires on token {length}: the data set, the "
                "tokenizer or the context size is not the one that was analysed"
            )
        yield Window(
            id=number,
            document=point.document,
            offset=0,
            text=found.text,
            token_ids=tuple(found.ids),
            token_ranges=tuple(found.ranges),
        )


def _examples(scan: Scan) -> Iterator[Example]:
    for index, _, arrangement in scan.arrangements():
        for example in arrangement.examples:
            yield Example(
                feature=index,
                window_id=scan.windows[example.point],
                peak=example.peak,
                activation=example.activation,
                positions=example.positions,
                values=example.values,
                top_rank=example.rank,
                width_band=example.band,
                negative="silent" if example.is_silent else None,
            )


def _remarks(scan: Scan, database: Path, d_sae: int) -> Iterator[str]:
    if scan.num_examples_without_text:
        yield (
            f"{scan.num_examples_without_text:,} of {scan.num_examples:,} examples have no text: a dump holds none, and "
            f"their rows were not given; each token is shown as {NO_TEXT}"
        )
    if scan.num_left_out:
        yield f"{scan.num_left_out:,} of {d_sae:,} features have no analysis {scan.analysis!r} and were left out"
    if scan.num_repeated:
        yield f"{scan.num_repeated:,} features have the analysis {scan.analysis!r} several times; the last one counts"
    if scan.num_active_silent:
        yield (
            f"{scan.num_active_silent:,} samples called {SILENT} do activate their feature; they are kept as weak "
            "examples, not as silent ones"
        )
    if scan.num_empty:
        yield f"{scan.num_empty:,} samples in which their feature does not fire were left out"
    if len(scan.num_tokens) > 1:
        yield "features differ in how many tokens were analysed; each one's density is of its own number"
    with BsonFile(database, "circuits") as circuits:
        if any(True for _ in circuits):
            yield "its circuits are pickles of torch, which can run code; they were not opened"
