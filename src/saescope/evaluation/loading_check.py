"""Whether a dictionary that was opened does on data what it should; and where it does not, why.

"My loaded dictionary reconstructs badly" has few causes, and each has a remedy that can be tried: if the explained
variance ::

    EV = 1 - E|y - y_hat|^2 / E|y - mean(y)|^2

is clearly better for activations times a factor, for those of a neighbouring layer, or for those less their mean, then that
is what is wrong. "Clearly" means that at least a fifth of what is not explained goes away. What can not be told so is
compared with what was published.

N  tokens, d_in and d_out  widths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.activations import TokenWindows
from saescope.activations.of_dictionary import Preparation, preparations, prepared
from saescope.dictionaries import Dictionary
from saescope.models.hook_points import HookPointError

if TYPE_CHECKING:
    from saescope.activations import WindowBatch
    from saescope.models import LanguageModel

_WINDOWS_AT_ONCE = 16
_FACTORS = tuple(2 ** (n / 2) for n in range(-16, 17))
_NO_FACTOR = 1.5  # factors up to this are training's own shrinkage
_LESS_UNEXPLAINED = 0.8  # what an alternative may leave unexplained at most, as a share of what is
_MORE_EXPLAINED = 0.02
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")  # the number of a block in a hook point's name


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that looks wrong.

    Attributes:
        kind: ``scale``, ``output_scale``, ``layer``, ``centring``, ``mean``, ``untrained``, ``silent``, ``dense``, ``poor``,
            ``l0``, ``variance_explained``.
    """

    kind: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class LoadingCheck:
    """What was measured, and what looks wrong."""

    model: str
    places: tuple[str, ...]
    num_tokens: int
    l0: float
    explained_variance: float
    loss_recovered: float | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    claims: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "places": list(self.places), "looks_right": not self.findings}

    def lines(self) -> list[str]:
        """Numbers, then sentences."""
        recovered = "not defined" if self.loss_recovered is None else f"{self.loss_recovered:.4f}"
        published = ", ".join(f"{name} {value:g}" for name, value in _numbers(self.claims).items())
        said = [
            f"on {self.num_tokens:,} tokens of {self.model} at {'; '.join(self.places)}: L0 {self.l0:.1f}, explained "
            f"variance {self.explained_variance:.4f}, loss recovered {recovered}"
            + (f" (published: {published})" if published else ""),
            *self.notes,
        ]
        if not self.findings:
            return [*said, "nothing looks wrong"]
        return [*said, *(f"looks wrong: {finding.sentence}" for finding in self.findings)]


def check_loading(
    dictionary: Dictionary,
    model: LanguageModel,
    windows: TokenWindows,
    hook_point: str | Sequence[str] | None = None,
    hook_point_out: str | None = None,
    *,
    num_tokens: int = 4096,
    claims: Mapping[str, Any] | None = None,
) -> LoadingCheck:
    """Measure a dictionary on some thousand tokens and look for what is commonly wrong with an opened one.

    Args:
        hook_point: None for the one in its metadata; likewise ``hook_point_out``.
        claims: what was published of it: ``l0``, ``variance_explained``.

    Raises:
        ValueError: widths do not fit the hook points, or none is known.
    """
    name = hook_point if isinstance(hook_point, str | None) else ", ".join(hook_point)
    reads = preparations(dictionary.metadata, model, name, dictionary.d_in)
    writes = preparations(dictionary.metadata, model, hook_point_out, dictionary.d_out, out=True)
    texts = list(windows.evenly(num_tokens).in_order(_WINDOWS_AT_ONCE))
    seen = _Seen(model, texts)
    with torch.no_grad():
        return _Check(dictionary, seen, reads, writes, dict(claims or {})).run()


class _Seen:
    """Activations of a model on some windows, read once for all places."""

    def __init__(self, model: LanguageModel, texts: list[WindowBatch]) -> None:
        self.model, self.texts = model, texts
        self._values: dict[str, list[Tensor]] = {}

    def at(self, wanted: Sequence[Preparation], *, special: bool = False) -> Tensor:
        """``[N, d]`` float32; ``special``: of special tokens alone."""
        missing = [each.name for each in wanted if each.name not in self._values]
        if missing:
            read = [self.model.read(batch.ids, missing, attention_mask=batch.attention) for batch in self.texts]
            self._values |= {name: [found[name] for found in read] for name in missing}
        keeps = [batch.attention & ~batch.keep if special else batch.keep for batch in self.texts]
        parts = [
            prepared({each.name: self._values[each.name][i] for each in wanted}, wanted, keep)
            for i, keep in enumerate(keeps)
        ]
        return torch.cat(parts)


class _Check:
    def __init__(
        self,
        dictionary: Dictionary,
        seen: _Seen,
        reads: tuple[Preparation, ...],
        writes: tuple[Preparation, ...],
        claims: dict[str, Any],
    ) -> None:
        self.dictionary, self.seen, self.reads, self.writes, self.claims = dictionary, seen, reads, writes, claims
        self.x = seen.at(reads)
        self.y = seen.at(writes) if writes else self.x
        self.dtype = dictionary.b_dec.dtype

    def run(self) -> LoadingCheck:
        codes = self.dictionary.encode(self.x.to(self.dtype))
        self.l0 = float((codes != 0).sum(-1).double().mean())
        self.explained = _explained(self.y, self.rebuilt(self.x))
        alternatives = self._of_alternatives()
        # other activations also say why too many features fire; another factor behind the decoder does not
        told = any(each.kind != "output_scale" for each in alternatives)
        findings = [each for each in self._of_features() if each.kind != "dense" or not told] + alternatives
        if not findings and self.explained < 0.3:
            findings.append(
                Finding(
                    kind="poor",
                    sentence="it rebuilds badly, and no factor, neighbouring layer or mean makes it better: is it another "
                    "model's, or of other text?",
                )
            )
        findings += self._of_claims()
        return LoadingCheck(
            model=self.seen.model.name,
            places=tuple(map(str, (*self.reads, *self.writes))),
            num_tokens=len(self.x),
            l0=self.l0,
            explained_variance=self.explained,
            loss_recovered=self._loss_recovered(),
            findings=tuple(findings),
            notes=tuple(self._notes()),
            claims=self.claims,
        )

    def rebuilt(self, x: Tensor) -> Tensor:
        return self.dictionary(x.to(self.dtype)).float()

    def _clearly_better(self, explained: float) -> bool:
        return explained > self.explained + _MORE_EXPLAINED and 1 - explained < _LESS_UNEXPLAINED * (1 - self.explained)

    # What a dictionary that was not opened right looks like

    def _of_features(self) -> list[Finding]:
        dictionary = self.dictionary
        if self.l0 == 0:
            return [Finding(kind="silent", sentence="no feature fires on these tokens")]
        found = []
        biases = [dictionary.b_dec, *([dictionary.b_enc] if dictionary.b_enc is not None else [])]
        tied = dictionary.encoder_rows is not None and dictionary.encoder_rows.shape == dictionary.W_dec.shape
        if tied and not any(bool(bias.any()) for bias in biases) and torch.equal(dictionary.W_enc.T, dictionary.W_dec):
            sentence = "it looks untrained: all biases are 0, and its encoder is its decoder"
            found.append(Finding(kind="untrained", sentence=sentence))
        if self.l0 > max(dictionary.d_in, dictionary.d_sae / 4):  # more than any token can need
            found.append(
                Finding(
                    kind="dense",
                    sentence=f"{self.l0:.0f} of {dictionary.d_sae:,} features fire on a token: has a threshold or k "
                    "been lost?",
                )
            )
        return found

    def _of_alternatives(self) -> list[Finding]:
        """The remedy that explains most, if one explains clearly more."""
        tried: list[tuple[float, Finding]] = []
        for look in (self._scales, self._output_scale, self._layers, self._centring, self._mean):
            tried += [(explained, finding) for explained, finding in look() if self._clearly_better(explained)]
        return [max(tried, key=lambda pair: pair[0])[1]] if tried else []

    def _scales(self) -> list[tuple[float, Finding]]:
        if self.writes:
            return []  # input and output have factors of their own: the output's is looked at
        norm = float(self.x.norm(dim=-1).mean())
        if not norm:
            return []
        natural = {"sqrt(d_in)": self.dictionary.d_in**0.5 / norm, "1": 1 / norm}
        tried = {
            factor: _explained(self.x, self.rebuilt(self.x * factor) / factor)
            for factor in (*_FACTORS, *natural.values())
        }
        best = max(tried, key=lambda factor: tried[factor])
        if 1 / _NO_FACTOR < best < _NO_FACTOR:
            return []
        words = f"the scale is off by a constant: activations times {best:.3g} are rebuilt with explained variance "
        words += f"{tried[best]:.4f}, and as they are with {self.explained:.4f}"
        for target, factor in natural.items():
            if 0.8 < best / factor < 1.25:
                words += f"; {factor:.3g} would bring their mean norm ({norm:.3g}) to {target}, as some trainers do"
        return [(tried[best], Finding(kind="scale", sentence=f"{words}. Fold that factor into the weights"))]

    def _output_scale(self) -> list[tuple[float, Finding]]:
        """The factor on what features write that fits best, in the sense of least squares."""
        offset = self.dictionary.b_dec.float()
        if self.dictionary.input_normalization.name != "none":
            return []
        written, wanted = self.rebuilt(self.x) - offset, self.y - offset
        square = float(written.double().square().sum())
        if not square:
            return []
        factor = float((written.double() * wanted.double()).sum()) / square
        if not factor > 0 or 1 / _NO_FACTOR < factor < _NO_FACTOR:
            return []
        explained = _explained(self.y, written * factor + offset)
        sentence = (
            f"what it rebuilds is off by a constant: times {factor:.3g} it explains {explained:.4f} of the variance, and "
            f"as it is {self.explained:.4f}. The decoder's scale (of the output) was lost, or folded twice"
        )
        return [(explained, Finding(kind="output_scale", sentence=sentence))]

    def _layers(self) -> list[tuple[float, Finding]]:
        found = []
        for step in (-2, -1, 1, 2):
            reads, writes = _moved(self.reads, step), _moved(self.writes, step)
            if reads is None or writes is None:
                continue
            try:
                x = self.seen.at(reads)
                y = self.seen.at(writes) if writes else x
            except HookPointError:
                continue  # before the first block, or after the last
            if x.shape[-1] != self.dictionary.d_in or y.shape[-1] != self.dictionary.d_out:
                continue
            explained = _explained(y, self.rebuilt(x))
            names = ", ".join(each.name for each in reads)
            sentence = (
                f"the layer may be wrong: it explains {explained:.4f} of the variance at {names}, and "
                f"{self.explained:.4f} here"
            )
            found.append((explained, Finding(kind="layer", sentence=sentence)))
        return found

    def _centring(self) -> list[tuple[float, Finding]]:
        if any(each.centre for each in (*self.reads, *self.writes)):
            other = [tuple(replace(each, centre=False) for each in each_of) for each_of in (self.reads, self.writes)]
            words = "without taking off each token's mean it explains {0:.4f}, with it {1:.4f}: its metadata speak of "
            words += "centred weights, but it was trained on the stream as it is"
        else:
            other = [tuple(replace(each, centre=True) for each in each_of) for each_of in (self.reads, self.writes)]
            words = (
                "less each token's mean, activations are explained to {0:.4f}, as they are to {1:.4f}: it was trained on "
                "the centred stream of TransformerLens (metadata: model_from_pretrained_kwargs.center_writing_weights)"
            )
        x = self.seen.at(other[0])
        y = self.seen.at(other[1]) if other[1] else x
        explained = _explained(y, self.rebuilt(x))
        return [(explained, Finding(kind="centring", sentence=words.format(explained, self.explained)))]

    def _mean(self) -> list[tuple[float, Finding]]:
        mean_in, mean_out = self.x.mean(0), self.y.mean(0)
        explained = _explained(self.y, self.rebuilt(self.x - mean_in) + mean_out)
        sentence = (
            f"with the mean over tokens taken off first and added again it explains {explained:.4f} of the variance, and "
            f"{self.explained:.4f} as it is: its trainer took the mean off, and did not fold it into the biases"
        )
        return [(explained, Finding(kind="mean", sentence=sentence))]

    def _of_claims(self) -> list[Finding]:
        claims, found = _numbers(self.claims), []
        l0, explained = claims.get("l0"), claims.get("variance_explained")
        if l0 and not 1 / 1.5 < self.l0 / l0 < 1.5:
            found.append(
                Finding(kind="l0", sentence=f"{self.l0:.1f} features fire on a token, and {l0:g} were published")
            )
        if explained is not None and self.explained < explained - 0.1:
            found.append(
                Finding(
                    kind="variance_explained",
                    sentence=f"it explains {self.explained:.3f} of the variance, and {explained:g} was published",
                )
            )
        return found

    def _notes(self) -> list[str]:
        """What opening tokens do to the numbers: they are left out, and a measurement with them shows another picture."""
        special = self.seen.at(self.reads, special=True)
        if not len(special):
            return []
        ratio = float(special.norm(dim=-1).mean() / self.x.norm(dim=-1).mean().clamp_min(1e-30))
        x = torch.cat([self.x, special])
        y = torch.cat([self.y, self.seen.at(self.writes, special=True)]) if self.writes else x
        explained = _explained(y, self.rebuilt(x))
        if abs(explained - self.explained) < 0.02 and ratio < 3:
            return []
        return [
            f"special tokens (BOS) are left out: they are {ratio:.1f} times as long as others, and with them the explained "
            f"variance would be {explained:.4f}"
        ]

    def _loss_recovered(self) -> float | None:
        """(ablated - spliced) / (ablated - clean) in nats, against zero; None where ablating does no harm."""
        model = self.seen.model
        places = self.writes or self.reads
        if not model.is_causal or len(places) > 1 or any(each.head or each.factor != 1 for each in places):
            return None
        (place,) = places
        totals = dict.fromkeys(("clean", "spliced", "zero"), 0.0)
        first = 0
        for batch in self.seen.texts:
            count = int(batch.keep.sum())
            rebuilt = self.rebuilt(self.x[first : first + count])
            first += count
            keep = batch.keep.to(model.device)

            def spliced(value: Tensor, keep: Tensor = keep, rebuilt: Tensor = rebuilt) -> Tensor:
                out, kept = value.clone(), value[keep].float()
                left = kept - place(kept)  # what was taken off before, a token's mean, comes back
                out[keep] = (rebuilt + left).to(value.dtype)
                return out

            def zero(value: Tensor, keep: Tensor = keep) -> Tensor:
                out = value.clone()
                out[keep] = 0
                return out

            for what, edit in {"clean": None, "spliced": spliced, "zero": zero}.items():
                totals[what] += _loss(model, batch, {place.name: edit} if edit else None)
        harm = totals["zero"] - totals["clean"]
        return (totals["zero"] - totals["spliced"]) / harm if harm > 0 else None


def _loss(model: LanguageModel, batch: WindowBatch, edits: Mapping[str, Callable[[Tensor], Tensor]] | None) -> float:
    """Nats, summed over predictions made at kept tokens."""
    logits = model.logits(batch.ids, attention_mask=batch.attention, edits=edits)
    predicts = batch.keep & F.pad(batch.attention[:, 1:], (0, 1), value=False)
    targets = F.pad(batch.ids[:, 1:], (0, 1))[predicts]
    chosen = logits[predicts.to(logits.device)].float()
    return float(F.cross_entropy(chosen, targets.to(logits.device), reduction="sum"))


def _explained(y: Tensor, y_hat: Tensor) -> float:
    y, y_hat = y.double(), y_hat.double()
    spread = float((y - y.mean(0)).square().sum())
    return 1 - float((y - y_hat).square().sum()) / spread if spread else float("nan")


def _moved(places: tuple[Preparation, ...], step: int) -> tuple[Preparation, ...] | None:
    """The same places some layers on; None where there is no such layer."""
    moved = []
    for each in places:
        number = _LAYER.search(each.name)
        if number is None or int(number[0]) + step < 0:
            return None
        name = f"{each.name[: number.start()]}{int(number[0]) + step}{each.name[number.end() :]}"
        moved.append(replace(each, name=name))
    return tuple(moved)


def _numbers(claims: Mapping[str, Any]) -> dict[str, float]:
    found = {name: claims.get(name) for name in ("l0", "variance_explained")}
    return {n: float(v) for n, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}
