"""Samples of tokens: what is read, how it is split, and codes without a dense tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig
from saescope.dictionaries import ReLU
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation import TokenLabels, TokenSample, encode_sample, read_sample
from saescope.models import LanguageModel

HOOK = "transformer.h.1"


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def text(request: Any, documents: Any, tokenizer: Any) -> TokenWindows:
    return TokenWindows.build(documents[:5], tokenizer, WindowConfig(context_size=12, packing=request.param))


def test_every_token_with_its_place(tiny: LanguageModel, text: TokenWindows) -> None:
    sample = read_sample(tiny, text, [HOOK], batch_size_windows=3)
    assert len(sample) == text.num_tokens
    assert sample.y is sample.x
    seen = 0
    for number in range(len(text)):
        batch = text.batch([number])
        x = tiny.read(batch.ids, [HOOK], attention_mask=batch.attention)[HOOK][0]
        for place in batch.keep[0].nonzero().flatten().tolist():
            torch.testing.assert_close(sample.x[seen], x[place], rtol=1e-5, atol=1e-5)
            position = int(batch.positions[0, place])
            document, _ = text.document_of(position)
            assert sample.position[seen] == position
            assert sample.ids[seen] == batch.ids[0, place]
            assert sample.place[seen] == place
            assert text.documents[sample.document[seen]] is document
            seen += 1
    assert seen == len(sample)


def test_places_that_are_rebuilt_elsewhere(tiny: LanguageModel, text: TokenWindows) -> None:
    sample = read_sample(tiny, text, [HOOK, "transformer.h.0"], ["transformer.h.2"])
    alone = read_sample(tiny, text, ["transformer.h.2"])
    assert sample.x.shape[1] == 32
    assert torch.equal(sample.y, alone.x)
    assert torch.equal(sample.select(np.arange(5)).y, alone.x[:5])


def test_parts_hold_whole_documents_and_everything_once(tiny: LanguageModel, text: TokenWindows) -> None:
    sample = read_sample(tiny, text, [HOOK])
    parts = sample.parts((0.5, 0.25, 0.25), seed=3)
    np.testing.assert_array_equal(np.sum(parts, axis=0), 1)
    owners = [set(sample.document[part].tolist()) for part in parts]
    assert all(owners)
    assert sum(map(len, owners)) == len(set.union(*owners))
    again = sample.parts((0.5, 0.25, 0.25), seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    with pytest.raises(ValueError, match="documents can not be dealt out to 40 parts"):
        sample.parts([1] * 40)


def test_tiny_shares_still_get_a_document() -> None:
    sample = TokenSample.of_activations(torch.randn(7, 3))
    for shares in ((0.98, 0.01, 0.01), (0.01, 0.01, 0.98)):
        assert all(part.any() for part in sample.parts(shares))


def test_codes_are_those_of_the_dictionary_whatever_the_batches() -> None:
    torch.manual_seed(0)
    dictionary, x = ReLU(DictionaryConfig(d_in=6, d_sae=30)), torch.randn(50, 6)
    with torch.no_grad():
        dense = dictionary.encode(x).numpy()
    for size in (1, 7, 50, 1000):
        codes = encode_sample(dictionary, x, batch_size_tokens=size)
        assert codes.has_sorted_indices
        assert codes.nnz == np.count_nonzero(dense)
        np.testing.assert_allclose(codes.toarray(), dense, atol=1e-6)


def test_too_many_firings_and_nan_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = ReLU(DictionaryConfig(d_in=6, d_sae=30))
    monkeypatch.setattr("saescope.evaluation.sample.MOST_FIRINGS", 100)
    with pytest.raises(ValueError, match="more than 100 firings on the first"):
        encode_sample(dictionary, torch.randn(500, 6), batch_size_tokens=10)
    with pytest.raises(ValueError, match="gives NaN for feature activations"):
        encode_sample(dictionary, torch.full((3, 6), torch.nan))


def test_the_digest_sees_everything() -> None:
    x = torch.randn(4, 3)
    sample = TokenSample.of_activations(x)
    assert sample.digest == TokenSample.of_activations(x.clone()).digest
    moved = TokenSample.of_activations(x, document=np.array([0, 0, 1, 2]))
    assert (
        len({sample.digest, moved.digest, TokenSample.of_activations(x + 1).digest, sample.select(np.arange(3)).digest})
        == 4
    )


def test_labels_that_do_not_fit() -> None:
    sample = TokenSample.of_activations(torch.randn(4, 3))
    labels = TokenLabels(names=("a", "b"), values=np.eye(4, 2, dtype=bool))
    labels.check(sample)
    np.testing.assert_array_equal(labels.column("b"), [False, True, False, False])
    assert labels.select(np.array([1])).values.tolist() == [[False, True]]
    with pytest.raises(ValueError, match="labels for 3 tokens, but the sample has 4"):
        labels.select(np.arange(3)).check(sample)
    with pytest.raises(ValueError, match="no label is named 'c'; there are a, b"):
        labels.column("c")
    with pytest.raises(ValueError, match=r"labels must be bool \[tokens, 2\]"):
        TokenLabels(names=("a", "b"), values=np.eye(4, 3, dtype=bool))
    with pytest.raises(ValueError, match="two labels are named a"):
        TokenLabels(names=("a", "a"), values=np.eye(4, 2, dtype=bool))
    with pytest.raises(ValueError, match="holds no tokens"):
        TokenSample.of_activations(torch.randn(0, 3))
