"""The facade: concepts of a model's activations at one split point, from ``fit`` to encode, decode and dictionary.

The class and argument names are those of interpreto 0.4.11 to 0.4.16 (github.com/FOR-sight-ai/interpreto); what differs is
listed in ``differences.py``. What computes is a dictionary of saescope (``concept_model.py``).

n  rows, d  activation width, c  concepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from saescope.concepts.explainers.atoms import AtomSettings, atom_settings
from saescope.concepts.explainers.concept_model import ConceptModel, Recipe
from saescope.concepts.explainers.encoders import check_encoder, needs_several_rows
from saescope.concepts.explainers.fitting import Fit, FitSettings, SchedulerUnit
from saescope.concepts.explainers.losses import criterion_from
from saescope.concepts.explainers.rows import BatchRows, Rows, TensorRows, checked_rows
from saescope.concepts.splitting import ActivationGranularity, GranularityAggregationStrategy
from saescope.dictionaries import Crosscoder, Dictionary, Transcoder
from saescope.dictionaries.normalization import NoNormalization, PerToken

if TYPE_CHECKING:
    from saescope.concepts.splitting import ModelWithSplitPoints

_UNIT = 1e-3  # how far from 1 norms of rows may be that rounding and folding have left


class SAEExplainer:
    """Concepts as codes of a sparse autoencoder on the activations at a split point.

    The five classes of ``saes.py`` are made and fitted; :meth:`from_dictionary` makes concepts of any dictionary that
    saescope opens, and :meth:`load` opens what :meth:`save` wrote.

    Attributes:
        model_with_split_points: the split model. concept_model: encoder and decoder, see :class:`ConceptModel`.
        split_point: where the activations are. is_fitted: whether there are concepts. device: where they are computed.
    """

    kind: ClassVar[type[Dictionary] | None] = None  # the architecture of a class that can be made
    options: ClassVar[tuple[str, ...]] = ()  # keywords of the constructor beside those that all classes have
    has_differentiable_concept_encoder = True
    has_differentiable_concept_decoder = True

    _concept_model: ConceptModel

    def __init__(
        self,
        model_with_split_points: ModelWithSplitPoints,
        *,
        nb_concepts: int,
        split_point: str | None = None,
        encoder_module: nn.Module | str | None = None,
        dictionary_params: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> None:
        """
        Args:
            nb_concepts: c.
            split_point: may be left out where the model has one.
            encoder_module: what reads activations, by a name or a module from ``[n, d]`` to ``[n, c]``
                (``encoders.py``); one linear layer when left out.
            dictionary_params: ``normalization``, ``initializer``, ``use_multiplier`` of the rows (``atoms.py``).
            kwargs: of the class, and for all ``decoder_bias`` (learn ``b_dec``: it is taken off activations and added to
                reconstructions; recommended where activations have a mean far from 0).

        Raises:
            ValueError: a split point, a name or a number that is none. TypeError: a keyword that this class does not have.
        """
        if self.kind is None:
            raise TypeError(
                f"{type(self).__name__} says nothing of the architecture: choose VanillaSAE, TopKSAE, BatchTopKSAE, "
                "JumpReLUSAE or MpSAE, or SAEExplainer.from_dictionary(...)"
            )
        self.model_with_split_points = model_with_split_points
        self._split_point = self._checked_split_point(split_point)
        decoder_bias = kwargs.pop("decoder_bias", False)
        unknown = sorted(set(kwargs) - set(self.options))
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no {', '.join(unknown)}; beside what all classes have it takes "
                f"{', '.join(self.options)} and decoder_bias"
            )
        d = self._width(self._split_point)
        if isinstance(nb_concepts, bool) or not isinstance(nb_concepts, int) or nb_concepts < 1:
            raise ValueError(f"nb_concepts is a whole number of at least 1, got {nb_concepts!r}")
        shared = {"d_in": d, "d_sae": nb_concepts, "apply_b_dec_to_input": bool(decoder_bias)}
        recipe = Recipe(
            kind=self.kind,
            encoder=check_encoder(encoder_module, d, nb_concepts),
            atoms=atom_settings(dictionary_params),
            decoder_bias=bool(decoder_bias),
            **self._settings(shared, kwargs),
        )
        self._concept_model = ConceptModel(recipe)
        self.device = device

    def _settings(self, shared: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """``config`` and what else a recipe has of this class's options; ``shared`` are fields of every config."""
        raise NotImplementedError  # a class with a ``kind`` has one; without it nothing is constructed

    @classmethod
    def from_dictionary(
        cls, model_with_split_points: ModelWithSplitPoints, dictionary: Dictionary, split_point: str | None = None
    ) -> SAEExplainer:
        """Concepts from a dictionary that exists: trained with saescope, or opened with ``saescope.load``.

        The dictionary itself is used, not a copy. Where one of the five classes has its architecture, that class is made.

        Raises:
            ValueError: another width than the split point's, a dictionary that rebuilds another activation than it reads or
                needs the activation again to decode, or another architecture than the class's.
        """
        if isinstance(dictionary, Transcoder | Crosscoder) or dictionary.d_out != dictionary.d_in:
            raise ValueError(
                f"a {dictionary.architecture} does not rebuild the activation that it reads, and concepts are decoded "
                "back to the place they came from; use saescope's interventions for it"
            )
        if isinstance(dictionary.input_normalization, PerToken):
            raise ValueError(
                f"this dictionary normalises every token ({dictionary.input_normalization.name}) and needs the activation "
                "again to decode; concepts are decoded from codes alone. Use saescope's interventions for it"
            )
        if cls.kind is not None and type(dictionary) is not cls.kind:
            raise ValueError(
                f"{cls.__name__} is no {dictionary.architecture} dictionary; use SAEExplainer.from_dictionary"
            )
        made = cls if cls.kind is not None else _class_for(type(dictionary))
        with torch.no_grad():
            unit = bool(((dictionary.decoder_norms - 1).abs() < _UNIT).all())
        recipe = Recipe(
            kind=type(dictionary),
            config=dictionary.config,
            atoms=AtomSettings("l2" if unit or dictionary.unit_norm is None else "identity"),
            decoder_bias=True,
        )
        model = ConceptModel(recipe, dictionary=dictionary).eval()
        model.fitted = True
        return made._around(model_with_split_points, model, split_point)

    @classmethod
    def _around(
        cls, model_with_split_points: ModelWithSplitPoints, model: ConceptModel, split_point: str | None
    ) -> Self:
        """An explainer with a concept model that exists."""
        explainer = cls.__new__(cls)
        explainer.model_with_split_points = model_with_split_points
        explainer._concept_model = model
        explainer.split_point = split_point
        return explainer

    # What it is

    @property
    def concept_model(self) -> ConceptModel:
        return self._concept_model

    @property
    def split_point(self) -> str:
        return self._split_point

    @split_point.setter
    def split_point(self, split_point: str | None) -> None:
        name = self._checked_split_point(split_point)
        width = self._width(name)
        if width != self._concept_model.input_shape:
            raise ValueError(
                f"activations at split point {name!r} have width {width}, and these concepts read width "
                f"{self._concept_model.input_shape}"
            )
        self._split_point = name

    @property
    def is_fitted(self) -> bool:
        return self._concept_model.fitted

    @property
    def device(self) -> torch.device:
        return self._concept_model.device

    @device.setter
    def device(self, device: str | torch.device) -> None:
        self._concept_model.to(device)

    @property
    def dictionary(self) -> Dictionary:
        """The concepts as a dictionary of saescope, for everything that takes one (save, splice, measure, publish).

        Raises:
            ValueError: an ``encoder_module`` of several layers. RuntimeError: not fitted.
        """
        self._check_fitted("dictionary")
        return self._concept_model.plain_dictionary()

    def _checked_split_point(self, split_point: str | None) -> str:
        known = list(self.model_with_split_points.split_points)
        if split_point is None:
            if len(known) != 1:
                raise ValueError(f"the model is split at {', '.join(known)}: say which with split_point=...")
            return known[0]
        if split_point not in known:
            raise ValueError(f"the model is not split at {split_point!r}; its split points are {', '.join(known)}")
        return split_point

    def _width(self, split_point: str) -> int:
        return int(self.model_with_split_points.get_latent_shape()[split_point][-1])

    def _check_fitted(self, what: str) -> None:
        if not self.is_fitted:
            raise RuntimeError(f"these concepts are not fitted yet: call fit(activations) before {what}")

    # Fit

    def fit(
        self,
        activations: Tensor | Mapping[str, Tensor] | Iterable[Any],
        *,
        use_amp: bool = False,
        batch_size: int = 1024,
        criterion: Any = None,
        optimizer_class: Callable[..., torch.optim.Optimizer] | None = None,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        lr: float = 1e-3,
        nb_epochs: int = 20,
        clip_grad: float | None = None,
        monitoring: int | None = None,
        device: str | torch.device | None = None,
        max_nan_fallbacks: int | None = 5,
        overwrite: bool = False,
        warm_start: bool = False,
        scheduler_unit: SchedulerUnit = "step",
        seed: int = 0,
    ) -> dict[str, list[float]]:
        """Fit the concepts, from new weights unless ``warm_start`` says otherwise.

        Args:
            activations: a tensor ``[N, d]``; a dict with one for the split point, as ``get_activations`` gives it; or an
                iterable of batches ``[n, d]`` (``batch_size`` is theirs then; an iterator that can be read once needs
                ``nb_epochs=1``).
            use_amp: matrix products in bfloat16. A step that is not finite there is made again in float32.
            batch_size: rows per step; the last batch of an epoch may be short.
            criterion: a class, an instance or a function of ``(x, x_hat, pre_codes, codes, dictionary)``
                (``losses.py``). When left out, the architecture's own loss with its sparsity: L1 for Vanilla, L0 for
                JumpReLU, AuxK for TopK and BatchTopK.
            optimizer_class, optimizer_kwargs: called with the parameters, ``lr`` and these; ``torch.optim.Adam`` when
                left out.
            scheduler_class, scheduler_kwargs: called with the optimizer and these. scheduler_unit: what the scheduler
                counts, optimizer steps ("step") or epochs ("epoch").
            clip_grad: largest norm of the gradient over all parameters; None or 0: no clipping.
            monitoring: 1 prints a line per epoch, 2 also logs norms. Logs are returned in any case (``history.py``).
            device: where to fit; the concept model moves there and stays.
            max_nan_fallbacks: after so many steps that had to be made again in float32, all following ones are; None: never.
            overwrite: forget concepts that are fitted already, and begin anew.
            warm_start: go on from the weights that there are.
            seed: of the new weights and of the order of rows.

        Returns:
            Lists of numbers by name; ``avg_loss`` has one for each epoch.

        Raises:
            RuntimeError: fitted already, and neither ``overwrite`` nor ``warm_start`` is set.
            ValueError: activations or settings that can not be used. A fit that fails leaves the concepts that there were.
        """
        if self.is_fitted and not (overwrite or warm_start):
            raise RuntimeError(
                "these concepts are fitted already; overwrite=True begins anew, warm_start=True goes on from them"
            )
        if overwrite and warm_start:
            raise ValueError("overwrite begins anew and warm_start goes on: give one of them")
        settings = FitSettings(
            nb_epochs=nb_epochs, lr=lr, criterion=criterion_from(criterion), optimizer_class=optimizer_class,
            optimizer_kwargs=dict(optimizer_kwargs or {}), scheduler_class=scheduler_class,
            scheduler_kwargs=dict(scheduler_kwargs or {}), scheduler_unit=scheduler_unit, clip_grad=clip_grad,
            use_amp=use_amp, max_nan_fallbacks=max_nan_fallbacks, monitoring=monitoring, seed=seed,
        )  # fmt: skip
        model = self._concept_model
        rows = self._rows(activations, batch_size, nb_epochs)
        self._check_can_fit(warm_start)
        if device is not None and torch.device(device) != self.device:
            if monitoring:
                print(f"the concept model moves from {self.device} to {device}", flush=True)
            self.device = device
        before = model.dictionary, model.fitted, model.on_raw_activations
        if not warm_start:
            model.reset(seed)
        model.fitted = False
        fit = Fit(model, rows, settings)
        try:
            logs = fit.run()
        except Exception:
            if not warm_start or not fit.step:  # the concepts that there were
                model.dictionary, model.fitted, model.on_raw_activations = before
            raise
        model.fitted = True
        return logs

    def _check_can_fit(self, warm_start: bool) -> None:
        own = self._concept_model.dictionary
        if not warm_start:
            if self.kind is None:
                raise ValueError(
                    f"these are the concepts of a {own.architecture} dictionary that exists: train a new one with "
                    "saescope.train, or go on from this one with warm_start=True"
                )
            return
        if not isinstance(own.input_normalization, NoNormalization):
            raise ValueError(
                f"this dictionary keeps a normalisation of its input ({own.input_normalization.name}); train it further "
                "with saescope.train, or begin anew with overwrite=True"
            )
        if own.unit_norm is None and not bool(((own.decoder_norms - 1).abs() < _UNIT).all()):
            raise ValueError(
                f"a {own.architecture} dictionary is fitted with rows of norm 1, and these are of other norms"
            )

    def _rows(self, activations: Any, batch_size: int, nb_epochs: int) -> Rows:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is a whole number of at least 1, got {batch_size!r}")
        width = self._concept_model.input_shape
        whole = isinstance(activations, Tensor | Mapping | str | bytes) or hasattr(activations, "__array__")
        if isinstance(activations, Iterable) and not whole:
            return BatchRows(activations, width, nb_epochs=nb_epochs, take=self._of_split_point)
        x = checked_rows(self._of_split_point(activations), width)
        return TensorRows(x, batch_size, several=needs_several_rows(self._concept_model))

    def _of_split_point(self, activations: Any) -> Any:
        """The entry of the split point of a dict; anything else as it is."""
        if not isinstance(activations, Mapping):
            return activations
        return self.model_with_split_points.get_split_activations(activations, self.split_point)

    # Use

    def encode_activations(
        self, activations: Tensor | Mapping[str, Tensor], *, return_pre: bool = False, k: int | None = None
    ) -> Any:
        """Concepts of activations, ``[n, d]`` to ``[n, c]``; differentiable. A dict gives its entry of the split point.

        Args:
            return_pre: give ``(codes, pre_codes)``; the pre-codes of matching pursuit are None.
            k: another number of concepts per row, for TopK and MP.

        Raises:
            RuntimeError: not fitted. ValueError: another shape.
        """
        self._check_fitted("encode_activations")
        x = self._of_split_point(activations)
        if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"activations should be a floating tensor [n, {self._concept_model.input_shape}], got {got}"
            )
        pre, codes = self._concept_model.encode(x, k)
        return (codes, pre) if return_pre else codes

    def decode_concepts(self, concepts: Tensor) -> Tensor:
        """Activations of concepts, ``[n, c]`` to ``[n, d]``: ``concepts @ get_dictionary()``, and the decoder's bias
        where there is one; differentiable.

        Raises:
            RuntimeError: not fitted. ValueError: another number of concepts.
        """
        self._check_fitted("decode_concepts")
        return self._concept_model.decode(concepts)

    activations_to_concepts = encode_activations  # their names since interpreto 0.5
    concepts_to_activations = decode_concepts

    def get_dictionary(self) -> Tensor:
        """What one unit of each concept adds to the activation, ``[c, d]``; detached.

        Raises:
            RuntimeError: not fitted.
        """
        self._check_fitted("get_dictionary")
        return self._concept_model.get_dictionary().detach()

    def interpret(self, *args: Any, **kwargs: Any) -> Any:
        """Gone; see ``TopKInputs`` and ``LLMLabels``.

        Raises:
            RuntimeError: not fitted. NotImplementedError: always, otherwise.
        """
        self._check_fitted("interpret")
        raise NotImplementedError(
            "interpret is not a method of explainers: use TopKInputs(concept_explainer=explainer).interpret(...), or "
            "LLMLabels"
        )

    def concept_output_gradient(
        self,
        inputs: Any,
        targets: Any = None,
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
        """What each concept does to the outputs, a tensor ``[t, g, c]`` for each text; all arguments are those of
        :func:`saescope.concepts.gradients.concept_output_gradient`, which see.

        Raises:
            RuntimeError: not fitted. ValueError: as said there.
        """
        from saescope.concepts.gradients import concept_output_gradient  # it may know this class

        self._check_fitted("concept_output_gradient")
        return concept_output_gradient(
            self, inputs, targets, split_point, activation_granularity, aggregation_strategy, concepts_x_gradients,
            normalization, tqdm_bar, batch_size, error_term=error_term, padded_positions=padded_positions,
            targets_at_once=targets_at_once,
        )  # fmt: skip

    # On disk

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write everything that decides about codes to a folder (safetensors and JSON); see ``saving.py``."""
        from saescope.concepts.explainers.saving import save_explainer  # it knows this class

        return save_explainer(self, folder, overwrite=overwrite)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model_with_split_points: ModelWithSplitPoints,
        *,
        split_point: str | None = None,
        encoder_module: nn.Module | None = None,
        dictionary_params: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> SAEExplainer:
        """Open what :meth:`save` wrote; the class is that of the file, whichever it is called on.

        Args:
            split_point: another one than the file names.
            encoder_module, dictionary_params: what no file can hold: a module of a user's own, and a ``normalization``
                that is a function.

        Raises:
            FileNotFoundError: no such files. ValueError: files that can not be used, or do not fit the model or this class.
        """
        from saescope.concepts.explainers.saving import load_explainer

        explainer = load_explainer(
            folder, model_with_split_points, split_point=split_point, encoder_module=encoder_module,
            dictionary_params=dictionary_params, device=device,
        )  # fmt: skip
        if not isinstance(explainer, cls):
            raise ValueError(f"{folder} holds a {type(explainer).__name__}, not a {cls.__name__}")
        return explainer


def _class_for(kind: type[Dictionary]) -> type[SAEExplainer]:
    """The class of an architecture; SAEExplainer where it has none of its own."""
    return next((made for made in _subclasses(SAEExplainer) if made.kind is kind), SAEExplainer)


def _subclasses(cls: type[SAEExplainer]) -> list[type[SAEExplainer]]:
    return [found for made in cls.__subclasses__() for found in (made, *_subclasses(made))]
