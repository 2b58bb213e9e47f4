"""Dead features that start anew: what changes, what does not, and from which inputs they start."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from saescope.dictionaries import architectures
from saescope.training import TrainingConfig, train
from saescope.training.losses import loss_for
from saescope.training.optimizer import UnitNormAdam
from saescope.training.resampling import resample

POSSIBLE = ["relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered", "group_max"]


def _optimizer(dictionary, batch_of, tokens) -> UnitNormAdam:
    """An optimizer that has a memory of every feature."""
    dictionary.normalise_decoder()
    optimizer = UnitNormAdam(dictionary, lr=0.01, betas=(0.9, 0.999), eps=1e-8, max_grad_norm=1.0, unit_norm=True)
    for step in range(4):
        x = tokens(30, seed=40 + step)
        loss = loss_for(dictionary)(dictionary, batch_of(dictionary, x, dead=range(9), step=9, num_steps=10))
        loss.total.backward()
        optimizer.prepare()
        optimizer.step(1.0)
    return optimizer


def _dead(*features: int) -> torch.Tensor:
    dead = torch.zeros(9, dtype=torch.bool)
    dead[list(features)] = True
    return dead


@pytest.mark.parametrize("name", POSSIBLE)
def test_dead_rows_change_in_place_and_living_ones_are_untouched(make, tokens, batch_of, name):
    dictionary, x = make(name), tokens(20)
    optimizer = _optimizer(dictionary, batch_of, tokens)
    own = dict(dictionary.named_parameters())
    before = {key: tensor.detach().clone() for key, tensor in own.items()}
    memory = {key: tensor.clone() for key, tensor in optimizer.state().items()}
    pointers = {key: tensor.data_ptr() for key, tensor in own.items()}
    rows = resample(dictionary, optimizer, x, _dead(2, 5), torch.Generator().manual_seed(0))
    assert rows.tolist() == [2, 5]
    living = [0, 1, 3, 4, 6, 7, 8]
    for key, tensor in own.items():
        assert tensor.data_ptr() == pointers[key], key  # the optimizer's own tensors
        if key == "b_dec":
            assert tensor.equal(before[key])
        else:
            assert tensor[living].equal(before[key][living]), key
    centred = x - dictionary.b_dec.detach()
    directions = centred / centred.norm(dim=-1, keepdim=True)
    size = 0.2 * sum(float(before["encoder_rows"][i].norm()) for i in living) / len(living)
    drawn = set()
    for i in (2, 5):
        which = int((directions @ dictionary.W_dec[i].detach()).argmax())
        drawn.add(which)
        torch.testing.assert_close(dictionary.W_dec[i].detach(), directions[which], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            dictionary.encoder_rows[i].detach(), size * directions[which], rtol=1e-10, atol=1e-12
        )
        if dictionary.b_enc is not None:
            assert dictionary.b_enc[i] == 0
    assert len(drawn) == 2
    for key, tensor in optimizer.state().items():
        parameter, _, kind = key.rpartition(".")
        if kind == "step" or parameter == "b_dec":
            assert tensor.equal(memory[key]), key
        else:
            assert not tensor[[2, 5]].any(), key
            assert tensor[living].equal(memory[key][living]), key


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_a_resampled_feature_fires_on_the_input_that_it_started_from(make, tokens, batch_of, name):
    """Whatever held it down before: biases of the gate, a threshold. Otherwise it starts dead."""
    dictionary, x = make(name), 10 * tokens(20)
    optimizer = _optimizer(dictionary, batch_of, tokens)
    with torch.no_grad():
        for parameter in ("b_enc", "b_gate", "b_mag"):
            if getattr(dictionary, parameter, None) is not None:
                getattr(dictionary, parameter)[[2, 5]] = -1e4
        if name == "jumprelu":
            dictionary.threshold[[2, 5]] = 1e4
    assert not dictionary.encode(x)[:, [2, 5]].any()
    resample(dictionary, optimizer, x, _dead(2, 5), torch.Generator().manual_seed(0))
    assert (dictionary.encode(x)[:, [2, 5]] != 0).any(0).all()


def test_inputs_are_drawn_in_proportion_to_the_squared_loss(make, tokens, batch_of):
    template = make("relu")
    x = tokens(5)
    state = {key: value.clone() for key, value in template.state_dict().items()}
    optimizer = _optimizer(template, batch_of, tokens)
    state = {key: value.clone() for key, value in template.state_dict().items()}
    losses = [float(((template(t[None])[0] - t) ** 2).sum().detach()) for t in x]
    weights = [loss**2 / sum(value**2 for value in losses) for loss in losses]
    centred = x - template.b_dec.detach()
    directions = centred / centred.norm(dim=-1, keepdim=True)

    def draw(seed: int, *dead: int) -> tuple[int, ...]:
        template.load_state_dict(state)
        rows = resample(template, optimizer, x, _dead(*dead), torch.Generator().manual_seed(seed))
        return tuple(int((directions @ template.W_dec[i].detach()).argmax()) for i in rows)

    n = 1500
    one = Counter(draw(seed, 4)[0] for seed in range(n))
    for i, p in enumerate(weights):
        assert one[i] / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5 + 1e-9)
    # two dead features: without replacement, one after the other
    two = Counter(frozenset(draw(seed, 4, 6)) for seed in range(n))
    for a, b in itertools.combinations(range(5), 2):
        p = weights[a] * weights[b] / (1 - weights[a]) + weights[b] * weights[a] / (1 - weights[b])
        assert two[frozenset((a, b))] / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5 + 1e-9)


def test_nothing_is_done_without_dead_or_without_living_features(make, tokens, batch_of):
    dictionary, x = make("relu"), tokens(20)
    optimizer = _optimizer(dictionary, batch_of, tokens)
    before = {key: value.clone() for key, value in dictionary.state_dict().items()}
    for dead in (_dead(), _dead(*range(9))):
        assert resample(dictionary, optimizer, x, dead, torch.Generator()).tolist() == []
    assert all(before[key].equal(value) for key, value in dictionary.state_dict().items())


def test_more_dead_features_than_inputs_wait_for_the_next_time(make, tokens, batch_of):
    dictionary, x = make("relu"), tokens(3)
    optimizer = _optimizer(dictionary, batch_of, tokens)
    before = dictionary.W_dec.detach().clone()
    rows = resample(dictionary, optimizer, x, _dead(0, 2, 4, 6, 8), torch.Generator().manual_seed(0))
    assert rows.tolist() == [0, 2, 4]
    assert dictionary.W_dec[[6, 8]].equal(before[[6, 8]])


def _config(num_steps: int = 40, **settings: Any) -> TrainingConfig:
    defaults = {"batch_size_tokens": 32, "num_warmup_steps": 5, "dead_after_tokens": 4 * 32, "log_every_n_steps": 1}
    return TrainingConfig(**{"num_tokens": num_steps * 32, **defaults, **settings})


@pytest.mark.parametrize("name", sorted(set(architectures()) - set(POSSIBLE)))
def test_where_rows_can_not_be_set_it_is_refused_before_the_first_step(new, name):
    with pytest.raises(ValueError, match=f"features of a {name} dictionary can not be resampled"):
        train(new(name), iter(()), _config(resample_every_n_steps=10))


def test_in_a_run_features_are_resampled_when_due_and_not_in_its_last_part(new, toy_stream):
    dictionary = new("relu")
    silent = slice(3, 9)
    changed = []

    class Watching:
        """Holds six features down, and notes when their rows jump."""

        def __init__(self) -> None:
            self.last = None

        def __call__(self, done: int, total: int) -> None:
            rows = dictionary.W_dec[silent].detach().clone()
            if self.last is not None and (rows - self.last).norm(dim=-1).max() > 0.3:
                changed.append(done)
            with torch.no_grad():
                dictionary.b_enc[silent] = -1e3
            self.last = rows

    train(dictionary, toy_stream(), _config(resample_every_n_steps=10, resample_until_share=0.5), on_step=Watching())
    assert changed == [10, 20]


def test_a_resampled_feature_counts_as_alive_for_a_while(new, toy_stream):
    dictionary, shares = new("relu"), []

    def hold_down(done: int, total: int) -> None:
        with torch.no_grad():
            dictionary.b_enc[:12] = -1e3

    train(
        dictionary, toy_stream(), _config(30, resample_every_n_steps=12, resample_until_share=1.0),
        on_step=hold_down, on_metrics=lambda metrics: shares.append(metrics.dead_share),
    )  # fmt: skip
    dead = dict(enumerate(shares, 1))
    assert dead[11] >= 0.5
    assert dead[12] == dead[13] == dead[14] == dead[15] == 0
    assert dead[17] >= 0.5 - 1 / 24
