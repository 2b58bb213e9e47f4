"""What each TransformerLens name means, against blocks that are written out by hand for every architecture.

The reference below never uses the table: it runs the submodules one after another, as the block's paper does, and calls
``hook`` wherever TransformerLens has a hook point. Reads must give what passes there; an edit must have the effect
that changing the value there has on the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saescope.models import LanguageModel

Hook = Callable[[str, Tensor], Tensor]
Attend = Callable[[nn.Module, str, Tensor], Tensor]


def gpt2(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    mid = hook("hook_resid_mid", x + hook("hook_attn_out", attend(block.attn, "c_proj", block.ln_1(x))))
    return hook("hook_resid_post", mid + hook("hook_mlp_out", block.mlp(block.ln_2(hook("hook_mlp_in", mid)))))


def gptj(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    attn_out = hook("hook_attn_out", attend(block.attn, "out_proj", block.ln_1(x)))
    mlp_out = hook("hook_mlp_out", block.mlp(block.ln_1(hook("hook_mlp_in", x))))
    return hook("hook_resid_post", x + attn_out + mlp_out)


def neox(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    attn_out = hook("hook_attn_out", attend(block.attention, "dense", block.input_layernorm(x)))
    mlp_out = hook("hook_mlp_out", block.mlp(block.post_attention_layernorm(hook("hook_mlp_in", x))))
    return hook("hook_resid_post", x + attn_out + mlp_out)


def neox_sequential(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    mid = x + hook("hook_attn_out", attend(block.attention, "dense", block.input_layernorm(x)))
    mid = hook("hook_resid_mid", mid)
    mlp_out = hook("hook_mlp_out", block.mlp(block.post_attention_layernorm(hook("hook_mlp_in", mid))))
    return hook("hook_resid_post", mid + mlp_out)


def llama(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    mid = x + hook("hook_attn_out", attend(block.self_attn, "o_proj", block.input_layernorm(x)))
    mid = hook("hook_resid_mid", mid)
    mlp_out = hook("hook_mlp_out", block.mlp(block.post_attention_layernorm(hook("hook_mlp_in", mid))))
    return hook("hook_resid_post", mid + mlp_out)


def gemma(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    attn_out = block.post_attention_layernorm(attend(block.self_attn, "o_proj", block.input_layernorm(x)))
    mid = hook("hook_resid_mid", x + hook("hook_attn_out", attn_out))
    mlp_out = block.mlp(block.pre_feedforward_layernorm(hook("hook_mlp_in", mid)))
    return hook("hook_resid_post", mid + hook("hook_mlp_out", block.post_feedforward_layernorm(mlp_out)))


def opt(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    mid = x + hook("hook_attn_out", attend(block.self_attn, "out_proj", block.self_attn_layer_norm(x)))
    mid = hook("hook_resid_mid", mid)
    hidden = torch.relu(block.fc1(block.final_layer_norm(hook("hook_mlp_in", mid))))
    return hook("hook_resid_post", mid + hook("hook_mlp_out", block.fc2(hidden)))


def bert(block: Any, attend: Attend, x: Tensor, hook: Hook) -> Tensor:
    x = hook("hook_resid_pre", x)
    attn_out = hook("hook_attn_out", attend(block.attention, "output", x))
    mid = hook("hook_resid_mid", x + attn_out)
    normed = block.attention.output.LayerNorm(hook("hook_mlp_in", mid))
    mlp_out = hook("hook_mlp_out", block.output.dense(block.intermediate(normed)))
    post = hook("hook_resid_post", normed + mlp_out)
    return hook("hook_normalized_resid_post", block.output.LayerNorm(post))


# kind -> the block by hand, path of the blocks, the attention in a block, what follows the last block
HAND: dict[str, tuple[Callable[..., Tensor], str, str, Callable[[Any, Tensor], Tensor]]] = {
    "gpt2": (gpt2, "transformer.h", "attn", lambda m, x: m.lm_head(m.transformer.ln_f(x))),
    "gptj": (gptj, "transformer.h", "attn", lambda m, x: m.lm_head(m.transformer.ln_f(x))),
    "neox": (neox, "gpt_neox.layers", "attention", lambda m, x: m.lm_head(m.gpt_neox.final_layer_norm(x))),
    "neox_sequential": (
        neox_sequential,
        "gpt_neox.layers",
        "attention",
        lambda m, x: m.lm_head(m.gpt_neox.final_layer_norm(x)),
    ),
    **{
        kind: (llama, "model.layers", "self_attn", lambda m, x: m.lm_head(m.model.norm(x)))
        for kind in ("llama", "mistral", "qwen2", "qwen3")
    },
    "gemma2": (gemma, "model.layers", "self_attn", lambda m, x: 30 * torch.tanh(m.lm_head(m.model.norm(x)) / 30)),
    "gemma3": (gemma, "model.layers", "self_attn", lambda m, x: m.lm_head(m.model.norm(x))),
    "gemma3_images": (
        gemma,
        "model.language_model.layers",
        "self_attn",
        lambda m, x: m.lm_head(m.model.language_model.norm(x)),
    ),
    "opt": (opt, "model.decoder.layers", "self_attn", lambda m, x: m.lm_head(m.model.decoder.final_layer_norm(x))),
    "bert": (bert, "bert.encoder.layer", "attention", lambda m, x: m.cls(x)),
}
LAYERS = range(3)
Edits = Mapping[str, Callable[[Tensor], Tensor]]


class _NoProjection(nn.Module):
    """Stands in for W_O, so that an attention module gives its heads' results."""

    def forward(self, heads: Tensor, *stream: Tensor) -> Tensor:
        return heads


def by_hand(
    model: LanguageModel, kind: str, ids: Tensor, mask: Tensor | None = None, edits: Edits | None = None
) -> dict[str, Tensor]:
    """Every hook point's value, and ``"logits"``, from blocks written out by hand."""
    block_by_hand, path, attention, head = HAND[kind]
    blocks = list(model.module.get_submodule(path))
    conditions: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # masks and rotary tables, per layer
    starts: list[Tensor] = []

    def note_conditions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        conditions.append((args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"}))

    handles = [
        block.get_submodule(attention).register_forward_pre_hook(note_conditions, with_kwargs=True) for block in blocks
    ]
    handles.append(blocks[0].register_forward_pre_hook(lambda module, args: starts.append(args[0])))
    with torch.no_grad():
        # without a cache, which would hold this pass's keys when the attentions are run again
        model.module(ids, attention_mask=mask, **({} if kind == "bert" else {"use_cache": False}))
    for handle in handles:
        handle.remove()

    values: dict[str, Tensor] = {}
    with torch.no_grad():
        x = starts[0]
        for layer, block in enumerate(blocks):

            def hook(name: str, value: Tensor, layer: int = layer) -> Tensor:
                full = f"blocks.{layer}.{name}"
                values[full] = (edits or {}).get(full, lambda v: v)(value)
                return values[full]

            def attend(module: nn.Module, out: str, normed: Tensor, layer: int = layer, hook: Hook = hook) -> Tensor:
                args, kwargs = conditions[layer]
                projection = module.get_submodule(out)
                setattr(module, out, _NoProjection())
                try:
                    heads = module(normed, *args, **kwargs)[0]
                finally:
                    setattr(module, out, projection)
                dense: Any = projection.dense if kind == "bert" else projection
                return dense(hook("attn.hook_z", heads))

            x = block_by_hand(block, attend, x, hook)
        values["logits"] = head(model.module, x)
    return values


@pytest.mark.parametrize("kind", HAND)
def test_the_hand_written_model_is_the_model(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    torch.testing.assert_close(by_hand(model, kind, ids)["logits"], model.module(ids).logits)


@pytest.mark.parametrize("kind", HAND)
def test_reads_give_what_passes_at_every_hook_point(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    expected = by_hand(model, kind, ids, mask)
    expected.pop("logits")
    found = model.read(ids, list(expected), attention_mask=mask)
    assert list(found) == list(expected)
    assert len(found) >= 6 * len(LAYERS)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", HAND)
def test_an_edit_has_the_effect_that_changing_the_value_there_has(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    clean = by_hand(model, kind, ids)
    names = [name for name in clean if name.startswith("blocks.1.")]
    for name in names:
        noise = torch.randn(clean[name].shape, generator=torch.Generator().manual_seed(3))
        edits = {name: lambda value, noise=noise: 0.5 * value + noise}
        expected = by_hand(model, kind, ids, edits=edits)["logits"]
        assert not torch.allclose(expected, clean["logits"], atol=1e-3), name
        found = model.logits(ids, edits=edits)
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", HAND)
def test_edits_at_all_hook_points_together(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    names = [name for name in by_hand(model, kind, ids) if name != "logits"]
    edits = {name: lambda value, shift=0.1 * i: value * 0.9 + shift for i, name in enumerate(names)}
    expected = by_hand(model, kind, ids, edits=edits)
    torch.testing.assert_close(model.logits(ids, edits=edits), expected["logits"])
    with model.edit(edits):  # readers inside see what the edits made
        found = model.read(ids, names)
    seen_before = {"hook_mlp_in", "hook_resid_mid"} if kind == "bert" else set()  # one place, two names: the last edit
    for name in names:
        if name.split(".", 2)[2] not in seen_before:
            torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", HAND)
def test_an_identity_edit_changes_no_bit(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    names = [name for name in by_hand(model, kind, ids) if name != "logits"]
    assert torch.equal(model.logits(ids, edits=dict.fromkeys(names, lambda value: value)), model.module(ids).logits)


@pytest.mark.parametrize("kind", HAND)
def test_hidden_states_of_transformers(kind: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    hidden = model.module(ids, output_hidden_states=True).hidden_states
    post = "hook_normalized_resid_post" if kind == "bert" else "hook_resid_post"
    found = model.read(ids, [f"blocks.{i}.{name}" for i in LAYERS for name in ("hook_resid_pre", post)])
    for layer in LAYERS:
        assert torch.equal(found[f"blocks.{layer}.hook_resid_pre"], hidden[layer])
        if layer + 1 < len(LAYERS):  # the last entry is after the final norm
            assert torch.equal(found[f"blocks.{layer}.{post}"], hidden[layer + 1])


def test_identities_of_the_stream(tiny: Any, ids: Tensor) -> None:
    sequential = tiny("gemma2").read(
        ids,
        [f"blocks.1.hook_{name}" for name in ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")],
    )
    pre, attn_out, mid, mlp_in, mlp_out, post = sequential.values()
    assert torch.equal(mid, pre + attn_out)
    assert torch.equal(mlp_in, mid)
    assert torch.equal(post, mid + mlp_out)
    parallel = tiny("neox").read(
        ids, [f"blocks.1.hook_{name}" for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    )
    pre, attn_out, mlp_out, post = parallel.values()
    torch.testing.assert_close(post, pre + attn_out + mlp_out)
