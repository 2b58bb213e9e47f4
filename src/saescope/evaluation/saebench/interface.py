"""A dictionary as SAEBench asks for it: plain weight attributes, unit decoder rows, a ``cfg`` with its names.

SAEBench 0.6 (Karvonen et al. 2025, arXiv 2503.09532) calls ``encode(x)`` and ``decode(f)``, reads ``W_enc``, ``W_dec``,
``b_enc``, ``b_dec`` and ``cfg``, and takes decoder rows to be of norm 1. Ours need not be: the norm of row i moves into
activation i, so that what each feature writes stays what it was::

    f'_i = |d_i| f_i        d'_i = d_i / |d_i|        x_hat = f' @ d' + b_dec = f @ d + b_dec

The same features fire and the same features are chosen, for the dictionary's own encoder decides and its answer is scaled
after that. A decoder that stands behind a linear map of the input (matching pursuit on whitened activations) is shown in
units of the raw activations.

B  tokens (any number of leading dimensions), d_in  activation width, d_sae  features.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from saescope.dictionaries import Crosscoder, Dictionary, Gated, Transcoder
from saescope.dictionaries.normalization import PerToken, Whitening

_LAYER = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class FoldedWeights:
    """Weights of the same function with decoder rows of norm 1 (rows of zeros stay zeros)."""

    norms: Tensor  # what activations are multiplied by, [d_sae], positive
    W_enc: Tensor  # [d_in, d_sae]
    W_dec: Tensor  # [d_sae, d_in]
    b_enc: Tensor  # [d_sae], zeros where the architecture has none
    b_mag: Tensor | None  # [d_sae], of gated dictionaries
    b_dec: Tensor  # [d_in]: the answer without any feature

    @property
    def encoder_bias(self) -> Tensor:
        """The bias that SAEBench reports of each feature, ``[d_sae]``."""
        return self.b_enc if self.b_mag is None else self.b_mag


@torch.no_grad()
def folded_weights(dictionary: Dictionary) -> FoldedWeights:
    """The weights of a dictionary as SAEBench takes them, in the dictionary's dtype, computed in float64.

    Raises:
        ValueError: the interface would be false for this dictionary.
    """
    _refuse(dictionary)
    rows, encoder = dictionary.W_dec.double(), dictionary.W_enc.double()  # [d_sae, d_in], [d_in, d_sae]
    normalization = dictionary.input_normalization
    if isinstance(normalization, Whitening):
        rows, encoder = rows @ normalization.inverse.double(), normalization.matrix.double() @ encoder
    norms = rows.norm(dim=-1)
    norms = torch.where(norms > 0, norms, 1)
    like = dictionary.W_dec
    nothing = like.new_zeros(dictionary.d_sae)
    b_enc = nothing if dictionary.b_enc is None else dictionary.b_enc
    b_mag = dictionary.b_mag if isinstance(dictionary, Gated) else None
    return FoldedWeights(
        norms=norms.to(like.dtype),
        W_enc=(encoder * norms).to(like.dtype),
        W_dec=(rows / norms[:, None]).to(like.dtype),
        b_enc=(b_enc.double() * norms).to(like.dtype),
        b_mag=None if b_mag is None else (b_mag.double() * norms).to(like.dtype),
        b_dec=dictionary.decode(nothing[None])[0].clone(),
    )


@dataclass(kw_only=True)
class SaeBenchConfig:
    """What SAEBench reads from ``cfg``. Not frozen, for SAEBench writes into it."""

    model_name: str  # as TransformerLens knows the model
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str  # a TransformerLens name
    hook_head_index: int | None = None
    context_size: int | None = None
    prepend_bos: bool = True
    architecture: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    model_from_pretrained_kwargs: dict[str, Any]
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; what others wrote into the object beside them is left out."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.__dataclass_fields__}


_Self = TypeVar("_Self", bound="SaeBenchDictionary")


class SaeBenchDictionary(nn.Module):
    """A copy of a dictionary behind SAEBench's interface; made by :func:`as_saebench`.

    Attributes:
        W_enc: ``[d_in, d_sae]``; W_dec: ``[d_sae, d_in]``, rows of norm 1; b_enc: ``[d_sae]``; b_dec: ``[d_in]``.
        b_mag: ``[d_sae]``, of gated dictionaries alone.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    norms: Tensor
    hook_z_reshaping_mode = False  # heads lie side by side already: there is nothing to turn on or off

    def __init__(self, dictionary: Dictionary, cfg: SaeBenchConfig) -> None:
        """``dictionary`` is kept, not copied."""
        super().__init__()
        self.dictionary = dictionary
        self.cfg = cfg
        weights = folded_weights(dictionary)
        for name in ("norms", "W_enc", "W_dec", "b_enc", "b_dec"):
            self.register_buffer(name, getattr(weights, name))
        if weights.b_mag is not None:
            self.register_buffer("b_mag", weights.b_mag)
        self._note_place()

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def to(self: _Self, *args: Any, **kwargs: Any) -> _Self:
        """As for any module; ``cfg.dtype`` and ``cfg.device`` follow."""
        moved = super().to(*args, **kwargs)
        moved._note_place()
        return moved

    def _note_place(self) -> None:
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")
        self.cfg.device = str(self.device)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Feature activations: ``[..., d_in]`` to ``[..., d_sae]``."""
        return self.dictionary.encode(x.to(self.dtype)) * self.norms

    def decode(self, f: Tensor) -> Tensor:
        """``f @ W_dec + b_dec``: ``[..., d_sae]`` to ``[..., d_in]``."""
        return f.to(self.dtype) @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of ``x``, same shape."""
        return self.decode(self.encode(x))

    def turn_on_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing to do; SAEBench calls it at ``hook_z``."""

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing to do; SAEBench calls it at ``hook_z``."""


def as_saebench(
    dictionary: Dictionary,
    metadata: Mapping[str, Any],
    *,
    model_name: str | None = None,
    hook_name: str | None = None,
) -> SaeBenchDictionary:
    """A copy of a dictionary that SAEBench's evaluations run on: ``selected_saes=[(name, as_saebench(...))]``.

    The copy computes what the dictionary computes, with decoder rows of norm 1. Move it with ``to(device=, dtype=)``;
    float32 and bfloat16 are what SAEBench uses.

    Args:
        metadata: of the dictionary's file (:func:`saescope.dictionaries.read_metadata`): ``model_name`` and ``hook_name``
            are needed; ``context_size``, ``prepend_bos``, ``dataset_path``, ``hook_head_index`` and
            ``model_from_pretrained_kwargs`` are passed on where they are there.
        model_name, hook_name: in the place of the metadata's, where TransformerLens has other names.

    Raises:
        ValueError: the interface would be false for this dictionary, or SAEBench could not find model or hook point.
    """
    model_name = model_name or metadata.get("model_name")
    hook_name = hook_name or metadata.get("hook_name")
    if not model_name or not hook_name:
        missing = " and ".join(n for n, v in (("model_name", model_name), ("hook_name", hook_name)) if not v)
        raise ValueError(f"SAEBench has to know where the dictionary belongs; give {missing} in metadata or by name")
    layer = _LAYER.match(hook_name)
    if layer is None:
        raise ValueError(
            f"SAEBench runs models in TransformerLens, which has no hook point {hook_name!r}; "
            "give its name there as hook_name, such as blocks.8.hook_resid_post"
        )
    _refuse(dictionary)
    cfg = SaeBenchConfig(
        model_name=model_name,
        d_in=dictionary.d_in,
        d_sae=dictionary.d_sae,
        hook_layer=int(layer[1]),
        hook_name=hook_name,
        hook_head_index=metadata.get("hook_head_index"),
        context_size=metadata.get("context_size"),
        prepend_bos=bool(metadata.get("prepend_bos", True)),
        # SAEBench looks for the bias of a gated dictionary by this name; it tells others apart nowhere
        architecture="gated" if isinstance(dictionary, Gated) else dictionary.saelens_name,
        model_from_pretrained_kwargs=dict(metadata.get("model_from_pretrained_kwargs") or {}),
        apply_b_dec_to_input=dictionary.config.apply_b_dec_to_input,
        dataset_path=str(metadata.get("dataset_path") or ""),
    )
    return SaeBenchDictionary(copy.deepcopy(dictionary), cfg).eval().requires_grad_(False)


def _refuse(dictionary: Dictionary) -> None:
    if isinstance(dictionary, Transcoder):
        raise ValueError(
            f"SAEBench puts decode(encode(x)) in the place of x, but a {dictionary.architecture} dictionary rebuilds "
            "another hook point than it reads; evaluate it with saescope's own studies"
        )
    if isinstance(dictionary, Crosscoder):
        raise ValueError(
            f"SAEBench reads one hook point, but a {dictionary.architecture} dictionary reads several at once; "
            "evaluate it with saescope's own studies"
        )
    if isinstance(dictionary.input_normalization, PerToken):
        raise ValueError(
            "SAEBench calls decode(f) without the input, but this dictionary normalises every token and needs its input "
            "again to undo that; evaluate it with saescope's own studies"
        )
