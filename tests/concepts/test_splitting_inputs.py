"""Inputs of every form give the same activations; those that cannot are refused in words."""

from __future__ import annotations

import pytest
import torch
from transformers import BatchEncoding

from saescope.concepts.splitting import ActivationGranularity, ModelWithSplitPoints

GRANULARITIES = list(ActivationGranularity)
OF_BERT, OF_GPT2 = "bert.encoder.layer.1", "transformer.h.1"


@pytest.fixture(scope="module")
def of_bert(classifier):
    return ModelWithSplitPoints(classifier.double(), OF_BERT, tokenizer=classifier.tokenizer, batch_size=9)


@pytest.fixture(scope="module")
def of_gpt2(causal):
    return ModelWithSplitPoints(causal.double(), OF_GPT2, tokenizer=causal.tokenizer, batch_size=9)


def forms(tokenizer, texts):
    """Tokenizer output of every shape; the tokenizer's state does not matter here, so a padding token may come and go."""
    ragged = tokenizer(texts)
    yield "lists", ragged
    yield "plain lists", dict(ragged)
    if tokenizer.pad_token is not None:
        tensors = tokenizer(texts, padding=True, return_tensors="pt")
        yield "tensors", tensors
        yield "plain tensors", {name: tensors[name] for name in tensors}
        yield "with offsets", tokenizer(texts, padding="max_length", max_length=40, return_offsets_mapping=True)
        yield "on the left", tokenizer(texts, padding=True, return_tensors="pt", padding_side="left")
        yield "arrays", tokenizer(texts, padding=True, return_tensors="np")


class TestTokenizerOutput:
    @pytest.mark.parametrize("granularity", GRANULARITIES)
    def test_a_hundred_texts_of_an_encoder(self, of_bert, reviews, granularity):
        expected = of_bert.get_activations(reviews, granularity, flatten_activations=False)[OF_BERT]
        assert len(expected) == 100
        for name, given in forms(of_bert.tokenizer, reviews):
            if granularity == "sentence" and name.startswith("plain"):
                continue  # WordPiece's ids do not say where spaces were; see the test of sentences below
            found = of_bert.get_activations(given, granularity, flatten_activations=False)[OF_BERT]
            assert len(found) == 100, name
            torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("granularity", [each for each in GRANULARITIES if each != "cls_token"])
    def test_a_hundred_texts_of_a_decoder(self, of_gpt2, reviews, granularity):
        expected = of_gpt2.get_activations(reviews, granularity, flatten_activations=False)[OF_GPT2]
        for name, given in forms(of_gpt2.tokenizer, reviews):
            found = of_gpt2.get_activations(given, granularity, flatten_activations=False)[OF_GPT2]
            assert [len(each) for each in found] == [len(each) for each in expected], name
            torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-10, atol=1e-12)

    def test_sentences_without_the_raw_text(self, of_bert):
        """Where nothing tells of spaces, none stands before a closing sign: the abbreviation keeps its full stop."""
        text = "Dr. Brown's book was good. We left early! Never again"
        given = of_bert.tokenizer([text])
        counts = [len(unit) for unit in of_bert.selection([text], "SENTENCE").units[0]]
        for each in (given, dict(given)):
            chosen = of_bert.selection(each, "SENTENCE")
            assert [len(unit) for unit in chosen.units[0]] == counts
            assert chosen.unit_texts[0][1:] == ["we left early!", "never again"]
        assert of_bert.selection(given, "SENTENCE").unit_texts[0][0] == "dr. brown's book was good."

    def test_words_of_a_pair_do_not_run_together(self, of_bert):
        """Both texts of a pair count their words from 0."""
        given = of_bert.tokenizer([("good", "good"), ("the film", "was bad")])
        assert of_bert.selection(given, "WORD").unit_texts == [["good", "good"], ["the", "film", "was", "bad"]]

    def test_ids_changed_after_tokenization_are_what_counts(self, of_bert):
        given = of_bert.tokenizer(["good"], return_tensors="pt")
        other = of_bert.tokenizer(["the film was bad"], return_tensors="pt")
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if name in given:
                given[name] = other[name]
        assert of_bert.selection(given, "WORD").unit_texts == [["the", "film", "was", "bad"]]

    def test_a_mask_decides_what_is_text(self, of_gpt2):
        ids = of_gpt2.tokenizer(["The film was good"], return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        mask[0, -2:] = 0
        chosen = of_gpt2.selection({"input_ids": ids, "attention_mask": mask}, "TOKEN")
        assert chosen.counts == [ids.shape[1] - 2]

    def test_entries_that_the_model_does_not_take_are_left_out(self, of_gpt2):
        ids = torch.tensor([[5, 6, 7]])
        given = {"input_ids": ids, "labels": ids, "token_type_ids": ids, "special_tokens_mask": ids, "name": "x"}
        assert set(of_gpt2.selection(given, "TOKEN").encoding) == {"input_ids", "attention_mask"}


class TestOtherForms:
    def test_a_tensor_of_ids(self, of_bert, reviews):
        given = of_bert.tokenizer(reviews[:3], padding=True, return_tensors="pt")["input_ids"]
        found = of_bert.get_activations(given, "ALL_TOKENS")[OF_BERT]
        assert len(found) == given.numel()  # a tensor does not say what is padding
        alone = of_bert.tokenizer(reviews[:1], return_tensors="pt")["input_ids"]
        for granularity in ("CLS_TOKEN", "ALL_TOKENS"):
            one, other = (of_bert.get_activations(each, granularity)[OF_BERT] for each in (alone, reviews[:1]))
            torch.testing.assert_close(one, other)

    def test_strings_of_other_containers(self, of_gpt2, reviews):
        expected = of_gpt2.get_activations(reviews[:3])[OF_GPT2]
        for given in (tuple(reviews[:3]), (text for text in reviews[:3])):
            torch.testing.assert_close(of_gpt2.get_activations(given)[OF_GPT2], expected)
        one, other = (of_gpt2.get_activations(each)[OF_GPT2] for each in (reviews[0], reviews[:1]))
        torch.testing.assert_close(one, other)

    def test_long_texts_are_cut(self, of_gpt2, of_bert):
        long = "The film was good. " * 60
        assert of_gpt2.selection([long, "short"], "TOKEN").encoding["input_ids"].shape == (2, 64)
        ids = of_bert.selection([long], "ALL_TOKENS").encoding["input_ids"][0]
        assert len(ids) == 48
        assert (ids[0], ids[-1]) == (of_bert.tokenizer.cls_token_id, of_bert.tokenizer.sep_token_id)
        (whole,) = of_gpt2.selection([long], "SAMPLE").unit_texts[0]
        assert long.startswith(whole)
        assert len(whole) < len(long)

    def test_the_model_limits_a_text_where_the_tokenizer_does_not(self, causal):
        import copy

        tokenizer = copy.deepcopy(causal.tokenizer)
        tokenizer.model_max_length = int(1e30)
        model = ModelWithSplitPoints(causal.model, 1, tokenizer=tokenizer)
        assert model.selection(["The film was good. " * 60], "TOKEN").encoding["input_ids"].shape == (1, 64)

    def test_roberta_counts_positions_itself(self, wordpiece, reviews):
        from transformers import RobertaConfig, RobertaForMaskedLM

        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=len(wordpiece), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=20, initializer_range=0.5, pad_token_id=0, type_vocab_size=1,
        )  # fmt: skip
        network = RobertaForMaskedLM(config).double().eval()
        model = ModelWithSplitPoints(network, 1, tokenizer=wordpiece, batch_size=3)
        assert model.selection(["the film " * 30], "TOKEN").encoding["input_ids"].shape == (1, 19)
        point = model.split_points[0]
        alone = torch.cat([model.get_activations([text], "ALL_TOKENS")[point] for text in reviews[:3]])
        for side in ("left", "right"):
            together = model.get_activations(reviews[:3], "ALL_TOKENS", pad_side=side)[point]
            torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)

    def test_a_padding_token_without_an_embedding_is_not_used(self, causal, reviews):
        import copy

        tokenizer = copy.deepcopy(causal.tokenizer)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        assert tokenizer.pad_token_id == causal.model.config.vocab_size
        model = ModelWithSplitPoints(causal.model, 1, tokenizer=tokenizer, batch_size=3)
        expected = ModelWithSplitPoints(causal.model, 1, tokenizer=causal.tokenizer, batch_size=3)
        torch.testing.assert_close(model.get_activations(reviews[:3]), expected.get_activations(reviews[:3]))


class TestBatches:
    def test_each_in_the_form_of_the_whole(self, of_bert, reviews):
        tensors = of_bert.tokenizer(reviews[:5], padding=True, return_tensors="pt")
        for given, kind in ((reviews[:5], list), (tensors["input_ids"], torch.Tensor), (tensors, BatchEncoding)):
            parts = list(of_bert.batches(given, 2))
            assert [type(part) for part in parts] == [kind] * 3
            rows = [part["input_ids"] if kind is BatchEncoding else part for part in parts]
            assert [len(each) for each in rows] == [2, 2, 1]
        assert parts[2].word_ids(0) == tensors.word_ids(4)
        assert len(list(of_bert.batches(reviews))) == 12  # of 9, the model's own size

    @pytest.mark.parametrize("batch_size", [1, 4, 100])
    def test_size_does_not_matter(self, classifier, of_bert, reviews, batch_size):
        model = ModelWithSplitPoints(of_bert.model, 1, tokenizer=classifier.tokenizer, batch_size=batch_size)
        expected = of_bert.get_activations(reviews[:20], "WORD")[OF_BERT]
        torch.testing.assert_close(
            model.get_activations(reviews[:20], "WORD")[OF_BERT], expected, rtol=1e-10, atol=1e-12
        )

    def test_bad_sizes_and_inputs_are_refused_at_once(self, of_bert):
        with pytest.raises(ValueError, match="batch_size is a number of texts from 1 up, not 0"):
            of_bert.batches(["a"], 0)
        with pytest.raises(ValueError, match="no inputs were given"):
            of_bert.batches([], 2)

    def test_progress(self, of_bert, reviews, capsys):
        of_bert.get_activations(reviews[:10], "CLS_TOKEN")
        assert capsys.readouterr() == ("", "")
        of_bert.get_activations(reviews[:10], "CLS_TOKEN", tqdm_bar=True)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Activations" in printed.err


class TestPredictions:
    @pytest.mark.parametrize("kind", ["classifier", "decoder_classifier"])
    def test_classes_are_those_of_the_model(self, request, kind, reviews):
        local = request.getfixturevalue(kind)
        model = ModelWithSplitPoints(local.model, 1, tokenizer=local.tokenizer, batch_size=8)
        with torch.no_grad():
            expected = [
                int(local.model(torch.tensor([local.tokenizer(text)["input_ids"]])).logits.argmax())
                for text in reviews[:20]
            ]
        assert len(set(expected)) > 1
        found = model.get_activations(reviews[:20], "TOKEN", include_predicted_classes=True, flatten_activations=False)
        assert found["predictions"].tolist() == expected
        flat = model.get_activations(reviews[:20], "TOKEN", include_predicted_classes=True)
        counts = [len(each) for each in found[model.split_points[0]]]
        repeated = [label for label, count in zip(expected, counts, strict=True) for _ in range(count)]
        assert flat["predictions"].tolist() == repeated
        assert len(flat[model.split_points[0]]) == len(repeated)
        torch.testing.assert_close(
            flat[model.split_points[0]], model.get_activations(reviews[:20])[model.split_points[0]]
        )

    def test_of_a_model_without_classes(self, of_gpt2, reviews):
        with pytest.raises(ValueError, match="include_predicted_classes is for classification models"):
            of_gpt2.get_activations(reviews[:2], include_predicted_classes=True)


class TestForwardArguments:
    def test_reach_the_model(self, of_bert, reviews):
        ids = of_bert.tokenizer(reviews[:1], return_tensors="pt")
        ones = torch.ones_like(ids["input_ids"])
        plain = of_bert.get_activations(ids, "TOKEN")[OF_BERT]
        other = of_bert.get_activations(ids, "TOKEN", model_forward_kwargs={"token_type_ids": ones})[OF_BERT]
        given = of_bert.get_activations({**ids, "token_type_ids": ones}, "TOKEN")[OF_BERT]
        assert not torch.allclose(plain, other)
        torch.testing.assert_close(other, given)


class TestRefused:
    @pytest.mark.parametrize(
        ("inputs", "error", "message"),
        [
            ([], ValueError, "no inputs were given"),
            ("", ValueError, "text 0 is an empty string"),
            (["good", "", ""], ValueError, r"text 1 is an empty string \(2 such\)"),
            (["good", 3], TypeError, "a list that holds int"),
            (7, TypeError, "not int"),
            (torch.zeros(0, 3, dtype=torch.long), ValueError, r"token ids are integers \[texts, tokens\]"),
            (torch.zeros(3, dtype=torch.long), ValueError, r"not torch.int64 \(3,\)"),
            (torch.zeros(1, 3), ValueError, "not torch.float32"),
            ({}, ValueError, "tokenizer output has input_ids; this has nothing"),
            ({"input_ids": []}, ValueError, "one row of token ids for each text"),
            ({"input_ids": [5, 6]}, ValueError, "one row of token ids for each text"),
            ({"input_ids": [[5], [6, 7]], "attention_mask": [[0], [1, 1]]}, ValueError, "text 0 .* has no tokens"),
            ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, ValueError, "attention_mask has the shape"),
            (torch.full((1, 2), 9999), ValueError, "token id 9999 is not in the model's vocabulary"),
            (torch.full((1, 2), -1), ValueError, "token id -1 is not in the model's vocabulary"),
            (torch.ones((1, 65), dtype=torch.long), ValueError, "65 wide, and the model has positions for 64"),
        ],
    )
    def test_inputs(self, of_gpt2, inputs, error, message):
        with pytest.raises(error, match=message):
            of_gpt2.get_activations(inputs, "ALL_TOKENS")

    @pytest.mark.parametrize("granularity", ["TOKEN", "WORD", "SENTENCE", "SAMPLE"])
    def test_a_bare_tensor_does_not_say_enough(self, of_gpt2, granularity):
        with pytest.raises(ValueError, match=f"{granularity} needs strings or a tokenizer's output"):
            of_gpt2.get_activations(torch.tensor([[5, 6]]), granularity)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"activation_granularity": "PARAGRAPH"}, "'PARAGRAPH' is no activation granularity; there are CLS_TOKEN"),
            ({"activation_granularity": 3}, "3 is no activation granularity"),
            ({"aggregation_strategy": "MEDIAN"}, "'MEDIAN' is no aggregation strategy"),
            ({"pad_side": "middle"}, "pad_side is 'left' or 'right', not 'middle'"),
            ({"include_padding": True}, "include_padding is for ALL_TOKENS"),
            ({"activation_granularity": "CLS_TOKEN"}, "CLS_TOKEN needs a tokenizer with a classification token"),
        ],
    )
    def test_arguments(self, of_gpt2, arguments, message):
        with pytest.raises(ValueError, match=message):
            of_gpt2.get_activations(["good"], **arguments)

    def test_a_batch_in_which_one_text_lacks_its_classification_token(self, of_bert):
        with_token = of_bert.tokenizer("good film")["input_ids"]
        without = of_bert.tokenizer("good film", add_special_tokens=False)["input_ids"]
        assert of_bert.selection({"input_ids": [with_token, with_token]}, "CLS_TOKEN").counts == [1, 1]
        with pytest.raises(ValueError, match="text 1 of this batch begins with token id"):
            of_bert.get_activations({"input_ids": [with_token, without]}, "CLS_TOKEN")

    def test_a_text_of_special_tokens(self, of_bert):
        given = of_bert.tokenizer(["the", " "])
        assert of_bert.selection(given, "TOKEN").counts == [1, 0]
        assert len(of_bert.get_activations(given, "WORD")[OF_BERT]) == 1
        with pytest.raises(ValueError, match="text 1 of this batch has special tokens alone"):
            of_bert.get_activations(given, "SAMPLE")
