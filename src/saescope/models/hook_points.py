"""Names of places in a model, and what they resolve to.

Two vocabularies name the same places:

- **module paths** of the Hugging Face model, with the side: ``transformer.h.2.input``, ``transformer.h.2.output``;
  without a side the output is meant. They work for every model. Where a submodule is itself called ``output`` (BERT),
  the last ``.output`` is the side: ``bert.encoder.layer.0.output`` is what the layer gives,
  ``bert.encoder.layer.0.output.input`` what its submodule ``output`` receives.
- **TransformerLens names**, ``blocks.2.hook_resid_post``, for the architectures in ``families.py``, where their exact
  meaning is written down.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from torch import nn

from saescope.models.families import ALIASES, FAMILIES, Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIDES = ("input", "output")
_ALIAS = re.compile(r"blocks\.(\d+)\.(.+)")


class HookPointError(ValueError):
    """A hook point that the model does not have, or whose value is not one vector per token."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The input or the output of one module."""

    module: str
    """Path of the module."""
    side: str
    """``"input"`` or ``"output"``."""

    def __str__(self) -> str:
        return f"{self.module}.{self.side}"


@dataclass(frozen=True, kw_only=True)
class Join:
    """A value on the residual stream that two readers share: ``total = value + branch``."""

    branch: Place
    total: Place


@dataclass(frozen=True, kw_only=True)
class HookPoint:
    """A resolved name: where the activation is read, and what else an edit there has to change."""

    name: str
    """The name as it was asked for."""
    place: Place
    """Where the value is found."""
    join: Join | None = None
    """For a value that goes into a norm and past it: the sum that an edit must reach too."""
    only_into: str | None = None
    """For the input of a norm that several modules share: the path of the one module that an edit is meant for."""

    @property
    def canonical(self) -> str:
        """Module path and side, e.g. ``transformer.h.2.output``."""
        return str(self.place)


def hook_point_names(module: nn.Module) -> list[str]:
    """All module paths of ``module``, each with ``.input`` and ``.output``, in natural order (h.2 before h.10)."""
    return sorted((f"{path}.{side}" for path in _callable_paths(module) for side in SIDES), key=_natural)


def resolve(module: PreTrainedModel, name: str) -> HookPoint:
    """The hook point called ``name`` in a Hugging Face model.

    Raises:
        HookPointError: no such place; the message lists the nearest names, or says why this architecture lacks it.
    """
    alias = _ALIAS.fullmatch(name)
    if alias and alias[2] in ALIASES:
        return _resolve_alias(module, name, int(alias[1]), alias[2])
    paths = set(_callable_paths(module))
    path, _, side = name.rpartition(".")
    if side in SIDES and path in paths:
        return HookPoint(name=name, place=Place(module=path, side=side))
    if name in paths:
        return HookPoint(name=name, place=Place(module=name, side="output"))
    return _refuse_unknown(module, name)


def _resolve_alias(module: PreTrainedModel, name: str, layer: int, alias: str) -> HookPoint:
    family = family_of(module.config)
    if family is None:
        known = "; ".join(row.name for row in FAMILIES)
        raise HookPointError(
            f"{name!r} is a TransformerLens name, and their meaning is not known for {_describe(module)}. "
            f"Known: {known}. Use a module path instead; LanguageModel.hook_points() lists them."
        )
    num_blocks = _num_blocks(module, family)
    if layer >= num_blocks:
        raise HookPointError(f"{name!r}: the model has {num_blocks} blocks, 0 to {num_blocks - 1}")
    if alias not in family.sites:
        why = family.absent.get(alias, "no place in its block carries this value")
        raise HookPointError(f"{name!r} does not exist in {family.name}: {why}")
    site = family.sites[alias]
    block = f"{family.blocks}.{layer}"
    total = Place(module=block, side="output")
    return HookPoint(
        name=name,
        place=_place(block, site.place),
        join=Join(branch=_place(block, site.branch), total=total) if site.branch else None,
        only_into=f"{block}.{site.only_into}" if site.only_into else None,
    )


def _place(block: str, relative: str) -> Place:
    path, _, side = f"{block}.{relative}".rpartition(".")
    return Place(module=path, side=side)


def _refuse_unknown(module: PreTrainedModel, name: str) -> NoReturn:
    names = hook_point_names(module) + list(_callable_paths(module))
    family = family_of(module.config)
    if family is not None:
        names += [f"blocks.{i}.{alias}" for i in range(_num_blocks(module, family)) for alias in family.sites]
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"nearest: {', '.join(near)}" if near else "nothing is near to it"
    raise HookPointError(
        f"the model has no hook point {name!r}; {hint}. LanguageModel.hook_points() lists all of them."
    )


def _callable_paths(module: nn.Module) -> Iterator[str]:
    """Paths of the submodules that run: lists of modules hold others, but are never called."""
    for path, submodule in module.named_modules():
        if path and not isinstance(submodule, nn.ModuleList | nn.ModuleDict):
            yield path


def _num_blocks(module: nn.Module, family: Family) -> int:
    blocks = module.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return len(blocks)


def _describe(module: PreTrainedModel) -> str:
    """The model type, with the settings that made its own rows of the table not hold."""
    config = module.config
    rows = [row for row in FAMILIES if config.model_type in row.model_types]
    settings = sorted({f"{key}={getattr(config, key, None)}" for row in rows for key in row.requires})
    return f"model type {config.model_type!r}" + (f" with {', '.join(settings)}" if settings else "")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key by path parts, numbers by value."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
