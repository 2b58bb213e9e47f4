"""A whole step of TopK training on a CUDA device: ours beside a dense one, and both beside what the device could do.

Runs on a machine that has torch, triton, numpy and safetensors and nothing else:

    python benchmarks/gpu_step.py --shape 2304,65536,64,8192 --rounds 9 --json

In one process on one device, in this order: the device's rate of bfloat16 products (8192^3) and of copies, on random
numbers; whether losses agree with dense float32 autograd over the first steps of a small shape; then rounds of steps,
ours and dense in turn. The lower bound T_min is made of the rates just measured. A step runs from activations on the
device to weights that may be read again:

* ours: encoder product in bfloat16 with values again in float32, selection, sparse decode, squared error, gradients from
  what fires with the decoder's projected, clipping to norm 1, Adam, decoder rows of norm 1;
* dense: what SAELens does for a TopK dictionary under bfloat16 autocast: pre-activations times decoder norms, top-k,
  a dense tensor of activations, dense products, squared error, firing counts, autograd, clipping to norm 1, torch's
  Adam. No projection, and norms are free; the loss on dead features is left out, as none is dead.

B  tokens, d  width, N  features, k  features that fire per token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # the package need not be installed

LR, BETAS, EPS, MAX_NORM = 1e-4, (0.9, 0.999), 1e-8, 1.0
SHAPES = ("2304,65536,64,8192", "4096,262144,64,16384")
AGREEMENT = "256,4096,16,512"


@dataclass(frozen=True)
class Shape:
    """What a step is measured at."""

    d: int
    d_sae: int
    k: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``d,N,k,B``."""
        try:
            shape = cls(*(int(part) for part in text.split(",")))
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f"a shape is four whole numbers d,N,k,B, not {text!r}") from None
        if min(asdict(shape).values()) < 1 or shape.k > shape.d_sae:
            raise argparse.ArgumentTypeError(f"numbers of a shape are at least 1, and k at most N; got {text!r}")
        return shape


@dataclass(frozen=True)
class Rates:
    """What a device sustains."""

    flops: float  # of a bfloat16 product, per second
    bandwidth: float  # bytes read and written, per second


def lower_bound(shape: Shape, rates: Rates) -> dict[str, float]:
    """Seconds that no step of this shape can do without, by part.

    The encoder's product; writing and reading its results once in bfloat16; three gathers of bfloat16 rows (decode,
    gradients of the values, of the weights); Adam, which reads four float32 numbers per weight and writes three, and the
    gradient that is written for it.
    """
    B, N, d, k = shape.batch, shape.d_sae, shape.d, shape.k
    parts = {
        "encoder product": 2 * B * N * d / rates.flops,
        "pre-activations": 2 * B * N * 2 / rates.bandwidth,
        "gathers": 3 * B * k * d * 2 / rates.bandwidth,
        "optimizer": (28 + 4) * 2 * N * d / rates.bandwidth,
    }
    return parts | {"T_min": sum(parts.values())}


# Contenders. Each step is a list of named stages, and leaves its loss in ``self.loss``.


class Ours:
    """The kernels of saescope, called as its trainer calls them."""

    def __init__(self, shape: Shape, device: torch.device, *, bfloat16: bool = True) -> None:
        from saescope.kernels import Gradients, gpu

        self.kernels, self.shape, self.bfloat16 = gpu, shape, bfloat16
        self.encoder, self.decoder, self.b_enc, self.b_dec = first_weights(shape, device)
        self.out = Gradients.like(self.encoder, self.decoder)
        self.d_b_dec = torch.zeros_like(self.b_dec)
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in self._weights()]
        self.num_done = 0
        self.loss = torch.zeros((), device=device)

    def _weights(self) -> list[Tensor]:
        return [self.encoder, self.decoder, self.b_enc, self.b_dec]

    def stages(self) -> list[tuple[str, Callable[[Tensor], None]]]:
        return [
            ("encode and select", self._encode), ("decode and loss", self._decode), ("gradients", self._gradients),
            ("clip", self._clip), ("Adam and unit norm", self._move),
        ]  # fmt: skip

    @torch.no_grad()
    def _encode(self, x: Tensor) -> None:
        self.x_in = x - self.b_dec
        self.codes = self.kernels.topk(self.x_in, self.encoder, self.b_enc, self.shape.k, bfloat16=self.bfloat16)

    @torch.no_grad()
    def _decode(self, x: Tensor) -> None:
        error = self.kernels.decode(self.codes, self.decoder, self.b_dec, [self.shape.d_sae])  # [1, B, d]
        error -= x
        self.loss = error.square().sum() / len(x)
        self.g = error.mul_(2 / len(x))

    @torch.no_grad()
    def _gradients(self, x: Tensor) -> None:
        self.kernels.gradients(
            self.codes, None, self.g, self.x_in, self.decoder, [self.shape.d_sae], self.out, unit_norm=True
        )
        self.d_b_dec = self.g.sum((0, 1)) - self.out.bias @ self.encoder

    @torch.no_grad()
    def _clip(self, x: Tensor) -> None:
        norm = (self.out.squares.sum() + sum(g.double().square().sum() for g in (self.out.bias, self.d_b_dec))).sqrt()
        self.factor = (MAX_NORM / (norm + 1e-6)).clamp_max(1.0)  # stays on the device

    @torch.no_grad()
    def _move(self, x: Tensor) -> None:
        from saescope.kernels import AdamStep

        self.num_done += 1
        how = AdamStep(
            lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, step=self.num_done, gradient_factor=self.factor
        )  # fmt: skip
        gradients = [self.out.encoder, self.out.decoder, self.out.bias, self.d_b_dec]
        for number, (weights, gradient, (m, v)) in enumerate(
            zip(self._weights(), gradients, self.moments, strict=True)
        ):
            matrices = [t if t.ndim > 1 else t.view(1, -1) for t in (weights, gradient, m, v)]
            self.kernels.adam(*matrices, replace(how, unit_norm=number == 1))


class Dense:
    """Dense autograd with the operations of SAELens, in bfloat16 autocast."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        encoder, decoder, b_enc, b_dec = first_weights(shape, device)
        self.W_enc = nn.Parameter(encoder.T.contiguous())
        del encoder
        self.W_dec, self.b_enc, self.b_dec = nn.Parameter(decoder), nn.Parameter(b_enc), nn.Parameter(b_dec)
        self.parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        self.adam = torch.optim.Adam(self.parameters, lr=LR, betas=BETAS, eps=EPS)
        self.since_fired, self.num_firings = torch.zeros_like(b_enc), torch.zeros_like(b_enc)
        self.loss = torch.zeros((), device=device)

    def stages(self) -> list[tuple[str, Callable[[Tensor], None]]]:
        return [("forward", self._forward), ("backward", self._backward), ("clip and Adam", self._move)]

    def _forward(self, x: Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            norms = self.W_dec.norm(dim=-1)
            pre = ((x - self.b_dec) @ self.W_enc + self.b_enc) * norms
            values, features = pre.topk(self.shape.k, dim=-1, sorted=False)
            f = torch.zeros_like(pre).scatter(-1, features, values.relu())  # [B, N]
            x_hat = (f * (1 / self.W_dec.norm(dim=-1))) @ self.W_dec + self.b_dec
            self.total = (x_hat - x).square().sum(-1).mean()
            with torch.no_grad():
                fires = f.bool().float()
                self.since_fired += 1
                self.since_fired[fires.sum(0).bool()] = 0
                self.num_firings += fires.sum(0)
        self.loss = self.total.detach()

    def _backward(self, x: Tensor) -> None:
        self.total.backward()
        del self.total

    def _move(self, x: Tensor) -> None:
        nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.adam.step()
        self.adam.zero_grad()


class Exact:
    """Our step in dense float32 autograd, with torch's own parts: what losses are compared with."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.parameters = [nn.Parameter(w) for w in first_weights(shape, device)]
        self.adam = torch.optim.Adam(self.parameters, lr=LR, betas=BETAS, eps=EPS)
        self.loss = torch.zeros((), device=device)

    def stages(self) -> list[tuple[str, Callable[[Tensor], None]]]:
        return [("step", self._step)]

    def _step(self, x: Tensor) -> None:
        encoder, decoder, b_enc, b_dec = self.parameters
        pre = F.linear(x - b_dec, encoder, b_enc)
        values, features = pre.topk(self.shape.k, dim=-1)
        f = torch.zeros_like(pre).scatter(-1, features, values.relu())
        loss = (f @ decoder + b_dec - x).square().sum(-1).mean()
        loss.backward()
        self.loss = loss.detach()
        with torch.no_grad():
            assert decoder.grad is not None
            directions = F.normalize(decoder, dim=-1)
            decoder.grad -= (decoder.grad * directions).sum(-1, keepdim=True) * directions
            nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
            self.adam.step()
            self.adam.zero_grad()
            decoder.div_(decoder.norm(dim=-1, keepdim=True).clamp_min(1e-12))


def first_weights(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder ``[N, d]`` equal to the decoder ``[N, d]`` of unit rows, and two biases of zeros; the same at every call."""
    generator = torch.Generator(device).manual_seed(0)
    decoder = F.normalize(torch.randn(shape.d_sae, shape.d, generator=generator, device=device), dim=-1)
    return decoder.clone(), decoder, decoder.new_zeros(shape.d_sae), decoder.new_zeros(shape.d)


def tokens(shape: Shape, device: torch.device, num_batches: int) -> list[Tensor]:
    """Batches ``[B, d]`` of a few heavy-tailed directions and noise, so that features fire unevenly as in real models."""
    generator = torch.Generator(device).manual_seed(1)

    def numbers(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    directions = F.normalize(numbers(64, shape.d), dim=-1)
    return [numbers(shape.batch, 64) ** 3 @ directions + numbers(shape.batch, shape.d) for _ in range(num_batches)]


def agreement(shape: Shape, device: torch.device, num_steps: int) -> dict[str, float]:
    """The largest relative difference of our losses to those of dense float32 autograd, in both precisions."""
    batches = tokens(shape, device, 4)

    def losses(contender: Any) -> Tensor:
        found = []
        for number in range(num_steps):
            for _, stage in contender.stages():
                stage(batches[number % len(batches)])
            found.append(contender.loss.clone())
        return torch.stack(found)

    exact = losses(Exact(shape, device))
    found = {"float32": Ours(shape, device, bfloat16=False), "bfloat16": Ours(shape, device)}
    return {name: float(((losses(ours) - exact) / exact).abs().max()) for name, ours in found.items()}


# Measuring


def milliseconds(job: Callable[[], object], num_rounds: int) -> float:
    """Median time of a job on the device, after two that are not counted."""
    times = []
    for number in range(num_rounds + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        job()
        end.record()
        end.synchronize()
        if number >= 2:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def measured_rates(device: torch.device) -> Rates:
    """Product and copy rate, on random numbers: zeros would look faster."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    flops = 2 * 8192**3 / milliseconds(lambda: torch.mm(a, b, out=product), 15) * 1e3
    source = torch.randn(1 << 28, device=device)
    copy = torch.empty_like(source)
    return Rates(flops, 2 * source.nbytes / milliseconds(lambda: copy.copy_(source), 15) * 1e3)


def timed_step(contender: Any, x: Tensor) -> dict[str, float]:
    """Milliseconds of every stage and of the whole step."""
    stages = contender.stages()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
    marks[0].record()
    for (_, stage), mark in zip(stages, marks[1:], strict=True):
        stage(x)
        mark.record()
    marks[-1].synchronize()
    times = {name: a.elapsed_time(b) for (name, _), a, b in zip(stages, marks[:-1], marks[1:], strict=True)}
    return times | {"total": marks[0].elapsed_time(marks[-1])}


def compare(shape: Shape, device: torch.device, num_rounds: int, num_steps: int, only: str | None) -> dict[str, Any]:
    """Medians over rounds in which contenders take turns; one that does not fit into memory is left out, by name."""
    batches = tokens(shape, device, 2)
    makers: dict[str, Any] = {"ours": Ours, "dense": Dense}
    contenders: dict[str, Any] = {}
    held: dict[str, int] = {}  # bytes between steps
    peaks: dict[str, int] = {}
    missing: list[str] = []
    for name, maker in makers.items():
        if only not in (None, name):
            continue
        before = torch.cuda.memory_allocated(device)
        try:
            contenders[name] = maker(shape, device)
            for number in range(3):  # kernels are compiled, gradients and moments allocated
                timed_step(contenders[name], batches[number % 2])
            held[name] = torch.cuda.memory_allocated(device) - before
        except torch.cuda.OutOfMemoryError:
            contenders.pop(name, None)
            missing.append(name)
            torch.cuda.empty_cache()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(num_rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            others = torch.cuda.memory_allocated(device) - held[name]
            torch.cuda.reset_peak_memory_stats(device)
            steps = [timed_step(contenders[name], batches[step % 2]) for step in range(num_steps)]
            peaks[name] = max(peaks.get(name, 0), torch.cuda.max_memory_allocated(device) - others)
            rounds[name].append({stage: statistics.mean(s[stage] for s in steps) for stage in steps[0]})
    found: dict[str, Any] = {"out_of_memory": missing}
    for name, times in rounds.items():
        totals = [time["total"] for time in times]
        found[name] = {
            "stages_ms": {stage: statistics.median(time[stage] for time in times) for stage in times[0]},
            "total_ms_min": min(totals), "total_ms_max": max(totals), "peak_bytes": peaks[name],
        }  # fmt: skip
    if len(rounds) == 2:
        ratios = [d["total"] / o["total"] for o, d in zip(rounds["ours"], rounds["dense"], strict=True)]
        found["dense_over_ours"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found


def share_of_bound(bound: dict[str, float], total_ms: float) -> float:
    """T_min as a share of what a step took."""
    return bound["T_min"] / (total_ms / 1e3)


# Report


def page(report: dict[str, Any]) -> str:
    """The report as markdown."""
    rates = report["rates"]
    lines = [
        f"{report['device']}; torch {report['torch']}, Triton {report['triton']}. bfloat16 product "
        f"{rates['flops'] / 1e12:.0f} TFLOP/s, copy {rates['bandwidth'] / 1e12:.2f} TB/s, measured in this run. "
        f"Medians over {report['rounds']} rounds in turn.",
        "",
        "Loss against dense float32 autograd, largest relative difference over "
        f"{report['agreement_steps']} steps at {report['agreement_shape']}: "
        + ", ".join(f"{name} {value:.1e}" for name, value in report["agreement"].items())
        + ".",
    ]
    for result in report["shapes"]:
        lines += ["", f"## d, N, k, B = {result['shape']}", "", "| part | ms |", "|---|---|"]
        lines += [f"| bound: {name} | {1e3 * seconds:.2f} |" for name, seconds in result["bound_s"].items()]
        for name in ("ours", "dense"):
            if name in result:
                lines += [f"| {name}: {stage} | {ms:.2f} |" for stage, ms in result[name]["stages_ms"].items()]
        lines.append("")
        for name in ("ours", "dense"):
            if name in result:
                lines.append(
                    f"{name}: {result[name]['share_of_T_min']:.0%} of T_min, {result[name]['tokens_per_s']:,.0f} "
                    f"tokens/s, {result[name]['peak_bytes'] / 1e9:.1f} GB at most "
                    f"({result[name]['total_ms_min']:.2f} to {result[name]['total_ms_max']:.2f} ms).  "
                )
        if "dense_over_ours" in result:
            ratio = result["dense_over_ours"]
            lines.append(f"dense / ours: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}).")
        lines += [f"{name}: does not fit into this device's memory." for name in result["out_of_memory"]]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="One whole TopK training step on a CUDA device, beside its lower bound."
    )
    parser.add_argument(
        "--shape", type=Shape.parse, action="append", help=f"d,N,k,B; several are allowed ({SHAPES[0]})"
    )
    parser.add_argument("--rounds", type=at_least(7), default=9, help="rounds in which both take turns, at least 7 (9)")
    parser.add_argument("--steps", type=at_least(1), default=5, help="steps in a round (5)")
    parser.add_argument("--only", choices=("ours", "dense"), help="measure one alone, where both do not fit")
    parser.add_argument("--agreement-steps", type=at_least(1), default=50, help="steps whose losses are compared (50)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number of at least {least} is wanted, not {text!r}")
        return int(text)

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            "gpu_step.py measures on a CUDA device, and torch sees none here: run it on a machine with an NVIDIA GPU and "
            "a CUDA build of torch. benchmarks/training_step.py measures on a CPU.",
            file=sys.stderr,
        )
        return 2
    try:
        import triton
    except ImportError:
        print("gpu_step.py needs Triton, which a CUDA build of torch brings along: pip install triton", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    rates = measured_rates(device)
    torch.cuda.empty_cache()
    small = Shape.parse(AGREEMENT)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device), "torch": torch.__version__, "triton": triton.__version__,
        "rates": asdict(rates), "rounds": options.rounds, "steps": options.steps,
        "agreement_shape": AGREEMENT, "agreement_steps": options.agreement_steps,
        "agreement": agreement(small, device, options.agreement_steps), "shapes": [],
    }  # fmt: skip
    for shape in options.shape or [Shape.parse(SHAPES[0])]:
        torch.cuda.empty_cache()
        bound = lower_bound(shape, rates)
        result = {
            "shape": ", ".join(str(n) for n in asdict(shape).values()), "bound_s": bound,
            **compare(shape, device, options.rounds, options.steps, options.only),
        }  # fmt: skip
        for name in ("ours", "dense"):
            if name in result:
                total = result[name]["stages_ms"]["total"]
                result[name]["share_of_T_min"] = share_of_bound(bound, total)
                result[name]["tokens_per_s"] = shape.batch / (total / 1e3)
        report["shapes"].append(result)
    print(json.dumps(report) if options.json else page(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
