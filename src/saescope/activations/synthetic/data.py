"""Synthetic activations: x = codes @ atoms + bias + noise, as samples with the truth and as a stream to train on.

Every batch of a stream is drawn from a generator that is seeded with the stream's seed and the batch's number alone, so that
a stream's position is one number. Held-out samples are seeded from another half of all seeds: no batch of any stream is
ever among them.

B  tokens, n  features, d  activation width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saescope.activations.synthetic.firing import Firing
from saescope.activations.synthetic.magnitudes import FoldedNormal, Magnitudes


class Samples(NamedTuple):
    """Tokens and the truth about them."""

    x: Tensor  # [B, d]
    codes: Tensor  # [B, n], at least 0; 0 where the feature does not fire


class SyntheticData:
    """Activations made of known features.

    Args:
        atoms: the feature directions, ``[n, d]``; none is 0.
        firing: which of the n features fire.
        magnitudes: how strongly; |N(0, 1)| where None.
        bias: added to every token: a number, or one per dimension ``[d]``.
        noise: standard deviation, per dimension, of independent Gaussian noise.

    Raises:
        ValueError: sizes do not fit each other, or a value is out of its range.
    """

    def __init__(
        self,
        atoms: Tensor,
        firing: Firing,
        magnitudes: Magnitudes | None = None,
        *,
        bias: float | Tensor = 0.0,
        noise: float = 0.0,
    ) -> None:
        if atoms.ndim != 2 or not bool(atoms.isfinite().all()) or not bool(atoms.any(dim=-1).all()):
            raise ValueError(f"atoms must be finite rows [n, d], none of them 0, got a tensor {list(atoms.shape)}")
        if len(atoms) != firing.num_features:
            raise ValueError(f"{len(atoms)} atoms do not match the {firing.num_features} features that fire")
        self.atoms = atoms.detach().float()
        self.firing, self.magnitudes, self.noise = firing, magnitudes or FoldedNormal(), noise
        self.num_features, self.d = self.atoms.shape
        scale = torch.as_tensor(self.magnitudes.scale)
        if scale.ndim and len(scale) != self.num_features:
            raise ValueError(f"{len(scale)} scales of magnitudes do not match {self.num_features} features")
        self.bias = torch.as_tensor(bias, dtype=torch.float32)
        if self.bias.shape not in ((), (self.d,)):
            raise ValueError(f"bias must be a number or [{self.d}], got {list(self.bias.shape)}")
        if not noise >= 0:
            raise ValueError(f"noise is a standard deviation, at least 0, got {noise}")

    @property
    def true_l0(self) -> float | None:
        """Mean number of features that fire on a token; None where no closed form is known (``mean_l0`` measures it)."""
        firing = self.firing.true_l0
        return None if firing is None else firing * self.magnitudes.positive_share

    def sample(self, num_tokens: int, generator: torch.Generator) -> Samples:
        """Draw ``num_tokens`` independent tokens: x ``[B, d]`` and codes ``[B, n]``, float32."""
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        codes = self.magnitudes.sample(num_tokens, self.num_features, generator)
        codes = codes * self.firing.sample(num_tokens, generator)
        x = torch.addmm(self.bias, codes, self.atoms)
        if self.noise:
            x.add_(torch.randn(num_tokens, self.d, generator=generator), alpha=self.noise)
        return Samples(x, codes)

    def held_out(self, num_tokens: int, seed: int = 0) -> Samples:
        """Samples that are no batch of any :class:`SyntheticStream`, whatever the seeds."""
        return self.sample(num_tokens, _generator("held out", seed, held_out=True))


class SyntheticStream(Iterator[Tensor]):
    """Batches ``[batch_size_tokens, d]`` for training, without the truth: endless, seeded and resumable.

    Args:
        data: what to draw from.
        batch_size_tokens: B.
        seed: of the tokens.
        fixed_tokens: draw a data set of so many tokens once, and visit it in a new random order in each pass; None: every
            batch is drawn afresh. A batch at the end of a pass is filled up from the beginning of the next one, so that
            each pass visits each token exactly once.
        order_seed: of the orders in which a fixed data set is visited; ``seed`` where None.

    Attributes:
        fixed: the fixed data set with its codes, None without one.
    """

    def __init__(
        self,
        data: SyntheticData,
        batch_size_tokens: int,
        seed: int = 0,
        *,
        fixed_tokens: int | None = None,
        order_seed: int | None = None,
    ) -> None:
        if batch_size_tokens < 1 or (fixed_tokens is not None and fixed_tokens < batch_size_tokens):
            raise ValueError(
                f"batch_size_tokens = {batch_size_tokens} must be at least 1"
                + ("" if fixed_tokens is None else f" and at most fixed_tokens = {fixed_tokens}")
            )
        self.data, self.batch_size_tokens, self.seed = data, batch_size_tokens, seed
        self.order_seed = seed if order_seed is None else order_seed
        self.fixed: Samples | None = None
        if fixed_tokens is not None:
            self.fixed = data.sample(fixed_tokens, _generator("fixed", seed))
        self._drawn = 0
        self._orders: dict[int, Tensor] = {}

    def __next__(self) -> Tensor:
        if self.fixed is None:
            x = self.data.sample(self.batch_size_tokens, _generator("batch", self.seed, self._drawn)).x
        else:
            x = self.fixed.x[self._places(self._drawn)]
        self._drawn += 1
        return x

    def batch(self, number: int) -> Samples:
        """Batch ``number`` (from 0) with its truth; the stream stays where it is."""
        if number < 0:
            raise ValueError(f"batches are numbered from 0, got {number}")
        if self.fixed is None:
            return self.data.sample(self.batch_size_tokens, _generator("batch", self.seed, number))
        places = self._places(number)
        return Samples(self.fixed.x[places], self.fixed.codes[places])

    def held_out(self, num_tokens: int, seed: int = 0) -> Samples:
        """Samples with their truth that this stream never gives, see :meth:`SyntheticData.held_out`."""
        return self.data.held_out(num_tokens, seed)

    def state_dict(self) -> dict[str, Any]:
        """The position: the number of batches drawn."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that :meth:`state_dict` gave."""
        self._drawn = int(state["drawn"])

    def _places(self, number: int) -> Tensor:
        """Which tokens of the fixed data set make up a batch, ``[B]``."""
        assert self.fixed is not None
        size = len(self.fixed.x)
        epoch, start = divmod(number * self.batch_size_tokens, size)
        places = self._order(epoch)[start : start + self.batch_size_tokens]
        missing = self.batch_size_tokens - len(places)
        return torch.cat([places, self._order(epoch + 1)[:missing]]) if missing else places

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            assert self.fixed is not None
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = torch.randperm(
                len(self.fixed.x), generator=_generator("order", self.order_seed, epoch)
            )
        return self._orders[epoch]


def _generator(purpose: str, *numbers: int, held_out: bool = False) -> torch.Generator:
    """A generator for one thing to be drawn: even seeds for training, odd ones for held-out samples.

    torch's CPU generator looks at 32 bits of its seed, so that hashes alone could meet by chance.
    """
    hashed = int.from_bytes(hashlib.sha256(repr((purpose, *map(int, numbers))).encode()).digest()[:4], "big")
    return torch.Generator().manual_seed((hashed & ~1) | held_out)
