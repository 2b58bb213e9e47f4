"""The JSON of a page holds the page: it can be built again from it, number for number."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from hypothesis import given
from hypothesis import strategies as st

from saescope.store.records import (
    AnalysisRecord,
    Band,
    DictionaryRecord,
    Explanation,
    FeatureDetail,
    FeaturePage,
    FeatureRecord,
    Histogram,
    Label,
    Neighbour,
    Note,
    PageExample,
    TokenLogit,
    Window,
)
from saescope.web.page_json import page_as_json

_numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.1, 1 / 3, 1e-300, 2.0**-40])
_words = st.text(st.characters() | st.sampled_from("<>&\x00漢\ud800é"), max_size=8)


def _maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


def _rebuilt(kind: type, values: dict[str, Any]) -> Any:
    """A record from JSON values, by the types of its fields; a field that the JSON lacks is an error."""
    hints = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    assert names == set(values), (kind, names ^ set(values))
    return kind(**{name: _value(hints[name], values[name]) for name in names})


def _value(hint: Any, value: Any) -> Any:
    arguments = [argument for argument in get_args(hint) if argument is not Ellipsis]
    records = [argument for argument in [hint, *arguments] if hasattr(argument, "__dataclass_fields__")]
    if isinstance(value, list):
        return tuple(_value(arguments[0], item) for item in value)
    if isinstance(value, dict) and records:
        return _rebuilt(records[0], value)
    if isinstance(value, dict) and arguments and "Neighbour" in str(hint):
        return {key: _value(arguments[1], item) for key, item in value.items()}
    return value


def _page_of(document: dict[str, Any]) -> FeaturePage:
    examples = []
    for example in document.pop("examples"):
        values = dict(zip(example.pop("positions"), example.pop("values"), strict=True))
        size = len(example["window"]["token_ids"])
        dense = tuple(values.get(position, 0.0) for position in range(size))
        examples.append(_rebuilt(PageExample, {**example, "activations": list(dense)}))
    document["all_examples"] = []
    page = _rebuilt(FeaturePage, document)
    return FeaturePage(**{**vars(page), "all_examples": tuple(examples)})


@st.composite
def _pages(draw: st.DrawFn) -> FeaturePage:
    label = draw(_maybe(st.builds(
        Label, text=_words, kind=_words, precision=_maybe(_numbers), recall=_maybe(_numbers), lift=_maybe(_numbers),
        num_firings=st.integers(0, 2**40),
    )))  # fmt: skip
    record = FeatureRecord(
        index=draw(st.integers(0, 9)), num_firings=draw(st.integers(0, 2**40)), density=draw(_numbers),
        max_activation=draw(_numbers), mean_activation=draw(_maybe(_numbers)), special_share=draw(_maybe(_numbers)),
        first_firing=draw(_maybe(st.integers(0, 2**40))), logit_skew=draw(_maybe(_numbers)), label=label,
    )  # fmt: skip
    logits = st.lists(st.builds(TokenLogit, token_id=st.integers(0, 9), text=_words, logit=_numbers), max_size=2)
    detail = FeatureDetail(
        histogram=Histogram(edges=(0.1, 0.3, draw(_numbers)), counts=(draw(st.integers(0, 2**40)), 1)),
        bands=(
            Band(kind="width", number=0, low=draw(_numbers), high=1.0, num_windows=None, num_tokens=3, share=1 / 3),
        ),
        positions=tuple(draw(st.lists(st.integers(0, 9), max_size=3))),
        top_logits=tuple(draw(logits)),
        bottom_logits=tuple(draw(logits)),
        neighbours={"firing": (Neighbour(feature=3, value=draw(_numbers), num_both=draw(_maybe(st.integers(0, 9)))),)},
        sources=tuple(draw(st.lists(_numbers, max_size=2))),
    )
    texts = draw(st.lists(_words, min_size=1, max_size=4))
    window = Window.of_texts(id=3, document=draw(_words), offset=7, token_ids=range(len(texts)), token_texts=texts)
    values = draw(st.lists(st.just(0.0) | _numbers, min_size=len(texts), max_size=len(texts)))
    example = PageExample(
        window=window, peak=0, activation=values[0], activations=tuple(values), num_copies=draw(st.integers(1, 9)),
        top_rank=draw(_maybe(st.integers(0, 9))), quantile_band=draw(_maybe(st.integers(0, 9))), width_band=None,
        negative=draw(_maybe(st.sampled_from(["near_miss", "silent"]))),
    )  # fmt: skip
    return FeaturePage(
        dictionary=DictionaryRecord(
            name=draw(_words),
            model="m",
            hook_point="h",
            architecture="topk",
            d_in=4,
            d_sae=16,
            details={"a": [1, None]},
        ),
        analysis=AnalysisRecord(dataset=draw(_words), context_size=8, num_tokens=100),
        feature=record,
        detail=detail,
        all_examples=(example,) * draw(st.integers(0, 2)),
        explanations=(Explanation(text=draw(_words), score=draw(_maybe(_numbers)), id=4, details={"b": {"c": 0.1}}),),
        tags=tuple(draw(st.lists(_words, max_size=2))),
        notes=(Note(text=draw(_words), author="x", id=1),),
        is_bookmarked=draw(st.booleans()),
    )


@given(_pages())
def test_a_page_can_be_built_again_from_its_json(page: FeaturePage) -> None:
    document = json.loads(json.dumps(page_as_json(page), allow_nan=False))
    assert _page_of(document) == page
