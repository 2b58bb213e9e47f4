"""Direct logit attribution: what each feature adds to a logit straight through the residual stream.

A dictionary writes the activation at its hook point as ``x = sum_i f_i d_i + b + error``. What is added to the residual
stream stays there up to the final norm, whatever later layers add to it. With the norm's scale frozen (``readout.py``)
the way from there to a logit is linear, so that feature i contributes

    f_i (d_i . r)

at the position whose next token is predicted, and nothing at others: only attention moves things between positions. The
logit is a sum, exactly::

    logit = features + dictionary_bias + error  (the direct path of what is at the hook point)
          + rest                                (the same of all that is in the last stream beside it)
          + norm_bias + unembedding_bias

At the **last residual stream** ``rest`` is zero, and features, error and biases add up to the logit. At an **earlier**
hook point features, bias and error add up to the direct path alone: what later attention and MLPs make of the features
is in ``rest``, with all else that was written elsewhere. That part is what ``gradient_attribution`` sees.

The frozen scale is that of the whole stream: taking a feature away would also change the scale a little, which is not
counted. Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits") describe the direct path, with the
norm folded alike.

Shapes: ``P`` places (prompt, position) that the metric looks at, ``B`` prompts, ``T`` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saescope.interventions.attribution.contributions import Contributions, looked_at, real_tokens
from saescope.interventions.attribution.readout import LastStream, Readout
from saescope.interventions.metrics import Metric
from saescope.interventions.site import Site
from saescope.models.families import Family

_ON_THE_STREAM = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """A logit, or a difference of logits, as a sum; everything ``[B]`` in float64, in logits."""

    metric: Metric
    contributions: Contributions  # of the features, at the positions that the metric looks at
    value: Tensor  # the logit, before any soft cap
    features: Tensor  # sum of the contributions
    dictionary_bias: Tensor  # what the reconstruction has without any feature (b_dec; a skip connection's part)
    error: Tensor  # what the dictionary leaves unexplained
    rest: Tensor  # what the last stream holds beside the hook point's own; 0 at the last stream
    norm_bias: Tensor
    unembedding_bias: Tensor

    @property
    def direct_path(self) -> Tensor:
        """What is at the hook point goes straight to the logit with this: features, dictionary bias and error."""
        return self.features + self.dictionary_bias + self.error

    def terms(self) -> dict[str, Tensor]:
        """All terms by name; their sum is the value, up to the rounding of the model's own norm."""
        names = ("features", "dictionary_bias", "error", "rest", "norm_bias", "unembedding_bias")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def direct_attribution(
    site: Site,
    ids: Tensor,
    metric: Metric,
    *,
    attention_mask: Tensor | None = None,
    special_tokens: bool = False,
) -> DirectAttribution:
    """Splits logits into what features contribute by the direct path.

    Of a crosscoder, which writes to several places, the last one is split.

    Args:
        ids: ``[B, T]``. attention_mask: ``[B, T]``, 1 for tokens, 0 for padding, on either side.
        metric: ``logit(...)`` or ``logit_difference(...)``, at any position.
        special_tokens: whether features of a special token count, where the metric looks at the position of one.

    Raises:
        ValueError: a model without a known unembedding; a hook point that does not write to the residual stream; a metric
            that is not linear in the logits or does not fit the model; a prompt that is longer than the context; a special
            token at the metric's position without ``special_tokens``.
    """
    model = site.model
    last = LastStream(model)
    metric.require_fit(model, len(ids))
    place = site.writes[-1]
    _require_on_stream(site, last.family)
    names = [each.name for each in (*site.reads, place)]
    found = model.read(ids, [*names, last.before, last.after], attention_mask=attention_mask)
    tokens = real_tokens(model, ids, attention_mask)
    read = last.readout(found, metric, tokens)
    _require_looked_at(site, ids, read, looked_at(model, ids, attention_mask, special_tokens))

    at = (read.prompt, read.position)
    dictionary = site.dictionary
    x = site.x_of(found)[at]  # [P, d_in]
    f = dictionary.encode(x)  # [P, d_sae]
    raw = found[place.name][at].double()
    nothing = torch.zeros_like(place(raw))

    def on_the_stream(written: Tensor) -> Tensor:
        """A vector that the dictionary writes, ``[P, d_out]``, as it is added to the stream, ``[P, d]``."""
        own = site.parts(written)[-1].double()
        return place.put(torch.zeros_like(raw), own, nothing)

    through = read.reader.to(raw.device)
    rebuilt = on_the_stream(dictionary.decode(f, x))
    bare = on_the_stream(dictionary.decode(torch.zeros_like(f), x))
    which, feature = (f != 0).nonzero(as_tuple=True)
    parts = torch.zeros(len(which), dtype=torch.float64, device=raw.device)
    for each in range(len(f)):
        mine = (which == each).nonzero()[:, 0]
        if not len(mine):
            continue
        rows = [site.parts(dictionary.direction(i, x[each]))[-1].double() for i in feature[mine].tolist()]
        zeros = raw.new_zeros(len(rows), raw.shape[-1])
        moved = place.put(zeros, torch.stack(rows), torch.zeros_like(place(zeros)))  # [n, d]
        parts[mine] = f[each, feature[mine]].double() * (moved @ through[each])

    def total(at_places: Tensor) -> Tensor:
        """From places ``[P]`` to prompts ``[B]``."""
        zeros = torch.zeros(len(ids), dtype=torch.float64)
        return zeros.index_add(0, read.prompt.cpu(), at_places.cpu())

    features = torch.zeros(len(read.prompt), dtype=torch.float64, device=raw.device).index_add(0, which, parts)
    all_of_it = (raw * through).sum(-1)
    return DirectAttribution(
        metric=metric,
        contributions=Contributions(
            site,
            len(ids),
            read.prompt[which].cpu(),
            read.position[which].cpu(),
            feature.cpu(),
            f[which, feature].cpu().double(),
            parts.cpu(),
        ),
        value=total(read.value),
        features=total(features),
        dictionary_bias=total((bare * through).sum(-1)),
        error=total(((raw - rebuilt) * through).sum(-1)),
        rest=total((read.stream * through).sum(-1) - all_of_it),
        norm_bias=total(read.norm_bias),
        unembedding_bias=total(read.unembedding_bias),
    )


def _require_on_stream(site: Site, family: Family) -> None:
    """Refuses a place from which nothing goes straight on."""
    model, name = site.model, site.writes[-1].name
    blocks = len(model.module.get_submodule(family.blocks))
    straight = {f"{family.final_norm}.input"}
    for layer in range(blocks):
        for alias in _ON_THE_STREAM:
            if alias in family.sites:
                straight.add(model.hook_point(f"blocks.{layer}.{alias}").canonical)
    if name.endswith("hook_mlp_in") or model.hook_point(name).canonical not in straight:
        raise ValueError(
            f"what is at {name} does not go straight to the logits: direct attribution needs the residual stream or what is "
            f"added to it ({', '.join(alias for alias in _ON_THE_STREAM if alias in family.sites)}); for other places use "
            "gradient_attribution"
        )


def _require_looked_at(site: Site, ids: Tensor, read: Readout, looked: Tensor) -> None:
    skipped = ~looked[read.prompt, read.position]
    if bool(skipped.any()):
        row, column = int(read.prompt[skipped][0]), int(read.position[skipped][0])
        raise ValueError(
            f"the metric looks at the special token {int(ids[row, column])} of prompt {row}, on which dictionaries are not "
            "trained as a rule; choose another position, or say special_tokens=True"
        )
