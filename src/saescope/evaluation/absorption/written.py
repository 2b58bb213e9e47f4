"""What each feature writes into the reconstruction, in units of the activation itself.

A feature's activation alone says little: a decoder row three times as long with an activation a third as large is the same
feature. Studies that compare features with each other, or with the activation that they rebuild, take what is written: the
activation times the length of the row, along a unit direction. Layer norm, which multiplies every token by its own spread
at the end, and whitening, which turns every row, are in it too. What a reconstruction has without any feature (b_dec, the
token's mean, a skip connection) is the offset: features are neither to be blamed for it nor praised.

T  tokens, d_in  width that is read, d_out  width that is rebuilt, d_sae  features, n  some of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

from saescope.dictionaries import Dictionary, SparseCodes
from saescope.dictionaries.normalization import PerToken
from saescope.evaluation.sample import TokenSample, encode_sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """A dictionary on a sample: ``y ~ offset + rows(all) @ directions``."""

    codes: sparse.csr_array  # feature activations, [T, d_sae]
    norms: np.ndarray  # lengths of what features write for an activation of 1, float64, [d_sae]
    directions: np.ndarray  # of what they write, float64, unit rows or zeros, [d_sae, d_out]
    spread: np.ndarray | None  # by what each token is multiplied at the end, float64, [T]
    _dictionary: Dictionary
    _sample: TokenSample

    @classmethod
    @torch.no_grad()
    def of(cls, dictionary: Dictionary, sample: TokenSample) -> Written:
        """Encode the sample.

        Raises:
            ValueError: dictionary and activations do not fit, or one of them holds numbers that are not finite.
        """
        if sample.y.shape[-1] != dictionary.d_out:
            raise ValueError(
                f"this dictionary rebuilds activations of width d_out = {dictionary.d_out}, the sample has width "
                f"{sample.y.shape[-1]}; check that the sample was read at the dictionary's hook point"
            )
        if not (bool(sample.x.isfinite().all()) and bool(sample.y.isfinite().all())):
            raise ValueError("activations of the sample hold numbers that are not finite")
        normalization = dictionary.input_normalization
        rows, spread = dictionary.W_dec.detach(), None
        if isinstance(normalization, PerToken):
            spread = normalization.spread(sample.x.double())[:, 0].numpy()
        else:
            rows = normalization.undo(rows, None) - normalization.undo(torch.zeros_like(rows), None)
        rows = rows.double().cpu()
        if not bool(rows.isfinite().all()):
            raise ValueError("decoder rows hold numbers that are not finite; the dictionary may have diverged")
        norms = rows.norm(dim=-1)
        return cls(
            codes=encode_sample(dictionary, sample.x),
            norms=norms.numpy(),
            directions=(rows / norms.clamp_min(1e-300)[:, None]).numpy(),
            spread=spread,
            _dictionary=dictionary,
            _sample=sample,
        )

    def rows(self, tokens: np.ndarray) -> sparse.csr_array:
        """What features write on some tokens (their places), along their directions: float64 ``[n, d_sae]``."""
        codes = self.codes[tokens].astype(np.float64)
        codes.data *= self.norms[codes.indices]
        if self.spread is not None:
            codes.data *= np.repeat(self.spread[tokens], np.diff(codes.indptr))
        return codes

    @torch.no_grad()
    def offset(self, tokens: np.ndarray) -> np.ndarray:
        """What the reconstruction of these tokens has without any feature, float64 ``[n, d_out]``."""
        x = self._sample.x[torch.from_numpy(tokens)].to(self._dictionary.W_dec)
        nothing = SparseCodes(
            torch.zeros(len(x), 1, dtype=torch.int64, device=x.device), x.new_zeros(len(x), 1), self._dictionary.d_sae
        )
        empty = self._dictionary.decode(nothing, x)
        return empty.double().cpu().expand(len(x), -1).numpy()

    def targets(self, tokens: np.ndarray) -> np.ndarray:
        """What is to be rebuilt, float64 ``[n, d_out]``."""
        return self._sample.y[torch.from_numpy(tokens)].double().numpy()
