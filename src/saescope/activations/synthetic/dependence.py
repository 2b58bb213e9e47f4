"""Features that fire with, against or under each other: a Gaussian copula, and hierarchies.

Dictionaries go wrong where features depend on each other: correlated features are mixed into one latent when too few may
fire (arXiv 2508.16560), and a child's latent takes over its parent's work (absorption).

B  tokens, n  features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saescope.activations.synthetic.firing import Firing, checked_probabilities


class GaussianCopula(Firing):
    """Given probabilities, and correlations by way of hidden Gaussians: feature i fires where g_i > Phi^-1(1 - p_i).

    g is Gaussian with mean 0 and the given correlation. The correlation of the firings themselves has the same sign, and is
    smaller in size.

    Args:
        probabilities: of each feature, ``[n]``, from 0 to 1.
        correlation: of the hidden Gaussians, ``[n, n]``, positive semi-definite with unit diagonal.
    """

    def __init__(self, probabilities: Tensor | Sequence[float], correlation: Tensor) -> None:
        self.probabilities = checked_probabilities(probabilities)
        self.num_features = n = len(self.probabilities)
        self.true_l0 = float(self.probabilities.sum())
        self.correlation = correlation = correlation.detach().double()
        if correlation.shape != (n, n):
            raise ValueError(f"correlation must be [{n}, {n}] for {n} probabilities, got {list(correlation.shape)}")
        asymmetry = float((correlation - correlation.T).abs().max())
        off_one = float((correlation.diagonal() - 1).abs().max())
        if not (asymmetry < 1e-5 and off_one < 1e-5):
            raise ValueError(
                f"correlation must be symmetric with ones on its diagonal; it is off by {asymmetry:.2g} and {off_one:.2g}"
            )
        eigenvalues, vectors = torch.linalg.eigh((correlation + correlation.T) / 2)
        if eigenvalues[0] < -1e-5:
            raise ValueError(
                f"no Gaussian has this correlation: its smallest eigenvalue is {float(eigenvalues[0]):.3g}; "
                "repair_correlation makes one that is close"
            )
        # the symmetric root: signs and order of eigenvectors, which the library chooses, cancel
        root = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T
        self._root = root.float()
        self._above = -torch.special.ndtri(self.probabilities).float()  # Phi^-1(1 - p) without the rounding of 1 - p

    def sample(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num_tokens, self.num_features, generator=generator) @ self._root > self._above


def random_correlation(
    num_features: int,
    generator: torch.Generator,
    *,
    share: float = 0.7,
    smallest: float = 0.3,
    largest: float = 0.9,
) -> Tensor:
    """A random correlation matrix, ``[num_features, num_features]``, float64.

    Of all pairs, ``share`` are correlated, half of them positively and half negatively, with |rho| uniform from ``smallest``
    to ``largest``. Such a matrix is hardly ever positive definite; :func:`repair_correlation` makes it so, which shrinks
    |rho| considerably and gives the other pairs a little (as the toy data of arXiv 2508.16560).
    """
    if num_features < 1 or not 0 <= share <= 1 or not 0 <= smallest <= largest <= 1:
        raise ValueError(
            "expected num_features >= 1, 0 <= share <= 1 and 0 <= smallest <= largest <= 1, got "
            f"{num_features}, {share}, {smallest} and {largest}"
        )
    first, second = torch.triu_indices(num_features, num_features, 1)
    num_correlated = round(share * len(first))
    chosen = torch.randperm(len(first), generator=generator)[:num_correlated]
    rho = smallest + (largest - smallest) * torch.rand(num_correlated, generator=generator, dtype=torch.float64)
    rho[num_correlated // 2 :] *= -1
    matrix = torch.eye(num_features, dtype=torch.float64)
    matrix[first[chosen], second[chosen]] = rho
    matrix[second[chosen], first[chosen]] = rho
    return repair_correlation(matrix)


def repair_correlation(matrix: Tensor, smallest_eigenvalue: float = 1e-6) -> Tensor:
    """A correlation matrix near a symmetric one: eigenvalues raised to at least the given one, unit diagonal; float64."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"expected a square matrix, got {list(matrix.shape)}")
    matrix = (matrix + matrix.T).double() / 2
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    raised = (vectors * eigenvalues.clamp_min(smallest_eigenvalue)) @ vectors.T
    scale = raised.diagonal().rsqrt()
    repaired = raised * scale[:, None] * scale
    repaired = (repaired + repaired.T) / 2
    # the scale has lowered eigenvalues again: a pinch of the identity raises them and keeps the diagonal
    lowest = float(torch.linalg.eigvalsh(repaired)[0])
    if lowest < smallest_eigenvalue:
        pinch = 1.01 * (smallest_eigenvalue - lowest) / (1 - lowest)
        repaired = (1 - pinch) * repaired
    return repaired.fill_diagonal_(1.0)


class Hierarchy(Firing):
    """Features that fire only with their parent: a forest, of any depth.

    Features 0 to r - 1 are the roots, and fire by a rule of their own; the children follow in the order given.

    Args:
        roots: which roots fire.
        parents: each child's parent, a root or an earlier child, by its feature number.
        probabilities: each child's, given that its parent fires.
        exclusive: an active parent takes at most one of its children, with their probabilities (what is missing to 1: none);
            otherwise its children fire independently of each other.

    Attributes:
        parent: of every feature, -1 for a root.
        children: of every feature that has some, in order.
    """

    def __init__(
        self, roots: Firing, parents: Sequence[int], probabilities: Tensor | Sequence[float], *, exclusive: bool = True
    ) -> None:
        given_parent = checked_probabilities(probabilities)
        r = roots.num_features
        if len(parents) != len(given_parent):
            raise ValueError(f"{len(parents)} parents do not match {len(given_parent)} probabilities of children")
        for i, parent in enumerate(parents):
            if not 0 <= parent < r + i:
                raise ValueError(f"feature {r + i} cannot have parent {parent}: parents come before their children")
        self.roots, self.exclusive = roots, exclusive
        self.num_features = r + len(parents)
        self.parent = (*[-1] * r, *(int(parent) for parent in parents))
        self.children: dict[int, tuple[int, ...]] = {}
        for child in range(r, self.num_features):
            self.children[self.parent[child]] = (*self.children.get(self.parent[child], ()), child)
        # a child fires where its parent does and a uniform number, shared by siblings if exclusive, is in its interval
        self._lower, self._upper, self._number = (
            torch.zeros_like(given_parent),
            given_parent.clone(),
            list(range(len(parents))),
        )
        if exclusive:
            for group, (parent, children) in enumerate(self.children.items()):
                places = torch.tensor(children) - r
                ends = given_parent[places].cumsum(0)
                if ends[-1] > 1 + 1e-9:
                    raise ValueError(
                        f"the children of feature {parent} exclude each other, but their probabilities sum to "
                        f"{float(ends[-1]):.4f}, more than 1; lower them or pass exclusive=False"
                    )
                self._lower[places], self._upper[places] = ends - given_parent[places], ends
                for place in places.tolist():
                    self._number[place] = group
        self._lower, self._upper = self._lower.float(), self._upper.float()
        self._levels = self._by_depth()
        self.probabilities = roots.probabilities
        self.true_l0 = None
        if roots.probabilities is not None:
            shares = roots.probabilities.tolist()
            for parent, share in zip(parents, given_parent.tolist(), strict=True):
                shares.append(shares[parent] * share)
            self.probabilities = torch.tensor(shares, dtype=torch.float64)
            self.true_l0 = float(self.probabilities.sum())

    @classmethod
    def two_levels(cls, roots: Firing, num_children: int, probability: float, *, exclusive: bool = True) -> Hierarchy:
        """Every root has ``num_children`` children, each with ``probability`` given the root; first the first root's."""
        parents = [root for root in range(roots.num_features) for _ in range(num_children)]
        return cls(roots, parents, [probability] * len(parents), exclusive=exclusive)

    def sample(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        r = self.roots.num_features
        fired = torch.empty(num_tokens, self.num_features, dtype=torch.bool)
        fired[:, :r] = self.roots.sample(num_tokens, generator)
        numbers = torch.rand(num_tokens, 1 + max(self._number), generator=generator)[:, self._number]
        fired[:, r:] = (numbers >= self._lower) & (numbers < self._upper)
        for children, parents in self._levels:
            fired[:, children] &= fired[:, parents]
        return fired

    def _by_depth(self) -> list[tuple[Tensor, Tensor]]:
        """Children and their parents, level by level: a parent's firing is settled before its children's."""
        depth: list[int] = []
        for parent in self.parent:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        levels = []
        for level in range(1, max(depth) + 1):
            children = [i for i, at in enumerate(depth) if at == level]
            levels.append((torch.tensor(children), torch.tensor([self.parent[i] for i in children])))
        return levels
