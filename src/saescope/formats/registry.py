"""Published dictionaries by release and id: where each lies, of which model and place, and what its files do not say.

``pretrained.jsonl`` beside this module is the index; `make_registry` writes it and says how. Its first line says what it was
made from. Each further line is a release with groups of entries, a group being templates and columns of numbers:

    {"id": "layer_{0}/width_16k/average_l0_{1}", "path": "{id}", "l0": "{1}", "columns": ["0-2", "105 102 141"]}

stands for three entries, the first with id and path ``layer_0/width_16k/average_l0_105`` and L0 105. Only the lines that a
question is about are expanded.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

REGISTRY_FILE = Path(__file__).with_name("pretrained.jsonl")
FIELDS = ("id", "path", "neuronpedia", "l0", "variance_explained", "norm_scaling_factor")
_TEXTS = ("id", "path", "neuronpedia")

# How a release's files are laid out (SAELens' name of its loader) -> where its dictionaries sit, by what their place says:
# pattern in "repository/path id" -> hook point read, hook point written; the pattern's one group is the layer. A hook
# point that stands in the id itself (blocks.8.hook_resid_pre) comes first.
_LAYER_2 = r"layer_(\d+)/"
_HOOKS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "gemma_2": (
        (rf"-res/{_LAYER_2}", "blocks.{0}.hook_resid_post", ""),
        (rf"-mlp/{_LAYER_2}", "blocks.{0}.hook_mlp_out", ""),
        (rf"-att/{_LAYER_2}", "blocks.{0}.attn.hook_z", ""),
        ("-res/(embedding)/", "hook_embed", ""),
    ),
    "gemma_2_transcoder": ((_LAYER_2, "blocks.{0}.ln2.hook_normalized", "blocks.{0}.hook_mlp_out"),),
    "gemma_3": (
        (r"/resid_post(?:_all)?/layer_(\d+)_", "model.layers.{0}.output", ""),
        (r"/mlp_out(?:_all)?/layer_(\d+)_", "model.layers.{0}.post_feedforward_layernorm.output", ""),
        (r"/attn_out(?:_all)?/layer_(\d+)_", "model.layers.{0}.self_attn.o_proj.input", ""),
        (
            r"/(?:transcoder|clt)(?:_all)?/layer_(\d+)_",
            "model.layers.{0}.pre_feedforward_layernorm.output",
            "model.layers.{0}.post_feedforward_layernorm.output",
        ),
    ),
    "llama_scope": (
        (r" l(\d+)r_", "blocks.{0}.hook_resid_post", ""),
        (r" l(\d+)a_", "blocks.{0}.hook_attn_out", ""),
        (r" l(\d+)m_", "blocks.{0}.hook_mlp_out", ""),
    ),
    "llama_scope_r1_distill": ((r" l(\d+)r_", "blocks.{0}.hook_resid_post", ""),),
    "dictionary_learning_1": ((r"/resid_post_layer_(\d+)", "blocks.{0}.hook_resid_post", ""),),
    "qwen_scope": ((r" layer(\d+)$", "blocks.{0}.hook_resid_post", ""),),
    "goodfire": ((r" layer_(\d+)$", "blocks.{0}.hook_resid_post", ""),),
    "mwhanna_transcoder": ((r" layer_(\d+)$", "blocks.{0}.mlp.hook_in", "blocks.{0}.hook_mlp_out"),),
}
_CROSS_LAYER = "mntss_clt_layer_transcoder"
_METADATA = ("model_name", "hook_name", "dataset_path", "model_from_pretrained_kwargs")  # overrides that describe
_IN_ID = re.compile(r"^blocks\.\d+\.(?:[a-z0-9]+\.)?hook_[a-z]+(?:_[a-z]+)*")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published dictionary.

    Attributes:
        repo: the repository of the hub, ``path`` the folder or file in it.
        model: as the release names it.
        loader: SAELens' name for the layout of its files; empty for SAELens' own.
        neuronpedia: ``model/sae-id`` of its page there.
        l0: features that fire at a token, as published; so is ``variance_explained``.
        norm_scaling_factor: what activations were multiplied by in training, where files do not say it.
        overrides: settings that hold in place of those in its files.
    """

    release: str
    id: str
    repo: str
    path: str
    model: str
    loader: str = ""
    neuronpedia: str = ""
    l0: float | None = None
    variance_explained: float | None = None
    norm_scaling_factor: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """How it is referred to."""
        return f"{self.release}/{self.id}"

    @property
    def place(self) -> str:
        """Where it lies on the hub, as a reference. Files of cross-layer transcoders lie together, their path is a layer."""
        return f"hf:{self.repo}" if self.loader == _CROSS_LAYER else f"hf:{self.repo}/{self.path}"

    @property
    def hook(self) -> str:
        """The hook point that it reads; empty where nothing says it."""
        return self._hooks()[0]

    @property
    def hook_out(self) -> str:
        """The hook point that it rebuilds; empty where it is the one that it reads."""
        return self._hooks()[1]

    def _hooks(self) -> tuple[str, str]:
        if "hook_name" in self.overrides:
            return str(self.overrides["hook_name"]), ""
        if found := _IN_ID.match(self.id):
            hook = found[0]
            return (hook.replace(".hook_z", ".attn.hook_z") if ".attn." not in hook else hook), ""
        for pattern, reads, writes in _HOOKS.get(self.loader, ()):
            if match := re.search(pattern, f"{self.repo}/{self.path} {self.id}"):
                return reads.format(match[1]), writes.format(match[1])
        return "", ""

    @property
    def facts(self) -> dict[str, Any]:
        """What a reader may ask for and files do not say: a scale, a layer, settings that hold in place of the files'."""
        found = dict(self.overrides)
        if self.norm_scaling_factor is not None:
            found["norm_scaling_factor"] = self.norm_scaling_factor
        if self.loader == _CROSS_LAYER:
            found["layer"] = int(self.path)
        return found

    def completed(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """A dictionary's metadata with what is known here, by SAELens' names.

        The release's own settings hold in place of the files'; all else only where files leave a gap. What was published
        of its quality is under ``published``.
        """
        hooks = dict(zip(("hook_name", "hook_name_out"), self._hooks(), strict=True))
        if self.loader == "gemma_3":  # modules of the Hugging Face model
            hooks = {f"hf_{name}": hook for name, hook in hooks.items()}
        known = {"model_name": self.model, **hooks, "neuronpedia_id": self.neuronpedia}
        gaps = {name: value for name, value in known.items() if value and not metadata.get(name)}
        settled = {name: self.overrides[name] for name in _METADATA if name in self.overrides}
        published = {"release": self.release, "id": self.id, "l0": self.l0,
                     "variance_explained": self.variance_explained}  # fmt: skip
        return {
            **metadata, **gaps, **settled, "published": {name: v for name, v in published.items() if v is not None}
        }  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of it, null where nothing is."""
        return {
            "ref": self.ref, "release": self.release, "id": self.id, "model": self.model, "hook": self.hook or None,
            "hook_out": self.hook_out or None, "l0": self.l0, "variance_explained": self.variance_explained,
            "neuronpedia": self.neuronpedia or None, "repo": self.repo, "path": self.path, "loader": self.loader or None,
            "norm_scaling_factor": self.norm_scaling_factor, "overrides": dict(self.overrides),
        }  # fmt: skip


# Questions


def releases() -> tuple[str, ...]:
    """Names of all releases."""
    return tuple(_lines())


def release(name: str) -> tuple[Published, ...]:
    """The dictionaries of a release, in natural order; none where there is no such release."""
    return _expanded(name) if name in _lines() else ()


def find(ref: str) -> Published | None:
    """The dictionary of a reference ``release/id``; ids have slashes of their own. None where there is none."""
    name, _, wanted = ref.partition("/")
    return next((each for each in release(name) if each.id == wanted), None)


def find_neuronpedia(ref: str) -> Published | None:
    """The dictionary whose page at Neuronpedia is ``model/sae-id``; None where there is none."""
    model = ref.partition("/")[0]
    return next((each for each in _some(lambda line: _may_have(line, model)) if each.neuronpedia == ref), None)


def at(repo: str, path: str) -> Published | None:
    """What is published in a place of the hub: releases may share it, and then say the same. None where nothing is."""
    found = [each for each in _some(lambda line: line["repo"] == repo) if each.place == f"hf:{repo}/{path}"]
    return max(found, key=lambda each: (bool(each.neuronpedia), each.norm_scaling_factor is not None), default=None)


def published(*, model: str = "", hook: str = "") -> list[Published]:
    """All that are published, or those of a model and a hook point.

    Args:
        model: its name, with or without its organisation in front; letters of any case.
        hook: a hook point, or a part of its name such as ``resid_post``.

    Raises:
        ValueError: nothing is published of this model; names like it are listed.
    """
    lines = _lines()
    wanted = _bare(model)
    chosen = [name for name, line in lines.items() if not model or _bare(line["model"]) == wanted]
    if not chosen:
        names = sorted({line["model"] for line in lines.values()})
        bare = {_bare(name): name for name in names}
        near = [bare[name] for name in difflib.get_close_matches(wanted, bare, n=5, cutoff=0.5)]
        raise ValueError(f"nothing is published of a model {model}; there is {', '.join(near or names)}")
    found = [each for name in chosen for each in _expanded(name)]
    return [each for each in found if _sits_at(each, hook)] if hook else found


def nearest(ref: str, n: int = 3) -> list[str]:
    """References that look like one: ids of its release if there is such a release, else releases and Neuronpedia ids."""
    name, _, wanted = ref.partition("/")
    if own := {each.id: each.ref for each in release(name)}:
        return [own[id] for id in difflib.get_close_matches(wanted, own, n=n, cutoff=0.3)] or list(own.values())[:n]
    pages = [each.neuronpedia for each in _some(lambda line: _may_have(line, name))]
    if near := difflib.get_close_matches(ref, filter(None, pages), n=n, cutoff=0.6):
        return near
    near = difflib.get_close_matches(name, releases(), n=n, cutoff=0.6)
    if near and wanted:
        first = {each.id: each.ref for each in release(near[0])}
        return [first[id] for id in difflib.get_close_matches(wanted, first, n=1, cutoff=0.3)] + near[1:]
    return near


def nearest_releases(name: str, n: int = 3) -> list[str]:
    """Releases whose names look like this one."""
    return difflib.get_close_matches(name, releases(), n=n, cutoff=0.5)


def made_from() -> str:
    """What the index was made from, with its version."""
    return str(read_lines()[0]["made_from"])


def _bare(model: str) -> str:
    return model.lower().rpartition("/")[2]


def _sits_at(entry: Published, hook: str) -> bool:
    return hook in entry.hook or hook in entry.hook_out


def _may_have(line: Mapping[str, Any], model: str) -> bool:
    """Whether a release has pages of this model at Neuronpedia: the part before the slash has no columns of its own."""
    return any(group.get("neuronpedia", "").partition("/")[0] == model for group in line["groups"])


# The file


def read_lines(path: Path = REGISTRY_FILE) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of an index, and one line for each release."""
    head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return head, lines


def digest(lines: list[dict[str, Any]]) -> str:
    """A checksum of all entries, however they are written."""
    summed = hashlib.sha256()
    for line in sorted(lines, key=lambda line: line["release"]):
        own = {name: value for name, value in line.items() if name != "groups"}
        for part in (own, *sorted(entries_in(line), key=lambda entry: entry["id"])):
            summed.update(json.dumps(part, sort_keys=True).encode())
    return summed.hexdigest()


def entries_in(line: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of a release's line, with what is known of each."""
    for group in line["groups"]:
        columns = [expand_column(column) for column in group["columns"]]
        fields = [(name, group[name]) for name in FIELDS if name in group]
        for row in list(zip(*columns, strict=True)) if columns else [()]:
            entry: dict[str, Any] = {}
            for name, template in fields:
                text = entry["id"] if template == "{id}" else template.format(*row)
                entry[name] = text if name in _TEXTS else json.loads(text)
            yield entry


def expand_column(column: str) -> list[str]:
    """The numbers of a column: ``3-5`` is 3 4 5, ``5*2`` is 5 5, and ``...*2`` in front is all that follows, twice."""
    first, _, rest = column.partition(" ")
    if first.startswith("...*"):
        return expand_column(rest) * int(first[4:])
    found: list[str] = []
    for word in column.split(" "):
        number, _, times = word.partition("*")
        start, _, end = number.partition("-")
        if end and start.isdigit() and end.isdigit():
            found += [str(n) for n in range(int(start), int(end) + 1)]
        else:
            found += [number] * int(times or 1)
    return found


@cache
def _lines() -> dict[str, dict[str, Any]]:
    return {line["release"]: line for line in read_lines()[1]}


@cache
def _expanded(name: str) -> tuple[Published, ...]:
    line = _lines()[name]
    common = {key: line[key] for key in ("release", "repo", "model", "loader", "overrides") if key in line}
    found = [Published(**common, **entry) for entry in entries_in(line)]
    return tuple(sorted(found, key=lambda each: _natural(each.id)))


def _some(wanted: Callable[[Mapping[str, Any]], bool]) -> Iterator[Published]:
    for name, line in _lines().items():
        if wanted(line):
            yield from _expanded(name)


def _natural(text: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
