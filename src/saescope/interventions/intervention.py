"""Changes of features while a plain Hugging Face model runs, and the model as it was afterwards.

::

    site = Site(load("features"), LanguageModel.load("bundled"))
    with Intervention([Add(site, 12, 4.0, positions="generated"), Ablate(site, [3, 5])]):
        logits = model.logits(ids)

An intervention holds for every forward pass inside the context: in batches, with padding on either side, token by token
with a cache, and in ``model.module.generate``. It can be entered again, later or within itself (where it is applied
once); those inside see what those outside have changed. One thread at a time has an intervention on a model, others wait.

Dictionaries are visited in the order in which the model runs; at one place, in the order in which they are named. What a
dictionary reads is what earlier changes made of it. A crosscoder reads several places before it writes to the first: for
it the model runs twice, first without this intervention, and its features are those of that pass.

Shapes: ``B`` batch, ``T`` tokens of a pass, ``d_in`` read, ``d_out`` written, ``d_sae`` features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from saescope.interventions.changes import Ablate, Add, Change, Clamp, FeatureChange, ProjectOut, Scale, Splice
from saescope.interventions.positions import Text, Where, rules
from saescope.interventions.site import Site
from saescope.models.hooks import Pass, Tap


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
        sites = list(dict.fromkeys([change.site for change in self.changes] + [rule.site for rule in wheres]))
        if any(site.model is not self.model for site in sites):
            raise ValueError("changes of different models can not be in one intervention; make one for each")
        self._text = Text(self.model.special_token_ids)
        self._wheres: dict[Where, Tensor] = {}
        self._stations = [
            _Station(
                site,
                [change for change in self.changes if change.site is site],
                [rule for rule in wheres if rule.site is site],
                self._chosen,
                self._wheres,
            )
            for site in sites
        ]
        self._depth = 0
        self._stack = ExitStack()
        self._taps: tuple[Tap, ...] = ()

    def __enter__(self) -> Intervention:
        self.model.lock.acquire()
        try:
            if self._depth == 0:
                acts = [act for station in self._stations for act in station.acts()]
                self._taps = self._stack.enter_context(self.model.tapped(acts, self._before_pass))
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

    def _before_pass(self, running: Pass, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._text.begin(running)
        self._wheres.clear()
        ahead = [station for station in self._stations if station.reads_ahead]
        for station in self._stations:
            station.begin()
        if not ahead:
            return
        acts = [act for station in ahead for act in station.reading()]
        past = copy.deepcopy(kwargs.get("past_key_values"))  # the pass ahead must not add to it
        inputs = {**kwargs, **({} if past is None else {"past_key_values": past})}
        with self.model.untapped(self._taps, self._before_pass), self.model.tapped(acts):
            self.model.module(*args, **inputs)
        for station in ahead:
            station.encode()

    def _chosen(self, change: Change, device: torch.device) -> Tensor:
        found = rules(change.positions)
        for rule in found:
            if isinstance(rule, Where) and rule not in self._wheres:
                raise ValueError(
                    f"{change} depends on feature {rule.feature} at {rule.site}, which the model has not come to yet; a "
                    "condition is read before or where it is used"
                )
        return self._text.chosen(found, self._wheres, change.special_tokens, device)


class _Station:
    """What happens at one dictionary's place during a pass."""

    def __init__(
        self,
        site: Site,
        changes: Sequence[Change],
        wheres: Sequence[Where],
        chosen: Callable[[Change, torch.device], Tensor],
        active: dict[Where, Tensor],
    ) -> None:
        splices = [change for change in changes if isinstance(change, Splice)]
        if len(splices) > 1:
            raise ValueError(f"the dictionary at {site} is spliced twice; name it once")
        self.site, self._changes, self._wheres = site, changes, wheres
        self._splice = splices[0] if splices else None
        self._chosen, self._active = chosen, active
        self._names = list(dict.fromkeys(each.name for each in site.reads))
        self._encodes = bool(wheres) or any(not isinstance(change, Add | ProjectOut) for change in changes)
        self._in_place = site.writes == site.reads and len(site.reads) == 1
        self._values: dict[str, Tensor] = {}
        self._x: Tensor | None = None
        self._f: Tensor | None = None

    @property
    def reads_ahead(self) -> bool:
        """Whether it has to know later places before it writes to earlier ones."""
        return len(self._names) > 1 and (self._encodes or self.site.dictionary.input_normalization.name != "none")

    def begin(self) -> None:
        self._values, self._x, self._f = {}, None, None

    def acts(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        """What is done at each hook point."""
        if self._in_place:
            return [(self._names[0], self._read_and_write)]
        acts = [] if self.reads_ahead or len(self._names) > 1 else self.reading()
        if self._changes:
            acts += [(each.name, partial(self._write, place)) for place, each in enumerate(self.site.writes)]
        return acts

    def reading(self) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        return [(name, partial(self._read, name)) for name in self._names]

    def _read(self, name: str, value: Tensor) -> Tensor:
        self._values[name] = value.clone()
        if len(self._values) == len(self._names) and not self.reads_ahead:
            self.encode()
        return value

    def _read_and_write(self, value: Tensor) -> Tensor:
        self._values = {self._names[0]: value}
        self.encode()
        return self._write(0, value) if self._changes else value

    def encode(self) -> None:
        self._x = self.site.x_of(self._values)
        if self._encodes:
            self._f = self.site.dictionary.encode(self._x)
            for rule in self._wheres:
                self._active[rule] = self._f[..., rule.feature] > rule.above

    def _write(self, place: int, value: Tensor) -> Tensor:
        """The activation at one of the places written to, changed."""
        prepared = self.site.writes[place](value)
        old = prepared.to(torch.promote_types(prepared.dtype, self.site.dictionary.b_dec.dtype))  # [B, T, d_s]
        new = old
        if self._splice is not None:
            new = self._spliced(self._splice, place, old)
        for change in self._changes:
            if not isinstance(change, Splice):
                changed = self._changed(change, place, new)
                new = torch.where(self._chosen(change, new.device)[..., None], changed, new)
                _require_finite(new, change)
        if new is old:
            return value
        return self.site.writes[place].put(value, new.to(prepared.dtype), prepared)

    def _spliced(self, splice: Splice, place: int, old: Tensor) -> Tensor:
        assert self._x is not None
        assert self._f is not None
        if splice.error_term is True and splice.codes is None:
            return old
        dictionary = self.site.dictionary
        f = self._f if splice.codes is None else splice.codes(self._f)
        new = self.site.parts(dictionary.decode(f, self._x))[place]
        if splice.error_term:
            error = old - self.site.parts(dictionary.decode(self._f, self._x))[place]
            new = new + (error.detach() if splice.error_term == "frozen" else error)
        new = torch.where(self._chosen(splice, new.device)[..., None], new, old)
        _require_finite(new, splice)
        return new

    def _changed(self, change: Change, place: int, y: Tensor) -> Tensor:
        """The activation at ``place`` after a change, as if it applied to every token."""
        if isinstance(change, Ablate):
            for feature in change.each:
                y = y - self._activation(feature) * self._direction(feature, place)
            return y
        assert isinstance(change, FeatureChange)
        row = self._direction(change.feature, place)
        if isinstance(change, Add):
            return y + change.amount * row
        if isinstance(change, Clamp):
            return y + (change.amount - self._activation(change.feature)) * row
        if isinstance(change, Scale):
            return y + (change.factor - 1) * self._activation(change.feature) * row
        if isinstance(change, ProjectOut):
            unit = row / row.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
            return y - (y * unit).sum(-1, keepdim=True) * unit
        raise TypeError(f"{type(change).__name__} is no change that is known here")

    def _activation(self, feature: int) -> Tensor:
        assert self._f is not None
        return self._f[..., feature, None]  # [B, T, 1]

    def _direction(self, feature: int, place: int) -> Tensor:
        return self.site.parts(self.site.dictionary.direction(feature, self._x))[place]


def _require_finite(new: Tensor, change: Change) -> None:
    if not bool(torch.isfinite(new).all()):
        raise ValueError(f"{change} makes activations that are no numbers or infinite; choose a smaller strength")
