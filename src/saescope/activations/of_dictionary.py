"""The activations that a dictionary was trained on, from a plain Hugging Face model.

Most published dictionaries saw a model through TransformerLens, which can change it while loading (its ``weight
processing``). Their metadata says how. What changes activations, and how it is had from the model as it is:

- ``center_writing_weights``: everything that writes to the residual stream has its mean over d_model taken off. In models
  with LayerNorm, whose norms do not see that mean, the model's function stays the same, and the stream is, exactly::

      x' = x - mean(x)        per token, over d_model

  The same holds for what attention and MLP add to it. RMS norms do see the mean; TransformerLens leaves such models alone.
- one head: ``hook_z`` of head h is its stretch of the heads' results, which lie side by side here.
- embeddings of Gemma: the first block gets them times sqrt(d_model); the rows of the matrix are without it.

B  windows, T  tokens in a window, N  tokens that are kept, d  width of a hook point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saescope.activations.documents import Document
from saescope.activations.windows import TokenWindows, WindowBatch, WindowConfig
from saescope.models.families import family_of
from saescope.models.hook_points import HookPointError
from saescope.training import TrainingBatch

if TYPE_CHECKING:
    from saescope.dictionaries import Dictionary
    from saescope.models import LanguageModel

_WRITTEN = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_mlp_in")
_CONTEXT_SIZE = 128  # where nothing is said
_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a hook point's activations before a dictionary gets them."""

    name: str  # of the hook point, as the model knows it
    centre: bool = False
    head: tuple[int, int] | None = None  # the first and the last entry of one head
    factor: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., d]``, in its dtype."""
        if self.head is not None:
            x = x[..., self.head[0] : self.head[1]]
        if self.factor != 1:
            x = x * self.factor
        return x - x.mean(-1, keepdim=True) if self.centre else x

    def put(self, raw: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """The activation ``raw`` of which ``old`` was made, so changed that ``new`` is made of it; both ``[..., d]``.

        In the dtype of ``new``, which can be wider than that of ``raw``. What preparing takes away stays: other heads, and
        the mean of centred activations, of which later norms see none.
        """
        if self.head is None and self.factor == 1 and not self.centre:
            return new
        change = new - old
        if self.factor != 1:
            change = change / self.factor
        if self.head is not None:
            change = F.pad(change, (self.head[0], raw.shape[-1] - self.head[1]))
        return raw + change

    def __str__(self) -> str:
        done = []
        if self.head is not None:
            done.append(f"entries {self.head[0]} to {self.head[1] - 1}, those of one head")
        if self.factor != 1:
            done.append(f"times {self.factor:.6g}")
        if self.centre:
            done.append("less each token's mean, as TransformerLens' centred weights give it")
        return f"{self.name}: {'; '.join(done) or 'as it is'}"


def of(
    dictionary: Dictionary,
    model: LanguageModel,
    text: TokenWindows | Iterable[str | Document],
    *,
    hook_point: str | None = None,
    hook_point_out: str | None = None,
    exclude_special_tokens: bool | None = None,
    scaled_embeddings: bool | None = None,
    num_tokens: int | None = None,
) -> Iterator[Tensor | TrainingBatch]:
    """What a dictionary was trained on: activations of a text, in its order, as its metadata describes them.

    Args:
        model: the model it was trained on, as Hugging Face has it.
        text: texts, cut into windows by the metadata's context size and BOS; or windows, taken as they are.
        hook_point: where the metadata's name is not to be taken; ``hook_point_out`` likewise.
        exclude_special_tokens: None for what the metadata says; where it says nothing they are left out.
        scaled_embeddings: of Gemma's embedding, whether rows come times sqrt(d_model); None for as the model gives them.
        num_tokens: end after about so many.

    Yields:
        ``[N, d_in]`` in float32 for some windows at a time; with what is to be rebuilt ``[N, d_out]`` where that is
        another place (a :class:`saescope.TrainingBatch`).

    Raises:
        ValueError: no hook point is known, its width is not the dictionary's, or the model was changed on loading in a way
            that is not had from the model as it is.
    """
    metadata = dictionary.metadata
    reads = preparations(metadata, model, hook_point, dictionary.d_in, scaled_embeddings=scaled_embeddings)
    writes = preparations(metadata, model, hook_point_out, dictionary.d_out, out=True)
    windows = text if isinstance(text, TokenWindows) else _windows(metadata, model, text)
    if exclude_special_tokens is None:
        exclude_special_tokens = bool(metadata.get("exclude_special_tokens", True))
    names = list(dict.fromkeys(each.name for each in (*reads, *writes)))
    given = 0
    for batch in windows.in_order(_WINDOWS_AT_ONCE):
        keep = _kept(batch, metadata, exclude_special_tokens)
        if not bool(keep.any()):
            continue
        found = model.read(batch.ids, names, attention_mask=batch.attention)
        x = prepared(found, reads, keep)
        yield TrainingBatch(x, prepared(found, writes, keep)) if writes else x
        given += len(x)
        if num_tokens is not None and given >= num_tokens:
            return


def prepared(found: Mapping[str, Tensor], wanted: Iterable[Preparation], keep: Tensor) -> Tensor:
    """Prepared activations of kept tokens side by side, float32 ``[N, d]``; from values ``[B, T, d]`` by name."""
    return torch.cat([each(found[each.name][keep.to(found[each.name].device)].float()) for each in wanted], dim=-1)


def preparations(
    metadata: Mapping[str, Any],
    model: LanguageModel,
    hook_point: str | None,
    width: int,
    *,
    out: bool = False,
    scaled_embeddings: bool | None = None,
) -> tuple[Preparation, ...]:
    """How the places that a dictionary reads (with ``out``: rebuilds) are had from a model; several of a crosscoder.

    Args:
        hook_point: None for the metadata's.
        width: of the dictionary there.

    Raises:
        ValueError: as :func:`of`. HookPointError: the model has no such place.
    """
    ending = "_out" if out else ""
    named = hook_point or _known_name(metadata, model, ending)
    if not named:
        if out:
            return ()
        raise ValueError("the dictionary does not say which hook point it was trained on; name it with hook_point")
    names = [_place(name.strip(), model) for name in str(named).split(", ")]
    head = metadata.get(f"hook_head_index{ending}")
    found = []
    for name in names:
        wide = model.width(name)
        part = None
        if isinstance(head, int) and wide != width:
            if wide % width or not 0 <= head < wide // width:
                raise ValueError(f"head {head} of width {width} is no part of {name}, which has width {wide}")
            part = (head * width, (head + 1) * width)
        factor = 1.0 if scaled_embeddings is None else _embedding_factor(name, model, scaled_embeddings)
        found.append(Preparation(name=name, centre=_is_centred(metadata, model, name), head=part, factor=factor))
    total = sum(each.head[1] - each.head[0] if each.head else model.width(each.name) for each in found)
    if total != width:
        raise ValueError(
            f"the dictionary has width {width} there, but {', '.join(names)} of {model.name} has {total}; check model and "
            "hook point"
        )
    return tuple(found)


def _known_name(metadata: Mapping[str, Any], model: LanguageModel, ending: str) -> str:
    """The metadata's hook point: a module of the Hugging Face model where one is named and there, it is the surer one.

    A name of TransformerLens for the same place says more: which of those who read there an edit is meant for.
    """
    module, name = (str(metadata.get(f"{key}{ending}") or "") for key in ("hf_hook_name", "hook_name"))
    of_module, of_name = _canonical(module, model), _canonical(name, model)
    return module if of_module is not None and of_module != of_name else name or module


def _canonical(name: str, model: LanguageModel) -> str | None:
    try:
        return model.hook_point(name).canonical
    except HookPointError:
        return None


def _place(name: str, model: LanguageModel) -> str:
    return _embedding(model) if name == "hook_embed" else name


def _embedding(model: LanguageModel) -> str:
    table = model.module.get_input_embeddings()
    return next(path for path, module in model.module.named_modules() if module is table)


def _embedding_factor(name: str, model: LanguageModel, scaled: bool) -> float:
    """Between the embedding as the model gives it and as it is asked for."""
    if model.hook_point(name).canonical != model.hook_point(_embedding(model)).canonical:
        raise ValueError(f"scaled_embeddings is said of an embedding, and {name} is none")
    multiplied = hasattr(model.module.get_input_embeddings(), "scalar_embed_scale")  # by sqrt(d_model), in the module
    if multiplied == scaled:
        return 1.0
    return model.d_model**0.5 if scaled else model.d_model**-0.5


def _is_centred(metadata: Mapping[str, Any], model: LanguageModel, name: str) -> bool:
    changed = metadata.get("model_from_pretrained_kwargs")
    changed = changed if isinstance(changed, Mapping) else {}
    family = family_of(model.module.config)
    canonical = model.hook_point(name).canonical
    z_changed = [key for key in ("fold_value_biases", "refactor_factored_attn_matrices") if changed.get(key)]
    if z_changed and name.endswith("attn.hook_z"):
        raise ValueError(
            f"the dictionary was trained with {' and '.join(z_changed)}, which change {name}; that is not had from the "
            "model as Hugging Face has it"
        )
    if not changed.get("center_writing_weights"):
        return False
    if family is None:
        raise ValueError(
            f"the dictionary was trained on centred activations (center_writing_weights), and whether {model.name} has "
            "LayerNorm is not known here"
        )
    if family.norm_kind != "layer_norm" or family.final_norm is None:
        return False
    layers = len(model.module.get_submodule(family.blocks))
    written = {
        model.hook_point(f"blocks.{layer}.{site}").canonical
        for layer in range(layers)
        for site in _WRITTEN
        if site in family.sites
    }
    return canonical in written


def _windows(metadata: Mapping[str, Any], model: LanguageModel, text: Iterable[str | Document]) -> TokenWindows:
    if model.tokenizer is None:
        raise ValueError(f"{model.name} comes without a tokenizer; give windows in the place of text")
    said = metadata.get("context_size")
    size = said if isinstance(said, int) and said > 2 else _CONTEXT_SIZE
    config = WindowConfig(
        context_size=min(size, model.context_size or size),
        packing="separate" if metadata.get("disable_concat_sequences") else "concatenate",
        prepend_bos=bool(metadata.get("prepend_bos", True)),
    )
    documents = (
        each if isinstance(each, Document) else Document(f"text {number}", each) for number, each in enumerate(text)
    )
    return TokenWindows.build(documents, model.tokenizer, config)


def _kept(batch: WindowBatch, metadata: Mapping[str, Any], exclude_special_tokens: bool) -> Tensor:
    """Tokens that count, bool ``[B, T]``: those of the stretch of positions that was trained on, where one was."""
    keep = (batch.keep if exclude_special_tokens else batch.attention).clone()
    stretch = metadata.get("seqpos_slice")
    if isinstance(stretch, list | tuple) and 1 <= len(stretch) <= 3:
        inside = torch.zeros(keep.shape[1], dtype=torch.bool)
        inside[slice(*stretch)] = True
        keep &= inside
    return keep
