"""Direct logit attribution against the full product and against the model itself."""

from __future__ import annotations

import pytest
import torch

from saescope.analysis.logits import logit_effects, through_unembedding
from saescope.models.language_model import Unembedding


def test_effects_are_the_extremes_of_the_full_product(tiny):
    rows = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    weight = tiny.module.lm_head.weight.double()
    norm = tiny.module.transformer.ln_f
    centred = (rows - rows.mean(1, keepdim=True)).double() * norm.weight.double()
    logits = centred @ weight.T
    logits -= logits.mean(1, keepdim=True)
    for i, effect in enumerate(logit_effects(rows, tiny.unembedding(), num_tokens=4, chunk_rows=7)):
        order = logits[i].argsort(descending=True).tolist()
        assert effect.top_ids == order[:4]
        assert effect.bottom_ids == order[::-1][:4]
        assert effect.top_values == pytest.approx(logits[i][order[:4]].tolist(), rel=1e-5)
        assert effect.bottom_values == pytest.approx(logits[i][order[::-1][:4]].tolist(), rel=1e-5)


def test_a_constant_added_to_the_unembedding_changes_nothing(tiny):
    unembedding = tiny.unembedding()
    shifted = Unembedding(**{**vars(unembedding), "weight": unembedding.weight + torch.randn(16)})
    rows = torch.randn(5, 16)
    torch.testing.assert_close(
        through_unembedding(rows, shifted), through_unembedding(rows, unembedding), atol=1e-4, rtol=1e-4
    )


def test_the_effect_is_the_change_in_logits_with_the_final_norm_frozen(tiny):
    """A step along a row in the last residual stream, scale of the final norm held, moves logits as attributed."""
    ids = torch.tensor([[0, 5, 9, 33]])
    x = tiny.read(ids, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"][0, -1].double()
    norm = tiny.module.transformer.ln_f
    scale = (x.var(unbiased=False) + norm.eps).sqrt()
    row = torch.randn(16, generator=torch.Generator().manual_seed(3)).double()

    def logits(v):
        normed = (v - v.mean()) / scale * norm.weight.double() + norm.bias.double()
        return normed @ tiny.module.lm_head.weight.double().T

    change = logits(x + row) - logits(x)
    attributed = through_unembedding(row.float()[None], tiny.unembedding())[0].double() / scale
    torch.testing.assert_close(change - change.mean(), attributed, atol=1e-4, rtol=1e-4)


def test_rows_of_another_width_are_refused(tiny):
    with pytest.raises(ValueError, match="residual stream"):
        next(iter(logit_effects(torch.randn(3, 8), tiny.unembedding())))
