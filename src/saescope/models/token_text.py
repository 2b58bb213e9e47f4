"""Token ids to the text that a person reads, one piece per token.

Decoding ids one by one breaks characters that span several tokens. With byte-level tokenizers the bytes of each token are
known: a character belongs to the token that holds its first byte, and tokens with nothing but later bytes get an empty
piece, so that the pieces joined are the text. Bytes that form no character are shown as ``\\xNN``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token of a sequence; joined, the pieces are the text of the sequence."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    special = set(tokenizer.all_special_tokens)
    if not _is_byte_level(tokenizer):
        return [piece if piece in special else _plain(piece) for piece in pieces]
    texts, run = [], []  # run: neighbouring ordinary tokens, decoded together
    for piece in [*pieces, None]:
        if piece is not None and piece not in special:
            run.append(bytes(_byte_of()[character] for character in piece))
            continue
        texts += _cut_at_tokens(run)
        run = []
        if piece is not None:
            texts.append(piece)
    return texts


def vocabulary_texts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """The text of every single id, unfinished characters as ``\\xNN``; ids without a token are named by number."""
    known = len(tokenizer)
    return [token_texts(tokenizer, [i])[0] if i < known else f"<{i}>" for i in range(vocab_size)]


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


def _plain(piece: str) -> str:
    """A SentencePiece or WordPiece token as text."""
    return piece[2:] if piece.startswith("##") else piece.replace("\u2581", " ")


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(backend.decoder)


@cache
def _byte_of() -> dict[str, int]:
    """The bytes behind the printable characters of byte-level BPE (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
