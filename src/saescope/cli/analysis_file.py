"""The options of ``saescope analyze`` as a TOML file: the command's own at the top, how much to keep under [settings]."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saescope.analysis import AnalysisConfig
from saescope.cli.recipe import checked


@dataclass(frozen=True, kw_only=True)
class AnalysisFile:
    """What to analyze, with what, and where to put it; what is left out is the dictionary's own run's."""

    dictionary: str = ""
    store: str | None = None
    name: str | None = None
    analysis: str = "default"
    series: str = ""
    model: str | None = None
    hook_point: str | None = None
    dataset: str | None = None
    column: str | None = None
    cache: str | None = None
    num_tokens: int | None = None
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # of AnalysisConfig

    def settings_over(self, config: AnalysisConfig) -> AnalysisConfig:
        """An analysis's settings with those of this file in their place.

        Raises:
            ValueError: a setting that there is not, or a value that it cannot have.
        """
        top = {key: value for key in ("num_tokens", "seed") if (value := getattr(self, key)) is not None}
        if not self.settings and not top:
            return config
        named = checked(AnalysisConfig, self.settings, "[settings]")  # types first
        return replace(config, **{key: getattr(named, key) for key in self.settings}, **top)


def read_analysis_file(path: Path, given: Mapping[str, Any]) -> AnalysisFile:
    """The file, with what was given on the command line in the place of what it says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, or keys and values that there are not.
    """
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    file: AnalysisFile = checked(AnalysisFile, {**data, **given}, str(path))
    checked(AnalysisConfig, file.settings, f"{path}, [settings]")
    return file
