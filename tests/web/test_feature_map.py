"""The map: its bytes and numbers are those of the records, and its page says what there is without scripts."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saescope.store import AnalysisRecord, DictionaryRecord, Feature, FeatureRecord, Label, Store
from saescope.web.app import create_app

NAME = "maps/of <b>many"
URL = "maps%2Fof%20%3Cb%3Emany"


def _records(seed: int, number: int = 200) -> list[FeatureRecord]:
    """Some dead, some without a place, some in no cluster."""
    rng = random.Random(seed)
    records = []
    for index in sorted(rng.sample(range(1000), number)):
        cluster = rng.randrange(4)
        firings = 0 if rng.random() < 0.1 else rng.randrange(1, 10**5)
        has_place = rng.random() < 0.9
        label = Label(text=f"<u>label</u> {index}", kind="tokens", precision=0.5, lift=2.0, num_firings=9)
        records.append(
            FeatureRecord(
                index=index,
                num_firings=firings,
                density=firings / 10**6,
                max_activation=1.0,
                map_x=rng.gauss(3 * cluster, 1) if has_place else None,
                map_y=rng.gauss(-cluster, 1) if has_place else None,
                cluster=cluster if has_place and rng.random() < 0.9 else None,
                label=label if index % 2 else None,
            )
        )
    return records


def _write(store: Store, records: list[FeatureRecord], *, overwrite: bool = False, **analysis: Any) -> None:
    record = DictionaryRecord(name=NAME, model="m", hook_point="h", architecture="topk", d_in=8, d_sae=1000)
    details = {"map": "umap", **analysis.pop("details", {})}
    made = AnalysisRecord(dataset="d", context_size=8, num_tokens=10**6, details=details, **analysis)
    store.write(record, made, [Feature(record=each) for each in records], [], [], overwrite=overwrite)


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "maps.db") as store:
        _write(store, _records(0))
        yield store


@pytest.fixture
def map_client(mapped: Store, client_of: Callable[..., Any]) -> Any:
    return client_of(create_app(mapped))


def _decoded(content: bytes) -> list[tuple[int, float, float, float, int]]:
    count = len(content) // 20
    assert len(content) == 20 * count
    columns = [struct.unpack_from(f"<{count}{kind}", content, 4 * count * at) for at, kind in enumerate("Ifffi")]
    return list(zip(*columns, strict=True))


def _float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def test_the_bytes_are_the_records(map_client: Any):
    answer = map_client.get(f"/api/d/{URL}/map/points")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    points = _decoded(answer.content)
    there = [record for record in _records(0) if record.map_x is not None]
    assert len(points) == len(there) > 100
    for (index, x, y, log_density, cluster), record in zip(points, there, strict=True):
        assert record.map_x is not None
        assert record.map_y is not None
        assert (index, x, y) == (record.index, _float32(record.map_x), _float32(record.map_y))
        assert cluster == (-1 if record.cluster is None else record.cluster)
        if record.is_dead:
            assert math.isnan(log_density)
        else:
            assert log_density == pytest.approx(math.log10(record.density), rel=1e-6)
    assert any(record.is_dead for record in there)
    assert any(record.cluster is None for record in there)


def test_the_summary_counts_and_says_where_the_map_ends(map_client: Any):
    there = [record for record in _records(0) if record.map_x is not None and record.map_y is not None]
    x, y = [record.map_x for record in there], [record.map_y for record in there]
    logs = [math.log10(record.density) for record in there if record.density]
    found = map_client.get(f"/api/d/{URL}/map").json()
    ends = found["bounds"].pop("log_density")
    assert ends == pytest.approx([min(logs), max(logs)])
    assert found == {
        "dictionary": NAME,
        "analysis": "default",
        "method": "umap",
        "num_features": 200,
        "num_points": len(there),
        "num_dead": sum(record.is_dead for record in there),
        "num_clusters": 4,
        "bounds": {"x": [min(x), max(x)], "y": [min(y), max(y)]},  # type: ignore[type-var]
    }


def _median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def test_the_page_tells_of_clusters_in_a_table(map_client: Any):
    page = map_client.get(f"/d/{URL}/map").text
    rows = page.split("<tbody>")[1].split("</tbody>")[0].split("<tr>")[1:]
    assert len(rows) == 4
    for cluster, row in enumerate(rows):
        members = [record for record in _records(0) if record.cluster == cluster]
        assert f'<th scope="row">{cluster}</th>' in row
        assert f">{len(members)}</a>" in row
        middle = [_median([getattr(record, axis) for record in members]) for axis in ("map_x", "map_y")]
        nearest = sorted(members, key=lambda record: math.dist((record.map_x, record.map_y), middle))[:3]
        assert [f"/d/{URL}/f/{record.index}" in row for record in nearest] == [True] * 3
        for record in nearest:
            assert ("label&lt;/u&gt;" in row) if record.label else "unlabelled" in row
    assert "<u>label" not in page
    assert "UMAP" in page
    assert 'role="img"' in page


def test_another_analysis_and_one_that_was_written_anew(mapped: Store, map_client: Any):
    _write(mapped, _records(1, 50), name="second")
    assert len(_decoded(map_client.get(f"/api/d/{URL}/map/points").content)) < 50
    first = map_client.get(f"/api/d/{URL}/map/points", params={"analysis": "default"}).content
    assert len(_decoded(first)) > 100
    page = map_client.get(f"/d/{URL}/map", params={"analysis": "default"}).text
    assert "f/{index}?analysis=default" in page.replace("\\u007b", "{").replace("\\u007d", "}")
    _write(mapped, _records(2), overwrite=True, created_at="2030-01-01T00:00:00+00:00")
    again = map_client.get(f"/api/d/{URL}/map/points", params={"analysis": "default"}).content
    assert again != first
    assert [point[0] for point in _decoded(again)] == [r.index for r in _records(2) if r.map_x is not None]


def test_a_map_is_read_from_the_store_once(mapped: Store, map_client: Any, monkeypatch: pytest.MonkeyPatch):
    asked = []
    read = mapped.map_points
    monkeypatch.setattr(mapped, "map_points", lambda *args, **how: asked.append(args) or read(*args, **how))
    for path in (f"/api/d/{URL}/map", f"/api/d/{URL}/map/points", f"/d/{URL}/map", f"/api/d/{URL}/map/points"):
        assert map_client.get(path).status_code == 200
    assert len(asked) == 1


@pytest.mark.parametrize("settings", [{"settings": {"map": "none"}}, {}])
def test_without_a_map_the_page_says_how_to_make_one(
    tmp_path: Path, client_of: Callable[..., Any], settings: dict[str, Any]
):
    plain = [FeatureRecord(index=i, num_firings=1, density=0.1, max_activation=1.0) for i in range(5)]
    with Store.open(tmp_path / "plain.db") as store:
        _write(store, plain, details=settings)
        client = client_of(create_app(store))
        page = client.get(f"/d/{URL}/map")
        assert page.status_code == 200
        assert "has no map" in page.text
        assert "saescope analyze" in page.text
        assert ("[settings]" in page.text) == bool(settings)
        assert "sae-map" not in page.text
        assert client.get(f"/api/d/{URL}/map/points").content == b""
        found = client.get(f"/api/d/{URL}/map").json()
        assert (found["num_features"], found["num_points"], found["bounds"]["x"]) == (5, 0, None)


def test_the_option_that_makes_a_map_is_the_one_that_is_named():
    from saescope.analysis.config import AnalysisConfig
    from saescope.cli.analysis_file import AnalysisFile

    assert AnalysisFile(settings={"map": "auto"}).settings == {"map": "auto"}
    assert AnalysisConfig(map="none").map == "none"


def test_what_is_not_there_is_404(map_client: Any):
    for path in ("/d/maps/map", "/api/d/maps/map", "/api/d/maps/map/points"):
        assert map_client.get(path).status_code == 404
    answer = map_client.get(f"/api/d/{URL}/map", params={"analysis": "defalt"})
    assert answer.status_code == 404
    assert "did you mean 'default'" in answer.json()["error"]["message"]
    assert map_client.get(f"/api/d/{URL}/map", params={"analysis": "x" * 2000}).status_code == 422
