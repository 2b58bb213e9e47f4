"""KL and perplexity of steered texts, against passes over whole texts with hand-written hooks, in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import saescope as ss
from saescope.interventions import Add, Clamp, Site, Where
from saescope.interventions import generation_scores as scores_module
from saescope.interventions.generation_scores import log_probabilities, perplexity, score
from saescope.interventions.side_by_side import side_by_side
from saescope.models import LanguageModel

PROMPTS = ["def alpha(x", "return", "    return x + 7\ndef beta(x, mu)"]
POSITIONS = ["all", "prompt", "generated", "once 7 has fired"]


@pytest.fixture(scope="module")
def double(tiny):
    return LanguageModel(copy.deepcopy(tiny.module).double(), tiny.tokenizer, "tiny64")


@pytest.fixture(scope="module")
def site(double):
    torch.manual_seed(1)
    dictionary = ss.ReLU(ss.ReLU.Config(d_in=16, d_sae=24)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.normal_(std=0.5)
    return Site(dictionary, double, hook_point="blocks.1.hook_resid_post", max_activations={3: 0.5})


def changes_at(site, positions):
    rule = ["generated", Where(site, 7, above=0.5, so_far=True)] if positions == POSITIONS[3] else positions
    return [Add(site, 3, 1.0, positions=rule), Clamp(site, 5, 0.75, "activation", positions=rule)]


@torch.no_grad()
def brute_force(model, site, positions, prompt, new):
    """For each new token: its log-probabilities (plain, steered) and both KLs, from one pass over all before it."""
    dictionary, rows = site.dictionary, []
    for place in range(len(new)):
        ids = torch.tensor([prompt + new[:place]])

        def hook(module, args, output, ids=ids):
            x = output[0] if isinstance(output, tuple) else output
            f = dictionary.encode(x)[0]  # [T, d_sae]
            changed = x.clone()
            fired = False
            for t in range(x.shape[1]):
                fired = fired or (float(f[t, 7]) > 0.5 and int(ids[0, t]) != 0)
                holds = {"all": True, "prompt": t < len(prompt), "generated": t >= len(prompt)}
                holds[POSITIONS[3]] = t >= len(prompt) and fired
                if holds[positions] and ids[0, t] != 0:  # 0 is the special token
                    changed[0, t] += 0.5 * dictionary.direction(3) + (0.75 - f[t, 5]) * dictionary.direction(5)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        q = model.module(ids, use_cache=False).logits[0, -1].softmax(-1).tolist()
        handle = model.module.transformer.h[1].register_forward_hook(hook)
        p = model.module(ids, use_cache=False).logits[0, -1].softmax(-1).tolist()
        handle.remove()
        kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        reverse = math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        rows.append((math.log(q[new[place]]), math.log(p[new[place]]), kl, reverse))
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("positions", POSITIONS)
def test_numbers_side_by_side_are_those_of_passes_over_whole_texts(double, site, positions):
    found = side_by_side(double, PROMPTS, changes_at(site, positions), max_new_tokens=6, seed=5, stop_at_end=False)
    expected = [
        brute_force(double, site, positions, prompt, new)
        for prompt, new in zip(found.steered.prompt_ids, found.steered.new_ids, strict=True)
    ]
    of_plain = [
        brute_force(double, site, positions, prompt, new)[0]
        for prompt, new in zip(found.plain.prompt_ids, found.plain.new_ids, strict=True)
    ]
    for row, (log_q, log_p, kl, reverse) in enumerate(expected):
        assert found.scores.log_probabilities_plain[row] == pytest.approx(log_q, abs=1e-9)
        assert found.scores.log_probabilities_steered[row] == pytest.approx(log_p, abs=1e-9)
        assert found.scores.kl[row] == pytest.approx(kl, abs=1e-9)
        assert found.scores.kl_reverse[row] == pytest.approx(reverse, abs=1e-9)
        assert found.plain_log_probabilities[row] == pytest.approx(of_plain[row], abs=1e-9)
        assert found.steered.log_probabilities[row] == pytest.approx(log_p, abs=1e-9)
        assert found.kl_of_prompts[row] == pytest.approx(sum(kl) / 6)
        assert found.perplexities_plain[row] == pytest.approx(math.exp(-sum(of_plain[row]) / 6))
        assert found.perplexities_steered[row] == pytest.approx(math.exp(-sum(log_q) / 6))
    assert found.kl_per_token == pytest.approx(sum(sum(row[2]) for row in expected) / 18)
    assert found.kl_reverse_per_token == pytest.approx(sum(sum(row[3]) for row in expected) / 18)
    assert found.perplexity_plain == pytest.approx(math.exp(-sum(map(sum, of_plain)) / 18))
    assert found.perplexity_steered == pytest.approx(math.exp(-sum(sum(row[0]) for row in expected) / 18))
    assert found.kl_per_token > 0.01
    if positions == "generated":  # nothing has been changed when the first token is drawn
        assert all(row[0] < 1e-12 for row in found.scores.kl)


def test_texts_of_different_lengths_count_by_their_tokens(double, site):
    changes = changes_at(site, "all")
    prompts, new = [[5, 6, 7, 8], [9], [30, 31]], [[11, 12, 13, 14, 15], [16], [17, 18, 19]]
    found = score(double, prompts, new, changes)
    for row in range(3):
        log_q, log_p, kl, reverse = brute_force(double, site, "all", prompts[row], new[row])
        assert found.log_probabilities_plain[row] == pytest.approx(log_q, abs=1e-9)
        assert found.log_probabilities_steered[row] == pytest.approx(log_p, abs=1e-9)
        assert found.kl[row] == pytest.approx(kl, abs=1e-9)
        assert found.kl_reverse[row] == pytest.approx(reverse, abs=1e-9)
    assert log_probabilities(double, prompts, new, changes)[0] == pytest.approx(found.log_probabilities_steered[0])


def test_a_long_text_is_scored_in_parts(double, site, monkeypatch):
    changes = changes_at(site, POSITIONS[3])
    prompts, new = [[5, 6, 7, 8], [9]], [list(range(11, 21)), list(range(40, 47))]
    whole = score(double, prompts, new, changes)
    monkeypatch.setattr(scores_module, "_MAX_LOGITS_AT_ONCE", 3 * 2 * 320)  # three columns
    parts = score(double, prompts, new, changes)
    for name in vars(whole):
        for row in range(2):
            assert getattr(parts, name)[row] == pytest.approx(getattr(whole, name)[row], abs=1e-9), name


def test_nothing_changed_is_no_divergence(double, site):
    found = side_by_side(double, PROMPTS, Add(site, 3, 0.0), max_new_tokens=4, stop_at_end=False)
    assert found.plain.new_ids == found.steered.new_ids
    assert found.kl_per_token == pytest.approx(0, abs=1e-12)
    assert found.perplexity_steered == pytest.approx(found.perplexity_plain)
    assert all(kl >= 0 for row in found.scores.kl for kl in row)


def test_a_text_without_new_tokens_can_not_be_scored(double, site):
    with pytest.raises(ValueError, match="needs a continuation of at least one token"):
        score(double, [[5], [6]], [[7], []], changes_at(site, "all"))
    with pytest.raises(ValueError, match="needs a continuation of at least one token"):
        score(double, [[5], [6]], [[7]], changes_at(site, "all"))


def test_a_perplexity_beyond_all_numbers_is_infinite():
    assert perplexity([[-1000.0, -900.0]]) == math.inf
    assert perplexity([[-1.0], [-3.0, -2.0]]) == pytest.approx(math.exp(2))
