"""What all dictionaries at one place of a model are measured with: text, baselines, a sample of activations, true labels.

Each part is made when it is first asked for, and once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from saescope.activations import TokenWindows
from saescope.activations.python_syntax.windows import is_python
from saescope.evaluation.absorption.study import Hierarchy
from saescope.evaluation.concepts.directions import ConceptDirections, concept_directions
from saescope.evaluation.core.baselines import Baselines
from saescope.evaluation.kept_results import digest_of_tensors, digest_of_windows, key_of
from saescope.evaluation.probing.python_labels import HIERARCHIES, hierarchy_labels, python_labels
from saescope.evaluation.sample import TokenLabels, TokenSample, read_sample
from saescope.evaluation.sites import Sites

if TYPE_CHECKING:
    from saescope.models import LanguageModel

Progress = Callable[[str, int, int], None]
"""Called with (what is done, steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How much text is measured on."""

    num_tokens: int | None = 120_000  # of the core study; None: all of the text
    num_sample_tokens: int | None = 60_000  # of studies on stored activations and labels
    batch_size_windows: int = 16
    seed: int = 0


class Bench:
    """A model, a place in it and held-out text.

    Args:
        windows: held-out text.
        sites: where the dictionaries read and write.
        labels: true labels of the sample's tokens, made from the sample; None: those of Python's own tokenizer and parser
            where all of the text is Python.
        on_progress: told about the parts that are made on the way.
    """

    def __init__(
        self,
        model: LanguageModel,
        windows: TokenWindows,
        sites: Sites,
        config: BenchConfig | None = None,
        *,
        labels: Callable[[TokenSample], TokenLabels] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self.model, self.windows, self.sites = model, windows, sites
        self.config = config or BenchConfig()
        self._labels, self.on_progress = labels, on_progress

    @cached_property
    def baselines(self) -> Baselines:
        """Mean activation and the losses of ablations."""
        return Baselines.measure(
            self.model,
            self.windows,
            self.sites,
            num_tokens=self.config.num_tokens,
            batch_size_windows=self.config.batch_size_windows,
            seed=self.config.seed,
            on_progress=self._telling("measuring ablations"),
        )

    @cached_property
    def sample(self) -> TokenSample:
        """Activations of tokens spread evenly over the text."""
        elsewhere = self.sites.writes != self.sites.reads
        return read_sample(
            self.model,
            self.windows,
            self.sites.reads,
            self.sites.writes if elsewhere else (),
            num_tokens=self.config.num_sample_tokens,
            batch_size_windows=self.config.batch_size_windows,
            on_progress=self._telling("reading activations"),
        )

    @cached_property
    def labels(self) -> TokenLabels:
        """True labels of the sample's tokens.

        Raises:
            ValueError: none were given, and the text is not Python.
        """
        if self._labels is not None:
            found = self._labels(self.sample)
            found.check(self.sample)
            return found
        if not is_python(self.windows) or self.model.tokenizer is None:
            raise ValueError(
                "this study needs true labels of tokens, which saescope knows for Python source alone; give labels of your "
                "own, or evaluate on Python source"
            )
        return python_labels(self.sample, self.windows, self.model.tokenizer)

    @cached_property
    def hierarchies(self) -> tuple[TokenLabels, list[Hierarchy]]:
        """Labels of which some are parts of others, and which are.

        Raises:
            ValueError: the text is not Python.
        """
        if not is_python(self.windows) or self.model.tokenizer is None:
            raise ValueError(
                "this study needs labels that are parts of others, which saescope knows for Python source alone"
            )
        labels = hierarchy_labels(self.sample, self.windows, self.model.tokenizer)
        children: dict[str, list[str]] = {}
        for parent, child in HIERARCHIES:
            children.setdefault(parent, []).append(child)
        return labels, [Hierarchy(parent, tuple(names)) for parent, names in children.items()]

    @cached_property
    def directions(self) -> tuple[ConceptDirections, ConceptDirections]:
        """Directions of the labels in the activations, and of shuffled labels: the same for every dictionary."""
        seed = self.config.seed
        return concept_directions(self.sample, self.labels), concept_directions(
            self.sample, self.labels, shuffle_seed=seed
        )

    @cached_property
    def digest(self) -> str:
        """A hash of model, text, places and amounts."""
        model = digest_of_tensors(self.model.module.state_dict().items())
        return key_of(model, digest_of_windows(self.windows), self.sites.reads, self.sites.writes, self.config)

    def _telling(self, what: str) -> Callable[[int, int], None] | None:
        told = self.on_progress
        return None if told is None else lambda done, total: told(what, done, total)
