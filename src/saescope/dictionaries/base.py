"""The contract that every dictionary keeps.

A dictionary turns an activation into sparse feature activations and back::

    f = dictionary.encode(x)        # [B, d_in] -> [B, d_sae], nearly all zeros
    x_hat = dictionary.decode(f)    # [B, d_sae] -> [B, d_in]

An architecture is one class that says how pre-activations become activations; the rest is here. Both weight matrices
are stored with one row per feature, because every sparse operation gathers rows; ``W_enc`` is shown as ``[d_in,
d_sae]``, as in the papers.

B  tokens, d_in  width of the input, d_out  width of what is rebuilt (d_in, but for transcoders), d_sae  features.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saescope.dictionaries.codes import SparseCodes
from saescope.dictionaries.normalization import InputNormalization, NoNormalization, input_normalization
from saescope.kernels import FlatCodes


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """What every architecture needs to know."""

    d_in: int  # width of the activations
    d_sae: int  # number of features
    apply_b_dec_to_input: bool = True  # subtract b_dec from the encoder's input

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.apply_b_dec_to_input, bool):
            raise ValueError(f"apply_b_dec_to_input must be true or false, got {self.apply_b_dec_to_input!r}")


class Dictionary(nn.Module, ABC):
    """A sparse dictionary: encoder, decoder and two biases.

    Attributes:
        encoder_rows: the encoder, one row per feature, ``[d_sae, d_in]``; ``W_enc`` is its transpose. None where the
            encoder is the decoder.
        W_dec: the decoder, ``[d_sae, d_out]``: row i is what feature i writes.
        b_enc: ``[d_sae]``, or None. b_dec: ``[d_out]``, also subtracted from the encoder's input unless the config says
        no.
        input_normalization: what happens to an activation first, and is undone last (nothing, as a rule: see
            ``normalization.py``).
        metadata: what its file says of it (``model_name``, ``hook_name``, ...); empty for one that was made here.
    """

    architecture: ClassVar[str]  # our name, as in recipes
    saelens_name: ClassVar[str]  # the name in cfg.json
    opens_saelens_name: ClassVar[bool] = True  # False: written under another architecture's name, as the same function
    saelens_keys: ClassVar[Mapping[str, str]] = {}  # config field -> its name in cfg.json, where that differs
    Config: ClassVar[type[DictionaryConfig]]

    # Whether f(s x) = s f(x) when biases and ``in_activation_units`` are multiplied by s as well: true of everything
    # here, and not assumed of an architecture that does not say so.
    positively_homogeneous: ClassVar[bool] = False
    in_activation_units: ClassVar[tuple[str, ...]] = ()  # thresholds and biases of a rule, beside b_enc
    acts_per_feature: ClassVar[bool] = False  # whether each activation depends on its own pre-activation alone
    reads_sequences: ClassVar[bool] = False  # whether a token's features depend on the tokens before it
    unit_norm: ClassVar[bool | None] = (
        True  # rows of norm 1 in training: as a rule (True), never (False), always (None)
    )

    def __init__(self, config: DictionaryConfig, *, seed: int | None = 0) -> None:
        """Random unit decoder rows, encoder equal to the decoder, biases zero; without a seed, rows of no meaning."""
        super().__init__()
        self.config = config
        generator = None if seed is None else torch.Generator().manual_seed(_own_seed(seed))
        rows = random_rows(config.d_sae, self.d_out, generator)
        self.make_decoder(rows.clone(), generator)
        self.encoder_rows: nn.Parameter | None = nn.Parameter(self.first_encoder(rows, generator))
        self.b_enc: nn.Parameter | None = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.input_normalization: InputNormalization = NoNormalization()
        self.metadata: dict[str, Any] = {}

    def make_decoder(self, rows: Tensor, generator: torch.Generator | None) -> None:
        """Set up what ``W_dec`` comes from; ``rows`` are random unit rows ``[d_sae, d_out]``."""
        self.W_dec: Tensor = nn.Parameter(rows)

    def first_encoder(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """Encoder rows ``[d_sae, d_in]`` to begin with: the decoder's."""
        return rows.clone()

    def normalise_by(self, name: str) -> None:
        """Take the input normalisation of this name, its tensors to be filled in; ValueError where it is not known."""
        self.input_normalization = input_normalization(name, self.d_in)

    @property
    def d_in(self) -> int:
        return self.config.d_in

    @property
    def d_out(self) -> int:
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        return self.config.d_sae

    @property
    def W_enc(self) -> Tensor:
        """The encoder as in the papers, ``[d_in, d_sae]`` (a view)."""
        return (self.W_dec if self.encoder_rows is None else self.encoder_rows).T

    @property
    def decoder_norms(self) -> Tensor:
        """Length of each decoder row, ``[d_sae]``."""
        return self.W_dec.norm(dim=-1)

    def encoder_input(self, x: Tensor) -> Tensor:
        """What the encoder multiplies: ``x`` normalised, less ``b_dec``; ``[..., d_in]``."""
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"this dictionary reads activations of width d_in = {self.d_in}, got width {x.shape[-1]}; "
                "check that model and hook point are the ones it was trained on"
            )
        x = self.input_normalization.normalise(x)
        return x - self.b_dec if self.config.apply_b_dec_to_input else x

    def pre_activations(self, x: Tensor) -> Tensor:
        """Linear part of the encoder, ``(x - b_dec) @ W_enc + b_enc``: ``[B, d_in]`` to ``[B, d_sae]``."""
        return F.linear(self.encoder_input(x), self.W_enc.T, self.b_enc)

    @abstractmethod
    def activate(self, pre: Tensor) -> Tensor:
        """Pre-activations to feature activations, both ``[B, d_sae]``, each token by itself."""

    def activate_in_training(self, pre: Tensor, k: float | None = None) -> Tensor:
        """What the loss sees in the place of :meth:`activate`, where an architecture trains by another rule.

        Args:
            k: another number of features per token than the config's, in architectures that select by number.
        """
        if k is not None:
            raise ValueError(f"a {self.architecture} dictionary does not select features by number: it takes no k")
        return self.activate(pre)

    def encode_in_training(self, x: Tensor, k: float | None = None) -> tuple[Tensor | None, Tensor]:
        """Pre-activations (None where there are none) and the activations that the loss sees."""
        pre = self.pre_activations(x)
        return pre, self.activate_in_training(pre, k)

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations of ``x``: ``[..., d_in]`` to ``[..., d_sae]``; negative in signed architectures alone."""
        return self.activate(self.pre_activations(x))

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """Feature activations of ``x``, ``[B, d_in]``, as sparse codes.

        Made by the kernels where they know the architecture and no gradient is asked for: then nothing of size
        ``[B, d_sae]`` is made, and values can differ from :meth:`encode` in the last bit.
        """
        from saescope.dictionaries.sparse_encoding import (
            encode_fast,  # it knows the architectures, which know this class
        )

        codes = encode_fast(self, x)
        return self._encode_sparse(x) if codes is None else SparseCodes.from_flat(codes)

    def _encode_sparse(self, x: Tensor) -> SparseCodes:
        return SparseCodes.from_dense(self.encode(x))

    def decode(self, f: Tensor | SparseCodes, x: Tensor | None = None) -> Tensor:
        """Reconstruction ``f @ W_dec + b_dec``: ``[..., d_sae]`` (or sparse codes) to ``[..., d_out]``.

        Args:
            x: the input that ``f`` came from. Only dictionaries that use it again ask for it: those that normalise each
                token, and transcoders with a skip connection.
        """
        return self.input_normalization.undo(self.combine(f) + self.offset(x), x)

    def offset(self, x: Tensor | None) -> Tensor:
        """What the reconstruction of ``x`` has without any feature."""
        return self.b_dec

    def direction(self, feature: int, x: Tensor | None = None) -> Tensor:
        """What one unit of a feature adds to the reconstruction of ``x``: its decoder row, in the units of the output.

        Args:
            x: ``[..., d_in]``; only dictionaries that normalise each token look at it.

        Returns:
            ``[d_out]`` or ``[..., d_out]``.
        """
        return self.written(self.W_dec[feature], x)

    def written(self, rows: Tensor, x: Tensor | None = None) -> Tensor:
        """Multiples and sums of decoder rows, ``[..., d_out]``, in the units of the output; ``x`` as :meth:`direction`."""
        return self.input_normalization.undo_direction(rows, x)

    def combine(self, f: Tensor | SparseCodes) -> Tensor:
        """Features times decoder rows, without bias."""
        if isinstance(f, SparseCodes):
            return F.embedding_bag(f.indices, self.W_dec, per_sample_weights=f.values, mode="sum")
        return f @ self.W_dec

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of ``x``, same shape."""
        return self.decode(self.encode(x), x)

    # What training asks for, beside gradients

    def after_step(self, f: Tensor | FlatCodes) -> None:
        """Called once after every optimizer step with the activations that the loss saw, ``[B, d_sae]``, detached.

        Architectures that the sparse kernels know get them as :class:`saescope.kernels.FlatCodes`, all others dense.
        """

    def normalise_decoder(self) -> None:
        """Bring decoder rows to norm 1."""
        with torch.no_grad():
            self.W_dec.div_(self.decoder_norms.clamp_min(1e-12)[:, None])

    def project_decoder_gradient(self) -> None:
        """Take from the decoder's gradient the part along each row, which could only change its norm."""
        grad = self.W_dec.grad
        if grad is not None:
            directions = F.normalize(self.W_dec.detach(), dim=-1)
            grad -= (grad * directions).sum(-1, keepdim=True) * directions

    def reset_features(self, rows: Tensor) -> None:
        """Set what features have beside their rows back to where it began."""
        if self.b_enc is not None:
            self.b_enc[rows] = 0

    @torch.no_grad()
    def take_up_norms(self) -> None:
        """Bring decoder rows to norm 1; encoders take up the norms, so that each feature writes what it wrote.

        An architecture that compares features with each other would choose others then. There, norms near each other (as
        another sample's whitening leaves them) are dropped, and others refused.

        Raises:
            ValueError: norms far apart in such an architecture.
        """
        norms = self.decoder_norms.clamp_min(1e-12)
        low, high = float(norms.min()), float(norms.max())
        if not self.acts_per_feature and high > _FAR_APART * low:
            raise ValueError(
                f"decoder rows have norms from {low:.3g} to {high:.3g}, and a {self.architecture} dictionary with rows of "
                "norm 1 would choose other features; train it with unit_norm_decoder set to false"
            )
        self.W_dec.div_(norms[:, None])
        for name in ("encoder_rows", "b_enc", *self.in_activation_units) if self.acts_per_feature else ():
            parameter = getattr(self, name)
            if parameter is not None:
                parameter.mul_(norms[:, None] if parameter.ndim > 1 else norms)

    def constrain(self) -> None:
        """Bring parameters of a rule back to where they have a meaning (a threshold is not negative)."""

    # Units: from the activations that training saw to raw ones

    @torch.no_grad()
    def fold_scale(self, scale_in: float, scale_out: float | None = None) -> None:
        """Turn a dictionary trained on ``scale_in * x`` (to rebuild ``scale_out * y``) into the same on raw
        activations.

        The encoders here are positively homogeneous: scaling input, biases and thresholds together scales the
        activations. So dividing biases and thresholds gives ``decode(encode(x)) = decode_scaled(encode_scaled(s x)) /
        s`` with decoder rows left as they are, and activations in units of raw activations. An architecture that does
        not claim to be homogeneous keeps its activations and gets the scale in the rows of both matrices instead.
        """
        scale_out = scale_in if scale_out is None else scale_out
        for scale in (scale_in, scale_out):
            if not 0 < scale < float("inf"):
                raise ValueError(f"the input scale must be positive, got {scale}")
        if scale_in != scale_out and self.config.apply_b_dec_to_input:
            raise ValueError("b_dec can not be in two units: one scale for input and output, or no b_dec on the input")
        if self.positively_homogeneous:
            for name in ("b_enc", *self.in_activation_units):
                if getattr(self, name) is not None:
                    getattr(self, name).div_(scale_out)
            self.scale_encoder(scale_in / scale_out)
        else:
            self.scale_encoder(scale_in)
            self.transform_decoder(torch.full((self.d_out,), 1 / scale_out, dtype=torch.float64))
        self.b_dec.div_(scale_out)

    def scale_encoder(self, factor: float) -> None:
        """Multiply what reads the input."""
        if factor != 1 and self.encoder_rows is not None:
            self.encoder_rows.mul_(factor)

    def transform_decoder(self, matrix: Tensor) -> None:
        """``W_dec @ matrix`` in the place of ``W_dec``; a vector stands for a diagonal matrix. In float64 inside."""
        self.W_dec.copy_(times(self.W_dec.double(), matrix.to(self.W_dec.device)))

    @torch.no_grad()
    def fold_affine(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> None:
        """Turn a dictionary trained on ``(x - mean) @ matrix`` into the same dictionary on ``x``.

        Feature activations stay what they are, decoder rows become ``W_dec @ inverse``. All in float64: ``mean``
        ``[d_in]``, ``matrix`` and ``inverse`` ``[d_in, d_in]``, or vectors for diagonal ones.

        Raises:
            ValueError: the encoder is the decoder: the map can not be folded into both.
        """
        mean, matrix, inverse = (t.to(self.b_dec.device, torch.float64) for t in (mean, matrix, inverse))
        rows = self.fold_matrix(matrix if matrix.ndim == 1 else matrix.T)
        if not self.config.apply_b_dec_to_input:
            self.shift_pre_activations(-(rows @ mean))
        self.transform_decoder(inverse)
        self.b_dec.copy_(times(self.b_dec.double(), inverse) + mean)

    def fold_matrix(self, transposed: Tensor) -> Tensor:
        """``matrix @ W_enc`` in the place of ``W_enc``; returns the new rows in float64, ``[d_sae, d_in]``."""
        if self.encoder_rows is None:
            raise ValueError(f"a linear map of the input can not be folded into a {self.architecture} dictionary")
        rows = times(self.encoder_rows.double(), transposed)
        self.encoder_rows.copy_(rows)
        return rows

    def shift_pre_activations(self, shift: Tensor) -> None:
        """Add a constant ``[d_sae]`` to the pre-activations."""
        if self.b_enc is None:
            raise ValueError(f"a {self.architecture} dictionary has no encoder bias to take up a mean")
        self.b_enc.add_(shift)

    # On disk

    def saved_tensors(self) -> dict[str, Tensor]:
        """The tensors of the file, by the field's names: ``W_enc [d_in, d_sae]``, ``W_dec``, biases, and a rule's
        own."""
        named = dict(self.named_parameters()) | dict(self.named_buffers())
        if self.encoder_rows is not None:
            named["W_enc"] = named.pop("encoder_rows").T
        return {name: tensor.detach() for name, tensor in named.items()}

    @torch.no_grad()
    def take_tensors(self, tensors: dict[str, Tensor], *, copy: bool = True) -> None:
        """Become what a file holds (names, shapes and dtypes were checked); without ``copy`` the tensors are our own."""
        own = dict(self.named_parameters()) | dict(self.named_buffers())
        for name, tensor in tensors.items():
            mine = own["encoder_rows" if name == "W_enc" else name]
            value = tensor.T if name == "W_enc" else tensor
            mine.data = value.clone(memory_format=torch.contiguous_format) if copy else value

    def saelens_extras(self) -> dict[str, Any]:
        """Keys of cfg.json beside those that all architectures share, in SAELens' names where it has them."""
        shared = {field.name for field in fields(DictionaryConfig)}
        return {self.saelens_keys.get(key, key): v for key, v in self.settings().items() if key not in shared}

    def settings(self) -> dict[str, Any]:
        """The config as plain values, with what folding made of it."""
        return asdict(self.config)


def _own_seed(seed: int) -> int:
    """A seed for dictionaries alone: synthetic atoms drawn with the same number are not the rows to begin with."""
    return int.from_bytes(hashlib.sha256(f"dictionary {seed}".encode()).digest()[:7], "big")


def random_rows(num_rows: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Random unit rows; without a generator, memory to be filled."""
    if generator is None:
        return torch.empty(num_rows, width)
    return F.normalize(torch.randn(num_rows, width, generator=generator), dim=-1)


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix``, where a vector stands for a diagonal matrix."""
    return rows * matrix if matrix.ndim == 1 else rows @ matrix


_FAR_APART = 1.5  # ratio of norms of rows that were of norm 1 in another sample's whitening, and less

D = TypeVar("D", bound=type[Dictionary])
_ARCHITECTURES: dict[str, type[Dictionary]] = {}
_OPENED_ONLY: dict[str, type[Dictionary]] = {}


def register(
    name: str, *, saelens_name: str | None = None, written_as: str | None = None, trained: bool = True
) -> Callable[[D], D]:
    """Class decorator that makes an architecture known to recipes, loading and saving under ``name``.

    ``saelens_name`` is the ``architecture`` of cfg.json where SAELens knows the same function; without it the name on
    disk is ``saescope/NAME``, so that SAELens refuses the file instead of opening something else. ``written_as`` is the
    SAELens name of another architecture that computes the same at inference: files get that name, and a note for us.
    What is not ``trained`` is known to files alone.
    """

    def decorate(cls: D) -> D:
        on_disk = saelens_name or written_as or f"saescope/{name}"
        for known in opened_architectures().values():
            # a class that is defined again (a reloaded module, a notebook cell) replaces itself
            again = (known.__module__, known.__qualname__) == (cls.__module__, cls.__qualname__)
            if not again and name == known.architecture:
                raise ValueError(f"the architecture name {name!r} is taken by {known.__qualname__}; choose another")
            if not again and not written_as and known.opens_saelens_name and on_disk == known.saelens_name:
                raise ValueError(
                    f"{known.__qualname__} opens the files named {on_disk!r}; leave saelens_name out, "
                    f"so that yours are named 'saescope/{name}'"
                )
        cls.architecture, cls.saelens_name, cls.opens_saelens_name = name, on_disk, not written_as
        (_ARCHITECTURES if trained else _OPENED_ONLY)[name] = cls
        return cls

    return decorate


def architectures() -> dict[str, type[Dictionary]]:
    """Every registered architecture by name, those that can only be opened left out."""
    return dict(_ARCHITECTURES)


def opened_architectures() -> dict[str, type[Dictionary]]:
    """Every architecture that a file can hold."""
    return {**_ARCHITECTURES, **_OPENED_ONLY}


def architecture(name: str) -> type[Dictionary]:
    """The class registered under ``name``; ValueError with the nearest names otherwise."""
    if name in opened_architectures():
        return opened_architectures()[name]
    near = difflib.get_close_matches(name, _ARCHITECTURES, n=3, cutoff=0.4)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(sorted(_ARCHITECTURES))}."
    )
    raise ValueError(
        f"unknown architecture {name!r}: {hint} One of your own has to be registered first (on the command line: "
        "--plugin FILE)"
    )
