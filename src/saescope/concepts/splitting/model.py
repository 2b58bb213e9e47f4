"""A model split at named modules: the activations there, unit by unit, and the rest of the model run on changed ones.

::

    model = ModelWithSplitPoints(module, split_points="transformer.h.1", tokenizer=tokenizer, batch_size=8)
    activations = model.get_activations(texts, ModelWithSplitPoints.activation_granularities.WORD)
    rows = model.get_split_activations(activations)  # [ng, d]

The names and arguments are those of interpreto 0.4 (``interpreto.ModelWithSplitPoints``); ``differences.py`` lists where
the results differ and why. Any Hugging Face model will do: causal and masked language models, classification models with
an encoder or a decoder.

Shapes: ``n`` texts, ``l`` tokens, padding counted, ``d`` width, ``g`` units of one text, ``ng`` of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from saescope.concepts.splitting import loading
from saescope.concepts.splitting import split_points as names
from saescope.concepts.splitting.aggregation import GranularityAggregationStrategy as Strategy
from saescope.concepts.splitting.encoding import Encoder, batches, num_texts
from saescope.concepts.splitting.granularity import ActivationGranularity as Granularity
from saescope.concepts.splitting.running import Runner
from saescope.concepts.splitting.selecting import Selector
from saescope.concepts.splitting.selection import Selection

PREDICTIONS = "predictions"


class ModelWithSplitPoints:
    """A Hugging Face model and its tokenizer, with places where it is split. Neither is changed.

    Attributes:
        model: the Hugging Face module.
        tokenizer: its tokenizer.
        split_points: module paths, in the order in which the model comes to their outputs.
        batch_size: texts in one pass.
    """

    activation_granularities: ClassVar[type[Granularity]] = Granularity
    aggregation_strategies: ClassVar[type[Strategy]] = Strategy

    def __init__(
        self,
        model_or_repo_id: Any,
        split_points: str | int | Iterable[str | int],
        *args: Any,
        automodel: Any = None,
        tokenizer: Any = None,
        config: Any = None,
        batch_size: int = 1,
        device_map: Any = None,
        output_tuple_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Loads or takes a model, and runs it on two tokens to see what the split points give.

        Args:
            model_or_repo_id: a hub id, a folder or ``"bundled"`` (with ``automodel``), a Hugging Face model (with
                ``tokenizer``), or a saescope ``LanguageModel``.
            split_points: one or several: a dotted module path, or a number n for the one module whose path ends in
                ``.n``. Activations are the module's output.
            *args: for ``automodel.from_pretrained``.
            automodel: the class of transformers to load an id with, e.g. ``AutoModelForSequenceClassification``.
            tokenizer: of the model; for an id, the one that is saved with it by default.
            config: for ``automodel.from_pretrained``.
            batch_size: texts in one pass.
            device_map: a device; for an id also what ``from_pretrained`` takes.
            output_tuple_index: which entry of a split module's tuple has the activations; by default the first tensor of
                three dimensions.
            **kwargs: for ``automodel.from_pretrained``.

        Raises:
            InitializationError: a ValueError; ``automodel`` or ``tokenizer`` is missing, or loading failed.
            TypeError: no model, or a split point that is neither path nor number.
            ValueError: an unknown or ambiguous split point, or one without a vector per token.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is a number of texts from 1 up, not {batch_size!r}")
        parts = loading.parts(
            model_or_repo_id,
            *args,
            automodel=automodel,
            tokenizer=tokenizer,
            config=config,
            device_map=device_map,
            **kwargs,
        )
        self.model: nn.Module = parts.module
        self.tokenizer: Any = parts.tokenizer
        self.batch_size = batch_size
        self._runner = Runner(parts.module, parts.lock, output_tuple_index)
        self._encoder = Encoder(parts.module, parts.tokenizer)
        self._selector = Selector(parts.tokenizer)
        self._output_tuple_index = output_tuple_index
        self.split_points = split_points

    @property
    def split_points(self) -> list[str]:
        """Module paths, in the order in which the model comes to their outputs; can be set."""
        return list(self._shapes)

    @split_points.setter
    def split_points(self, given: str | int | Iterable[str | int]) -> None:
        self._shapes = self._runner.in_order(names.resolved(self.model, given))

    @property
    def output_tuple_index(self) -> int | None:
        """The argument; else where the first split point that gives a tuple has its activations; None without one."""
        if self._output_tuple_index is not None:
            return self._output_tuple_index
        found = (self._runner.index_of.get(point) for point in self._shapes)
        return next((index for index in found if index is not None), None)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return self._runner.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's parameters' dtype."""
        return next(self.model.parameters()).dtype

    def to(self, device: str | torch.device) -> ModelWithSplitPoints:
        """Moves the model, the user's object itself."""
        self.model.to(device)
        return self

    def get_activations(
        self,
        inputs: Any,
        activation_granularity: Granularity | str = Granularity.TOKEN,
        aggregation_strategy: Strategy | str = Strategy.MEAN,
        pad_side: str | None = None,
        tqdm_bar: bool = False,
        include_predicted_classes: bool = False,
        flatten_activations: bool = True,
        model_forward_kwargs: Mapping[str, Any] | None = None,
        *,
        include_padding: bool = False,
    ) -> dict[str, Any]:
        """Activations at every split point, one row per unit, batch by batch; without gradient.

        Args:
            inputs: a list of strings, a tensor of token ids ``[n, l]`` (``CLS_TOKEN`` and ``ALL_TOKENS`` alone), or a
                tokenizer's output. Strings are cut to what tokenizer and model allow.
            activation_granularity: what a unit is.
            aggregation_strategy: how the tokens of a unit become one row.
            pad_side: ``"left"`` or ``"right"``; by default left for causal language models, else right. Results do not
                depend on it.
            tqdm_bar: whether to show progress.
            include_predicted_classes: also the classes of largest logit, under ``"predictions"``; for classification.
            flatten_activations: whether rows of all texts come as one tensor; else as a list with a tensor per text.
            model_forward_kwargs: for the model's forward, in every batch.
            include_padding: with ``ALL_TOKENS``, rows for padding too.

        Returns:
            Split point -> ``[ng, d]``, or n tensors ``[g, d]``; on the CPU, float64 for a float64 model, else float32.
            ``"predictions"`` -> ``[ng]``, each text's class once per unit; ``[n]`` where not flattened.

        Raises:
            ValueError: inputs, granularity and tokenizer that do not go together; classes of a model that has none.
            TypeError: inputs of another form.
        """
        granularity, strategy = Granularity(activation_granularity), Strategy(aggregation_strategy)
        rows: dict[str, list[Tensor]] = {point: [] for point in self.split_points}
        counts: list[int] = []
        classes: list[Tensor] = []
        for batch in self._tracked(inputs, tqdm_bar):
            chosen = self._select(batch, granularity, pad_side, include_padding)
            with torch.no_grad():
                found, logits = self._runner.read(
                    chosen.encoding,
                    self.split_points,
                    with_logits=include_predicted_classes,
                    **(model_forward_kwargs or {}),
                )
                for point, activations in found.items():
                    unit_rows = chosen.gather(activations, strategy)
                    wide = torch.promote_types(unit_rows.dtype, torch.float32)
                    rows[point].append(unit_rows.to("cpu", wide))
            counts += chosen.counts
            if include_predicted_classes:
                classes.append(self._classes(logits))
        flat = {point: torch.cat(each) for point, each in rows.items()}
        activations_of: dict[str, Any] = flat
        if not flatten_activations:
            activations_of = {point: list(each.split(counts)) for point, each in flat.items()}
        if include_predicted_classes:
            per_text = torch.cat(classes)
            activations_of[PREDICTIONS] = (
                per_text.repeat_interleave(torch.tensor(counts)) if flatten_activations else per_text
            )
        return activations_of

    def get_split_activations(self, activations: Mapping[str, Any], split_point: str | None = None) -> Any:
        """One split point's entry of what :meth:`get_activations` gave; without a name, the model's one split point.

        Raises:
            TypeError: not a dictionary.
            ValueError: no name where there are several split points, or a name that is not there.
        """
        if not isinstance(activations, Mapping):
            raise TypeError(
                f"activations are a dictionary from split points to tensors, as get_activations gives, not "
                f"{type(activations).__name__}"
            )
        if split_point is None:
            if len(self.split_points) != 1:
                raise ValueError(f"say which split point is meant: {', '.join(self.split_points)}")
            split_point = self.split_points[0]
        if split_point not in activations:
            held = ", ".join(map(str, activations)) or "nothing"
            raise ValueError(f"no activations of {split_point!r}; there are those of {held}")
        return activations[split_point]

    def get_latent_shape(self, inputs: Any = None) -> dict[str, torch.Size]:
        """The shape ``[n, l, d]`` at each split point, for these inputs in one batch or for one text of two tokens."""
        if inputs is None:
            return dict(self._shapes)
        ids = self._encoder.encode(inputs).encoding["input_ids"]
        return {point: torch.Size((*ids.shape, shape[-1])) for point, shape in self._shapes.items()}

    def selection(
        self, inputs: Any, granularity: Granularity | str, pad_side: str | None = None, *, include_padding: bool = False
    ) -> Selection:
        """The units of inputs taken as one batch; arguments as for :meth:`get_activations`."""
        return self._select(inputs, Granularity(granularity), pad_side, include_padding)

    def batches(self, inputs: Any, batch_size: int | None = None) -> Iterator[Any]:
        """Inputs of any form in batches of ``batch_size`` texts (by default the model's), each in the form of the whole."""
        return batches(inputs, self.batch_size if batch_size is None else batch_size)

    def split_forward(
        self, encoding: Mapping[str, Any], split_point: str, edit: Callable[[Tensor], Tensor], **kwargs: Any
    ) -> Tensor:
        """Logits of a pass in which activations at ``split_point`` are replaced by ``edit`` of a copy of them.

        Gradients flow from the logits to whatever the edit brings in, where autograd is on; parameters ask for none.

        Args:
            encoding: ``input_ids`` and what else the model takes, as in ``Selection.encoding``.
            split_point: any module path.
            edit: gets ``[n, l, d]`` and gives the same shape; another dtype is cast to the model's.
            **kwargs: for the model's forward.

        Returns:
            ``[n, l, vocabulary]`` or ``[n, classes]``.

        Raises:
            ValueError: an unknown split point, an edit that gives another shape, or a model without logits.
        """
        (point,) = names.resolved(self.model, split_point)
        return self._with_logits(self._runner.edited(encoding, point, edit, **kwargs))

    def _select(self, inputs: Any, granularity: Granularity, pad_side: str | None, include_padding: bool) -> Selection:
        return self._selector.select(
            self._encoder.encode(inputs, pad_side), granularity, include_padding=include_padding
        )

    def _tracked(self, inputs: Any, shown: bool) -> Iterator[Any]:
        parts = self.batches(inputs)
        if not shown:
            return parts
        from rich.console import Console
        from rich.progress import track

        total = -(-num_texts(inputs) // self.batch_size)
        return iter(track(parts, "Activations", total=total, console=Console(stderr=True)))

    def _with_logits(self, logits: Tensor | None) -> Tensor:
        if logits is None:
            raise ValueError(
                f"{type(self.model).__name__} gives no logits; load the model with its head, for example with "
                "automodel=AutoModelForSequenceClassification or AutoModelForCausalLM"
            )
        return logits

    def _classes(self, logits: Tensor | None) -> Tensor:
        """``[n]``"""
        found = self._with_logits(logits)
        if found.dim() != 2:
            raise ValueError(
                f"include_predicted_classes is for classification models with logits [texts, classes]; "
                f"{type(self.model).__name__} gives {tuple(found.shape)}"
            )
        return found.argmax(-1).cpu()
