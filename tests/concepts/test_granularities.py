"""Units, and their vectors, against a plain computation in float64: every granularity with every strategy."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from saescope.concepts.splitting import ActivationGranularity, GranularityAggregationStrategy, ModelWithSplitPoints
from saescope.concepts.splitting.sentences import sentence_starts

GRANULARITIES = list(ActivationGranularity)
STRATEGIES = list(GranularityAggregationStrategy)
WITHOUT_CLS = [each for each in GRANULARITIES if each != "cls_token"]


@pytest.fixture(scope="module")
def double_classifier(classifier):
    return classifier.double()


@pytest.fixture(scope="module")
def double_causal(causal):
    return causal.double()


@pytest.fixture(scope="module")
def of_kind(double_classifier, double_causal, classifier, causal):
    """The model of a kind, in batches of 4."""
    models = {
        "classifier": ModelWithSplitPoints(
            double_classifier, "bert.encoder.layer.1", tokenizer=classifier.tokenizer, batch_size=4
        ),
        "causal": ModelWithSplitPoints(double_causal, "transformer.h.1", tokenizer=causal.tokenizer, batch_size=4),
    }
    return models.__getitem__


@cache
def hidden(model, text):
    """Activations of one text alone, as the Hugging Face model gives them: ids, offsets, word ids, ``[l, d]``."""
    encoded = model.tokenizer(text, return_offsets_mapping=True)
    with torch.no_grad():
        output = model.model(input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True)
    return encoded["input_ids"], encoded["offset_mapping"], encoded.word_ids(0), output.hidden_states[2][0]


def plain_sentences(text):
    """The rule, character by character: a list that says to which sentence each character belongs."""
    sentence, of_character, place = 0, [], 0
    while place < len(text):
        of_character.append(sentence)
        if text[place] in ".?!":
            word = text[:place].split()[-1].lower() if text[:place].split() else ""
            after = place + 1
            while after < len(text) and text[after] in '.?!"':
                of_character.append(sentence)
                after += 1
            if after < len(text) and text[after].isspace() and not (word in ("dr", "e.g") and text[place] == "."):
                while after < len(text) and text[after].isspace():
                    of_character.append(sentence)
                    after += 1
                sentence += 1
            place = after
        else:
            place += 1
    return of_character


def plain_units(model, granularity, text):
    """Token places of each unit, from the tokenizer's own account of a single text."""
    ids, offsets, words, _ = hidden(model, text)
    special = set(model.tokenizer.all_special_ids)
    ordinary = [place for place in range(len(ids)) if ids[place] not in special]
    if granularity == "cls_token":
        return [[0]]
    if granularity == "all_tokens":
        return [[place] for place in range(len(ids))]
    if granularity == "token":
        return [[place] for place in ordinary]
    if granularity == "sample":
        return [ordinary]
    if granularity == "word":
        numbers = sorted({word for word in words if word is not None})
        return [[place for place in range(len(ids)) if words[place] == number] for number in numbers]
    of_character = plain_sentences(text)
    sentence_of = {}
    for place in ordinary:
        begin, end = offsets[place]
        visible = [at for at in range(begin, end) if not text[at].isspace()]
        sentence_of[place] = of_character[visible[0] if visible else begin]
    return [
        [place for place in ordinary if sentence_of[place] == number] for number in sorted(set(sentence_of.values()))
    ]


def plain_aggregate(rows, strategy):
    """One unit's vector, number by number."""
    columns = [[float(row[i]) for row in rows] for i in range(rows.shape[1])]
    rules = {
        "mean": lambda numbers: sum(numbers) / len(numbers),
        "max": max,
        "min": min,
        "first": lambda numbers: numbers[0],
        "last": lambda numbers: numbers[-1],
        "sum": sum,
        "signed_max": lambda numbers: max(numbers, key=abs),
    }
    return torch.tensor([rules[strategy](column) for column in columns], dtype=torch.float64)


class TestAgainstPlain:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize(
        ("kind", "granularity"),
        [("classifier", each) for each in GRANULARITIES] + [("causal", each) for each in WITHOUT_CLS],
    )
    def test_every_granularity_with_every_strategy(self, of_kind, reviews, kind, granularity, strategy):
        model, texts = of_kind(kind), reviews[2:9]
        expected = [
            torch.stack(
                [
                    plain_aggregate(hidden(model, text)[3][unit], strategy)
                    for unit in plain_units(model, granularity, text)
                ]
            )
            for text in texts
        ]
        (found,) = model.get_activations(texts, granularity, strategy).values()
        assert found.dtype == torch.float64
        assert found.device.type == "cpu"
        assert not found.requires_grad
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=1e-12)
        (by_text,) = model.get_activations(texts, granularity, strategy, flatten_activations=False).values()
        for one, other in zip(by_text, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    def test_units_differ(self, of_kind, reviews):
        """The texts have words of several tokens and several sentences, or the test above would show little."""
        model = of_kind("classifier")
        words = model.selection(reviews[2:9], "WORD")
        sentences = model.selection(reviews[2:9], "SENTENCE")
        assert max(len(unit) for text in words.units for unit in text) > 1
        assert len(set(sentences.counts)) > 1
        assert len(set(model.selection(reviews[2:9], "TOKEN").counts)) > 1


class TestPadding:
    @pytest.mark.parametrize("kind", ["classifier", "causal"])
    @pytest.mark.parametrize("granularity", WITHOUT_CLS)
    def test_neither_side_nor_company_matters(self, of_kind, reviews, kind, granularity):
        model, texts = of_kind(kind), reviews[3:9]
        alone = torch.cat([next(iter(model.get_activations([text], granularity).values())) for text in texts])
        for side in ("left", "right", None):
            (together,) = model.get_activations(texts, granularity, pad_side=side).values()
            torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)

    def test_classification_token_on_either_side(self, of_kind, reviews):
        model = of_kind("classifier")
        left, right = (model.selection(reviews[:7], "CLS_TOKEN", pad_side=side) for side in ("left", "right"))
        assert left.encoding["attention_mask"][:, 0].min() == 0
        assert {unit[0][0] for unit in right.units} == {0}
        assert len({unit[0][0] for unit in left.units}) > 1
        (found,) = model.get_activations(reviews[:7], "CLS_TOKEN", pad_side="left").values()
        torch.testing.assert_close(found, next(iter(model.get_activations(reviews[:7], "CLS_TOKEN").values())))

    def test_default_sides(self, of_kind, reviews):
        for kind, column in (("causal", -1), ("classifier", 0)):
            mask = of_kind(kind).selection(reviews[:7], "TOKEN").encoding["attention_mask"]
            assert mask.min() == 0
            assert mask[:, column].min() == 1

    def test_first_sentence_does_not_hear_of_padding(self, of_kind):
        model = of_kind("classifier")
        text = "The film was good. We left early."
        short = model.get_activations([text, "The film was dull."], "SENTENCE", flatten_activations=False)
        long = model.get_activations([text, "The film was dull. " * 6], "SENTENCE", flatten_activations=False)
        for point in short:
            torch.testing.assert_close(short[point][0], long[point][0], rtol=1e-10, atol=1e-12)

    def test_all_tokens_counts_the_mask(self, of_kind, reviews):
        model = of_kind("classifier")
        chosen = model.selection(reviews[:4], "ALL_TOKENS")
        mask = chosen.encoding["attention_mask"]
        (found,) = model.get_activations(reviews[:4], "ALL_TOKENS").values()
        assert len(found) == int(mask.sum()) < mask.numel()
        (padded,) = model.get_activations(reviews[:4], "ALL_TOKENS", include_padding=True).values()
        assert len(padded) == mask.numel()
        torch.testing.assert_close(padded[mask.flatten().bool()], found)


class TestThereAndBack:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("granularity", [each for each in GRANULARITIES if each != "sample"])
    def test_scatter_then_gather_gives_the_rows(self, of_kind, reviews, granularity, strategy):
        chosen = of_kind("classifier").selection(reviews[:6], granularity)
        generator = torch.Generator().manual_seed(0)
        n, length = chosen.encoding["input_ids"].shape
        before = torch.randn(n, length, 5, dtype=torch.float64, generator=generator)
        rows = torch.randn(sum(chosen.counts), 5, dtype=torch.float64, generator=generator)
        kept = before.clone()
        after = chosen.scatter(before, rows, strategy)
        torch.testing.assert_close(chosen.gather(after, strategy), rows, rtol=1e-12, atol=1e-12)
        assert torch.equal(before, kept)
        inside = torch.zeros(n, length, dtype=torch.bool)
        number = 0
        for text, units in enumerate(chosen.units):
            for unit in units:
                inside[text, unit] = True
                one = rows[number] / len(unit) if strategy == "sum" else rows[number]
                for column in unit:
                    torch.testing.assert_close(after[text, column], one)
                number += 1
        assert torch.equal(after[~inside], before[~inside])

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("granularity", ["word", "token"])
    def test_gradients_of_both_ways(self, of_kind, reviews, granularity, strategy):
        chosen = of_kind("classifier").selection(reviews[:2], granularity)
        shape = (*chosen.encoding["input_ids"].shape, 2)
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        rows = torch.randn(sum(chosen.counts), 2, dtype=torch.float64, generator=generator, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a: chosen.gather(a, strategy), values)
        assert torch.autograd.gradcheck(lambda a, r: chosen.scatter(a, r, strategy), (values, rows))

    def test_a_text_cannot_be_written_back(self, of_kind, reviews):
        chosen = of_kind("causal").selection(reviews[:2], "SAMPLE")
        values = torch.zeros(*chosen.encoding["input_ids"].shape, 4)
        assert chosen.gather(values).shape == (2, 4)
        with pytest.raises(ValueError, match="one vector per text cannot be written back"):
            chosen.scatter(values, torch.zeros(2, 4))

    def test_half_precision_is_summed_in_float32(self, of_kind, reviews):
        chosen = of_kind("causal").selection(reviews[:2], "SAMPLE")
        values = torch.randn(*chosen.encoding["input_ids"].shape, 4, generator=torch.Generator().manual_seed(0))
        values = values.bfloat16()
        found = chosen.gather(values, "SUM")
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, chosen.gather(values.double(), "SUM").float(), rtol=1e-6, atol=1e-6)
        tokens = of_kind("causal").selection(reviews[:2], "TOKEN")
        assert tokens.gather(values).dtype == torch.float32
        assert tokens.scatter(values, tokens.gather(values)).dtype == torch.bfloat16

    def test_wrong_shapes_are_named(self, of_kind, reviews):
        chosen = of_kind("causal").selection(reviews[:2], "WORD")
        n, length = chosen.encoding["input_ids"].shape
        values = torch.zeros(n, length, 4)
        with pytest.raises(ValueError, match=rf"2 texts of {length} tokens, and the activations have the shape \(3, "):
            chosen.gather(torch.zeros(3, length, 4))
        with pytest.raises(
            ValueError, match=rf"there are {sum(chosen.counts)} units of width 4, and the rows are \(1, 4\)"
        ):
            chosen.scatter(values, torch.zeros(1, 4))


class TestStrategies:
    def test_signed_max(self):
        rows = torch.tensor([[-1.0, 0, 1, 2], [-3, 1, -2, 0]])
        strategy = GranularityAggregationStrategy.SIGNED_MAX
        assert strategy.aggregate(rows).tolist() == [[-3, 1, -2, 2]]
        assert strategy.aggregate(torch.tensor([[1.0, -2], [-1, 2]])).tolist() == [[1, -2]]  # the first of equal ones

    def test_not_a_number_stays_one(self):
        rows = torch.tensor([[1.0, float("nan")], [2, 3]])
        for strategy in (each for each in STRATEGIES if each not in ("first", "last")):
            assert strategy.aggregate(rows)[0].isnan().tolist() == [False, True]

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_unfold(self, strategy):
        row = torch.tensor([[2.0, -4.0]])
        expected = [[0.5, -1.0]] * 4 if strategy == "sum" else [[2.0, -4.0]] * 4
        assert strategy.unfold(row, 4).tolist() == expected
        torch.testing.assert_close(strategy.aggregate(strategy.unfold(row, 4)), row)

    def test_bad_shapes(self):
        mean = GranularityAggregationStrategy.MEAN
        with pytest.raises(ValueError, match="at least one token"):
            mean.aggregate(torch.zeros(0, 3))
        with pytest.raises(ValueError, match="unfold takes one row"):
            mean.unfold(torch.zeros(2, 3), 4)

    def test_names_and_values_are_accepted(self):
        assert ActivationGranularity("TOKEN") is ActivationGranularity("token") is ActivationGranularity.TOKEN
        assert GranularityAggregationStrategy("SIGNED_MAX") is GranularityAggregationStrategy.SIGNED_MAX
        with pytest.raises(
            ValueError, match="'paragraph' is no activation granularity; there are CLS_TOKEN, ALL_TOKENS"
        ):
            ActivationGranularity("paragraph")
        with pytest.raises(ValueError, match="'median' is no aggregation strategy; there are MEAN"):
            GranularityAggregationStrategy("median")


def sentences(text):
    starts = sentence_starts(text)
    return [text[begin:end].strip() for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]


class TestSentences:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("One. Two? Three! Four", ["One.", "Two?", "Three!", "Four"]),
            ("Dr. Smith met Mrs. Jones (cf. Brown et al. 2020). They left.",
             ["Dr. Smith met Mrs. Jones (cf. Brown et al. 2020).", "They left."]),
            ("It costs 3.14 euros at www.shop.com now.", ["It costs 3.14 euros at www.shop.com now."]),
            ("Wait... what?! Yes.", ["Wait...", "what?!", "Yes."]),
            ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
            ("Some fruit, e.g. apples. Others not.", ["Some fruit, e.g. apples.", "Others not."]),
            ("A word endst. Not an abbreviation.", ["A word endst.", "Not an abbreviation."]),
            ("Is she a Dr? Yes.", ["Is she a Dr?", "Yes."]),
            ("a line\nanother line", ["a line\nanother line"]),
            ("  Space before.\n\nAnd after.  ", ["Space before.", "And after."]),
            (". a", [".", "a"]),
            ("no end", ["no end"]),
        ],
    )  # fmt: skip
    def test_rule(self, text, expected):
        assert sentences(text) == expected

    def test_units_of_a_text(self, of_kind):
        text = "Dr. Brown's book was dull. We left early! Never again"
        for kind in ("classifier", "causal"):
            chosen = of_kind(kind).selection([text, "Good."], "SENTENCE")
            assert chosen.unit_texts == [["Dr. Brown's book was dull.", "We left early!", "Never again"], ["Good."]]

    def test_offsets_are_those_of_the_raw_text(self, of_kind):
        """Lower-casing and joining of pieces change the decoded text; the raw one is cut."""
        chosen = of_kind("classifier").selection(["THE   FILM\twas  GOOD.   We Left."], "SENTENCE")
        assert chosen.unit_texts == [["THE   FILM\twas  GOOD.", "We Left."]]


class TestUnitTexts:
    def test_of_every_granularity(self, of_kind):
        model, text = of_kind("causal"), "The film was good. We don't know"
        texts = {each: model.selection([text], each).unit_texts[0] for each in WITHOUT_CLS}
        assert "".join(texts["token"]) == "".join(texts["all_tokens"]) == text
        assert texts["word"] == ["The", "film", "was", "good", ".", "We", "don", "'t", "know"]
        assert texts["sentence"] == ["The film was good.", "We don't know"]
        assert texts["sample"] == [text]

    def test_of_an_encoder(self, of_kind):
        model, text = of_kind("classifier"), "The film was good"
        assert model.selection([text], "CLS_TOKEN").unit_texts == [[text]]
        assert model.selection([text], "WORD").unit_texts == [["The", "film", "was", "good"]]
        assert model.selection([text], "ALL_TOKENS").unit_texts[0][0] == "[CLS]"
        assert "".join(model.selection([text], "TOKEN").unit_texts[0]).split() == ["the", "film", "was", "good"]

    def test_an_unknown_word_is_a_word_and_no_token(self, of_kind):
        model, text = of_kind("classifier"), "The \u4e16 film. Was good."
        unknown = model.tokenizer.unk_token_id
        words, tokens = (model.selection([text], each) for each in ("WORD", "TOKEN"))
        assert unknown in words.encoding["input_ids"]
        assert words.unit_texts[0] == ["The", "\u4e16", "film", ".", "Was", "good", "."]
        assert len(tokens.units[0]) == sum(len(unit) for unit in words.units[0]) - 1
        covered = [column for unit in model.selection([text], "SENTENCE").units[0] for column in unit]
        assert covered == [column for unit in words.units[0] for column in unit]

    def test_the_end_of_text_inside_a_text_is_in_no_unit(self, of_kind):
        model, text = of_kind("causal"), "The film<|endoftext|> was good."
        for granularity in ("TOKEN", "WORD", "SENTENCE", "SAMPLE"):
            chosen = model.selection([text], granularity)
            ids = chosen.encoding["input_ids"][0]
            assert 0 in ids
            assert all(ids[column] != 0 for unit in chosen.units[0] for column in unit)


@pytest.fixture(scope="module", params=["nothing cuts", "a pre-tokenizer that marks and cuts nothing"])
def whole_texts(request):
    """Like Llama 2's and Gemma's: nothing is cut beforehand, so that word ids number every text as one word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "\u2581", "\u2581the", "\u2581film", "\u2581was", "\u2581go", "od", ".", "!"]
    scores = [(piece, -1.0 - number) for number, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    if request.param == "nothing cuts":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=32)


class TestWordsOfOtherTokenizers:
    def test_marks_of_spaces_tell_words_where_the_tokenizer_does_not(self, whole_texts, causal):
        assert set(whole_texts("the film was good").word_ids()) == {0}
        model = ModelWithSplitPoints(causal.model, 0, tokenizer=whole_texts)
        chosen = model.selection(["the film was good.", "the film"], "WORD")
        assert chosen.unit_texts == [["the", "film", "was", "good."], ["the", "film"]]

    @pytest.mark.parametrize("kind", ["classifier", "causal"])
    def test_a_plain_mapping_gives_the_same_words(self, of_kind, reviews, kind):
        model = of_kind(kind)
        given = model.tokenizer(reviews[:5])
        expected = [plain_units(model, "word", text) for text in reviews[:5]]
        assert model.selection(dict(given), "WORD", pad_side="right").units == expected

    def test_bundled(self, bundled):
        model = ModelWithSplitPoints(bundled, 1)
        chosen = model.selection(["def f(x):\n    return  x+10"], "WORD")
        assert "".join("".join(chosen.unit_texts[0]).split()) == "deff(x):returnx+10"
        assert chosen.unit_texts[0][:5] == ["def", "f", "(", "x", "):"]

    def test_a_slow_tokenizer(self, causal):
        from transformers import PreTrainedTokenizer

        class Slow(PreTrainedTokenizer):
            pieces = ("<unk>", "\u0120the", "the", "\u0120fi", "lm", ".", "\u0120was")

            @property
            def vocab_size(self):
                return len(self.pieces)

            def get_vocab(self):
                return {piece: number for number, piece in enumerate(self.pieces)}

            def _tokenize(self, text, **kwargs):
                marked, found = text.replace(" ", "\u0120"), []
                while marked:
                    piece = max((each for each in self.pieces if marked.startswith(each)), key=len)
                    found.append(piece)
                    marked = marked[len(piece) :]
                return found

            def _convert_token_to_id(self, token):
                return self.pieces.index(token)

            def _convert_id_to_token(self, index):
                return self.pieces[index]

        model = ModelWithSplitPoints(causal.model, 0, tokenizer=Slow(unk_token="<unk>", model_max_length=16))
        chosen = model.selection(["the film was. the film"], "WORD")
        assert chosen.units == [[[0], [1, 2], [3, 4], [5], [6, 7]]]
