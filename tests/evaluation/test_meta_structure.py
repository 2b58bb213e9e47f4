"""Meta-structure: rows made of few others are explained, rows of their own are not."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from saescope.dictionaries import BatchTopK, Dictionary, ReLU
from saescope.dictionaries.base import DictionaryConfig
from saescope.evaluation import meta_structure as module
from saescope.evaluation.meta_structure import MetaStructureConfig, meta_structure

D, ROWS = 16, 64
CONFIG = MetaStructureConfig(k=2, num_steps=150, batch_size_rows=64, lr=1e-2, random_rows=False)


def dictionary_of(rows: torch.Tensor) -> Dictionary:
    dictionary = ReLU(DictionaryConfig(d_in=rows.shape[1], d_sae=len(rows)))
    with torch.no_grad():
        dictionary.W_dec.copy_(rows)
    return dictionary


def composite() -> torch.Tensor:
    """Every row is a sum of two of eight directions."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.rand(ROWS, 8, generator=generator).topk(2).indices
    return torch.zeros(ROWS, 8).scatter(-1, pairs, 1) @ torch.eye(8, D)


def random_rows(seed: int = 1) -> torch.Tensor:
    return F.normalize(torch.randn(ROWS, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_composite_rows_are_explained_and_rows_of_their_own_are_not():
    config = dataclasses.replace(CONFIG, random_rows=True)
    made, own = (meta_structure(dictionary_of(rows), config=config) for rows in (composite(), random_rows()))
    name = "decoder_fraction_variance_explained"
    assert made[name].value > 0.8
    assert own[name].value < made[name].value - 0.1
    assert made["fraction_variance_explained_above_random"].value > 0.15
    assert abs(own["fraction_variance_explained_above_random"].value) < 0.1
    for result in (made, own):
        assert result[name].low < result[name].value < result[name].high
        difference = result[name].value - result["random_rows_fraction_variance_explained"].value
        assert result["fraction_variance_explained_above_random"].value == pytest.approx(difference, abs=1e-12)
        assert result["meta_l0"].value == pytest.approx(2, abs=0.1)
        json.dumps(result.as_dict(), allow_nan=False)


def test_the_numbers_equal_plain_loops(monkeypatch):
    kept = []
    real = module.train

    def train_and_keep(dictionary, *args, **more):
        kept.append(dictionary)
        return real(dictionary, *args, **more)

    monkeypatch.setattr(module, "train", train_and_keep)
    rows = random_rows() * torch.linspace(0.5, 3, ROWS)[:, None]  # norms are folded
    result = meta_structure(dictionary_of(rows), config=CONFIG)
    (small,) = kept
    assert isinstance(small, BatchTopK)
    assert small.d_sae == 16
    unit = (rows.double() / rows.double().norm(dim=-1, keepdim=True)).float()
    mean = unit.double().numpy().mean(0)
    error = spread = firings = 0.0
    for row in unit:
        f = small.encode(row[None])
        back = small.decode(f).detach().double().numpy()[0]
        error += sum((float(a) - b) ** 2 for a, b in zip(row, back, strict=True))
        spread += sum((float(a) - b) ** 2 for a, b in zip(row, mean, strict=True))
        firings += int((f != 0).sum())
    assert result["decoder_fraction_variance_explained"].value == pytest.approx(1 - error / spread, rel=1e-5)
    assert result["final_reconstruction_mse"].value == pytest.approx(error / (ROWS * D), rel=1e-5)
    assert result["meta_l0"].value == pytest.approx(firings / ROWS)


def test_the_lengths_of_rows_do_not_matter_and_the_seed_does():
    rows = composite() / 2
    factors = 2.0 ** (torch.arange(ROWS) % 5)
    first, scaled, other = (
        meta_structure(dictionary_of(r), config=dataclasses.replace(CONFIG, num_steps=20, seed=seed))
        for r, seed in ((rows, 0), (rows * factors[:, None], 0), (rows, 1))
    )
    assert first.numbers == scaled.numbers
    assert first.numbers != other.numbers


def test_published_width_and_sparsity():
    assert MetaStructureConfig().k == 4
    assert MetaStructureConfig().width_share == 0.25


def test_rows_without_a_difference_have_no_number():
    for rows in (torch.ones(ROWS, D) * torch.rand(ROWS, 1), torch.eye(ROWS, D)[:1]):
        result = meta_structure(dictionary_of(rows), config=CONFIG)
        assert {number.value for number in result.numbers} == {None}
        assert "variance" in result.numbers[0].reason


def test_rows_of_zeros_are_left_out_with_a_note():
    rows = composite()
    padded = torch.cat([rows, torch.zeros(5, D)])
    config = dataclasses.replace(CONFIG, num_steps=20)
    result = meta_structure(dictionary_of(padded), config=config)
    assert result.numbers == meta_structure(dictionary_of(rows), config=config).numbers
    assert any("5 rows of zeros" in note for note in result.notes)


def test_bad_input_is_refused_in_words():
    rows = composite()
    rows[3, 3] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        meta_structure(dictionary_of(rows), config=CONFIG)
    for wrong in ({"k": 0}, {"width_share": 0}, {"num_steps": 0}, {"lr": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            MetaStructureConfig(**wrong)


def test_progress_is_told():
    seen: list[tuple[int, int]] = []
    config = dataclasses.replace(CONFIG, num_steps=5, random_rows=True)
    meta_structure(
        dictionary_of(composite()), config=config, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [*((i, 10) for i in range(1, 6)), (10, 10)]  # random rows are made once, and counted at once
