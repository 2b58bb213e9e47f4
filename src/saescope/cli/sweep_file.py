"""A sweep as a file: what all dictionaries share, the variants, and how many seeds of each.

name = "architectures"
seeds = [0, 1]
dictionaries_per_pass = 10

[base]                      # a recipe, without its name
hook_point = "blocks.1.hook_resid_post"
training = { num_tokens = 2_000_000 }
dictionary = { d_sae = 2048 }

[[variants]]                # its keys are laid over those of the base
name = "topk-32"
sparsity = "L0 32"
dictionary = { architecture = "topk", k = 32 }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saescope.cli.recipe import RECIPES, RunConfig, checked, read_settings, run_from_dict

SWEEPS = RECIPES / "sweeps"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Dictionaries to train and to compare."""

    name: str
    base: dict[str, Any]  # a recipe without its name
    variants: tuple[dict[str, Any], ...]  # name, sparsity, and what differs from the base
    seeds: tuple[int, ...] = (0,)  # of the dictionaries; text and batches are the same for all
    dictionaries_per_pass: int | None = None  # how many train side by side; None: all
    studies: tuple[str, ...] = ()  # what to evaluate with; none: all
    notes: tuple[str, ...] = field(default_factory=tuple)  # for the report

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ValueError("a sweep needs at least one of [[variants]] and one of seeds")
        names = [str(variant.get("name", "")) for variant in self.variants]
        if "" in names:
            raise ValueError("every one of [[variants]] needs a name")
        for what, values in (("variants are named", names), ("seeds are", list(map(str, self.seeds)))):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"two {what} {', '.join(twice)}")

    @property
    def variant_of(self) -> dict[str, dict[str, Any]]:
        """The variant of every run, by the run's name."""
        return {f"{variant['name']}-seed-{seed}": variant for seed in self.seeds for variant in self.variants}

    def runs(self, source: str) -> list[RunConfig]:
        """Every run: all variants with the first seed, then with the next, so that a pass holds different ones.

        Raises:
            ValueError: a run that is no recipe, named by its variant.
        """
        found = []
        for seed in self.seeds:
            for variant in self.variants:
                merged = _laid_over(self.base, {k: v for k, v in variant.items() if k not in ("name", "sparsity")})
                merged["name"] = f"{variant['name']}-seed-{seed}"
                merged["dictionary"] = {**merged.get("dictionary", {}), "seed": seed}
                try:
                    found.append(run_from_dict(merged, source))
                except ValueError as error:
                    raise ValueError(f"variant {variant['name']}: {error}") from None
        return found


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep from a file, or one that comes with saescope by its name.

    Raises:
        FileNotFoundError: no such file, and no sweep of that name in the package.
        ValueError: not TOML, an unknown key, or settings that contradict each other.
    """
    data, source = read_settings(path, SWEEPS, "sweep", overrides)
    return checked(SweepConfig, data, source)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` where it says something, ``below`` elsewhere; tables within are merged alike."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        merged[key] = _laid_over(below[key], value) if both else value
    return merged
