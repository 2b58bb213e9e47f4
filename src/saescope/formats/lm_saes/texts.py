"""The text behind the sample points of a dump, which itself holds none.

A sample is a row of a data set, named by the data set, how many shards it was cut into, which of them, and the row in
it. The workflow showed the model the first `context_size` tokens of that row. Whoever still has the data set and the
tokenizer can give the text once, here; from then on the store has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SamplePoint(NamedTuple):
    """One row of a data set."""

    dataset: str
    shard: int
    num_shards: int
    row: int
    """Within the shard."""

    @property
    def document(self) -> str:
        """A name for it: the data set and the row, with the shard where there are several."""
        shard = f"{self.shard}/{self.num_shards}:" if self.num_shards > 1 else ""
        return f"{self.dataset}:{shard}{self.row}"


class TokenText(NamedTuple):
    """A row as the model saw it."""

    ids: list[int]
    text: str
    ranges: list[tuple[int, int]]
    """Characters of the text that each token has a part in, as in a `Window`."""


class TextSource(Protocol):
    """Gives the text of sample points."""

    @property
    def context_size(self) -> int:
        """Tokens of a row at most."""
        ...

    def __contains__(self, point: SamplePoint) -> bool:
        """Whether the row is there. Asked once for every point before anything is written."""
        ...

    def read(self, point: SamplePoint) -> TokenText:
        """The row's tokens; asked only for points that are there."""
        ...


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class DatasetTexts:
    """Texts from a data set and the tokenizer that the workflow used.

    What is assumed: shards are contiguous, as `dataset.shard(num_shards, index, contiguous=True)` cuts them; a row is
    tokenized by itself without special tokens, the tokenizer's first one (BOS) is put before it if `prepend_bos` is set
    and there is one, and the first `context_size` tokens are what the model saw.

    Args:
        rows: a data set (of the `datasets` library, or any sequence of mappings) for every name, or one per name in
            the dump.
        tokenizer: that of the model.
        context_size: tokens of a row that the workflow analysed.
        column: where the text is; a column `tokens` of ids is not read.
        prepend_bos: as in the workflow's configuration of the model, where it is on unless somebody turned it off.
    """

    def __init__(
        self,
        rows: _Rows | Mapping[str, _Rows],
        tokenizer: PreTrainedTokenizerBase,
        *,
        context_size: int,
        column: str = "text",
        prepend_bos: bool = True,
    ) -> None:
        from saescope.models.token_text import TokenReader

        if context_size < 1:
            raise ValueError(f"context_size is {context_size}, but a context has at least one token")
        self._rows = rows
        self._tokenizer = tokenizer
        self._reader = TokenReader(tokenizer)
        self.context_size = context_size
        self._column = column
        self._first = [tokenizer.bos_token_id] if prepend_bos and tokenizer.bos_token_id is not None else []

    def __contains__(self, point: SamplePoint) -> bool:
        rows = self._of(point)
        if rows is None or not 0 <= point.shard < point.num_shards:
            return False
        begin, end = shard_bounds(len(rows), point.num_shards, point.shard)
        return 0 <= point.row < end - begin

    def read(self, point: SamplePoint) -> TokenText:
        rows = self._of(point)
        assert rows is not None
        begin, _ = shard_bounds(len(rows), point.num_shards, point.shard)
        row = rows[begin + point.row]
        text = row.get(self._column)
        if not isinstance(text, str):
            raise ValueError(
                f"{point.document} has no text in the column {self._column!r}; its columns are {', '.join(row)}"
            )
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [*self._first, *ids][: self.context_size]
        return TokenText(ids, *self._reader.read(ids))

    def _of(self, point: SamplePoint) -> _Rows | None:
        if isinstance(self._rows, Mapping):
            return self._rows.get(point.dataset)
        return self._rows


def shard_bounds(num_rows: int, num_shards: int, shard: int) -> tuple[int, int]:
    """First and last row (exclusive) of a contiguous shard; the first shards have one row more if it does not go up."""
    size, more = divmod(num_rows, num_shards)
    begin = size * shard + min(shard, more)
    return begin, begin + size + (shard < more)
