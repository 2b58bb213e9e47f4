"""The pass over the text against a plain loop with dense activations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig
from saescope.analysis.features import histogram
from saescope.analysis.firings import collect_firings, top_windows
from saescope.dictionaries import ReLU, TopK, TopKConfig

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=["topk", "relu"])
def dictionary(request):
    if request.param == "topk":
        return TopK(TopKConfig(d_in=16, d_sae=24, k=3), seed=1)
    return ReLU(ReLU.Config(d_in=16, d_sae=24), seed=1)


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def text(request, documents, tokenizer):
    return TokenWindows.build(documents[:6], tokenizer, WindowConfig(context_size=32, packing=request.param))


@pytest.fixture(scope="module")
def dense(dictionary, tiny, text):
    """Activations of all analysed tokens, one window at a time: (position, window, [d_sae]) each."""
    rows = []
    for number in range(len(text)):
        batch = text.batch([number])
        length = int(batch.attention.sum())
        x = tiny.read(batch.ids[:, :length], [HOOK])[HOOK][0]
        f = dictionary.encode(x)
        rows += [(int(batch.positions[0, t]), number, f[t].detach().numpy()) for t in range(length) if batch.keep[0, t]]
    return rows


def test_every_firing_is_there(dictionary, tiny, text, dense):
    table = collect_firings(dictionary, tiny, text, HOOK, batch_size_windows=4)
    assert table.num_tokens == len(dense) == text.num_tokens
    assert table.positions.tolist() == [position for position, _, _ in dense]
    assert table.window.tolist() == [window for _, window, _ in dense]
    f = np.stack([row for _, _, row in dense])
    for feature in range(24):
        places, values = table.of(feature)
        expected = np.flatnonzero(f[:, feature] > 1e-6)
        strong = values > 1e-6
        assert places[strong].tolist() == expected.tolist()
        np.testing.assert_allclose(values[strong], f[expected, feature], rtol=1e-4, atol=1e-5)
    assert table.counts.sum() == len(table.values)


def test_top_windows_are_the_highest_peaks(dictionary, tiny, text, dense):
    table = collect_firings(dictionary, tiny, text, HOOK)
    for feature in range(24):
        places, values = table.of(feature)
        best: dict[int, float] = {}
        for place, value in zip(places, values, strict=True):
            window = int(table.window[place])
            best[window] = max(best.get(window, 0.0), float(value))
        found = top_windows(table, feature, 5)
        assert [peak.value for peak in found] == sorted(best.values(), reverse=True)[:5]
        for peak in found:
            assert best[peak.window] == peak.value
            assert table.window[peak.place] == peak.window


def test_a_feature_that_never_fires_has_no_windows(tiny, text):
    silent = ReLU(ReLU.Config(d_in=16, d_sae=3))
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    table = collect_firings(silent, tiny, text, HOOK)
    assert table.counts.tolist() == [0, 0, 0]
    assert top_windows(table, 1, 3) == []
    assert histogram(table.of(1)[1], 10).counts == ()


def test_the_histogram_counts_every_positive_activation():
    values = np.random.default_rng(0).gamma(2.0, size=500).astype(np.float32)
    found = histogram(values, 8)
    width = values.max() / 8
    for i, count in enumerate(found.counts):
        low, high = i * width, (i + 1) * width
        inside = (values >= low) & ((values < high) if i < 7 else (values <= values.max()))
        assert count == inside.sum()
    assert sum(found.counts) == 500
    assert found.edges[0] == 0
    assert found.edges[-1] == pytest.approx(float(values.max()))
