from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from saescope.store import Histogram, Window


def test_records_are_json_values(make: SimpleNamespace) -> None:
    feature = make.feature(3, label=make.label("digits"))
    for record in (make.dictionary(), make.analysis(), feature, make.window(1), make.example(3, 1)):
        json.dumps(dataclasses.asdict(record), allow_nan=False)


def test_contradictions_are_refused(make: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="2 counts needs 3 edges, got 2"):
        Histogram(edges=(0.0, 1.0), counts=(1, 2))
    with pytest.raises(ValueError, match="window 7 has 2 token ids but 1 character ranges"):
        Window(id=7, document="d", offset=0, text="a", token_ids=(1, 2), token_ranges=((0, 1),))
    with pytest.raises(ValueError, match="window 7: its tokens end at character 1 of 2"):
        Window(id=7, document="d", offset=0, text="ab", token_ids=(1,), token_ranges=((0, 1),))
    with pytest.raises(ValueError, match="window 7: token 1 has the characters 2 to 3 of 3, after one that ends at 1"):
        Window(id=7, document="d", offset=0, text="abc", token_ids=(1, 2), token_ranges=((0, 1), (2, 3)))
    with pytest.raises(ValueError, match="2 positions but 1 values"):
        make.example(0, 0, values=(1.0,))
    with pytest.raises(ValueError, match="position 2, has no activation"):
        make.example(0, 0, peak=2)
    with pytest.raises(ValueError, match="is a silent, so it has no activations"):
        make.example(0, 0, negative="silent")
    with pytest.raises(ValueError, match="has no role"):
        make.example(0, 0, top_rank=None)
    with pytest.raises(ValueError, match="feature 4: mean_activation is nan"):
        make.record(4, mean_activation=math.nan)


def test_spans_cover_the_text_once() -> None:
    ranges = ((0, 3), (2, 3), (2, 4), (4, 4), (4, 6))
    window = Window(id=0, document="d", offset=0, text="abcdef", token_ids=(1, 2, 3, 4, 5), token_ranges=ranges)
    assert [(span.text, span.tokens) for span in window.spans] == [("abcd", range(4)), ("ef", range(4, 5))]
    assert window.token_texts == ("abc", "c", "cd", "", "ef")
