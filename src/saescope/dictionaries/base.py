"""The contract that every dictionary keeps.

A dictionary turns an activation into sparse feature activations and back::

    f = dictionary.encode(x)        # [B, d_in] -> [B, d_sae], nearly all zeros
    x_hat = dictionary.decode(f)    # [B, d_sae] -> [B, d_in]

An architecture is one class that says how pre-activations become activations; the rest is here. Both weight matrices are
stored with one row per feature, because every sparse operation gathers rows; ``W_enc`` is shown as ``[d_in, d_sae]``, as
in the papers.

B  tokens, d_in  activation width, d_sae  features.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries.codes import SparseCodes


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """What every architecture needs to know."""

    d_in: int  # width of the activations
    d_sae: int  # number of features

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


class Dictionary(nn.Module, ABC):
    """A sparse dictionary: encoder, decoder and two biases.

    Attributes:
        encoder_rows: the encoder, one row per feature, ``[d_sae, d_in]``; ``W_enc`` is its transpose.
        W_dec: the decoder, ``[d_sae, d_in]``: row i is what feature i writes.
        b_enc: ``[d_sae]``. b_dec: ``[d_in]``, also subtracted from the encoder's input.
    """

    architecture: ClassVar[str]  # our name, as in recipes
    saelens_name: ClassVar[str]  # the name in cfg.json
    Config: ClassVar[type[DictionaryConfig]]

    def __init__(self, config: DictionaryConfig, *, seed: int = 0) -> None:
        """Random unit decoder rows, encoder equal to the decoder, biases zero."""
        super().__init__()
        self.config = config
        rows = torch.randn(config.d_sae, config.d_in, generator=torch.Generator().manual_seed(seed))
        rows = F.normalize(rows, dim=-1)
        self.W_dec = nn.Parameter(rows.clone())
        self.encoder_rows = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def W_enc(self) -> Tensor:
        """The encoder as in the papers, ``[d_in, d_sae]`` (a view)."""
        return self.encoder_rows.T

    @property
    def decoder_norms(self) -> Tensor:
        """Length of each decoder row, ``[d_sae]``."""
        return self.W_dec.norm(dim=-1)

    def pre_activations(self, x: Tensor) -> Tensor:
        """Linear part of the encoder, ``(x - b_dec) @ W_enc + b_enc``: ``[B, d_in]`` to ``[B, d_sae]``."""
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"this dictionary reads activations of width d_in = {self.d_in}, got width {x.shape[-1]}; "
                "check that model and hook point are the ones it was trained on"
            )
        return F.linear(x - self.b_dec, self.encoder_rows, self.b_enc)

    @abstractmethod
    def activate(self, pre: Tensor) -> Tensor:
        """Pre-activations to feature activations, both ``[B, d_sae]``."""

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations of ``x``: ``[..., d_in]`` to ``[..., d_sae]``, never negative."""
        return self.activate(self.pre_activations(x))

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Feature activations of ``x``, ``[B, d_in]``, as sparse codes."""
        return SparseCodes.from_dense(self.encode(x))

    def decode(self, f: Tensor | SparseCodes) -> Tensor:
        """Reconstruction ``f @ W_dec + b_dec``: ``[..., d_sae]`` (or sparse codes) to ``[..., d_in]``."""
        if isinstance(f, SparseCodes):
            rows = F.embedding_bag(f.indices, self.W_dec, per_sample_weights=f.values, mode="sum")
            return rows + self.b_dec
        return f @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of ``x``, same shape."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turn a dictionary trained on ``scale * x`` into the same dictionary on ``x``.

        The encoders here are positively homogeneous: scaling input and biases together scales the activations. So
        dividing the biases by the scale gives ``decode(encode(x)) = decode_scaled(encode_scaled(scale * x)) / scale``
        with decoder rows left as they are, and feature activations in units of the raw activations.
        """
        if not scale > 0:
            raise ValueError(f"the input scale must be positive, got {scale}")
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)

    def saelens_extras(self) -> dict[str, Any]:
        """Keys of cfg.json that only this architecture has."""
        return {key: value for key, value in asdict(self.config).items() if key not in ("d_in", "d_sae")}


D = TypeVar("D", bound=type[Dictionary])
_ARCHITECTURES: dict[str, type[Dictionary]] = {}


def register(name: str, *, saelens_name: str | None = None) -> Callable[[D], D]:
    """Class decorator that makes an architecture known to recipes, loading and saving under ``name``.

    ``saelens_name`` is the ``architecture`` of cfg.json where SAELens knows the same function; without it the name on
    disk is ``saescope/NAME``, so that SAELens refuses the file instead of opening something else.
    """

    def decorate(cls: D) -> D:
        on_disk = saelens_name or f"saescope/{name}"
        for known in _ARCHITECTURES.values():
            # a class that is defined again (a reloaded module, a notebook cell) replaces itself
            again = (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
            if not again and name == known.architecture:
                raise ValueError(f"the architecture name {name!r} is taken by {known.__qualname__}; choose another")
            if not again and on_disk == known.saelens_name:
                raise ValueError(
                    f"{known.__qualname__} opens the files named {on_disk!r}; leave saelens_name out, "
                    f"so that yours are named 'saescope/{name}'"
                )
        cls.architecture, cls.saelens_name = name, on_disk
        _ARCHITECTURES[name] = cls
        return cls

    return decorate


def architectures() -> dict[str, type[Dictionary]]:
    """Every registered architecture by name."""
    return dict(_ARCHITECTURES)


def architecture(name: str) -> type[Dictionary]:
    """The class registered under ``name``; ValueError with the nearest names otherwise."""
    if name in _ARCHITECTURES:
        return _ARCHITECTURES[name]
    near = difflib.get_close_matches(name, _ARCHITECTURES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown architecture {name!r}: {hint}known are {', '.join(sorted(_ARCHITECTURES))}")
