"""A Hugging Face language model as something to look into: read activations, change them, get logits.

Everything happens at hook points, which are places with a name (``hook_points.py``). A read runs the network only as
far as the last hook point that was asked for.

Shapes: ``B`` batch, ``T`` tokens, ``d`` width at the hook point.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saescope.models import loading, positions
from saescope.models.families import FAMILIES, NormKind, family_of
from saescope.models.hook_points import HookPoint, HookPointError, hook_point_names, resolve
from saescope.models.hooks import Enough, Listener, Pass, Tap, Wiring, editor_tap, reader_taps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from saescope.models.one_thread import OneThread


@dataclass(frozen=True, kw_only=True)
class Unembedding:
    """From the last residual stream to logits: ``logits = norm(stream) @ weight.T + bias``.

    Gemma 2 also caps its logits with a tanh after this, which keeps their order.
    """

    weight: Tensor
    """``[vocab, d_model]``"""
    bias: Tensor | None
    """``[vocab]``"""
    norm_weight: Tensor | None
    """``[d_model]``, the factor that the final norm really multiplies by (Gemma stores it minus one)."""
    norm_bias: Tensor | None
    """``[d_model]``"""
    norm_kind: NormKind | None
    """None where no norm stands before the unembedding."""


class LanguageModel:
    """A causal or masked language model, with named places to read from and to write to.

    The module is put into evaluation mode and its parameters are frozen: gradients still flow through it to whatever an
    edit brings in, and no graph is built when nothing asks for one.
    """

    name: str
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    def __init__(self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
        """Wraps objects in memory: a Hugging Face model with its head, and its tokenizer or None."""
        self.name = name
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._wiring = Wiring(module)
        self._widths: dict[str, int] = {}

    @classmethod
    def load(
        cls, id_or_folder: str | Path, *, dtype: str | torch.dtype = "float32", device: str = "cpu"
    ) -> LanguageModel:
        """Loads ``"bundled"`` (the small model inside the package), a folder in Hugging Face format, or a hub id.

        Args:
            id_or_folder: what to load; a ``Path``, or a string that looks like a path, is never looked up on the hub.
            dtype: of the parameters, e.g. ``"float32"`` or ``torch.bfloat16``.
            device: e.g. ``"cpu"``, ``"cuda"``, ``"cuda:1"``.

        Raises:
            FileNotFoundError: no such folder.
            ModelLoadError: anything else that keeps the model from being loaded whole.
            ValueError: an unknown dtype or device.
        """
        loaded = loading.load(id_or_folder, dtype, device)
        return cls(loaded.module, loaded.tokenizer, str(id_or_folder))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.module.parameters()).dtype

    @cached_property
    def is_causal(self) -> bool:
        """False where a position also sees later ones, as in BERT: such a model predicts masked tokens."""
        return not loading.predicts_masked(self.module.config)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(positions.text_config(self.module).hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of token ids the embedding knows (can exceed the tokenizer's, as some models round it up)."""
        return int(self.module.get_input_embeddings().num_embeddings)

    @cached_property
    def context_size(self) -> int | None:
        """The longest window that the positions allow, in tokens; None where nothing limits it."""
        return positions.context_size(self.module)

    @cached_property
    def _first_position(self) -> int:
        return positions.first_position(self.module)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that stand for no text (beginning, end, padding, ...); empty without a tokenizer."""
        return frozenset(self.tokenizer.all_special_ids) if self.tokenizer is not None else frozenset()

    def hook_points(self) -> list[str]:
        """The names of all places: module path with ``.input`` or ``.output``, in natural order.

        Not every place carries one vector per token (masks, rotary tables); reading one that does not is refused.
        """
        return hook_point_names(self.module)

    def hook_point(self, name: str) -> HookPoint:
        """Resolves a module path (``transformer.h.2``, ``transformer.h.2.input``) or a TransformerLens name.

        What each TransformerLens name means, and which architectures have them, is written in ``families.py``.

        Raises:
            HookPointError: no such place; lists the nearest names, or says why this architecture lacks it.
        """
        return resolve(self.module, name)

    def width(self, name: str) -> int:
        """``d_in`` at a hook point. ``attn.hook_z`` is ``n_heads * d_head`` wide."""
        if name not in self._widths:
            ids = torch.zeros((1, 2), dtype=torch.long)
            with self._wiring.bare():  # edits and interventions are for the user's texts
                self._widths[name] = self.read(ids, [name], attention_mask=torch.ones_like(ids))[name].shape[-1]
        return self._widths[name]

    def read(
        self, ids: Tensor, hook_points: Sequence[str], *, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Activations at ``hook_points``, in one forward pass that ends right after the last of them.

        Where a module runs several times in a pass, its first run is read. Inside ``edit``, the edited values are read.

        Args:
            ids: token ids ``[B, T]``.
            hook_points: names as for ``hook_point``.
            attention_mask: ``[B, T]``, 1 for tokens and 0 for padding, on either side.

        Returns:
            name as given -> tensor ``[B, T, d]``, on the model's device, in its dtype, without gradient.

        Raises:
            HookPointError: an unknown name, or a place without one vector per token.
            ValueError: a window longer than ``context_size``, or ids that the vocabulary does not have.
        """
        if isinstance(hook_points, str):
            raise ValueError(f"hook_points is a list of names; for one, give [{hook_points!r}]")
        points = [self.hook_point(name) for name in dict.fromkeys(hook_points)]
        values: dict[str, Tensor] = {}
        if not points:
            return values
        with torch.no_grad(), self._wiring.attached(reader_taps(points, values)):
            try:
                self.forward(ids, attention_mask=attention_mask)
            except Enough:
                return {point.name: values[point.name] for point in points}
        missed = ", ".join(point.name for point in points if point.name not in values)
        raise HookPointError(f"the forward pass never came to {missed}: these modules exist but do not run")

    @contextmanager
    def edit(self, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """While the context is open, replaces the activation at each hook point by what its callable returns.

        A callable gets ``[B, T, d]`` (its own copy) and returns the same shape; another dtype is cast to the model's.
        It runs in every forward pass, generation included, and gradients flow through it. The stream itself is
        changed where the name says so: an edit at ``hook_resid_mid`` reaches the MLP and all that follows, one at
        ``hook_mlp_in`` only the MLP. Inner contexts come after outer ones.

        Raises:
            HookPointError: an unknown name, a place without one vector per token, or a result of another shape.
        """
        taps = [editor_tap(self.hook_point(name), function) for name, function in edits.items()]
        with self._wiring.attached(taps):
            yield

    def logits(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        edits: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensor:
        """Logits ``[B, T, vocab]`` for token ids ``[B, T]``, under ``edits`` if there are any (see ``edit``)."""
        with self.edit(edits) if edits else nullcontext():
            return self.forward(ids, attention_mask=attention_mask).logits

    def forward(
        self, ids: Tensor, *, attention_mask: Tensor | None = None, cache: Any = None, use_cache: bool = False
    ) -> Any:
        """One forward pass, as the Hugging Face model gives it (``logits``, and ``past_key_values`` with ``use_cache``).

        Positions count from a text's first token also where padding stands before it.

        Args:
            ids: ``[B, T]``, those that ``cache`` does not hold yet.
            attention_mask: ``[B, T]``, or ``[B, P + T]`` with a cache of P tokens; 1 for tokens, 0 for padding.
            cache: ``past_key_values`` of the pass before; causal models alone. It is changed.
            use_cache: whether to give one.

        Raises:
            ValueError: as :meth:`read`, the cached tokens counted.
        """
        num_past = 0 if cache is None else int(cache.get_seq_length())
        self._check(ids, attention_mask, num_past)
        inputs: dict[str, Any] = {"input_ids": ids.to(self.device), "return_dict": True}
        if attention_mask is not None:
            mask = attention_mask.to(self.device)
            inputs["attention_mask"] = mask
            comes_after_padding = (mask[:, 1:] > mask[:, :-1]).any()
            if self._takes_positions and bool(comes_after_padding):
                numbers = (mask.long().cumsum(-1) - 1).clamp_min(0) + self._first_position
                inputs["position_ids"] = numbers[:, num_past:]
        if self.is_causal:
            inputs["use_cache"] = use_cache or cache is not None
            if cache is not None:
                inputs["past_key_values"] = cache
        with self._wiring.lock:
            return self.module(**inputs)

    @cached_property
    def _takes_positions(self) -> bool:
        """Whether positions are the caller's business; some models count them from the mask themselves."""
        return "position_ids" in inspect.signature(self.module.forward).parameters

    @property
    def lock(self) -> OneThread:
        """Held by the thread that changes or runs the model; it can take it again."""
        return self._wiring.lock

    @property
    def running(self) -> Pass | None:
        """The forward pass in the middle of which this is asked, where something is attached to the model."""
        return self._wiring.passing

    @contextmanager
    def tapped(
        self,
        acts: Sequence[tuple[str, Callable[[Tensor], Tensor]]],
        listener: Listener | None = None,
        *,
        only_reads: bool = False,
    ) -> Iterator[tuple[Tap, ...]]:
        """As :meth:`edit`, for several functions at one hook point, in their order; they must not work in place.

        Args:
            acts: a hook point and what happens there; giving back the same object leaves things as they are.
            listener: told of every forward pass.
            only_reads: whether they change nothing, and have no business in another's pass ahead.
        """
        taps = tuple(Tap(self.hook_point(name), act, only_reads) for name, act in acts)
        with self._wiring.attached(taps, listener):
            yield taps

    def untapped(self, taps: Sequence[Tap], listener: Listener) -> AbstractContextManager[None]:
        """For a pass ahead of one that is about to run: without these taps, and without any that only read."""
        return self._wiring.without(taps, listener)

    def require_causal(self, what: str) -> None:
        """Refuses ``what`` (e.g. "loss recovered") for a model that does not predict the next token.

        Raises:
            ValueError: the model is not causal.
        """
        if not self.is_causal:
            raise ValueError(
                f"{what} needs a causal language model; {self.name} predicts masked tokens from both sides, "
                "so that it has no next-token loss"
            )

    def unembedding(self) -> Unembedding:
        """The final norm and the unembedding, for the direct effect of a direction on the logits.

        Raises:
            ValueError: the architecture is not in the table, or more than a norm lies before the unembedding (BERT).
        """
        family = family_of(self.module.config)
        model_type = self.module.config.model_type
        if family is None:
            known = "; ".join(row.name for row in FAMILIES)
            raise ValueError(
                f"which norm stands before the unembedding of model type {model_type!r} is not known; known: {known}"
            )
        if family.final_norm is None:
            raise ValueError(
                f"{self.name}: in {family.name} a dense layer with an activation function lies between the residual "
                "stream and the unembedding, so that a direction has no direct effect on the logits"
            )
        parent, _, leaf = family.final_norm.rpartition(".")
        norm = getattr(self.module.get_submodule(parent), leaf)  # an OPT of the first days has None here
        head = self.module.get_output_embeddings()
        gain = getattr(norm, "weight", None)
        return Unembedding(
            weight=head.weight.detach(),
            bias=_detached(getattr(head, "bias", None)),
            norm_weight=None if gain is None else gain.detach() + family.norm_gain_offset,
            norm_bias=_detached(getattr(norm, "bias", None)),
            norm_kind=None if norm is None else family.norm_kind,
        )

    def _check(self, ids: Tensor, attention_mask: Tensor | None, num_past: int = 0) -> None:
        if ids.dim() != 2 or ids.is_floating_point() or ids.numel() == 0:
            raise ValueError(f"token ids must be integers [batch, tokens], not {ids.dtype} {tuple(ids.shape)}")
        num_tokens = num_past + ids.shape[1]
        if self.context_size is not None and num_tokens > self.context_size:
            raise ValueError(
                f"a window of {num_tokens} tokens is longer than the {self.context_size} that {self.name} has "
                "positions for; cut the text into shorter windows"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"token id {low if low < 0 else high} is not in the vocabulary of {self.name}, 0 to "
                f"{self.vocab_size - 1}; were the ids made by another model's tokenizer?"
            )
        wanted = (ids.shape[0], num_tokens)
        if attention_mask is not None and attention_mask.shape != wanted:
            cached = f" after {num_past} cached ones" if num_past else ""
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}, the token ids have {tuple(ids.shape)}"
                f"{cached}; they must agree"
            )


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
