"""From a dictionary to features in a store: what each one does, in numbers, examples and a label.

One pass over the text counts and keeps (``collecting.py``); labels are found on what it kept and measured on held-out text;
logit effects, neighbours and the map come from the weights. Then everything is written in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saescope import __version__
from saescope.activations import TokenWindows
from saescope.analysis.cofiring import TokenSample
from saescope.analysis.collecting import Collected, collect
from saescope.analysis.config import AnalysisConfig
from saescope.analysis.directions import unembedding_for, written_rows
from saescope.analysis.feature_map import feature_map
from saescope.analysis.labelling import label_features
from saescope.analysis.logits import LogitEffects, logit_effects
from saescope.analysis.neighbours import nearest_rows, row_numbers
from saescope.analysis.reading import LiveText, Text
from saescope.analysis.statistics import FeatureStatistics
from saescope.dictionaries import Dictionary
from saescope.models.token_text import TokenReader, vocabulary_texts
from saescope.store import (
    AnalysisRecord,
    DictionaryRecord,
    EvaluationResult,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Store,
    TokenLogit,
    TrainingRun,
    Window,
)

if TYPE_CHECKING:
    from saescope.models import LanguageModel

Progress = Callable[[str, int, int], None]
_FOR_THE_MAP = 14  # nearest rows that it asks for


def analyze(
    dictionary: Dictionary,
    model: LanguageModel,
    text: Text | TokenWindows,
    hook_points: str | Sequence[str],
    *,
    name: str,
    store: Store,
    analysis: str = "default",
    hook_point_out: str = "",
    held_out: Text | TokenWindows | None = None,
    config: AnalysisConfig | None = None,
    dataset: str = "",
    series: str = "",
    source: str | Path = "",
    evaluations: Sequence[EvaluationResult] = (),
    run: TrainingRun | None = None,
    details: dict[str, Any] | None = None,
    overwrite: bool = False,
    checkpoint: Path | None = None,
    collected: Collected | None = None,
    on_progress: Progress | None = None,
) -> AnalysisRecord:
    """Analyse a dictionary on a text and write its features to ``store`` under ``name``.

    Args:
        text: windows that the model reads, or a :class:`CachedText` whose activations lie on disk.
        hook_points: where the dictionary reads; the sources of a crosscoder.
        analysis: the name of this analysis among those of the dictionary.
        hook_point_out: where the decoder rows of a transcoder write; their logit effects are taken from there.
        held_out: text on which labels are measured; without it labels carry no precision, recall and lift.
        source: where the dictionary lies (a path, a place on the hub, a published name), so that its name in the store is
            enough to open it again.
        evaluations: numbers of an evaluation, kept with the dictionary.
        run: how the dictionary was trained, kept with it.
        overwrite: replace what the store holds under these names.
        checkpoint: a file from which an analysis that was killed goes on; it is removed at the end.
        collected: the pass over ``text``, where it was made before (:func:`collect`, merged shards).
        on_progress: called with (what is being done, done, in all).

    Raises:
        ValueError: names that the store holds already, or what :func:`collect` refuses.
    """
    config, report = config or AnalysisConfig(), on_progress or (lambda what, done, total: None)
    hook_points = [hook_points] if isinstance(hook_points, str) else list(hook_points)
    known = store.analyses(name) if any(d.name == name for d in store.dictionaries()) else []
    if not overwrite and any(other.name == analysis for other in known):
        raise ValueError(
            f"the store already holds an analysis {analysis!r} of {name!r}; "
            "choose another name for one of them, or pass --overwrite"
        )
    size = config.batch_size_windows
    if isinstance(text, TokenWindows):
        text = LiveText(model, text, hook_points, num_tokens=config.num_tokens, batch_size_windows=size)
    if isinstance(held_out, TokenWindows):
        held_out = LiveText(
            model, held_out, hook_points, num_tokens=config.num_held_out_tokens, batch_size_windows=size
        )
    details = {"settings": asdict(config), "version": __version__, **(details or {})}
    if collected is None:
        collected = collect(
            dictionary, text, config,
            checkpoint=checkpoint, on_progress=lambda done, total: report("reading text", done, total),
        )  # fmt: skip
    else:
        collected.require(dictionary, text, config)
    statistics = collected.statistics
    vocabulary = vocabulary_texts(model.tokenizer, model.vocab_size)
    labels = label_features(statistics, dictionary, text, held_out, model.tokenizer, vocabulary, on_progress=report)
    rows = _Rows(dictionary, statistics, collected.sample, config, report)
    rows_out, place = written_rows(dictionary, hook_points, hook_point_out)
    effects = None
    try:
        effects = logit_effects(rows_out, unembedding_for(model, place), num_tokens=config.num_logits)
    except ValueError as why:  # everything else can be said of such a dictionary all the same
        details["no_logit_effects"] = str(why)
    details |= {
        "map": rows.map_method,
        "num_cofiring_tokens": rows.num_cofiring_tokens,
        "tokens_by_position": statistics.tokens_by_stretch().tolist(),
    }

    unknown: dict[str, None] = {} if text.reads_special_tokens else {"special_share": None}
    if not statistics.numbers()["negative_share"].any():
        unknown["negative_share"] = None  # features of this dictionary fire in one direction

    record = AnalysisRecord(
        name=analysis,
        dataset=dataset,
        context_size=text.windows.config.context_size,
        num_tokens=statistics.num_tokens,
        num_windows=len(text),
        details=details,
    )
    store.write(
        DictionaryRecord(
            name=name,
            model=model.name,
            hook_point=", ".join(hook_points),
            hook_point_out=hook_point_out,
            architecture=dictionary.architecture,
            d_in=dictionary.d_in,
            d_sae=dictionary.d_sae,
            series=series,
            details={"source": _lasting(source)} if str(source) else {},
        ),
        record,
        _features(statistics, rows, effects, labels, vocabulary, unknown, report),
        _windows(text, statistics.kept_windows(), model),
        (example for feature in range(dictionary.d_sae) for example in statistics.examples(feature)),
        evaluations=evaluations,
        run=run,
        overwrite=overwrite,
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return record


def _lasting(source: str | Path) -> str:
    """A path that means the same from every folder; what is none stays as it is."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else str(source)


def refresh_logits(
    dictionary: Dictionary,
    model: LanguageModel,
    *,
    name: str,
    store: Store,
    analysis: str | None = None,
    num_logits: int = 20,
    on_progress: Progress | None = None,
) -> int:
    """Compute the logit effects of an analysis in the store anew, and nothing else; returns the number of features.

    Raises:
        ValueError: rows that have no direct effect on the logits, or another dictionary than the analysed one.
    """
    known = store.dictionary(name)
    if (known.d_in, known.d_sae, known.architecture) != (dictionary.d_in, dictionary.d_sae, dictionary.architecture):
        raise ValueError(
            f"{name!r} in the store is a {known.architecture} dictionary of {known.d_sae} features on {known.d_in}, this "
            f"is a {dictionary.architecture} one of {dictionary.d_sae} on {dictionary.d_in}"
        )
    rows, place = written_rows(dictionary, known.hook_point.split(", "), known.hook_point_out)
    vocabulary = vocabulary_texts(model.tokenizer, model.vocab_size)
    effects = logit_effects(rows, unembedding_for(model, place), num_tokens=num_logits)

    def updates() -> Iterator[tuple[int, dict[str, Any]]]:
        for index, effect in enumerate(effects):
            yield index, {**_moments(effect), **_tokens(effect, vocabulary)}
            if on_progress:
                on_progress("logit effects", index + 1, dictionary.d_sae)

    return store.update(name, updates(), analysis=analysis)


class _Rows:
    """What the weights and the firings say of pairs of features, computed once for all of them."""

    def __init__(
        self,
        dictionary: Dictionary,
        statistics: FeatureStatistics,
        sample: TokenSample,
        config: AnalysisConfig,
        report: Progress,
    ) -> None:
        report("comparing features", 0, 4)
        self.numbers = row_numbers(dictionary)
        self.num = config.num_neighbours
        self.decoder = nearest_rows(dictionary.W_dec, max(self.num, _FOR_THE_MAP))
        report("comparing features", 1, 4)
        self.encoder = None
        if dictionary.encoder_rows is not None:
            self.encoder = nearest_rows(dictionary.encoder_rows, config.num_neighbours)
        report("comparing features", 2, 4)
        self.firing = sample.neighbours(config.num_neighbours)
        self.num_cofiring_tokens = self.firing.num_tokens
        report("comparing features", 3, 4)
        self.map_method, self.x, self.y, self.cluster = "none", None, None, None
        if config.map != "none":
            made = feature_map(dictionary.W_dec, method=config.map, seed=config.seed, nearest=self.decoder)
            self.map_method, self.x, self.y, self.cluster = made.method, made.x, made.y, made.cluster
        report("comparing features", 4, 4)

    def neighbours(self, feature: int) -> dict[str, tuple[Neighbour, ...]]:
        found = {"decoder": _near(self.decoder.indices[feature, : self.num], self.decoder.cosines[feature])}
        if self.encoder is not None:
            found["encoder"] = _near(self.encoder.indices[feature], self.encoder.cosines[feature])
        firing = self.firing
        found["firing"] = _near(firing.indices[feature], firing.values[feature], firing.num_both[feature])
        return found

    def of(self, feature: int) -> dict[str, Any]:
        """Numbers of a feature record."""
        numbers = self.numbers
        return {
            "decoder_norm": float(numbers.decoder_norm[feature]),
            "encoder_norm": float(numbers.encoder_norm[feature]),
            "encoder_bias": _at(numbers.encoder_bias, feature),
            "encoder_decoder_cosine": _at(numbers.encoder_decoder_cosine, feature),
            "map_x": _at(self.x, feature),
            "map_y": _at(self.y, feature),
            "cluster": None if self.cluster is None or self.cluster[feature] < 0 else int(self.cluster[feature]),
        }


def _near(indices: np.ndarray, values: np.ndarray, both: np.ndarray | None = None) -> tuple[Neighbour, ...]:
    return tuple(
        Neighbour(feature=int(i), value=float(values[n]), num_both=None if both is None else int(both[n]))
        for n, i in enumerate(indices)
        if i >= 0
    )


def _at(numbers: np.ndarray | None, place: int) -> float | None:
    """None for what was not measured, and for what is not defined."""
    return None if numbers is None or np.isnan(numbers[place]) else float(numbers[place])


def _moments(effect: LogitEffects) -> dict[str, Any]:
    return {
        "logit_mean": effect.mean,
        "logit_std": effect.std,
        "logit_skew": effect.skew,
        "logit_kurtosis": effect.kurtosis,
    }


def _tokens(effect: LogitEffects, vocabulary: list[str]) -> dict[str, Any]:
    def with_text(ids: list[int], values: list[float]) -> tuple[TokenLogit, ...]:
        return tuple(TokenLogit(token_id=i, text=vocabulary[i], logit=v) for i, v in zip(ids, values, strict=True))

    return {
        "top_logits": with_text(effect.top_ids, effect.top_values),
        "bottom_logits": with_text(effect.bottom_ids, effect.bottom_values),
        "logit_histogram": effect.histogram,
    }


def _features(
    statistics: FeatureStatistics,
    rows: _Rows,
    effects: Iterator[LogitEffects] | None,
    labels: Sequence[Label | None],
    vocabulary: list[str],
    unknown: dict[str, None],
    report: Progress,
) -> Iterator[Feature]:
    stretches = statistics.positions()
    for feature in range(statistics.d_sae):
        effect = next(effects) if effects else None
        edges, counts = statistics.histogram(feature)
        yield Feature(
            record=FeatureRecord(
                index=feature,
                label=labels[feature],
                **(statistics.record_numbers(feature) | unknown),
                **rows.of(feature),
                **(_moments(effect) if effect else {}),
            ),
            detail=FeatureDetail(
                histogram=Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist())),
                bands=tuple(statistics.bands(feature)),
                positions=tuple(stretches[feature].tolist()),
                neighbours=rows.neighbours(feature),
                sources=() if rows.numbers.source_norms is None else tuple(rows.numbers.source_norms[feature].tolist()),
                **(_tokens(effect, vocabulary) if effect else {}),
            ),
        )
        report("writing features", feature + 1, statistics.d_sae)


def _windows(text: Text, numbers: Sequence[int] | np.ndarray, model: LanguageModel) -> Iterator[Window]:
    reader, windows = TokenReader(model.tokenizer), text.windows
    for number in map(int, numbers):
        batch = windows.batch([number])
        ids = batch.ids[0][batch.attention[0]].tolist()
        document, offset = windows.document_of(int(windows.starts[number]))
        words, ranges = reader.read(ids)
        yield Window(
            id=number,
            document=document.name,
            offset=max(offset, 0),
            text=words,
            token_ids=tuple(ids),
            token_ranges=tuple(ranges),
        )
