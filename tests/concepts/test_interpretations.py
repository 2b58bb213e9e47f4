"""The texts that activate concepts most, against a search through everything."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from saescope.concepts.interpretations import Hit, TopKInputs
from saescope.concepts.interpretations.best_texts import BestTexts
from saescope.concepts.interpretations.units import Unit
from saescope.concepts.splitting import ActivationGranularity as Of
from saescope.concepts.splitting import ModelWithSplitPoints

POINT = "transformer.h.1"
TEXTS = [
    "def alpha(x, beta):\n    return x",
    "return alpha",
    "x = beta + alpha(x)\ny = 1",
    "def gamma(x): return x + 2",
]
SENTENCES = ["the cats run. a cat", "a cat and the dogs", "the dogs and a cat running far. the cat"]
NUM_CONCEPTS = 12


class Concepts:
    """Linear concepts; with a ReLU unless signed. Counts the rows that it encodes."""

    is_fitted = True
    device = torch.device("cpu")

    def __init__(self, model, split_point, signed=False):
        self.model_with_split_points, self.split_point, self.signed = model, split_point, signed
        torch.manual_seed(3)
        self.E = torch.randn(16, NUM_CONCEPTS, dtype=torch.float64)
        self.rows = []

    def encode_activations(self, a):
        self.rows.append(len(a))
        codes = a.double() @ self.E
        return codes if self.signed else torch.relu(codes - 0.5)

    def get_dictionary(self):
        return self.E.T


@pytest.fixture(scope="module")
def decoder(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return ModelWithSplitPoints(GPT2LMHeadModel(config).double(), [POINT], tokenizer=tokenizer, batch_size=3)


@pytest.fixture(scope="module")
def encoder():
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    pieces = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        "the",
        "a",
        "cat",
        "dog",
        "##s",
        "run",
        "##n",
        "##ing",
        "and",
        "far",
        ".",
    ]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=32,
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=15, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, num_labels=4, initializer_range=0.4,
    )  # fmt: skip
    module = BertForSequenceClassification(config).double()
    return ModelWithSplitPoints(module, ["bert.encoder.layer.0"], tokenizer=tokenizer, batch_size=2)


def activations(model, ids):
    """``[l, d]`` of one text, by a hook of the test's own."""
    held = []

    def keep(_module, _args, output):
        held.append(output[0] if isinstance(output, tuple) else output)

    handle = model.model.get_submodule(model.split_points[0]).register_forward_hook(keep)
    with torch.no_grad():
        model.model.eval()(torch.tensor([ids]))
    handle.remove()
    return held[0][0]


def searched(units, codes, k, signed=False):
    """{concept: [(text, value, sample, place)]} by looking at every unit: units are (text, sample, place)."""
    found = {}
    for concept in range(codes.shape[1]):
        best = {}
        for (text, sample, place), value in zip(units, codes[:, concept].tolist(), strict=True):
            counts = value != 0 if signed else value > 0
            if counts and (text not in best or abs(value) > abs(best[text][0])):
                best[text] = (value, sample, place)
        order = sorted(best, key=lambda text: (-abs(best[text][0]), best[text][1:]))
        found[concept] = [(text, *best[text]) for text in order[:k]]
    return found


def same(hits, expected):
    assert list(hits) == list(expected)
    for concept, wanted in expected.items():
        mine = hits[concept]
        assert [(hit.text, hit.sample, hit.position) for hit in mine] == [(t, s, p) for t, _, s, p in wanted]
        assert [hit.activation for hit in mine] == pytest.approx([v for _, v, _, _ in wanted], rel=1e-6)


def words_by_hand(tokenizer, text):
    """Words as (text, places of its tokens)."""
    told = tokenizer(text, return_offsets_mapping=True)
    places = {}
    for place, word in enumerate(told.word_ids()):
        if word is not None:
            places.setdefault(word, []).append(place)
    return [
        (text[told["offset_mapping"][own[0]][0] : told["offset_mapping"][own[-1]][1]].strip(), own)
        for own in places.values()
    ]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_tokens_and_words_of_an_encoder(encoder, k, signed):
    concepts = Concepts(encoder, encoder.split_points[0], signed=signed)
    tokenizer = encoder.tokenizer
    for granularity in (Of.TOKEN, Of.WORD):
        units, rows = [], []
        for sample, text in enumerate(SENTENCES):
            ids = tokenizer(text)["input_ids"]
            own = activations(encoder, ids)
            if granularity is Of.TOKEN:
                pieces = tokenizer.convert_ids_to_tokens(ids)
                for place in range(1, len(ids) - 1):
                    piece = pieces[place]
                    units.append((piece[2:] if piece.startswith("##") else " " + piece, sample, place))
                    rows.append(own[place])
            else:
                for word, places in words_by_hand(tokenizer, text):
                    units.append((word, sample, places[0]))
                    rows.append(own[places].mean(0))
        codes = concepts.encode_activations(torch.stack(rows))
        expected = searched(units, codes, k, signed)
        method = TopKInputs(concept_explainer=concepts, activation_granularity=granularity, k=k, signed=signed)
        same(method.hits(inputs=SENTENCES), expected)
        found = method.interpret("all", inputs=SENTENCES)
        for concept, wanted in expected.items():
            if not wanted:
                assert found[concept] is None
            else:
                assert list(found[concept]) == [text for text, *_ in wanted]
                assert list(found[concept].values()) == pytest.approx([value for _, value, _, _ in wanted])
        assert max(len(each) for each in expected.values()) <= len({text for text, *_ in units})
        if signed and k == 1000:
            assert any(value < 0 for each in found.values() for value in each.values())


def test_every_granularity_of_a_decoder(decoder, encoder):
    """Whole texts, sentences and words, from texts and from activations that are there already."""
    concepts = Concepts(decoder, POINT)
    for granularity in (Of.TOKEN, Of.WORD, Of.SENTENCE, Of.SAMPLE):
        method = TopKInputs(concept_explainer=concepts, activation_granularity=granularity, k=4)
        found = method.hits(inputs=TEXTS)
        latent = decoder.get_activations(TEXTS, granularity)
        codes = concepts.encode_activations(latent[POINT])
        assert found == method.hits(inputs=TEXTS, latent_activations=latent)
        assert found == method.hits(inputs=TEXTS, latent_activations=latent[POINT])
        assert found == method.hits(inputs=TEXTS, concepts_activations=codes)
        assert found == method.hits(inputs=TEXTS, concepts_activations=codes.to_sparse())
        # concept activations go first
        assert found == method.hits(inputs=TEXTS, latent_activations=latent[POINT] * 0, concepts_activations=codes)
        selection = decoder.selection(TEXTS, granularity)
        mask = selection.encoding["attention_mask"]
        units = [
            (text, sample, int(mask[sample, : own[0]].sum()))
            for sample, (texts, places) in enumerate(zip(selection.unit_texts, selection.units, strict=True))
            for text, own in zip(texts, places, strict=True)
        ]
        same(found, searched(units, codes, 4))
    whole = TopKInputs(concept_explainer=concepts, activation_granularity=Of.SAMPLE, k=9).interpret(inputs=TEXTS)
    assert {text for each in whole.values() if each for text in each} <= set(TEXTS)
    concepts = Concepts(encoder, encoder.split_points[0])
    whole = TopKInputs(concept_explainer=concepts, activation_granularity=Of.CLS_TOKEN, k=9).interpret(inputs=SENTENCES)
    assert {text for each in whole.values() if each for text in each} == set(SENTENCES)


def test_what_stands_around_a_hit(decoder):
    concepts = Concepts(decoder, POINT)
    for granularity in (Of.TOKEN, Of.WORD):
        method = TopKInputs(concept_explainer=concepts, activation_granularity=granularity, k=50)
        every = [hit for hits in method.hits(inputs=TEXTS, num_context=1000).values() for hit in hits]
        assert every
        for hit in every:
            assert isinstance(hit, Hit)
            ids = decoder.tokenizer(TEXTS[hit.sample])["input_ids"]
            assert decoder.tokenizer.decode(ids[: hit.position]) == hit.before
            assert hit.before + hit.text + hit.after == TEXTS[hit.sample] or granularity is Of.WORD
            assert TEXTS[hit.sample].startswith(hit.before)
            assert TEXTS[hit.sample].endswith(hit.after)
            assert hit.text in TEXTS[hit.sample]
        narrow = [hit for hits in method.hits(inputs=TEXTS, num_context=1).values() for hit in hits]
        assert [(hit.text, hit.position) for hit in narrow] == [(hit.text, hit.position) for hit in every]
        for near, wide in zip(narrow, every, strict=True):
            assert wide.before.endswith(near.before)
            assert wide.after.startswith(near.after)
        assert any(near.before != wide.before for near, wide in zip(narrow, every, strict=True))
        if granularity is Of.TOKEN:
            for hit in narrow:
                ids = decoder.tokenizer(TEXTS[hit.sample])["input_ids"]
                assert decoder.tokenizer.decode(ids[max(0, hit.position - 1) : hit.position]) == hit.before
        bare = [hit for hits in method.hits(inputs=TEXTS, num_context=0).values() for hit in hits]
        assert not any(hit.before or hit.after for hit in bare)


def test_the_vocabulary_one_by_one(decoder, encoder):
    concepts = Concepts(decoder, POINT)
    found = TopKInputs(concept_explainer=concepts, k=6, use_vocab=True).hits([2, 5])
    from saescope.models.token_text import vocabulary_texts

    names = vocabulary_texts(decoder.tokenizer, 320)
    numbers = [number for number in range(320) if number not in decoder.tokenizer.all_special_ids]
    codes = concepts.encode_activations(torch.stack([activations(decoder, [number])[0] for number in numbers]))
    expected = searched([(names[number], number, 0) for number in numbers], codes, 6)
    same(found, {concept: expected[concept] for concept in (2, 5)})
    assert len(found[2]) == 6

    concepts = Concepts(encoder, encoder.split_points[0])
    found = TopKInputs(concept_explainer=concepts, activation_granularity=Of.CLS_TOKEN, k=3, use_vocab=True).hits()
    names = vocabulary_texts(encoder.tokenizer, 15)
    codes = concepts.encode_activations(torch.stack([activations(encoder, [1, n, 2])[0] for n in range(4, 15)]))
    same(found, searched([(names[n], n, 1) for n in range(4, 15)], codes, 3))


def test_unique_words(encoder):
    concepts = Concepts(encoder, encoder.split_points[0])
    settings = {"concept_explainer": concepts, "activation_granularity": Of.CLS_TOKEN, "k": 4, "use_unique_words": True}
    words = ["the", "cats", "run", "a", "cat", "and", "dogs", "running", "far"]
    ids = [encoder.tokenizer(word)["input_ids"] for word in words]
    codes = concepts.encode_activations(torch.stack([activations(encoder, each)[0] for each in ids]))
    expected = searched([(word, number, 0) for number, word in enumerate(words)], codes, 4)
    same(TopKInputs(**settings).hits(inputs=SENTENCES), expected)
    some = TopKInputs(**settings, unique_words_kwargs={"count_min_threshold": 2, "words_to_ignore": ["the", "a"]})
    kept = {text for each in some.interpret(inputs=SENTENCES).values() if each for text in each}
    assert kept <= {"cat", "and", "dogs"}
    assert kept
    encoded = encoder.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert TopKInputs(**settings).hits(inputs=encoded) == TopKInputs(**settings).hits(inputs=SENTENCES)
    # of several units of a word the best one counts, under the word's name
    tokens = TopKInputs(**{**settings, "activation_granularity": Of.TOKEN}).interpret(inputs=["running cats"])
    assert {text for each in tokens.values() if each for text in each} == {"running", "cats"}


def test_rows_are_encoded_some_at_a_time(decoder):
    concepts = Concepts(decoder, POINT)
    expected = TopKInputs(concept_explainer=concepts, activation_granularity=Of.TOKEN, k=3).hits(inputs=TEXTS)
    total = sum(concepts.rows)
    for size in (1, 7, 16):
        concepts.rows = []
        method = TopKInputs(
            concept_explainer=concepts, activation_granularity=Of.TOKEN, k=3, concept_encoding_batch_size=size
        )
        found = method.hits(inputs=TEXTS)
        # what was found, to rounding: a product of other shape rounds otherwise
        same(
            found, {c: [(hit.text, hit.activation, hit.sample, hit.position) for hit in expected[c]] for c in expected}
        )
        assert max(concepts.rows) == size
        assert sum(concepts.rows) == total


@pytest.mark.parametrize("signed", [False, True])
def test_many_texts_in_any_portions(signed):
    """Streaming keeps what a search through everything finds, whatever the portions; equal values included."""
    rng = random.Random(5)
    names = [f"w{number}" for number in range(40)]
    units = [Unit(rng.choice(names), row // 10, row % 10, row % 10) for row in range(600)]
    values = [-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0]
    codes = torch.tensor([[rng.choice(values) for _ in range(7)] for _ in units], dtype=torch.float64)
    codes[:, 6] = -codes[:, 6].abs() if not signed else 0
    expected = searched([(unit.text, unit.sample, unit.number) for unit in units], codes, 5, signed)
    for size in (1, 13, 600):
        best = BestTexts(7, 5, signed=signed)
        for first in range(0, 600, size):
            best.update(units[first : first + size], codes[first : first + size])
            assert len(best._units) <= 7 * 5
        found = {
            concept: [(each.unit.text, each.value, each.unit.sample, each.unit.number) for each in own]
            for concept, own in enumerate(best.best())
        }
        assert found == expected
    assert expected[6] == []


def test_texts_that_come_one_by_one(decoder):
    method = TopKInputs(concept_explainer=Concepts(decoder, POINT), k=2)
    assert method.hits(inputs=iter(TEXTS)) == method.hits(inputs=TEXTS)


def test_which_concepts(decoder):
    method = TopKInputs(concept_explainer=Concepts(decoder, POINT), k=2)
    every = method.interpret("all", inputs=TEXTS)
    assert list(every) == list(range(NUM_CONCEPTS))
    assert method.interpret(3, inputs=TEXTS) == {3: every[3]}
    assert method.interpret([7, 1, 7], inputs=TEXTS) == {7: every[7], 1: every[1]}
    for wrong in (NUM_CONCEPTS, -1, [0, 99], "some", True, [1.5]):
        with pytest.raises(ValueError, match="concepts"):
            method.interpret(wrong, inputs=TEXTS)


def test_a_silent_concept_has_none(decoder):
    concepts = Concepts(decoder, POINT)
    concepts.E[:, 4] = 0
    method = TopKInputs(concept_explainer=concepts)
    assert method.interpret([4, 5], inputs=TEXTS)[4] is None
    assert method.hits(4, inputs=TEXTS) == {4: []}


def test_mistakes_are_said_in_words(decoder, encoder):
    concepts = Concepts(decoder, POINT)
    for settings, words in (
        ({"activation_granularity": Of.ALL_TOKENS}, "ALL_TOKENS"),
        ({"use_vocab": True, "use_unique_words": True}, "exclude each other"),
        ({"k": 0}, "k is a number from 1"),
        ({"use_unique_words": 3}, "single words, no runs of 3"),
        ({"concept_encoding_batch_size": 0}, "concept_encoding_batch_size"),
        ({"use_unique_words": True, "unique_words_kwargs": {"lemmatize": True}}, "base forms"),
        ({"use_unique_words": True, "unique_words_kwargs": {"least": 3}}, "least"),
    ):
        with pytest.raises(ValueError, match=words):
            TopKInputs(concept_explainer=concepts, **settings)
    method = TopKInputs(concept_explainer=concepts)
    rows = len(decoder.get_activations(TEXTS, Of.WORD)[POINT])
    for given, words in (
        ({}, "no inputs"),
        ({"inputs": "one text"}, "list of texts"),
        ({"inputs": TEXTS, "concepts_activations": torch.zeros(rows - 1, NUM_CONCEPTS)}, "more units in the inputs"),
        ({"inputs": TEXTS, "concepts_activations": torch.zeros(rows + 1, NUM_CONCEPTS)}, f"have {rows} units"),
        ({"inputs": TEXTS, "concepts_activations": torch.zeros(rows, NUM_CONCEPTS + 1)}, r"\[units, 12\]"),
        ({"inputs": TEXTS, "latent_activations": torch.zeros(rows)}, r"\[units, d\]"),
        ({"inputs": TEXTS, "concepts_activations": torch.full((rows, NUM_CONCEPTS), torch.nan)}, "not a number"),
    ):
        with pytest.raises(ValueError, match=words):
            method.interpret("all", **given)
    with pytest.raises(ValueError, match="num_context"):
        method.hits(inputs=TEXTS, num_context=-1)
    with pytest.raises(ValueError, match="CLS"):
        TopKInputs(concept_explainer=concepts, activation_granularity=Of.CLS_TOKEN, use_vocab=True).interpret()
    rare = TopKInputs(
        concept_explainer=concepts, use_unique_words=True, unique_words_kwargs={"count_min_threshold": 99}
    )
    with pytest.raises(ValueError, match="99 times"):
        rare.interpret(inputs=TEXTS)
    concepts.is_fitted = False
    with pytest.raises(RuntimeError, match="fit"):
        TopKInputs(concept_explainer=concepts)


def test_the_device_is_set_back(decoder):
    asked = []

    class Moving(Concepts):
        @property
        def device(self):
            return torch.device("cpu")

        @device.setter
        def device(self, value):
            asked.append(value)

    TopKInputs(concept_explainer=Moving(decoder, POINT), concept_model_device="cpu").interpret(inputs=TEXTS)
    assert asked == ["cpu", torch.device("cpu")]


def test_names():
    import saescope.concepts as concepts
    from saescope.concepts import interpretations

    assert concepts.TopKInputs is interpretations.TopKInputs is TopKInputs
    assert TopKInputs.activation_granularities is Of
    for room in (concepts, interpretations):
        assert all(getattr(room, name) is not None for name in room.__all__)
        assert sorted(room.__all__) == sorted(room._HOMES)
        with pytest.raises(AttributeError, match="public names"):
            room.Nothing  # noqa: B018
