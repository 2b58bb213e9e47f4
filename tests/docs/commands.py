"""Writes docs/commands.md: the help of every command, as the commands themselves print it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = [
    "", "demo", "train", "cache", "eval", "sweep", "advise-l0", "match", "analyze",
    "features", "show feature", "show dictionary", "store info", "store merge", "store export", "store import",
    "store delete", "serve", "export neuronpedia", "export html", "find", "steer", "attribute", "info", "convert",
    "list pretrained", "push", "model",
]  # fmt: skip


def page() -> str:
    """The whole page."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    parts = ["# Commands\n\nWritten by `make docs` from the commands' own help.\n"]
    for command in COMMANDS:
        arguments = [sys.executable, "-m", "saescope", *command.split(), "--help"]
        shown = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout
        text = "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
        parts.append(f"## saescope {command}".rstrip() + f"\n\n```\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
