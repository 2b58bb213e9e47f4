"""Seconds of one whole training step: ours and three other libraries', in alternation: ``make bench``.

    python benchmarks/training_step.py [--shape 512,16384,32,2048 ...] [--architectures topk ...] [--libraries ...]

Every library trains in a process of its own, on the same tokens and with as many threads; one works while the others wait
for their turn. A step is everything from raw activations to constrained weights, optimizer included; what each library does
and what it leaves out stands under the table. The encoder's matrix product alone is timed in the same rounds, as the floor.
Our own TopK step runs beside every other architecture, so that they can be compared.

B  tokens in a batch, d  width, N  features, k  features that fire on a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from hardware import available_cores, described, machine
from report import Shape, add_output_options, publish, shape, spread, table
from rounds import PEERS_PYTHON, Spread, Worker, alternate, environment, ratio

OURS, FLOOR = "saescope", "encoder-product"
# the architectures that each can train; peers run in .venv-peers
CAN_TRAIN = {
    FLOOR: ("topk",),
    OURS: ("topk", "batch_topk", "matryoshka", "ordered", "jumprelu", "relu"),
    "sae-lens": ("topk", "batch_topk", "matryoshka", "jumprelu", "relu"),
    "sae-lens-sparse": ("topk",),
    "dictionary-learning": ("topk", "batch_topk", "matryoshka"),
    "sparsify": ("topk",),
}
PEERS = tuple(name for name in CAN_TRAIN if name not in (OURS, FLOOR))
ARCHITECTURES = CAN_TRAIN[OURS]
SHAPES: tuple[Shape, ...] = ((512, 16384, 32, 2048), (768, 24576, 32, 4096))
TOKENS_PER_ROUND = 8192
LR = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    missing = not PEERS_PYTHON.exists()
    if missing and set(options.libraries or ()) & set(PEERS):
        raise SystemExit("the other libraries are not installed: run `make peers`")
    libraries = [OURS] if missing else options.libraries or [OURS, *PEERS]
    facts = machine()
    data: dict[str, Any] = {"machine": facts, "settings": settings(options), "rows": [], "ratios": []}
    notes: dict[str, str] = {}
    shapes = options.shape or SHAPES
    for number, case in enumerate(shapes):
        # all architectures at the first shape; the others are for TopK unless asked for
        for architecture in options.architectures or (ARCHITECTURES if number == 0 else ("topk",)):
            rows, ratios = measure(case, architecture, libraries, options, notes)
            data["rows"] += rows
            data["ratios"] += ratios
    publish(options, "training-step", page(data, notes), data)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=shape, nargs="+", help="d,N,k,batch; may be several")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES)
    parser.add_argument("--libraries", nargs="+", choices=(OURS, *PEERS), help="ours is always timed")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help=f"in a round; by default as many as see {TOKENS_PER_ROUND} tokens")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--seed", type=int, default=0)
    add_output_options(parser)
    return parser


def settings(options: argparse.Namespace) -> dict[str, Any]:
    env = environment(options.threads)
    return {
        "rounds": options.rounds, "threads": options.threads, "seed": options.seed, "lr": LR, "dtype": "float32",
        "OMP_WAIT_POLICY": env["OMP_WAIT_POLICY"],
    }  # fmt: skip


def contenders(architecture: str, libraries: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Who is timed beside each other: row name to (library, architecture). Ours comes first, and ours TopK is with it."""
    chosen = [OURS, *(name for name in libraries if name != OURS and architecture in CAN_TRAIN[name])]
    found = {name: (name, architecture) for name in chosen}
    if architecture != "topk":
        found["saescope topk"] = (OURS, "topk")
    return found | {FLOOR: (FLOOR, "topk")}


def measure(
    case: Shape, architecture: str, libraries: Sequence[str], options: argparse.Namespace, notes: dict[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and ratios of one architecture at one shape; ``notes`` takes up what each library says of itself."""
    d, n, k, batch = case
    num_steps = options.steps or max(1, TOKENS_PER_ROUND // batch)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        before: dict[str, dict[str, Any]] = {}
        for name, (library, trained) in contenders(architecture, libraries).items():
            module = "libraries." + library.replace("-", "_")
            workers[name] = stack.enter_context(Worker(module, peers=library in PEERS, threads=options.threads))
            facts = workers[name].ask(
                threads=options.threads, seed=options.seed, architecture=trained, d=d, d_sae=n, k=k, batch=batch,
                num_steps=(options.rounds + 1) * num_steps, lr=LR,
            )  # fmt: skip
            notes[library] = note(facts)
            if library != FLOOR:
                before[name] = workers[name].ask(do="judge")
        alternate(workers, 1, do="steps", count=num_steps)  # warms up
        answers = alternate(workers, options.rounds, do="steps", count=num_steps)
        judged = {name: workers[name].ask(do="judge") for name in before}
    seconds = {name: [sum(a["seconds"]) / num_steps for a in answers[name]] for name in workers}
    rows = []
    for name, (library, trained) in contenders(architecture, libraries).items():
        took = Spread.of(seconds[name])
        row: dict[str, Any] = {"library": library, "architecture": trained, "beside": architecture, "shape": list(case)}
        row |= took.named("seconds") | ratio(seconds[name], seconds[FLOOR]).named("ratio_to_encoder_product")
        row |= {"tokens_per_second": batch / took.median}
        if name in judged:
            row |= judged[name] | {f"{key}_before": before[name][key] for key in ("explained_variance", "l0")}
        rows.append(row)
    ratios = [
        {"of": name, "to": OURS, "architecture": architecture, "shape": list(case)}
        | ratio(seconds[name], seconds[OURS]).named("ratio")
        for name in workers if name not in (OURS, FLOOR)
    ]  # fmt: skip
    return rows, ratios


def note(facts: dict[str, Any]) -> str:
    named = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{named}. Its step: {facts['does']}. Left out: {facts['leaves_out']}."


def page(data: dict[str, Any], notes: dict[str, str]) -> str:
    """The measurement as markdown."""
    chosen = data["settings"]
    lines = [
        "# One training step\n", described(data["machine"]),
        f"{chosen['rounds']} alternating rounds after one of warm-up, {chosen['threads']} threads each, {chosen['dtype']}, "
        f"OMP_WAIT_POLICY={chosen['OMP_WAIT_POLICY']} for all; learning rate {chosen['lr']:g} without warm-up in all. "
        "Median, with the lowest and the highest of the rounds; ratios are of times in the same round.\n",
    ]  # fmt: skip
    groups = dict.fromkeys((tuple(row["shape"]), row["beside"]) for row in data["rows"])
    for case, architecture in groups:
        lines.append(f"## {architecture}: d = {case[0]}, N = {case[1]}, k = {case[2]}, batch = {case[3]}\n")
        rows = [row for row in data["rows"] if (tuple(row["shape"]), row["beside"]) == (case, architecture)]
        slower = {r["of"]: r for r in data["ratios"] if (tuple(r["shape"]), r["architecture"]) == (case, architecture)}
        lines.append(table(HEAD, [cells(row, slower, architecture) for row in rows]))
    lines.append(
        "Explained variance, L0 and dead share (features without a firing) are of four held-out batches, by the rule that "
        "selects in training, before the first and after the last step; all have trained on the same tokens then, too few "
        "of them for a good dictionary.\n"
    )
    lines += [f"* {name}: {text}" for name, text in notes.items()]
    return "\n".join(lines) + "\n"


HEAD = (
    "library", "seconds per step", "over the encoder product", "tokens per second", "times our step",
    "explained variance", "L0", "dead",
)  # fmt: skip


def cells(row: dict[str, Any], slower: dict[str, dict[str, Any]], architecture: str) -> list[str]:
    name = row["library"] if row["library"] == FLOOR or row["architecture"] == architecture else "saescope topk"
    quality = ["", "", ""]
    if "l0" in row:
        quality = [
            f"{row['explained_variance_before']:.3f} to {row['explained_variance']:.3f}",
            f"{row['l0_before']:.1f} to {row['l0']:.1f}",
            f"{row['dead_share']:.1%}",
        ]  # fmt: skip
    return [
        name,
        spread(Spread.read(row, "seconds"), 3),
        spread(Spread.read(row, "ratio_to_encoder_product")),
        f"{row['tokens_per_second']:,.0f}",
        spread(Spread.read(slower[name], "ratio")) if name in slower else "",
        *quality,
    ]


if __name__ == "__main__":
    main()
