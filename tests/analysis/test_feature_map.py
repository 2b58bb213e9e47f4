"""Maps of rows: PCA against the whole singular value decomposition, UMAP and clusters on planted groups."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from saescope.analysis import feature_map as module
from saescope.analysis.feature_map import feature_map
from saescope.analysis.neighbours import nearest_rows


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups(num_rows=60, num_groups=3, width=12, spread=0.15):
    """Rows around a few directions, of all lengths; and the group of each."""
    group = torch.arange(num_rows) % num_groups
    rows = normal(num_groups, width)[group] + spread * normal(num_rows, width, seed=1)
    return rows * normal(num_rows, 1, seed=2).exp(), group.numpy()


def brute_force_plane(rows):
    unit = rows.double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    plane = u[:, :2] * s[:2]
    return plane * np.sign(plane[np.abs(plane).argmax(0), [0, 1]])


def without_umap(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (9000, 5), (3, 3), (3, 2)])
def test_pca_equals_the_decomposition_of_all_rows(shape):
    rows = normal(*shape) * torch.linspace(3, 1, shape[1])
    found = feature_map(rows, method="pca")
    np.testing.assert_allclose(np.stack([found.x, found.y], 1), brute_force_plane(rows), atol=1e-5)
    assert found.method == "pca"


def test_only_directions_count():
    rows, _ = groups()
    found, scaled = feature_map(rows, method="pca"), feature_map(rows * normal(60, 1, seed=5).exp(), method="pca")
    np.testing.assert_allclose(scaled.x, found.x, atol=1e-5)
    np.testing.assert_allclose(scaled.y, found.y, atol=1e-5)
    np.testing.assert_array_equal(scaled.cluster, found.cluster)


@pytest.mark.parametrize("method", ["pca", "umap"])
def test_planted_groups_lie_together_and_are_the_clusters(method):
    rows, group = groups()
    found = feature_map(rows, method=method, num_neighbours=8, num_clusters=3)
    assert found.method == method
    assert np.isfinite(found.x).all()
    assert np.isfinite(found.y).all()
    places = np.stack([found.x, found.y], 1)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all()
    assert {tuple(np.unique(group[found.cluster == c])) for c in range(3)} == {(0,), (1,), (2,)}


def test_umap_with_a_seed_gives_the_same_map_also_with_neighbours_known_before():
    rows, _ = groups(30)
    first = feature_map(rows, method="umap", seed=4, num_neighbours=6)
    for nearest in (None, nearest_rows(rows, 9), nearest_rows(rows, 2)):  # the last has too few, which are not used
        again = feature_map(rows, method="umap", seed=4, num_neighbours=6, nearest=nearest)
        np.testing.assert_allclose(again.x, first.x, atol=1e-4)
        np.testing.assert_allclose(again.y, first.y, atol=1e-4)
        np.testing.assert_array_equal(again.cluster, first.cluster)
    assert (feature_map(rows, method="umap", seed=5, num_neighbours=6).x != first.x).any()


@pytest.mark.parametrize("method", ["pca", "umap"])
def test_rows_of_zeros_have_no_place_and_move_no_other(method):
    rows, _ = groups(24)
    place = torch.tensor([0, 7, 25, 26])
    padded = torch.zeros(28, 12)
    others = [i for i in range(28) if i not in place.tolist()]
    padded[others] = rows
    found, expected = (feature_map(r, method=method, num_neighbours=5) for r in (padded, rows))
    assert np.isnan(found.x[place]).all()
    assert np.isnan(found.y[place]).all()
    assert (found.cluster[place] == -1).all()
    np.testing.assert_allclose(found.x[others], expected.x, atol=1e-4)
    np.testing.assert_array_equal(found.cluster[others], expected.cluster)
    # in neighbours that are known already, the rows of zeros count
    known = feature_map(padded, method=method, num_neighbours=5, nearest=nearest_rows(padded, 6))
    np.testing.assert_allclose(known.x[others], expected.x, atol=1e-4)


@pytest.mark.parametrize("method", ["auto", "umap", "pca"])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 9])
def test_few_rows_are_drawn_by_pca(method, num_rows):
    found = feature_map(normal(num_rows, 4), method=method)
    assert found.method == "pca"
    assert len(found.x) == len(found.y) == len(found.cluster) == num_rows
    assert np.isfinite(found.x).all()
    if num_rows == 1:
        assert (found.x[0], found.y[0]) == (0, 0)
    if num_rows == 2:
        assert found.x[0] == pytest.approx(-found.x[1])
        assert found.y == pytest.approx([0, 0], abs=1e-6)


def test_fewer_rows_than_neighbours_are_all_neighbours():
    found = feature_map(normal(11, 4), method="umap", num_neighbours=50)
    assert found.method == "umap"
    assert np.isfinite(found.x).all()


@pytest.mark.parametrize("rows", [torch.ones(20, 4), torch.zeros(20, 4), torch.ones(20, 1), normal(20, 1)])
def test_rows_that_do_not_span_a_plane_are_drawn_by_pca(rows):
    found = feature_map(rows, method="umap")
    assert found.method == "pca"
    there = (rows != 0).any(1).numpy()
    assert (np.isfinite(found.x) == there).all()
    np.testing.assert_allclose(found.y[there], 0, atol=1e-6)


def test_auto_is_umap_where_it_is_installed_and_rows_are_not_too_many(monkeypatch):
    rows, _ = groups(30)
    assert feature_map(rows).method == "umap"
    monkeypatch.setattr(module, "MOST_FOR_UMAP", 29)
    assert feature_map(rows).method == "pca"
    assert feature_map(rows, method="umap").method == "umap"


def test_without_umap_auto_is_pca_and_asking_for_it_says_what_to_install(monkeypatch):
    without_umap(monkeypatch)
    monkeypatch.setitem(sys.modules, "umap", None)  # an import would fail
    rows, _ = groups(30)
    assert feature_map(rows).method == "pca"
    with pytest.raises(ValueError, match=r"pip install 'saescope\[map\]'"):
        feature_map(rows, method="umap")


def test_clusters_are_numbered_by_size_and_small_ones_dissolved():
    directions = torch.eye(5)
    sizes = [4, 2, 9, 4, 1]
    rows = torch.cat([directions[i].repeat(size, 1) for i, size in enumerate(sizes)]) + 0.01 * normal(20, 5)
    found = feature_map(rows, method="pca", num_clusters=5)
    # of the two of four rows, the one that comes first; two rows and one row are no clusters
    assert found.cluster.tolist() == [1] * 4 + [-1] * 2 + [0] * 9 + [2] * 4 + [-1]


def test_more_clusters_than_distinct_rows_are_no_more_than_those():
    rows = torch.eye(3).repeat(4, 1)
    found = feature_map(rows, method="pca", num_clusters=7)
    assert found.cluster.tolist() == [0, 1, 2] * 4


def test_as_many_clusters_as_the_root_of_half_the_rows():
    assert len(np.unique(feature_map(normal(800, 3), method="pca").cluster)) == 20


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        (normal(5, 3), {"method": "tsne"}, "not by 'tsne'"),
        (normal(5, 3), {"num_neighbours": 1}, "num_neighbours must be at least 2"),
        (normal(5, 3), {"num_clusters": 0}, "num_clusters at least 1"),
        (normal(5), {}, "expected a matrix"),
        (torch.tensor([[1.0], [torch.nan]]), {}, "row 1 holds NaN"),
        (normal(5, 3), {"nearest": nearest_rows(normal(4, 3), 2)}, "nearest rows of 4 rows do not fit 5 rows"),
    ],
)
def test_what_can_not_be_drawn_is_refused(rows, options, words):
    with pytest.raises(ValueError, match=words):
        feature_map(rows, **options)
