"""From a dictionary to the store: what a page shows equals what the activations are, computed densely and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saescope.activations import TokenWindows, WindowConfig, write_cache
from saescope.analysis import AnalysisConfig, CachedText, LiveText, analyze, collect, refresh_logits
from saescope.analysis.directions import unembedding_for
from saescope.dictionaries import TopK, TopKConfig, architecture
from saescope.store import EvaluationResult, Store, TrainingRun

HOOK = "blocks.1.hook_resid_post"
CONFIG = AnalysisConfig(
    num_examples=4, num_bands=3, num_per_band=2, num_negatives=2, num_logits=3, num_neighbours=4, map="pca"
)


@pytest.fixture(scope="module")
def dictionary():
    return TopK(TopKConfig(d_in=16, d_sae=24, k=3), seed=1)


@pytest.fixture(scope="module", params=["concatenate", "separate"])
def text(request, documents, tokenizer):
    return TokenWindows.build(documents[:20], tokenizer, WindowConfig(context_size=32, packing=request.param))


@pytest.fixture(scope="module")
def held_out(documents, tokenizer):
    return TokenWindows.build(documents[20:], tokenizer, WindowConfig(context_size=32))


@pytest.fixture(scope="module")
def store(dictionary, tiny, text, held_out, tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("store") / "features.db") as opened:
        analyze(
            dictionary, tiny, text, HOOK, name="d", store=opened, held_out=held_out, config=CONFIG, dataset="words",
            series="toys", evaluations=[EvaluationResult(study="reconstruction", metric="l0", value=3.0)],
            run=TrainingRun(settings={"seed": 1}),
        )  # fmt: skip
        yield opened


@pytest.fixture(scope="module")
def dense(dictionary, tiny, text):
    """Activations of all windows, padded: [windows, T, d_sae], with those of special and padding tokens set to 0; and the
    counted tokens, [windows, T]."""
    whole = text.batch(range(len(text)))
    f = np.zeros((*whole.ids.shape, 24))
    for number in range(len(text)):
        length = int(whole.attention[number].sum())
        x = tiny.read(whole.ids[number : number + 1, :length], [HOOK])[HOOK][0]
        f[number, :length] = dictionary.encode(x).detach().numpy()
    counted = whole.keep.numpy()
    return np.where(counted[..., None], f, 0), counted, f


def test_the_records_say_what_was_analysed(store, text):
    record = store.dictionary("d")
    assert (record.model, record.hook_point, record.architecture, record.series) == ("tiny", HOOK, "topk", "toys")
    assert (record.d_in, record.d_sae) == (16, 24)
    analysis = store.analysis("d")
    assert (analysis.name, analysis.dataset, analysis.context_size) == ("default", "words", 32)
    assert (analysis.num_tokens, analysis.num_windows) == (text.num_tokens, len(text))
    assert analysis.details["settings"]["num_examples"] == 4
    assert sum(analysis.details["tokens_by_position"]) == text.num_tokens
    assert [(e.metric, e.value) for e in store.evaluations("d")] == [("l0", 3.0)]
    assert store.runs("d")[0].settings == {"seed": 1}


def test_numbers_are_those_of_the_dense_activations(store, dense, dictionary):
    f, counted, everything = dense
    for index in range(24):
        page = store.page("d", index)
        record, all_values = page.feature, f[..., index][counted]
        values = all_values[all_values > 0]
        assert record.num_firings == len(values)
        assert record.density == len(values) / len(all_values)
        assert record.num_windows == (f[..., index] > 0).any(1).sum()
        if not len(values):
            assert record.is_dead
            continue
        places = np.flatnonzero((f[..., index] > 0).reshape(-1))
        assert (record.first_firing, record.last_firing) == (places[0], places[-1])
        for name, expected in {
            "max_activation": values.max(),
            "mean_activation": all_values.mean(),
            "std_activation": all_values.std(),
            "mean_positive": values.mean(),
            "decoder_norm": 1.0,
            "encoder_norm": float(dictionary.encoder_rows[index].detach().norm()),
            "encoder_bias": 0.0,
        }.items():
            assert getattr(record, name) == pytest.approx(expected, rel=1e-5, abs=1e-12), name
        special = everything[~counted][..., index]
        assert record.special_share == pytest.approx((special > 0).sum() / ((special > 0).sum() + len(values)))
        assert record.negative_share is None
        assert sum(page.detail.histogram.counts) == sum(page.detail.positions) == len(values)
        for kind in ("quantile", "width"):
            bands = [band for band in page.detail.bands if band.kind == kind]
            assert sum(band.num_tokens for band in bands) == len(values)
            assert sum(band.num_windows for band in bands) == record.num_windows


def test_examples_show_the_activations_of_their_windows(store, dense, text, tokenizer):
    f, _, _ = dense
    shown, roles = 0, set()
    for index in range(24):
        page = store.page("d", index)
        assert [example.top_rank for example in page.examples] == list(range(len(page.examples)))
        peaks = [example.activation for example in page.examples]
        assert peaks == sorted(peaks, reverse=True)
        if peaks:
            assert peaks[0] == pytest.approx(f[..., index].max(), rel=1e-5)
        for example in page.all_examples:
            window = example.window
            row = f[window.id, : len(window.token_ids), index]
            np.testing.assert_allclose(example.activations, row, atol=2e-5)
            assert window.text == tokenizer.decode(window.token_ids)
            assert "".join(span.text for span in window.spans) == window.text
            document = next(d for d in text.documents if d.name == window.document)
            first_piece = next(piece for piece in window.text.split("<|endoftext|>") if piece)
            assert first_piece in document.text
            if example.negative is None:
                assert example.activations[example.peak] == example.activation == max(example.activations)
            else:
                assert not any(example.activations)
            roles |= {
                name
                for name in ("top_rank", "quantile_band", "width_band", "negative")
                if getattr(example, name) is not None
            }
            shown += 1
        for kind in ("quantile", "width"):
            for band in [b for b in page.detail.bands if b.kind == kind]:
                drawn = page.in_band(kind, band.number)
                assert all(band.low <= example.activation < band.high for example in drawn)
                assert len(drawn) == min(2, band.num_windows) or any(e.num_copies > 1 for e in page.all_examples)
        nearest = page.detail.neighbours["decoder"][0].feature
        for example in page.negatives("near_miss"):
            assert f[example.window.id, example.peak, nearest] > 0
    assert shown > 24
    assert len(roles) == 4


def test_what_comes_from_the_weights(store, dictionary, tiny):
    rows = torch.nn.functional.normalize(dictionary.W_dec.detach().double(), dim=-1)
    cosines = rows @ rows.T - 2 * torch.eye(24)
    unembedding = unembedding_for(tiny, HOOK)
    through = dictionary.W_dec.detach().double() - dictionary.W_dec.detach().double().mean(-1, keepdim=True)
    logits = through * unembedding.norm_weight.double() @ unembedding.weight.double().T
    centred = logits - logits.mean(-1, keepdim=True)
    for index in range(24):
        page = store.page("d", index)
        expected = cosines[index].topk(4)
        assert [n.feature for n in page.detail.neighbours["decoder"]] == expected.indices.tolist()
        assert [n.value for n in page.detail.neighbours["decoder"]] == pytest.approx(expected.values.tolist())
        top = centred[index].topk(3)
        assert [t.token_id for t in page.detail.top_logits] == top.indices.tolist()
        assert [t.logit for t in page.detail.top_logits] == pytest.approx(top.values.tolist(), rel=1e-5)
        assert page.feature.logit_std == pytest.approx(float(centred[index].std(correction=0)), rel=1e-5)
        assert page.feature.map_x is not None


def test_labels_carry_what_was_measured_on_held_out_text(store):
    labels = [feature.label for feature in store.features("d", limit=24).features if feature.label]
    assert labels
    for label in labels:
        assert label.text
        assert label.precision is None or 0 <= label.precision <= 1
        assert label.lift is None or label.lift >= 0


def test_what_fires_together(store, dense):
    f, counted, _ = dense
    fires = (f > 0)[counted]  # every token is in the sample: the text is short
    phi = np.corrcoef(fires.T.astype(float))
    for index in range(24):
        for neighbour in store.page("d", index).detail.neighbours["firing"]:
            assert neighbour.value == pytest.approx(phi[index, neighbour.feature])
            assert neighbour.num_both == (fires[:, index] & fires[:, neighbour.feature]).sum()


def test_a_name_that_is_taken_is_refused_before_any_work(store, dictionary, text):
    with pytest.raises(ValueError, match="overwrite"):
        analyze(dictionary, None, text, HOOK, name="d", store=store)  # type: ignore[arg-type]


def test_a_second_analysis_stands_beside_the_first(store, dictionary, tiny, held_out):
    before = store.page("d", 3)
    analyze(dictionary, tiny, held_out, HOOK, name="d", analysis="other text", store=store, config=CONFIG)
    assert {a.name for a in store.analyses("d")} == {"default", "other text"}
    assert store.page("d", 3, analysis="default") == before
    assert store.page("d", 3).analysis.num_tokens == held_out.num_tokens
    store.delete("d", "other text")
    assert store.page("d", 3) == before


def test_the_same_from_a_cache_and_in_shards(dictionary, tiny, text, held_out, tmp_path):
    cache = write_cache(
        tiny, text, [HOOK], tmp_path / "cache", exclude_special_tokens=False, model_batch_size_windows=1
    )
    live = LiveText(tiny, text, [HOOK], batch_size_windows=1)
    cached = CachedText(cache, [HOOK], batch_size_windows=5)
    half = len(live) // 2
    merged = collect(dictionary, live, CONFIG, windows=(half, len(live)))
    merged.merge(collect(dictionary, live, CONFIG, windows=(0, half)))
    with Store.open(tmp_path / "three.db") as store:
        for name, source, collected in (("live", live, None), ("cached", cached, None), ("shards", live, merged)):
            analyze(
                dictionary, tiny, source, HOOK, name=name, store=store, held_out=held_out, config=CONFIG,
                collected=collected,
            )  # fmt: skip
        for index in range(24):
            expected = store.page("live", index)
            for name in ("cached", "shards"):
                found = store.page(name, index)
                assert found.all_examples == expected.all_examples
                assert found.detail == expected.detail
                assert found.feature.label == expected.feature.label
                assert found.feature.std_activation == pytest.approx(expected.feature.std_activation, rel=1e-12)


def test_half_of_the_shards_are_not_written(dictionary, tiny, text, tmp_path):
    live = LiveText(tiny, text, [HOOK])
    part = collect(dictionary, live, CONFIG, windows=(0, 3))
    with Store.open(tmp_path / "f.db") as store:
        with pytest.raises(ValueError, match="merge all shards"):
            analyze(dictionary, tiny, live, HOOK, name="d", store=store, config=CONFIG, collected=part)
        assert store.dictionaries() == []


def test_an_analysis_that_dies_in_a_later_stage_goes_on_from_its_pass(dictionary, tiny, text, tmp_path, monkeypatch):
    file = tmp_path / "pass.npz"

    def stop(what: str, done: int, total: int) -> None:
        if what == "naming features":
            raise KeyboardInterrupt

    with Store.open(tmp_path / "f.db") as store:
        with pytest.raises(KeyboardInterrupt):
            analyze(
                dictionary, tiny, text, HOOK, name="d", store=store, config=CONFIG, checkpoint=file, on_progress=stop
            )
        assert file.exists()
        monkeypatch.setattr(
            LiveText, "blocks", lambda self, first, last: iter(()) if first == last else pytest.fail("read again")
        )
        analyze(dictionary, tiny, text, HOOK, name="d", store=store, config=CONFIG, checkpoint=file)
        assert not file.exists()
        assert store.analysis("d").num_tokens == text.num_tokens


def test_logits_alone_can_be_refreshed(dictionary, tiny, text, tmp_path):
    with Store.open(tmp_path / "f.db") as store:
        analyze(dictionary, tiny, text, HOOK, name="d", store=store, config=CONFIG)
        before = store.page("d", 5)
        other = TopK(dictionary.config, seed=2)
        assert refresh_logits(other, tiny, name="d", store=store, num_logits=5) == 24
        after = store.page("d", 5)
        assert len(after.detail.top_logits) == 5
        assert after.feature.logit_std != before.feature.logit_std
        assert after.all_examples == before.all_examples
        assert after.detail.neighbours == before.detail.neighbours
        with pytest.raises(ValueError, match="a topk one of 48"):
            refresh_logits(TopK(TopKConfig(d_in=16, d_sae=48, k=3)), tiny, name="d", store=store)


def test_logit_effects_are_for_the_residual_stream_alone(tiny, text, tmp_path):
    """attn.hook_z is exactly as wide as the stream; effects computed from it would be numbers without meaning."""
    assert tiny.width("blocks.1.attn.hook_z") == tiny.d_model
    for hook in ("blocks.0.hook_resid_mid", "blocks.2.hook_mlp_out", "transformer.h.1", "transformer.h.1.input"):
        assert unembedding_for(tiny, hook).weight.shape == (320, 16)
    with pytest.raises(ValueError, match="not on the residual stream"):
        unembedding_for(tiny, "blocks.1.attn.hook_z")
    dictionary = TopK(TopKConfig(d_in=16, d_sae=8, k=2))
    with Store.open(tmp_path / "z.db") as store:
        record = analyze(dictionary, tiny, text, "blocks.1.attn.hook_z", name="z", store=store, config=CONFIG)
        assert "residual stream" in record.details["no_logit_effects"]
        assert all(page.detail.top_logits == () for page in store.pages("z"))


def test_a_causal_model_of_an_unknown_family_is_analysed_without_logits(tiny, text, tmp_path, monkeypatch):
    import saescope.models.language_model as language_model

    monkeypatch.setattr(language_model, "family_of", lambda config: None)
    dictionary = TopK(TopKConfig(d_in=16, d_sae=8, k=2))
    with Store.open(tmp_path / "u.db") as store:
        record = analyze(dictionary, tiny, text, "transformer.h.1", name="u", store=store, config=CONFIG)
        assert "not known" in record.details["no_logit_effects"]
        assert sum(feature.num_firings for feature in store.features("u", limit=8).features) > 0


def test_signed_dictionaries_keep_their_signs(tiny, text, tmp_path):
    cls = architecture("abs_topk")
    dictionary = cls(cls.Config(d_in=16, d_sae=24, k=3), seed=1)
    with Store.open(tmp_path / "s.db") as store:
        analyze(dictionary, tiny, text, HOOK, name="s", store=store, config=CONFIG)
        pages = list(store.pages("s"))
        both_ways = [page for page in pages if 0 < page.feature.negative_share < 1]
        assert both_ways
        values = [value for page in both_ways for example in page.all_examples for value in example.activations]
        assert min(values) < 0 < max(values)
        assert all(page.feature.max_activation >= 0 for page in pages)


def test_crosscoders_are_read_at_all_their_sources(tiny, text, tmp_path):
    cls = architecture("topk_crosscoder")
    hooks = ["blocks.0.hook_resid_post", HOOK]
    dictionary = cls(cls.Config(d_in=32, d_sae=20, k=3, source_widths=(16, 16)), seed=1)
    with Store.open(tmp_path / "c.db") as store:
        analyze(dictionary, tiny, text, hooks, name="c", store=store, config=CONFIG)
        assert store.dictionary("c").hook_point == ", ".join(hooks)
        page = next(page for page in store.pages("c") if not page.feature.is_dead)
        assert page.detail.sources == pytest.approx(dictionary.source_norms[page.feature.index].tolist())
        assert len(page.detail.top_logits) == 3
        with pytest.raises(ValueError, match="2 sources"):
            analyze(dictionary, tiny, LiveText(tiny, text, hooks), hooks[:1], name="e", store=store, config=CONFIG)


def test_transcoders_write_where_they_write(tiny, text, tmp_path):
    cls = architecture("topk_transcoder")
    dictionary = cls(cls.Config(d_in=16, d_out=16, d_sae=20, k=3), seed=1)
    with Store.open(tmp_path / "t.db") as store:
        analyze(
            dictionary, tiny, text, "blocks.1.hook_resid_mid", hook_point_out="blocks.1.hook_mlp_out", name="t",
            store=store, config=CONFIG,
        )  # fmt: skip
        assert store.dictionary("t").hook_point_out == "blocks.1.hook_mlp_out"
        assert all(len(page.detail.top_logits) == 3 for page in store.pages("t"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"num_logits": 0}, "num_logits"), ({"map": "tsne"}, "map must be"), ({"num_bands": 0}, "num_bands")],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        AnalysisConfig(**settings)
