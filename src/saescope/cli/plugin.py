"""A user's own architectures on the command line: Python files that are run before the command looks for names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path


def load_plugins(files: Sequence[Path] | None) -> None:
    """Run each file once, as a module of its own name; what it registers is known afterwards.

    Only files that the user names are run, never one that a recipe or a dictionary's folder names.

    Raises:
        FileNotFoundError: no such file. ValueError: the file fails.
    """
    for file in files or ():
        if not file.is_file():
            raise FileNotFoundError(f"no plugin {file}; name a Python file that registers an architecture")
        name = f"saescope_plugin_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file.resolve())
        if spec is None or spec.loader is None:
            raise ValueError(f"the plugin {file} is not a Python file (its name ends in .py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            words = " ".join(str(error).split())
            raise ValueError(f"the plugin {file} failed: {type(error).__name__}: {words}") from error
