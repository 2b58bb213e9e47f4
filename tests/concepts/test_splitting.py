"""Splitting a model: what it is made of, where it is split, and that the user's model and tokenizer stay as they were."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from saescope.concepts.splitting import DIFFERENCES, InitializationError, ModelWithSplitPoints

BLOCK = "transformer.h.1"


@pytest.fixture
def split(causal):
    return ModelWithSplitPoints(causal.model, BLOCK, tokenizer=causal.tokenizer, batch_size=4)


def state_of(model, tokenizer):
    """All that a run could have changed."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "wanting": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "config": model.config.to_dict(),
        "tokens": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token, len(tokenizer)),
        "special": tokenizer.special_tokens_map,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
    }


def assert_same_state(one, other):
    for name, value in one.items():
        if name == "weights":
            assert value.keys() == other[name].keys()
            assert all(torch.equal(tensor, other[name][key]) for key, tensor in value.items())
        else:
            assert value == other[name], name


class TestConstruction:
    def test_from_a_folder_a_module_and_a_language_model(self, classifier, reviews):
        loaded = ModelWithSplitPoints(
            classifier.folder, "bert.encoder.layer.1", automodel=AutoModelForSequenceClassification, batch_size=4
        )
        taken = ModelWithSplitPoints(classifier.model, 1, tokenizer=classifier.tokenizer)
        by_folder = ModelWithSplitPoints(classifier.model, 1, tokenizer=classifier.folder)
        assert taken.model is classifier.model
        assert taken.tokenizer is classifier.tokenizer
        assert loaded.split_points == taken.split_points == ["bert.encoder.layer.1"]
        assert (loaded.batch_size, taken.batch_size) == (4, 1)
        assert loaded.dtype == torch.float32
        assert loaded.device.type == "cpu"
        expected = taken.get_activations(reviews[:5], "TOKEN")
        for each in (loaded, by_folder):
            torch.testing.assert_close(each.get_activations(reviews[:5], "TOKEN"), expected)

    def test_bundled_both_ways(self, bundled):
        texts = ["def f(x):\n    return x", "import os"]
        wrapped = ModelWithSplitPoints(bundled, BLOCK)
        loaded = ModelWithSplitPoints("bundled", BLOCK, automodel=AutoModelForCausalLM, batch_size=2)
        assert wrapped.model is bundled.module
        one, other = (each.get_activations(texts, "ALL_TOKENS")[BLOCK] for each in (wrapped, loaded))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        ids = [bundled.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
        read = [bundled.read(each, [f"{BLOCK}.output"])[f"{BLOCK}.output"][0] for each in ids]
        torch.testing.assert_close(one, torch.cat(read))

    def test_settings_reach_from_pretrained(self, classifier):
        config = copy.deepcopy(classifier.model.config)
        config.num_labels = 3
        model = ModelWithSplitPoints(
            classifier.folder, 1, automodel=AutoModelForSequenceClassification, config=config, dtype=torch.float64,
            device_map="cpu", tokenizer=classifier.tokenizer,
        )  # fmt: skip
        assert model.dtype == torch.float64
        assert model.tokenizer is classifier.tokenizer

    def test_moving(self, split):
        assert split.to("cpu") is split

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"automodel": None}, "say as what: automodel=AutoModelForCausalLM"),
            ({"model_or_repo_id": "/no/such/folder"}, "/no/such/folder cannot be loaded as AutoModelForCausalLM"),
        ],
    )
    def test_an_id_that_cannot_be_loaded(self, causal, change, message):
        arguments = {
            "model_or_repo_id": causal.folder, "split_points": 1, "automodel": AutoModelForCausalLM, **change
        }  # fmt: skip
        with pytest.raises(InitializationError, match=message):
            ModelWithSplitPoints(**arguments)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tokenizer": None}, "needs its tokenizer"),
            ({"device_map": "auto"}, "device_map='auto' places a model while it is loaded"),
            ({"dtype": torch.float16}, "dtype: these are for loading a model by id"),
            ({"config": object()}, "config: these are for loading"),
        ],
    )
    def test_a_module_with_settings_that_do_not_suit_it(self, causal, settings, message):
        with pytest.raises(InitializationError, match=message):
            ModelWithSplitPoints(causal.model, 1, **{"tokenizer": causal.tokenizer, **settings})

    def test_no_model(self, causal):
        with pytest.raises(TypeError, match="not int"):
            ModelWithSplitPoints(3, 1, tokenizer=causal.tokenizer)

    @pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
    def test_batch_size(self, causal, batch_size):
        with pytest.raises(ValueError, match="batch_size is a number of texts from 1 up"):
            ModelWithSplitPoints(causal.model, 1, tokenizer=causal.tokenizer, batch_size=batch_size)

    def test_enumerations_hang_on_the_class(self):
        assert ModelWithSplitPoints.activation_granularities.CLS_TOKEN == "cls_token"
        assert ModelWithSplitPoints.aggregation_strategies.SIGNED_MAX == "signed_max"

    def test_differences_are_said_in_full(self):
        assert len({each.subject for each in DIFFERENCES}) == len(DIFFERENCES)
        assert all(each.there and each.here and each.there != each.here for each in DIFFERENCES)


class TestSplitPoints:
    def of(self, local, split_points, **settings):
        return ModelWithSplitPoints(local.model, split_points, tokenizer=local.tokenizer, **settings)

    def test_order_is_that_of_the_outputs(self, causal):
        """A block gives its output after its parts, though it is listed before them."""
        given = ["transformer.h.2.mlp", "transformer.h.2", 0, "transformer.h.0.attn", "transformer.h.2.mlp"]
        expected = ["transformer.h.0.attn", "transformer.h.0", "transformer.h.2.mlp", "transformer.h.2"]
        model = self.of(causal, given)
        assert model.split_points == expected
        assert list(model.get_activations(["The film"], "TOKEN")) == expected
        model.split_points = "transformer.h.2"
        assert model.split_points == ["transformer.h.2"]

    def test_ten_comes_after_two(self, causal):
        from transformers import GPT2Config, GPT2LMHeadModel

        deep = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=8, n_embd=4, n_layer=11, n_head=1))
        assert ModelWithSplitPoints(deep, [10, 2], tokenizer=causal.tokenizer).split_points == [
            "transformer.h.2",
            "transformer.h.10",
        ]

    @pytest.mark.parametrize(
        ("split_points", "error", "message"),
        [
            ("transformer.h.7", ValueError, "'transformer.h.7' is no submodule of GPT2LMHeadModel; available: .*h.1"),
            ("nonsense", ValueError, "available: transformer, transformer.wte"),
            (7, ValueError, "0 submodules end in .7; .* available: transformer.h.0, transformer.h.1, transformer.h.2"),
            (-1, ValueError, "0 submodules end in .-1"),
            ([], ValueError, "no split point was given"),
            (1.5, TypeError, "a module path or a layer number, not float"),
            (True, TypeError, "not bool"),
            ([None], TypeError, "not NoneType"),
            ("transformer.h", ValueError, "the model never runs transformer.h;"),
        ],
    )
    def test_bad_split_points(self, causal, split_points, error, message):
        with pytest.raises(error, match=message):
            self.of(causal, split_points)

    def test_an_ambiguous_number(self, causal):
        from transformers import BartConfig, BartForSequenceClassification

        sizes = {"vocab_size": 400, "d_model": 8, "max_position_embeddings": 16, "pad_token_id": 1}
        layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        model = BartForSequenceClassification(BartConfig(**sizes, **layers, encoder_ffn_dim=8, decoder_ffn_dim=8))
        with pytest.raises(ValueError, match=r"2 submodules end in .1: model.encoder.layers.1, model.decoder.layers.1"):
            ModelWithSplitPoints(model, 1, tokenizer=causal.tokenizer)
        both = ModelWithSplitPoints(
            model, ["model.decoder.layers.1", "model.encoder.layers.1"], tokenizer=causal.tokenizer
        )
        assert both.split_points == ["model.encoder.layers.1", "model.decoder.layers.1"]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("bert.pooler", r"bert.pooler does not give one vector per token, .*, but a tensor of shape \(1, 16\)"),
            ("classifier", r"a tensor of shape \(1, 3\)"),
            ("bert.embeddings.position_embeddings", None),
        ],
    )
    def test_places_without_a_vector_per_token(self, classifier, path, message):
        if message is None:  # three dimensions, but one row of positions for the whole batch
            model = self.of(classifier, path, batch_size=2)
            with pytest.raises(ValueError, match="does not give one vector per token"):
                model.get_activations(["good", "bad"], "TOKEN")
        else:
            with pytest.raises(ValueError, match=message):
                self.of(classifier, path)


class _TwoWays(nn.Module):
    """A language model of one layer that gives a tuple with a matrix, a tensor of token vectors, and another."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(400, 6)
        self.split = _Tuple()

    def forward(self, input_ids, attention_mask=None):
        _, one, other = self.split(self.embed(input_ids))
        return {"logits": one + 2 * other}


class _Tuple(nn.Module):
    def forward(self, x):
        return x[:, 0], x + 1, x - 1


class TestTuples:
    def test_the_first_tensor_of_three_dimensions(self, byte_level):
        model = ModelWithSplitPoints(_TwoWays(), "split", tokenizer=byte_level)
        assert model.output_tuple_index == 1
        ids = byte_level("The film")["input_ids"]
        table = model.model.embed.weight[ids].detach()
        torch.testing.assert_close(model.get_activations(["The film"], "ALL_TOKENS")["split"], table + 1)

    def test_an_index_is_respected_in_reading_and_writing(self, byte_level):
        network = _TwoWays()
        model = ModelWithSplitPoints(network, "split", tokenizer=byte_level, output_tuple_index=2)
        encoding = model.selection(["The film"], "TOKEN").encoding
        table = network.embed.weight[encoding["input_ids"]].detach()
        torch.testing.assert_close(model.get_activations(["The film"], "ALL_TOKENS")["split"], (table - 1)[0])
        logits = model.split_forward(encoding, "split", lambda a: 0 * a + 5)
        torch.testing.assert_close(logits, table + 1 + 10)

    @pytest.mark.parametrize(("index", "message"), [(0, r"tensor of shape \(1, 6\)"), (3, "none at 3")])
    def test_an_index_of_something_else(self, byte_level, index, message):
        with pytest.raises(ValueError, match=message):
            ModelWithSplitPoints(_TwoWays(), "split", tokenizer=byte_level, output_tuple_index=index)

    def test_attention_gives_a_tuple_and_the_network_below_the_head_a_mapping(self, classifier, reviews):
        points = ["bert.encoder.layer.0.attention.self", "bert"]
        model = ModelWithSplitPoints(classifier.model, points, tokenizer=classifier.tokenizer, batch_size=3)
        found = model.get_activations(reviews[:3], "ALL_TOKENS")
        assert found[points[0]].shape == found["bert"].shape
        encoding = model.selection(reviews[:3], "TOKEN").encoding
        with torch.no_grad():
            last = classifier.model.bert(**encoding).last_hidden_state
            plain = classifier.model(**encoding).logits
            same = model.split_forward(encoding, points[0], lambda a: a)
            other = model.split_forward(encoding, points[0], lambda a: a + 1)
        torch.testing.assert_close(found["bert"], last[encoding["attention_mask"].bool()])
        torch.testing.assert_close(same, plain, rtol=0, atol=0)
        assert (other - plain).abs().max() > 1e-3


class TestNothingIsChanged:
    @pytest.mark.parametrize("kind", ["classifier", "causal", "decoder_classifier"])
    def test_state_before_and_after(self, request, kind, reviews):
        local = request.getfixturevalue(kind)
        network, tokenizer = copy.deepcopy(local.model).train(), copy.deepcopy(local.tokenizer)
        next(network.parameters()).requires_grad_(False)
        network.get_submodule("dropout" if kind == "classifier" else "transformer.drop").eval()
        tokenizer.padding_side = "left" if kind == "classifier" else "right"
        tokenizer.backend_tokenizer.enable_truncation(5)
        before = state_of(network, tokenizer)
        model = ModelWithSplitPoints(network, 1, tokenizer=tokenizer, batch_size=4)
        for granularity in ("ALL_TOKENS", "TOKEN", "WORD", "SENTENCE", "SAMPLE"):
            model.get_activations(reviews[:6], granularity, include_predicted_classes=kind != "causal")
        model.get_latent_shape(reviews[:2])
        chosen = model.selection(reviews[:4], "TOKEN")
        model.split_forward(chosen.encoding, model.split_points[0], lambda a: 2 * a)
        assert_same_state(before, state_of(network, tokenizer))

    def test_after_an_exception(self, split, causal, reviews):
        before = state_of(causal.model, causal.tokenizer)
        encoding = split.selection(reviews[:2], "TOKEN").encoding

        def fail(activations):
            raise KeyError("stop")

        with pytest.raises(KeyError, match="stop"):
            split.split_forward(encoding, BLOCK, fail)
        with pytest.raises((IndexError, RuntimeError)):
            split.get_activations(reviews[:2], model_forward_kwargs={"position_ids": torch.full((1, 1), 9999)})
        assert_same_state(before, state_of(causal.model, causal.tokenizer))

    def test_dropout_is_off(self, causal, reviews):
        network = copy.deepcopy(causal.model).train()
        model = ModelWithSplitPoints(network, 1, tokenizer=causal.tokenizer)
        expected = ModelWithSplitPoints(causal.model, 1, tokenizer=causal.tokenizer)
        torch.testing.assert_close(model.get_activations(reviews[:2]), expected.get_activations(reviews[:2]))

    def test_another_thread_is_not_touched(self, split, causal, reviews):
        """While one thread runs an edit, a plain pass of another thread gives the plain logits."""
        ids = torch.tensor([causal.tokenizer(reviews[0])["input_ids"]])
        with torch.no_grad():
            plain = causal.model(input_ids=ids).logits
        main, others = threading.get_ident(), []

        def other_pass():
            with torch.no_grad():
                others.append(causal.model(input_ids=ids).logits)

        def before_the_split_point(module, args, output):
            if threading.get_ident() == main:
                thread = threading.Thread(target=other_pass)
                thread.start()
                thread.join(30)

        handle = causal.model.transformer.h[0].register_forward_hook(before_the_split_point)
        try:
            edited = split.split_forward({"input_ids": ids}, BLOCK, lambda activations: activations + 100)
        finally:
            handle.remove()
        torch.testing.assert_close(others[0], plain)
        assert not torch.allclose(edited, plain)

    def test_arguments_have_no_shared_defaults(self):
        import inspect

        for name in ("__init__", "get_activations", "selection", "batches", "split_forward", "get_latent_shape"):
            defaults = [
                each.default for each in inspect.signature(getattr(ModelWithSplitPoints, name)).parameters.values()
            ]
            assert not any(isinstance(default, dict | list | set) for default in defaults)


class TestSplitForward:
    @pytest.mark.parametrize(
        ("kind", "point"),
        [
            ("classifier", "bert.encoder.layer.1"),
            ("causal", BLOCK),
            ("decoder_classifier", BLOCK),
        ],
    )
    def test_equals_the_model_and_a_hand_split_one(self, request, kind, point, reviews):
        local = request.getfixturevalue(kind)
        network = local.double()
        model = ModelWithSplitPoints(network, point, tokenizer=local.tokenizer)
        encoding = model.selection(reviews[:1], "TOKEN").encoding
        with torch.no_grad():
            plain = network(**encoding).logits
        assert torch.equal(model.split_forward(encoding, point, lambda a: a).detach(), plain)

        direction = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        added = torch.zeros(16, dtype=torch.float64, requires_grad=True)
        logits = model.split_forward(encoding, point, lambda a: a + added * direction)
        (gradient,) = torch.autograd.grad(logits.sum(), added)
        step, slope = 1e-5, torch.zeros(16, dtype=torch.float64)
        for i in range(16):
            for sign in (1, -1):
                moved = torch.zeros(16, dtype=torch.float64)
                moved[i] = sign * step
                handle = network.get_submodule(point).register_forward_hook(
                    lambda module, args, output, moved=moved: (
                        (output[0] + moved * direction, *output[1:])
                        if isinstance(output, tuple)
                        else output + moved * direction
                    )
                )
                with torch.no_grad():
                    slope[i] += sign * network(**encoding).logits.sum() / (2 * step)
                handle.remove()
        torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)
        assert gradient.abs().max() > 1e-3

    def test_parameters_get_no_gradient(self, causal, reviews):
        network = copy.deepcopy(causal.model)
        model = ModelWithSplitPoints(network, BLOCK, tokenizer=causal.tokenizer)
        added = torch.ones(16, requires_grad=True)
        model.split_forward(model.selection(reviews[:1], "TOKEN").encoding, BLOCK, lambda a: a + added).sum().backward()
        assert added.grad is not None
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())

    def test_an_edit_may_work_in_place_and_in_another_dtype(self, split, reviews):
        encoding = split.selection(reviews[:2], "TOKEN").encoding
        one = split.split_forward(encoding, BLOCK, lambda a: a.mul_(2))
        other = split.split_forward(encoding, BLOCK, lambda a: a.double() * 2)
        assert torch.equal(one, other)

    def test_a_batch_of_a_decoder_classifier_equals_its_texts(self, decoder_classifier, reviews):
        network = decoder_classifier.double()
        model = ModelWithSplitPoints(network, BLOCK, tokenizer=decoder_classifier.tokenizer)
        texts = [*reviews[:4], "The film was good<|endoftext|>"]
        with torch.no_grad():
            alone = [network(torch.tensor([decoder_classifier.tokenizer(text)["input_ids"]])).logits for text in texts]
        for side in ("left", "right"):
            encoding = model.selection(texts, "TOKEN", pad_side=side).encoding
            assert encoding["attention_mask"].min() == 0
            logits = model.split_forward(encoding, BLOCK, lambda a: a)
            torch.testing.assert_close(logits.detach(), torch.cat(alone), rtol=1e-10, atol=1e-10)

    def test_only_the_first_run_of_a_shared_block(self, wordpiece):
        from transformers import AlbertConfig, AlbertForSequenceClassification

        torch.manual_seed(0)
        config = AlbertConfig(
            vocab_size=len(wordpiece), embedding_size=8, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=32, initializer_range=0.5,
        )  # fmt: skip
        network = AlbertForSequenceClassification(config).eval()
        point = "albert.encoder.albert_layer_groups.0.albert_layers.0"
        model = ModelWithSplitPoints(network, point, tokenizer=wordpiece)
        encoding = model.selection(["the film was good"], "TOKEN").encoding
        with torch.no_grad():
            states = network(**encoding, output_hidden_states=True).hidden_states
        torch.testing.assert_close(model.get_activations(["the film was good"], "ALL_TOKENS")[point], states[1][0])
        calls = []
        model.split_forward(encoding, point, lambda a: calls.append(1) or a)
        assert calls == [1]

    def test_bad_calls(self, split, causal, reviews):
        from transformers import AutoModel

        encoding = split.selection(reviews[:2], "TOKEN").encoding
        with pytest.raises(ValueError, match=r"the edit at transformer.h.1 returned \(2,"):
            split.split_forward(encoding, BLOCK, lambda a: a[..., :3])
        with pytest.raises(ValueError, match=r"the edit at transformer.h.1 returned NoneType"):
            split.split_forward(encoding, BLOCK, lambda a: None)
        with pytest.raises(ValueError, match=r"'transformer.h.9' is no submodule"):
            split.split_forward(encoding, "transformer.h.9", lambda a: a)
        headless = ModelWithSplitPoints(causal.folder, "h.1", automodel=AutoModel)
        with pytest.raises(ValueError, match="GPT2Model gives no logits; load the model with its head"):
            headless.split_forward(encoding, "h.1", lambda a: a)


class TestShapes:
    def test_latent_shape(self, causal, reviews):
        model = ModelWithSplitPoints(causal.model, [BLOCK, f"{BLOCK}.mlp.c_fc"], tokenizer=causal.tokenizer)
        shapes = model.get_latent_shape()
        assert shapes == {f"{BLOCK}.mlp.c_fc": torch.Size([1, 2, 64]), BLOCK: torch.Size([1, 2, 16])}
        longest = max(len(causal.tokenizer(text)["input_ids"]) for text in reviews[:5])
        assert model.get_latent_shape(reviews[:5])[BLOCK] == torch.Size([5, longest, 16])

    def test_one_entry(self, causal, reviews, split):
        activations = split.get_activations(reviews[:2])
        assert split.get_split_activations(activations) is activations[BLOCK]
        assert split.get_split_activations(activations, BLOCK) is activations[BLOCK]
        two = ModelWithSplitPoints(causal.model, [0, 1], tokenizer=causal.tokenizer)
        with pytest.raises(ValueError, match=r"say which split point is meant: transformer.h.0, transformer.h.1"):
            two.get_split_activations(two.get_activations(reviews[:2]))
        with pytest.raises(
            ValueError, match=r"no activations of 'transformer.h.0'; there are those of transformer.h.1"
        ):
            split.get_split_activations(activations, "transformer.h.0")
        with pytest.raises(TypeError, match="not Tensor"):
            split.get_split_activations(activations[BLOCK])

    def test_the_pass_ends_at_the_last_split_point(self, split, causal, reviews):
        runs = []
        handles = [
            causal.model.transformer.h[number].register_forward_hook(lambda *_, number=number: runs.append(number))
            for number in range(3)
        ]
        try:
            split.get_activations(reviews[:4])
        finally:
            for handle in handles:
                handle.remove()
        # the split point's own hook comes after this one, which was there before
        assert runs == [0, 1]
