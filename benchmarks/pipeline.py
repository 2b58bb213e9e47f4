"""From text to a trained dictionary, tokens per second: ours and SAELens on the same model and text: ``make bench``.

Each library tokenises the same documents, reads the bundled model's activations at the same layer, mixes them in a buffer of
the same size and trains a TopK dictionary on as many tokens, with its own code for all of it. Model and library are loaded
before the clock starts. Explained variance is of the same held-out activations.

Then eight dictionaries on one pass over the model: what the pass costs alone, what the eight times as many steps cost on
activations in memory, and what both cost together.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from hardware import available_cores, described, machine
from report import add_output_options, publish, spread, table
from rounds import PEERS_PYTHON, Spread, Worker, alternate, ratio

OURS, PEER = "saescope", "sae-lens"
NUM_TOGETHER = 8
TOKENS, BATCH = 409_600, 4096


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="training tokens of a run")
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--buffer", type=int, default=131_072, help="tokens that are mixed with each other")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--ours-alone", action="store_true", help="without SAELens, also where it is installed")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    settings = {
        "num_tokens": options.tokens, "d_sae": options.d_sae, "k": options.k, "batch_size_tokens": options.batch,
        "buffer_size_tokens": options.buffer, "context_size": 256, "model_batch_size_windows": 32, "lr": 1e-3,
    }  # fmt: skip
    data: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "threads": options.threads, **settings}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        common = {"threads": options.threads, "folder": folder, **settings}
        ours = stack.enter_context(Worker("libraries.pipeline_saescope", peers=False, threads=options.threads))
        data["versions"] = {OURS: ours.ask(**common)["versions"]}
        written = ours.ask(do="write")
        workers = {OURS: ours}
        if PEERS_PYTHON.exists() and not options.ours_alone:
            peer = stack.enter_context(Worker("libraries.pipeline_sae_lens", peers=True, threads=options.threads))
            data["versions"][PEER] = peer.ask(**common, model=written["model"])["versions"]
            workers[PEER] = peer
        data |= compare(workers, options)
        data["together"] = together(ours, options)
    publish(options, "pipeline", page(data), data)


def compare(workers: dict[str, Worker], options: argparse.Namespace) -> dict[str, Any]:
    """Whole runs in alternation."""
    alternate(workers, 1, do="run")  # warms up
    answers = alternate(workers, options.rounds, do="run")
    seconds = {name: [answer["seconds"] for answer in answers[name]] for name in workers}
    rows = [
        {
            "library": name, "tokens_per_second": options.tokens / Spread.of(seconds[name]).median,
            "explained_variance": answers[name][-1]["explained_variance"],
        } | Spread.of(seconds[name]).named("seconds")
        for name in workers
    ]  # fmt: skip
    ratios = [
        {"of": name, "to": OURS} | ratio(seconds[name], seconds[OURS]).named("ratio")
        for name in workers
        if name != OURS
    ]
    return {"rows": rows, "ratios": ratios}


def together(ours: Worker, options: argparse.Namespace) -> dict[str, Any]:
    """Several dictionaries on one pass over the model, and the parts of that work alone."""
    rounds: dict[str, list[float]] = {"model_pass": [], "steps_alone": [], "train_many": []}
    for _ in range(options.rounds):
        rounds["model_pass"].append(ours.ask(do="model_pass")["seconds"])
        rounds["steps_alone"].append(ours.ask(do="steps_alone", count=NUM_TOGETHER)["seconds"])
        rounds["train_many"].append(ours.ask(do="train_many", count=NUM_TOGETHER)["seconds"])
    parts = [a + b for a, b in zip(rounds["model_pass"], rounds["steps_alone"], strict=True)]
    found: dict[str, Any] = {"dictionaries": NUM_TOGETHER}
    for name, seconds in rounds.items():
        found |= Spread.of(seconds).named(name)
    return found | ratio(rounds["train_many"], parts).named("ratio_to_parts")


def page(data: dict[str, Any]) -> str:
    """The measurement as markdown."""
    slower = {row["of"]: row for row in data["ratios"]}
    rows = []
    for row in data["rows"]:
        name = row["library"]
        times = spread(Spread.read(slower[name], "ratio")) if name in slower else ""
        rate, quality = f"{row['tokens_per_second']:,.0f}", f"{row['explained_variance']:.3f}"
        rows.append([name, spread(Spread.read(row, "seconds"), 1), rate, times, quality])
    versions = "; ".join(", ".join(f"{n} {v}" for n, v in found.items()) for found in data["versions"].values())
    lines = [
        "# From text to a trained dictionary\n", described(data["machine"]),
        f"{versions}. TopK, {data['d_sae']:,} features, k = {data['k']}, {data['num_tokens']:,} tokens in batches of "
        f"{data['batch_size_tokens']:,}, bundled model with context {data['context_size']}, output of its third block, "
        f"{data['model_batch_size_windows']} windows in a pass of the model, {data['buffer_size_tokens']:,} tokens in the "
        f"buffer. {data['rounds']} alternating rounds after one of warm-up, {data['threads']} threads each.\n",
        table(("library", "seconds", "tokens per second", "times our run", "explained variance"), rows),
        "SAELens reads the folder through transformers (its AutoModelForCausalLM) and stops after the layer, tokenises "
        "while it reads, keeps half of its buffer when it mixes, and so reads up to a buffer of activations that it does "
        "not train on; it measures the norm of activations on one batch, as we do, in the place of a thousand. Its decoder "
        "norms are free, 0.1 at the start (its default). Neither evaluates or writes anything.\n",
    ]  # fmt: skip
    many = data["together"]
    lines.append(f"## {many['dictionaries']} dictionaries in one pass over the model\n")
    rows = [
        ["the pass over the model alone", spread(Spread.read(many, "model_pass"), 1)],
        [f"the steps of {many['dictionaries']} dictionaries alone", spread(Spread.read(many, "steps_alone"), 1)],
        ["both together", spread(Spread.read(many, "train_many"), 1)],
    ]
    lines.append(table(("", "seconds"), rows))
    lines.append(f"Together over the sum of the parts: {spread(Spread.read(many, 'ratio_to_parts'))}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
