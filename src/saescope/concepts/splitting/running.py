"""Runs a Hugging Face model of any kind with hooks on the modules where it is split.

The hooks are on the module while it runs and only then; they see the passes of their own thread alone, and the first run
of a module that runs several times in a pass (ALBERT's shared block). While it runs, the model is in evaluation mode and
its parameters ask for no gradient; afterwards all is as it was, whatever happened.

A module's output is a tensor ``[n, l, d]``, or a tuple (or a mapping) that holds one: its first tensor of three dimensions,
or the one at ``output_tuple_index``.

Shapes: ``n`` texts, ``l`` tokens, padding counted, ``d`` width at the split point.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from saescope.models.positions import first_position, text_config

See = Callable[[str, Any], Any]
"""Gets a split point and its module's output; gives what replaces it, or None."""


class _Enough(Exception):
    """Raised in a hook to end a pass that has given all that was asked for."""


class Runner:
    """One model and its split points."""

    def __init__(self, module: nn.Module, lock: Any, output_tuple_index: int | None) -> None:
        self._module = module
        self._lock = lock
        self._given_index = output_tuple_index
        self.index_of: dict[str, int] = {}
        """Where in a split point's tuple its activations are; of those that give tuples."""
        self._parameters = inspect.signature(module.forward).parameters
        self._takes_positions = "position_ids" in self._parameters and not first_position(module)
        configs = (getattr(module, "config", None), text_config(module))
        self._configs = list({id(each): each for each in configs if each is not None}.values())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self._module.parameters()).device

    def in_order(self, split_points: Sequence[str]) -> dict[str, torch.Size]:
        """Split points in the order in which a pass comes to their outputs, with the shapes of these for two tokens.

        Raises:
            ValueError: one that a pass does not come to, or without activations ``[n, l, d]``.
        """
        ids = torch.zeros((1, 2), dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "decoder_input_ids" in self._parameters:
            inputs["decoder_input_ids"] = ids
        with torch.no_grad():
            return {point: value.shape for point, value in self.read(inputs, split_points)[0].items()}

    def read(
        self, encoding: Mapping[str, Any], split_points: Sequence[str], *, with_logits: bool = False, **kwargs: Any
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Activations at split points, in the order of the pass, which ends at the last unless logits are asked for.

        Args:
            encoding: ``input_ids``, ``attention_mask``, ..., on any device.
            split_points: module paths.
            with_logits: whether to run to the end.
            **kwargs: for the model.

        Raises:
            ValueError: as :meth:`in_order`; or no logits.
        """
        inputs = self._inputs(encoding, kwargs)
        shape = tuple(inputs["input_ids"].shape)
        found: dict[str, Tensor] = {}

        def see(point: str, output: Any) -> None:
            # a copy, because the model may go on working in place on its own tensor
            found[point] = self._activations(point, output, shape).clone()
            if len(found) == len(split_points) and not with_logits:
                raise _Enough

        output = None
        with self._running(split_points, see, inputs):
            try:
                output = self._module(**inputs)
            except _Enough:
                return found, None
        self._all_seen(split_points, found)
        return found, _logits(output)

    def edited(
        self, encoding: Mapping[str, Any], split_point: str, edit: Callable[[Tensor], Tensor], **kwargs: Any
    ) -> Tensor | None:
        """Logits of a pass in which the split module's activations are replaced by ``edit`` of a copy of them.

        Raises:
            ValueError: an edit that gives another shape; or as :meth:`read`.
        """
        inputs = self._inputs(encoding, kwargs)
        shape = tuple(inputs["input_ids"].shape)
        seen: dict[str, Tensor] = {}

        def see(point: str, output: Any) -> Any:
            value = self._activations(point, output, shape)
            seen[point] = new = edit(value.clone())
            if not isinstance(new, Tensor) or new.shape != value.shape:
                got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
                raise ValueError(
                    f"the edit at {point} returned {got}; expected a tensor of the shape it was given, "
                    f"{tuple(value.shape)}"
                )
            return self._replaced(point, output, new.to(value))

        with self._running([split_point], see, inputs):
            output = self._module(**inputs)
        self._all_seen([split_point], seen)
        return _logits(output)

    def _all_seen(self, split_points: Sequence[str], seen: Mapping[str, Any]) -> None:
        missed = [point for point in split_points if point not in seen]
        if missed:
            raise ValueError(f"the model never runs {', '.join(missed)}; split it at a module that it calls")

    def _inputs(self, encoding: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            name: value.to(self.device) for name, value in encoding.items() if isinstance(value, Tensor)
        }
        mask = inputs.get("attention_mask")
        if mask is not None and self._takes_positions and not bool(mask[:, 0].all()):  # padding on the left
            inputs.setdefault("position_ids", (mask.long().cumsum(-1) - 1).clamp_min(0))
        if "use_cache" in self._parameters:
            inputs["use_cache"] = False
        return {**inputs, **kwargs}

    @contextmanager
    def _running(self, split_points: Sequence[str], see: See, inputs: dict[str, Any]) -> Iterator[None]:
        """The model in evaluation mode, frozen, with hooks, and told which id is padding."""
        with self._lock, ExitStack() as stack:
            stack.enter_context(_evaluating(self._module))
            stack.enter_context(self._padding_told(inputs))
            thread = get_ident()
            for point in split_points:
                hook = _once(point, see, thread)
                stack.callback(self._module.get_submodule(point).register_forward_hook(hook).remove)
            yield

    @contextmanager
    def _padding_told(self, inputs: dict[str, Any]) -> Iterator[None]:
        """For a classification model without a padding id: batches get one for the length of a pass.

        Decoders with a classification head take the last token that is not padding, and know padding by its id alone.
        Any id will do that no text ends with.
        """
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        known = any(getattr(config, "pad_token_id", None) is not None for config in self._configs)
        if (
            known
            or len(ids) < 2
            or mask is None
            or not type(self._module).__name__.endswith("ForSequenceClassification")
        ):
            yield
            return
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # [n], the last token's column
        taken = set(ids[torch.arange(len(ids), device=ids.device), last].tolist())
        free = next(number for number in range(len(ids) + 1) if number not in taken)
        inputs["input_ids"] = ids.masked_fill(mask == 0, free)
        try:
            for config in self._configs:
                config.pad_token_id = free
            yield
        finally:
            for config in self._configs:
                config.pad_token_id = None

    def _activations(self, point: str, output: Any, shape: tuple[int, ...]) -> Tensor:
        """The tensor ``[n, l, d]`` in a module's output."""
        value = output
        if isinstance(output, tuple | list | Mapping):
            values = list(output.values() if isinstance(output, Mapping) else output)
            index = self._given_index if self._given_index is not None else self.index_of.get(point)
            if index is None:
                index = next((i for i, each in enumerate(values) if isinstance(each, Tensor) and each.dim() == 3), None)
            if index is None or not -len(values) <= index < len(values):
                wanted = "no tensor [texts, tokens, width] among them" if index is None else f"none at {index}"
                raise ValueError(
                    f"{point} returns {len(values)} values, {wanted}: {', '.join(map(_shown, values))}; split at another "
                    "module"
                )
            self.index_of[point] = index
            value = values[index]
        if not isinstance(value, Tensor) or value.dim() != 3 or tuple(value.shape[:2]) != shape:
            raise ValueError(
                f"{point} does not give one vector per token, [{shape[0]}, {shape[1]}, width] here, but {_shown(value)}; "
                "split at a block, an attention, an MLP or one of their norms or linear layers"
            )
        return value

    def _replaced(self, point: str, output: Any, new: Tensor) -> Any:
        if isinstance(output, Tensor):
            return new
        index = self.index_of[point]
        if isinstance(output, Mapping):
            names = list(output)
            return type(output)(**{**output, names[index]: new})
        values = list(output)
        values[index] = new
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)


def _once(point: str, see: See, thread: int) -> Callable[..., Any]:
    ran = False

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal ran
        if ran or get_ident() != thread:
            return None
        ran = True
        return see(point, output)

    return hook


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient for parameters; afterwards as it was, module by module."""
    training = [each for each in module.modules() if each.training]
    wanting = [each for each in module.parameters() if each.requires_grad]
    try:
        for each in training:
            each.training = False  # not eval(), which would go down to modules that are in it already
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for each in training:
            each.training = True
        for parameter in wanting:
            parameter.requires_grad_(True)


def _logits(output: Any) -> Tensor | None:
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else None


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
