"""A dictionary of another library in saescope's terms, and the dictionary that is built from it.

A reader gives the architecture that computes the same function, its settings, and its tensors by the names and layouts of
our own files. What it decided on the way (a gate, a scale, a threshold, where a parameter came from) it says in words.

d_in  width of the input, d_out  width of what is rebuilt, d_sae  features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saescope.dictionaries import Dictionary, architecture
from saescope.formats.mapped_files import owned

_BLOCK = 1 << 22  # numbers brought to float64 at a time


@dataclass(kw_only=True, eq=False)
class Foreign:
    """What a reader gives.

    Attributes:
        format: name of the format.
        architecture: the saescope architecture of the same function (``topk``, ``jumprelu_skip_transcoder``, ...).
        settings: fields of its config, without ``d_in`` and ``d_sae``.
        tensors: as in saescope's own files: ``W_enc [d_in, d_sae]``, ``W_dec [d_sae, d_out]``, ``b_enc``, ``b_dec``, a
            threshold ``[d_sae]``, ``W_skip [d_out, d_in]``, ...; not copied, and without memory where only the headers
            were read.
        normalization: what is done to an activation first and undone last, by its name in ``normalization.py``.
        metadata: ``model_name``, ``hook_name``, ``hook_name_out``, ``context_size``, ``prepend_bos``, ``dataset_path``,
            ``neuronpedia_id``, ...: SAELens' names, where they are known.
        said: decisions in words.
        sizes: d_in, d_sae and d_out, where there is no ``W_dec`` to see them in.
    """

    format: str
    architecture: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    normalization: str = "none"
    metadata: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    sizes: tuple[int, int, int] | None = None

    @property
    def d_in(self) -> int:
        if self.sizes is not None:
            return self.sizes[0]
        return int(self.tensors["W_enc"].shape[0] if "W_enc" in self.tensors else self.tensors["W_dec"].shape[1])

    @property
    def d_sae(self) -> int:
        if self.sizes is not None:
            return self.sizes[1]
        return int(self.tensors["W_dec"].shape[0])

    @property
    def d_out(self) -> int:
        if self.sizes is not None:
            return self.sizes[2]
        return int(self.tensors["W_dec"].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoder, as it is stored."""
        return self.tensors["W_dec" if "W_dec" in self.tensors else next(iter(self.tensors))].dtype

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    # Folding, so that the dictionary works on activations as the model gives them

    def fold_input_scale(self, scale_in: float, scale_out: float | None = None) -> None:
        """Of a dictionary for ``scale_in * x`` that rebuilds ``scale_out * y``, make one for x and y with the same codes."""
        scale_out = scale_in if scale_out is None else scale_out
        for scale in (scale_in, scale_out):
            if not 0 < scale < float("inf"):
                raise ValueError(f"the scale of activations should be a positive number, but is {scale}")
        factors = {"W_enc": scale_in, "W_dec": 1 / scale_out, "b_dec": 1 / scale_out, "W_skip": scale_in / scale_out}
        for name, factor in factors.items():
            if name in self.tensors:
                self.tensors[name] = scaled(self.tensors[name], factor)
        self.said.append(f"activations were scaled by {scale_in:.6g} in training; folded into the weights")

    def fold_decoder_norms(self) -> Tensor:
        """Bring decoder rows to norm 1 with the same reconstruction; codes are multiplied by the norms, which it returns.

        Exact where each feature acts by itself. Where features compete (TopK), it makes of a dictionary that is gated by
        ``pre * norm`` one that is gated by ``pre``.
        """
        norms = row_norms(self.tensors["W_dec"])
        if norms.is_meta:
            return norms
        safe = torch.where(norms > 0, norms, torch.ones_like(norms))
        self.tensors["W_dec"] = scaled(self.tensors["W_dec"], 1 / safe[:, None])
        for name in ("W_enc", "b_enc", "threshold", "b_gate", "b_mag"):
            if name in self.tensors:
                self.tensors[name] = scaled(self.tensors[name], norms)
        return norms

    # Building

    def build(
        self,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        share_memory: bool = False,
        spend: bool = False,
    ) -> Dictionary:
        """The dictionary.

        Args:
            dtype: None for the one that most weights are stored in.
            share_memory: take the tensors as they are, mapped files too, instead of copies, where they have the dtype;
                weights are read when they are used, and can not be trained.
            spend: let go of each of ``tensors`` when it was copied, so that never two of each are there; the copies, in
                ``dtype``, take their places.

        Raises:
            ValueError: tensors that do not fit the architecture, or a weight that is not a number (not looked for in what is
                not copied).
        """
        dtype = dtype or self.dtype
        cls = architecture(self.architecture)
        try:
            settings = cls.Config(d_in=self.d_in, d_sae=self.d_sae, **self.settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"this {self.format} file can not be a {self.architecture} dictionary: {error}") from error
        with torch.device("meta"):
            dictionary = cls(settings, seed=None)
        # memory that nothing is written to, as the file's tensors take its place (to_empty would import a compiler)
        dictionary._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        dictionary.normalise_by(self.normalization)
        expected = {name: list(tensor.shape) for name, tensor in dictionary.saved_tensors().items()}
        found = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
        if expected != found:
            raise ValueError(
                f"this {self.format} file should give a {self.architecture} dictionary the tensors {expected}, but gives "
                f"{found}"
            )
        tensors = self.tensors if spend else dict(self.tensors)
        if not (share_memory and all(tensor.dtype == dtype for tensor in tensors.values())):
            for name in list(tensors):
                tensors[name] = owned(tensors.pop(name), dtype, name, transposed=name == "W_enc")
        dictionary.take_tensors(tensors, copy=False)
        dictionary.metadata = dict(self.metadata)
        if share_memory:
            dictionary.requires_grad_(False)
        return dictionary.to(device).eval()


def row_norms(rows: Tensor) -> Tensor:
    """Length of each row, float64."""
    if rows.is_meta:
        return torch.empty(len(rows), dtype=torch.float64, device="meta")
    return (
        torch.cat([block.double().norm(dim=-1) for block in _blocks(rows)]) if len(rows) else rows.new_zeros(0).double()
    )


def scaled(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """``tensor * factor``, computed in float64 and kept in the tensor's dtype, a block of rows at a time."""
    if tensor.is_meta:  # arithmetic on such tensors would import a compiler
        return tensor
    if not isinstance(factor, Tensor):
        factor = torch.tensor(factor, dtype=torch.float64)
    spread = torch.broadcast_to(factor.double(), tensor.shape)
    made = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for mine, block, by in zip(_blocks(made), _blocks(tensor), _blocks(spread, like=tensor), strict=True):
        mine.copy_(block.double() * by)
    return made


def _blocks(tensor: Tensor, *, like: Tensor | None = None) -> list[Tensor]:
    """Views of some rows each."""
    shape = (tensor if like is None else like).shape
    if not shape or not tensor.numel():
        return [tensor]
    rows = max(1, _BLOCK // max(1, tensor[0].numel()))
    return list(tensor.split(rows))
