"""From prompts to token ids, and from new token ids to text that grows without ever taking a character back.

A character may take several tokens, each of which holds some of its bytes. While a text is being written, the bytes of an
unfinished character are held back until the rest has come; a finished text shows all of its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saescope.models.token_text import TokenReader

if TYPE_CHECKING:
    from saescope.models import LanguageModel

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor

_LAST_BYTES = re.compile(r"(?:\\x[0-9a-f]{2}){1,3}\Z")
_MOST_BYTES = 4  # of a character in UTF-8


def prompt_ids_of(model: LanguageModel, prompts: Prompts, *, prepend_bos: bool | None = None) -> list[list[int]]:
    """The prompts' token ids.

    Args:
        prompts: a text, several, the token ids of one, or those of several.
        prepend_bos: of texts, whether the beginning-of-text token stands in front; None: as the tokenizer itself does it. An
            empty prompt always begins with it.

    Raises:
        ValueError: no prompt, an empty one without a token to begin with, text without a tokenizer, or ids that the
            vocabulary does not have.
    """
    if isinstance(prompts, Tensor):
        prompts = prompts.tolist()
    one = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
    given: list[Any] = [prompts] if one else list(prompts)
    if not given:
        raise ValueError("no prompt was given; give at least one text")
    found: list[list[int]] = []
    for number, prompt in enumerate(given):
        ids = _encoded(model, prompt, prepend_bos) if isinstance(prompt, str) else _checked(model, prompt, number)
        if not ids:
            opening = getattr(model.tokenizer, "bos_token_id", None)
            if opening is None:
                raise ValueError(
                    f"prompt {number} is empty, and the tokenizer of {model.name} has no beginning-of-text token to "
                    "start from; give at least one character"
                )
            ids = [int(opening)]
        found.append(ids)
    return found


def require_room(model: LanguageModel, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Refuses prompts that leave no room for what is to be generated, before anything runs.

    Raises:
        ValueError: a prompt longer than the context, or one with too little room behind it; says what would fit.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is a number of tokens, at least 1, not {max_new_tokens!r}")
    limit = model.context_size
    for number, ids in enumerate(prompt_ids):
        if limit is None or len(ids) + max_new_tokens <= limit:
            continue
        if len(ids) >= limit:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens, and {model.name} reads at most {limit}, those that it writes "
                "counted; shorten the prompt"
            )
        raise ValueError(
            f"prompt {number} has {len(ids)} tokens and {max_new_tokens} are to follow, more than the {limit} that "
            f"{model.name} reads; ask for at most {limit - len(ids)} new tokens, or shorten the prompt"
        )


def end_ids(model: LanguageModel) -> frozenset[int]:
    """Tokens that end a text: those of the model's own generation settings, and the tokenizer's."""
    sources = (getattr(model.module, "generation_config", None), model.tokenizer)
    found: set[int] = set()
    for source in sources:
        ends = getattr(source, "eos_token_id", None)
        found |= set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    return frozenset(found)


class GrowingText:
    """The text of what was written after a prompt."""

    def __init__(self, reader: TokenReader | None, prompt_ids: Sequence[int], ends: frozenset[int]) -> None:
        """Args: reader: None without a tokenizer: ids are shown by number. ends: tokens that are not shown at the end."""
        self._reader, self._ends = reader, ends
        self._before = list(prompt_ids[-_MOST_BYTES:])  # may hold the first bytes of a character

    def read(self, new_ids: Sequence[int], *, whole: bool) -> str:
        """The text; unless it is ``whole``, only what no later token can change. The token that ended it is left out."""
        ids = list(new_ids)
        if ids and ids[-1] in self._ends:
            ids, whole = ids[:-1], True
        if not ids:
            return ""
        if self._reader is None:
            return "".join(f"<{token}>" for token in ids)
        text, ranges = self._reader.read([*self._before, *ids])
        start = ranges[len(self._before)][0]
        return (text if whole else text[: len(text) - _num_unfinished(text)])[start:]


def reader_of(model: LanguageModel) -> TokenReader | None:
    """What reads the model's tokens, if it has a tokenizer."""
    return None if model.tokenizer is None else TokenReader(model.tokenizer)


def _num_unfinished(text: str) -> int:
    """How many characters at the end stand for the first bytes of a character, written as ``\\xNN``.

    A text that really has a backslash there, as in a Python literal, waits for one token more than it must.
    """
    match = _LAST_BYTES.search(text)
    if match is None:
        return 0
    data = bytes.fromhex(match[0].replace("\\x", ""))
    for length in range(len(data), 0, -1):
        lead, rest = data[-length], data[len(data) - length + 1 :]
        wanted = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
        if length < wanted and all(0x80 <= byte < 0xC0 for byte in rest):
            return len(r"\xNN") * length
    return 0


def _encoded(model: LanguageModel, prompt: str, prepend_bos: bool | None) -> list[int]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"{model.name} comes without a tokenizer; give prompts as lists of token ids")
    ids = [
        int(token) for token in tokenizer(prompt, add_special_tokens=prepend_bos is not False, verbose=False).input_ids
    ]
    if prepend_bos and tokenizer.bos_token_id is not None and ids[:1] != [tokenizer.bos_token_id]:
        ids = [int(tokenizer.bos_token_id), *ids]
    return ids


def _checked(model: LanguageModel, prompt: Any, number: int) -> list[int]:
    if not isinstance(prompt, Sequence | Tensor):
        raise ValueError(f"prompt {number} is neither a text nor a list of token ids, but {type(prompt).__name__}")
    ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, int):
            raise ValueError(f"prompt {number} is neither a text nor a list of token ids: it holds {token!r}")
        if not 0 <= token < model.vocab_size:
            raise ValueError(
                f"prompt {number} has the token id {token}, and the vocabulary of {model.name} has 0 to "
                f"{model.vocab_size - 1}"
            )
    return ids
