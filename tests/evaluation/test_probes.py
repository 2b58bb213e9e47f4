"""Linear probes: against the loss written out, and found again where the numbers are the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, sparse

from saescope.evaluation import probes
from saescope.evaluation.probes import fit_probe


@pytest.fixture(autouse=True)
def nothing_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_fitted", {})


def samples(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(200, 5))
    return x, x @ generator.normal(size=5) + generator.normal(size=200) > 0.8


@pytest.mark.parametrize("balanced", [False, True])
def test_is_the_minimum_of_the_penalised_loss(balanced: bool) -> None:
    x, y = samples()
    weights = np.where(y, 1 / y.mean(), 1 / (1 - y.mean())) / 2 if balanced else np.ones(len(y))

    def loss(v: np.ndarray) -> float:
        fits = np.logaddexp(0, np.where(y, -1, 1) * (x @ v[:5] + v[5]))
        return float(0.3 * (weights * fits).sum() + v[:5] @ v[:5] / 2)

    best = optimize.minimize(loss, np.zeros(6), tol=1e-10).x
    probe = fit_probe(x, y, c=0.3, balanced=balanced)
    assert probe.converged
    assert np.append(probe.weights, probe.bias) == pytest.approx(best, abs=1e-3)


def test_the_same_numbers_are_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples()
    first = fit_probe(x, y)
    monkeypatch.setattr(probes, "_fit", lambda *_: pytest.fail("fitted again"))
    assert fit_probe(x.copy(), y.copy()) is first
    assert fit_probe(np.asfortranarray(x), y) is first  # by values, not by how they lie in memory


def test_anything_else_is_fitted_anew() -> None:
    x, y = samples()
    first = fit_probe(x, y)
    moved, flipped = x.copy(), y.copy()
    moved[3, 2] = np.nextafter(moved[3, 2], 9)
    flipped[7] = not flipped[7]
    others = [
        fit_probe(moved, y), fit_probe(x, flipped), fit_probe(x.astype(np.float32), y), fit_probe(x, y, c=2.0),
        fit_probe(x, y, balanced=True), fit_probe(x, y, max_iter=999),
    ]  # fmt: skip
    assert all(other is not first for other in others)
    assert len(probes._fitted) == 1 + len(others)


def test_what_is_remembered_can_not_be_written_over() -> None:
    with pytest.raises(ValueError, match="read-only"):
        fit_probe(*samples()).weights[0] = 1.0


def test_features_are_not_remembered_and_the_rest_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = samples()
    fit_probe(sparse.csr_array(x), y)
    assert not probes._fitted
    monkeypatch.setattr(probes, "_MOST_FITTED", 3)
    found = [fit_probe(x * scale, y) for scale in (1.0, 2.0, 3.0, 4.0)]
    assert list(probes._fitted.values()) == found[1:]  # the oldest went
