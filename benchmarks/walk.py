"""How fast the walk is on this machine, step by step, at the demo's shape: ``make bench``.

Each step runs on the same text several times in alternation; the table gives the median and the spread in tokens per second.
Nothing is compared with anything here: these are the numbers that later versions are held against.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

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
from saescope.analysis.firings import collect_firings
from saescope.dictionaries import TopKConfig

HOOK = "blocks.2.hook_resid_post"
REPEATS = 3


def main() -> None:
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
        return collect_firings(dictionary, model, sample, HOOK).num_tokens

    steps: dict[str, Callable[[], int]] = {
        "read activations": read,
        "train on activations in memory": step,
        "train from the model (buffer of 131,072 tokens filled first)": both,
        "evaluate (both passes)": judge,
        "collect firings": analyse,
    }
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 1):  # the first round warms up
        for name, run in steps.items():
            started = time.perf_counter()
            done = run()
            if repeat:
                rates[name].append(done / (time.perf_counter() - started))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print("| step | tokens per second, median | lowest to highest |\n|---|---|---|")
    for name, found in rates.items():
        print(f"| {name} | {statistics.median(found):,.0f} | {min(found):,.0f} to {max(found):,.0f} |")


if __name__ == "__main__":
    main()
