"""Token ids to the text that a person reads, and which characters each token has a part in.

Decoding ids one by one breaks characters that span several tokens. So tokens are taken as bytes: a token's range covers
every character of which it holds a byte, and tokens that share a character have it in all their ranges. Bytes that form no
character are shown as ``\\xNN``. With WordPiece and SentencePiece every token that begins a word gets the space before
it, also at the start of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile("<0x[0-9A-F]{2}>")


Range = tuple[int, int]  # first character, and the one after the last


def vocabulary_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """The text of every single id, unfinished characters as ``\\xNN``; ids without a token are named by number."""
    reader = TokenReader(tokenizer)
    return [reader.read([i])[0] for i in range(vocab_size)]


class TokenReader:
    """Reads the tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_tokens)
        self._added = set(tokenizer.get_added_vocab())  # written as they are, also in a byte-level vocabulary
        self._bytes_of = _bytes_in(tokenizer)

    def read(self, ids: Sequence[int]) -> tuple[str, list[Range]]:
        """The text of a sequence of ids, and the characters that each of them has a part in.

        Ranges lie in order and leave no character out. Special tokens are shown as they are, ids without a token by
        number.
        """
        text, ranges = "", list[Range]()
        run: list[bytes] = []  # neighbouring ordinary tokens, decoded together
        for number, piece in zip(ids, self._tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            if piece is not None and piece not in self._special:
                run.append(piece.encode() if piece in self._added else self._bytes_of(piece))
                continue
            text = _append(text, ranges, run)
            shown = f"<{number}>" if piece is None else piece
            ranges.append((len(text), len(text) + len(shown)))
            text, run = text + shown, []
        return _append(text, ranges, run), ranges


def _append(text: str, ranges: list[Range], run: list[bytes]) -> str:
    """The text with neighbouring tokens decoded behind it, whose ranges are added to the list."""
    data, byte = b"".join(run), 0
    character_of: list[Range] = []  # of each byte
    while byte < len(data):
        size = _character_size(data, byte)
        chunk = data[byte : byte + size]
        try:
            shown = chunk.decode()
        except UnicodeDecodeError:
            chunk = data[byte : byte + 1]
            shown = chunk.decode(errors="backslashreplace")
        character_of += [(len(text), len(text) + len(shown))] * len(chunk)
        text += shown
        byte += len(chunk)
    first = 0
    for piece in run:
        last = first + len(piece) - 1
        if piece:
            ranges.append((character_of[first][0], character_of[last][1]))
        else:  # a token without bytes stands where the one before ends
            ranges.append((ranges[-1][1], ranges[-1][1]) if ranges else (0, 0))
        first = last + 1
    return text


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
