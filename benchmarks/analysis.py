"""What an analysis costs beside what it cannot do without, and whether its memory grows with the text: ``make bench``.

The first table: reading text with the bundled model as far as the hook point, the product of its activations with the
encoder, and the analysis's one pass over the same text, which does both of these and all the counting and keeping. Rounds
alternate; the dictionary is trained for a moment, so that features fire as unevenly as real ones.

The second: a cache of distinct synthetic tokens is read to the end, and the memory of the process is noted after the first
million tokens and at the end, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hardware import described, machine, versions
from report import add_output_options, publish, spread, table
from rounds import Spread, environment, ratio

from saescope import ActivationStream, LanguageModel, TokenWindows, TopK, TrainingConfig, read_documents, train
from saescope.activations import Document, WindowConfig
from saescope.analysis import AnalysisConfig, LiveText, Text, collect
from saescope.analysis.reading import Block
from saescope.dictionaries import TopKConfig

HOOK = "blocks.1.hook_resid_post"
CONFIG = AnalysisConfig()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens of the text in a round")
    parser.add_argument("--warm-tokens", type=int, default=400_000, help="tokens read before the first round")
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--train-tokens", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-tokens", type=int, default=10_000_000, help="0: leave the second table out")
    parser.add_argument("--memory-of", action="store_true", help=argparse.SUPPRESS)  # the process of its own
    add_output_options(parser)
    options = parser.parse_args(arguments)
    if options.memory_of:
        print(json.dumps(memory(options)))
        return
    data: dict[str, Any] = {"machine": machine(), "versions": versions(("saescope", "torch")), **vars(options)}
    data["cost"] = cost(options)
    if options.memory_tokens:
        run = subprocess.run(
            [sys.executable, __file__, "--memory-of", "--memory-tokens", str(options.memory_tokens),
             "--d-sae", str(options.d_sae), "--k", str(options.k)],
            capture_output=True, text=True, env=environment(torch.get_num_threads()),
        )  # fmt: skip
        if run.returncode:
            raise SystemExit(run.stderr)
        data["memory"] = json.loads(run.stdout)
    publish(options, "analysis", page(data), data)


def cost(options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = LanguageModel.load("bundled")
    windows = TokenWindows.build(read_documents("bundled"), model.tokenizer, WindowConfig(context_size=128))
    dictionary = TopK(TopKConfig(d_in=256, d_sae=options.d_sae, k=options.k))
    if options.train_tokens:
        stream = ActivationStream(model, windows, [HOOK], batch_size_tokens=2048).at(HOOK)
        train(dictionary, stream, TrainingConfig(num_tokens=options.train_tokens, batch_size_tokens=2048))
    text = LiveText(model, windows, [HOOK], num_tokens=options.tokens)
    warm = LiveText(model, windows, [HOOK], num_tokens=options.warm_tokens)
    # the lists of what is kept are full after some hundred thousand tokens; rounds go on from there
    collected = collect(dictionary, warm, CONFIG)
    state = collected.statistics.state(), collected.sample.state()
    xs = [block.x for block in text.blocks()]
    rows, bias = dictionary.encoder_rows.detach(), dictionary.b_enc.detach()

    def read() -> None:
        for _ in text.blocks():
            pass

    def product() -> None:
        for x in xs:
            torch.addmm(bias, x, rows.T)

    def encode() -> None:
        with torch.no_grad():
            for x in xs:
                dictionary.encode_sparse(x)

    def from_scratch() -> None:
        collect(dictionary, text, CONFIG)

    def steady() -> None:
        statistics = type(collected.statistics).from_state(state[0])
        sample = type(collected.sample).load(state[1])
        first = len(warm)
        with torch.no_grad():
            started = time.perf_counter()
            for block in text.blocks():
                moved = replace(block.tokens, windows=block.tokens.windows + first)
                codes = dictionary.encode_sparse(block.x)
                statistics.update(moved, codes)
                sample.update(Block(moved, block.positions, block.x).places, codes)
            seconds["analysis, after others"].append(time.perf_counter() - started)

    steps: dict[str, Callable[[], None]] = {
        "model to the hook point": read,
        "encoder product": product,
        "encoder with selection": encode,
        "analysis from nothing": from_scratch,
        "analysis, after others": steady,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            if run is not steady:
                seconds[name].append(time.perf_counter() - started)
        if not number:
            for found in seconds.values():
                found.clear()
    needed = [a + b for a, b in zip(seconds["model to the hook point"], seconds["encoder product"], strict=True)]
    micro = {name: [1e6 * s / text.num_tokens for s in found] for name, found in seconds.items()}
    micro["model and product together"] = [1e6 * s / text.num_tokens for s in needed]
    return {
        "microseconds_per_token": {name: Spread.of(found).named("us") for name, found in micro.items()},
        "ratio_from_nothing": ratio(seconds["analysis from nothing"], needed).named("ratio"),
        "ratio_after_others": ratio(seconds["analysis, after others"], needed).named("ratio"),
    }


class SyntheticText(Text):
    """Distinct synthetic tokens, as a cache would give them: activations are made as they are read."""

    reads_special_tokens = False
    block_size_windows = 64

    def __init__(self, num_tokens: int, d_in: int, context_size: int = 128) -> None:
        starts = np.arange(0, num_tokens - context_size + 1, context_size, dtype=np.int64)
        self.windows = TokenWindows(
            config=WindowConfig(context_size=context_size, prepend_bos=False),
            tokens=(np.arange(num_tokens, dtype=np.int64) * 2654435761 % 50_000).astype(np.int32),
            document_starts=np.array([0, num_tokens]),
            documents=[Document("synthetic", "")],
            starts=starts,
            lengths=np.full(len(starts), context_size, dtype=np.int32),
            special_ids=frozenset(),
            separator_id=None,
            bos_id=None,
            pad_id=0,
        )
        self.d_in = d_in
        generator = torch.Generator().manual_seed(1)
        self.mixing = torch.randn(d_in, d_in, generator=generator) * torch.logspace(0, -1.5, d_in)[:, None]

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[Block]:
        end = len(self) if last is None else last
        for start in range(first, end, self.block_size_windows):
            rows = range(start, min(start + self.block_size_windows, end))
            generator = torch.Generator().manual_seed(start)
            x = torch.randn(len(rows) * self.windows.config.context_size, self.d_in, generator=generator) @ self.mixing
            yield self._block(rows, self.windows.batch(rows), x)


def memory(options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    dictionary = TopK(TopKConfig(d_in=64, d_sae=options.d_sae, k=options.k))
    text = SyntheticText(options.memory_tokens, 64)
    readings: dict[int, dict[str, float]] = {}
    marks = iter(sorted({min(1_000_000, options.memory_tokens), options.memory_tokens * 9 // 10}))
    mark = next(marks)
    started = time.perf_counter()

    def on_progress(done: int, _: int) -> None:
        nonlocal mark
        if done >= mark:
            readings[mark] = {"resident_mb": _resident_mb(), "peak_mb": _peak_mb()}
            mark = next(marks, 1 << 62)

    collected = collect(dictionary, text, CONFIG, on_progress=on_progress)
    readings[options.memory_tokens] = {"resident_mb": _resident_mb(), "peak_mb": _peak_mb()}
    return {
        "readings": [{"tokens": tokens, **values} for tokens, values in readings.items()],
        "l0": float(collected.statistics.numbers()["num_firings"].sum() / collected.statistics.num_tokens),
        "seconds": time.perf_counter() - started,
    }


def _resident_mb() -> float:
    return _status("VmRSS")


def _peak_mb() -> float:
    return _status("VmHWM")


def _status(key: str) -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def page(data: dict[str, Any]) -> str:
    cost = data["cost"]
    named = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [
        "# Analysis\n",
        described(data["machine"]),
        f"{named}; bundled model to {HOOK}, d = 256, {data['d_sae']:,} features, k = {data['k']}, windows of 128 tokens; "
        f"{data['tokens']:,} tokens a round, {data['rounds']} rounds after one of warm-up.\n",
        table(
            ("step", "microseconds per token"),
            [[name, spread(Spread.read(v, "us"), 1)] for name, v in cost["microseconds_per_token"].items()],
        ),
        table(
            ("analysis over model and encoder product", "ratio"),
            [
                ["from nothing", spread(Spread.read(cost["ratio_from_nothing"], "ratio"))],
                [
                    f"after {data['warm_tokens']:,} tokens, when its lists are full",
                    spread(Spread.read(cost["ratio_after_others"], "ratio")),
                ],
            ],
        ),
    ]
    if "memory" in data:
        readings = data["memory"]["readings"]
        lines += [
            "Memory of a process that analyses distinct synthetic tokens "
            f"({data['d_sae']:,} features, L0 {data['memory']['l0']:.0f}):\n",
            table(
                ("tokens read", "resident, MB", "peak so far, MB"),
                [[f"{r['tokens']:,}", f"{r['resident_mb']:,.0f}", f"{r['peak_mb']:,.0f}"] for r in readings],
            ),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
