"""From a dictionary to features in a store: what each one does, in numbers, examples and a label.

The pass over the text (``firings.py``) keeps every firing; from there each feature gets its density, its histogram, the
contexts in which it peaks, its effect on the logits and, found on this text and measured on held-out text, a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saescope.activations import TokenWindows
from saescope.analysis.firings import FiringTable, Peak, collect_firings, top_windows
from saescope.analysis.labelling import label_features
from saescope.analysis.logits import logit_effects
from saescope.dictionaries import AbsTopK, Crosscoder, Dictionary
from saescope.models.hook_points import HookPointError
from saescope.models.token_text import token_texts, vocabulary_texts
from saescope.store import DictionaryRecord, Example, FeatureRecord, Histogram, Label, Store, TokenLogit, Window

if TYPE_CHECKING:
    from saescope.models import LanguageModel, Unembedding

_WRITTEN_TO_THE_STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """How much to look at, and how much to keep."""

    num_tokens: int | None = None  # tokens to analyse, spread evenly over the text; None: all
    num_held_out_tokens: int | None = None  # held-out tokens on which labels are measured; None: all
    num_examples: int = 12  # contexts kept per feature
    num_bins: int = 40  # of the histogram of positive activations, equal width from 0 to the maximum
    num_logits: int = 10  # tokens kept in each direction

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_bins", "num_logits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def analyze(
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    hook_point: str,
    *,
    name: str,
    store: Store,
    hook_point_out: str | None = None,
    held_out: TokenWindows | None = None,
    config: AnalysisConfig | None = None,
    dataset: str = "",
    metrics: dict[str, float] | None = None,
    details: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> DictionaryRecord:
    """Analyse a dictionary on ``windows`` and write its features to ``store`` under ``name``.

    Args:
        hook_point_out: where the decoder rows of a transcoder write; their logit effects are taken from there.
        held_out: text on which labels are measured; without it labels carry no precision and no lift.
        metrics: numbers of the evaluation, kept with the record.
        overwrite: replace what the store holds under this name.
        on_progress: called with (what is being done, done, in all).
    """
    _refuse_what_is_not_there_yet(dictionary)
    config = config or AnalysisConfig()
    report = on_progress or (lambda what, done, total: None)
    if not overwrite and any(record.name == name for record in store.dictionaries()):
        raise ValueError(f"the store already holds {name!r}; choose another name or pass --overwrite")

    details = dict(details or {})
    try:
        unembedding = unembedding_for(model, hook_point_out or hook_point)
    except ValueError as why:  # everything else can be said of such a dictionary all the same
        unembedding, details["no_logit_effects"] = None, str(why)

    def collect(text: TokenWindows, what: str) -> FiringTable:
        total = text.num_tokens
        return collect_firings(dictionary, model, text, hook_point, on_progress=lambda n: report(what, n, total))

    windows = windows.evenly(config.num_tokens)
    table = collect(windows, "reading text")
    held_out_table = None
    if held_out is not None:
        held_out = held_out.evenly(config.num_held_out_tokens)
        held_out_table = collect(held_out, "reading held-out text")
    vocabulary = vocabulary_texts(model.tokenizer, model.vocab_size)
    labels = label_features(
        table,
        windows,
        held_out_table,
        held_out,
        model.tokenizer,
        vocabulary,
        on_progress=lambda n: report("naming features", n, table.d_sae),
    )
    record = DictionaryRecord(
        name=name,
        model=model.name,
        hook_point=hook_point,
        architecture=dictionary.architecture,
        dataset=dataset,
        d_in=dictionary.d_in,
        d_sae=dictionary.d_sae,
        context_size=windows.config.context_size,
        num_tokens=table.num_tokens,
        metrics=metrics or {},
        details=details,
    )
    peaks = [top_windows(table, feature, config.num_examples) for feature in range(table.d_sae)]
    used = sorted({peak.window for of_feature in peaks for peak in of_feature})
    store.write(
        record,
        _features(dictionary, unembedding, table, labels, vocabulary, config),
        _windows(windows, used, model),
        _examples(windows, table, peaks),
        overwrite=overwrite,
    )
    return record


def _refuse_what_is_not_there_yet(dictionary: Dictionary) -> None:
    if isinstance(dictionary, Crosscoder):
        raise ValueError(
            "crosscoders can be trained and evaluated; what their features do in each source can not be analysed yet"
        )
    if isinstance(dictionary, AbsTopK):
        raise ValueError(
            f"features of a {dictionary.architecture} dictionary fire in two directions, which the analysis can not "
            "tell apart yet; train a topk dictionary to look at features"
        )


def histogram(values: np.ndarray, num_bins: int) -> Histogram:
    """Counts of positive activations in bins of equal width from 0 to the maximum."""
    if not len(values):
        return Histogram(edges=(), counts=())
    counts, edges = np.histogram(values, bins=num_bins, range=(0.0, float(values.max())))
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def unembedding_for(model: LanguageModel, hook_point: str) -> Unembedding:
    """The unembedding that a dictionary's decoder rows can be sent through.

    Raises:
        ValueError: they cannot: rows written at this hook point do not enter the residual stream (a matter of meaning, not
            of width: ``attn.hook_z`` is often just as wide), or what follows the stream is unknown or no linear map.
    """
    unembedding = model.unembedding()
    place = model.hook_point(hook_point).canonical
    for layer in range(model.module.config.get_text_config().num_hidden_layers):
        for name in _WRITTEN_TO_THE_STREAM:
            try:
                if model.hook_point(f"blocks.{layer}.{name}").canonical == place:
                    return unembedding
            except HookPointError:  # parallel blocks have no hook_resid_mid
                continue
    raise ValueError(
        f"{hook_point} is not on the residual stream, so its decoder rows have no direct effect on the logits"
    )


def _features(
    dictionary: Dictionary,
    unembedding: Unembedding | None,
    table: FiringTable,
    labels: list[Label | None],
    vocabulary: list[str],
    config: AnalysisConfig,
) -> Iterator[FeatureRecord]:
    def with_text(ids: list[int], values: list[float]) -> tuple[TokenLogit, ...]:
        return tuple(
            TokenLogit(token_id=i, text=vocabulary[i], logit=value) for i, value in zip(ids, values, strict=True)
        )

    effects = logit_effects(dictionary.W_dec, unembedding, num_tokens=config.num_logits) if unembedding else None
    for feature in range(table.d_sae):
        _, values = table.of(feature)
        effect = next(effects) if effects else None
        yield FeatureRecord(
            index=feature,
            num_firings=len(values),
            density=len(values) / table.num_tokens,
            max_activation=float(values.max()) if len(values) else 0.0,
            mean_activation=float(values.mean(dtype=np.float64)) if len(values) else 0.0,
            histogram=histogram(values, config.num_bins),
            top_logits=with_text(effect.top_ids, effect.top_values) if effect else (),
            bottom_logits=with_text(effect.bottom_ids, effect.bottom_values) if effect else (),
            label=labels[feature],
        )


def _windows(windows: TokenWindows, numbers: list[int], model: LanguageModel) -> Iterator[Window]:
    for number in numbers:
        batch = windows.batch([number])
        ids = batch.ids[0][batch.attention[0]].tolist()
        document, offset = windows.document_of(int(windows.starts[number]))
        yield Window(
            id=number,
            document=document.name,
            offset=max(offset, 0),
            token_ids=tuple(ids),
            token_texts=tuple(token_texts(model.tokenizer, ids)),
        )


def _examples(windows: TokenWindows, table: FiringTable, peaks: list[list[Peak]]) -> Iterator[Example]:
    opening = int(windows.bos_id is not None)
    for feature, of_feature in enumerate(peaks):
        places, values = table.of(feature)
        firing_windows = table.window[places]
        for rank, peak in enumerate(of_feature):
            here = slice(*np.searchsorted(firing_windows, [peak.window, peak.window + 1]))
            offset = int(windows.starts[peak.window]) - opening
            in_window = table.positions[places[here]] - offset
            yield Example(
                feature=feature,
                rank=rank,
                window_id=peak.window,
                peak=int(table.positions[peak.place]) - offset,
                activation=peak.value,
                positions=tuple(in_window.tolist()),
                values=tuple(values[here].tolist()),
            )
