"""The core numbers of a dictionary: how well it rebuilds, how sparsely, and what the model loses by it.

One pass over held-out text in windows: the model runs as it is and once more with the dictionary spliced in. Everything is
summed in float64 by document, place in the window and frequency of the token, so that memory does not grow with the
tokens, intervals come from documents drawn again, and the breakdowns are parts of the same sums.

B  windows, T  tokens of a batch, d_sae  features, D  documents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saescope.activations import TokenWindows
from saescope.dictionaries import Dictionary
from saescope.dictionaries.codes import SparseCodes
from saescope.evaluation.core.baselines import ABLATIONS, Baselines, predictions_of
from saescope.evaluation.core.grouped import GroupedSums
from saescope.evaluation.core.splicing import CleanPass
from saescope.evaluation.core.weights import encoder_decoder_cosine, max_cosine, require_finite
from saescope.evaluation.intervals import bootstrap
from saescope.evaluation.results import Better, Number, StudyResult
from saescope.evaluation.sample import TokenSample
from saescope.evaluation.sites import Sites

if TYPE_CHECKING:
    from saescope.models import LanguageModel

_REBUILT = (
    "tokens", "error", "spread", "legacy", "varying", "norm", "norm_hat", "square_hat", "dot", "cosine", "ratio", "nonzero",
    "l0", "l1",
)  # fmt: skip
_LOST = ("predictions", "ce_clean", "ce_spliced", "kl_spliced")
_ROUNDING = (
    1e-26  # float64 sums of equal numbers leave this much of their squared norm where a squared distance should be 0
)
_DENSITY_EDGES = np.linspace(-6, 0, 49)  # of log10 density

Formula = Callable[[dict[str, np.ndarray]], np.ndarray]


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    hook_point: str | Sequence[str],
    *,
    hook_point_out: str | None = None,
    num_tokens: int | None = None,
    batch_size_windows: int = 16,
    seed: int = 0,
    baselines: Baselines | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> StudyResult:
    """Evaluate a dictionary on at most ``num_tokens`` tokens, in windows spread evenly over the text.

    Numbers that compare with an ablation come in three variants (zero, mean, resample); a model that predicts no next token
    has none of them, and says so. The tables ``by position`` and ``by token frequency`` break the main numbers down; the
    curve ``features`` holds density, largest cosines and encoder-decoder cosine of every feature.

    Args:
        hook_point: where the dictionary reads; of a crosscoder, the list of its sources.
        hook_point_out: where a transcoder writes. Its reconstruction is compared with the activations there, and
            spliced in there.
        baselines: what :meth:`Baselines.measure` gave for the same model, text and places, where several dictionaries are
            evaluated. The amount of text and the batches are its own then.
        seed: of resampling and of the intervals.
        on_progress: called with (batches done, batches in all).

    Raises:
        ValueError: width or hook point do not fit, a weight is not a number, or there are no tokens.
    """
    started = time.perf_counter()
    require_finite(dictionary)
    sites = Sites.of(dictionary, model, hook_point, hook_point_out)
    before = 0
    if baselines is None:
        before = 2 if model.is_causal else 1  # passes over the text
        baselines = Baselines.measure(
            model,
            windows,
            sites,
            num_tokens=num_tokens,
            batch_size_windows=batch_size_windows,
            seed=seed,
            on_progress=on_progress and (lambda done, total: on_progress(done, total + total // before)),
        )
    elif baselines.writes != sites.writes:
        raise ValueError(f"the baselines were measured at {', '.join(baselines.writes)}, not {', '.join(sites.writes)}")
    measured = _Core.on(dictionary, baselines)
    batches = baselines.batches()
    for done, (batch, tokens) in enumerate(batches, start=1):
        measured.add(CleanPass.run(model, sites, batch), tokens)
        if on_progress:
            on_progress(before * len(batches) + done, (before + 1) * len(batches))
    no_losses = "" if model.is_causal else f"{model.name} predicts no next token, so that it has no loss to recover"
    return measured.result(seed, time.perf_counter() - started, no_losses)


@torch.no_grad()
def evaluate_activations(dictionary: Dictionary, sample: TokenSample, *, seed: int = 0) -> StudyResult:
    """The core numbers on bare activations (images, synthetic data, a cache), without a model and so without its losses.

    Raises:
        ValueError: widths do not fit, or a weight is not a number.
    """
    started = time.perf_counter()
    require_finite(dictionary)
    if (dictionary.d_in, dictionary.d_out) != (sample.x.shape[1], sample.y.shape[1]):
        raise ValueError(
            f"the dictionary has d_in = {dictionary.d_in} and d_out = {dictionary.d_out}, but the activations have width "
            f"{sample.x.shape[1]} and {sample.y.shape[1]}"
        )
    _, document = np.unique(sample.document, return_inverse=True)
    sizes = {"document": int(document.max()) + 1}
    pilot = sample.y[0].double()
    mean = pilot + torch.stack([(y.double() - pilot).sum(0) for _, _, y in sample.batches()]).sum(0) / len(sample)
    measured = _Core(dictionary, sizes, mean, len(sample))
    for part, x, y in sample.batches():
        measured.add_activations(x, y, {"document": document[part]})
    return measured.result(
        seed, time.perf_counter() - started, "these are activations without a model to lose anything"
    )


class _Core:
    """Sums of one dictionary's evaluation."""

    def __init__(
        self,
        dictionary: Dictionary,
        sizes: Mapping[str, int],
        mean: Tensor,
        num_tokens: int,
        baselines: Baselines | None = None,
        answer: Callable[[Tensor, slice], Tensor] | None = None,
    ) -> None:
        """``answer`` stands in for the dictionary's reconstruction of kept tokens, in tests."""
        self.dictionary, self.mean, self.num_tokens, self.baselines = dictionary, mean, num_tokens, baselines
        self.rebuilt = GroupedSums(sizes, _REBUILT)
        self.lost = GroupedSums(sizes, _LOST) if baselines is not None and baselines.losses is not None else None
        self.counts = np.zeros(dictionary.d_sae, dtype=np.int64)
        self._answer = answer

    @classmethod
    def on(cls, dictionary: Dictionary, baselines: Baselines, **more: Any) -> _Core:
        return cls(dictionary, baselines.grouping.sizes, baselines.mean, baselines.num_tokens, baselines, **more)

    def add(self, clean: CleanPass, tokens: slice) -> None:
        assert self.baselines is not None
        if not len(clean.x):
            return
        groups = self.baselines.grouping.groups(clean.batch)
        rebuilt = self.add_activations(clean.x, clean.y, groups, tokens)
        if self.lost is not None and len(clean.targets):
            assert clean.log_probabilities is not None
            ce, kl = clean.with_replaced(rebuilt)
            self.lost.add(
                predictions_of(groups, clean),
                {
                    "predictions": np.ones(len(ce)),
                    "ce_clean": clean.cross_entropy(clean.log_probabilities).cpu().numpy(),
                    "ce_spliced": ce.cpu().numpy(),
                    "kl_spliced": kl.cpu().numpy(),
                },
            )

    def add_activations(
        self, x: Tensor, y: Tensor, groups: dict[str, np.ndarray], tokens: slice = slice(None)
    ) -> Tensor:
        """Sums over activations and what becomes of them, which is given back, ``[T, d_out]``."""
        codes = self.dictionary.encode_sparse(x.to(self.dictionary.W_dec.dtype))
        rebuilt = self.dictionary.decode(codes, x) if self._answer is None else self._answer(x, tokens)
        self.rebuilt.add(groups, self._rebuilt(y.double(), rebuilt.double(), codes))
        fired = codes.firings().feature
        self.counts += torch.bincount(fired.cpu(), minlength=len(self.counts)).numpy()
        return rebuilt

    def _rebuilt(self, y: Tensor, y_hat: Tensor, codes: SparseCodes) -> dict[str, np.ndarray]:
        error, spread = (y - y_hat).square().sum(-1), (y - self.mean.to(y.device)).square().sum(-1)
        norm, norm_hat, dot = y.norm(dim=-1), y_hat.norm(dim=-1), (y * y_hat).sum(-1)
        varying = spread > _ROUNDING * norm.square()  # a token at the mean itself has no ratio
        one = torch.ones((), dtype=torch.float64)
        values = codes.values.double()
        columns = {
            "tokens": torch.ones_like(norm),
            "error": error,
            "spread": torch.where(varying, spread, 0),
            "legacy": torch.where(varying, 1 - error / torch.where(varying, spread, one), 0),
            "varying": varying.double(),
            "norm": norm,
            "norm_hat": norm_hat,
            "square_hat": norm_hat.square(),
            "dot": dot,
            "cosine": dot / (norm * norm_hat).clamp_min(1e-300),
            "ratio": torch.where(norm != 0, norm_hat / torch.where(norm != 0, norm, one), 0),
            "nonzero": (norm != 0).double(),
            "l0": (values != 0).sum(-1).double(),
            "l1": values.abs().sum(-1),
        }
        return {name: column.cpu().numpy() for name, column in columns.items()}

    def result(self, seed: int, seconds: float, no_losses: str = "") -> StudyResult:
        density = self.counts / max(1, self.num_tokens)
        weights = _of_rows(self.dictionary)
        numbers = [
            Number(name="num_tokens", value=self.num_tokens),
            Number(name="num_documents", value=int((self.rebuilt.column("document", "tokens") > 0).sum())),
            *self._formulas(self._sums(self.rebuilt), _REBUILT_NUMBERS, seed),
            *_of_features(density),
            *_of_weights(weights),
        ]
        notes = []
        if self.lost is None:
            notes.append(no_losses)
            numbers += [Number(name=name, value=None, reason=no_losses) for name, *_ in _LOST_NUMBERS]
        else:
            numbers.append(Number(name="num_predictions", value=int(self.lost.total("predictions"))))
            numbers += self._formulas(self._sums(self.lost), _LOST_NUMBERS, seed)
        if not self.counts.any():
            notes.append("no feature fired on these tokens: the dictionary is dead")
        return StudyResult(
            study="core",
            numbers=tuple(numbers),
            tables={f"by {name}": self._breakdown(name) for name in self.rebuilt.tables if name != "document"},
            curves={
                "density_histogram": _histogram(density),
                "features": {
                    name: [_plain(value) for value in values.tolist()]
                    for name, values in {"density": density, **weights}.items()
                },
            },
            notes=tuple(notes),
            seconds=seconds,
        )

    def _sums(self, sums: GroupedSums, grouping: str = "document") -> dict[str, np.ndarray]:
        """Every column ``[G]``, with the ablations' losses where losses are asked for; groups with tokens alone."""
        columns = {name: sums.column(grouping, name) for name in sums.columns}
        if sums is self.lost:
            assert self.baselines is not None
            assert self.baselines.losses is not None
            for ablation in ABLATIONS:
                for name in (f"ce_{ablation}", f"kl_{ablation}"):
                    columns[name] = self.baselines.losses.column(grouping, name)
        held = columns["tokens" if "tokens" in columns else "predictions"] > 0
        return {name: column[held] for name, column in columns.items()}

    def _formulas(self, sums: dict[str, np.ndarray], wanted: Sequence[Any], seed: int) -> list[Number]:
        """Each formula on the totals, with its interval over documents."""
        names = list(sums)

        def all_of_them(totals: np.ndarray) -> np.ndarray:
            columns = dict(zip(names, totals.T, strict=True))
            with np.errstate(all="ignore"):
                return np.stack([formula(columns) for _, formula, *_ in wanted], axis=-1)

        table = np.stack([sums[name] for name in names], axis=-1)  # [D, S]
        values = all_of_them(table.sum(0, keepdims=True))[0]
        intervals = bootstrap(table, all_of_them, seed=seed)
        found = []
        for (name, _, better, variant, reason), value, ends in zip(wanted, values.tolist(), intervals, strict=True):
            low, high = ends or (None, None)
            found.append(
                Number.of(name, value, low=low, high=high, better=better, variant=variant, reason=reason or _UNDEFINED)
            )
        return found

    def _breakdown(self, name: str) -> list[dict[str, Any]]:
        """A row for every group that holds tokens."""
        assert self.baselines is not None
        rebuilt = {column: self.rebuilt.column(name, column) for column in _REBUILT}
        losses = None
        if self.lost is not None and self.baselines.losses is not None:
            losses = {column: self.lost.column(name, column) for column in _LOST}
            losses["ce_zero"] = self.baselines.losses.column(name, "ce_zero")
        rows = []
        for group, title in enumerate(self.baselines.grouping.titles(name)):
            if not rebuilt["tokens"][group]:
                continue
            own = {column: values[group] for column, values in rebuilt.items()}
            row: dict[str, Any] = {name: title, "num_tokens": int(own["tokens"])}
            row["explained_variance"] = _plain(_explained(own))
            row["l0"] = _plain(own["l0"] / own["tokens"])
            if losses is not None:
                lost = {column: values[group] for column, values in losses.items()}
                n = lost["predictions"]
                row["ce_loss_increase"] = _plain((lost["ce_spliced"] - lost["ce_clean"]) / n) if n else None
                row["ce_loss_recovered"] = _plain(_recovered("ce", "zero")(lost)) if n else None
            rows.append(row)
        return rows


_UNDEFINED = "0 divided by 0: nothing to measure it by"


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _explained(s: Any) -> Any:
    with np.errstate(all="ignore"):
        return 1 - np.divide(s["error"], s["spread"])


def _ratio(above: str, below: str) -> Formula:
    return lambda s: s[above] / s[below]


def _recovered(loss: str, ablation: str) -> Formula:
    """(ablated - spliced) / (ablated - clean); undefined where the ablation does no harm."""

    def formula(s: dict[str, np.ndarray]) -> np.ndarray:
        clean = s["ce_clean"] if loss == "ce" else 0 * s["kl_spliced"]
        ablated, spliced = s[f"{loss}_{ablation}"], s[f"{loss}_spliced"]
        damage = ablated - clean
        with np.errstate(all="ignore"):
            return np.where(damage > 0, (ablated - spliced) / damage, np.nan)

    return formula


_Wanted = tuple[str, Formula, Better, str, str]
_FIXED_MEAN = "1 - E|x - x_hat|^2 / E|x - mean|^2, mean per dimension over all tokens"
_NO_SPREAD = "all activations are the same: there is no variance to explain"
_REBUILT_NUMBERS: tuple[_Wanted, ...] = (
    ("explained_variance", _explained, "higher", _FIXED_MEAN, _NO_SPREAD),
    (
        "explained_variance_legacy",
        _ratio("legacy", "varying"),
        "higher",
        "mean over tokens of 1 - |x - x_hat|^2 / |x - mean|^2, as in older tables (which take each batch's own mean)",
        _NO_SPREAD,
    ),
    ("cosine", _ratio("cosine", "tokens"), "higher", "mean of cos(x, x_hat); 0 where one of them is 0", ""),
    ("mse", _ratio("error", "tokens"), "lower", "mean over tokens of |x - x_hat|^2, summed over dimensions", ""),
    ("l2_norm_in", _ratio("norm", "tokens"), "", "", ""),
    ("l2_norm_out", _ratio("norm_hat", "tokens"), "", "", ""),
    ("l2_ratio", _ratio("ratio", "nonzero"), "", "mean of |x_hat| / |x|; below 1 the dictionary shrinks", ""),
    (
        "relative_reconstruction_bias",
        _ratio("square_hat", "dot"),
        "",
        "E|x_hat|^2 / E[x . x_hat] (arXiv 2404.16014, equation 10); below 1 the dictionary shrinks",
        "",
    ),
    ("l0", _ratio("l0", "tokens"), "", "features per token with an activation other than 0", ""),
    ("l1", _ratio("l1", "tokens"), "", "sum of absolute activations per token", ""),
)
_NO_HARM = "the ablation does not raise the loss: the model may ignore this place, or there are too few tokens"
_AGAINST = {"zero": "", "mean": "_mean", "resample": "_resample"}
_LOST_NUMBERS: tuple[_Wanted, ...] = (
    ("ce_loss_clean", _ratio("ce_clean", "predictions"), "", "nats per predicted token", ""),
    ("ce_loss_spliced", _ratio("ce_spliced", "predictions"), "lower", "nats per predicted token", ""),
    *((f"ce_loss_{a}_ablation", _ratio(f"ce_{a}", "predictions"), "", "", "") for a in ABLATIONS),
    ("kl_spliced", _ratio("kl_spliced", "predictions"), "lower", "KL of the spliced from the clean predictions", ""),
    *((f"kl_{a}_ablation", _ratio(f"kl_{a}", "predictions"), "", "", "") for a in ABLATIONS),
    *(
        (f"{loss}_recovered{_AGAINST[a]}", _recovered(loss[:2], a), "higher", f"against {a} ablation", _NO_HARM)
        for loss in ("ce_loss", "kl")
        for a in ABLATIONS
    ),
)


def _of_features(density: np.ndarray) -> list[Number]:
    total = density.sum()
    dense = density > 0.1
    more_than_a_hundredth = density > 0.01
    silent = "no feature fired"
    return [
        Number(
            name="silent_share", value=float((density == 0).mean()), better="lower", variant="no firing on these tokens"
        ),
        Number(
            name="dense_share", value=float(dense.mean()), better="lower", variant="features on over 10 % of the tokens"
        ),
        Number(
            name="over_1_percent_share", value=float(more_than_a_hundredth.mean()), variant="on over 1 % of the tokens"
        ),
        Number.of(
            "dense_firings_share",
            float(density[dense].sum() / total) if total else None,
            variant="share of all firings that are of features on over 10 % of the tokens",
            reason=silent,
        ),
    ]


def _of_rows(dictionary: Dictionary) -> dict[str, np.ndarray]:
    """What each feature's weights say, ``[d_sae]`` each; without the encoder where it reads another width."""
    found = {"max_decoder_cosine": max_cosine(dictionary.W_dec).numpy()}
    cosine = encoder_decoder_cosine(dictionary)
    if cosine is not None:
        found["max_encoder_cosine"] = max_cosine(dictionary.W_enc.T).numpy()
        found["encoder_decoder_cosine"] = cosine.numpy()
    return found


def _of_weights(weights: dict[str, np.ndarray]) -> list[Number]:
    wanted = {
        "mean_max_decoder_cosine": ("max_decoder_cosine", "largest cosine of its decoder row with another's"),
        "mean_max_encoder_cosine": ("max_encoder_cosine", "largest cosine of its encoder column with another's"),
        "encoder_decoder_cosine": ("encoder_decoder_cosine", "cosine of its encoder column with its decoder row"),
    }
    return [
        Number.of(
            name,
            float(weights[column].mean()) if column in weights else None,
            variant=f"mean over features: {what}",
            reason="a single feature has no other"
            if column in weights
            else "the encoder reads another width than the decoder writes",
        )
        for name, (column, what) in wanted.items()
    ]


def _histogram(density: np.ndarray) -> dict[str, list[float | None]]:
    """Features by log10 density; those below a millionth stand in the first bin, silent ones in none."""
    logs = np.log10(density[density > 0]).clip(_DENSITY_EDGES[0], 0)
    count, edges = np.histogram(logs, bins=_DENSITY_EDGES)
    return {"left": edges[:-1].tolist(), "right": edges[1:].tolist(), "count": count.tolist()}
