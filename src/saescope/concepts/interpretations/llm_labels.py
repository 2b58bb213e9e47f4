"""Labels for concepts in a few words, by a language model that is shown examples.

::

    method = LLMLabels(concept_explainer=explainer, llm_interface=client, activation_granularity=WORD, k_context=5)
    labels = method.interpret("all", inputs=texts)      # {concept: label or None}
    scores = method.score(labels, inputs=other_texts)   # {concept: LabelScore or None}

``client`` is anything with ``generate(list of (role, text)) -> str or None``; `OpenAILLM` is one. A concept that is nowhere
active gets no label and costs nothing. A label is a guess until it is scored: :meth:`LLMLabels.score` never uses an example
that the label was made from.

Sources: Bills et al. 2023, "Language models can explain neurons in language models"; Paulo et al. 2024, arXiv 2410.13928.

Shapes: ``ng`` units, ``c`` concepts, ``e`` places where one is active.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saescope.concepts.interpretations import prompts
from saescope.concepts.interpretations.clients import LLMInterface, Remembering
from saescope.concepts.interpretations.sampling import SamplingMethod
from saescope.concepts.interpretations.scoring import LabelScore, scored
from saescope.concepts.interpretations.units import Unit, UnitReader, from_one
from saescope.concepts.splitting import ActivationGranularity, GranularityAggregationStrategy


class LLMLabels:
    """Asks a language model for each concept's label."""

    activation_granularities = ActivationGranularity
    aggregation_strategies = GranularityAggregationStrategy
    sampling_methods = SamplingMethod

    def __init__(
        self,
        *,
        concept_explainer: Any,
        llm_interface: LLMInterface,
        activation_granularity: ActivationGranularity = ActivationGranularity.TOKEN,
        aggregation_strategy: GranularityAggregationStrategy = GranularityAggregationStrategy.MEAN,
        concept_encoding_batch_size: int = 1024,
        sampling_method: SamplingMethod = SamplingMethod.TOP,
        k_examples: int = 30,
        k_context: int = 0,
        k_quantile: int = 5,
        use_vocab: bool = False,
        use_unique_words: bool = False,
        unique_words_kwargs: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        concept_model_device: torch.device | str | None = None,
        cache: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        """What is shown, and to whom.

        Args:
            concept_explainer: fitted.
            llm_interface: who is asked.
            activation_granularity: what an example is; not ALL_TOKENS.
            aggregation_strategy: how the tokens of a unit become one row of activations.
            concept_encoding_batch_size: rows encoded together.
            sampling_method: TOP, RANDOM or QUANTILE.
            k_examples: examples for each concept, or as many as there are. Without context equal texts are one example.
            k_context: units shown to either side; 5 to 10 are good for tokens and words. 0, with a warning, where units
                stand alone (CLS_TOKEN, SAMPLE, vocabulary, unique words).
            k_quantile: slices of QUANTILE.
            use_vocab: examples are the tokens of the vocabulary, each alone before the model.
            use_unique_words: examples are the different words of the inputs, each alone before the model.
            unique_words_kwargs: ``count_min_threshold``, ``words_to_ignore``.
            system_prompt: instead of the one in ``prompts.py``.
            concept_model_device: where concepts are computed; where the concept model is, if None.
            cache: folder where answers are kept; in memory they always are.
            seed: of the choice of examples.

        Raises:
            RuntimeError: the explainer is not fitted.
            ValueError: settings that make no sense or exclude each other, or a client that can not be asked.
        """
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
        self.concept_explainer, self.llm_interface = concept_explainer, llm_interface
        self.sampling_method = SamplingMethod(sampling_method)
        self.k_examples, self.k_quantile = from_one("k_examples", k_examples), from_one("k_quantile", k_quantile)
        if isinstance(k_context, bool) or not isinstance(k_context, int) or k_context < 0:
            raise ValueError(f"k_context is a number from 0 on, not {k_context!r}")
        if self.sampling_method is SamplingMethod.QUANTILE and k_examples < k_quantile:
            raise ValueError(f"{k_examples} examples can not be spread over {k_quantile} slices; raise k_examples")
        if k_context and not self._reader.has_context:
            warnings.warn("these units stand alone, so that there is no context to show: k_context is 0", stacklevel=2)
            k_context = 0
        self.k_context, self.seed = k_context, seed
        self.system_prompt = system_prompt or (prompts.LABEL_IN_CONTEXT if k_context else prompts.LABEL_ALONE)
        self._answers = Remembering(llm_interface, cache)
        self._seen: dict[int, set[str]] = {}  # what was shown to label each concept

    def interpret(
        self,
        concepts_indices: int | Sequence[int] | Literal["all"] = "all",
        inputs: Any = None,
        latent_activations: Tensor | Mapping[str, Tensor] | None = None,
        concepts_activations: Tensor | None = None,
    ) -> dict[int, str | None]:
        """A label for each concept; None where it is active nowhere, or where the client gives none.

        Args:
            concepts_indices: which concepts.
            inputs: texts, token ids ``[n, l]``, or what a tokenizer gave.
            latent_activations: of the inputs' units, ``[ng, d]``, or a dictionary that holds the split point's.
            concepts_activations: of the inputs' units, ``[ng, c]``, dense or sparse. They go before latent ones.

        Raises:
            ValueError: no such concept, no inputs, or activations that are not those of the inputs' units.
        """
        numbers, inputs = self._reader.concepts(concepts_indices), self._reader.kept(inputs)
        read = self._collect(numbers, inputs, latent_activations, concepts_activations)
        chosen: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # rows, and strengths from 0 to 10
        for concept in numbers:
            rows, values = read.active(concept)
            if not self.k_context:
                rows, values = _one_of_each_text(rows, values, read.units)
            places = self.sampling_method.choose(
                values, self.k_examples, num_slices=self.k_quantile, seed=self.seed + concept
            )
            largest = values.max(initial=0)
            chosen[concept] = rows[places], np.rint(10 * values[places] / largest).astype(int)
        texts = self._shown(read.units, inputs, [int(row) for rows, _ in chosen.values() for row in rows])
        labels: dict[int, str | None] = {}
        for concept, (rows, strengths) in chosen.items():
            if not len(rows):
                labels[concept] = None
                continue
            examples = [texts[row] for row in rows.tolist()]
            answer = self._answers.generate(prompts.label_prompt(self.system_prompt, examples, strengths.tolist()))
            self._seen.setdefault(concept, set()).update(examples)
            labels[concept] = prompts.read_label(answer)
        return labels

    def score(
        self,
        labels: Mapping[int, str | None],
        inputs: Any = None,
        latent_activations: Tensor | Mapping[str, Tensor] | None = None,
        concepts_activations: Tensor | None = None,
        *,
        num_examples: int = 20,
    ) -> dict[int, LabelScore | None]:
        """How well each label tells examples of its concept from others (see ``scoring.py``).

        Half of the examples are units where the concept is active, half are units where it is not, in random order. Examples
        that this object has shown to get the concept's label are left out; texts that the labels were not made from are
        better still.

        Args:
            labels: of concepts, as :meth:`interpret` gives them.
            inputs, latent_activations, concepts_activations: as for :meth:`interpret`.
            num_examples: for each concept, at most.

        Returns:
            for each concept its score; None without a label, without held-out examples of both kinds, or if the answer can
            not be read.

        Raises:
            ValueError: as :meth:`interpret`, or fewer than 2 examples.
        """
        if from_one("num_examples", num_examples) < 2:
            raise ValueError("a label is scored on 2 examples or more")
        numbers, inputs = self._reader.concepts(list(labels)), self._reader.kept(inputs)
        labelled = [concept for concept in numbers if labels[concept] is not None]
        read = self._collect(labelled, inputs, latent_activations, concepts_activations)
        drawn = {concept: self._draw(read, concept, num_examples) for concept in labelled}
        texts = self._shown(read.units, inputs, [row for rows in drawn.values() for row, _ in rows])
        scores: dict[int, LabelScore | None] = dict.fromkeys(numbers)
        for concept, rows in drawn.items():
            examples = self._held_out(concept, [(texts[row], active) for row, active in rows], num_examples // 2)
            if examples is None:
                continue
            label = labels[concept]
            assert label is not None
            answer = self._answers.generate(prompts.judge_prompt(label, [text for text, _ in examples]))
            named = prompts.read_choice(answer, len(examples))
            scores[concept] = None if named is None else scored([active for _, active in examples], named)
        return scores

    def _draw(self, read: _Read, concept: int, num_examples: int) -> list[tuple[int, bool]]:
        """Rows in random order with whether the concept is active there: more than needed, as some will not be held out."""
        rng = np.random.default_rng([self.seed, concept])
        active, _ = read.active(concept)
        silent = np.setdiff1d(np.arange(len(read.units)), active)
        if not self.k_context:  # a text that is active somewhere is no example of silence
            texts = {read.units[row].text for row in active.tolist()}
            silent = np.array([row for row in silent.tolist() if read.units[row].text not in texts], dtype=np.int64)
        size = num_examples + len(self._seen.get(concept, ()))
        drawn = [
            (int(row), is_active)
            for rows, is_active in ((active, True), (silent, False))
            for row in rng.permutation(rows)[: 4 * size]
        ]
        return [drawn[place] for place in rng.permutation(len(drawn))]

    def _held_out(self, concept: int, drawn: Sequence[tuple[str, bool]], share: int) -> list[tuple[str, bool]] | None:
        """The same number of both kinds, at most ``share``, each text once and none that the label was made from."""
        used, kept = set(self._seen.get(concept, ())), list[tuple[str, bool]]()
        for text, active in drawn:
            if text not in used:
                used.add(text)
                kept.append((text, active))
        num_active = sum(active for _, active in kept)
        each = min(share, num_active, len(kept) - num_active)
        if not each:
            return None
        room = {True: each, False: each}
        examples: list[tuple[str, bool]] = []
        for text, active in kept:
            if room[active]:
                room[active] -= 1
                examples.append((text, active))
        return examples

    def _collect(self, numbers: list[int], inputs: Any, latent: Any, concepts: Tensor | None) -> _Read:
        units: list[Unit] = []
        rows, columns, values = [], [], []
        for part in self._reader.read(inputs, latent, concepts):
            own = part.codes[:, numbers]
            at = (own > 0).nonzero(as_tuple=True)
            rows.append(at[0].numpy() + len(units))
            columns.append(at[1].numpy())
            values.append(own[at].double().numpy())
            units += part.units
        none = np.zeros(0, dtype=np.int64)
        row, column = np.concatenate([none, *rows]), np.concatenate([none, *columns])
        order = np.lexsort((row, column))
        starts = np.searchsorted(column[order], np.arange(len(numbers) + 1))
        value = np.concatenate([np.zeros(0), *values])[order]
        return _Read(units, {number: place for place, number in enumerate(numbers)}, row[order], value, starts)

    def _shown(self, units: Sequence[Unit], inputs: Any, rows: Sequence[int]) -> dict[int, str]:
        """The text of each row as a prompt shows it."""
        if not self.k_context:
            return {row: prompts.shown(units[row].text) for row in rows}
        places = {(units[row].sample, units[row].number) for row in rows}
        around = self._reader.surroundings(inputs, places, self.k_context)
        return {row: prompts.shown(around[units[row].sample, units[row].number]) for row in rows}


@dataclass(frozen=True, eq=False)
class _Read:
    """All units, and where concepts are active, concept by concept."""

    units: list[Unit]
    places: dict[int, int]  # of a concept's number in what follows
    rows: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    def active(self, concept: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows ``[e]`` in order and activations there."""
        place = self.places[concept]
        part = slice(self.starts[place], self.starts[place + 1])
        return self.rows[part], self.values[part]


def _one_of_each_text(rows: np.ndarray, values: np.ndarray, units: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray]:
    """Of equal texts the one with the largest activation, in the order of the rows."""
    best: dict[str, int] = {}
    for place in np.lexsort((rows, -values)).tolist():
        best.setdefault(units[int(rows[place])].text, place)
    kept = np.sort(np.array(list(best.values()), dtype=np.int64))
    return rows[kept], values[kept]
