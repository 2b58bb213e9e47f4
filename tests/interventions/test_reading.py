"""Features of a batch, read in one pass: against encoding and decoding by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.interventions import Ablate, Add, Intervention, Site, read_features

IDS = torch.tensor([[1, 1, 0, 7, 12], [0, 5, 22, 1, 8]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
MLP = ["blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"]
POST = [f"blocks.{i}.hook_resid_post" for i in range(3)]


@pytest.fixture
def sites(tiny_model: Any, make_dictionary: Any) -> list[Site]:
    model = tiny_model("llama")
    head = make_dictionary("jumprelu", 12, 18)
    head.metadata = {"hook_name": "blocks.0.attn.hook_z", "hook_head_index": 1}
    return [
        Site(make_dictionary("topk"), model, hook_point=POST[0]),
        Site(make_dictionary("matching_pursuit"), model, hook_point=POST[1]),
        Site(make_dictionary("skip_transcoder", d_out=16), model, hook_point=MLP[0], hook_point_out=MLP[1]),
        Site(make_dictionary("relu_crosscoder", 32, 20, source_widths=(16, 16)), model, hook_point=POST[:2]),
        Site(head, model),
    ]


@pytest.mark.parametrize("special", [False, True])
def test_codes_reconstructions_and_errors(special: bool, sites: list[Site]) -> None:
    model = sites[0].model
    taken = [(r, t) for r in range(2) for t in range(5) if MASK[r, t] and (special or IDS[r, t] > 1)]
    readings = read_features(sites, IDS, attention_mask=MASK, special_tokens=special)
    assert [each.site for each in readings] == sites
    for site, reading in zip(sites, readings, strict=True):
        assert [tuple(at) for at in reading.tokens.nonzero().tolist()] == taken
        found = model.read(IDS, [each.name for each in (*site.reads, *site.writes)], attention_mask=MASK)
        for row, (r, t) in enumerate(taken):
            x = torch.cat([found[each.name][r, t] for each in site.reads])
            y = torch.cat([found[each.name][r, t] for each in site.writes])
            if site is sites[4]:
                x, y = x[12:], y[12:]
            f = site.dictionary.encode(x[None])[0].detach()
            rebuilt = site.dictionary.decode(f[None], x[None])[0].detach()
            torch.testing.assert_close(reading.codes.to_dense()[row], f, rtol=0, atol=1e-12)
            torch.testing.assert_close(reading.reconstruction[row], rebuilt, rtol=0, atol=1e-12)
            torch.testing.assert_close(reading.error[row], y - rebuilt, rtol=0, atol=1e-12)
        assert not reading.error.requires_grad


def test_one_pass_that_ends_at_the_last_place(sites: list[Site]) -> None:
    model = sites[0].model
    ran: list[str] = []
    names = ["model.layers.0", "model.layers.1", "model.layers.1.mlp", "model.layers.2", "lm_head"]
    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name in names
    ]
    read_features(sites, IDS, attention_mask=MASK)
    assert ran == ["model.layers.0", "model.layers.1", "model.layers.1.mlp"]
    ran.clear()
    read_features(sites[:1], IDS)
    assert ran == ["model.layers.0"]
    for handle in handles:
        handle.remove()


def test_inside_an_intervention(sites: list[Site]) -> None:
    """What is read is what the changes have made, at their own place and after it; codes by the crosscoder as well."""
    model = sites[0].model
    d = sites[0].dictionary
    with torch.no_grad():
        x = model.read(IDS, [POST[0]], attention_mask=MASK)[POST[0]]
        moved = MASK.bool() & (IDS > 1)
        steered = torch.where(moved[..., None], x + 3.0 * d.W_dec[2], x)
        with model.edit({POST[0]: lambda value: steered}):
            later = model.read(IDS, [POST[1]], attention_mask=MASK)[POST[1]]
    with Intervention(Add(sites[0], 2, 3.0, "activation")):
        first, second, *_ = read_features(sites, IDS, attention_mask=MASK)
    torch.testing.assert_close(first.codes.to_dense(), d.encode(steered[moved]).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        second.codes.to_dense(), sites[1].dictionary.encode(later[moved]).detach(), rtol=0, atol=1e-12
    )
    plain = read_features(sites[:1], IDS, attention_mask=MASK)[0].codes.to_dense()
    feature = int(plain.sum(0).argmax())
    with Intervention([Ablate(sites[0], feature), Ablate(sites[3], [1, 2])]):
        (inside,) = read_features(sites[:1], IDS, attention_mask=MASK)
    crossed = sites[3].dictionary
    both = model.read(IDS, POST[:2], attention_mask=MASK)
    f = crossed.encode(torch.cat([both[name] for name in POST[:2]], dim=-1)[moved]).detach()
    rows = crossed.W_dec.detach()[[1, 2], :16]
    wanted = x[moved] - plain[:, [feature]] * d.W_dec.detach()[feature] - f[:, [1, 2]] @ rows
    torch.testing.assert_close(inside.reconstruction + inside.error, wanted, rtol=0, atol=1e-12)


def test_padding_and_a_text_of_special_tokens(sites: list[Site]) -> None:
    alone = read_features(sites, IDS[:1, 2:])
    batch = read_features(sites, IDS, attention_mask=MASK)
    for mine, other in zip(alone, batch, strict=True):
        n = mine.codes.to_dense().shape[0]
        torch.testing.assert_close(mine.codes.to_dense(), other.codes.to_dense()[:n], rtol=0, atol=1e-4)
    nothing = read_features(sites, torch.tensor([[0, 1]]))
    for site, reading in zip(sites, nothing, strict=True):
        assert reading.codes.to_dense().shape == (0, site.dictionary.d_sae)
        assert reading.error.shape == (0, site.dictionary.d_out)


def test_other_dtypes(tiny_model: Any, make_dictionary: Any) -> None:
    model = tiny_model("gpt2", torch.bfloat16)
    site = Site(make_dictionary(dtype=torch.float32), model, hook_point=POST[1])
    (reading,) = read_features([site], IDS, special_tokens=True)
    x = model.read(IDS, [POST[1]])[POST[1]].flatten(0, 1).float()
    torch.testing.assert_close(reading.reconstruction + reading.error, x, rtol=1e-6, atol=1e-6)
    assert reading.error.dtype == torch.float32


def test_what_is_refused(sites: list[Site], tiny_model: Any, make_dictionary: Any) -> None:
    other = Site(make_dictionary(), tiny_model("gpt2"), hook_point=POST[0])
    for wrong in ([], [sites[0], other]):
        with pytest.raises(ValueError, match="one model at a time"):
            read_features(wrong, IDS)
    with pytest.raises(ValueError, match="token id 40"):
        read_features(sites, torch.tensor([[3, 40]]))
    with pytest.raises(ValueError, match="attention_mask has the shape"):
        read_features(sites, IDS, attention_mask=MASK[:, :4])


def test_a_text_is_left_as_it_was(sites: list[Site], ids: Tensor) -> None:
    model = sites[0].model
    before = model.logits(ids)
    read_features(sites, ids)
    assert torch.equal(model.logits(ids), before)
