"""Pages about features. So far one: `write_report`, a single HTML file that opens anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["write_report"]

if TYPE_CHECKING:
    from saescope.web.report import write_report


def __getattr__(name: str) -> Any:
    if name == "write_report":  # imported on first use: the command line borrows `numbers` and needs no templates
        from saescope.web.report import write_report

        return write_report
    raise AttributeError(f"saescope.web has no {name!r}; its public names are {', '.join(__all__)}")
