"""Names: what is listed, what resolves, what is refused and with which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.models import HookPointError


def test_the_list_is_natural_and_complete(tiny: Any) -> None:
    names = tiny("gpt2").hook_points()
    assert len(set(names)) == len(names)
    assert {
        "transformer.h.2.output",
        "transformer.h.2.input",
        "transformer.h.0.attn.c_proj.input",
        "lm_head.output",
    } < {*names}
    assert not any(name.startswith("transformer.h.output") for name in names)  # the list of blocks never runs


def test_blocks_sort_by_number() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from saescope.models import LanguageModel

    module = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=4, n_layer=11, n_head=1, n_positions=4))
    names = LanguageModel(module, None, "deep").hook_points()
    assert names.index("transformer.h.9.output") < names.index("transformer.h.10.input")


def test_listed_names_resolve_to_themselves(tiny: Any) -> None:
    for kind in ("llama", "bert"):  # BERT has modules called output
        model = tiny(kind)
        assert [model.hook_point(name).canonical for name in model.hook_points()] == model.hook_points()


def test_a_path_without_a_side_is_the_output(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    assert model.hook_point("transformer.h.1").canonical == "transformer.h.1.output"
    assert model.hook_point("transformer.h.1").name == "transformer.h.1"
    assert model.hook_point("blocks.1.attn.hook_z").canonical == "transformer.h.1.attn.c_proj.input"
    found = model.read(ids, ["transformer.h.1", "transformer.h.1.output", "blocks.1.hook_resid_post"])
    assert list(found) == ["transformer.h.1", "transformer.h.1.output", "blocks.1.hook_resid_post"]
    first, *others = found.values()
    assert all(torch.equal(first, other) for other in others)
    first.zero_()
    assert others[0].abs().max() > 0  # every name has a tensor of its own


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("transfomer.h.2", "transformer.h.2"),
        ("transformer.h.2.ouput", "transformer.h.2.output"),
        ("blocks.2.hook_resid_pst", "blocks.2.hook_resid_post"),
        ("blocks.1.hook_z", "blocks.1.attn.hook_z"),
        ("transformer.h", "transformer.h."),
    ],
)
def test_an_unknown_name_brings_the_nearest(name: str, nearest: str, tiny: Any, ids: Tensor) -> None:
    for ask in (tiny("gpt2").hook_point, tiny("gpt2").width, lambda asked: tiny("gpt2").read(ids, [asked])):
        with pytest.raises(HookPointError, match=f"no hook point '{name}'; nearest: .*{nearest}"):
            ask(name)


def test_a_block_that_does_not_exist(tiny: Any) -> None:
    with pytest.raises(HookPointError, match="the model has 3 blocks, 0 to 2"):
        tiny("gpt2").hook_point("blocks.3.hook_resid_post")


def test_parallel_blocks_have_no_middle(tiny: Any) -> None:
    for kind in ("gptj", "neox"):
        with pytest.raises(HookPointError, match=r"does not exist in GPT-.*attention and MLP read the same stream"):
            tiny(kind).hook_point("blocks.0.hook_resid_mid")
    assert tiny("neox_sequential").hook_point("blocks.0.hook_resid_mid").join is not None
    with pytest.raises(HookPointError, match="use hook_resid_post"):
        tiny("gpt2").hook_point("blocks.0.hook_normalized_resid_post")


@pytest.mark.parametrize(("kind", "described"), [("phi", "'phi'"), ("opt_post_norm", "do_layer_norm_before=False")])
def test_unknown_families_have_paths_and_no_aliases(kind: str, described: str, tiny: Any, ids: Tensor) -> None:
    model = tiny(kind)
    with pytest.raises(HookPointError, match=f"not known for model type .*{described}.*Known: GPT-2; .*module path"):
        model.hook_point("blocks.0.hook_resid_post")
    block = next(name for name in model.hook_points() if name.endswith("layers.0.output"))
    assert torch.equal(model.read(ids, [block])[block], model.module(ids, output_hidden_states=True).hidden_states[1])
    assert not torch.allclose(model.logits(ids, edits={block: torch.zeros_like}), model.logits(ids))
    with pytest.raises(ValueError, match="known: GPT-2"):
        model.unembedding()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpt2", "transformer.wte.input"), ("qwen3", "model.layers.0.self_attn.q_norm")],
)
def test_a_place_without_one_vector_per_token_is_refused(kind: str, name: str, tiny: Any, ids: Tensor) -> None:
    with pytest.raises(HookPointError, match=r"does not carry one vector per token: it holds a .* tensor of shape"):
        tiny(kind).read(ids, [name])


def test_a_module_that_never_runs(tiny: Any, ids: Tensor) -> None:
    model = tiny("neox")
    model.module.spare = torch.nn.Linear(16, 16)
    try:
        with pytest.raises(HookPointError, match="never came to spare"):
            model.read(ids, ["blocks.0.hook_resid_post", "spare"])
    finally:
        del model.module.spare


def test_positions_that_are_shared_by_the_batch(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    found = model.read(ids, ["transformer.wpe"])["transformer.wpe"]
    assert torch.equal(found, model.module.transformer.wpe.weight[:7].expand(2, 7, 16))
