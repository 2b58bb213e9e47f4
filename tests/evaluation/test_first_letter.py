"""First-letter absorption: the place of each word's token, a planted model whose answer is known, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from saescope.dictionaries import Dictionary, DictionaryConfig, ReLU, TopK, TopKConfig
from saescope.evaluation.absorption.concept_absorption import AbsorptionConfig
from saescope.evaluation.absorption.first_letter import FirstLetterConfig, first_letter
from saescope.evaluation.absorption.letter_prompts import Prompting, Word, prompts_of, read_words, words_of
from saescope.evaluation.results import StudyResult
from saescope.models import LanguageModel

SHORT = Prompting(question="{word} is", num_examples=2)
FIRST = "abcd"
PER_LETTER = 40
NUM_ABSORBED = 12  # words of each letter that have a feature of their own
HOOK = "blocks.0.hook_resid_pre"
D = len(FIRST) * (1 + NUM_ABSORBED) + 6


def made_up_words() -> list[str]:
    """Lines of one letter, so that the first of them are the words with a feature of their own."""
    generator = np.random.default_rng(0)
    found: list[str] = []
    for letter in FIRST:
        words: list[str] = []
        while len(words) < PER_LETTER:
            word = letter + "".join(generator.choice(list("lmnopqrstu"), 4))
            if word not in words:
                words.append(word)
        found += words
    return found


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """A SentencePiece vocabulary: words with the sign for a space before them, and single characters."""
    single = [(character, -20.0) for character in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:\n\u2581"]
    words = [(f"\u2581{word}", -2.0) for word in made_up_words()]
    others = [("\u2581is", -1.0), ("\u2581x9", -3.0), ("\u2581\u2581twice", -3.0), ("\u2581\u00e9t\u00e9", -3.0)]
    backend = Tokenizer(Unigram([("<s>", 0.0), ("<unk>", -30.0), *single, *words, *others], unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def letters_model(pieces: PreTrainedTokenizerFast) -> LanguageModel:
    """Every word's embedding is its letter's direction; some words have a direction of their own beside it."""
    torch.manual_seed(0)
    size = len(pieces)
    module = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=48, n_embd=D, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    )
    with torch.no_grad():
        module.transformer.wpe.weight.zero_()
        table = 0.01 * torch.randn(size, D)
        for place, word in enumerate(made_up_words()):
            row = table[pieces.convert_tokens_to_ids(f"\u2581{word}")]
            row[FIRST.index(word[0])] += 2
            own = place % PER_LETTER
            if own < NUM_ABSORBED:
                row[len(FIRST) + FIRST.index(word[0]) * NUM_ABSORBED + own] += 2
        module.transformer.wte.weight.copy_(table)
    return LanguageModel(module, pieces, "letters")


def planted(*, absorbing: bool) -> Dictionary:
    """A feature for each letter and for each word with a direction of its own, which takes over where ``absorbing``."""
    num_features = D - 6
    dictionary = ReLU(DictionaryConfig(d_in=D, d_sae=num_features))
    rows = torch.eye(num_features, D)
    encoder = rows.clone()
    if absorbing:
        for letter in range(len(FIRST)):
            start = len(FIRST) + letter * NUM_ABSORBED
            rows[start : start + NUM_ABSORBED, letter] = 1
            encoder[letter, start : start + NUM_ABSORBED] = -2
    with torch.no_grad():
        dictionary.W_dec.copy_(rows)
        dictionary.encoder_rows.copy_(encoder)
        dictionary.b_enc.fill_(-0.2)
    return dictionary


def study(dictionary: Dictionary, model: LanguageModel, **settings: Any) -> StudyResult:
    config = FirstLetterConfig(prompting=SHORT, absorption=AbsorptionConfig(least_positives=3, **settings))
    return first_letter(dictionary, model, [HOOK], config)


def test_absorbed_words_are_counted(letters_model: LanguageModel, pieces: PreTrainedTokenizerFast) -> None:
    clean = study(planted(absorbing=False), letters_model)
    for name in ("absorption_fraction", "full_absorption", "mean_absorption_fraction_score"):
        assert clean[name].value == 0
    assert clean["probe_f1"].value > 0.9
    assert clean["num_letters_scored"].value == len(FIRST)
    assert clean["num_words"].value == len(FIRST) * PER_LETTER + 53  # single letters are words too, and "is" is one

    found = study(planted(absorbing=True), letters_model)
    prompts, _ = prompts_of(pieces, words_of(pieces, len(pieces)), SHORT)
    sample = read_words(letters_model, prompts, [HOOK])
    test = sample.parts((0.6, 0.2, 0.2), seed=0)[2]
    special = {word for place, word in enumerate(made_up_words()) if place % PER_LETTER < NUM_ABSORBED}
    rates = []
    for letter in FIRST:
        words = [
            p.word.plain
            for p, is_test in zip(prompts, test, strict=True)
            if is_test and p.word.plain[1:] and p.word.letter == letter
        ]
        rates.append(np.mean([word in special for word in words]))
        row = found.tables["letters"]["abcdefghijklmnopqrstuvwxyz".index(letter)]
        assert row["letter"] == letter.upper()
        assert row["main_latents"] == [FIRST.index(letter)]
        assert row["num_true_positives"] == len(words)
        assert row["full_absorption"] == pytest.approx(rates[-1])
    assert 0.1 < np.mean(rates) < 0.6
    for name in (
        "absorption_fraction",
        "full_absorption",
        "mean_absorption_fraction_score",
        "mean_full_absorption_score",
    ):
        number = found[name]
        assert number.value == pytest.approx(np.mean(rates))
        assert number.low < number.value < number.high
    assert found["std_dev_full_absorption_score"].value == pytest.approx(np.std(rates))
    assert found["mean_num_split_features"].value == 1
    assert found["std_dev_num_split_features"].value == 0


def test_b_dec_is_no_feature_but_stays_in_saebenchs_projection(letters_model: LanguageModel) -> None:
    dictionary = planted(absorbing=True)
    with torch.no_grad():
        dictionary.b_dec[0] = 6.0  # more than a word has along the letter A: nothing is left for a feature
        dictionary.b_enc[0] += 6.0
    found = study(dictionary, letters_model)
    row = found.tables["letters"][0]
    assert row["share_without_projection"] == 1
    assert row["full_absorption"] == row["absorption_fraction"] == 0
    assert row["mean_full_absorption_score"] > 0.1
    assert row["mean_absorption_fraction_score"] > 0.1


def test_letters_that_cannot_be_scored_are_listed(letters_model: LanguageModel) -> None:
    rows = study(planted(absorbing=False), letters_model).tables["letters"]
    assert [row["letter"] for row in rows] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for row in rows[len(FIRST) :]:
        assert row["absorption_fraction"] is None
        assert f"words with {row['letter']}, at least 3 are needed" in row["reason"]
    dead = planted(absorbing=False)
    with torch.no_grad():
        dead.b_enc.fill_(-1e4)
    gone = study(dead, letters_model)
    assert gone["absorption_fraction"].value is None
    assert "no feature fires" in gone.tables["letters"][0]["reason"]


def test_a_random_model_of_the_byte_level_kind(tiny: LanguageModel) -> None:
    dictionary = TopK(TopKConfig(d_in=16, d_sae=40, k=4))
    config = FirstLetterConfig(prompting=SHORT, absorption=AbsorptionConfig(least_positives=1, least_probe_f1=0.0))
    found = first_letter(dictionary, tiny, ["blocks.1.hook_resid_post"], config)
    assert len(found.tables["letters"]) == 26
    assert all(row["reason"] or row["absorption_fraction"] is not None for row in found.tables["letters"])
    assert any("gets none of its test tokens right" in row["reason"] for row in found.tables["letters"])
    harsh = first_letter(
        dictionary, tiny, ["blocks.1.hook_resid_post"], replace(config, absorption=AbsorptionConfig(least_positives=1))
    )
    assert harsh["probe_f1"].value < 0.6
    assert harsh["num_letters_scored"].value == 0
    assert harsh["full_absorption"].value is None
    assert "no letter could be scored" in harsh["full_absorption"].reason
    assert any("the probe on activations has F1" in row["reason"] for row in harsh.tables["letters"])
    assert any("one to two billion" in note and "look at the probes' F1" in note for note in found.notes)
    again = first_letter(dictionary, tiny, ["blocks.1.hook_resid_post"], replace(config, batch_size_prompts=3))
    for number, other in zip(found.numbers, again.numbers, strict=True):
        assert other.value == pytest.approx(number.value, abs=1e-5)


def test_words_are_tokens_of_letters_with_one_space_at_most(pieces: PreTrainedTokenizerFast, tokenizer: Any) -> None:
    found = {word.text for word in words_of(pieces, len(pieces) + 64)}  # embeddings may be rounded up
    assert {f" {word}" for word in made_up_words()} <= found
    assert " is" in found
    assert "a" in found
    assert not found & {" x9", "  twice", " \u00e9t\u00e9", "\n", ":", " ", "<s>", "<unk>"}
    plain = {word.text for word in words_of(tokenizer, 320)}
    assert {"a", "Z", " return"} <= plain
    assert all(text.removeprefix(" ").isalpha() for text in plain)
    assert (Word(7, " Cat").plain, Word(7, " Cat").letter) == ("cat", "c")


@pytest.mark.parametrize("kind", ["pieces", "tokenizer"])
def test_prompts_end_with_the_words_own_token(kind: str, request: Any) -> None:
    tokenizer = request.getfixturevalue(kind)
    words = words_of(tokenizer, len(tokenizer))
    config = Prompting(question="say {word} now", answer=" : {letter}", num_examples=3, num_words=50, seed=1)
    prompts, cut = prompts_of(tokenizer, words, config)
    assert len(prompts) + len(cut) == 50
    assert len(prompts) > 25
    for prompt in prompts:
        assert prompt.ids[0] == tokenizer.bos_token_id
        assert prompt.ids[-1] == prompt.word.id
        text = tokenizer.decode(prompt.ids[1:], clean_up_tokenization_spaces=False)
        lines = text.split("\n")
        assert len(lines) == 5
        assert lines[0] == ""
        assert lines[-1] == f"say {prompt.word.text}"
        examples = [line.removeprefix("say ").split(" now : ") for line in lines[1:4]]
        assert all(answer == example.strip()[0].upper() for example, answer in examples)
        plain = [example.strip().lower() for example, _ in examples]
        assert len({*plain, prompt.word.plain}) == 4
    assert prompts_of(tokenizer, words, config)[0] == prompts
    assert prompts_of(tokenizer, words, replace(config, seed=2))[0] != prompts


def test_words_that_are_cut_in_the_prompt_are_named(tokenizer: Any, tiny: LanguageModel) -> None:
    words = words_of(tokenizer, 320)
    # a letter on either side makes other tokens of the word
    prompts, cut = prompts_of(tokenizer, words, Prompting(question="retur{word}", num_examples=0))
    assert cut
    assert not {word.id for word in cut} & {prompt.word.id for prompt in prompts}
    config = FirstLetterConfig(prompting=Prompting(question="retur{word}", num_examples=0))
    notes = first_letter(TopK(TopKConfig(d_in=16, d_sae=40, k=4)), tiny, [HOOK], config).notes
    assert any(f"{len(cut):,} of {len(words):,} words are cut" in note for note in notes)


def test_tokens_of_one_word_are_one_document_and_places_are_read(tiny: LanguageModel, tokenizer: Any) -> None:
    prompts, _ = prompts_of(tokenizer, words_of(tokenizer, 320), SHORT)
    sample = read_words(tiny, prompts, [HOOK], ["blocks.2.hook_mlp_out"], batch_size_prompts=7)
    names: dict[int, set[str]] = {}
    for document, prompt in zip(sample.document, prompts, strict=True):
        names.setdefault(int(document), set()).add(prompt.word.plain)
    assert all(len(words) == 1 for words in names.values())
    assert len(names) == len({prompt.word.plain for prompt in prompts}) < len(prompts)
    for row in (0, 11, len(prompts) - 1):
        alone = torch.tensor([prompts[row].ids])
        values = tiny.read(alone, [HOOK, "blocks.2.hook_mlp_out"])
        torch.testing.assert_close(sample.x[row], values[HOOK][0, -1])
        torch.testing.assert_close(sample.y[row], values["blocks.2.hook_mlp_out"][0, -1])
        assert sample.ids[row] == prompts[row].word.id


def test_what_cannot_be_done_is_refused(letters_model: LanguageModel, pieces: PreTrainedTokenizerFast) -> None:
    oracle = planted(absorbing=False)
    with pytest.raises(ValueError, match="than the 48 that letters has positions for; take fewer examples"):
        first_letter(oracle, letters_model, [HOOK])
    with pytest.raises(ValueError, match="too few for 200 examples"):
        first_letter(oracle, letters_model, [HOOK], FirstLetterConfig(prompting=Prompting(num_examples=200)))
    with pytest.raises(ValueError, match="this dictionary rebuilds activations of width d_out = 3"):
        study(ReLU(DictionaryConfig(d_in=3, d_sae=4)), letters_model)
    with pytest.raises(ValueError, match="loaded without one"):
        study(oracle, LanguageModel(letters_model.module, None, "letters"))
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=len(pieces), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    with pytest.raises(ValueError, match="causal"):
        study(oracle, LanguageModel(bert, pieces, "bert"))
    for wrong in ({"question": "no word"}, {"answer": "letter"}, {"num_examples": -1}, {"num_words": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Prompting(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size_prompts"):
        FirstLetterConfig(batch_size_prompts=0)
