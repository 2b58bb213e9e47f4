"""Published dictionaries as tables: a line for each release, or for each dictionary of one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from saescope.cli.views.words import plain_table
from saescope.formats.registry import Published


def releases_view(found: Sequence[Published]) -> Table:
    """One line for each release, in the order in which they come."""
    table = plain_table()
    table.add_column("release", overflow="fold")
    table.add_column("model")
    table.add_column("hook points")
    table.add_column("dictionaries", justify="right", no_wrap=True)
    table.add_column("L0", justify="right", no_wrap=True)
    for release, members in groupby(found, key=lambda each: each.release):
        own = list(members)
        table.add_row(Text(release), Text(own[0].model), Text(hooks_in_words(own)), f"{len(own):,}", _spread(own))
    return table


def dictionaries_view(found: Sequence[Published]) -> Table:
    """One line for each dictionary."""
    table = plain_table()
    table.add_column("release/id", overflow="fold")
    table.add_column("hook point")
    table.add_column("L0", justify="right", no_wrap=True)
    table.add_column("Neuronpedia", overflow="fold")
    for each in found:
        hook = f"{each.hook} to {each.hook_out}" if each.hook_out else each.hook
        table.add_row(Text(each.ref), Text(hook), "" if each.l0 is None else f"{each.l0:g}", Text(each.neuronpedia))
    return table


def hooks_in_words(found: Iterable[Published]) -> str:
    """Hook points with their layers drawn together: ``blocks.0-25.hook_resid_post``."""
    layers: dict[str, set[int]] = {}
    for each in found:
        for hook in filter(None, (each.hook,)):
            number = re.search(r"\d+", hook)
            layers.setdefault(re.sub(r"\d+", "{}", hook, count=1), set()).update([int(number[0])] if number else [])
    return ", ".join(name.replace("{}", _ranges(sorted(numbers))) for name, numbers in layers.items())


def _ranges(numbers: Sequence[int]) -> str:
    words: list[str] = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        together = [number for _, number in run]
        words.append(f"{together[0]}-{together[-1]}" if len(together) > 1 else str(together[0]))
    return ",".join(words)


def _spread(found: Iterable[Published]) -> str:
    known = [each.l0 for each in found if each.l0 is not None]
    if not known:
        return ""
    return f"{min(known):g}" if min(known) == max(known) else f"{min(known):g} to {max(known):g}"
