"""How to train: every setting of a run, checked when it is written down."""

from __future__ import annotations

from dataclasses import dataclass, field

from saescope.training.initialization import B_DEC_INITS, DECODER_INITS
from saescope.training.normalization import NORMALIZATIONS
from saescope.training.schedules import Shape, check_shape

SPARSE_KERNELS = ("auto", "always", "never")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train."""

    num_tokens: int  # training tokens; rounded down to whole batches
    batch_size_tokens: int = 4096
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 6.25e-10
    num_warmup_steps: int = 50
    lr_schedule: Shape = "constant"  # "constant", "linear", "cosine" or "cosine_restarts", between warm-up and decay
    num_cycles: int = 1  # of "cosine_restarts"
    lr_floor: float = 0.0  # share of lr at which "linear" and "cosine" end
    decay_share: float = 0.2  # the learning rate falls to zero over this last share of the steps
    lr_factors: dict[str, float] = field(default_factory=dict)  # multiples of lr by parameter, e.g. {"threshold": 10.0}
    max_grad_norm: float | None = 1.0
    unit_norm_decoder: bool | None = None  # None: as the architecture has it (nearly all: yes)
    normalization: str = "scale"  # "scale" (mean norm sqrt(d_in)), "unit_scale", "layer_norm", "whitening", "none"
    num_normalization_tokens: int = 0  # measured on at least so many tokens, always on the first batch
    b_dec_init: str = "mean"  # of a new dictionary: "mean" or "geometric_median" of these tokens, or "zero"
    decoder_init: str = "random"  # rows of a new dictionary: "random" directions, or "data" points
    decoder_init_norm: float | None = None  # norm of a new decoder's rows where it is free (0.1 in SAELens)
    search_init_norm: bool = False  # scale a new encoder so that the first reconstruction is as good as can be
    init_seed: int = 0  # of draws from the first tokens
    resample_every_n_steps: int | None = None  # neuron resampling: dead features start again from badly rebuilt inputs
    resample_until_share: float = 0.5  # not in the last part of the training
    autocast: bool = False  # matrix products in bfloat16 (faster where the hardware has them, slower on most CPUs)
    max_nan_fallbacks: int = 3  # steps with a loss that is not finite before autocast is given up for float32
    num_threshold_tokens: int = 65_536  # fresh tokens on which BatchTopK measures its threshold after the last step
    dead_after_tokens: int = 400_000  # a feature that has not fired for so many tokens is dead
    log_every_n_steps: int = 20
    checkpoint_every_n_steps: int = 500
    keep_last: int = 2  # checkpoints kept
    keep_every_n_steps: int | None = None  # and those of every so many steps
    num_prefetched_batches: int = 0  # read ahead in a thread; worth it where model and dictionary use other hardware
    sparse_kernels: str = "auto"  # work on firings alone: "auto" (where it is worth it), "always" or "never"

    def __post_init__(self) -> None:
        counts = (
            "batch_size_tokens", "dead_after_tokens", "log_every_n_steps", "checkpoint_every_n_steps", "keep_last",
        )  # fmt: skip
        for name in counts:
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_tokens < self.batch_size_tokens:
            raise ValueError(
                f"num_tokens = {self.num_tokens} is less than one batch of batch_size_tokens = {self.batch_size_tokens}"
            )
        if not self.num_warmup_steps >= 0:
            raise ValueError(f"num_warmup_steps must not be negative, got {self.num_warmup_steps}")
        check_shape(self.lr_schedule, self.num_cycles, self.lr_floor)
        for name, known in (
            ("normalization", NORMALIZATIONS), ("b_dec_init", B_DEC_INITS), ("decoder_init", DECODER_INITS),
            ("sparse_kernels", SPARSE_KERNELS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.max_nan_fallbacks < 1:
            raise ValueError(f"max_nan_fallbacks must be at least 1, got {self.max_nan_fallbacks}")
        for name in ("num_normalization_tokens", "num_threshold_tokens", "num_prefetched_batches"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.decoder_init_norm is not None and not self.decoder_init_norm > 0:
            raise ValueError(f"decoder_init_norm must be positive, got {self.decoder_init_norm}")
        for name in ("resample_every_n_steps", "keep_every_n_steps"):
            if getattr(self, name) is not None and not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, or None for no clipping, got {self.max_grad_norm}")
        if not self.lr > 0 or not 0 <= self.decay_share <= 1:
            raise ValueError(f"lr must be positive and decay_share in [0, 1], got {self.lr} and {self.decay_share}")

    @property
    def num_steps(self) -> int:
        return self.num_tokens // self.batch_size_tokens
