"""The map as columns: the same as going through all records."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from saescope.store import Feature, NotInStoreError, Store


def _features(make: SimpleNamespace, seed: int, number: int = 300) -> list[Feature]:
    """Some without a place, some with half of one, some dead, some in no cluster; not in order."""
    rng = random.Random(seed)
    features = []
    for index in rng.sample(range(1000), number):
        place = {"map_x": rng.uniform(-20, 20), "map_y": rng.gauss(0, 1e-3), "cluster": rng.randrange(5)}
        match rng.randrange(10):
            case 0:
                place["map_x"] = None
            case 1:
                place["map_y"] = None
            case 2:
                place["cluster"] = None
            case 3:
                place |= {"num_firings": 0, "density": 0.0}
        features.append(make.feature(index, **place))
    return features


def test_columns_are_those_of_the_records(store: Store, make: SimpleNamespace):
    first, second = _features(make, 0), _features(make, 1, 40)
    record = make.dictionary(d_sae=1000)
    store.write(make.dictionary("other", d_sae=1000), make.analysis(), _features(make, 2), [], [])
    store.write(record, make.analysis(), first, [], [])
    store.write(record, make.analysis("second"), second, [], [])
    for analysis, features in (("default", first), ("second", second), (None, second)):
        found = store.map_points("tiny", analysis=analysis)
        records = sorted((feature.record for feature in features), key=lambda record: record.index)
        there = [record for record in records if record.map_x is not None and record.map_y is not None]
        assert 0 < len(there) < len(records)
        assert found.num_features == len(records)
        assert len(found) == len(there)
        assert found.index.tolist() == [record.index for record in there]
        assert found.x.tolist() == [record.map_x for record in there]
        assert found.y.tolist() == [record.map_y for record in there]
        assert found.density.tolist() == [record.density for record in there]
        assert found.cluster.tolist() == [-1 if record.cluster is None else record.cluster for record in there]
        assert -1 in found.cluster
        assert found.dictionary.name == "tiny"
        assert found.analysis.name == analysis or (analysis is None and found.analysis.name == "second")


def test_an_analysis_without_a_map_has_no_points(store: Store, make: SimpleNamespace):
    store.write(make.dictionary(), make.analysis(), [make.feature(index) for index in range(4)], [], [])
    found = store.map_points()
    assert len(found) == 0
    assert found.num_features == 4
    with pytest.raises(NotInStoreError, match="did you mean 'tiny'"):
        store.map_points("tony")
