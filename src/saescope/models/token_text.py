"""Token ids to the text that a person reads, one piece per token.

Decoding ids one by one breaks characters that span several tokens. So tokens are taken as bytes: a character belongs to
the token that holds its first byte, and tokens with nothing but later bytes get an empty piece, so that the pieces joined
are the text. Bytes that form no character are shown as ``\\xNN``. With WordPiece and SentencePiece
every token that begins a word gets the space before it, also at the start of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token of a sequence; joined, the pieces are the text of the sequence.

    Special tokens are shown as they are, ids without a token by number.
    """
    return _Reader(tokenizer).texts(ids)


def vocabulary_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """The text of every single id, unfinished characters as ``\\xNN``; ids without a token are named by number."""
    reader = _Reader(tokenizer)
    return [reader.texts([i])[0] for i in range(vocab_size)]


class _Reader:
    """What has to be known of a tokenizer to read its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_tokens)
        self._added = set(tokenizer.get_added_vocab())  # written as they are, also in a byte-level vocabulary
        self._bytes_of = _bytes_in(tokenizer)

    def texts(self, ids: Sequence[int]) -> list[str]:
        texts: list[str] = []
        run: list[bytes] = []  # neighbouring ordinary tokens, decoded together
        for number, piece in zip(ids, self._tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            if piece is not None and piece not in self._special:
                run.append(piece.encode() if piece in self._added else self._bytes_of(piece))
                continue
            texts += [*_cut_at_tokens(run), f"<{number}>" if piece is None else piece]
            run = []
        return texts + _cut_at_tokens(run)


def _cut_at_tokens(run: list[bytes]) -> list[str]:
    """Decode neighbouring tokens together and give every character to the token of its first byte."""
    owners = [number for number, piece in enumerate(run) for _ in piece]
    texts = [""] * len(run)
    data, place = b"".join(run), 0
    while place < len(data):
        size = _character_size(data, place)
        chunk = data[place : place + size]
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            chunk = data[place : place + 1]
            text = chunk.decode(errors="backslashreplace")
        texts[owners[place]] += text
        place += len(chunk)
    return texts


def _character_size(data: bytes, place: int) -> int:
    lead = data[place]
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _bytes_in(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """How the tokenizer writes bytes in the names of its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = str(backend.decoder) if backend is not None else ""
    if "ByteLevel" in decoder:
        return lambda piece: bytes(_byte_of()[character] for character in piece)
    if "WordPiece" in decoder:
        return lambda piece: (piece[2:] if piece.startswith("##") else f" {piece}").encode()
    if "ByteFallback" in decoder:
        return lambda piece: bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) else _spaced(piece)
    return _spaced


def _spaced(piece: str) -> bytes:
    """A SentencePiece token, whose U+2581 stands for a space."""
    return piece.replace("\u2581", " ").encode()


@cache
def _byte_of() -> dict[str, int]:
    """The bytes behind the printable characters of byte-level BPE (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
