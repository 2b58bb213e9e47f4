"""Blocks of text: every token once, with the activations that the model or the cache has for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig, write_cache
from saescope.analysis import CachedText, LiveText

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def text(request, documents, tokenizer):
    return TokenWindows.build(documents[:9], tokenizer, WindowConfig(context_size=32, packing=request.param))


def joined(source, **which):
    """All blocks behind each other: ids, windows, counted, special, places, x."""
    blocks = list(source.blocks(**which))
    arrays = [
        np.concatenate([getattr(b.tokens, name) for b in blocks]) for name in ("ids", "windows", "counted", "special")
    ]
    return [*arrays, np.concatenate([b.places for b in blocks]), torch.cat([b.x for b in blocks])]


def test_every_attended_token_has_its_row(tiny, text):
    source = LiveText(tiny, text, HOOKS[:1], batch_size_windows=3)
    ids, windows, counted, special, places, x = joined(source)
    whole = text.batch(range(len(text)))
    assert ids.tolist() == whole.ids.tolist()
    assert windows.tolist() == list(range(len(text)))
    assert counted.sum() == text.num_tokens == source.num_tokens
    assert (counted | special).tolist() == whole.attention.tolist()
    assert not (counted & special).any()
    assert len(np.unique(places)) == len(places) == len(x) == counted.sum() + special.sum()
    row = 0
    for number in range(len(text)):
        length = int(whole.attention[number].sum())
        expected = tiny.read(whole.ids[number : number + 1, :length], HOOKS[:1])[HOOKS[0]][0]
        torch.testing.assert_close(x[row : row + length], expected, rtol=1e-4, atol=1e-5)
        assert places[row : row + length].tolist() == list(range(32 * number, 32 * number + length))
        row += length


def test_sources_of_a_crosscoder_are_joined(tiny, text):
    both = joined(LiveText(tiny, text, HOOKS))[-1]
    one, other = (joined(LiveText(tiny, text, [name]))[-1] for name in HOOKS)
    assert both.equal(torch.cat([one, other], dim=-1))


def test_a_stretch_of_windows(tiny, text):
    source = LiveText(tiny, text, HOOKS[:1], batch_size_windows=4)
    _, windows, *_ = joined(source, first=3, last=9)
    assert windows.tolist() == list(range(3, 9))
    assert list(source.blocks(5, 5)) == []


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("num_tokens", [None, 200])
def test_a_cache_gives_what_the_model_gives(tiny, text, tmp_path, exclude, num_tokens):
    cache = write_cache(
        tiny, text, HOOKS, tmp_path / "cache", exclude_special_tokens=exclude, model_batch_size_windows=1
    )
    cached = CachedText(cache, HOOKS, num_tokens=num_tokens, batch_size_windows=3)
    live = LiveText(tiny, text, HOOKS, num_tokens=num_tokens, batch_size_windows=1)
    assert cached.reads_special_tokens is not exclude
    assert cached.num_tokens == live.num_tokens
    found, expected = joined(cached), joined(live)
    for name, a, b in zip(("ids", "windows", "counted"), found, expected, strict=False):
        assert a.tolist() == b.tolist(), name
    rows = expected[2][expected[2] | expected[3]] if exclude else np.ones(len(expected[-1]), bool)
    assert found[4].tolist() == expected[4][rows].tolist()
    torch.testing.assert_close(found[-1], expected[-1][torch.from_numpy(rows)], rtol=1e-4, atol=1e-5)
    assert found[3].any() != exclude


def test_a_cache_without_the_hook_point_is_refused(tiny, text, tmp_path):
    cache = write_cache(tiny, text, HOOKS[:1], tmp_path / "cache")
    with pytest.raises(ValueError, match="holds activations at"):
        CachedText(cache, ["blocks.2.hook_resid_post"])
