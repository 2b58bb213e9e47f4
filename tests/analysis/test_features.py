"""From a dictionary to the store: what a page shows equals what the activations are."""

from __future__ import annotations

import numpy as np
import pytest

from saescope.activations import TokenWindows, WindowConfig
from saescope.analysis import AnalysisConfig, analyze
from saescope.analysis.features import unembedding_for
from saescope.analysis.firings import collect_firings
from saescope.dictionaries import TopK, TopKConfig
from saescope.store import Store

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def dictionary():
    return TopK(TopKConfig(d_in=16, d_sae=24, k=3), seed=1)


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def text(request, documents, tokenizer):
    return TokenWindows.build(documents[:20], tokenizer, WindowConfig(context_size=32, packing=request.param))


@pytest.fixture(scope="module")
def store(dictionary, tiny, text, documents, tokenizer, tmp_path_factory):
    held_out = TokenWindows.build(documents[20:], tokenizer, WindowConfig(context_size=32))
    with Store.open(tmp_path_factory.mktemp("store") / "features.db") as opened:
        analyze(
            dictionary, tiny, text, HOOK, name="d", store=opened, held_out=held_out,
            config=AnalysisConfig(num_examples=4, num_bins=6, num_logits=3), dataset="words", metrics={"l0": 3.0},
        )  # fmt: skip
        yield opened


def test_the_record_says_what_was_analysed(store, text):
    record = store.dictionary("d")
    assert (record.model, record.hook_point, record.architecture, record.dataset) == ("tiny", HOOK, "topk", "words")
    assert (record.d_in, record.d_sae, record.context_size) == (16, 24, 32)
    assert record.num_tokens == text.num_tokens
    assert record.metrics == {"l0": 3.0}


def test_numbers_are_those_of_the_firings(store, dictionary, tiny, text):
    table = collect_firings(dictionary, tiny, text, HOOK)
    for feature in store.features("d", sort="index", descending=False, limit=24):
        _, values = table.of(feature.index)
        assert feature.num_firings == len(values)
        assert feature.density == len(values) / text.num_tokens
        if len(values):
            assert feature.max_activation == values.max()
            assert feature.mean_activation == pytest.approx(values.astype(np.float64).mean())
            assert sum(feature.histogram.counts) == len(values)
        assert len(feature.top_logits) == 3


def test_examples_show_the_activations_of_their_windows(store, dictionary, tiny, text, tokenizer):
    """Each example, read again with the model, gives the same activation at every token."""
    shown = 0
    for index in range(24):
        page = store.page("d", index)
        peaks = [example.activation for example in page.examples]
        assert peaks == sorted(peaks, reverse=True)
        for example in page.examples:
            ids = example.window.token_ids
            x = tiny.read(np_ids(ids), [HOOK])[HOOK][0]
            f = dictionary.encode(x)[:, index].detach().numpy()
            special = np.isin(ids, list(text.special_ids))
            np.testing.assert_allclose(np.where(special, 0, f), example.activations, atol=2e-5)
            assert example.activations[example.peak] == example.activation == max(example.activations)
            assert "".join(example.window.token_texts) == tokenizer.decode(ids)
            document = next(d for d in text.documents if d.name == example.window.document)
            first_piece = next(piece for piece in tokenizer.decode(ids).split("<|endoftext|>") if piece)
            assert first_piece in document.text
            shown += 1
    assert shown > 24


def test_labels_carry_what_was_measured_on_held_out_text(store):
    labels = [feature.label for feature in store.features("d", limit=24) if feature.label]
    assert labels
    for label in labels:
        assert label.text
        assert label.precision is None or 0 <= label.precision <= 1
        assert label.lift is None or label.lift >= 0


def test_a_name_that_is_taken_is_refused_before_any_work(store, dictionary, text):
    with pytest.raises(ValueError, match="overwrite"):
        analyze(dictionary, None, text, HOOK, name="d", store=store)  # type: ignore[arg-type]


def test_logit_effects_are_for_the_residual_stream_alone(tiny, text, tmp_path):
    """attn.hook_z is exactly as wide as the stream; effects computed from it would be numbers without meaning."""
    assert tiny.width("blocks.1.attn.hook_z") == tiny.d_model
    for hook in ("blocks.0.hook_resid_mid", "blocks.2.hook_mlp_out", "transformer.h.1", "transformer.h.1.input"):
        assert unembedding_for(tiny, hook).weight.shape == (320, 16)
    with pytest.raises(ValueError, match="not on the residual stream"):
        unembedding_for(tiny, "blocks.1.attn.hook_z")
    dictionary = TopK(TopKConfig(d_in=16, d_sae=8, k=2))
    with Store.open(tmp_path / "z.db") as store:
        record = analyze(dictionary, tiny, text, "blocks.1.attn.hook_z", name="z", store=store)
        assert "residual stream" in record.details["no_logit_effects"]
        assert all(feature.top_logits == () for feature in store.features("z", limit=8))


def test_a_causal_model_of_an_unknown_family_is_analysed_without_logits(tiny, text, tmp_path, monkeypatch):
    import saescope.models.language_model as language_model

    monkeypatch.setattr(language_model, "family_of", lambda config: None)
    dictionary = TopK(TopKConfig(d_in=16, d_sae=8, k=2))
    with Store.open(tmp_path / "u.db") as store:
        record = analyze(dictionary, tiny, text, "transformer.h.1", name="u", store=store)
        assert "not known" in record.details["no_logit_effects"]
        assert sum(feature.num_firings for feature in store.features("u", limit=8)) > 0


def np_ids(ids):
    import torch

    return torch.tensor([ids])
