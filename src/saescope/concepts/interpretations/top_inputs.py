"""The units that activate each concept most.

::

    method = TopKInputs(concept_explainer=explainer, activation_granularity=TopKInputs.activation_granularities.WORD, k=5)
    method.interpret("all", inputs=texts)   # {concept: {text: activation} or None}
    method.hits(3, inputs=texts)            # {3: [Hit, ...]}: with the place and what stands around it

Reading a feature by its strongest examples: Bricken et al. 2023, "Towards Monosemanticity". They show the top of the
distribution only; weaker activations often mean something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saescope.concepts.interpretations.best_texts import Best, BestTexts
from saescope.concepts.interpretations.units import UnitReader, from_one
from saescope.concepts.splitting import ActivationGranularity, GranularityAggregationStrategy


@dataclass(frozen=True)
class Hit:
    """A unit on which a concept is active."""

    text: str
    activation: float
    sample: int
    """Number of its text among the inputs (of the token id with ``use_vocab``, of the word with ``use_unique_words``)."""
    position: int
    """Its first token's place in the text, padding not counted."""
    before: str = ""
    """What stands before it in its text."""
    after: str = ""


class TopKInputs:
    """For each concept the ``k`` different texts with the largest activations."""

    activation_granularities = ActivationGranularity
    aggregation_strategies = GranularityAggregationStrategy

    def __init__(
        self,
        *,
        concept_explainer: Any,
        activation_granularity: ActivationGranularity = ActivationGranularity.WORD,
        aggregation_strategy: GranularityAggregationStrategy = GranularityAggregationStrategy.MEAN,
        concept_encoding_batch_size: int = 1024,
        k: int = 5,
        use_vocab: bool = False,
        use_unique_words: bool = False,
        unique_words_kwargs: Mapping[str, Any] | None = None,
        concept_model_device: torch.device | str | None = None,
        signed: bool = False,
    ) -> None:
        """What is looked at.

        Args:
            concept_explainer: fitted.
            activation_granularity: what a unit is; not ALL_TOKENS. At CLS_TOKEN and SAMPLE it is a whole text.
            aggregation_strategy: how the tokens of a unit become one row of activations.
            concept_encoding_batch_size: rows encoded together.
            k: texts for each concept. Where fewer activate it, there are fewer.
            use_vocab: units are the tokens of the vocabulary, each alone before the model; inputs are not needed.
            use_unique_words: units are the different words of the inputs, each alone before the model.
            unique_words_kwargs: ``count_min_threshold``, ``words_to_ignore``.
            concept_model_device: where concepts are computed; where the concept model is, if None.
            signed: also negative activations count, by their size; for concepts that have them (PCA, ICA).

        Raises:
            RuntimeError: the explainer is not fitted.
            ValueError: settings that make no sense or exclude each other.
        """
        self.k, self.signed = from_one("k", k), signed
        self._reader = UnitReader(
            concept_explainer,
            activation_granularity,
            aggregation_strategy,
            rows_at_once=concept_encoding_batch_size,
            use_vocab=use_vocab,
            use_unique_words=use_unique_words,
            unique_words_kwargs=unique_words_kwargs,
            device=concept_model_device,
        )
        self.concept_explainer = concept_explainer

    def interpret(
        self,
        concepts_indices: int | Sequence[int] | Literal["all"] = "all",
        inputs: Any = None,
        latent_activations: Tensor | Mapping[str, Tensor] | None = None,
        concepts_activations: Tensor | None = None,
    ) -> dict[int, dict[str, float] | None]:
        """The best texts of concepts, strongest first, with each text's largest activation; None where there is none.

        Args:
            concepts_indices: which concepts.
            inputs: texts, token ids ``[n, l]``, or what a tokenizer gave.
            latent_activations: of the inputs' units, ``[ng, d]``, or a dictionary that holds the split point's.
            concepts_activations: of the inputs' units, ``[ng, c]``, dense or sparse. They go before latent ones.

        Raises:
            ValueError: no such concept, no inputs, or activations that are not those of the inputs' units.
        """
        found = self._best(concepts_indices, inputs, latent_activations, concepts_activations)
        return {
            concept: {each.unit.text: each.value for each in best} if best else None for concept, best in found.items()
        }

    def hits(
        self,
        concepts_indices: int | Sequence[int] | Literal["all"] = "all",
        inputs: Any = None,
        latent_activations: Tensor | Mapping[str, Tensor] | None = None,
        concepts_activations: Tensor | None = None,
        *,
        num_context: int = 5,
    ) -> dict[int, list[Hit]]:
        """As :meth:`interpret`, with the place of each text's largest activation and ``num_context`` units to either side.

        Raises:
            ValueError: as :meth:`interpret`.
        """
        if isinstance(num_context, bool) or not isinstance(num_context, int) or num_context < 0:
            raise ValueError(f"num_context is a number from 0 on, not {num_context!r}")
        inputs = self._reader.kept(inputs)
        found = self._best(concepts_indices, inputs, latent_activations, concepts_activations)
        places = {(each.unit.sample, each.unit.number) for best in found.values() for each in best}
        around = self._reader.surroundings(inputs, places, num_context)

        def hit(best: Best) -> Hit:
            unit = best.unit
            there = around.get((unit.sample, unit.number))
            return Hit(
                text=unit.text,
                activation=best.value,
                sample=unit.sample,
                position=unit.position,
                before=there.before if there else "",
                after=there.after if there else "",
            )

        return {concept: [hit(each) for each in best] for concept, best in found.items()}

    def _best(self, asked: Any, inputs: Any, latent: Any, concepts: Tensor | None) -> dict[int, list[Best]]:
        numbers = self._reader.concepts(asked)
        best = BestTexts(len(numbers), self.k, signed=self.signed)
        for rows in self._reader.read(inputs, latent, concepts):
            best.update(rows.units, rows.codes[:, numbers])
        return dict(zip(numbers, best.best(), strict=True))
