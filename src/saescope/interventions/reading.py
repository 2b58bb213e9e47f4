"""Feature activations and errors of a batch, for any number of dictionaries, in one forward pass that ends at the last.

N  tokens that are read, d_out  width that is rebuilt, d_sae  features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saescope.dictionaries.codes import SparseCodes
from saescope.interventions.site import Site


@dataclass(frozen=True, eq=False)
class Reading:
    """What a dictionary found in a batch. Rows are the tokens of ``tokens``, text by text."""

    site: Site
    tokens: Tensor  # bool, [B, T]: which tokens were read
    codes: SparseCodes  # of them, [N, d_sae]
    reconstruction: Tensor  # [N, d_out]
    error: Tensor  # what the reconstruction lacks, [N, d_out]


@torch.no_grad()
def read_features(
    sites: Sequence[Site], ids: Tensor, *, attention_mask: Tensor | None = None, special_tokens: bool = False
) -> list[Reading]:
    """Reads dictionaries of one model on a batch; inside an intervention, what it has changed is read.

    Args:
        ids: ``[B, T]``. attention_mask: ``[B, T]``, 1 for tokens, 0 for padding.
        special_tokens: whether they are read too.

    Returns:
        One reading for each site, in their order.

    Raises:
        ValueError: no site, sites of different models, or ids that the model does not take.
    """
    models = {id(site.model): site.model for site in sites}
    if len(models) != 1:
        raise ValueError("features are read of one model at a time; give the sites of one, at least one of them")
    (model,) = models.values()
    names = list(dict.fromkeys(each.name for site in sites for each in (*site.reads, *site.writes)))
    found = model.read(ids, names, attention_mask=attention_mask)
    tokens = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    tokens = tokens.to(model.device)
    if not special_tokens and model.special_token_ids:
        special = torch.tensor(sorted(model.special_token_ids), device=model.device)
        tokens = tokens & ~torch.isin(ids.to(model.device), special)
    readings = []
    for site in sites:
        x = site.x_of(found)[tokens]
        y = torch.cat([each(found[each.name]) for each in site.writes], dim=-1)[tokens]
        codes = site.dictionary.encode_sparse(x)
        rebuilt = site.dictionary.decode(codes, x)
        readings.append(Reading(site, tokens, codes, rebuilt, y - rebuilt))
    return readings
