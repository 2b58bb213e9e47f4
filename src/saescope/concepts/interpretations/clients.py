"""Who is asked for labels: anything with ``generate``, and a client of services that speak OpenAI's chat interface.

What was answered is kept by the hash of what was asked, so that a prompt is paid for once.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol


class Role(StrEnum):
    """Who says a part of a prompt."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


Prompt = Sequence[tuple[Role, str]]


class LLMInterface(Protocol):
    """A language model that answers."""

    def generate(self, prompt: list[tuple[Role, str]]) -> str | None:
        """The answer to a prompt of (role, text); None where there is none."""


class OpenAILLM:
    """A model behind OpenAI's chat interface: theirs, or any server that speaks it (``base_url``)."""

    def __init__(
        self,
        api_key: str | None = None,
        model: str = "gpt-4.1-nano",
        num_try: int = 5,
        *,
        base_url: str | None = None,
        timeout: float = 60.0,
        **request: Any,
    ) -> None:
        """Connects to nothing yet.

        Args:
            api_key: the environment's ``OPENAI_API_KEY`` by default; a server of your own takes any word.
            model: its name at the service.
            num_try: how often a question is asked that is not answered in time, or while the service is busy.
            base_url: address of the service, e.g. ``http://localhost:8000/v1``.
            timeout: seconds to wait for an answer.
            **request: further fields of each request, e.g. ``max_tokens=50``; ``temperature`` is 0 unless given.

        Raises:
            ValueError: no key is given or in the environment.
        """
        import openai  # half a second, for those who ask

        self.model, self.request = model, {"temperature": 0.0, **request}
        try:
            self._client = openai.OpenAI(
                api_key=api_key, base_url=base_url, max_retries=max(0, num_try - 1), timeout=timeout
            )
        except openai.OpenAIError as error:
            raise ValueError(f"give api_key, or set OPENAI_API_KEY: {error}") from None

    @property
    def identity(self) -> str:
        """What decides about answers besides the prompt."""
        return json.dumps([str(self._client.base_url), self.model, self.request], sort_keys=True, default=str)

    def generate(self, prompt: list[tuple[Role, str]]) -> str | None:
        """The answer; None, with a warning, where the service fails to give one.

        Raises:
            ValueError: the service refuses the request itself: the key, the model's name, a field.
        """
        import openai

        messages: Any = [{"role": str(role), "content": text} for role, text in prompt]
        try:
            answer = self._client.chat.completions.create(model=self.model, messages=messages, **self.request)
        except (
            openai.APITimeoutError,
            openai.APIConnectionError,
            openai.RateLimitError,
            openai.InternalServerError,
        ) as e:
            warnings.warn(f"{self.model} at {self._client.base_url} gave no answer: {e}", stacklevel=2)
            return None
        except openai.APIStatusError as error:
            raise ValueError(f"{self._client.base_url} refuses the request for {self.model}: {error}") from None
        return answer.choices[0].message.content if answer.choices else None


class Remembering:
    """Asks a client once for each prompt; answers are kept in memory, and in a folder if there is one.

    A file of the folder is named by the SHA-256 of the client's identity and the prompt, and holds the answer. Prompts that
    got no answer are asked again.
    """

    def __init__(self, client: LLMInterface, folder: str | Path | None = None) -> None:
        if not callable(getattr(client, "generate", None)):
            raise ValueError(f"llm_interface needs a method generate(prompt), which {type(client).__name__} has not")
        self.client, self.folder = client, None if folder is None else Path(folder)
        self._answers: dict[str, str] = {}
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"answers are kept in a folder, and {self.folder} is a file")
            self.folder.mkdir(parents=True, exist_ok=True)

    def generate(self, prompt: Prompt) -> str | None:
        """The kept answer, or the client's."""
        key = self._key(prompt)
        if key in self._answers:
            return self._answers[key]
        path = None if self.folder is None else self.folder / f"{key}.txt"
        if path is not None and path.exists():
            self._answers[key] = path.read_text(encoding="utf-8")
            return self._answers[key]
        answer = self.client.generate(list(prompt))
        if answer is not None:
            self._answers[key] = answer
            if path is not None:
                _write_whole(path, answer)
        return answer

    def _key(self, prompt: Prompt) -> str:
        kind = type(self.client)
        identity = getattr(self.client, "identity", None) or getattr(self.client, "model", None)
        asked = [f"{kind.__module__}.{kind.__qualname__}", str(identity), [[str(role), text] for role, text in prompt]]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _write_whole(path: Path, text: str) -> None:
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False) as beside:
        try:
            beside.write(text)
            beside.flush()
            os.replace(beside.name, path)
        except BaseException:
            os.unlink(beside.name)
            raise
