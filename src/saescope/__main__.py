"""Entry point of the ``saescope`` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; a user's mistake is one clear line and exit code 2, never a traceback."""
    # read once, when OpenMP loads: idle threads of one library must not spin on the cores that another one needs
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from saescope.cli.app import app

    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("SAESCOPE_DEBUG"):
            raise
        print(f"saescope: {_message(error)}", file=sys.stderr)
        sys.exit(2)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    main()
