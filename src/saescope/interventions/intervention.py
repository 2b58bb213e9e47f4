"""Changes of features while a plain Hugging Face model runs, and the model as it was afterwards.

::

    site = Site(load("features"), LanguageModel.load("bundled"))
    with Intervention([Add(site, 12, 4.0, positions="generated"), Ablate(site, [3, 5])]):
        logits = model.logits(ids)

An intervention holds for every forward pass of its thread inside the context: in batches, with padding on either side,
token by token with a cache, and in ``model.module.generate``. It can be entered again, later or within itself (where it is
applied once); those inside see what those outside have changed. One thread at a time has an intervention on a model: others
that want one, or run the model through ``LanguageModel``, wait; one that calls the module itself gets the plain model.

Dictionaries are visited in the order in which the model runs; at one place, in the order in which they are named, after all
conditions (``Where``). What a dictionary reads is what earlier changes made of it. A crosscoder reads several places before
it writes to the first: for it the model runs twice, first without this intervention, and its features are those of that
pass (with a cache: of such passes, which have a cache of their own).

Gradients flow through activations and through ``Splice(codes=...)``; a dictionary's parameters are constants here.

Shapes: ``B`` batch, ``T`` tokens of a pass, ``d_in`` read, ``d_out`` written, ``d_sae`` features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.interventions.changes import Ablate, Add, Change, Clamp, FeatureChange, ProjectOut, Scale, Splice
from saescope.interventions.positions import PassText, Text, Where, rules
from saescope.interventions.site import Site, constant
from saescope.models.hooks import Enough, Pass, Tap


class Intervention:
    """A context in which features of a model are changed."""

    def __init__(self, changes: Sequence[Change] | Change) -> None:
        """Checks what can be checked; nothing happens to the model before the context is entered.

        Args:
            changes: one or several, of one model.

        Raises:
            ValueError: no change, changes of different models, or two splices of one dictionary.
        """
        self.changes = (changes,) if isinstance(changes, Change) else tuple(changes)
        wrong = [each for each in self.changes if not isinstance(each, Change)]
        if wrong or not self.changes:
            shown = type(wrong[0]).__name__ if wrong else "nothing"
            raise ValueError(f"an intervention is made of changes such as Add, Clamp, Ablate or Splice, not of {shown}")
        self.model = self.changes[0].site.model
        wheres = [rule for change in self.changes for rule in rules(change.positions) if isinstance(rule, Where)]
        conditions = list(dict.fromkeys(rule.site for rule in wheres))
        changed = list(dict.fromkeys(change.site for change in self.changes))
        if any(site.model is not self.model for site in conditions + changed):
            raise ValueError("changes of different models can not be in one intervention; make one for each")
        self._text = Text(self.model.special_token_ids)
        # conditions first: they are read before anything is changed at their place
        self._stations = [
            *(_Station(site, self, wheres=[rule for rule in wheres if rule.site is site]) for site in conditions),
            *(_Station(site, self, [change for change in self.changes if change.site is site]) for site in changed),
        ]
        self._depth = 0
        self._stack = ExitStack()
        self._taps: tuple[Tap, ...] = ()

    def __enter__(self) -> Intervention:
        self.model.lock.acquire()
        try:
            if self._depth == 0:
                acts = [act for station in self._stations for act in station.acts()]
                self._taps = self._stack.enter_context(self.model.tapped(acts, self))
            self._depth += 1
        except BaseException:
            self.model.lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._depth -= 1
            if self._depth == 0:
                self._stack.close()
        finally:
            self.model.lock.release()

    def before_pass(self, running: Pass, inputs: Mapping[str, Any]) -> None:
        """Called by the model before it runs."""
        running.notes[self] = _Now(self._text.begin(running))
        ahead = [station for station in self._stations if station.reads_ahead]
        if not ahead:
            return
        self._read_ahead(ahead, running, inputs)
        for station in ahead:
            station.encode(self.now(running))

    def _read_ahead(self, stations: Sequence[_Station], running: Pass, inputs: Mapping[str, Any]) -> None:
        """Reads what stations need to know, in a pass of its own, with a cache of its own."""
        now = self.now(running)
        missing = {(station, name) for station in stations for name in station.names}
        inputs = dict(inputs)
        given = inputs.get("past_key_values")
        if running.num_past and now.text.has_read_ahead(running.num_past):
            inputs["past_key_values"] = now.text.ahead
        elif given is not None:
            inputs["past_key_values"] = _copied(given)  # the caller's must not grow twice
        now.text.ahead = inputs.get("past_key_values")
        makes_cache = now.text.ahead is None and inputs.get("use_cache") is not False

        def reader(station: _Station, name: str) -> Callable[[Tensor], Tensor]:
            def read(value: Tensor) -> Tensor:
                now.at(station).values[name] = value.clone()
                missing.discard((station, name))
                if not missing and not makes_cache:
                    raise Enough
                return value

            return read

        acts = [(name, reader(station, name)) for station in stations for name in station.names]
        with self.model.untapped(self._taps, self), self.model.tapped(acts, only_reads=True), suppress(Enough):
            now.text.ahead = getattr(self.model.module(**inputs), "past_key_values", None)

    def after_pass(self, running: Pass, output: Any) -> None:
        """Called by the model after it has run.

        Raises:
            ValueError: the changes have made logits that are no numbers, as a model does with activations far too large.
        """
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.shape[:2] != running.shape:
            return
        broken = logits.isnan().any(-1)  # [B, T]
        if running.is_token is not None:
            broken &= running.is_token.to(broken.device)
        if bool(broken.any()):
            raise ValueError(
                f"the model's logits are no numbers, with {_named(self.changes)}: choose a smaller strength, or see whether "
                "the model gives such by itself"
            )

    def now(self, running: Pass | None = None) -> _Now:
        """What is known of the pass that is running.

        Raises:
            ValueError: no pass is, for which the intervention was there from the beginning.
        """
        running = self.model.running if running is None else running
        if running is None or self not in running.notes:
            raise ValueError(
                "a part of the model runs by itself, or an intervention was begun in the middle of a forward pass; call the "
                "whole model inside the context"
            )
        now: _Now = running.notes[self]
        return now

    def chosen(self, change: Change, device: torch.device) -> Tensor:
        """Which tokens of the pass a change applies to, bool ``[B, T]``."""
        found, now = rules(change.positions), self.now()
        for rule in found:
            if isinstance(rule, Where) and rule not in now.active:
                raise ValueError(
                    f"{change} depends on feature {rule.feature} at {rule.site}, which the model has not come to yet; a "
                    "condition is read before or where it is used"
                )
        return now.text.chosen(found, now.active, change.special_tokens, device)


@dataclass
class _Seen:
    """What a station has seen in a pass."""

    dictionary: Dictionary  # as a constant
    values: dict[str, Tensor] = field(default_factory=dict)
    x: Tensor | None = None
    f: Tensor | None = None
    coded: Tensor | None = None  # what ``Splice.codes`` made of f


@dataclass
class _Now:
    """An intervention in a pass."""

    text: PassText
    active: dict[Where, Tensor] = field(default_factory=dict)  # where conditions hold, [B, T]
    seen: dict[_Station, _Seen] = field(default_factory=dict)
    encoded: dict[Site, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # of a value: x and f

    def at(self, station: _Station) -> _Seen:
        if station not in self.seen:
            self.seen[station] = _Seen(constant(station.site.dictionary))
        return self.seen[station]


class _Station:
    """What happens at one dictionary's place."""

    def __init__(
        self, site: Site, within: Intervention, changes: Sequence[Change] = (), wheres: Sequence[Where] = ()
    ) -> None:
        splices = [change for change in changes if isinstance(change, Splice)]
        if len(splices) > 1:
            raise ValueError(f"the dictionary at {site} is spliced twice; name it once")
        self.site, self._within, self._changes, self._wheres = site, within, changes, wheres
        self._splice = splices[0] if splices else None
        self.names = list(dict.fromkeys(each.name for each in site.reads))
        self._encodes = bool(wheres) or any(_needs_activations(change) for change in changes)
        self._needs_x = self._encodes or site.dictionary.input_normalization.name != "none"
        self._in_place = site.writes == site.reads and len(site.reads) == 1

    @property
    def reads_ahead(self) -> bool:
        """Whether it has to know later places before it writes to earlier ones."""
        return len(self.names) > 1 and self._needs_x

    def acts(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """What is done at each hook point."""
        if self._in_place:
            return [(self.names[0], self._read_and_write)]
        acts: list[tuple[str, Callable[[Tensor], Tensor]]] = []
        if self._needs_x and not self.reads_ahead:
            acts.append((self.names[0], self._read))
        if self._changes:
            acts += [(each.name, partial(self._write, place)) for place, each in enumerate(self.site.writes)]
        return acts

    def _read(self, value: Tensor) -> Tensor:
        now = self._within.now()
        now.at(self).values = {
            self.names[0]: value.clone()
        }  # the model may work in place before it comes to be written
        self.encode(now)
        return value

    def _read_and_write(self, value: Tensor) -> Tensor:
        now = self._within.now()
        now.at(self).values = {self.names[0]: value}
        self.encode(now)
        return self._write(0, value) if self._changes else value

    def encode(self, now: _Now) -> None:
        """Brings what was read to the dictionary."""
        seen = now.at(self)
        value = seen.values[self.names[0]]
        known = now.encoded.get(self.site)
        if known is not None and known[0] is value:  # a condition was read here
            _, seen.x, seen.f = known
        else:
            seen.x = self.site.x_of(seen.values)
            if self._encodes:
                seen.f = seen.dictionary.encode(seen.x)
                now.encoded[self.site] = value, seen.x, seen.f
        for rule in self._wheres:
            assert seen.f is not None
            now.active[rule] = seen.f[..., rule.feature] > rule.above

    def _write(self, place: int, value: Tensor) -> Tensor:
        """The activation at one of the places written to, changed."""
        seen = self._within.now().at(self)
        if self._needs_x and seen.x is None:
            raise ValueError(
                f"the dictionary at {self.site} writes to {self.site.writes[place].name}, which the model comes to before "
                "it reads; there it can only be read"
            )
        prepared = self.site.writes[place](value)
        old = prepared.to(torch.promote_types(prepared.dtype, seen.dictionary.b_dec.dtype))  # [B, T, d_s]
        new = old
        if self._splice is not None:
            new = self._kept_finite(self._splice, value, old, self._spliced(self._splice, seen, place, old))
        for change in self._changes:
            if not isinstance(change, Splice):
                changed = self._changed(change, seen, place, new)
                chosen = self._within.chosen(change, new.device)[..., None]
                new = self._kept_finite(change, value, old, torch.where(chosen, changed, new))
        if new is old:
            return value
        put = self.site.writes[place].put(value, new, old).to(value.dtype)
        if not _is_finite(put, value):
            raise ValueError(f"{_named(self._changes)} {_TOO_LARGE}")
        return put

    def _kept_finite(self, change: Change, value: Tensor, old: Tensor, new: Tensor) -> Tensor:
        if new is not old and not _is_finite(new.to(value.dtype), old):
            raise ValueError(f"{change} {_TOO_LARGE}")
        return new

    def _spliced(self, splice: Splice, seen: _Seen, place: int, old: Tensor) -> Tensor:
        assert seen.f is not None
        if splice.error_term is True and splice.codes is None:
            return old
        if seen.coded is None:
            seen.coded = _coded(splice, seen.f)
        new = self.site.parts(seen.dictionary.decode(seen.coded, seen.x))[place]
        if splice.error_term:  # new + error, so written that nothing is rounded where the codes stay as they are
            by_itself = self.site.parts(seen.dictionary.decode(seen.f, seen.x))[place]
            frozen = splice.error_term == "frozen"
            new = old.detach() + (new - by_itself.detach()) if frozen else old + (new - by_itself)
        return torch.where(self._within.chosen(splice, new.device)[..., None], new.to(old.dtype), old)

    def _changed(self, change: Change, seen: _Seen, place: int, y: Tensor) -> Tensor:
        """The activation at ``place`` after a change, as if it applied to every token."""
        if isinstance(change, Ablate):
            assert seen.f is not None
            features = list(change.each)
            rows = seen.f[..., features] @ seen.dictionary.W_dec[features]  # [B, T, d_out]
            return y - self.site.parts(seen.dictionary.written(rows, seen.x))[place]
        assert isinstance(change, FeatureChange)
        row = self.site.parts(seen.dictionary.direction(change.feature, seen.x))[place]
        if isinstance(change, Add):
            return y + change.amount * row
        if isinstance(change, ProjectOut):
            unit = row / row.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
            return y - (y * unit).sum(-1, keepdim=True) * unit
        assert seen.f is not None
        f = seen.f[..., change.feature, None]  # [B, T, 1]
        if isinstance(change, Clamp):
            return y + (change.amount - f) * row
        if isinstance(change, Scale):
            return y + (change.factor - 1) * f * row
        raise TypeError(f"{type(change).__name__} is no change that is known here")


_TOO_LARGE = "makes activations that are no numbers or infinite; choose a smaller strength"


def _needs_activations(change: Change) -> bool:
    return not isinstance(change, Add | ProjectOut)


def _named(changes: Sequence[Change]) -> str:
    shown = "; ".join(str(change) for change in changes[:5])
    return shown + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")


def _coded(splice: Splice, f: Tensor) -> Tensor:
    if splice.codes is None:
        return f
    coded = splice.codes(f.clone())  # it may work in place
    if not isinstance(coded, Tensor) or coded.shape != f.shape:
        got = tuple(coded.shape) if isinstance(coded, Tensor) else type(coded).__name__
        raise ValueError(
            f"the codes of {splice} became {got}; expected a tensor of the shape it was given, {tuple(f.shape)}"
        )
    return coded.to(f)


def _is_finite(new: Tensor, old: Tensor) -> bool:
    """Whether nothing of ``new`` is broken that was not before."""
    return bool((torch.isfinite(new) | ~torch.isfinite(old)).all())


def _copied(cache: Any) -> Any:
    """A cache with the same contents; also where gradients flow through it, which ``deepcopy`` by itself refuses."""
    layers = getattr(cache, "layers", ())
    tensors = [each for layer in layers for each in vars(layer).values() if isinstance(each, Tensor)]
    return copy.deepcopy(cache, {id(tensor): tensor.clone() for tensor in tensors})
