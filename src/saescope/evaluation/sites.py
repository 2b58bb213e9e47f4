"""Where a dictionary reads and where it writes: the same place, but for transcoders; several for crosscoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saescope.dictionaries import Crosscoder, Dictionary, Transcoder

if TYPE_CHECKING:
    from saescope.models import LanguageModel


@dataclass(frozen=True)
class Sites:
    """Hook points of a dictionary in a model, checked."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    widths: tuple[int, ...]  # of the places written to

    @classmethod
    def of(
        cls,
        dictionary: Dictionary,
        model: LanguageModel,
        hook_point: str | Sequence[str],
        hook_point_out: str | None = None,
    ) -> Sites:
        """The places that a dictionary is evaluated at.

        Raises:
            ValueError: widths, number or order of the hook points do not fit the dictionary.
            HookPointError: the model has no such place.
        """
        reads = (hook_point,) if isinstance(hook_point, str) else tuple(hook_point)
        if isinstance(dictionary, Transcoder) and hook_point_out is None:
            raise ValueError("a transcoder rebuilds another hook point than it reads; name it as hook_point_out")
        if hook_point_out is not None and dictionary.config.apply_b_dec_to_input:
            raise ValueError(
                f"a {dictionary.architecture} dictionary rebuilds what it reads; hook_point_out is for transcoders"
            )
        writes = reads if hook_point_out is None else (hook_point_out,)
        for names, what, wanted in ((reads, "d_in", dictionary.d_in), (writes, "d_out", dictionary.d_out)):
            width = sum(model.width(name) for name in names)
            if width != wanted:
                raise ValueError(
                    f"the dictionary has {what} = {wanted}, but {', '.join(names)} of {model.name} has width {width}; "
                    "name the hook point that it was trained on"
                )
        if isinstance(dictionary, Crosscoder):
            widths = [model.width(name) for name in reads]
            if widths != list(dictionary.config.source_widths):
                raise ValueError(
                    f"the crosscoder reads sources of widths {list(dictionary.config.source_widths)}, but "
                    f"{', '.join(reads)} of {model.name} have {widths}; name its hook points in their order"
                )
        return cls(reads, writes, tuple(model.width(name) for name in writes))

    @property
    def all(self) -> tuple[str, ...]:
        """Every place once."""
        return tuple(dict.fromkeys((*self.reads, *self.writes)))
