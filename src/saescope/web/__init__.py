"""Pages about features: `create_app`, a web application over a store, and `write_report`, one HTML file that opens alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["create_app", "write_report"]

if TYPE_CHECKING:
    from saescope.web.app import create_app
    from saescope.web.report import write_report


def __getattr__(name: str) -> Any:
    # imported on first use: the command line borrows `numbers` and needs neither templates nor a server
    if name == "create_app":
        from saescope.web.app import create_app

        return create_app
    if name == "write_report":
        from saescope.web.report import write_report

        return write_report
    raise AttributeError(f"saescope.web has no {name!r}; its public names are {', '.join(__all__)}")
