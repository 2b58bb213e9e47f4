"""Every change equals a plain torch hook, to the last bit in float64: one pass, with a cache, and in generate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from saescope.interventions import Ablate, Add, Change, Clamp, Intervention, ProjectOut, Scale, Site, Splice

KINDS = ["gpt2", "llama", "gemma2", "neox", "qwen3", "opt", "phi"]
ARCHITECTURES = {
    "relu": {},
    "topk": {"k": 4},
    "jumprelu": {},
    "gated": {},
    "matching_pursuit": {"k": 5},
    "batch_topk": {"k": 4},
}
FIRST, SECOND = 5, 11  # features, where any will do


def firing(site: Site, ids: Tensor) -> list[int]:
    """The three features that fire most at the site."""
    x = site.x_of(site.model.read(ids, [site.reads[0].name]))
    found: list[int] = site.dictionary.encode(x).detach().sum((0, 1)).topk(3).indices.tolist()
    return found


def cases(site: Site, ids: Tensor) -> dict[str, tuple[list[Change], Any]]:
    """Changes, and the same as a function of x ``[B, T, d]``, f ``[B, T, d_sae]`` and the decoder's rows."""
    i, j, k = firing(site, ids)
    d, far = site.dictionary, {"special_tokens": True}  # greedy decoding may write special tokens
    rows, unit = d.W_dec.detach(), d.W_dec[i].detach() / d.W_dec[i].detach().norm()
    return {
        "add": ([Add(site, i, 1.5, **far)], lambda x, f: x + 1.5 * 4.0 * rows[i]),
        "add an activation": ([Add(site, i, -0.7, "activation", **far)], lambda x, f: x + -0.7 * rows[i]),
        "clamp": ([Clamp(site, i, 0.5, **far)], lambda x, f: x + (0.5 * 4.0 - f[..., [i]]) * rows[i]),
        "scale": ([Scale(site, i, 3.0, **far)], lambda x, f: x + 2.0 * f[..., [i]] * rows[i]),
        "ablate": ([Ablate(site, i, **far)], lambda x, f: x - f[..., [i]] * rows[i]),
        "ablate several": ([Ablate(site, [i, j, k], **far)], lambda x, f: x - f[..., [i, j, k]] @ rows[[i, j, k]]),
        "project out": ([ProjectOut(site, i, **far)], lambda x, f: x - (x * unit).sum(-1, keepdim=True) * unit),
        "splice": ([Splice(site, error_term=False, **far)], lambda x, f: d.decode(f, x).detach()),
        "several": (
            [Add(site, i, 1.0, **far), Ablate(site, j, **far)],
            lambda x, f: x + 4.0 * rows[i] - f[..., [j]] * rows[j],
        ),
    }


def by_itself(site: Site, change: Any) -> Any:
    """The change as a hook on every token."""

    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            new: Tensor = change(x, site.dictionary.encode(x))
        return new

    return function


def decode(module: Any, ids: Tensor, steps: int) -> list[Tensor]:
    """Logits of a prompt and of each token after it, greedily, with a cache."""
    cache, found = DynamicCache(config=module.config), []
    for _ in range(steps):
        output = module(ids, past_key_values=cache, use_cache=True)
        found.append(output.logits)
        ids = output.logits[:, -1:].argmax(-1)
    return found


def write(module: Any, ids: Tensor) -> Any:
    return module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_in_every_family(
    kind: str, tiny_model: Any, make_dictionary: Any, blocks: Any, by_hand: Any, ids: Tensor
) -> None:
    model = tiny_model(kind)
    path = f"{blocks(kind)}.1"
    site = Site(make_dictionary(), model, hook_point=path, max_activations=torch.full((24,), 4.0))
    plain = model.logits(ids)
    for name, (changes, change) in cases(site, ids).items():
        with by_hand(model, path, by_itself(site, change)):
            expected, decoded, written = model.logits(ids), decode(model.module, ids, 4), write(model.module, ids)
        with Intervention(changes if len(changes) > 1 else changes[0]):
            assert torch.equal(model.logits(ids), expected), name
            assert all(map(torch.equal, decode(model.module, ids, 4), decoded)), name
            again = write(model.module, ids)
        assert torch.equal(again.sequences, written.sequences), name
        assert all(map(torch.equal, again.logits, written.logits)), name
        assert float((expected - plain).abs().max()) > 1e-3, name
    assert torch.equal(model.logits(ids), plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_change_with_every_architecture(
    architecture: str, tiny_model: Any, make_dictionary: Any, by_hand: Any, ids: Tensor
) -> None:
    model = tiny_model("llama")
    dictionary = make_dictionary(architecture, **ARCHITECTURES[architecture])
    site = Site(dictionary, model, hook_point="blocks.1.hook_resid_post", max_activations=torch.full((24,), 4.0))
    x = model.read(ids, ["model.layers.1"])["model.layers.1"]
    fires = dictionary.encode(x) != 0
    assert bool(fires.any())
    assert not bool(fires.all())
    for name, (changes, change) in cases(site, ids).items():
        with by_hand(model, "model.layers.1", by_itself(site, change)):
            expected = model.logits(ids)
        with Intervention(changes):
            assert torch.equal(model.logits(ids), expected), name


@pytest.mark.parametrize("place", ["resid_pre", "attn_out", "mlp_out", "z"])
def test_other_places(place: str, tiny_model: Any, make_dictionary: Any, by_hand: Any, ids: Tensor) -> None:
    model = tiny_model("qwen3")
    path, side, name = {
        "resid_pre": ("model.layers.1", "input", "blocks.1.hook_resid_pre"),
        "attn_out": ("model.layers.1.self_attn", "output", "blocks.1.hook_attn_out"),
        "mlp_out": ("model.layers.1.mlp", "output", "blocks.1.hook_mlp_out"),
        "z": ("model.layers.1.self_attn.o_proj", "input", "blocks.1.attn.hook_z"),
    }[place]
    site = Site(make_dictionary("relu", model.width(name)), model, hook_point=name, max_activations=[4.0] * 24)
    for case, (changes, change) in cases(site, ids).items():
        with by_hand(model, path, by_itself(site, change), side):
            expected, decoded = model.logits(ids), decode(model.module, ids, 3)
        with Intervention(changes):
            assert torch.equal(model.logits(ids), expected), case
            assert all(map(torch.equal, decode(model.module, ids, 3), decoded)), case


def test_the_formulas_themselves(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    """Nothing of the dictionary's own methods: encoder, decoder and change written out, one token at a time."""
    model = tiny_model("gpt2")
    dictionary = make_dictionary()
    name = "blocks.1.hook_resid_post"
    site = Site(dictionary, model, hook_point=name, max_activations=lambda feature: feature + 1.0)
    x = model.read(ids, [name])[name]
    W_enc, W_dec, b_enc, b_dec = (
        each.detach() for each in (dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec)
    )
    for changes, wanted in [
        ([Add(site, FIRST, 0.5)], lambda f, v: v + 0.5 * 6.0 * W_dec[FIRST]),
        ([Clamp(site, FIRST, 0.5)], lambda f, v: v + (3.0 - f[FIRST]) * W_dec[FIRST]),
        ([Scale(site, FIRST, -1.0)], lambda f, v: v - 2 * f[FIRST] * W_dec[FIRST]),
        ([Ablate(site, range(24))], lambda f, v: v - sum(f[i] * W_dec[i] for i in range(24))),
        ([Splice(site, error_term=False)], lambda f, v: sum(f[i] * W_dec[i] for i in range(24)) + b_dec),
        ([ProjectOut(site, FIRST)], lambda f, v: v - (v @ W_dec[FIRST]) / (W_dec[FIRST] @ W_dec[FIRST]) * W_dec[FIRST]),
    ]:
        with Intervention(changes):
            found = model.read(ids, [name])[name]
        for row in range(2):
            for token in range(7):
                v = x[row, token]
                f = torch.clamp((v - b_dec) @ W_enc + b_enc, min=0)
                torch.testing.assert_close(found[row, token], wanted(f, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "neox", "llama", "qwen3", "gemma2", "opt", "phi", "mixtral"])
def test_a_padded_batch_equals_its_texts_one_by_one(
    kind: str, tiny_model: Any, make_dictionary: Any, blocks: Any
) -> None:
    model = tiny_model(kind, torch.float32)
    path = f"{blocks(kind)}.1"
    site = Site(make_dictionary(dtype=torch.float32), model, hook_point=path, max_activations=torch.full((24,), 4.0))
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(2, 40, (n,), generator=generator) for n in (3, 7, 5)]
    for on_the_left in (True, False):
        batch, mask = torch.ones(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
        for row, text in enumerate(texts):
            stretch = slice(7 - len(text), 7) if on_the_left else slice(0, len(text))
            batch[row, stretch], mask[row, stretch] = text, 1
        with Intervention([Add(site, FIRST, 0.5), Ablate(site, SECOND)]):
            together = model.logits(batch, attention_mask=mask)
            read = model.read(batch, [path], attention_mask=mask)[path]
            for row, text in enumerate(texts):
                alone = model.logits(text[None])[0]
                torch.testing.assert_close(together[row, mask[row].bool()], alone, rtol=0, atol=1e-4)
                alone = model.read(text[None], [path])[path][0]
                torch.testing.assert_close(read[row, mask[row].bool()], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "neox", "llama", "qwen3", "gemma2", "opt", "phi", "mixtral"])
def test_greedy_tokens_of_a_padded_batch(kind: str, tiny_model: Any, make_dictionary: Any, blocks: Any) -> None:
    model = tiny_model(kind, torch.float32)
    site = Site(make_dictionary(dtype=torch.float32), model, hook_point=f"{blocks(kind)}.1")
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(2, 40, (n,), generator=generator) for n in (2, 6)]
    batch = torch.stack([torch.cat([torch.ones(6 - len(text), dtype=torch.long), text]) for text in texts])
    mask = torch.tensor([[0] * 4 + [1] * 2, [1] * 6])

    def greedy(ids: Tensor, mask: Tensor) -> Tensor:
        cache, new = None, ids
        for _ in range(5):
            output = model.forward(new, attention_mask=mask, cache=cache, use_cache=True)
            cache, new = output.past_key_values, output.logits[:, -1:].argmax(-1)
            ids, mask = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
        return ids[:, -5:]

    with torch.no_grad(), Intervention(Add(site, FIRST, 2.0, unit="activation", positions="generated")):
        together = greedy(batch, mask)
        theirs = model.module.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False)[:, -5:]
        for row, text in enumerate(texts):
            alone = greedy(text[None], torch.ones_like(text[None]))
            assert torch.equal(together[row], alone[0])
    assert torch.equal(together, theirs)
