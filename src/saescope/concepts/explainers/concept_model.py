"""The concept model: a saescope dictionary, with what interpreto's arguments add to it, as an encoder and a decoder.

    pre, codes = model.encode(x)        # [n, d] -> [n, c] and [n, c]
    x_hat = model.decode(codes)         # [n, c] -> [n, d]
    D = model.get_dictionary()          # [c, d], the rows in effect

In evaluation both are functions of weights and input alone: codes of a row do not depend on the rows beside it, nothing is
drawn, nothing is normalised in place.

n  rows, d  activation width, c  concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from saescope.concepts.explainers.atoms import AtomSettings, Normalised, begin_atoms
from saescope.concepts.explainers.encoders import Encoded, build_encoder
from saescope.concepts.explainers.pursuit import DroppedPursuit
from saescope.dictionaries import BatchTopK, Dictionary, DictionaryConfig, JumpReLU, MatchingPursuit, TopK


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a concept model is made of: enough to make it anew."""

    kind: type[Dictionary]  # the architecture
    config: DictionaryConfig
    encoder: nn.Module | str | None = None  # None: the architecture's own linear layer
    atoms: AtomSettings = field(default_factory=AtomSettings)
    decoder_bias: bool = False
    loss: Mapping[str, Any] = field(default_factory=dict)  # settings of the architecture's own loss
    first_share: float | None = None  # of rows that a concept fires on at first; None: as the architecture has it
    threshold_momentum: float | None = None  # of BatchTopK; None: a plain mean at first, exponential later
    dropout: float | None = None  # of matching pursuit

    def __post_init__(self) -> None:
        if issubclass(self.kind, MatchingPursuit):
            if self.encoder is not None:
                raise ValueError(
                    "matching pursuit has no encoder: its atoms are all there is; leave encoder_module out"
                )
            if not self.atoms.unit_rows:
                raise ValueError(
                    "matching pursuit needs rows of norm 1, as its residuals grow with longer ones; leave normalization at "
                    "'l2' and use_multiplier off"
                )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is a probability in [0, 1), got {self.dropout}")
        if self.threshold_momentum is not None and not 0 <= self.threshold_momentum < 1:
            raise ValueError(f"threshold_momentum lies in [0, 1), got {self.threshold_momentum}")

    @property
    def unit_rows(self) -> bool:
        """Whether rows are brought to norm 1 after every step."""
        return self.atoms.unit_rows and self.kind.unit_norm is not False

    def build(self, seed: int | None = 0) -> Dictionary:
        """A new dictionary; ``seed`` draws rows and the weights of a named encoder."""
        dictionary = _class(self.kind, not self.atoms.is_plain, self.encoder is not None, self.dropout is not None)(
            self.config, seed=seed
        )
        if isinstance(dictionary, Normalised):
            dictionary.take_atoms(self.atoms)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            if isinstance(dictionary, Encoded):
                assert self.encoder is not None
                dictionary.encoder = build_encoder(self.encoder, dictionary.d_in, dictionary.d_sae)
            if seed is not None and self.kind.unit_norm is not False:
                begin_atoms(dictionary, self.atoms)
        if isinstance(dictionary, DroppedPursuit):
            dictionary.dropout = self.dropout or 0.0
        if not self.decoder_bias:  # not learned, and no parameter: it stays 0
            zero = dictionary.b_dec.detach()
            del dictionary.b_dec
            dictionary.register_buffer("b_dec", zero)
        return dictionary


@cache
def _class(kind: type[Dictionary], normalised: bool, encoded: bool, dropped: bool) -> type[Dictionary]:
    """The architecture with what is put before it."""
    chosen: list[tuple[bool, Any]] = [(normalised, Normalised), (encoded, Encoded), (dropped, DroppedPursuit)]
    parts = [part for wanted, part in chosen if wanted]
    if not parts:
        return kind
    return type("".join(part.__name__ for part in (*parts, kind)), (*parts, kind), {"__module__": __name__})


class ConceptModel(nn.Module):
    """Encoder, codes and decoder of concepts.

    Attributes:
        dictionary: what computes. recipe: what it was made of. fitted: whether :meth:`SAEExplainer.fit` has ended.
        on_raw_activations: whether biases and thresholds are in units of the model's activations; those of a new one are in
            units of activations of mean norm sqrt(d), in which it will be fitted.
    """

    def __init__(self, recipe: Recipe, *, seed: int | None = 0, dictionary: Dictionary | None = None) -> None:
        """``dictionary``: one that exists already, in the place of a new one."""
        super().__init__()
        self.recipe = recipe
        self.dictionary = recipe.build(seed) if dictionary is None else dictionary
        self.fitted = False
        self.on_raw_activations = dictionary is not None

    @property
    def input_shape(self) -> int:
        return self.dictionary.d_in

    @property
    def nb_concepts(self) -> int:
        return self.dictionary.d_sae

    @property
    def device(self) -> torch.device:
        return self.dictionary.b_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.dictionary.b_dec.dtype

    def reset(self, seed: int) -> None:
        """Make everything anew, where and in the dtype that it is."""
        like = self.dictionary.b_dec
        self.dictionary = self.recipe.build(seed).to(like.device, like.dtype)
        self.fitted = self.on_raw_activations = False

    @torch.no_grad()
    def begin_sparse(self, sample: Tensor, share: float) -> None:
        """Set thresholds, or the biases of ReLU, so that each concept fires on this share of ``sample``, ``[N, d]``.

        Penalties find their number of codes from there in far fewer steps than from a dense beginning.
        """
        dictionary = self.dictionary
        pre = dictionary.pre_activations(sample)
        rank = min(len(pre), max(1, round((1 - share) * len(pre))))
        below, above = (pre.kthvalue(min(r, len(pre)), dim=0).values for r in (rank, rank + 1))
        levels = ((below + above) / 2).clamp_min(0)  # [c]; between two rows, so that none is at the bend itself
        if isinstance(dictionary, JumpReLU):
            dictionary.threshold.copy_(levels)
        elif dictionary.b_enc is not None:
            dictionary.b_enc.sub_(levels)

    def encode(self, x: Tensor, k: int | None = None) -> tuple[Tensor | None, Tensor]:
        """Pre-codes (None where an architecture has none) and codes of ``x``, ``[n, d]``.

        Args:
            k: another number of concepts per row than in training, for TopK and matching pursuit.

        Raises:
            ValueError: another width, or ``k`` where rows are not selected by number.
        """
        dictionary = self.dictionary
        x = x.to(self.device, self.dtype)
        if k is not None:
            self._check_k(k)
        if self.training:
            return dictionary.encode_in_training(x, k)
        if isinstance(dictionary, MatchingPursuit):
            return None, dictionary.encode(x, k)
        pre = dictionary.pre_activations(x)
        return pre, dictionary.activate(pre) if k is None else dictionary.activate_in_training(pre, k)

    def _check_k(self, k: int) -> None:
        if not isinstance(self.dictionary, TopK | MatchingPursuit):
            raise ValueError(f"k can not be chosen for codes of a {self.dictionary.architecture} dictionary")
        if not isinstance(k, int) or k < 1 or (isinstance(self.dictionary, TopK) and k > self.nb_concepts):
            raise ValueError(f"k is a whole number from 1 to the {self.nb_concepts} concepts, got {k!r}")

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions ``codes @ D``, and the decoder's bias where there is one: ``[n, c]`` to ``[n, d]``."""
        if codes.shape[-1] != self.nb_concepts:
            raise ValueError(f"codes have {codes.shape[-1]} columns, and there are {self.nb_concepts} concepts")
        return self.dictionary.decode(codes.to(self.device, self.dtype))

    def get_dictionary(self) -> Tensor:
        """The rows in effect, ``[c, d]``: what one unit of each concept adds to the reconstruction."""
        return self.dictionary.input_normalization.undo_direction(self.dictionary.W_dec, None)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Pre-codes, codes and reconstruction."""
        pre, codes = self.encode(x)
        return pre, codes, self.decode(codes)

    @torch.no_grad()
    def after_step(self, codes: Tensor) -> None:
        """What follows a step of training: BatchTopK's running threshold."""
        dictionary, momentum = self.dictionary, self.recipe.threshold_momentum
        if not isinstance(dictionary, BatchTopK) or momentum is None:
            dictionary.after_step(codes)
            return
        smallest = codes.where(codes > 0, torch.inf).min()
        known = dictionary.threshold.nan_to_num(nan=float(smallest))  # the first batch is taken as it is
        if smallest.isfinite():
            dictionary.threshold.copy_(momentum * known + (1 - momentum) * smallest)
            dictionary.threshold_steps += 1

    def plain_dictionary(self) -> Dictionary:
        """The same function as a dictionary of saescope, to be saved, spliced or measured like any other.

        Raises:
            ValueError: the encoder is a module of several layers, which no dictionary has.
        """
        own = self.dictionary
        if isinstance(own, Encoded):
            raise ValueError(
                "these concepts are encoded by a module (encoder_module), and a dictionary has one linear layer; use "
                "encode_activations, or fit without encoder_module"
            )
        if type(own) is self.recipe.kind and self.recipe.decoder_bias:
            return own
        plain = self.recipe.kind(self.recipe.config, seed=None).to(own.b_dec.device, own.b_dec.dtype)
        with torch.no_grad():
            for name, tensor in (*plain.named_parameters(), *plain.named_buffers()):
                tensor.copy_(getattr(own, name))
        plain.input_normalization, plain.metadata = own.input_normalization, dict(own.metadata)
        return plain.eval()
