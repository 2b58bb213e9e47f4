"""What the texts of a batch say, token by token, and which tokens make a word or a sentence of them.

Strings are read as they were given, by the offsets that a fast tokenizer tells. Where token ids were given, or the
tokenizer is a slow one, the text is that of the ids. WordPiece's ids do not say where spaces were: the offsets do, and
without these none is taken to stand before a sign that closes something.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from saescope.concepts.splitting.encoding import Encoded
from saescope.concepts.splitting.sentences import sentence_starts
from saescope.concepts.splitting.words import WordRule
from saescope.models.token_text import Range, TokenReader


class BatchText:
    """What the texts of one batch say, token by token."""

    def __init__(self, tokenizer: Any, reader: TokenReader, word_rule: WordRule, encoded: Encoded) -> None:
        self._reader = reader
        self._word_rule = word_rule
        self._encoded = encoded
        self._special = frozenset(tokenizer.all_special_ids)
        # an unknown word is text; some tokenizers use their end of text for unknown words, and that is none
        markers = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
        markers += [tokenizer.cls_token_id, tokenizer.mask_token_id]
        unknown = {tokenizer.unk_token_id} - set(markers)
        self._not_text = self._special - unknown
        self._read: dict[int, tuple[str, dict[int, Range]]] = {}
        self._token_texts: dict[int, str] = {}

    def tokens(self, text: int) -> list[int]:
        """Columns of tokens that are not special."""
        ids = self._encoded.ids[text]
        return [column for column in self._encoded.columns[text] if ids[column] not in self._special]

    def words(self, text: int) -> list[list[int]]:
        """Columns of each word."""
        columns = self._text_columns(text)
        ids = self._encoded.ids[text]
        told = self._told(text)
        keys = None
        if told is not None:
            of_column = dict(
                enumerate(zip(told.sequence_ids, told.word_ids, strict=True), start=self._encoded.shifts[text])
            )
            keys = [of_column[column] for column in columns]
        whole, _ = self._text_and_ranges(text) if keys is None else ("", None)
        found = self._word_rule.words([ids[column] for column in columns], whole, keys)
        return [[columns[place] for place in word] for word in found]

    def sentences(self, text: int) -> list[list[int]]:
        """Columns of each sentence that has tokens."""
        whole, ranges = self._text_and_ranges(text)
        starts = sentence_starts(whole)
        sentences: dict[int, list[int]] = {}
        for column, (begin, end) in ranges.items():
            piece = whole[begin:end]
            first = begin + len(piece) - len(piece.lstrip()) if piece.strip() else begin
            sentences.setdefault(bisect_right(starts, first), []).append(column)
        return [sentences[number] for number in sorted(sentences)]

    def token(self, text: int, column: int) -> str:
        """The text of one token, with a space before it where it begins a word."""
        token_id = self._encoded.ids[text][column]
        if token_id not in self._token_texts:
            self._token_texts[token_id] = self._reader.read([token_id])[0]
        return self._token_texts[token_id]

    def between(self, text: int, columns: list[int]) -> str:
        """The text from the first of these tokens to the last, without white space around it if there is more to it."""
        whole, ranges = self._text_and_ranges(text)
        found = whole[ranges[columns[0]][0] : ranges[columns[-1]][1]]
        return found.strip() or found

    def whole(self, text: int) -> str:
        """The text as far as the tokens go."""
        columns = self._text_columns(text)
        return self.between(text, columns) if columns else ""

    def _text_columns(self, text: int) -> list[int]:
        ids = self._encoded.ids[text]
        return [column for column in self._encoded.columns[text] if ids[column] not in self._not_text]

    def _gaps(self, text: int, columns: list[int]) -> list[bool] | None:
        """Whether the raw text has something between each token and the one before; None where nothing is told of it."""
        told = self._told(text)
        if told is None:
            return None
        offsets = [told.offsets[column - self._encoded.shifts[text]] for column in columns]
        ends = [0, *(end for _, end in offsets)]
        return [begin != end for (begin, _), end in zip(offsets, ends, strict=False)]

    def _told(self, text: int) -> Any:
        return None if self._encoded.of_text is None else self._encoded.of_text[text]

    def _text_and_ranges(self, text: int) -> tuple[str, dict[int, Range]]:
        """The raw text where it is known, else that of the ids; and the characters of each text token."""
        if text not in self._read:
            columns, told = self._text_columns(text), self._told(text)
            if told is not None and self._encoded.texts is not None:
                offsets = dict(enumerate(told.offsets, start=self._encoded.shifts[text]))
                self._read[text] = self._encoded.texts[text], {column: offsets[column] for column in columns}
            else:
                ids = self._encoded.ids[text]
                whole, ranges = self._reader.read([ids[column] for column in columns])
                if self._word_rule.marks_continuation:
                    whole, ranges = _spaced(whole, ranges, self._gaps(text, columns))
                self._read[text] = whole, dict(zip(columns, ranges, strict=True))
        return self._read[text]


def _spaced(whole: str, ranges: list[Range], gaps: list[bool] | None) -> tuple[str, list[Range]]:
    """Text of WordPiece tokens, read with a space before every word and sign, with those spaces alone that were there.

    Args:
        gaps: whether there was one before each token; by default there was none before a sign that closes something.
    """
    text, places = "", list[Range]()
    for number, (begin, end) in enumerate(ranges):
        piece = whole[begin:end]
        bare = piece.lstrip(" ")
        if not (bare not in _CLOSING if gaps is None else gaps[number]):
            piece = bare
        places.append((len(text), len(text) + len(piece)))
        text += piece
    return text, places


_CLOSING = frozenset(".,;:?!)]}")
