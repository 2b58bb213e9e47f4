"""The networks behind dictionaries: `Networks` is the `Live` of a real server.

Everything that touches a model happens in the thread of its queue, one request after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from saescope.dictionaries import Dictionary
from saescope.formats.loading import load
from saescope.interventions import Add, Clamp, read_features, stream_side_by_side
from saescope.interventions.generation_scores import log_probabilities, mean_of_tokens, perplexity, score
from saescope.interventions.generation_text import prompt_ids_of
from saescope.models import LanguageModel
from saescope.store import Store
from saescope.web.live import BusyError, Change, NoModelError, Reading
from saescope.web.queueing import Job, Queue, Stream
from saescope.web.readings import check_text, reading_of, spans_of, token_ids
from saescope.web.shelf import Shelf
from saescope.web.whereabouts import Whereabouts, writes_nothing

_LOOKED_AT_SECONDS = 5.0  # how long it is taken for true that files are where they are, or are not
_TICK_SECONDS = 0.25  # between two looks at what a stream waits for


class Networks:
    """Models and dictionaries of a store."""

    def __init__(
        self,
        store: Store,
        *,
        models: Mapping[str, str] | None = None,
        sources: Mapping[str, str] | None = None,
        max_waiting: int = 8,
        seconds: float = 60.0,
        num_open: int = 4,
        device: str = "cpu",
        load_model: Callable[..., LanguageModel] = LanguageModel.load,
        load_dictionary: Callable[..., Dictionary] = load,
    ) -> None:
        """Opens nothing.

        Args:
            models, sources: see :class:`saescope.web.whereabouts.Whereabouts`.
            max_waiting, seconds: see :class:`saescope.web.queueing.Queue`.
            num_open: dictionaries that stay open; a model stays as long as one of its dictionaries does.
            load_model, load_dictionary: what opens them; for tests.
        """
        self._store = store
        self._places = Whereabouts(models=models or {}, sources=sources or {})
        self._queue = Queue(max_waiting=max_waiting, seconds=seconds)
        self._shelf = Shelf(
            store,
            self._places,
            num_open=num_open,
            device=device,
            load_model=load_model,
            load_dictionary=load_dictionary,
        )
        self._looked_at: dict[tuple[str, bool], tuple[float, str | None]] = {}

    def close(self) -> None:
        """Ends what runs, and lets everything go."""
        self._queue.close()
        self._shelf.clear()

    def __enter__(self) -> Networks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def absent(self, name: str, *, steering: bool = False) -> str | None:
        """See `Live`. Asks the store and looks at files, at most every few seconds."""
        now = time.monotonic()
        known = self._looked_at.get((name, steering))
        if known is not None and now - known[0] < _LOOKED_AT_SECONDS:
            return known[1]
        said = self._places.absent(self._store.dictionary(name), steering=steering)
        opened = self._shelf.get(name)
        if said is None and steering and opened is not None and not opened.model.is_causal:
            said = writes_nothing(opened.model.name)
        self._looked_at[name, steering] = now, said
        return said

    def state(self, name: str) -> dict[str, Any]:
        """See `Live`."""
        state, words = self._shelf.state(name)
        return {"state": state, "words": words, "num_waiting": self._queue.num_waiting}

    def read_text(
        self,
        name: str,
        text: str,
        *,
        feature: int | None = None,
        num_per_token: int = 5,
        apart: Collection[int] = (),
        analysis: str | None = None,
    ) -> Reading:
        """See `Live`."""
        self._require(name, steering=False)
        check_text(text)

        def read(job: Job) -> Reading:
            opened, site = self._shelf.take(name, analysis, loading=job.untimed)
            if feature is not None:
                site.check_feature(feature)
            ids, num_added = token_ids(opened.model, text, opens=opened.opens)
            (found,) = read_features([site], torch.tensor([ids]))
            own = ids[num_added:]
            return reading_of(
                spans_of(opened.model, text, own),
                own,
                found.tokens[0, num_added:].tolist(),
                found.codes,
                feature=feature,
                num_per_token=num_per_token,
                apart=frozenset(apart),
            )

        with _memory_in_words():
            return self._queue.run(read)

    def steer(
        self,
        name: str,
        prompt: str,
        changes: Sequence[Change],
        *,
        max_new_tokens: int = 40,
        temperature: float = 1.0,
        seed: int = 0,
        analysis: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """See `Live`."""
        self._require(name, steering=True)
        check_text(prompt)
        self._check(name, changes, analysis)

        def write(job: Job) -> Iterator[dict[str, Any]]:
            opened, site = self._shelf.take(name, analysis, loading=job.untimed)
            opened.model.require_causal("steering")
            kinds = {"add": Add, "clamp": Clamp}
            made = [kinds[each.kind](site, each.feature, each.strength) for each in changes]
            opens = opened.opens or None
            prompt_ids = prompt_ids_of(opened.model, prompt, prepend_bos=opens)
            written: tuple[list[int], list[int]] = ([], [])
            steps = stream_side_by_side(
                opened.model,
                prompt_ids,
                made,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
            for step in steps:
                for ids, tokens in zip(written, (step.plain, step.steered), strict=True):
                    ids += [token.token_id for token in tokens]
                yield {"plain": _token(step.plain), "steered": _token(step.steered)}
            plain, steered = ([ids] for ids in written)
            scores = score(opened.model, prompt_ids, steered, made)
            job.check()
            of_plain = log_probabilities(opened.model, prompt_ids, plain)
            yield {
                "done": {
                    "kl_per_token": _finite(mean_of_tokens(scores.kl)),
                    "perplexity_plain": _finite(perplexity(of_plain)),
                    "perplexity_steered": _finite(perplexity(scores.log_probabilities_plain)),
                    "num_tokens": len(steered[0]),
                }
            }

        return _Told(self, name, self._queue.stream(write))

    def match(self, a: str, b: str) -> dict[str, Any]:
        """See `Live`. Needs no model."""
        from saescope.web.matching import match_dictionaries

        for name in (a, b):
            self._require(name, steering=False)

        def work(job: Job) -> dict[str, Any]:
            with job.untimed():
                both = [self._shelf.weights(name) for name in (a, b)]
            return match_dictionaries(*both)

        with _memory_in_words():
            return self._queue.run(work)

    # before the queue

    def _require(self, name: str, *, steering: bool) -> None:
        said = self.absent(name, steering=steering)
        if said is not None:
            raise NoModelError(said)

    def _check(self, name: str, changes: Sequence[Change], analysis: str | None) -> None:
        """What the store alone can say of changes. Raises ValueError."""
        if not changes:
            raise ValueError("nothing is to be changed; name a feature and a strength")
        for change in changes:
            if change.kind not in ("add", "clamp"):
                raise ValueError(f'a change is "add" or "clamp", not {change.kind!r}')
            if not math.isfinite(change.strength):
                raise ValueError(f"a strength is a finite number, not {change.strength}")
        for record in self._store.records(name, [change.feature for change in changes], analysis=analysis):
            if not record.max_activation > 0:
                raise ValueError(
                    f"feature {record.index} never fired where it was analysed, so that it has no maximum activation to "
                    "count a strength in; choose another"
                )


class _Told:
    """The items of a stream, and between them what it waits for."""

    def __init__(self, networks: Networks, name: str, stream: Stream[dict[str, Any]]) -> None:
        self._networks, self._name, self._stream = networks, name, stream
        self._started, self._said = time.monotonic(), dict[str, Any]()

    def __iter__(self) -> _Told:
        return self

    def __next__(self) -> dict[str, Any]:
        while True:
            with _memory_in_words():
                item = self._stream.next_within(_TICK_SECONDS)
            if item is not None:
                return item
            state, before = self._networks.state(self._name), self._stream.num_before
            if state["state"] != "loading" and before is not None:
                so_far = f"{time.monotonic() - self._started:.0f} s so far"
                words = f"Waiting for {before} before this, {so_far}." if before else f"Writing, {so_far}."
                state |= {"state": "waiting" if before else "working", "words": words}
            if state != self._said:
                self._said = state
                return {"state": state}

    def close(self) -> None:
        self._stream.close()


@contextmanager
def _memory_in_words() -> Iterator[None]:
    """Too little memory is no mistake of the server: less text may go."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise BusyError("the machine has not enough memory for this now; give it less text") from error


def _token(tokens: Sequence[Any]) -> dict[str, Any] | None:
    """A token as JSON has it; None where the text has stopped."""
    if not tokens:
        return None
    (token,) = tokens
    shown = {
        "text": token.text,
        "log_probability": _finite(token.log_probability),
        "is_last": token.is_last,
    }
    if token.kl is not None:
        shown |= {"kl": _finite(token.kl), "log_probability_plain": _finite(token.log_probability_plain)}
    return shown


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
