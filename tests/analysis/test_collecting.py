"""The pass over a text can stop anywhere, be cut in pieces and put together again, and gives the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from saescope.activations import TokenWindows, WindowConfig
from saescope.analysis import AnalysisConfig, Collected, LiveText, collect
from saescope.dictionaries import TopK, TopKConfig

HOOK = "blocks.1.hook_resid_post"
CONFIG = AnalysisConfig(num_examples=3, num_bands=3, num_per_band=2, num_negatives=2, num_cofiring_tokens=150)


@pytest.fixture(scope="module")
def dictionary():
    return TopK(TopKConfig(d_in=16, d_sae=24, k=3), seed=1)


@pytest.fixture(scope="module")
def text(tiny, documents, tokenizer):
    windows = TokenWindows.build(documents[:20], tokenizer, WindowConfig(context_size=32))
    return LiveText(tiny, windows, [HOOK], batch_size_windows=1)  # one window at a time: the same bits in any order


@pytest.fixture(scope="module")
def whole(dictionary, text):
    return collect(dictionary, text, CONFIG)


def same(a: Collected, b: Collected) -> None:
    """Everything that an analysis takes from the pass."""
    first, second = a.statistics, b.statistics
    for feature in range(first.d_sae):
        assert first.examples(feature) == second.examples(feature), feature
        assert first.bands(feature) == second.bands(feature), feature
        one, other = (s.record_numbers(feature) for s in (first, second))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-12), (feature, name)
        for x, y in zip(
            vars(first.label_sample(feature)).values(), vars(second.label_sample(feature)).values(), strict=True
        ):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.sample.places, b.sample.places)
    assert a.done == b.done


def test_an_interrupted_pass_goes_on(dictionary, text, whole, tmp_path):
    file = tmp_path / "work" / "pass.npz"
    for stop_at in (3, 8, 1):  # a pass may be stopped again and again

        def stop(done: int, total: int, left: list[int] = [stop_at]) -> None:  # noqa: B006
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            collect(dictionary, text, CONFIG, checkpoint=file, on_progress=stop, seconds_between_checkpoints=0)
    assert 0 < Collected.load(file).done[0].stop < len(text)
    same(collect(dictionary, text, CONFIG, checkpoint=file), whole)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_are_the_whole(dictionary, text, whole, tmp_path, order):
    cuts = [0, 5, 6, len(text)]
    for part in range(3):
        collect(dictionary, text, CONFIG, windows=(cuts[part], cuts[part + 1])).save(tmp_path / f"{part}.npz")
    first, *others = (Collected.load(tmp_path / f"{part}.npz") for part in order)
    with pytest.raises(ValueError, match="merge all shards"):
        first.require(dictionary, text, CONFIG)
    for other in others:
        first.merge(other)
    first.require(dictionary, text, CONFIG)
    same(first, whole)
    with pytest.raises(ValueError, match="given before"):
        first.merge(Collected.load(tmp_path / "1.npz"))


def test_other_settings_are_not_mixed(dictionary, text, tmp_path):
    file = tmp_path / "pass.npz"
    a = collect(dictionary, text, CONFIG, windows=(0, 4))
    a.save(file)
    other = AnalysisConfig(num_examples=4, num_cofiring_tokens=150)
    with pytest.raises(ValueError, match=r"num_top: 3, the other's 4"):
        a.merge(collect(dictionary, text, other, windows=(4, 8)))
    with pytest.raises(ValueError, match="other settings; remove it"):
        collect(dictionary, text, other, windows=(0, 4), checkpoint=file)
    with pytest.raises(ValueError, match="other settings; remove it"):
        collect(TopK(dictionary.config, seed=2), text, CONFIG, windows=(0, 4), checkpoint=file)
    with pytest.raises(ValueError, match=r"text: .* asked for"):
        a.require(dictionary, LiveText(text.model, text.windows, [HOOK], num_tokens=100), CONFIG)
    with pytest.raises(ValueError, match=r"dictionary: .* asked for"):
        a.require(TopK(dictionary.config, seed=2), text, CONFIG)


def test_damaged_and_missing_files_are_named(dictionary, text, tmp_path):
    file = tmp_path / "pass.npz"
    with pytest.raises(FileNotFoundError, match=r"pass\.npz"):
        Collected.load(file)
    collect(dictionary, text, CONFIG, windows=(0, 2)).save(file)
    content = file.read_bytes()
    for bad in (content[: len(content) // 2], b"", b"nothing of the kind"):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"pass\.npz is damaged"):
            Collected.load(file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pass.npz"]


@pytest.mark.slow
def test_kills_at_random_moments_neither_lose_nor_double_a_window(tmp_path):
    """A real process on the bundled model, killed again and again; what it counts in the end is what one pass counts."""
    script = tmp_path / "run.py"
    script.write_text(
        """
import sys
from pathlib import Path
import torch
from saescope import LanguageModel, TokenWindows, TopK, read_documents
from saescope.activations import WindowConfig
from saescope.analysis import AnalysisConfig, LiveText, collect
from saescope.dictionaries import TopKConfig

torch.set_num_threads(1)
model = LanguageModel.load("bundled")
windows = TokenWindows.build(read_documents("bundled"), model.tokenizer, WindowConfig(context_size=128, max_tokens=25_000))
text = LiveText(model, windows, ["blocks.1.hook_resid_post"], batch_size_windows=4)
dictionary = TopK(TopKConfig(d_in=256, d_sae=512, k=16), seed=3)
print("ready", flush=True)
found = collect(
    dictionary, text, AnalysisConfig(num_examples=4), checkpoint=Path(sys.argv[1]), seconds_between_checkpoints=0.01
)
found.save(Path(sys.argv[2]))
"""
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(checkpoint: Path, result: Path) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(checkpoint), str(result)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    with start(tmp_path / "none.npz", tmp_path / "whole.npz") as process:
        started = time.monotonic()
        assert process.wait(120) == 0
        seconds = time.monotonic() - started
    checkpoint, kills = tmp_path / "work.npz", 0
    generator = np.random.default_rng(0)
    reached = [0]
    while kills < 4:
        with start(checkpoint, tmp_path / "killed.npz") as process:
            time.sleep(float(generator.uniform(0.02, 0.25)) * seconds)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if checkpoint.exists():
            reached.append(Collected.load(checkpoint).done[0].stop)
    assert kills >= 2
    assert reached == sorted(reached)
    with start(checkpoint, tmp_path / "killed.npz") as process:
        assert process.wait(120) == 0
    same(Collected.load(tmp_path / "killed.npz"), Collected.load(tmp_path / "whole.npz"))
