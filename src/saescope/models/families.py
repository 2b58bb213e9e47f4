"""What the TransformerLens names mean in each architecture, as a table.

A family says where its blocks are and at which place inside a block each TransformerLens name is found. A place is
written relative to the block: ``"input"`` and ``"output"`` are the block's own, ``"ln_2.input"`` is the input of its
submodule ``ln_2``. The meaning follows TransformerLens (``transformer_block.py``, ``bert_block.py``) for a model that
was loaded there with ``from_pretrained_no_processing``; its default loading folds norms and centres weights, which
changes the values.

=================================  ============================================================================
``hook_resid_pre``                 the residual stream as it enters the block
``hook_attn_out``                  what attention adds to the stream (after Gemma's post-attention norm)
``hook_resid_mid``                 the stream after that addition; absent where attention and MLP are parallel
``hook_mlp_in``                    the copy of the stream that the MLP's norm reads, before the norm; an edit changes
                                   what the MLP sees and not the stream (there: with ``use_hook_mlp_in``). In BERT the
                                   norm's result is also the stream, so that an edit changes both
``hook_mlp_out``                   what the MLP adds to the stream (after Gemma's post-feedforward norm)
``hook_resid_post``                the stream after that addition; in BERT this is before the block's last norm
``hook_normalized_resid_post``     BERT only: after the block's last norm, which is what the next block receives
``attn.hook_z``                    the heads' results before W_O, laid side by side: ``n_heads * d_head`` wide
=================================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ALIASES = (
    "hook_resid_pre",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "hook_mlp_out",
    "hook_resid_post",
    "hook_normalized_resid_post",
    "attn.hook_z",
)

NormKind = Literal["layer_norm", "rms_norm"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where one TransformerLens name lives in a block, and how far an edit there has to reach."""

    place: str
    """The place, relative to the block, that carries the value."""
    branch: str | None = None
    """Set where the value is read at a norm's input but is also the stream itself: the place of what the block adds to
    it. An edit then also makes the block's output ``edited value + branch``."""
    only_into: str | None = None
    """Set where the norm at ``place`` feeds several modules: the one that an edit is meant for."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: where its blocks are, what the names mean in them, which norm stands before the unembedding."""

    name: str
    model_types: tuple[str, ...]
    """``config.model_type`` of the models meant."""
    requires: Mapping[str, Any] = field(default_factory=dict)
    """Values that their config must hold; a model with others has another data flow."""
    blocks: str
    """Path of the list of blocks."""
    sites: Mapping[str, Site]
    """TransformerLens name (without ``blocks.N.``) -> site."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """TransformerLens name that does not exist here -> why."""
    final_norm: str | None = None
    """Path of the norm between the last block and the unembedding; None where more than a norm lies between."""
    norm_kind: NormKind = "layer_norm"
    norm_gain_offset: float = 0.0
    """What is added to the norm's weight to get the factor it multiplies by (Gemma stores gain - 1)."""


def _sites(**places: str | Site) -> dict[str, Site]:
    """Sites by short name: ``resid_mid=...`` is ``hook_resid_mid``, ``z=...`` is ``attn.hook_z``."""
    full = {short: "attn.hook_z" if short == "z" else f"hook_{short}" for short in places}
    return {full[short]: Site(place=site) if isinstance(site, str) else site for short, site in places.items()}


_PARALLEL = {
    "hook_resid_mid": "attention and MLP read the same stream and are added together, so that none exists between them"
}
_NO_LAST_NORM = {"hook_normalized_resid_post": "the block ends with an addition, without a norm; use hook_resid_post"}

_LLAMA_SITES = _sites(
    resid_pre="input",
    z="self_attn.o_proj.input",
    attn_out="self_attn.output",
    resid_mid=Site(place="post_attention_layernorm.input", branch="mlp.output"),
    mlp_in="post_attention_layernorm.input",
    mlp_out="mlp.output",
    resid_post="output",
)
_GEMMA_SITES = _sites(
    resid_pre="input",
    z="self_attn.o_proj.input",
    attn_out="post_attention_layernorm.output",
    resid_mid=Site(place="pre_feedforward_layernorm.input", branch="post_feedforward_layernorm.output"),
    mlp_in="pre_feedforward_layernorm.input",
    mlp_out="post_feedforward_layernorm.output",
    resid_post="output",
)
_NEOX_SITES = _sites(
    resid_pre="input",
    z="attention.dense.input",
    attn_out="attention.output",
    mlp_in="post_attention_layernorm.input",
    mlp_out="mlp.output",
    resid_post="output",
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        blocks="transformer.h",
        sites=_sites(
            resid_pre="input",
            z="attn.c_proj.input",
            attn_out="attn.output",
            resid_mid=Site(place="ln_2.input", branch="mlp.output"),
            mlp_in="ln_2.input",
            mlp_out="mlp.output",
            resid_post="output",
        ),
        absent=_NO_LAST_NORM,
        final_norm="transformer.ln_f",
    ),
    Family(
        name="GPT-J",
        model_types=("gptj",),
        blocks="transformer.h",
        sites=_sites(
            resid_pre="input",
            z="attn.out_proj.input",
            attn_out="attn.output",
            mlp_in=Site(place="ln_1.input", only_into="mlp"),
            mlp_out="mlp.output",
            resid_post="output",
        ),
        absent=_PARALLEL | _NO_LAST_NORM,
        final_norm="transformer.ln_f",
    ),
    Family(
        name="GPT-NeoX / Pythia",
        model_types=("gpt_neox",),
        requires={"use_parallel_residual": True},
        blocks="gpt_neox.layers",
        sites=_NEOX_SITES,
        absent=_PARALLEL | _NO_LAST_NORM,
        final_norm="gpt_neox.final_layer_norm",
    ),
    Family(
        name="GPT-NeoX with use_parallel_residual=False",
        model_types=("gpt_neox",),
        requires={"use_parallel_residual": False},
        blocks="gpt_neox.layers",
        sites=_NEOX_SITES | _sites(resid_mid=Site(place="post_attention_layernorm.input", branch="mlp.output")),
        absent=_NO_LAST_NORM,
        final_norm="gpt_neox.final_layer_norm",
    ),
    Family(
        name="Llama / Mistral / Qwen2 / Qwen3",
        model_types=("llama", "mistral", "qwen2", "qwen3"),
        blocks="model.layers",
        sites=_LLAMA_SITES,
        absent=_NO_LAST_NORM,
        final_norm="model.norm",
        norm_kind="rms_norm",
    ),
    Family(
        name="Gemma 2 / Gemma 3 (text)",
        model_types=("gemma2", "gemma3_text"),
        blocks="model.layers",
        sites=_GEMMA_SITES,
        absent=_NO_LAST_NORM,
        final_norm="model.norm",
        norm_kind="rms_norm",
        norm_gain_offset=1.0,
    ),
    Family(
        name="Gemma 3 with images",
        model_types=("gemma3",),
        blocks="model.language_model.layers",
        sites=_GEMMA_SITES,
        absent=_NO_LAST_NORM,
        final_norm="model.language_model.norm",
        norm_kind="rms_norm",
        norm_gain_offset=1.0,
    ),
    Family(
        name="OPT with do_layer_norm_before=True",
        model_types=("opt",),
        requires={"do_layer_norm_before": True},
        blocks="model.decoder.layers",
        sites=_sites(
            resid_pre="input",
            z="self_attn.out_proj.input",
            attn_out="self_attn.output",
            resid_mid=Site(place="final_layer_norm.input", branch="fc2.output"),
            mlp_in="final_layer_norm.input",
            mlp_out="fc2.output",
            resid_post="output",
        ),
        absent=_NO_LAST_NORM,
        final_norm="model.decoder.final_layer_norm",
    ),
    Family(
        name="BERT",
        model_types=("bert",),
        blocks="bert.encoder.layer",
        # The norms stand after the additions: only they read the sums, so that plain places are exact for edits too.
        sites=_sites(
            resid_pre="input",
            z="attention.output.dense.input",
            attn_out="attention.output.dense.output",
            resid_mid="attention.output.LayerNorm.input",
            mlp_in="attention.output.LayerNorm.input",
            mlp_out="output.dense.output",
            resid_post="output.LayerNorm.input",
            normalized_resid_post="output.LayerNorm.output",
        ),
    ),
)


def family_of(config: Any) -> Family | None:
    """The row for a Hugging Face config, or None where the table has no row that holds for it."""
    for family in FAMILIES:
        if config.model_type in family.model_types and all(
            getattr(config, key, None) == value for key, value in family.requires.items()
        ):
            return family
    return None
