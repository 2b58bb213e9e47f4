"""How fast the walk is on this machine, step by step, at the demo's shape: ``make bench``.

Each step runs on the same text several times in alternation; the table gives the median and the spread in tokens per second.
Nothing is compared with anything here: these are the numbers that later versions are held against.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from hardware import described, machine, versions
from report import add_output_options, publish, spread, table
from rounds import Spread

from saescope import (
    ActivationStream,
    LanguageModel,
    TokenWindows,
    TopK,
    TrainingConfig,
    evaluate,
    read_documents,
    train,
)
from saescope.activations import WindowConfig
from saescope.analysis import AnalysisConfig, LiveText, collect
from saescope.dictionaries import TopKConfig

HOOK = "blocks.2.hook_resid_post"
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_output_options(parser)
    options = parser.parse_args()
    data: dict[str, Any] = {"machine": machine(), "versions": versions(("saescope", "torch"))}
    torch.manual_seed(0)
    model = LanguageModel.load("bundled")
    windows = TokenWindows.build(read_documents("bundled"), model.tokenizer, WindowConfig(context_size=256))
    sample = windows.evenly(40_000)
    dictionary = TopK(TopKConfig(d_in=256, d_sae=2048, k=64))
    tokens = 10 * 4096

    def read() -> int:
        for batch in sample.in_order(32):
            model.read(batch.ids, [HOOK])
        return sample.num_tokens

    def step() -> int:
        x = torch.randn(4096, 256)
        train(TopK(TopKConfig(d_in=256, d_sae=2048, k=64)), itertools.repeat(x), TrainingConfig(num_tokens=tokens))
        return tokens

    def both() -> int:
        stream = ActivationStream(model, windows, [HOOK])
        train(TopK(TopKConfig(d_in=256, d_sae=2048, k=64)), stream.at(HOOK), TrainingConfig(num_tokens=tokens))
        return tokens

    def judge() -> int:
        evaluate(dictionary, model, sample, HOOK)
        return sample.num_tokens

    def analyse() -> int:
        return collect(dictionary, LiveText(model, sample, [HOOK]), AnalysisConfig()).statistics.num_tokens

    steps: dict[str, Callable[[], int]] = {
        "read activations": read,
        "train on activations in memory": step,
        "train from the model (buffer of 131,072 tokens filled first)": both,
        "evaluate (both passes)": judge,
        "read for analysis": analyse,
    }
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 1):  # the first round warms up
        for name, run in steps.items():
            started = time.perf_counter()
            done = run()
            if repeat:
                rates[name].append(done / (time.perf_counter() - started))
    data["rows"] = [{"step": name} | Spread.of(found).named("tokens_per_second") for name, found in rates.items()]
    page = [
        "# The walk\n",
        described(data["machine"]),
        ", ".join(f"{name} {version}" for name, version in data["versions"].items())
        + f"; float32, d = 256, 2,048 features, k = 64, batches of 4,096 tokens; {REPEATS} rounds after one of warm-up.\n",
        table(
            ("step", "tokens per second"),
            [[row["step"], spread(Spread.read(row, "tokens_per_second"), 0)] for row in data["rows"]],
        ),
    ]
    publish(options, "walk", "\n".join(page), data)


if __name__ == "__main__":
    main()
