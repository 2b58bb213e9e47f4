"""Taps: functions that see, and may replace, the activation ``[B, T, d]`` at a hook point while the model runs.

Everything that reads or edits goes through one ``Wiring`` per model, because the order matters where several taps meet:
an outer edit comes before an inner one, a reader inside an edit sees the edited value, and the residual stream in the
middle of a block is settled before the MLP's own copy of it. On every change all torch hooks are taken off and put
back in that order; there are as many as hook points in use, so that this costs microseconds.

One thread at a time has taps on a model, and only its own passes meet them: another one that wants to attach some, or to
run the model through ``LanguageModel``, waits until they are off; one that calls the module itself gets it as it is.

Shapes: ``B`` batch, ``T`` tokens in this pass, ``P`` tokens before them that a cache holds, ``d`` width at the hook point.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saescope.models.hook_points import HookPoint, HookPointError, Place
from saescope.models.one_thread import OneThread

Act = Callable[[Tensor], Tensor]
"""Gets ``[B, T, d]``; gives the same object back to leave things as they are, or a new tensor to replace it."""


@dataclass(frozen=True, eq=False)
class Tap:
    """One function at one hook point."""

    point: HookPoint
    act: Act
    only_reads: bool = False


@dataclass(frozen=True, eq=False)
class Pass:
    """The forward pass that is running: what the model was called with."""

    ids: Tensor | None
    """``[B, T]``; None where the model was given embeddings."""
    shape: tuple[int, int]
    """``(B, T)``"""
    num_past: int
    """``P``: tokens whose keys and values come from a cache."""
    is_token: Tensor | None
    """Which tokens of this pass are no padding, bool ``[B, T]``; None: all."""
    cache: Any = None
    """The cache that the model was given, if it was; of a pass before, or still empty."""
    outer: Pass | None = None
    """The pass in the middle of which this one runs, e.g. where an edit reads the model."""
    notes: dict[Any, Any] = field(default_factory=dict)
    """What listeners remember of this pass alone."""
    cache_given: list[weakref.ref[Any]] = field(default_factory=list)
    """The cache that came out of it, once it has ended."""


class Listener(Protocol):
    """Is told of every forward pass."""

    def before_pass(self, running: Pass, inputs: Mapping[str, Any]) -> None:
        """The model is about to run on ``inputs``, the arguments of its ``forward`` by name."""

    def after_pass(self, running: Pass, output: Any) -> None:
        """The model has run to its end."""


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
        self._arguments = tuple(inspect.signature(root.forward).parameters)
        self._taps: list[Tap] = []
        self._listeners: list[Listener] = []
        self._wires: list[_Wire] = []
        self._handles: list[RemovableHandle] = []
        self._loose: dict[object, list[Tensor]] = {}  # what wires hold where a part of the model runs by itself
        self.lock = OneThread()
        self.passing: Pass | None = None

    @contextmanager
    def attached(self, taps: Sequence[Tap], listener: Listener | None = None) -> Iterator[None]:
        """Attaches ``taps``, after those that are there already; takes them off on exit, whatever happened.

        Another thread that comes meanwhile waits.
        """
        with self.lock:
            before, wires, running = list(self._taps), self._wires, self.passing
            try:
                self._taps = [*self._taps, *taps]
                self._listeners = [*self._listeners, *([] if listener is None else [listener])]
                self._rewire()
                yield
            finally:
                self._taps = [tap for tap in self._taps if tap not in taps]
                self._listeners = [each for each in self._listeners if each is not listener]
                # A pass that is running goes on with the very wires that it has begun with: some hold a value half-way.
                self._rewire(wires if self._taps == before else None)
                self.passing = running

    @contextmanager
    def without(self, taps: Sequence[Tap], listener: Listener) -> Iterator[None]:
        """For a pass ahead of the pass that is about to run: takes these taps off for a while, and all that only read."""
        kept = [tap for tap in self._taps if tap not in taps and not tap.only_reads]
        with self._instead(kept, [each for each in self._listeners if each is not listener]):
            yield

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Takes all taps off for a while."""
        with self.lock, self._instead([], []):
            yield

    @contextmanager
    def _instead(self, taps: list[Tap], listeners: list[Listener]) -> Iterator[None]:
        held = self._taps, self._listeners, self._wires, self.passing
        try:
            self._taps, self._listeners = taps, listeners
            self._rewire()
            yield
        finally:
            self._taps, self._listeners, wires, self.passing = held
            self._rewire(wires)

    def _rewire(self, wires: list[_Wire] | None = None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._wires = [], []
        if not self._taps and not self._listeners:
            return
        self._wires = sorted(self._new_wires(), key=lambda wire: wire.turn) if wires is None else wires
        self._handles.append(self._root.register_forward_pre_hook(self._pass_begins, with_kwargs=True))
        for wire in self._wires:
            module = self._root.get_submodule(wire.place.module)
            if wire.place.side == "input":
                hook = self._input_hook(wire)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._output_hook(wire)))
        self._handles.append(self._root.register_forward_hook(self._pass_ends, always_call=True))

    def _new_wires(self) -> Iterator[_Wire]:
        chains: dict[tuple[Any, ...], list[Tap]] = {}
        for tap in self._taps:
            chains.setdefault((tap.point.place, tap.point.join, tap.point.only_into), []).append(tap)
        for taps in chains.values():
            point, act = taps[0].point, _chained([tap.act for tap in taps])
            if point.join is not None:
                yield from self._joined_wires(point, act)
            elif point.only_into is not None:
                yield from self._private_wires(point, act, point.only_into)
            else:
                yield _Wire(_Turn.PLAIN, point.place, act)

    def _private_wires(self, point: HookPoint, act: Act, reader: str) -> Iterator[_Wire]:
        """For a norm that several modules read: only ``reader`` gets the norm of the edited value."""
        norm = self._root.get_submodule(point.place.module)
        key = object()

        def at_norm(value: Tensor) -> Tensor:
            new = act(value)
            self._hold(key, [] if new is value else [new])
            return value

        def at_reader(value: Tensor) -> Tensor:
            held = self._held(key)
            self._hold(key, [])
            # forward, not a call: the norm's own hooks belong to the value that everybody else gets
            return norm.forward(held[0]) if held else value

        yield _Wire(_Turn.LATE, point.place, at_norm)
        yield _Wire(_Turn.EARLY, Place(module=reader, side="input"), at_reader)

    def _joined_wires(self, point: HookPoint, act: Act) -> Iterator[_Wire]:
        """For a value that the MLP's norm reads and that also flows past it.

        Replacing the norm's input changes what the MLP sees; the sum at the end of the block is then computed again from
        the edited value. (Moving the attention's output by the difference would reach both with one hook, but rounding
        keeps the sum from being the value that was asked for.)
        """
        assert point.join is not None
        key = object()

        def at_norm(value: Tensor) -> Tensor:
            new = act(value)
            self._hold(key, [] if new is value else [new])
            return new

        def at_branch(value: Tensor) -> Tensor:
            held = self._held(key)
            if held:
                held.append(value)
            return value

        def at_total(value: Tensor) -> Tensor:
            held = self._held(key)
            self._hold(key, [])
            return held[0] + held[1] if held else value

        yield _Wire(_Turn.EARLY, point.place, at_norm)
        yield _Wire(_Turn.LATE, point.join.branch, at_branch)
        yield _Wire(_Turn.EARLY, point.join.total, at_total)

    def _hold(self, key: object, values: list[Tensor]) -> None:
        """Keeps what a wire needs again further on in this pass."""
        if self.passing is not None:
            self.passing.notes[key] = values
        else:
            self._loose[key] = values

    def _held(self, key: object) -> list[Tensor]:
        notes = self._loose if self.passing is None else self.passing.notes
        return notes.get(key, [])

    def _pass_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if not self.lock.is_mine:
            return
        inputs = {**dict(zip(self._arguments, args, strict=False)), **(kwargs or {})}
        if module.training and torch.is_grad_enabled() and _runs_again_in_backward(module):
            raise HookPointError(
                "with gradient checkpointing the model runs again during the backward pass, when edits may be gone; turn it "
                "off, or put the model into evaluation mode with model.module.eval()"
            )
        given = [inputs.get("input_ids"), inputs.get("inputs_embeds"), *args[:1]]
        value = next((each for each in given if isinstance(each, Tensor) and each.dim() > 1), None)
        if value is None:
            if self._listeners:
                raise HookPointError(
                    "an intervention needs token ids or embeddings, [batch, tokens] or [batch, tokens, d]"
                )
            self.passing = None
            return
        past = inputs.get("past_key_values")
        past = past if hasattr(past, "get_seq_length") else None
        num_past = 0 if past is None else int(past.get_seq_length())
        shape = (value.shape[0], value.shape[1])
        mask = inputs.get("attention_mask")
        is_token = _is_token(mask, shape, num_past)
        if is_token is None and mask is not None and self._listeners and not _says_nothing(mask):
            found = f"has the shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"is a {type(mask).__name__}"
            raise HookPointError(
                f"which tokens are padding can not be told: the attention mask {found}, and an intervention needs "
                f"[batch, tokens], here {(shape[0], num_past + shape[1])}, cached tokens counted"
            )
        ids = None if value.is_floating_point() else value
        running = Pass(ids, shape, num_past, is_token, cache=past, outer=self.passing)
        self.passing = running
        for listener in tuple(self._listeners):
            listener.before_pass(running, inputs)

    def _pass_ends(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        running = self.passing
        if running is None or not self.lock.is_mine:
            return
        self.passing = running.outer
        if output is None:  # it was stopped
            return
        cache = getattr(output, "past_key_values", None)
        if hasattr(cache, "get_seq_length"):
            running.cache_given.append(weakref.ref(cache))
        for listener in tuple(self._listeners):
            listener.after_pass(running, output)

    def _input_hook(self, wire: _Wire) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            if kwargs is None or not self.lock.is_mine:
                return None  # another thread, for which there are no taps (and which may see a hook come off)
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
            if not self.lock.is_mine:
                return None
            # a ModelOutput, e.g. of the network below the head: its first entry is the value
            if isinstance(output, dict):
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


def _is_token(mask: Any, shape: tuple[int, int], num_past: int) -> Tensor | None:
    """Which tokens of a pass are no padding, bool ``[B, T]``; None where the mask says nothing of it.

    In a mask ``[B, 1, T, P + T]`` of who sees whom, or a dict of such, a token that does not see itself is padding.
    """
    end = num_past + shape[1]
    if isinstance(mask, dict):
        found = (_is_token(each, shape, num_past) for each in mask.values())
        return next((each for each in found if each is not None), None)  # those of sliding windows may be narrower
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4) or mask.shape[-1] < end:
        return None  # (a cache of fixed size has room for more)
    if mask.dim() == 2:
        return mask[:, num_past:end].bool()
    if mask.shape[2] != shape[1]:
        return None
    itself = mask[..., num_past:end].diagonal(dim1=-2, dim2=-1).any(1) if mask.dtype == torch.bool else None
    if itself is None:  # added to attention scores: 0, or hugely negative
        itself = (mask[..., num_past:end].diagonal(dim1=-2, dim2=-1) > -1e3).any(1)
    return itself.expand(shape)


def _runs_again_in_backward(module: nn.Module) -> bool:
    """Whether a Hugging Face model was told to keep no activations in training."""
    return any(getattr(each, "gradient_checkpointing", False) for each in module.modules())


def _says_nothing(mask: Any) -> bool:
    """Whether a mask is one of those by kind of layer, none of which hides anything."""
    return isinstance(mask, dict) and all(each is None for each in mask.values())


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

    return [Tap(point, reader(point), only_reads=True) for point in points]


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
