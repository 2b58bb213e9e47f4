"""Token texts: ranges cover the text, whatever characters the tokens cut in two."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saescope.models.bundled.tokenizer import END_OF_TEXT, train_tokenizer
from saescope.models.token_text import TokenReader, vocabulary_texts

TEXTS = [
    "def alpha(x):\n\treturn x  # plain",
    "naïve café, coöperate",
    "漢字かな交じり文 and 한국어",
    "🎈🏴‍☠️👩‍👩‍👧 family",
    "e\u0301 a\u0308\u0323 combining",
    "\u00a0\u2003spaces\u200b\ufeff and \x00 control",
    "",
]


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token adds to the text: a character goes to the first token that has a part in it."""
    text, ranges = TokenReader(tokenizer).read(ids)
    pieces, covered = [], 0
    for start, end in ranges:
        assert start <= covered
        assert end >= covered
        pieces.append(text[covered:end])
        covered = end
    assert covered == len(text)
    return pieces


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """Merges of ASCII words alone: every other character falls apart into bytes."""
    return train_tokenizer(["alpha beta return naive family combining plain"] * 3, vocab_size=300, context_size=32)


@pytest.mark.parametrize("text", TEXTS)
def test_joined_pieces_are_the_decoded_text(byte_level: Any, text: str) -> None:
    ids = byte_level(text)["input_ids"]
    pieces = token_texts(byte_level, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == byte_level.decode(ids) == text


@settings(deadline=None, max_examples=150)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_joined_pieces_are_the_decoded_text_for_any_text(text: str) -> None:
    tokenizer = _BYTES
    ids = tokenizer(text)["input_ids"]
    assert "".join(token_texts(tokenizer, ids)) == text


_BYTES = train_tokenizer(["naïve 漢字 🎈 e\u0301"] * 5, vocab_size=280, context_size=32)  # merges inside characters too


def test_a_character_belongs_to_the_token_of_its_first_byte(byte_level: Any) -> None:
    ids = byte_level("a🎈é!")["input_ids"]
    assert len(ids) == 1 + 4 + 2 + 1
    assert token_texts(byte_level, ids) == ["a", "🎈", "", "", "", "é", "", "!"]


def test_tokens_that_share_a_character_have_it_in_their_ranges(byte_level: Any) -> None:
    ids = byte_level("a🎈é!")["input_ids"]
    text, ranges = TokenReader(byte_level).read(ids)
    assert text == "a🎈é!"
    assert ranges == [(0, 1), *[(1, 2)] * 4, *[(2, 3)] * 2, (3, 4)]


def test_a_token_with_the_end_of_one_character_and_the_beginning_of_the_next() -> None:
    """A merge across characters: the last byte of é with the first of è."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"Ã": 0, "©Ã": 1, "¨x": 2, "": 3}, unk_token="Ã"))
    )
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    assert TokenReader(tokenizer).read([0, 1, 2]) == ("éèx", [(0, 1), (0, 2), (1, 3)])
    assert TokenReader(tokenizer).read([3, 0, 3, 1, 2, 3]) == ("éèx", [(0, 0), (0, 1), (1, 1), (0, 2), (1, 3), (3, 3)])


def test_bytes_that_form_no_character(byte_level: Any) -> None:
    a, first, second, third, fourth, b = byte_level("a🎈b")["input_ids"]
    assert token_texts(byte_level, [a, first, second, b]) == ["a", r"\xf0", r"\x9f", "b"]
    assert token_texts(byte_level, [third, fourth]) == [r"\x8e", r"\x88"]
    assert token_texts(byte_level, [first]) == [r"\xf0"]
    assert token_texts(byte_level, [first, first, second, third, fourth]) == [r"\xf0", "🎈", "", "", ""]


def test_special_tokens_stand_alone(byte_level: Any) -> None:
    first, second, third, fourth = byte_level("🎈")["input_ids"]
    special = byte_level.bos_token_id
    assert token_texts(byte_level, [special, first, second, third, fourth, special]) == [
        END_OF_TEXT, "🎈", "", "", "", END_OF_TEXT,
    ]  # fmt: skip
    assert token_texts(byte_level, [first, second, special, third, fourth]) == [
        r"\xf0", r"\x9f", END_OF_TEXT, r"\x8e", r"\x88",
    ]  # fmt: skip
    assert token_texts(byte_level, []) == []


def test_added_tokens_are_written_as_they_are() -> None:
    """Pythia's vocabulary holds runs of spaces outside the byte alphabet."""
    tokenizer = train_tokenizer(["alpha"], vocab_size=257, context_size=32)
    tokenizer.add_tokens([AddedToken("    ", normalized=False), AddedToken("<é>", normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    text = "a    <é>b"
    ids = tokenizer(text)["input_ids"]
    assert "    " in token_texts(tokenizer, ids)
    assert "".join(token_texts(tokenizer, ids)) == text
    assert vocabulary_texts(tokenizer, len(tokenizer))[-3:] == ["    ", "<é>", "<|im_start|>"]


def test_vocabulary(byte_level: Any) -> None:
    texts = vocabulary_texts(byte_level, len(byte_level) + 3)
    assert len(texts) == len(byte_level) + 3
    assert texts[0] == END_OF_TEXT
    assert texts[byte_level.convert_tokens_to_ids("Ġ")] == " "
    assert texts[byte_level("🎈")["input_ids"][0]] == r"\xf0"
    assert " naive" in texts
    assert texts[-3:] == [f"<{len(byte_level) + i}>" for i in range(3)]
    assert texts[:-3] == [token_texts(byte_level, [i])[0] for i in range(len(byte_level))]


def test_a_hole_in_the_vocabulary() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert vocabulary_texts(tokenizer, 7) == ["a", "<1>", "<2>", "<3>", "<4>", "b", "<6>"]
    assert token_texts(tokenizer, [5, 3, 0]) == ["b", "<3>", "a"]


def test_wordpiece() -> None:
    names = ["[UNK]", "[CLS]", "[SEP]", "hello", "play", "##ing", "##s", "."]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    ids = tokenizer("Hello playing plays.")["input_ids"]
    pieces = token_texts(tokenizer, [1, *ids, 2])
    assert pieces == ["[CLS]", " hello", " play", "ing", " play", "s", " .", "[SEP]"]
    assert "".join(pieces[1:-1]).removeprefix(" ") == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert vocabulary_texts(tokenizer, 9)[3:] == [" hello", " play", "ing", "s", " .", "<8>"]


def sentencepiece(decoder: decoders.Decoder) -> PreTrainedTokenizerFast:
    """BPE on words that begin with U+2581; what has no token falls back to bytes, as in Llama 2."""
    names = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdé", "▁a", "▁ab"]
    backend = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [("▁", "a"), ("▁a", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


def test_sentencepiece_with_bytes() -> None:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer = sentencepiece(decoders.Sequence(steps))
    text = "abc dé 🎈 漢a"
    ids = tokenizer(text)["input_ids"]
    pieces = token_texts(tokenizer, [1, *ids])
    assert pieces == ["<s>", " ab", "c", " ", "d", "é", " ", "🎈", "", "", "", " ", "漢", "", "", "a"]
    assert "".join(pieces[1:]).removeprefix(" ") == tokenizer.decode(ids) == text
    assert vocabulary_texts(tokenizer, 260)[2 + 0x41] == "A"
    assert vocabulary_texts(tokenizer, 260)[2 + 0xE6] == r"\xe6"


def test_sentencepiece_without_bytes() -> None:
    tokenizer = sentencepiece(decoders.Metaspace())
    ids = tokenizer("abc dé")["input_ids"]
    assert token_texts(tokenizer, ids) == [" ab", "c", " ", "d", "é"]
    assert token_texts(tokenizer, [2 + 0x41]) == ["<0x41>"]  # no byte to this decoder, but a name


def test_a_tokenizer_without_a_decoder() -> None:
    backend = Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_texts(tokenizer, [0, 1]) == ["one", "two"]
