"""``saescope model``: how good is the bundled model on this machine's standard library?"""

from __future__ import annotations

from typing import Annotated

import typer


def model(
    windows: Annotated[
        int | None, typer.Option(min=1, help="Measure on so many windows only. \\[default: all]")
    ] = None,
) -> None:
    """Measure the bundled language model on held-out source files of this Python's standard library."""
    from rich.console import Console

    from saescope.cli.progress import progress
    from saescope.models.bundled.card import WEIGHTS, measure, read_card

    console, card = Console(), read_card()
    with progress(console, "predicting held-out text", "windows") as update:
        found = measure(
            WEIGHTS, "held_out", max_windows=windows, on_progress=lambda done, total: update(done, total, "")
        )
    console.print(
        f"held-out loss {found.loss:.3f} nats per token = {found.bits_per_byte:.3f} bits per byte, next-token accuracy "
        f"{found.accuracy:.1%}, on {found.num_predictions:,} tokens of {found.num_files} files",
        highlight=False,
    )
    expected = card["held_out"]
    if found.files_sha256 == expected["files_sha256"]:
        console.print(f"these are the files of the model card (Python {card['python']})", highlight=False)
    else:
        console.print(
            f"the text differs from that of the model card, which is the standard library of Python {card['python']} "
            f"({expected['num_files']} held-out files, loss {expected['loss']:.3f}); numbers differ with it",
            highlight=False,
        )
