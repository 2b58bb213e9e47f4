"""Who contributed what: features at tokens, with a number each. The form in which all attributions are given.

Shapes: ``B`` prompts, ``T`` tokens, ``N`` entries (one for each feature that is active at a token), ``d_sae`` features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saescope.interventions.site import Site
from saescope.models import LanguageModel


@dataclass(frozen=True, eq=False)
class Contributions:
    """What the features of one dictionary contributed to a metric, an entry for each feature at each token.

    All tensors are ``[N]`` and on the CPU, ordered by prompt, then position, then feature. A positive contribution is
    what the metric would lose without the feature.
    """

    site: Site
    num_prompts: int
    prompt: Tensor  # row in the batch
    position: Tensor  # column in the batch, padding counted
    feature: Tensor
    activation: Tensor  # float64
    contribution: Tensor  # float64, in the metric's units

    def __len__(self) -> int:
        return len(self.feature)

    def totals(self) -> Tensor:
        """Sum of all contributions to each prompt, ``[B]``."""
        return self.contribution.new_zeros(self.num_prompts).index_add(0, self.prompt, self.contribution)

    def of_features(self) -> Tensor:
        """Contribution of each feature to each prompt, summed over positions, ``[B, d_sae]``."""
        found = self.contribution.new_zeros(self.num_prompts, self.site.dictionary.d_sae)
        return found.index_put((self.prompt, self.feature), self.contribution, accumulate=True)

    def of_prompt(self, prompt: int) -> Contributions:
        """The entries of one prompt.

        Raises:
            ValueError: no such prompt.
        """
        if not 0 <= prompt < self.num_prompts:
            raise ValueError(f"there is no prompt {prompt}; they are numbered from 0 to {self.num_prompts - 1}")
        return self._take((self.prompt == prompt).nonzero()[:, 0])

    def strongest(self, count: int) -> Contributions:
        """The entries of largest size, up or down, the largest first; of equal ones the earlier first."""
        if count < 1:
            raise ValueError(f"the number of entries must be at least 1, not {count}")
        return self._take(self.contribution.abs().sort(descending=True, stable=True).indices[:count])

    def _take(self, which: Tensor) -> Contributions:
        return Contributions(
            self.site,
            self.num_prompts,
            self.prompt[which],
            self.position[which],
            self.feature[which],
            self.activation[which],
            self.contribution[which],
        )


def entries(site: Site, tokens: Tensor, activations: Tensor, contributions: Tensor, counted: Tensor) -> Contributions:
    """The sparse form of dense activations and contributions.

    Args:
        tokens: bool ``[B, T]``: where features are looked at.
        activations, contributions: ``[B, T, d_sae]``.
        counted: bool ``[B, T, d_sae]``: which of them are entries, where ``tokens`` holds.
    """
    prompt, position, feature = (counted & tokens[..., None]).nonzero(as_tuple=True)
    return Contributions(
        site,
        len(tokens),
        prompt.cpu(),
        position.cpu(),
        feature.cpu(),
        activations[prompt, position, feature].detach().cpu().double(),
        contributions[prompt, position, feature].detach().cpu().double(),
    )


def real_tokens(model: LanguageModel, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Which tokens are no padding, bool ``[B, T]``, where the model is."""
    mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    return mask.to(model.device)


def looked_at(model: LanguageModel, ids: Tensor, attention_mask: Tensor | None, special_tokens: bool) -> Tensor:
    """Tokens whose features are looked at, bool ``[B, T]``: no padding, and special ones only if asked for."""
    tokens = real_tokens(model, ids, attention_mask)
    if special_tokens or not model.special_token_ids:
        return tokens
    special = torch.tensor(sorted(model.special_token_ids), device=model.device)
    return tokens & ~torch.isin(ids.to(model.device), special)
