"""Direct logit attribution: sums that must come out, and every contribution by hand in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, GPT2Model, OPTConfig, OPTForCausalLM

from saescope.interventions import Intervention, Site, Splice
from saescope.interventions.attribution import direct_attribution
from saescope.interventions.metrics import cross_entropy, log_probability, logit, logit_difference
from saescope.models import LanguageModel

FAMILIES = ["gpt2", "gptj", "neox", "llama", "qwen3", "gemma2", "opt"]
LAST, EARLIER = "blocks.2.hook_resid_post", "blocks.0.hook_resid_post"
FINAL_NORM = {
    "gpt2": "transformer.ln_f", "gptj": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm",
    "opt": "model.decoder.final_layer_norm",
}  # fmt: skip


def last_logits(model, ids, cap=None):
    """At the last position, a cap undone."""
    found = model.logits(ids)[:, -1].double()
    return found if cap is None else cap * torch.atanh(found / cap)


def reader_by_hand(model, kind, stream, row):
    """What a vector on the stream ``[d]`` is multiplied by: the norm's definition, epsilon and gain written out."""
    norm = model.module.get_submodule(FINAL_NORM.get(kind, "model.norm"))
    gain = norm.weight.double() + (1 if kind == "gemma2" else 0)
    if kind in FINAL_NORM:
        scale = (stream.var(unbiased=False) + norm.eps).sqrt()
        through = gain * row / scale
        return through - through.mean()
    epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
    return gain * row / (stream.square().mean() + epsilon).sqrt()


@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [*((kind, torch.float32, 1e-4) for kind in FAMILIES), *((kind, torch.float64, 1e-10) for kind in FINAL_NORM)],
)
def test_at_the_last_stream_all_terms_add_up_to_the_logit(tiny_model, make_dictionary, ids, kind, dtype, tolerance):
    """RMS norms of Hugging Face compute in float32 whatever the model is in, so that float64 is for layer norms."""
    model = tiny_model(kind, dtype)
    cap = getattr(model.module.config, "final_logit_softcapping", None)
    site = Site(make_dictionary("relu", dtype=dtype), model, hook_point=LAST)
    found = direct_attribution(site, ids, logit(7))
    wanted = last_logits(model, ids, cap)[:, 7]
    without_rest = sum(value for name, value in found.terms().items() if name != "rest")
    assert float((without_rest - wanted).abs().max()) < tolerance * (1 if cap is None else 10)
    assert float(found.rest.abs().max()) < tolerance
    assert float((found.value - wanted).abs().max()) < tolerance * (1 if cap is None else 10)
    torch.testing.assert_close(found.contributions.totals(), found.features)
    assert float(found.error.abs().min()) > 1e-3
    assert float(found.dictionary_bias.abs().min()) > 1e-3
    assert float(found.features.abs().min()) > 1e-3


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("hook_point", [LAST, EARLIER, "blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"])
@torch.no_grad()
def test_every_contribution_is_activation_times_row_times_unembedding(
    tiny_model, make_dictionary, ids, kind, hook_point
):
    model = tiny_model(kind)
    dictionary = make_dictionary("topk", k=5)
    found = direct_attribution(Site(dictionary, model, hook_point=hook_point), ids, logit_difference([7, 8], 9))
    place = FINAL_NORM.get(kind, "model.norm") + ".input"
    values = model.read(ids, [hook_point, place])
    unembedding = model.module.get_output_embeddings().weight
    row = (unembedding[7] + unembedding[8]) / 2 - unembedding[9]
    wanted, direct = {}, []
    for prompt in range(2):
        reader = reader_by_hand(model, kind, values[place][prompt, -1].double(), row)
        x = values[hook_point][prompt, -1]
        for feature, activation in enumerate(dictionary.encode(x).tolist()):
            if activation:
                wanted[prompt, feature] = activation * float(dictionary.W_dec[feature] @ reader)
        direct.append(float(x.double() @ reader))
    entries = found.contributions
    got = {
        (prompt, feature): value
        for prompt, feature, value in zip(
            entries.prompt.tolist(), entries.feature.tolist(), entries.contribution.tolist(), strict=True
        )
    }
    assert got.keys() == wanted.keys()
    assert all(abs(got[key] - wanted[key]) < 1e-6 * max(1, abs(wanted[key])) for key in wanted)
    assert entries.position.tolist() == [6] * len(entries)
    # at an earlier place the sum is the direct path of what is there, and the rest is not nothing
    assert found.direct_path.tolist() == pytest.approx(direct, rel=1e-5, abs=1e-6)
    if hook_point != LAST:
        assert float(found.rest.abs().min()) > 1e-3


def test_the_direct_path_is_what_the_logit_loses_when_the_value_leaves_the_last_stream(
    tiny_model, make_dictionary, ids, by_hand
):
    """An experiment: take the earlier value off the last stream, and let the norm divide by what it divided by."""
    model = tiny_model("gpt2")
    found = direct_attribution(Site(make_dictionary(), model, hook_point=EARLIER), ids, logit(7))
    early = model.read(ids, [EARLIER])[EARLIER]
    norm = model.module.transformer.ln_f

    def frozen(stream):
        def normed(x, scale_of):
            return (x - x.mean(-1, keepdim=True)) / (scale_of.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()

        return normed(stream - early, stream) * norm.weight + norm.bias

    held = {}
    with by_hand(model, "transformer.ln_f", lambda x: held.setdefault("stream", x), side="input"):
        before = model.logits(ids)[:, -1, 7]
    with by_hand(model, "transformer.ln_f", lambda _: frozen(held["stream"])):
        after = model.logits(ids)[:, -1, 7]
    torch.testing.assert_close(found.direct_path, before - after, rtol=0, atol=1e-10)


def test_other_positions_and_prompts_of_their_own_length(tiny_model, make_dictionary):
    """Left padding changes nothing, and a position counts from the end."""
    model = tiny_model("gpt2")
    site = Site(make_dictionary(), model, hook_point=LAST)
    long, short = [5, 9, 13, 2, 7], [21, 22, 23]
    ids = torch.tensor([long, [1, 1, *short]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    found = direct_attribution(site, ids, logit(4, position=-2), attention_mask=mask)
    for row, prompt in enumerate((long, short)):
        alone = direct_attribution(site, torch.tensor([prompt]), logit(4, position=-2))
        for name, value in alone.terms().items():
            assert float(found.terms()[name][row]) == pytest.approx(float(value[0]), abs=1e-9), name
        assert float(found.value[row]) == pytest.approx(float(model.logits(torch.tensor([prompt]))[0, -2, 4]), abs=1e-9)
        mine = found.contributions.of_prompt(row)
        assert mine.feature.tolist() == alone.contributions.feature.tolist()
        assert mine.position.tolist() == [3] * len(mine)


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder"])
@torch.no_grad()
def test_a_transcoder_is_split_where_it_writes(tiny_model, make_dictionary, ids, kind):
    model = tiny_model("gpt2")
    dictionary = make_dictionary(kind, d_out=16)
    site = Site(dictionary, model, hook_point="blocks.1.hook_mlp_in", hook_point_out="blocks.1.hook_mlp_out")
    found = direct_attribution(site, ids, logit(7))
    values = model.read(ids, ["blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out", "transformer.ln_f.input"])
    x, y, stream = (value[:, -1] for value in values.values())
    for prompt in range(2):
        reader = reader_by_hand(model, "gpt2", stream[prompt], model.module.lm_head.weight[7])
        rebuilt = dictionary(x[prompt])
        assert float(found.features[prompt]) == pytest.approx(
            float(dictionary.encode(x[prompt]) @ dictionary.W_dec @ reader)
        )
        assert float(found.error[prompt]) == pytest.approx(float((y[prompt] - rebuilt) @ reader))
        assert float(found.direct_path[prompt]) == pytest.approx(float(y[prompt] @ reader))
    assert sum(found.terms().values()).tolist() == pytest.approx(last_logits(model, ids)[:, 7].tolist())


@torch.no_grad()
def test_a_crosscoder_is_split_at_the_last_place_that_it_writes_to(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    dictionary = make_dictionary("relu_crosscoder", d_in=32, source_widths=(16, 16))
    found = direct_attribution(Site(dictionary, model, hook_point=f"{EARLIER}, {LAST}"), ids, logit(7))
    values = model.read(ids, [EARLIER, LAST])
    f = dictionary.encode(torch.cat(list(values.values()), -1)[:, -1])
    for prompt in range(2):
        reader = reader_by_hand(model, "gpt2", values[LAST][prompt, -1], model.module.lm_head.weight[7])
        assert float(found.features[prompt]) == pytest.approx(float(f[prompt] @ dictionary.W_dec[:, 16:] @ reader))
        assert float(found.dictionary_bias[prompt]) == pytest.approx(float(dictionary.b_dec[16:] @ reader))
    assert float(found.rest.abs().max()) < 1e-10
    assert sum(found.terms().values()).tolist() == pytest.approx(last_logits(model, ids)[:, 7].tolist())


@torch.no_grad()
def test_dictionaries_that_normalise_each_token_or_were_trained_centred(tiny_model, make_dictionary, ids):
    from saescope.dictionaries.normalization import LayerNorm

    model = tiny_model("gpt2")
    wanted = last_logits(model, ids)[:, 7].tolist()
    normalising = make_dictionary()
    normalising.input_normalization = LayerNorm()
    centred = make_dictionary()
    centred.metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    for dictionary in (normalising, centred):
        site = Site(dictionary, model, hook_point=LAST)
        found = direct_attribution(site, ids, logit(7))
        assert sum(found.terms().values()).tolist() == pytest.approx(wanted, abs=1e-10)
        f = dictionary.encode(site.x_of(model.read(ids, [LAST]))[:, -1])
        # what the sum of features is worth: the logit path of the reconstruction, less that without features
        with Intervention(Splice(site, error_term=True, codes=torch.zeros_like)):
            without = model.read(ids, ["transformer.ln_f.input"])["transformer.ln_f.input"][:, -1]
        stream = model.read(ids, ["transformer.ln_f.input"])["transformer.ln_f.input"][:, -1]
        for prompt in range(2):
            reader = reader_by_hand(model, "gpt2", stream[prompt], model.module.lm_head.weight[7])
            assert float(found.features[prompt]) == pytest.approx(float((stream - without)[prompt] @ reader))
        assert len(found.contributions) == int((f != 0).sum())


def test_a_model_without_a_final_norm_is_linear_there(make_dictionary, ids):
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, ffn_dim=24, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=32, _remove_final_layer_norm=True, pad_token_id=1, init_std=0.3,
    )  # fmt: skip
    model = LanguageModel(OPTForCausalLM(config).double(), None, "early-opt")
    found = direct_attribution(Site(make_dictionary(), model, hook_point="blocks.1.hook_resid_post"), ids, logit(7))
    assert sum(found.terms().values()).tolist() == pytest.approx(last_logits(model, ids)[:, 7].tolist(), abs=1e-10)
    assert found.norm_bias.tolist() == [0, 0]


def test_the_strongest_come_first_and_prompts_can_be_looked_at_alone(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    entries = direct_attribution(Site(make_dictionary(), model, hook_point=LAST), ids, logit(7)).contributions
    top = entries.strongest(4)
    assert top.contribution.abs().tolist() == sorted(entries.contribution.abs().tolist(), reverse=True)[:4]
    dense = entries.of_features()
    assert dense.shape == (2, 24)
    assert float(dense[1, top.of_prompt(1).feature[0]]) == float(top.of_prompt(1).contribution[0])
    assert dense.sum(1).tolist() == pytest.approx(entries.totals().tolist())
    with pytest.raises(ValueError, match="no prompt 2"):
        entries.of_prompt(2)


# What is refused


def test_models_without_a_known_way_to_logits_are_refused(make_dictionary, ids):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    bert = LanguageModel(BertForMaskedLM(BertConfig(vocab_size=40, **shape)).double(), None, "tiny-bert")
    site = Site(make_dictionary(), bert, hook_point="blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="lies between the residual stream and the unembedding"):
        direct_attribution(site, ids, logit(7))
    headless = GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32)).double()
    site = Site(make_dictionary(), LanguageModel(headless, None, "headless"), hook_point="h.1")
    with pytest.raises(ValueError, match="has no unembedding"):
        direct_attribution(site, ids, logit(7))


def test_a_family_that_is_not_known_is_refused(tiny_model, make_dictionary, ids):
    site = Site(make_dictionary(), tiny_model("mixtral", torch.float32), hook_point="model.layers.2")
    with pytest.raises(ValueError, match="is not known"):
        direct_attribution(site, ids, logit(7))


@pytest.mark.parametrize("place", ["blocks.1.attn.hook_z", "blocks.1.hook_mlp_in", "transformer.h.1.mlp.act.output"])
def test_places_beside_the_stream_are_refused(tiny_model, make_dictionary, ids, place):
    model = tiny_model("gpt2")
    site = Site(make_dictionary(d_in=model.width(place)), model, hook_point=place)
    with pytest.raises(ValueError, match="does not go straight to the logits"):
        direct_attribution(site, ids, logit(7))


def test_metrics_that_are_not_linear_are_refused(tiny_model, make_dictionary, ids):
    site = Site(make_dictionary(), tiny_model("gpt2"), hook_point=LAST)
    for metric in (log_probability(7), cross_entropy(ids)):
        with pytest.raises(ValueError, match="not linear in the logits"):
            direct_attribution(site, ids, metric)


def test_targets_prompts_and_dictionaries_that_do_not_fit_are_refused(tiny_model, make_dictionary, ids):
    model = tiny_model("gpt2")
    site = Site(make_dictionary(), model, hook_point=LAST)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        direct_attribution(site, ids, logit(40))
    with pytest.raises(ValueError, match=r"'w3 w5' is 2 tokens here: .*3.*5"):
        logit("w3 w5", model=model)
    with pytest.raises(ValueError, match="longer than the 32"):
        direct_attribution(site, torch.full((1, 33), 5), logit(7))
    with pytest.raises(ValueError, match="special token 0 of prompt 0"):
        direct_attribution(site, torch.tensor([[5, 0]]), logit(7))
    assert len(direct_attribution(site, torch.tensor([[5, 0]]), logit(7), special_tokens=True).contributions)
    with pytest.raises(ValueError, match="width"):
        Site(make_dictionary(d_in=12), model, hook_point=LAST)


def test_a_norm_that_is_another_than_its_familys_is_noticed(make_dictionary, ids):
    class Mixing(torch.nn.LayerNorm):
        def forward(self, x):
            normed = super().forward(x)
            return normed + normed.roll(1, -1)

    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    module.transformer.ln_f = Mixing(16)
    site = Site(make_dictionary(), LanguageModel(module.double(), None, "odd"), hook_point="blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="something else than its family's norm"):
        direct_attribution(site, ids, logit(7))
