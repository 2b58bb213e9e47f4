"""Forward passes as taps see them: padding and positions, passes within passes, other threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.models import LanguageModel
from saescope.models.hooks import Pass

CAUSAL = [
    "gpt2", "gptj", "neox", "neox_sequential", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_images",
    "opt", "opt_post_norm", "phi",
]  # fmt: skip
BLOCKS = {"gpt2": "transformer.h", "gptj": "transformer.h", "opt": "model.decoder.layers", "neox": "gpt_neox.layers"}


def block(kind: str, number: int) -> str:
    if kind == "gemma3_images":
        return f"model.language_model.layers.{number}"
    return f"{BLOCKS.get(kind.split('_')[0], 'model.layers')}.{number}"


def padded(texts: list[Tensor], on_the_left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, texts))
    ids, mask = torch.full((len(texts), width), 7), torch.zeros(len(texts), width, dtype=torch.long)
    for row, text in enumerate(texts):
        stretch = slice(width - len(text), width) if on_the_left else slice(0, len(text))
        ids[row, stretch], mask[row, stretch] = text, 1
    return ids, mask


@pytest.fixture
def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(2, 40, (n,), generator=generator) for n in (3, 8, 5)]


@pytest.mark.parametrize("kind", [*CAUSAL, "bert"])
def test_padding_on_either_side_changes_nothing(kind: str, tiny: Any, texts: list[Tensor]) -> None:
    model = tiny(kind)
    name = "bert.encoder.layer.1" if kind == "bert" else block(kind, 1)
    for on_the_left in (True, False):
        ids, mask = padded(texts, on_the_left)
        logits = model.logits(ids, attention_mask=mask)
        read = model.read(ids, [name], attention_mask=mask)[name]
        for row, text in enumerate(texts):
            real = mask[row].bool()
            torch.testing.assert_close(logits[row, real], model.logits(text[None])[0], rtol=0, atol=1e-4)
            torch.testing.assert_close(read[row, real], model.read(text[None], [name])[name][0], rtol=0, atol=1e-4)


def test_robertas_positions(tiny: Any, texts: list[Tensor]) -> None:
    """They begin after the padding token's number, which is told from the ids unless the mask says where."""
    model = tiny("roberta")
    ids, mask = padded(texts, on_the_left=True)
    logits = model.logits(ids, attention_mask=mask)
    for row, text in enumerate(texts):
        torch.testing.assert_close(logits[row, mask[row].bool()], model.logits(text[None])[0], rtol=0, atol=1e-4)


# On the right, padding lies between a prompt and what follows it. Sliding windows count it, as they count places.
SIDES = [
    (kind, side) for kind in CAUSAL for side in ("left", "right") if side == "left" or not kind.startswith("gemma")
]


@pytest.mark.parametrize(("kind", "side"), SIDES)
def test_padded_texts_go_on_with_a_cache(kind: str, side: str, tiny: Any, texts: list[Tensor]) -> None:
    model = tiny(kind)
    ids, mask = padded(texts, side == "left")
    more = torch.randint(2, 40, (3, 3), generator=torch.Generator().manual_seed(1))
    output = model.forward(ids, attention_mask=mask, use_cache=True)
    found = []
    for column in range(3):
        mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        output = model.forward(more[:, [column]], attention_mask=mask, cache=output.past_key_values)
        found.append(output.logits)
    together = torch.cat(found, dim=1)
    for row, text in enumerate(texts):
        alone = model.logits(torch.cat([text, more[row]])[None])[0, -3:]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-4)


class Recorder:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.began: list[Pass] = []
        self.given: list[set[str]] = []
        self.ended: list[Any] = []

    def before_pass(self, running: Pass, inputs: Mapping[str, Any]) -> None:
        self.began.append(running)
        self.given.append({name for name, value in inputs.items() if value is not None})

    def after_pass(self, running: Pass, output: Any) -> None:
        self.ended.append((running, output))


def test_a_listener_is_told_of_every_pass(tiny: Any, ids: Tensor) -> None:
    model, told = tiny("llama"), Recorder()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    with model.tapped([], told):
        output = model.module(ids, mask, use_cache=True)
        cache = output.past_key_values
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
        model.forward(ids[:, :1], attention_mask=longer, cache=cache)
        model.read(ids, [block("llama", 0)])
    first, second, third = told.began
    assert torch.equal(first.ids, ids)
    assert (first.shape, first.num_past, first.cache) == ((2, 7), 0, None)
    assert torch.equal(first.is_token, mask.bool())
    assert {"input_ids", "attention_mask"} <= told.given[0]
    assert first.cache_given[0]() is cache
    assert (second.shape, second.num_past, second.cache) == ((2, 1), 7, cache)
    assert second.is_token.tolist() == [[True], [True]]
    assert third.is_token is None
    assert [running for running, _ in told.ended] == [first, second]  # the third was stopped
    assert told.ended[0][1] is output
    assert model.running is None


def test_a_pass_within_a_pass(tiny: Any, ids: Tensor) -> None:
    """An edit that runs the model on another text: afterwards the outer pass goes on with its own shapes and values."""
    model: LanguageModel = tiny("opt")  # flattens [B, T] inside its blocks, which only the shape of the pass can undo
    mid, inner = "blocks.1.hook_resid_mid", torch.full((1, 3), 5)
    plain = model.logits(inner)
    expected = model.logits(ids, edits={mid: lambda v: 2 * v, "model.decoder.layers.1.fc2": lambda v: -v})
    found: list[Tensor] = []
    depth = [0]

    def reads(value: Tensor) -> Tensor:
        if depth[0] == 0:
            depth[0] = 1
            outer = model.running
            found.append(model.read(inner, ["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"])
            with model._wiring.bare():
                found.append(model.module(inner).logits)
            model.module(inner)
            assert model.running is outer
            depth[0] = 0
        return -value

    again = model.logits(ids, edits={mid: lambda v: 2 * v, "model.decoder.layers.1.fc2": reads})
    assert torch.equal(again, expected)
    assert torch.equal(found[1], plain)
    assert model.running is None


def test_another_threads_taps(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2")
    plain = model.logits(ids)
    inside, done = threading.Event(), threading.Event()

    def edits() -> None:
        with model.edit({"blocks.1.hook_resid_post": torch.zeros_like}):
            inside.set()
            done.wait(timeout=30)

    thread = threading.Thread(target=edits, daemon=True)
    thread.start()
    assert inside.wait(timeout=30)
    assert torch.equal(model.module(ids).logits, plain)  # does not wait
    found: list[Tensor] = []
    waiting = threading.Thread(target=lambda: found.append(model.logits(ids)), daemon=True)
    waiting.start()
    waiting.join(timeout=0.2)
    assert not found  # waits
    done.set()
    waiting.join(timeout=30)
    thread.join(timeout=30)
    assert torch.equal(found[0], plain)


def test_widths_are_the_models_own(tiny: Any, ids: Tensor) -> None:
    model = LanguageModel(tiny("gpt2").module, None, "fresh")

    def only_its_text(value: Tensor) -> Tensor:
        assert value.shape[:2] == (2, 7)
        return value

    with model.edit({"blocks.0.hook_resid_post": only_its_text}):
        assert model.width("blocks.2.hook_mlp_out") == 16
        model.logits(ids)
