"""Edits: their order, their reach, what is refused, and that nothing of them stays behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.models import HookPointError, LanguageModel


def hooks_on(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


def test_zeros_at_the_last_block_leave_the_head_alone(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    found = model.logits(ids, edits={"blocks.2.hook_resid_post": torch.zeros_like})
    by_hand = model.module.lm_head(model.module.transformer.ln_f(torch.zeros(2, 7, 16)))
    assert torch.equal(found, by_hand)


def test_an_edit_in_the_middle_of_a_block_moves_its_end_by_the_same_and_the_mlp(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    block = model.module.transformer.h[1]
    shift = torch.linspace(-2, 2, 16)
    mid = model.read(ids, ["blocks.1.hook_resid_mid"])["blocks.1.hook_resid_mid"]
    with model.edit({"blocks.1.hook_resid_mid": lambda value: value + shift}):
        post = model.read(ids, ["transformer.h.1"])["transformer.h.1"]
    assert torch.equal(post, (mid + shift) + block.mlp(block.ln_2(mid + shift)))


def test_the_middle_of_a_block_is_set_exactly_even_in_bfloat16(tiny: Any, ids: Tensor) -> None:
    # Here a detour over attn_out = edited - resid_pre would be off by up to half a percent of resid_pre.
    source = tiny("llama").module
    module = type(source)(source.config).to(torch.bfloat16)
    module.load_state_dict(source.state_dict())
    model = LanguageModel(module, None, "bf16")
    tiny_values = torch.full((2, 7, 16), 1e-4, dtype=torch.bfloat16)
    edits = {"blocks.1.hook_resid_mid": lambda value: tiny_values, "blocks.1.hook_mlp_out": torch.zeros_like}
    with model.edit(edits):
        found = model.read(ids, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    assert torch.equal(found, tiny_values)


def test_module_paths_edit_too(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    for path, alias in [
        ("model.layers.1.output", "blocks.1.hook_resid_post"),
        ("model.layers.1.self_attn", "blocks.1.hook_attn_out"),
        ("model.layers.1.input", "blocks.1.hook_resid_pre"),
    ]:
        doubled = {name: lambda value: 2 * value for name in (path, alias)}
        by_path, by_alias = (model.logits(ids, edits={name: doubled[name]}) for name in (path, alias))
        assert torch.equal(by_path, by_alias)
        assert not torch.allclose(by_path, model.logits(ids))


def test_an_input_that_is_passed_by_name(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    layer = model.module.model.layers[1]
    x = model.read(ids, ["model.layers.1.self_attn.input", "model.layers.1.input_layernorm"])
    assert torch.equal(*x.values())
    changed = model.logits(ids, edits={"model.layers.1.self_attn.input": lambda value: -value})
    by_norm = model.logits(ids, edits={"model.layers.1.input_layernorm": lambda value: -value})
    assert torch.equal(changed, by_norm)
    assert layer.input_layernorm._forward_hooks == {}


def test_the_network_below_the_head_gives_a_record(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    assert torch.equal(
        *model.read(
            ids,
            [
                "transformer",
                "transformer.ln_f",
            ],
        ).values()
    )
    zeroed = model.logits(ids, edits={"transformer.output": torch.zeros_like})
    assert torch.equal(zeroed, torch.zeros(2, 7, 40))


def test_inner_edits_come_after_outer_ones_and_readers_see_both(tiny: Any, ids: Tensor) -> None:
    for name in ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_in", "blocks.1.hook_resid_post"):
        for kind in ("gpt2", "gptj") if name == "blocks.1.hook_mlp_in" else ("gpt2",):
            model = tiny(kind)
            value = model.read(ids, [name])[name]
            with model.edit({name: lambda v: v + 1}), model.edit({name: lambda v: v * 3}):
                found = model.read(ids, [name])[name]
                nested = model.logits(ids)
            assert torch.equal(found, (value + 1) * 3)
            assert torch.equal(nested, model.logits(ids, edits={name: lambda v: (v + 1) * 3}))


def test_path_and_alias_of_one_place_share_their_order(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    value = model.read(ids, ["transformer.h.1"])["transformer.h.1"]
    with model.edit({"transformer.h.1": lambda v: v + 1}), model.edit({"blocks.1.hook_resid_post": lambda v: v * 3}):
        found = model.read(ids, ["blocks.1.hook_resid_post", "transformer.h.1.output", "blocks.2.hook_resid_pre"])
    assert all(torch.equal(each, (value + 1) * 3) for each in found.values())


def test_the_mlps_copy_is_not_the_stream(tiny: Any, ids: Tensor) -> None:
    for kind in ("gpt2", "gptj", "neox", "opt"):
        model = tiny(kind)
        names = ["blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
        clean = model.read(ids, names)
        with model.edit({"blocks.1.hook_mlp_in": lambda value: value * 0 + torch.arange(16.0)}):
            edited = model.read(ids, names)
        assert torch.equal(clean[names[0]], edited[names[0]]), kind
        assert not torch.allclose(clean[names[1]], edited[names[1]]), kind


def test_an_edit_may_work_in_place(tiny: Any, ids: Tensor) -> None:
    def in_place(value: Tensor) -> Tensor:
        value[:, 2:] = 0
        return value

    def outside(value: Tensor) -> Tensor:
        return torch.cat([value[:, :2], torch.zeros_like(value[:, 2:])], dim=1)

    for kind in ("gpt2", "gptj"):
        model = tiny(kind)
        for alias in ("hook_resid_pre", "hook_mlp_in", "hook_resid_post"):
            name = f"blocks.1.{alias}"
            assert torch.equal(model.logits(ids, edits={name: in_place}), model.logits(ids, edits={name: outside}))


def test_other_dtypes_are_cast_and_gradients_flow(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    direction = torch.ones(16, dtype=torch.float64, requires_grad=True)

    def shifted(by: Tensor) -> Any:
        return lambda value: value.double() + by

    for name in ("blocks.0.hook_resid_mid", "blocks.1.hook_resid_post"):
        logits = model.logits(ids, edits={name: shifted(direction)})
        assert logits.dtype == torch.float32
        (gradient,) = torch.autograd.grad(logits[0, -1, 3], direction)
        with torch.no_grad():
            step = 1e-2 * gradient / gradient.norm()
            up, down = (model.logits(ids, edits={name: shifted(direction + s * step)})[0, -1, 3] for s in (1, -1))
        torch.testing.assert_close(float(up - down) / 0.02, float(gradient.norm()), rtol=0.02, atol=0)


def test_generation_runs_under_an_edit(tiny: Any, ids: Tensor) -> None:
    model = tiny("opt")
    edits = {"blocks.1.hook_mlp_out": lambda value: value + 2, "blocks.0.hook_resid_mid": lambda value: -value}
    expected = ids
    for _ in range(4):
        expected = torch.cat([expected, model.logits(expected, edits=edits)[:, -1:].argmax(-1)], dim=1)
    with model.edit(edits):
        found = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    untouched = model.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert torch.equal(found, expected)
    assert not torch.equal(found, untouched)


def test_nothing_stays_behind_after_an_exception(tiny: Any, ids: Tensor) -> None:
    model = tiny("gptj")
    model.module(ids, output_hidden_states=True)  # transformers itself leaves its collectors on, once
    before, clean = hooks_on(model), model.logits(ids)

    def fails(value: Tensor) -> Tensor:
        raise RuntimeError("inside an edit")

    with pytest.raises(RuntimeError, match="inside an edit"):
        model.logits(ids, edits={"blocks.1.hook_mlp_in": lambda value: value + 1, "blocks.1.hook_mlp_out": fails})
    assert hooks_on(model) == before
    with model.edit({"blocks.0.hook_resid_post": torch.zeros_like}):
        assert hooks_on(model) > before
    assert hooks_on(model) == before
    with pytest.raises(HookPointError, match="nowhere"):
        model.logits(ids, edits={"blocks.0.hook_resid_post": torch.zeros_like, "nowhere": torch.zeros_like})
    assert hooks_on(model) == before
    assert torch.equal(model.logits(ids), clean)


@pytest.mark.parametrize("wrong", [lambda v: v[:, 1:], lambda v: v[0], lambda v: None, lambda v: v.mean()])
def test_an_edit_of_another_shape_is_refused(wrong: Any, tiny: Any, ids: Tensor) -> None:
    with pytest.raises(HookPointError, match=r"the edit at blocks.1.hook_resid_mid returned .*\(2, 7, 16\)"):
        tiny("gpt2").logits(ids, edits={"blocks.1.hook_resid_mid": wrong})
