"""What each concept does to the outputs: gradients of logits by concepts, through the model split at one place.

Notation: the model is ``f = g after h``, split where the activations ``A = h(x)`` are; ``enc`` and ``dec`` are the concept
model's two halves. The units of a text (tokens, words, ...) are selected and aggregated to ``a``, and

    C    = enc(a)                                        concepts, where gradients are taken
    A^   = A, with unfold(dec(C)) at the selected positions
    L    = targets of g(A^)
    G[tau, u, j] = dL[tau] / dC[u, j]      (times C[u, j] unless `concepts_x_gradients` is off)

With ``error_term=True`` what the concepts leave out stays in the model as a constant,

    A^   = A + unfold(dec(C)) - constant(unfold(dec(C)))

so that ``A^ = A`` exactly and gradients are those of the plain model at its own activations. Without it (the default, as in
the API that this one follows) the model runs on the reconstruction, and its logits are others. All positions that are not
selected keep their activations either way.

Gradient times activation is the first-order estimate of what removing a concept does (Shrikumar et al. 2017, arXiv
1704.02685; for features of a spliced model Marks et al. 2024, arXiv 2403.19647). The split with concepts in between is that
of CRAFT (Fel et al. 2023, arXiv 2211.10154) and COCKATIEL (Jourdan et al. 2023, arXiv 2305.06754).

Shapes: ``n`` texts of a batch, ``l`` tokens with padding, ``d`` width, ``g`` units of a text, ``ng`` those of a batch,
``c`` concepts, ``t`` targets, ``V`` vocabulary, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saescope.concepts.splitting import ActivationGranularity, GranularityAggregationStrategy

if TYPE_CHECKING:
    from saescope.concepts.splitting import Selection

Targets: TypeAlias = Sequence[int] | Sequence[tuple[int, int]] | Callable[[Tensor], Tensor] | None

# so many numbers of one layer are held when several targets are differentiated together: 256 MB in float32
_NUMBERS_AT_ONCE = 1 << 26
_WIDEST_LAYER = 8  # times the split point's width: an MLP's hidden layer, and its parts in the backward pass


def concept_output_gradient(
    explainer: Any,
    inputs: Any,
    targets: Targets = None,
    split_point: str | None = None,
    activation_granularity: ActivationGranularity = ActivationGranularity.TOKEN,
    aggregation_strategy: GranularityAggregationStrategy = GranularityAggregationStrategy.MEAN,
    concepts_x_gradients: bool = True,
    normalization: bool = True,
    tqdm_bar: bool = False,
    batch_size: int | None = None,
    *,
    error_term: bool = False,
    padded_positions: bool = False,
    targets_at_once: int | None = None,
) -> list[Tensor]:
    """Gradients of outputs by concepts, for every text.

    What comes out for a text does not depend on its batch-mates (but with ``padded_positions``). Classifiers give logits
    ``[n, K]``; models with logits at each token ``[n, l, V]``, and there a text's positions are those of its own tokens,
    padding left out.

    Args:
        explainer: fitted, with ``encode_activations`` and ``decode_concepts``.
        inputs: texts, token ids ``[n, l]``, or what a tokenizer gave.
        targets: which outputs.

            * Classifiers: class numbers; None for all.
            * Logits at each token: pairs ``(position, token id)``, the position counted from the end of the text (-1 is
              its last token); None for the largest logit at each position of the text, in order.
            * Either: a function of one text's logits, ``[K]`` or ``[its tokens, V]``, giving the targets ``[t]``.
        split_point: must be the explainer's, whose it is by default.
        activation_granularity: the units; not SAMPLE, which can not be written back.
        aggregation_strategy: how a unit's tokens become one row, and how a row becomes tokens again.
        concepts_x_gradients: multiply each gradient by its concept's activation.
        normalization: divide by the sum of absolute values over ``g`` and ``c``, for each text and target; where that sum is
            0, so is the result.
        tqdm_bar: show progress.
        batch_size: texts at once; the split model's by default.
        error_term: keep what the concepts leave out as a constant. Recommended; off by default for parity.
        padded_positions: for scripts written for interpreto: targets are numbers of positions in the padded batch (all of
            them by default), each standing for the largest logit there. What a number means then depends on the batch.
        targets_at_once: how many targets share a backward pass; by default as many as fit. The results are the same.

    Returns:
        for each text a tensor ``[t, g, c]`` on the CPU.

    Raises:
        ValueError: SAMPLE, another split point, a decoder without gradients, or targets that do not fit the outputs.
        RuntimeError: the explainer is not fitted.
    """
    granularity = ActivationGranularity(activation_granularity)
    strategy = GranularityAggregationStrategy(aggregation_strategy)
    model = explainer.model_with_split_points
    split_point = _split_point(explainer, split_point)
    _check(explainer, granularity, targets, batch_size, targets_at_once)
    size = batch_size or model.batch_size
    results: list[Tensor] = []
    for batch in _with_progress(model.batches(inputs, size), tqdm_bar):
        selection = model.selection(batch, granularity)
        concepts, logits, size_of_layer = _spliced(explainer, selection, split_point, strategy, error_term)
        with torch.enable_grad():
            goals = _goals(logits, selection, targets, padded_positions)
            at_once = targets_at_once or max(1, _NUMBERS_AT_ONCE // max(logits.numel(), size_of_layer))
            gradients = _gradients(goals, concepts, at_once)  # [most targets, ng, c]
        if concepts_x_gradients:
            gradients = gradients * concepts.detach()
        parts = gradients.split(list(selection.counts), dim=1)
        results += [
            (_normalized(part[: len(goal)]) if normalization else part[: len(goal)]).cpu()
            for part, goal in zip(parts, goals, strict=True)
        ]
    return results


def _spliced(
    explainer: Any,
    selection: Selection,
    split_point: str,
    strategy: GranularityAggregationStrategy,
    error_term: bool,
) -> tuple[Tensor, Tensor, int]:
    """Run a batch through its concepts: those, as the leaf that gradients go to ``[ng, c]``; the logits; and about how many
    numbers the widest layer has.
    """
    leaf: list[Tensor] = []
    sizes: list[int] = []

    def through_concepts(activations: Tensor) -> Tensor:
        activations = activations.detach()
        rows = selection.gather(activations, strategy)
        with torch.no_grad():
            codes = explainer.encode_activations(rows)
        concepts = codes.detach().clone().requires_grad_()
        leaf.append(concepts)
        sizes.append(activations.numel() * _WIDEST_LAYER)
        decoded = explainer.decode_concepts(concepts).to(activations.device)
        rebuilt = selection.scatter(activations, decoded, strategy)
        return activations + (rebuilt - rebuilt.detach()) if error_term else rebuilt

    with torch.enable_grad():
        logits = explainer.model_with_split_points.split_forward(selection.encoding, split_point, through_concepts)
    return leaf[0], logits, sizes[0]


def _goals(logits: Tensor, selection: Selection, targets: Targets, padded_positions: bool) -> list[Tensor]:
    """What is differentiated: for each text of the batch its targets, ``[t]``."""
    if logits.dim() == 2:
        if padded_positions:
            raise ValueError(
                "padded_positions is for models with logits at each token; this one gives one row for a text"
            )
        return [_of_classes(own, targets) for own in logits]
    mask = selection.encoding["attention_mask"].to(logits.device, torch.bool)
    if logits.dim() != 3 or logits.shape[:2] != mask.shape:
        raise ValueError(
            f"logits {list(logits.shape)} belong neither to texts [n, K] nor to their tokens [n, l, V] with n and l "
            f"{list(mask.shape)}"
        )
    if padded_positions:
        return [_of_padded_positions(own, targets) for own in logits]
    return [_of_tokens(own[real], targets) for own, real in zip(logits, mask, strict=True)]


def _of_classes(logits: Tensor, targets: Targets) -> Tensor:
    """Targets ``[t]`` of one text's classes ``[K]``."""
    if callable(targets):
        return _called(targets, logits)
    if targets is None:
        return logits
    wrong = [each for each in targets if not _is_int(each) or not 0 <= each < len(logits)]  # type: ignore[operator]
    if wrong:
        raise ValueError(f"targets of this model are classes from 0 to {len(logits) - 1}, not {wrong[0]!r}")
    return logits[list(targets)]


def _of_tokens(logits: Tensor, targets: Targets) -> Tensor:
    """Targets ``[t]`` of one text's own tokens ``[its tokens, V]``."""
    if callable(targets):
        return _called(targets, logits)
    if targets is None:
        return logits.max(-1).values
    num_tokens, size = logits.shape
    for each in targets:
        if _is_int(each):
            raise ValueError(
                f"a target of a model with logits at each token is a pair (position from the end, token id), such as "
                f"(-1, {each}), or a function of the logits; padded_positions=True takes {each} as a position in the "
                "padded batch"
            )
        if not (isinstance(each, tuple | list) and len(each) == 2 and all(map(_is_int, each))):
            raise ValueError(f"a target is a pair (position from the end, token id), not {each!r}")
        position, token = each
        if not -num_tokens <= position < 0:
            raise ValueError(
                f"positions are counted from the end, from -1 to {-num_tokens} in a text of {num_tokens} tokens; "
                f"{position} is none"
            )
        if not 0 <= token < size:
            raise ValueError(f"token ids go from 0 to {size - 1}; the target {each} has {token}")
    positions, tokens = zip(*targets, strict=True)
    return logits[list(positions), list(tokens)]


def _of_padded_positions(logits: Tensor, targets: Targets) -> Tensor:
    """The largest logit ``[t]`` at places of the padded batch ``[l, V]``."""
    largest = logits.max(-1).values
    if targets is None:
        return largest
    wrong = [each for each in targets if not _is_int(each) or not 0 <= each < len(largest)]  # type: ignore
    if wrong:
        raise ValueError(f"with padded_positions targets go from 0 to {len(largest) - 1} here, not {wrong[0]!r}")
    return largest[list(targets)]  # type: ignore[arg-type]


def _called(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    found = function(logits)
    if not isinstance(found, Tensor) or found.dim() > 1 or found.numel() == 0 or not found.is_floating_point():
        shown = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the function of the logits must give a row of numbers [t], computed from them; not {shown}")
    return found.reshape(-1)


def _gradients(goals: list[Tensor], concepts: Tensor, at_once: int) -> Tensor:
    """``[t, ng, c]``: row tau has the gradients of every text's target tau.

    Texts do not act on each other, so one backward pass serves all of a batch; and a pass is repeated for several targets
    as one vectorised product, where the memory and the model's operations allow it.
    """
    sums = pad_sequence(goals, batch_first=True).sum(0)  # [t]
    num_targets = len(sums)
    if not sums.requires_grad:
        return concepts.new_zeros((num_targets, *concepts.shape))
    rows: list[Tensor] = []
    while len(rows) < num_targets:
        some = sums[len(rows) : len(rows) + at_once]
        try:
            rows += _backward(some, concepts)
        except RuntimeError:  # an operation that can not be vectorised, or too little memory
            if at_once == 1:
                raise
            at_once = 1
    return torch.stack(rows)


def _backward(some: Tensor, concepts: Tensor) -> Sequence[Tensor]:
    if len(some) == 1:
        found = torch.autograd.grad(some[0], concepts, retain_graph=True, materialize_grads=True)[0]
        return [found]
    each = torch.eye(len(some), dtype=some.dtype, device=some.device)
    together = torch.autograd.grad(
        some, concepts, each, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )[0]
    return list(together)


def _normalized(gradients: Tensor) -> Tensor:
    """Each target's ``[g, c]`` divided by the sum of its absolute values; zeros stay zeros."""
    sums = gradients.abs().sum((1, 2), keepdim=True)
    return torch.where(sums == 0, 0, gradients / sums)  # what is not a number is not hidden


def _split_point(explainer: Any, asked: str | None) -> str:
    own = explainer.split_point
    if asked is not None and asked != own:
        raise ValueError(f"the explainer's concepts are those of {own!r}; gradients can not be taken at {asked!r}")
    return str(own)


def _check(
    explainer: Any,
    granularity: ActivationGranularity,
    targets: Targets,
    batch_size: int | None,
    targets_at_once: int | None,
) -> None:
    if granularity is ActivationGranularity.SAMPLE:
        raise ValueError("one row for a whole text (SAMPLE) can not be written back into the model; take TOKEN or WORD")
    if not explainer.has_differentiable_concept_decoder:
        raise ValueError(
            f"the decoder of {type(explainer).__name__} has no gradients, so that there are none of concepts"
        )
    if not explainer.is_fitted:
        raise RuntimeError("the explainer is not fitted: call fit(activations) first")
    if targets is not None and not callable(targets):
        if isinstance(targets, str) or not isinstance(targets, Iterable):
            raise ValueError(f"targets are a list, a function of the logits, or None; not {targets!r}")
        if not len(targets):
            raise ValueError("there are no targets; name at least one, or give None")
    for name, value in (("batch_size", batch_size), ("targets_at_once", targets_at_once)):
        if value is not None and (not _is_int(value) or value < 1):
            raise ValueError(f"{name} is a number from 1 on, not {value!r}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _with_progress(batches: Iterable[Any], shown: bool) -> Iterable[Any]:
    if not shown:
        return batches
    from rich.console import Console  # only where it is drawn
    from rich.progress import track

    every = list(batches)
    return track(every, "Concept gradients", total=len(every), console=Console(stderr=True))
