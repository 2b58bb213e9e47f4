"""Tables, and where they go: to the terminal, as one line of JSON, or as a dated page in ``benchmarks/results/``."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rounds import Spread

RESULTS = Path(__file__).parent / "results"
Shape = tuple[int, int, int, int]  # d, N, k, batch


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; the first column left, all others right."""
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(head)} columns: {row}")
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def spread(value: Spread, digits: int = 2) -> str:
    """Median with lowest and highest in brackets."""
    return f"{value.median:,.{digits}f} ({value.low:,.{digits}f} to {value.high:,.{digits}f})"


def shape(text: str) -> Shape:
    """``"512,16384,32,2048"``: width, features, active features, tokens in a batch."""
    try:
        d, n, k, batch = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a shape is d,N,k,batch, for example 512,16384,32,2048; not {text!r}"
        ) from None
    if min(d, n, k, batch) < 1 or k > n:
        raise argparse.ArgumentTypeError(f"d, N, k and batch are at least 1 and k is at most N; not {text!r}")
    return d, n, k, batch


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--save``."""
    parser.add_argument("--json", action="store_true", help="one line of JSON in the place of tables")
    parser.add_argument("--save", action="store_true", help="also write a dated page to benchmarks/results/")


def publish(options: argparse.Namespace, name: str, page: str, data: dict[str, Any]) -> None:
    """Print a measurement, and save its page if asked to. A page is whole or not there."""
    print(json.dumps(data) if options.json else page)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{datetime.date.today().isoformat()}-{name}.md"
        beside = path.with_name(path.name + ".partial")
        beside.write_text(page)
        beside.replace(path)
