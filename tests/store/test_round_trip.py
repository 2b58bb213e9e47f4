"""Anything a record can hold comes back equal: all float64, integers beyond 32 bits, token texts of any characters."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saescope.store import (
    AnalysisRecord,
    Band,
    DictionaryRecord,
    EvaluationResult,
    Example,
    Explanation,
    Feature,
    FeatureDetail,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Note,
    Store,
    TokenLogit,
    TrainingRun,
    Window,
)
from saescope.store.records import NUMBERS

_numbers = st.floats(allow_nan=False, allow_infinity=False)
_float32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
_some = st.one_of(_numbers, _float32)
_counts = st.integers(0, 2**62)
_small = st.integers(0, 2**31 - 1)
_any_text = st.text(st.characters(), max_size=6)  # surrogates and NUL included
_plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
_name = _plain.filter(str.strip)
_json = st.recursive(
    st.none() | st.booleans() | _numbers | st.integers() | _any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any_text, inner, max_size=3),
    max_leaves=4,
)
_details = st.dictionaries(_any_text, _json, max_size=3)
_dictionaries = st.builds(
    DictionaryRecord,
    name=_name,
    model=_plain,
    hook_point=_plain,
    hook_point_out=_plain,
    architecture=_plain,
    d_in=_small,
    d_sae=st.integers(1, 2**31 - 1),
    series=_plain,
    details=_details,
)
_analyses = st.builds(
    AnalysisRecord,
    name=_name,
    dataset=_plain,
    context_size=_small,
    num_tokens=_counts,
    num_windows=_counts,
    created_at=_name,
    details=_details,
)
_labels = st.builds(
    Label,
    text=_plain,
    kind=_plain,
    precision=st.none() | _numbers,
    recall=st.none() | _numbers,
    lift=st.none() | _numbers,
    num_firings=_counts,
)
_whole = ("num_firings", "num_windows", "first_firing", "last_firing")
_records = st.builds(
    FeatureRecord,
    index=st.just(0),
    label=st.none() | _labels,
    cluster=st.none() | _small,
    **{
        name: (_counts if name in _whole else _numbers)
        if FeatureRecord.__dataclass_fields__[name].default is not None
        else st.none() | (_counts if name in _whole else _numbers)
        for name in NUMBERS
        if name != "cluster"
    },
)
_histograms = st.one_of(
    st.builds(
        lambda edge, bins: Histogram(edges=(edge, *(e for e, _ in bins)), counts=tuple(c for _, c in bins)),
        _numbers,
        st.lists(st.tuples(_some, _counts), min_size=1, max_size=4),
    ),
    st.just(Histogram()),
    st.builds(
        lambda first, counts: Histogram(
            edges=tuple(2.0 ** (k / 4) for k in range(first, first + len(counts) + 1)), counts=tuple(counts)
        ),
        st.integers(-600, 600),
        st.lists(_counts, min_size=1, max_size=9),
    ),
)
_logits = st.one_of(
    *(
        st.lists(st.builds(TokenLogit, token_id=_counts, text=_any_text, logit=some), max_size=3)
        for some in (_some, _float32)
    )
).map(tuple)
_bands = st.builds(
    Band,
    kind=_any_text,
    number=_small,
    low=_numbers,
    high=_numbers,
    num_windows=_counts,
    num_tokens=_counts,
    share=_numbers,
)
_near = st.builds(Neighbour, feature=_small, value=_some, num_both=st.none() | _counts)
_feature_details = st.builds(
    FeatureDetail,
    histogram=_histograms,
    bands=st.lists(_bands, max_size=3).map(tuple),
    positions=st.lists(_counts, max_size=3).map(tuple),
    top_logits=_logits,
    bottom_logits=_logits,
    logit_histogram=_histograms,
    neighbours=st.dictionaries(_any_text, st.lists(_near, max_size=3).map(tuple), max_size=3),
    sources=st.lists(_numbers, max_size=3).map(tuple),
)


@st.composite
def _windows(draw: st.DrawFn) -> Window:
    text = draw(_any_text)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    ranges = list(pairwise([0, *cuts, len(text)]))
    # some tokens reach back over characters of the one before
    shared = [(draw(st.integers(before[0], start)), end) for before, (start, end) in pairwise(ranges)]
    return Window(
        id=draw(_counts),
        document=draw(_plain),
        offset=draw(_counts),
        text=text,
        token_ids=tuple(draw(st.lists(_small, min_size=len(ranges), max_size=len(ranges)))),
        token_ranges=(ranges[0], *shared),
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    dictionary=_dictionaries,
    analysis=_analyses,
    feature=st.builds(Feature, record=_records, detail=_feature_details),
    window=_windows(),
    data=st.data(),
)
def test_an_analysis_comes_back_equal(
    store: Store,
    dictionary: DictionaryRecord,
    analysis: AnalysisRecord,
    feature: Feature,
    window: Window,
    data: st.DataObject,
) -> None:
    length = len(window.token_ids)
    values = data.draw(st.lists(_float32, min_size=length, max_size=length))
    example = Example(
        feature=0,
        window_id=window.id,
        peak=data.draw(st.integers(0, length - 1)),
        activation=data.draw(_numbers),
        positions=tuple(range(length)),
        values=tuple(values),
        num_copies=data.draw(_small),
        **{role: data.draw(_small) for role in ("top_rank", "quantile_band", "width_band")},
    )
    silent = Example(
        feature=0,
        window_id=window.id,
        peak=0,
        activation=0.0,
        positions=(),
        values=(),
        negative=data.draw(st.just("silent")),
    )
    store.write(dictionary, analysis, [feature], [window], [silent, example])
    page = store.page(dictionary.name, 0)
    store.delete(dictionary.name)
    assert (page.dictionary, page.analysis) == (dictionary, analysis)
    assert (page.feature, page.detail) == (feature.record, feature.detail)
    found, negative = page.all_examples
    assert found.window == negative.window == window
    assert (found.activations, negative.activations) == (tuple(values), (0.0,) * length)
    for name in ("peak", "activation", "num_copies", "top_rank", "quantile_band", "width_band", "negative"):
        assert (getattr(found, name), getattr(negative, name)) == (getattr(example, name), getattr(silent, name))


_explanations = st.builds(
    Explanation,
    text=_name,
    method=_plain,
    author=_plain,
    score=st.none() | _numbers,
    details=_details,
    created_at=_name,
)
_evaluations = st.builds(
    EvaluationResult,
    study=_plain,
    metric=_plain,
    **{name: st.none() | _numbers for name in ("value", "low", "high")},
    variant=_plain,
    code_version=_plain,
    details=_details,
    created_at=_name,
)
_runs = st.builds(TrainingRun, settings=_details, metrics=_details, code_version=_plain, created_at=_name)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    explanation=_explanations,
    note=st.builds(Note, text=_name, author=_plain, created_at=_name),
    evaluation=_evaluations,
    run=_runs,
    tag=_name.map(str.strip),
)
def test_what_is_added_comes_back_equal(
    store: Store, explanation: Explanation, note: Note, evaluation: EvaluationResult, run: TrainingRun, tag: str
) -> None:
    record = DictionaryRecord(name="tiny", model="", hook_point="", architecture="", d_in=1, d_sae=1)
    numbers = {name: 0 for name in NUMBERS if FeatureRecord.__dataclass_fields__[name].default is not None}
    feature = Feature(record=FeatureRecord(index=0, **numbers))
    store.write(record, AnalysisRecord(dataset="", context_size=1, num_tokens=1), [feature], [], [])
    known, written = store.explain("tiny", 0, explanation), store.add_note("tiny", 0, note)
    store.add_evaluations("tiny", [evaluation])
    store.add_run("tiny", run)
    store.tag("tiny", 0, tag)
    page, evaluations, runs = store.page("tiny", 0), store.evaluations(), store.runs()
    store.delete("tiny")
    assert page.explanations == (Explanation(**vars(explanation) | {"id": known}),)
    assert page.notes == (Note(**vars(note) | {"id": written}),)
    assert page.tags == (tag,)
    assert (evaluations, runs) == ([evaluation], [run])
