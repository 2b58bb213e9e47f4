"""Most memory that a training process takes: ours and three other libraries', one fresh process each: ``make bench``.

The number is the highest resident size of the whole process (VmHWM) after some steps: interpreter, torch and the library,
weights, Adam's moments, gradients, one batch of activations and the directions they are drawn from. How much of it was
there before the dictionary was made, after the imports, stands beside it.

B  tokens in a batch, d  width, N  features, k  features that fire on a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from hardware import available_cores, described, machine
from report import Shape, add_output_options, publish, shape, table
from rounds import PEERS_PYTHON, Worker
from training_step import ARCHITECTURES, CAN_TRAIN, LR, OURS, PEERS, SHAPES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=shape, nargs="+", default=SHAPES, help="d,N,k,batch; may be several")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=["topk"])
    parser.add_argument("--libraries", nargs="+", choices=(OURS, *PEERS))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=available_cores())
    add_output_options(parser)
    options = parser.parse_args(arguments)
    missing = not PEERS_PYTHON.exists()
    if missing and set(options.libraries or ()) & set(PEERS):
        raise SystemExit("the other libraries are not installed: run `make peers`")
    libraries = options.libraries or ([OURS] if missing else [OURS, *PEERS])
    data: dict[str, Any] = {"machine": machine(), "steps": options.steps, "threads": options.threads}
    data["rows"] = [
        measure(case, architecture, library, options)
        for case in options.shape
        for architecture in options.architectures
        for library in libraries
        if architecture in CAN_TRAIN[library]
    ]
    publish(options, "memory", page(data), data)


def measure(case: Shape, architecture: str, library: str, options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of one library's process, in bytes."""
    d, n, k, batch = case
    module = "libraries." + library.replace("-", "_")
    with Worker(module, peers=library in PEERS, threads=options.threads) as worker:
        facts = worker.ask(
            threads=options.threads, seed=0, architecture=architecture, d=d, d_sae=n, k=k, batch=batch,
            num_steps=options.steps, lr=LR,
        )  # fmt: skip
        worker.ask(do="steps", count=options.steps)
        peak = worker.ask(do="memory")["peak_bytes"]
    return {
        "library": library, "architecture": architecture, "shape": list(case), "peak_bytes": peak,
        "import_peak_bytes": facts["import_peak_bytes"], "weights_and_adam_bytes": 3 * 2 * d * n * 4,
        "pre_activations_bytes": batch * n * 4,
    }  # fmt: skip


def page(data: dict[str, Any]) -> str:
    """The measurement as markdown."""
    lines = [
        "# Memory of a training process\n", described(data["machine"]),
        f"Highest resident size after {data['steps']} steps with {data['threads']} threads, float32, each library in a "
        "fresh process. It includes interpreter, torch and the library (also given alone, after the imports), weights, "
        "Adam's moments, gradients and one batch.\n",
    ]  # fmt: skip
    for case in dict.fromkeys(tuple(row["shape"]) for row in data["rows"]):
        rows = [row for row in data["rows"] if tuple(row["shape"]) == case]
        weights, dense = rows[0]["weights_and_adam_bytes"], rows[0]["pre_activations_bytes"]
        lines.append(f"## d = {case[0]}, N = {case[1]}, k = {case[2]}, batch = {case[3]}\n")
        lines.append(
            f"Both matrices and Adam's moments: {_gb(weights)} GB. One dense tensor [B, N]: {_gb(dense)} GB.\n"
        )
        cells = [
            [row["library"], row["architecture"], _gb(row["peak_bytes"]), _gb(row["import_peak_bytes"]),
             _gb(row["peak_bytes"] - row["import_peak_bytes"])]
            for row in rows
        ]  # fmt: skip
        lines.append(table(("library", "architecture", "peak, GB", "after imports, GB", "difference, GB"), cells))
    return "\n".join(lines) + "\n"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f}"


if __name__ == "__main__":
    main()
