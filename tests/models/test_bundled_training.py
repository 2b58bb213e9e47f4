"""The bundled model's recipe in small: an interruption changes no bit, the export opens, the card says what a loop says."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from saescope.models.bundled import card
from saescope.models.bundled import train as recipe
from saescope.models.bundled.corpus import fingerprint, source_files
from saescope.models.bundled.tokenizer import END_OF_TEXT, train_tokenizer
from saescope.models.bundled.train import TrainingConfig, build_model, lr_factor, training_batch

CONFIG = TrainingConfig(
    vocab_size=300, context_size=16, d_model=16, num_layers=2, num_heads=2, num_steps=7, batch_size_windows=4,
    num_warmup_steps=2, bfloat16=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lib")
    for i in range(60):
        (root / f"module_{i}.py").write_text(
            f'"""Número {i}: 漢字 🎈"""\n' + "".join(f"def f_{j}(x):\n    return x + {i * j}\n" for j in range(3))
        )
    return root


@pytest.fixture(autouse=True)
def small_corpus(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (recipe, card):
        monkeypatch.setattr(module, "source_files", partial(source_files, root=corpus))


def train(folder: Path, config: TrainingConfig = CONFIG, **settings: Any) -> list[dict[str, float]]:
    return list(recipe.train(folder, config, **settings))


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "source_files", partial(source_files, root=corpus))
        train(folder)
    return folder


def same_tensors(a: Path, b: Path) -> bool:
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns_and_logs(tmp_path: Path) -> None:
    config = TrainingConfig(**{**vars(CONFIG), "num_steps": 30, "dropout": 0.0})
    lines = train(tmp_path, config, every_n_steps=10)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["loss"] < math.log(300) - 1
    assert lines[-1]["held_out_loss"] < lines[0]["held_out_loss"] < math.log(300)
    assert all(line["tokens_per_second"] > 0 for line in lines)


def test_interrupted_training_gives_the_same_bits(trained: Path, tmp_path: Path) -> None:
    first = train(tmp_path, stop_after=3)
    assert [line["step"] for line in first] == [3]
    assert not (tmp_path / "config.json").exists()  # no export before the end
    killed = recipe.train(tmp_path, CONFIG, every_n_steps=2)
    assert next(killed)["step"] == 4
    del killed  # after a checkpoint
    second = train(tmp_path, every_n_steps=5)
    assert [line["step"] for line in second] == [5, 7]
    assert same_tensors(tmp_path / "checkpoint.safetensors", trained / "checkpoint.safetensors")
    assert same_tensors(tmp_path / "model.safetensors", trained / "model.safetensors")
    assert (tmp_path / "tokenizer.json").read_text() == (trained / "tokenizer.json").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_run_is_left_as_it_is(trained: Path) -> None:
    before = load_file(trained / "model.safetensors")
    assert train(trained) == []
    after = load_file(trained / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_seed_decides(trained: Path, tmp_path: Path) -> None:
    train(tmp_path, TrainingConfig(**{**vars(CONFIG), "seed": 1}))
    assert not same_tensors(tmp_path / "model.safetensors", trained / "model.safetensors")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    config = TrainingConfig(**{**vars(CONFIG), "other_lr": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) at step \d; lower the learning rates"):
        train(tmp_path, config)


def test_the_export_opens_everywhere(trained: Path, corpus: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.bfloat16)
    checkpoint = load_file(trained / "checkpoint.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, checkpoint[f"model.{name}"].bfloat16())
    stored = load_file(trained / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}

    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert len(tokenizer) == model.config.vocab_size == 300
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == model.config.bos_token_id == 0
    assert (tokenizer.bos_token, tokenizer.model_max_length) == (END_OF_TEXT, 16)
    files = source_files(root=corpus)
    for text in [*(file.text for file in files), "x = 'don\\'t'  # \t é\u0301 🏴‍☠️\r\n\n"]:
        assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text
    settings = json.loads((trained / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((trained / "training.json").read_text()) == vars(CONFIG)


def test_command_lines(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for name, value in vars(CONFIG).items() for part in (f"--{name.replace('_', '-')}", str(value))]
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path), *options])
    recipe.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["step"] == 7
    assert same_tensors(tmp_path / "model.safetensors", trained / "model.safetensors")
    monkeypatch.setattr("sys.argv", ["card", str(tmp_path)])
    card.main()
    assert card.read_card(tmp_path)["held_out"]["num_predictions"] > 0
    monkeypatch.setattr("sys.argv", ["card"])
    with pytest.raises(SystemExit, match="usage: "):
        card.main()


def test_every_parameter_has_one_optimizer() -> None:
    model = build_model(CONFIG)
    muon, adam = recipe.build_optimizers(model, CONFIG)
    groups = [*muon.param_groups, *adam.param_groups]
    moved = [id(p) for group in groups for p in group["params"]]
    assert sorted(moved) == sorted(id(p) for p in model.parameters())
    assert len(muon.param_groups[0]["params"]) == 4 * CONFIG.num_layers
    undecayed = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert {p.ndim for p in undecayed} == {1}


def test_learning_rate() -> None:
    config = TrainingConfig(num_steps=100, num_warmup_steps=20)
    factors = [lr_factor(step, config) for step in range(101)]
    assert (factors[0], factors[9], factors[19], factors[20]) == (1 / 20, 0.5, 1.0, 1.0)
    assert (factors[60], factors[99], factors[100]) == (0.5, 1 / 80, 0.0)
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert lr_factor(0, TrainingConfig(num_steps=100, num_warmup_steps=0)) == 1
    assert lr_factor(99, TrainingConfig(num_steps=100, num_warmup_steps=100)) == 1


def test_a_pass_uses_every_token_at_most_once() -> None:
    """In a text whose tokens are their own places."""
    width, size = CONFIG.context_size - 1, CONFIG.batch_size_windows
    stream = torch.arange(1000)
    per_pass = (1000 - width) // width // size
    passes = []
    for epoch in range(3):
        batches = [training_batch(stream, epoch * per_pass + i, CONFIG) for i in range(per_pass)]
        rows = torch.cat(batches)
        assert rows.shape == (per_pass * size, CONFIG.context_size)
        assert (rows[:, 0] == stream[0]).all()
        assert (rows[:, 1:].diff(dim=1) == 1).all()  # stretches of the text
        assert len(rows[:, 1:].unique()) == rows[:, 1:].numel() > 1000 - (size + 2) * width
        passes.append(rows[:, 1])
    assert len({int(starts.min()) % width for starts in passes}) > 1  # cut at other places
    assert not torch.equal(passes[0], passes[1])
    assert torch.equal(training_batch(stream, 5, CONFIG), training_batch(stream, 5, CONFIG))
    with pytest.raises(ValueError, match="the text's 50 tokens are less than one batch of 4 windows"):
        training_batch(stream[:50], 0, CONFIG)


def test_token_stream_opens_every_file(corpus: Path) -> None:
    files = source_files(root=corpus)[:5]
    tokenizer = train_tokenizer((file.text for file in files), 300, 16)
    stream = recipe.token_stream(tokenizer, files)
    assert tokenizer.decode(stream) == "".join(END_OF_TEXT + file.text for file in files)


def test_held_out_loss_is_the_mean_over_windows(corpus: Path) -> None:
    model = build_model(CONFIG).train()
    stream = torch.randint(1, 300, (15 * 10 + 3,), generator=torch.Generator().manual_seed(0))
    stream[0] = 0
    got = recipe.held_out_loss(model, stream, CONFIG, max_windows=10)
    assert model.training
    model.eval()
    with torch.no_grad():
        losses = [
            -model(torch.tensor([[0, *window]])).logits[0].log_softmax(-1)[place, token]
            for window in stream[:150].view(10, 15).tolist()
            for place, token in enumerate(window)
        ]
    assert got == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def measured_by_hand(folder: Path, files: list[Any], rows: list[int] | None) -> dict[str, float]:
    """Token by token, each from those before it in its window."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids, num_bytes_of = [], []
    for file in files:
        own = tokenizer(file.text, verbose=False)["input_ids"]
        pieces = tokenizer.convert_ids_to_tokens(own)
        assert sum(map(len, pieces)) == len(file.text.encode())  # a byte-level piece has one character per byte
        ids += [0, *own]
        num_bytes_of += [0, *map(len, pieces)]
    nats = hits = predictions = num_bytes = 0.0
    windows = range(len(ids) // 15)
    for row in windows if rows is None else rows:
        window = ids[row * 15 : row * 15 + 15]
        with torch.no_grad():
            log = model(torch.tensor([[0, *window]])).logits[0].log_softmax(-1)
        for place, token in enumerate(window):
            if token != 0:
                nats -= float(log[place, token])
                hits += int(log[place].argmax()) == token
                predictions += 1
                num_bytes += num_bytes_of[row * 15 + place]
    return {
        "num_predictions": predictions,
        "loss": nats / predictions,
        "accuracy": hits / predictions,
        "bits_per_byte": nats / math.log(2) / num_bytes,
    }


@pytest.mark.parametrize("max_windows", [None, 7, 100_000])
def test_measure_against_a_loop(trained: Path, corpus: Path, max_windows: int | None) -> None:
    files = source_files("held_out", corpus)
    calls: list[tuple[int, int]] = []
    measured = card.measure(trained, "held_out", max_windows=max_windows, on_progress=lambda *call: calls.append(call))
    num_windows = (
        sum(len(AutoTokenizer.from_pretrained(trained)(f.text, verbose=False)["input_ids"]) + 1 for f in files) // 15
    )
    rows = [round(i * (num_windows - 1) / 6) for i in range(7)] if max_windows == 7 else None
    expected = measured_by_hand(trained, files, rows)
    assert {name: getattr(measured, name) for name in expected} == pytest.approx(expected, rel=1e-5)
    assert (measured.num_files, measured.files_sha256) == (len(files), fingerprint(files))
    total = 7 if max_windows == 7 else num_windows
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted({min(16 * i, total) for i in range(1, len(calls) + 1)})


def test_write_card(trained: Path) -> None:
    card.write_card(trained)
    written = card.read_card(trained)
    assert written["held_out"] == vars(card.measure(trained, "held_out"))
    assert written["train"] == vars(card.measure(trained, "train", max_windows=1200))
    assert written["training"] == vars(CONFIG)
    model = AutoModelForCausalLM.from_pretrained(trained)
    assert written["num_parameters"] == sum(p.numel() for p in model.parameters())
    readme = (trained / "README.md").read_text()
    for half in ("train", "held_out"):
        figures = written[half]
        assert f"| {figures['num_files']} | {figures['num_predictions']:,} | {figures['loss']:.3f} |" in readme
        assert figures["files_sha256"] in readme
    assert not re.search(r"\{|\}|None|nan", readme)
    assert "7 steps of 64 tokens" in readme
