"""Archetypal dictionaries: rows are mixtures of points, and stay near them."""

from __future__ import annotations

import pytest
import torch

from saescope.dictionaries import Dictionary, MatchingPursuit, archetypal, architecture

HOSTS = ["relu", "gated", "jumprelu", "topk", "abs_topk", "batch_topk", "matryoshka", "ordered"]
NAMES = [f"{host}_archetypal" for host in HOSTS]


def _rows_by_loops(dictionary: Dictionary) -> torch.Tensor:
    mixture, points = dictionary.mixture.tolist(), dictionary.points.tolist()
    relaxation, scale = dictionary.relaxation.tolist(), float(dictionary.log_scale.detach().exp())
    return torch.tensor(
        [
            [
                scale * (sum(mixture[i][p] * points[p][j] for p in range(len(points))) + relaxation[i][j])
                for j in range(len(points[0]))
            ]
            for i in range(len(mixture))
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_points", [10, 17])
def test_rows_are_mixtures_and_the_host_does_the_rest(make, tokens, name, num_points):
    dictionary = make(name, num_points=num_points)
    rows = _rows_by_loops(dictionary)
    torch.testing.assert_close(dictionary.W_dec, rows, rtol=1e-12, atol=1e-12)

    host = make(name.removesuffix("_archetypal"))
    with torch.no_grad():
        for parameter, value in dictionary.named_parameters():
            if parameter in dict(host.named_parameters()):
                host.get_parameter(parameter).copy_(value)
        if "threshold" in dict(host.named_buffers()):
            host.threshold.copy_(dictionary.threshold)
        host.W_dec.copy_(rows)
    assert dictionary.encode(tokens()).equal(host.encode(tokens()))
    torch.testing.assert_close(dictionary(tokens()), host(tokens()), rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_part(make, tokens):
    dictionary = make("topk_archetypal", num_points=12)
    A = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (A * dictionary(tokens())).sum().backward()
    f, scale = dictionary.encode(tokens()).detach(), dictionary.log_scale.detach().exp()
    to_rows = f.T @ A
    torch.testing.assert_close(dictionary.mixture.grad, scale * to_rows @ dictionary.points.T)
    torch.testing.assert_close(dictionary.relaxation.grad, scale * to_rows)
    torch.testing.assert_close(dictionary.log_scale.grad, (to_rows * dictionary.W_dec.detach()).sum())
    assert not dictionary.points.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_constrain_brings_everything_back(make, name):
    dictionary = make(name, delta=0.75)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        dictionary.mixture.copy_(torch.randn(dictionary.mixture.shape, generator=generator))
        dictionary.mixture[3] = -1  # nothing of it is left
        dictionary.mixture[4] = 0
        dictionary.mixture[4, 2] = 0.25
        dictionary.relaxation[0] *= 0
        dictionary.relaxation[1] *= 0.01 / dictionary.relaxation[1].norm()
        dictionary.relaxation[2] *= 30 / dictionary.relaxation[2].norm()
    before = {q: getattr(dictionary, q).detach().clone() for q in ("mixture", "relaxation", "points", "log_scale")}
    dictionary.constrain()
    assert (dictionary.mixture >= 0).all()
    torch.testing.assert_close(dictionary.mixture.sum(-1), torch.ones(10, dtype=torch.float64), rtol=1e-12, atol=0)
    for i in (0, 1, 2, 5, 9):
        positive = [max(v, 0.0) for v in before["mixture"][i].tolist()]
        expected = torch.tensor([v / sum(positive) for v in positive], dtype=torch.float64)
        torch.testing.assert_close(dictionary.mixture[i].detach(), expected, rtol=1e-12, atol=1e-15)
    assert dictionary.mixture[3].tolist() == [0.1] * 10
    assert dictionary.mixture[4].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert (dictionary.relaxation.norm(dim=-1) <= 0.75 * (1 + 1e-12)).all()
    assert dictionary.relaxation[:2].equal(before["relaxation"][:2])  # short enough already
    torch.testing.assert_close(dictionary.relaxation[2].detach(), before["relaxation"][2] * 0.75 / 30)
    assert dictionary.points.equal(before["points"])
    assert dictionary.log_scale.equal(before["log_scale"])
    once = {q: value.detach().clone() for q, value in dictionary.named_parameters()}
    dictionary.constrain()
    for q, value in dictionary.named_parameters():
        torch.testing.assert_close(value.detach(), once[q], rtol=1e-12, atol=1e-15)


def test_a_jumprelu_hosts_thresholds_are_held_as_well(make):
    dictionary = make("jumprelu_archetypal")
    with torch.no_grad():
        dictionary.threshold[2] = -1
    dictionary.constrain()
    assert dictionary.threshold[2] == 0


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_a_new_dictionary_may_be_constrained(delta):
    """delta = 0 is the strict form: rows are mixtures and nothing else."""
    cls = architecture("topk_archetypal")
    dictionary = cls(cls.Config(d_in=6, d_sae=10, k=3, delta=delta))
    rows = dictionary.W_dec.detach().clone()
    dictionary.constrain()
    assert not dictionary.W_dec.isnan().any()
    assert dictionary.W_dec.equal(rows)
    with torch.no_grad():
        dictionary.relaxation.fill_(0.5)
    dictionary.constrain()
    norms = dictionary.relaxation.norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((10,), delta) if delta else torch.zeros(10))


@pytest.mark.parametrize("name", NAMES)
def test_a_new_dictionary_has_unit_rows_and_the_hosts_encoder(name):
    cls = architecture(name)
    settings = {"k": 3} if "k" in cls.Config.__dataclass_fields__ else {}
    dictionary = cls(cls.Config(d_in=6, d_sae=10, num_points=13, **settings))
    torch.testing.assert_close(dictionary.decoder_norms, torch.ones(10))
    assert dictionary.points.shape == (13, 6)
    torch.testing.assert_close(dictionary.encoder_rows, dictionary.W_dec)
    assert dictionary.mixture.sum() == 10
    assert dictionary.config.num_points == 13


def test_points_are_drawn_from_the_sample(make, tokens):
    dictionary = make("topk_archetypal", num_points=12)
    with torch.no_grad():
        dictionary.mixture.copy_(torch.eye(10, 12))
        dictionary.relaxation.zero_()
        dictionary.log_scale.zero_()
    sample = tokens(40, scale=7)
    dictionary.take_points(sample, torch.Generator().manual_seed(3))
    torch.testing.assert_close(dictionary.points.norm(dim=-1).mean(), torch.tensor(1.0, dtype=torch.float64))
    assert dictionary.points.norm(dim=-1).std() > 0.05  # scaled together, not one by one
    centred = (sample - dictionary.b_dec).detach()
    ratios = torch.cdist(torch.nn.functional.normalize(dictionary.points), torch.nn.functional.normalize(centred))
    places = ratios.argmin(-1)
    assert float(ratios.min(-1).values.max()) < 1e-6
    assert len(set(places.tolist())) == 12  # without replacement
    scales = dictionary.points.norm(dim=-1) / centred[places].norm(dim=-1)
    torch.testing.assert_close(scales, scales[:1].expand(12), rtol=1e-12, atol=0)
    torch.testing.assert_close(dictionary.encoder_rows, torch.nn.functional.normalize(dictionary.W_dec))

    again, other = make("topk_archetypal", num_points=12), make("topk_archetypal", num_points=12)
    again.take_points(sample, torch.Generator().manual_seed(3))
    other.take_points(sample, torch.Generator().manual_seed(4))
    assert again.points.equal(dictionary.points)
    assert not other.points.equal(dictionary.points)


def test_all_of_the_sample_may_be_taken_but_no_more(make, tokens):
    dictionary = make("topk_archetypal", num_points=12)
    dictionary.take_points(tokens(12), torch.Generator().manual_seed(0))
    before = dictionary.points.clone()
    with pytest.raises(ValueError, match="12 points can not be drawn from 11 activations; measure on more"):
        dictionary.take_points(tokens(11), torch.Generator().manual_seed(0))
    assert dictionary.points.equal(before)


def test_fewer_points_than_features_are_refused():
    cls = architecture("topk_archetypal")
    assert cls.Config(d_in=3, d_sae=8, k=2).num_points == 8
    for num_points in (7, 0, 9.5, "9"):
        with pytest.raises(ValueError, match=r"num_points must be at least d_sae = 8.*got"):
            cls.Config(d_in=3, d_sae=8, k=2, num_points=num_points)
    with pytest.raises(ValueError, match=r"delta must not be negative, got -1"):
        cls.Config(d_in=3, d_sae=8, k=2, delta=-1)
    with pytest.raises(ValueError, match=r"k must be .*d_sae = 8, got 9"):  # the host's own rules hold as well
        cls.Config(d_in=3, d_sae=8, k=9)


def test_rows_are_not_brought_to_norm_one(make, tokens):
    dictionary = make("topk_archetypal")
    with pytest.raises(ValueError, match="leave unit_norm_decoder out"):
        dictionary.normalise_decoder()
    with pytest.raises(ValueError, match="matching_pursuit needs rows of norm 1"):
        archetypal(MatchingPursuit)


def test_made_once():
    assert archetypal(architecture("topk")) is architecture("topk_archetypal")


def test_a_strangers_architecture_takes_the_form(make, tokens, stranger, own_registry):
    dictionary = make(archetypal(stranger), shift=0.5)
    assert dictionary.architecture == "shifted_archetypal"
    x = tokens()
    f = ((x - dictionary.b_dec) @ dictionary.encoder_rows.T + dictionary.b_enc - 0.5).clamp(min=0)
    torch.testing.assert_close(dictionary.encode(x), f)
    torch.testing.assert_close(dictionary(x), f @ _rows_by_loops(dictionary) + dictionary.b_dec)
