"""Which tokens belong to one word.

A fast tokenizer knows: ``word_ids`` number the pieces that its pre-tokenizer cut the text into before it made tokens.
GPT-2's cuts at white space, between letters, digits and signs, and before ``'s`` or ``'t``; BERT's at white space and
around every sign. Some tokenizers (Llama 2, and others whose tokens may hold several words) cut nothing beforehand,
and number a whole text as one word. For these, and for slow tokenizers, a token begins a word where it begins with the
mark of a space (a space, U+0120 of byte-level tokens, U+2581 or two underscores of SentencePiece), or, in vocabularies
that mark continuations with ``##``, where it lacks that mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPACE_MARKS = (" ", "\u0120", "\u2581", "__")
_CONTINUES = "##"


class WordRule:
    """The words of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        before = None if backend is None else backend.pre_tokenizer
        self.numbers_words = before is not None and len(before.pre_tokenize_str("a b")) > 1
        """Whether ``word_ids`` tell words apart."""
        self.marks_continuation = any(piece.startswith(_CONTINUES) for piece in tokenizer.get_vocab())
        """Whether tokens that continue a word say so, as WordPiece's do; others then show no space that was there."""

    def words(self, ids: Sequence[int], text: str, keys: Sequence[Any] | None) -> list[list[int]]:
        """The words of a run of tokens, each a list of places in ``ids``.

        Args:
            ids: tokens that stand for text.
            text: the text they stand for.
            keys: the word of each token by the tokenizer's own count, where it is known.
        """
        if (
            keys is None and self.numbers_words
        ):  # token ids alone: where the text gives the same ids, the count is theirs
            again = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
            keys = again.word_ids() if list(again["input_ids"]) == list(ids) else None
        if keys is None or not self.numbers_words:
            opens = [self._opens_word(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids))]
        else:
            opens = [place == 0 or keys[place] != keys[place - 1] for place in range(len(ids))]
        words: list[list[int]] = []
        for place, opening in enumerate(opens):
            if opening or not words:
                words.append([])
            words[-1].append(place)
        return words

    def _opens_word(self, piece: str | None) -> bool:
        if piece is None:
            return True
        return not piece.startswith(_CONTINUES) if self.marks_continuation else piece.startswith(SPACE_MARKS)
