"""Taps: functions that see, and may replace, the activation ``[B, T, d]`` at a hook point while the model runs.

Everything that reads or edits goes through one ``Wiring`` per model, because the order matters where several taps meet:
an outer edit comes before an inner one, a reader inside an edit sees the edited value, and the residual stream in the
middle of a block is settled before the MLP's own copy of it. On every change all torch hooks are taken off and put
back in that order; there are as many as hook points in use, so that this costs microseconds.

One thread at a time has taps on a model: another one that wants to attach some, or to run the model through
``LanguageModel``, waits until they are off.

Shapes: ``B`` batch, ``T`` tokens in this pass, ``P`` tokens before them that a cache holds, ``d`` width at the hook point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saescope.models.hook_points import HookPoint, HookPointError, Place

Act = Callable[[Tensor], Tensor]
"""Gets ``[B, T, d]``; gives the same object back to leave things as they are, or a new tensor to replace it."""


@dataclass(frozen=True, eq=False)
class Tap:
    """One function at one hook point."""

    point: HookPoint
    act: Act


@dataclass(frozen=True, eq=False)
class Pass:
    """The forward pass that is running: what the model was called with."""

    ids: Tensor | None
    """``[B, T]``; None where the model was given embeddings."""
    shape: tuple[int, int]
    """``(B, T)``"""
    num_past: int
    """``P``: tokens whose keys and values come from a cache."""
    attention: Tensor | None
    """``[B, P + T]``, true for tokens and false for padding; None: nothing is padding."""

    @property
    def is_token(self) -> Tensor | None:
        """Which tokens of this pass are no padding, bool ``[B, T]``; None: all."""
        return None if self.attention is None else self.attention[:, self.num_past :]


BeforePass = Callable[[Pass, tuple[Any, ...], Mapping[str, Any]], None]
"""Told of every forward pass before it runs, with what the model was called with."""


class _Turn(IntEnum):
    """Who comes first where several wires end at one place."""

    EARLY = 0
    PLAIN = 1
    LATE = 2


@dataclass(frozen=True)
class _Wire:
    """One torch hook to be."""

    turn: _Turn
    place: Place
    act: Act


class Wiring:
    """The taps on one module tree."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._taps: list[Tap] = []
        self._handles: list[RemovableHandle] = []
        self._listeners: list[BeforePass] = []
        self.lock = threading.RLock()
        self.passing: Pass | None = None

    @contextmanager
    def attached(self, taps: Sequence[Tap], before_pass: BeforePass | None = None) -> Iterator[None]:
        """Attaches ``taps``, after those that are there already; takes them off on exit, whatever happened.

        Another thread that comes meanwhile waits. ``before_pass`` is told of every pass.
        """
        listeners = [] if before_pass is None else [before_pass]
        with self.lock:
            running = self.passing
            try:
                self._taps.extend(taps)
                self._listeners.extend(listeners)
                self._rewire()
                yield
            finally:
                self._taps = [tap for tap in self._taps if tap not in taps]
                self._listeners = [each for each in self._listeners if each not in listeners]
                self._rewire()
                self.passing = running  # a pass within a pass leaves the outer one as it was

    @contextmanager
    def detached(self, taps: Sequence[Tap], before_pass: BeforePass) -> Iterator[None]:
        """Takes attached taps off for a while, all others stay; afterwards all are as they were."""
        held, listening, running = self._taps, self._listeners, self.passing
        try:
            self._taps = [tap for tap in held if tap not in taps]
            self._listeners = [each for each in listening if each != before_pass]
            self._rewire()
            yield
        finally:
            self._taps, self._listeners = held, listening
            self._rewire()
            self.passing = running

    def _rewire(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.passing = None
        if not self._taps and not self._listeners:
            return
        self._handles.append(self._root.register_forward_pre_hook(self._note_pass, with_kwargs=True))
        for wire in sorted(self._wires(), key=lambda wire: wire.turn):
            module = self._root.get_submodule(wire.place.module)
            if wire.place.side == "input":
                hook = self._input_hook(wire)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(wire)))

    def _wires(self) -> Iterator[_Wire]:
        chains: dict[tuple[Any, ...], list[Tap]] = {}
        for tap in self._taps:
            chains.setdefault((tap.point.place, tap.point.join, tap.point.only_into), []).append(tap)
        for taps in chains.values():
            point, act = taps[0].point, _chained([tap.act for tap in taps])
            if point.join is not None:
                yield from _joined_wires(point, act)
            elif point.only_into is not None:
                yield from self._private_wires(point, act, point.only_into)
            else:
                yield _Wire(_Turn.PLAIN, point.place, act)

    def _private_wires(self, point: HookPoint, act: Act, reader: str) -> Iterator[_Wire]:
        """For a norm that several modules read: only ``reader`` gets the norm of the edited value."""
        norm = self._root.get_submodule(point.place.module)
        edited: list[Tensor] = []

        def at_norm(value: Tensor) -> Tensor:
            edited.clear()
            new = act(value)
            if new is not value:
                edited.append(new)
            return value

        def at_reader(value: Tensor) -> Tensor:
            # forward, not a call: the norm's own hooks belong to the value that everybody else gets
            return norm.forward(edited.pop()) if edited else value

        yield _Wire(_Turn.LATE, point.place, at_norm)
        yield _Wire(_Turn.EARLY, Place(module=reader, side="input"), at_reader)

    def _note_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
        given = next((value for value in inputs if isinstance(value, Tensor)), None)
        if given is None:
            self.passing = None
            return
        past = kwargs.get("past_key_values")
        num_past = 0 if past is None else int(past.get_seq_length())
        attention = kwargs.get("attention_mask")
        if isinstance(attention, Tensor) and attention.dim() == 2 and attention.shape[1] >= num_past + given.shape[1]:
            attention = attention[:, : num_past + given.shape[1]].bool()  # a cache of fixed size has room for more
        else:
            attention = None
        self.passing = Pass(
            ids=None if given.is_floating_point() else given,
            shape=(given.shape[0], given.shape[1]),
            num_past=num_past,
            attention=attention,
        )
        for listener in tuple(self._listeners):
            listener(self.passing, args, kwargs)

    def _input_hook(self, wire: _Wire) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if args:
                new = self._through(wire, args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            # Attention of most families gets its input by name.
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), "")
            new = self._through(wire, kwargs.get(name))
            return None if new is None else (args, {**kwargs, name: new})

        return hook

    def _output_hook(self, wire: _Wire) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(
                output, dict
            ):  # a ModelOutput, e.g. of the network below the head: its first entry is the value
                name = next(iter(output))
                new = self._through(wire, output[name])
                return None if new is None else type(output)(**{**output, name: new})
            if isinstance(output, tuple):
                new = self._through(wire, output[0])
                return None if new is None else (new, *output[1:])
            return self._through(wire, output)

        return hook

    def _through(self, wire: _Wire, value: Any) -> Tensor | None:
        """Hands ``value`` to the wire as ``[B, T, d]``; gives what replaces it in its own shape, None for no change."""
        tokens = self._per_token(wire.place, value)
        new = wire.act(tokens)
        if new is tokens:
            return None
        return new.reshape(value.shape) if value.dim() == 2 else new

    def _per_token(self, place: Place, value: Any) -> Tensor:
        if isinstance(value, Tensor) and value.is_floating_point():
            window = tuple(value.shape[:2]) if self.passing is None else self.passing.shape
            if value.dim() == 2 and len(value) == window[0] * window[1]:  # OPT flattens inside its blocks
                return value.view(*window, -1)
            if value.dim() == 3 and value.shape[1] == window[1] and value.shape[0] in (1, window[0]):
                return value.expand(window[0], -1, -1)  # positions are computed once for the whole batch
        found = f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value)
        raise HookPointError(
            f"{place} does not carry one vector per token: it holds {found}, and [batch, tokens, width] is needed. "
            "Choose a block, an attention, an MLP or one of their linear layers or norms."
        )


def _joined_wires(point: HookPoint, act: Act) -> Iterator[_Wire]:
    """For a value that the MLP's norm reads and that also flows past it.

    Replacing the norm's input changes what the MLP sees; the sum at the end of the block is then computed again from
    the edited value. (Moving the attention's output by the difference would reach both with one hook, but rounding
    keeps the sum from being the value that was asked for.)
    """
    assert point.join is not None
    edited: list[Tensor] = []
    branch: list[Tensor] = []

    def at_norm(value: Tensor) -> Tensor:
        edited.clear()
        branch.clear()
        new = act(value)
        if new is not value:
            edited.append(new)
        return new

    def at_branch(value: Tensor) -> Tensor:
        if edited:
            branch.append(value)
        return value

    def at_total(value: Tensor) -> Tensor:
        return edited.pop() + branch.pop() if edited else value

    yield _Wire(_Turn.EARLY, point.place, at_norm)
    yield _Wire(_Turn.LATE, point.join.branch, at_branch)
    yield _Wire(_Turn.EARLY, point.join.total, at_total)


def _chained(acts: Sequence[Act]) -> Act:
    def act(value: Tensor) -> Tensor:
        for each in acts:
            value = each(value)
        return value

    return act


class Enough(Exception):
    """Raised by a reader that has everything, to end the forward pass."""


def reader_taps(points: Sequence[HookPoint], into: dict[str, Tensor]) -> list[Tap]:
    """Taps that copy the value at each point to ``into[point.name]``; the last one ends the pass with ``Enough``.

    A copy, because the model may go on working in place on its own tensor, and two names may mean the same place.
    """

    def reader(point: HookPoint) -> Act:
        def read(value: Tensor) -> Tensor:
            into[point.name] = value.detach().clone(memory_format=torch.contiguous_format)
            if len(into) == len(points):
                raise Enough
            return value

        return read

    return [Tap(point, reader(point)) for point in points]


def editor_tap(point: HookPoint, edit: Callable[[Tensor], Tensor]) -> Tap:
    """A tap that replaces the value by what ``edit`` makes of a copy of it, in the model's dtype."""

    def act(value: Tensor) -> Tensor:
        new = edit(value.clone())  # a copy: an edit may work in place, and the model may hold the value elsewhere
        if not isinstance(new, Tensor) or new.shape != value.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise HookPointError(
                f"the edit at {point.name} returned {got}; "
                f"expected a tensor of the shape it was given, {tuple(value.shape)}"
            )
        return new.to(value)

    return Tap(point, act)
