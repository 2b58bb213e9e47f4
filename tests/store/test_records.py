from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest

from saescope.store import Histogram


def test_records_are_json_values(make: SimpleNamespace) -> None:
    feature = make.feature(3, label=make.label("digits"))
    for record in (make.dictionary(), feature, make.window(1), make.example(3, 0, 1)):
        json.dumps(dataclasses.asdict(record), allow_nan=False)


def test_contradictions_are_refused(make: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="2 counts needs 3 edges, got 2"):
        Histogram(edges=(0.0, 1.0), counts=(1, 2))
    with pytest.raises(ValueError, match="window 7 has 6 token ids but 1 token texts"):
        make.window(7, token_texts=("a",))
    with pytest.raises(ValueError, match="2 positions but 1 values"):
        make.example(0, 0, 0, values=(1.0,))
    with pytest.raises(ValueError, match="position 2, has no activation"):
        make.example(0, 0, 0, peak=2)
    with pytest.raises(ValueError, match="feature 4: mean_activation is nan"):
        make.feature(4, mean_activation=math.nan)
