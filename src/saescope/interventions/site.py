"""A dictionary at its place in a model: where it reads, where it writes, and how strong its features get there.

A dictionary knows from its file which hook point it was trained at and what was done to the activations before it saw them
(``activations/of_dictionary.py``: a centred stream, one head, a factor). Here that is looked up once, and undone again
when something is written, so that every change is a change of the plain Hugging Face model.

Shapes: ``B`` batch, ``T`` tokens, ``d_in`` read, ``d_out`` written, ``d_sae`` features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn

from saescope.activations.of_dictionary import Preparation, preparations
from saescope.dictionaries import Crosscoder, Dictionary, Transcoder

if TYPE_CHECKING:
    from saescope.models import LanguageModel
    from saescope.store import Store

Unit = Literal["max_activation", "activation"]


M = TypeVar("M", bound=nn.Module)


def constant(module: M) -> M:
    """The same module, sharing its memory, through whose parameters no gradient flows."""
    view = copy.copy(module)
    view._parameters = {
        name: None if parameter is None else nn.Parameter(parameter.detach(), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    view._modules = {name: None if child is None else constant(child) for name, child in module._modules.items()}
    return view


class Site:
    """A dictionary in a model, and the maximum activations that strengths are counted in.

    Attributes:
        dictionary, model: as given.
        reads, writes: hook points with what is done to their values; the same but for transcoders, several for
            crosscoders.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        model: LanguageModel,
        *,
        hook_point: str | Sequence[str] | None = None,
        hook_point_out: str | None = None,
        max_activations: Mapping[int, float] | Tensor | Callable[[int], float] | None = None,
        name: str | None = None,
    ) -> None:
        """Looks up the dictionary's hook points in the model.

        Args:
            hook_point: where the metadata's is not to be taken, or says nothing; several of a crosscoder.
            hook_point_out: where a transcoder writes, likewise.
            max_activations: the largest activation of each feature on some text, ``[d_sae]``, by feature, or a function
                of the feature: what a strength of 1 means. Without it strengths are activations (``unit="activation"``).
            name: in messages; the hook point by default.

        Raises:
            ValueError: no hook point is known, widths do not fit, or the model's activations can not be brought to what the
                dictionary was trained on.
            HookPointError: the model has no such place.
        """
        if not isinstance(dictionary, Dictionary):
            raise ValueError(f"a dictionary is needed here, not {type(dictionary).__name__}")
        if dictionary.reads_sequences:
            raise ValueError(
                f"a {dictionary.architecture} dictionary reads whole texts from their first token on; in passes with a "
                "cache or padding it would compute something else, so that it has no place in a model here. Call it on "
                "activations [batch, tokens, d_in] of LanguageModel.read"
            )
        if hook_point is not None and not isinstance(hook_point, str):
            hook_point = ", ".join(hook_point)
        self.dictionary, self.model = dictionary, model
        metadata = dictionary.metadata
        self.reads: tuple[Preparation, ...] = preparations(metadata, model, hook_point, dictionary.d_in)
        self.writes: tuple[Preparation, ...] = self.reads
        if isinstance(dictionary, Transcoder):
            self.writes = preparations(metadata, model, hook_point_out, dictionary.d_out, out=True)
            if not self.writes:
                raise ValueError("a transcoder rebuilds another hook point than it reads; name it with hook_point_out")
        elif hook_point_out is not None:
            raise ValueError(
                f"a {dictionary.architecture} dictionary rebuilds what it reads; hook_point_out is for transcoders"
            )
        if isinstance(dictionary, Crosscoder):
            self.widths: tuple[int, ...] = tuple(dictionary.config.source_widths)
            found = [model.width(each.name) for each in self.writes]
            if list(self.widths) != found:
                raise ValueError(
                    f"the crosscoder has sources of widths {list(self.widths)}, but {self} of {model.name} have {found}; "
                    "name its hook points in their order"
                )
        else:
            self.widths = (dictionary.d_out,)
        if isinstance(max_activations, Tensor) and max_activations.shape != (dictionary.d_sae,):
            raise ValueError(
                f"max_activations has the shape {tuple(max_activations.shape)}, and the dictionary has "
                f"{dictionary.d_sae:,} features; give one number for each"
            )
        self.name = name or ", ".join(each.name for each in self.reads)
        self._max = max_activations

    @classmethod
    def in_store(
        cls, store: Store, name: str, dictionary: Dictionary, model: LanguageModel, *, analysis: str | None = None
    ) -> Site:
        """A dictionary that was analysed: hook points and maximum activations are the store's.

        Args:
            name: of the dictionary in the store.

        Raises:
            LookupError: the store has no such dictionary or analysis. ValueError: as the constructor, or sizes differ.
        """
        record = store.summary(name, analysis=analysis).dictionary
        if (record.d_in, record.d_sae) != (dictionary.d_in, dictionary.d_sae):
            raise ValueError(
                f"{name} in the store has d_in = {record.d_in} and d_sae = {record.d_sae}, this dictionary has "
                f"{dictionary.d_in} and {dictionary.d_sae}; give the one that was analysed"
            )
        return cls(
            dictionary,
            model,
            hook_point=record.hook_point or None,
            hook_point_out=record.hook_point_out or None,
            max_activations=cache(lambda feature: store.page(name, feature, analysis=analysis).feature.max_activation),
            name=name,
        )

    def __str__(self) -> str:
        return ", ".join(each.name for each in self.reads)

    def check_feature(self, feature: int) -> int:
        """The feature's number.

        Raises:
            ValueError: the dictionary has no such feature.
        """
        if isinstance(feature, bool) or not isinstance(feature, Integral):
            raise ValueError(f"a feature is named by its whole number, not by {feature!r}")
        if not 0 <= feature < self.dictionary.d_sae:
            raise ValueError(
                f"feature {feature} is out of range: the dictionary at {self} has {self.dictionary.d_sae:,} features, "
                f"0 to {self.dictionary.d_sae - 1:,}"
            )
        return feature

    def max_activation(self, feature: int) -> float:
        """The largest activation that is known of a feature.

        Raises:
            ValueError: none is known, or the feature never fired.
        """
        self.check_feature(feature)
        if self._max is None:
            raise ValueError(
                f"strengths in units of the maximum activation need to know it for feature {feature} of {self.name}: give "
                'max_activations, analyse the dictionary and use Site.in_store, or say unit="activation"'
            )
        try:
            largest = float(self._max(feature) if callable(self._max) else self._max[feature])
        except LookupError as error:
            raise ValueError(f"max_activations says nothing of feature {feature} of {self.name}: {error}") from None
        if not (largest > 0 and math.isfinite(largest)):
            raise ValueError(
                f"feature {feature} of {self.name} never fired where its maximum was taken ({largest}); "
                'give the strength with unit="activation"'
            )
        return largest

    def amount(self, feature: int, strength: float, unit: Unit) -> float:
        """A strength as an activation."""
        if unit not in ("max_activation", "activation"):
            raise ValueError(f'unit is "max_activation" or "activation", not {unit!r}')
        return strength * self.max_activation(feature) if unit == "max_activation" else strength

    def x_of(self, values: Mapping[str, Tensor]) -> Tensor:
        """What the dictionary reads, ``[B, T, d_in]``, of values ``[B, T, d]`` at its hook points; in its own dtype."""
        weights = self.dictionary.b_dec
        parts = [each(values[each.name]) for each in self.reads]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if x.device != weights.device:
            raise ValueError(
                f"the dictionary at {self} is on {weights.device}, and {self.model.name} gives activations on {x.device}; "
                "bring them together with dictionary.to(device)"
            )
        return x.to(weights.dtype)

    def parts(self, written: Tensor) -> tuple[Tensor, ...]:
        """A tensor ``[..., d_out]`` by the places that it is written to."""
        return written.split(self.widths, dim=-1) if len(self.writes) > 1 else (written,)
