"""One example on one line of the terminal, cut around its peak."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from saescope.cli.views.words import MUTED, PEAK, strength, visible
from saescope.store import PageExample
from saescope.web.numbers import decimal, whole
from saescope.web.pieces import Piece, surroundings


@dataclass(frozen=True)
class ExampleLine:
    """The value, the window around the peak, and how often it stood in the text. The width is known only when drawn.

    Without colour the peak stands between guillemets. `before` and `after` count tokens on either side, None being as
    many as the line holds.
    """

    example: PageExample
    strongest: float
    before: int | None = None
    after: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        value = f"{decimal(self.example.activation, 3, trim=False):>8}  "
        copies = f"  {whole(self.example.num_copies)} copies" if self.example.num_copies > 1 else ""
        line = Text(no_wrap=True, overflow="crop").append(value, style="bold")
        context = self._context(max(1, options.max_width - cell_len(value) - cell_len(copies)))
        yield line.append_text(context).append(copies, style=MUTED)

    def _context(self, width: int) -> Text:
        around = surroundings(self.example, self.before, self.after)
        left, right = self._text(around.before), self._text(around.after)
        if around.more_before:
            left = Text.assemble(("…", MUTED), left)
        if around.more_after:
            right.append("…", style=MUTED)

        middle = self._text([around.peak])
        middle.truncate(max(1, width - 2), overflow="ellipsis")
        if self.example.negative != "silent":  # drawn by lot: no token of it is special
            middle.stylize(PEAK)
            middle = Text.assemble("«", middle, "»")

        room = max(0, width - middle.cell_len)
        # what came before says more about a firing than what follows; either side may use what the other leaves
        room_left = min(left.cell_len, max(room * 2 // 3, room - right.cell_len))
        return Text.assemble(_keep_end(left, room_left), middle, _keep_start(right, room - room_left))

    def _text(self, pieces: Iterable[Piece]) -> Text:
        text = Text(no_wrap=True)
        for piece in pieces:
            text.append(visible(piece.text), style=strength(piece.activation, self.strongest))
        return text


def _keep_start(text: Text, width: int) -> Text:
    """The first `width` columns of a line."""
    if width == 0:  # no room for an ellipsis either
        return Text()
    text.truncate(width, overflow="ellipsis")
    return text


def _keep_end(text: Text, width: int) -> Text:
    """The last `width` columns of a line."""
    if text.cell_len <= width:
        return text
    if width == 0:
        return Text()
    cut = len(text)
    while cut > 0 and text[cut - 1 :].cell_len <= width - 1:
        cut -= 1
    kept = Text.assemble(("…", MUTED), text[cut:])
    return Text.assemble(" " * (width - kept.cell_len), kept)  # half a wide character may be missing
