"""The truth that synthetic activations are made of: one direction per feature, an atom.

How much atoms overlap decides how hard they are to find again. Three kinds are offered: random ones overlap as chance has it
(superposition as soon as there are many), orthonormal ones not at all, and near-orthogonal ones as much as is asked for.

n  features, d  activation width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coherence:
    """How much the rows of a dictionary overlap: |cos| over all pairs of rows."""

    largest: float
    mean: float


def coherence(atoms: Tensor) -> Coherence:
    """Largest and mean |cos| over the pairs of rows of ``[n, d]``; both 0 for a single row."""
    _check_rows(atoms)
    overlaps = _overlaps(atoms.detach().double())
    if not len(overlaps):
        return Coherence(0.0, 0.0)
    return Coherence(float(overlaps.max()), float(overlaps.mean()))


def random_atoms(
    num_features: int, d: int, generator: torch.Generator, *, norms: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Directions drawn uniformly from the sphere (Gaussian rows, normalised), ``[num_features, d]``.

    Args:
        norms: length of each atom, ``[num_features]``; all 1 where None.
    """
    _check_sizes(num_features, d)
    rows = torch.randn(num_features, d, generator=generator)
    return _with_norms(rows / rows.norm(dim=-1, keepdim=True), norms)


def orthonormal_atoms(
    num_features: int, d: int, generator: torch.Generator, *, norms: Tensor | Sequence[float] | None = None
) -> Tensor:
    """Directions at right angles to each other, uniformly random as a whole (QR of a Gaussian), ``[num_features, d]``.

    Args:
        norms: length of each atom, ``[num_features]``; all 1 where None.

    Raises:
        ValueError: more features than dimensions.
    """
    _check_sizes(num_features, d)
    if num_features > d:
        raise ValueError(
            f"{num_features} directions cannot be orthogonal in {d} dimensions; take at most {d} features, "
            "or near_orthogonal_atoms"
        )
    q, r = torch.linalg.qr(torch.randn(d, num_features, generator=generator).double())
    # QR leaves the signs to the library: with R's diagonal positive, the result depends on the seed alone
    return _with_norms((q * r.diagonal().sign()).T.float().contiguous(), norms)


def near_orthogonal_atoms(
    num_features: int,
    d: int,
    generator: torch.Generator,
    *,
    largest: float | None = None,
    mean: float | None = None,
    num_steps: int = 1000,
    lr: float = 0.01,
    norms: Tensor | Sequence[float] | None = None,
) -> Tensor:
    """Random directions pushed apart by gradient descent on their pairwise cosines, ``[num_features, d]``.

    Without a goal, all steps are taken on the sum of squared cosines (as for the toy data of arXiv 2508.16560). With one,
    the descent ends on the path exactly where the goal is met, so that superposition can be set as a number.

    Args:
        largest: the largest |cos| over pairs to arrive at.
        mean: the mean |cos| over pairs to arrive at. Give at most one of the two.
        num_steps: steps of Adam, at most.
        lr: its rate.
        norms: length of each atom, ``[num_features]``; all 1 where None.

    Raises:
        ValueError: the random start overlaps less than the goal already, no dictionary of this size can meet it, or the
            steps did not suffice.
    """
    if largest is not None and mean is not None:
        raise ValueError("give largest or mean, not both: the descent ends at one goal")
    rows = random_atoms(num_features, d, generator)
    goal, which = (mean, "mean") if mean is not None else (largest, "largest")
    if goal is not None:
        _check_goal(goal, which, coherence(rows), num_features, d)
    moved = rows.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=lr)
    # well below the goal the push stops: pairs that are far enough apart stay as they are
    margin = 0.9 * goal if goal is not None and which == "largest" else 0.0
    for _ in range(num_steps):
        before = moved.detach().clone()
        with torch.enable_grad():
            loss = (_overlaps(moved) - margin).relu().square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if goal is not None and getattr(coherence(moved), which) <= goal:
            return _with_norms(_where_met(before, moved.detach(), goal, which), norms)
    if goal is not None:
        raise ValueError(
            f"after {num_steps} steps the {which} |cos| is {getattr(coherence(moved), which):.4f}, not {goal}; "
            "allow more steps or a larger overlap"
        )
    return _with_norms(_unit(moved.detach()), norms)


def _where_met(before: Tensor, after: Tensor, goal: float, which: str) -> Tensor:
    """The point on the last step at which the goal is met: halving, to float32's resolution."""
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        met = getattr(coherence(before.lerp(after, middle)), which) <= goal
        low, high = (low, middle) if met else (middle, high)
    return _unit(before.lerp(after, high))


def _check_goal(goal: float, which: str, start: Coherence, num_features: int, d: int) -> None:
    welch = math.sqrt((num_features - d) / (d * (num_features - 1))) if num_features > d else 0.0
    if which == "largest" and goal < welch:
        raise ValueError(
            f"{num_features} directions in {d} dimensions have a pair with |cos| of at least {welch:.4f} "
            f"(the Welch bound), so that largest = {goal} is out of reach"
        )
    if goal < 0 or goal >= getattr(start, which):
        raise ValueError(
            f"{which} = {goal} must be at least 0 and below the random start's {getattr(start, which):.4f}: "
            "the descent only pushes directions apart"
        )


def _overlaps(rows: Tensor) -> Tensor:
    """|cos| of all pairs of rows, ``[n (n - 1) / 2]``."""
    unit = _unit(rows)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    return (unit @ unit.T)[first, second].abs()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def _with_norms(rows: Tensor, norms: Tensor | Sequence[float] | None) -> Tensor:
    if norms is None:
        return rows
    lengths = torch.as_tensor(norms, dtype=rows.dtype)
    if lengths.shape != rows.shape[:1] or not bool((lengths > 0).all()) or not bool(lengths.isfinite().all()):
        raise ValueError(f"norms must be {len(rows)} positive numbers, one per feature, got {lengths.tolist()}")
    return rows * lengths[:, None]


def _check_sizes(num_features: int, d: int) -> None:
    if num_features < 1 or d < 1:
        raise ValueError(f"num_features and d must be at least 1, got {num_features} and {d}")


def _check_rows(atoms: Tensor) -> None:
    if atoms.ndim != 2 or not atoms.numel():
        raise ValueError(f"expected atoms as rows, [n, d] with at least one, got {list(atoms.shape)}")
