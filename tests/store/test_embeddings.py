"""Search by meaning: exact cosines, embedders apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from saescope.store import Explanation, Store, embeddings


def _embed(texts: list[str]) -> np.ndarray:
    """A made-up embedder: another vector for every text."""
    return np.stack([np.random.default_rng(sum(map(ord, text))).normal(size=6) for text in texts])


@pytest.fixture
def texts(store: Store, fill: Callable[..., object]) -> dict[int, str]:
    fill(store)
    fill(store, "other")
    store.explain("other", 1, Explanation(text="elsewhere"))
    said = {store.explain("tiny", index % 8, Explanation(text=f"text {index}")): f"text {index}" for index in range(20)}
    store.explain("tiny", 15, Explanation(text="of a feature that was not analysed"))
    return said


def test_similar_is_the_exact_cosine(store: Store, texts: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_CHUNK", 7)
    assert store.embed("tiny", "made-up", _embed, batch=6) == 21
    assert store.embed("tiny", "made-up", _embed) == 0
    assert store.embed("other", "made-up", _embed) == 1
    wanted = np.arange(6.0) - 2
    vectors = _embed(list(texts.values())).astype(np.float32).astype(np.float64)
    cosines = vectors @ wanted / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted)
    order = np.argsort(-cosines)
    found = store.similar("tiny", wanted, "made-up", limit=50)
    assert [known.text for _, known, _ in found] == [list(texts.values())[i] for i in order]
    np.testing.assert_allclose([cosine for *_, cosine in found], cosines[order], rtol=1e-12)
    for feature, known, _ in found:
        assert known.id is not None
        assert feature == store.page("tiny", int(texts[known.id].split()[1]) % 8).feature
    assert store.similar("tiny", list(wanted), "made-up", 3) == found[:3]


def test_a_vector_of_zeros_is_far_from_everything(store: Store, texts: dict[int, str]) -> None:
    store.embed("tiny", "zeros", lambda some: np.zeros((len(some), 3)))
    assert {cosine for *_, cosine in store.similar("tiny", [1, 0, 0], "zeros")} == {0.0}


def test_embedders_are_never_mixed(store: Store, texts: dict[int, str]) -> None:
    with pytest.raises(ValueError, match="no explanation of 'tiny' has a vector of 'a': none of its explanations has"):
        store.similar("tiny", [1.0], "a")
    store.embed("tiny", "a", lambda some: np.ones((len(some), 2)))
    store.embed("tiny", "b", lambda some: -np.ones((len(some), 3)))
    assert [cosine for *_, cosine in store.similar("tiny", [1, 1], "a")] == pytest.approx([1.0] * 20)
    assert [cosine for *_, cosine in store.similar("tiny", [1, 1, 1], "b")] == pytest.approx([-1.0] * 20)
    with pytest.raises(ValueError, match="no explanation of 'tiny' has a vector of 'c': there are vectors of 'a', 'b'"):
        store.similar("tiny", [1, 1], "c")
    with pytest.raises(ValueError, match="vectors of 'a' in the store have 2 numbers, this one has 3"):
        store.similar("tiny", [1, 1, 1], "a")
    with pytest.raises(ValueError, match="vectors of 'a' in the store have 2 numbers, this one has 3"):
        store.embed("other", "a", lambda some: np.ones((len(some), 3)))
    assert store.embed("other", "a", lambda some: np.ones((len(some), 2))) == 1


def test_a_new_explanation_gets_a_vector_and_a_forgotten_one_loses_it(store: Store, texts: dict[int, str]) -> None:
    store.embed("tiny", "a", _embed)
    number = store.explain("tiny", 3, Explanation(text="new"))
    asked: list[list[str]] = []
    assert store.embed("tiny", "a", lambda some: asked.append(some) or _embed(some)) == 1  # type: ignore[func-returns-value]
    assert asked == [["new"]]
    assert store.similar("tiny", _embed(["new"])[0], "a", 1)[0][1].id == number
    store.forget_explanation(number)
    assert store.similar("tiny", _embed(["new"])[0], "a", 1)[0][1].id != number


def test_answers_that_make_no_sense_are_refused(store: Store, texts: dict[int, str]) -> None:
    for answer in (np.ones((3, 2)), np.ones(21), np.ones((21, 0))):
        with pytest.raises(
            ValueError, match=r"'a' gave an array of shape .* for 21 texts; expected one vector for each"
        ):
            store.embed("tiny", "a", lambda some, answer=answer: answer)  # type: ignore[misc]
    with pytest.raises(ValueError, match="numbers that are not finite"):
        store.embed("tiny", "a", lambda some: np.full((21, 2), np.nan))
    for wrong in ([0.0, 0.0], [[1.0, 2.0]], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="expected one vector of finite numbers that is not 0"):
            store.similar("tiny", wrong, "a")
    with pytest.raises(ValueError, match="limit=0"):
        store.similar("tiny", [1.0], "a", 0)


def test_what_was_embedded_before_a_failure_is_kept(store: Store, texts: dict[int, str]) -> None:
    seen: list[str] = []

    def embed(some: list[str]) -> np.ndarray:
        if len(seen) == 16:
            raise ConnectionError("gone")
        seen.extend(some)
        return _embed(some)

    with pytest.raises(ConnectionError, match="gone"):
        store.embed("tiny", "a", embed, batch=8)
    assert store.embed("tiny", "a", _embed) == 21 - 16
