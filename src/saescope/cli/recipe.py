"""A run as a file: recipes in TOML, overridden key by key, checked before anything starts.

Every section is the config class of the room that it sets up, so a field is documented once, beside the code that reads it.
An unknown key is refused with the nearest valid one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from saescope.activations import DatasetConfig, StreamConfig, WindowConfig
from saescope.activations.documents import has_own_splits
from saescope.analysis import AnalysisConfig
from saescope.dictionaries import Crosscoder, Dictionary, Transcoder, architecture
from saescope.training import TrainingConfig, loss_config_type, loss_for

RECIPES = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network to study."""

    name: str = "bundled"  # "bundled", a folder, or a hub id
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How much held-out text to measure on."""

    num_tokens: int = 120_000


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: what to read, what to train, how to judge it."""

    name: str  # of the dictionary in the store
    training: TrainingConfig
    dictionary: dict[str, Any]  # architecture, d_sae, and what the architecture asks for
    hook_point: str = ""  # where the dictionary reads
    hook_point_out: str = ""  # what a transcoder rebuilds
    hook_points: tuple[str, ...] = ()  # the sources of a crosscoder, in the place of hook_point
    seed: int = 0
    cache: str = ""  # a folder that `saescope cache` wrote: activations are read there, and the model is not loaded
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    held_out: DatasetConfig | None = None  # left out: the split "held_out" of the data set
    windows: WindowConfig = field(default_factory=WindowConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    loss: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)

    def held_out_dataset(self) -> DatasetConfig:
        """The text that no training has seen.

        Raises:
            ValueError: the data set has its own splits, and the recipe names none of them as held out.
        """
        if self.held_out is not None:
            return self.held_out
        if has_own_splits(self.dataset.name):
            raise ValueError(
                f"which split of {self.dataset.name} is held out? Add to the recipe: "
                f'[held_out] name = "{self.dataset.name}", split = "..."'
            )
        return replace(self.dataset, split="held_out")

    @property
    def reads(self) -> tuple[str, ...]:
        """Where the dictionary reads: one hook point, or the sources of a crosscoder."""
        return self.hook_points or (self.hook_point,)

    def build_dictionary(self, widths: Mapping[str, int]) -> Dictionary:
        """A fresh dictionary for hook points of these widths; drawn with ``[dictionary] seed``, as a rule the run's."""
        settings = dict(self.dictionary)
        seed = settings.pop("seed", self.seed)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"dictionary: seed must be a whole number, got {seed!r}")
        cls = architecture(settings.pop("architecture"))
        for name in ("d_in", "d_out", "source_widths"):
            if name in settings:
                raise ValueError(f"dictionary: {name} follows from the hook points; leave it out")
        settings["d_in"] = sum(widths[name] for name in self.reads)
        if issubclass(cls, Crosscoder):
            settings["source_widths"] = tuple(widths[name] for name in self.reads)
        if issubclass(cls, Transcoder):
            settings["d_out"] = widths[self.hook_point_out]
        return cls(checked(cls.Config, settings, "dictionary"), seed=seed)

    def check_hook_points(self, source: str) -> None:
        """ValueError where the hook points named are not those that the architecture asks for."""
        cls = architecture(self.dictionary["architecture"])
        name = self.dictionary["architecture"]
        if issubclass(cls, Crosscoder):
            if self.hook_point or self.hook_point_out or len(self.hook_points) < 2:
                raise ValueError(f"{source}: {name} reads several hook points; name them as hook_points = [...] alone")
        elif self.hook_points:
            raise ValueError(f"{source}: hook_points is for crosscoders; {name} reads one hook_point")
        elif not self.hook_point:
            raise ValueError(f"{source}: hook_point is missing; name the one that {name} reads")
        elif issubclass(cls, Transcoder) != bool(self.hook_point_out):
            raise ValueError(f"{source}: hook_point_out goes with transcoders, and with them alone; this is {name}")

    def as_dict(self) -> dict[str, Any]:
        """The resolved run as plain values, for the record."""
        return asdict(self)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides of the form ``section.key=value`` (values as in TOML; bare words are strings).

    Raises:
        FileNotFoundError: no such file, and no recipe of that name in the package.
        ValueError: not TOML, an unknown key, a value of the wrong type, or settings that contradict each other.
    """
    data, source = read_settings(path, RECIPES, "recipe", overrides)
    return run_from_dict(data, source)


def read_settings(
    path: str | Path, shipped: Path, what: str, overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """The values of a TOML file, or of the one of that name among those that come with saescope, and the file's name.

    Raises:
        FileNotFoundError: there is neither; the shipped ones are named.
        ValueError: not TOML, or an override that makes no sense.
    """
    path = Path(path)
    if not path.is_file():
        own = shipped / f"{path.name.removesuffix('.toml')}.toml"
        if not own.is_file():
            names = ", ".join(sorted(p.stem for p in shipped.glob("*.toml")))
            raise FileNotFoundError(f"no {what} {path}; give a TOML file, or one that comes with saescope: {names}")
        path = own
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    return data, str(path)


def run_from_dict(data: Mapping[str, Any], source: str) -> RunConfig:
    """A run from plain values, checked whole; ``source`` is named in errors."""
    run = checked(RunConfig, data, source)
    if "architecture" not in run.dictionary:
        raise ValueError(f'{source}: [dictionary] needs an architecture, for example architecture = "topk"')
    run.check_hook_points(source)
    # widths are not known yet; all else is checked now
    dictionary = run.build_dictionary(dict.fromkeys((*run.reads, run.hook_point_out), 1))
    checked(loss_config_type(type(dictionary)), run.loss, f"{source}, [loss]")
    loss_for(dictionary, run.loss)
    return run


def recorded_run(data: Mapping[str, Any], source: str) -> RunConfig:
    """The run that a dictionary was made by, as its files record it: keys that another version had are passed over."""
    return run_from_dict(_known_keys(RunConfig, data), source)


def _known_keys(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    hints, names = get_type_hints(cls), {f.name for f in fields(cls)}
    kept = {key: value for key, value in data.items() if key in names}
    for key, kind in _sections(hints, kept):
        kept[key] = _known_keys(kind, kept[key])
    return kept


def _sections(hints: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The keys of ``data`` that hold the keys of a dataclass, and that class."""
    return [
        (key, kind)
        for key, value in data.items()
        if isinstance(value, Mapping)
        for kind in (hints[key], *getattr(hints[key], "__args__", ()))
        if is_dataclass(kind)
    ]


def checked(cls: type, data: Mapping[str, Any], source: str) -> Any:
    _check_keys(cls, data, source, "")
    try:
        return TypeAdapter(cls).validate_python(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        missing = first["type"] in ("missing", "missing_argument")
        raise ValueError(
            f"{source}: {place} is missing" if missing else f"{source}: {place + ': ' if place else ''}{message}"
        ) from None


def _check_keys(cls: Any, data: Mapping[str, Any], source: str, prefix: str) -> None:
    known = {f.name for f in fields(cls)}
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(prefix + name for name in near)}?" if near else ""
            names = ", ".join(sorted(known))
            raise ValueError(f"{source}: unknown key {prefix}{key}; {hint or 'known are ' + names}")
    for key, kind in _sections(get_type_hints(cls), data):
        _check_keys(kind, data[key], source, f"{prefix}{key}.")


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ValueError(f"-o {override}: write it as section.key=value, for example -o training.num_tokens=100000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, key = path.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ValueError(f"-o {override}: {section} is a value, not a section")
    data[key] = value
