"""Faults are planted in a dictionary that was trained well, and found by their own sentence; the good one is left alone."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import saescope as ss
from saescope.activations.of_dictionary import of
from saescope.evaluation.loading_check import LoadingCheck, check_loading
from saescope.models import LanguageModel

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def shifted(tiny):
    """The tiny model with a large mean on the stream, as real models have one, of another size in every layer and token."""
    module = copy.deepcopy(tiny.module)
    with torch.no_grad():
        for number, block in enumerate(module.transformer.h):
            block.mlp.c_proj.bias += 1.0 + number  # a constant that LayerNorm does not see
            block.mlp.c_proj.weight += 0.15 * torch.randn(64, 1, generator=torch.Generator().manual_seed(number))
    return LanguageModel(module, tiny.tokenizer, "shifted")


def trained(model, windows, hook_point=HOOK, *, prepare=lambda x: x, **metadata) -> ss.Dictionary:
    """A ReLU dictionary of overcomplete features, fitted to activations of the text in a second."""
    sae = ss.ReLU(ss.ReLU.Config(d_in=16, d_sae=48), seed=0)
    sae.metadata = {"hook_name": hook_point, **metadata}
    x = prepare(torch.cat(list(of(sae, model, windows))))
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        sae.b_enc.fill_(-0.1 * float((x - x.mean(0)).std()))
    scale = float((x - x.mean(0)).square().sum(-1).mean())
    parameters, state = list(sae.parameters()), {}  # Adam in five lines: importing torch's takes seconds
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 401):
        batch = x[torch.randint(len(x), (256,), generator=generator)]
        f = sae.encode(batch)
        loss = ((sae.decode(f) - batch).square().sum(-1).mean() + 0.15 * scale**0.5 * f.sum(-1).mean()) / scale
        grads = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                m, v = state.get(p, (torch.zeros_like(p), torch.zeros_like(p)))
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                state[p] = (m, v)
                p -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return sae.eval()


@pytest.fixture(scope="module")
def good(shifted, windows):
    return trained(shifted, windows)


def kinds(check: LoadingCheck) -> list[str]:
    return [finding.kind for finding in check.findings]


def test_a_good_dictionary_raises_no_alarm(good, shifted, windows):
    check = check_loading(good, shifted, windows, num_tokens=2000)
    assert kinds(check) == []
    assert check.lines()[-1] == "nothing looks wrong"
    assert check.explained_variance > 0.8
    assert check.l0 < 16
    assert check.loss_recovered > 0.5
    assert 1000 < check.num_tokens <= 2000
    assert json.loads(json.dumps(check.as_dict()))["looks_right"] is True


def test_its_numbers_are_those_of_the_core_study(good, shifted, windows):
    part = windows.evenly(1500)
    core = ss.evaluate(good, shifted, part, HOOK, num_tokens=part.num_tokens)
    check = check_loading(good, shifted, part, num_tokens=part.num_tokens)
    assert check.num_tokens == core["num_tokens"].value
    assert check.l0 == pytest.approx(core["l0"].value, rel=1e-6)
    assert check.explained_variance == pytest.approx(core["explained_variance"].value, rel=1e-4)
    assert check.loss_recovered == pytest.approx(core["ce_loss_recovered"].value, rel=1e-3)


@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_a_scale_that_was_not_folded(good, shifted, windows, factor):
    """A dictionary for activations times a factor, as a trainer that normalises leaves it in a checkpoint."""
    faulty = copy.deepcopy(good)
    with torch.no_grad():
        for bias in (faulty.b_enc, faulty.b_dec):
            bias.mul_(factor)
    check = check_loading(faulty, shifted, windows, num_tokens=1500)
    assert kinds(check) == ["scale"]
    found = float(check.findings[0].sentence.split("activations times ")[1].split()[0])
    assert factor / 1.5 < found < factor * 1.5


def test_the_scale_of_trainers_is_named(good, shifted, windows):
    x = torch.cat(list(of(good, shifted, windows)))
    factor = 16**0.5 / float(x.norm(dim=-1).mean())
    faulty = copy.deepcopy(good)
    with torch.no_grad():
        for bias in (faulty.b_enc, faulty.b_dec):
            bias.mul_(factor)
    check = check_loading(faulty, shifted, windows, num_tokens=1500)
    assert kinds(check) == ["scale"]
    assert "to sqrt(d_in), as some trainers do" in check.findings[0].sentence


def test_a_decoder_that_lost_its_scale(good, shifted, windows):
    faulty = copy.deepcopy(good)
    with torch.no_grad():
        faulty.W_dec.mul_(3)
    check = check_loading(faulty, shifted, windows, num_tokens=1500)
    assert kinds(check) == ["output_scale"]
    assert "times 0.3" in check.findings[0].sentence


def test_another_layers_dictionary(good, shifted, windows):
    check = check_loading(good, shifted, windows, "blocks.2.hook_resid_post", num_tokens=1500)
    assert kinds(check) == ["layer"]
    assert "blocks.1.hook_resid_post" in check.findings[0].sentence


def test_a_centred_stream_that_the_metadata_do_not_speak_of(shifted, windows):
    centred = trained(shifted, windows, prepare=lambda x: x - x.mean(-1, keepdim=True))
    check = check_loading(centred, shifted, windows, num_tokens=1500)
    assert kinds(check) == ["centring"]
    assert "center_writing_weights" in check.findings[0].sentence
    centred.metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    told = check_loading(centred, shifted, windows, num_tokens=1500)
    assert kinds(told) == []
    assert told.explained_variance > 0.8
    assert told.loss_recovered > 0.5
    assert "less each token's mean" in told.places[0]


def test_metadata_that_speak_of_centring_in_vain(good, shifted, windows):
    told = copy.deepcopy(good)
    told.metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    check = check_loading(told, shifted, windows, num_tokens=1500)
    assert kinds(check) == ["centring"]
    assert "trained on the stream as it is" in check.findings[0].sentence


def test_a_mean_that_was_not_folded(good, shifted, windows):
    x = torch.cat(list(of(good, shifted, windows)))
    faulty = copy.deepcopy(good)
    with torch.no_grad():
        faulty.b_dec.sub_(x.mean(0))
    check = check_loading(faulty, shifted, windows, num_tokens=1500)
    assert kinds(check) == ["mean"]


def test_untrained_silent_and_dense_ones(shifted, windows, good):
    fresh = ss.ReLU(ss.ReLU.Config(d_in=16, d_sae=48))
    fresh.metadata = {"hook_name": HOOK}
    assert "untrained" in kinds(check_loading(fresh, shifted, windows, num_tokens=1000))
    silent = copy.deepcopy(good)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    assert kinds(check_loading(silent, shifted, windows, num_tokens=1000))[0] == "silent"
    dense = copy.deepcopy(good)
    with torch.no_grad():
        dense.b_enc.fill_(1e3)
    assert "dense" in kinds(check_loading(dense, shifted, windows, num_tokens=1000))


def test_what_was_published_is_compared(good, shifted, windows):
    check = check_loading(good, shifted, windows, num_tokens=1000)
    same = {"l0": check.l0 * 1.2, "variance_explained": check.explained_variance - 0.05}
    assert kinds(check_loading(good, shifted, windows, num_tokens=1000, claims=same)) == []
    other = check_loading(
        good, shifted, windows, num_tokens=1000, claims={"l0": check.l0 * 4, "variance_explained": 1.2}
    )
    assert kinds(other) == ["l0", "variance_explained"]
    assert "published: l0" in other.lines()[0]
    odd = {"l0": "many", "variance_explained": True}
    assert kinds(check_loading(good, shifted, windows, num_tokens=1000, claims=odd)) == []


def test_what_opening_tokens_would_do_is_said(good, shifted, windows):
    loud = LanguageModel(copy.deepcopy(shifted.module), shifted.tokenizer, "loud")
    with torch.no_grad():
        loud.module.transformer.wte.weight[0] += 100 * torch.randn(16, generator=torch.Generator().manual_seed(5))
    check = check_loading(good, loud, windows, num_tokens=1000)
    assert "times as long as others" in check.notes[0]
