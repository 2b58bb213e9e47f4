"""Crosscoders write to several layers what they read in a pass ahead: with a cache, with gradients, within each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries.normalization import LayerNorm
from saescope.interventions import Ablate, Add, Clamp, Intervention, ProjectOut, Site, Splice, Where

LAYERS = [f"blocks.{i}.hook_resid_post" for i in (0, 1, 2)]


@pytest.fixture
def crossed(tiny_model: Any, make_dictionary: Any) -> Site:
    dictionary = make_dictionary("topk_crosscoder", 48, 40, source_widths=(16, 16, 16), k=12)
    return Site(dictionary, tiny_model("llama"), hook_point=LAYERS)


def test_a_crosscoder_writes_to_all_its_layers(crossed: Site, by_hand: Any, ids: Tensor) -> None:
    model, d = crossed.model, crossed.dictionary
    found = model.read(ids, LAYERS)
    f = d.encode(torch.cat([found[name] for name in LAYERS], dim=-1)).detach()
    i, j = f.sum((0, 1)).topk(2).indices.tolist()
    rows = d.W_dec.detach().split(16, dim=-1)
    rebuilt = d.decode(f).detach().split(16, dim=-1)
    unit = [each[i] / each[i].norm() for each in rows]
    for change, function in [
        (Add(crossed, i, 1.5, "activation"), lambda v, s: v + 1.5 * rows[s][i]),
        (Ablate(crossed, i), lambda v, s: v - f[..., [i]] * rows[s][i]),
        (Ablate(crossed, [i, j]), lambda v, s: v - (f[..., [i, j]] @ d.W_dec.detach()[[i, j]]).split(16, dim=-1)[s]),
        (Clamp(crossed, i, 0.5, "activation"), lambda v, s: v + (0.5 - f[..., [i]]) * rows[s][i]),
        (ProjectOut(crossed, i), lambda v, s: v - (v * unit[s]).sum(-1, keepdim=True) * unit[s]),
        (Splice(crossed, error_term=False), lambda v, s: rebuilt[s]),
    ]:
        with (
            by_hand(model, "model.layers.0", lambda v, function=function: function(v, 0)),
            by_hand(model, "model.layers.1", lambda v, function=function: function(v, 1)),
            by_hand(model, "model.layers.2", lambda v, function=function: function(v, 2)),
        ):
            expected = model.logits(ids)
        with Intervention(change):
            assert torch.equal(model.logits(ids), expected), change
        assert not torch.allclose(expected, model.logits(ids), atol=1e-3), change
    with Intervention(Splice(crossed)):
        assert torch.equal(model.logits(ids), model.logits(ids))


def test_a_crosscoder_with_a_cache(crossed: Site, ids: Tensor) -> None:
    """The pass ahead leaves the caller's cache alone; token by token is as all at once."""
    model = crossed.model
    all_ids = torch.cat([ids, ids.flip(1)[:, :3]], dim=1)
    codes: list[Tensor] = []

    def kept(f: Tensor) -> Tensor:
        codes.append(f)
        return f * 1.5

    change = Splice(crossed, codes=kept)
    with Intervention(change):
        whole = model.logits(all_ids)
        cache, found, begin = None, [], 0
        for end in (7, 8, 9, 10):
            output = model.forward(all_ids[:, begin:end], cache=cache, use_cache=True)
            cache, begin = output.past_key_values, end
            assert cache.get_seq_length() == end
            found.append(output.logits)
        torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=1e-5)  # Llama's norms are in float32
        assert len(codes) == 5  # once in each pass, whatever the number of layers
        written = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        again = model.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, use_cache=False
        )
    assert torch.equal(written, again)


def test_a_crosscoder_with_a_cache_through_which_gradients_flow(crossed: Site, ids: Tensor) -> None:
    model = crossed.model
    shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    with model.edit({"blocks.0.hook_resid_pre": lambda value: value + shift}), Intervention(Ablate(crossed, [1, 2, 3])):
        first = model.forward(ids, use_cache=True)
        second = model.forward(ids[:, :1], cache=first.past_key_values)
        whole = model.logits(torch.cat([ids, ids[:, :1]], dim=1))
    gradients = [torch.autograd.grad(each[0, -1, 7], shift)[0] for each in (second.logits, whole)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)


def test_reading_inside_a_crosscoders_intervention(crossed: Site, ids: Tensor) -> None:
    """A reader sees what is changed, not the pass ahead."""
    model = crossed.model
    plain = model.read(ids, LAYERS)
    rows = crossed.dictionary.W_dec.detach().split(16, dim=-1)
    f = crossed.dictionary.encode(torch.cat([plain[name] for name in LAYERS], dim=-1)).detach()
    feature = int(f.sum((0, 1)).argmax())
    with Intervention(Ablate(crossed, feature)):
        found = model.read(ids, LAYERS[:1])
    torch.testing.assert_close(
        found[LAYERS[0]], plain[LAYERS[0]] - f[..., [feature]] * rows[0][feature], rtol=0, atol=1e-12
    )


def test_two_crosscoders_one_inside_the_other(crossed: Site, make_dictionary: Any, by_hand: Any, ids: Tensor) -> None:
    """The features of each are those of the pass with the other's changes."""
    model, d = crossed.model, crossed.dictionary
    other = Site(make_dictionary("topk_crosscoder", 32, 20, source_widths=(16, 16), k=6), model, hook_point=LAYERS[1:])
    plain = model.read(ids, LAYERS)
    e = other.dictionary
    g_plain = e.encode(torch.cat([plain[name] for name in LAYERS[1:]], dim=-1)).detach()
    j = int(g_plain.sum((0, 1)).argmax())
    d_rows, e_rows = d.W_dec.detach().split(16, dim=-1), e.W_dec.detach().split(16, dim=-1)
    f_plain = d.encode(torch.cat([plain[name] for name in LAYERS], dim=-1)).detach()
    i = int(f_plain.sum((0, 1)).argmax())

    def read_with(acts: list[Any]) -> dict[str, Tensor]:
        with model.tapped([(name, act) for name, act in acts]):
            return model.read(ids, LAYERS)

    def by_d(f: Tensor) -> list[Any]:
        return [(LAYERS[s], lambda v, s=s: v - f[..., [i]] * d_rows[s][i]) for s in (0, 1, 2)]

    def by_e(g: Tensor) -> list[Any]:
        return [(LAYERS[1 + s], lambda v, s=s: v - g[..., [j]] * e_rows[s][j]) for s in (0, 1)]

    seen = read_with(by_e(g_plain))  # what d reads: the other's changes, of features read without d's
    f = d.encode(torch.cat([seen[name] for name in LAYERS], dim=-1)).detach()
    seen = read_with(by_d(f_plain))
    g = e.encode(torch.cat([seen[name] for name in LAYERS[1:]], dim=-1)).detach()
    expected = read_with([*by_d(f), *by_e(g)])
    with Intervention(Ablate(crossed, i)), Intervention(Ablate(other, j)):
        found = model.read(ids, LAYERS)
    for name in LAYERS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


def test_a_crosscoder_over_normalised_layers(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    model = tiny_model("llama")
    d = make_dictionary("relu_crosscoder", 32, 24, source_widths=(16, 16))
    d.input_normalization = LayerNorm()
    names = LAYERS[:2]
    site = Site(d, model, hook_point=names)
    plain = model.read(ids, names)
    x = torch.cat([plain[name] for name in names], dim=-1)
    f = d.encode(x).detach()
    more = f.clone()
    more[..., 3] += 2.0
    moved = (d.decode(more, x) - d.decode(f, x)).detach().split(16, dim=-1)
    with Intervention(Add(site, 3, 2.0, "activation")):  # the spread is that of all layers, read ahead
        found = model.read(ids, names[:1])
    torch.testing.assert_close(found[names[0]], plain[names[0]] + moved[0], rtol=0, atol=1e-12)


def test_conditions_on_a_crosscoder(crossed: Site, make_dictionary: Any, ids: Tensor) -> None:
    """They are known from the pass ahead, also at a place before its last layer."""
    model = crossed.model
    target = Site(make_dictionary(), model, hook_point=LAYERS[0])
    found = model.read(ids, LAYERS)
    f = crossed.dictionary.encode(torch.cat([found[name] for name in LAYERS], dim=-1)).detach()
    feature = int(((f > 0).double().mean((0, 1)) - 0.5).abs().argmin())
    on = f[..., feature] > 0
    assert 0 < int(on.sum()) < on.numel()
    with Intervention(Add(target, 3, 2.0, "activation", positions=Where(crossed, feature))):
        steered = model.read(ids, LAYERS[:1])[LAYERS[0]]
    row = target.dictionary.W_dec[3].detach()
    assert torch.equal(steered, torch.where(on[..., None], found[LAYERS[0]] + 2.0 * row, found[LAYERS[0]]))


def test_passes_ahead_with_a_cache_change_nothing_of_the_callers(crossed: Site, ids: Tensor) -> None:
    model = crossed.model
    with Intervention(Splice(crossed, error_term=True)):  # reads ahead, and changes nothing
        cached = model.forward(ids, use_cache=True).past_key_values
    plain = model.forward(ids, use_cache=True).past_key_values
    for mine, other in zip(cached.layers, plain.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def test_a_context_entered_in_the_middle_reads_ahead_from_the_callers_cache(crossed: Site, ids: Tensor) -> None:
    model = crossed.model
    rows = crossed.dictionary.W_dec.detach().split(16, dim=-1)
    cache = model.forward(ids[:, :4], use_cache=True).past_key_values
    found = model.read(ids[:, :5], LAYERS)
    f = crossed.dictionary.encode(torch.cat([found[name] for name in LAYERS], dim=-1)).detach()[:, 4:]
    feature = int(f.sum((0, 1)).argmax())
    seen: list[Tensor] = []

    def see(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    with Intervention(Ablate(crossed, feature)), model.tapped([(LAYERS[0], see)], only_reads=True):
        model.forward(ids[:, 4:5], cache=cache)
    assert len(seen) == 1
    expected = found[LAYERS[0]][:, 4:] - f[..., [feature]] * rows[0][feature]
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)  # Llama's norms are in float32


def test_gradients_through_a_cache_from_before_the_context(tiny_model: Any, make_dictionary: Any, ids: Tensor) -> None:
    model = tiny_model("gpt2")  # whose norms are in float64 throughout
    dictionary = make_dictionary("relu_crosscoder", 32, 24, source_widths=(16, 16))
    site = Site(dictionary, model, hook_point=LAYERS[:2])
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def logit(by: Tensor) -> Tensor:
        with model.edit({"blocks.0.hook_resid_pre": lambda value: value + by * direction}):
            cache = model.forward(ids, use_cache=True).past_key_values
            with Intervention(Ablate(site, [1, 2, 3])):
                found: Tensor = model.forward(ids[:, :1], cache=cache).logits[0, -1, 7]
        return found

    by = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(logit(by), by)
    ends = [float(logit(torch.tensor(step, dtype=torch.float64))) for step in (1e-6, -1e-6)]
    torch.testing.assert_close(float(slope), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-7)
