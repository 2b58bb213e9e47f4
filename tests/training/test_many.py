"""Many dictionaries on one stream: each ends as it would have alone, and no one's end is another's harm."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.training import (
    NonFiniteActivationsError,
    NonFiniteLossError,
    Run,
    TrainingBatch,
    TrainingConfig,
    TrainingResult,
    loss_for,
    train,
    train_many,
)
from saescope.training.checkpoint import checkpoints_in, newest_checkpoint

BATCH, STEPS = 32, 18
POWER_CUT = RuntimeError("the power went off")


def _config(num_steps: int = STEPS, **settings: Any) -> TrainingConfig:
    defaults = {"batch_size_tokens": BATCH, "dead_after_tokens": 4 * BATCH, "lr": 0.01, "num_warmup_steps": 5}
    defaults |= {"checkpoint_every_n_steps": 5, "log_every_n_steps": 3, "num_threshold_tokens": 3 * BATCH}
    return TrainingConfig(**{"num_tokens": num_steps * BATCH, **defaults, **settings})


def _early(item: dict[str, Tensor]) -> Tensor:
    return item["early"]


def _late(item: dict[str, Tensor]) -> Tensor:
    return item["late"]


def _pair(item: dict[str, Tensor]) -> TrainingBatch:
    return TrainingBatch(item["early"], item["late"][:, :7])


@dataclass(frozen=True)
class _Kind:
    """What one run trains, and how."""

    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    pick: Callable[[Any], Any] = _early


KINDS = {
    "topk": _Kind("topk"),
    "other_seed": _Kind("topk", {"seed": 7}, {"normalization": "layer_norm"}),
    "wide_and_sparse": _Kind("topk", {"d_sae": 40, "k": 3}, {"sparse_kernels": "always", "lr": 0.02}),
    "annealed": _Kind("relu", {}, {"num_steps": 25}, {"p_end": 0.2, "anneal_start": 0.2}, _late),
    "resampled": _Kind("jumprelu", {}, {"resample_every_n_steps": 4, "init_seed": 3}, {}, _late),
    "short": _Kind("batch_topk", {"k": 2.5}, {"num_steps": 7, "num_normalization_tokens": 3 * BATCH}),
    "short_and_sparse": _Kind(
        "matryoshka", {}, {"num_steps": 12, "sparse_kernels": "always"}, {"prefixes": "random", "num_prefixes": 3}
    ),
    "skip": _Kind("topk_skip_transcoder", {}, {"num_steps": 4, "num_normalization_tokens": 2 * BATCH}, {}, _pair),
}


class _Hooks(Iterator[Any]):
    """A toy stream's batches at two hook points; resumable as it is."""

    def __init__(self, stream: Any, spoil_late: int | None = None) -> None:
        self.stream, self.spoil_late = stream, spoil_late

    def __next__(self) -> dict[str, Tensor]:
        x = next(self.stream)
        late = 2 * x.flip(-1).relu() + 1
        if self.stream.drawn - 1 == self.spoil_late:
            late[3, 4] = float("nan")
        return {"early": x, "late": late}

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)


class _At(_Hooks):
    """One hook point of it, for a run alone."""

    def __init__(self, stream: Any, pick: Callable[[Any], Any]) -> None:
        super().__init__(stream)
        self.pick = pick

    def __next__(self) -> Any:
        return self.pick(super().__next__())


def _new_run(new: Any, name: str, folder: Path | None = None, **more: Any) -> Run:
    kind = KINDS[name]
    dictionary = new(kind.architecture, **kind.settings)
    config = _config(**{**kind.config, **more})
    return Run(dictionary, config, loss=loss_for(dictionary, kind.loss), folder=folder and folder / name, source=name)


def _together(new: Any, stream: Any, folder: Path | None = None, *, names: Any = KINDS, **more: Any) -> dict[str, Any]:
    """Train all in one pass; gives the results by name."""
    settings = {key: more.pop(key) for key in list(more) if key not in ("resume", "on_step")}
    runs = [_new_run(new, name, folder, **settings) for name in names]
    results = train_many(runs, stream, pick=[KINDS[name].pick for name in names], **more)
    return dict(zip(names, results, strict=True))


_ALONE: list[tuple[dict[str, TrainingResult], Path]] = []


@pytest.fixture
def alone(new, toy_stream, tmp_path_factory) -> tuple[dict[str, TrainingResult], Path]:
    """Every run by itself, never stopped, without reading ahead: the results by name, and the folder of the runs."""
    if not _ALONE:
        folder, results = tmp_path_factory.mktemp("alone"), {}
        for name, kind in KINDS.items():
            run = _new_run(new, name, folder)
            results[name] = train_many([run], _At(toy_stream(), kind.pick))[0]
        _ALONE.append((results, folder))
    return _ALONE[0]


def _assert_same(found: Dictionary, expected: Dictionary, name: str = "") -> None:
    a, b = found.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        torch.testing.assert_close(
            tensor, b[key], rtol=0, atol=0, equal_nan=True, msg=lambda m, k=key: f"{name} {k}: {m}"
        )


def _log(run: Path) -> list[dict[str, Any]]:
    """The lines of the log, without the one number that is a matter of the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def _assert_as_alone(results: dict[str, Any], folder: Path, alone: tuple[dict[str, Any], Path]) -> None:
    expected, whole = alone
    for name, result in results.items():
        _assert_same(result.dictionary, expected[name].dictionary, name)
        assert result.dead_share == expected[name].dead_share, name
        assert result.num_tokens == expected[name].num_tokens, name
        assert not result.dictionary.training
        assert repr(_log(folder / name)) == repr(_log(whole / name)), name  # nan is nan
        kept, wanted = (checkpoints_in(run / name / "checkpoints") for run in (folder, whole))
        assert [path.name for path in kept] == [path.name for path in wanted], name
        a, b = (newest_checkpoint(run / name / "checkpoints") for run in (folder, whole))
        assert a.values == b.values, name
        assert all(torch.equal(tensor, b.tensors[key]) for key, tensor in a.tensors.items()), name
        assert not list(folder.rglob("*.partial"))


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# In one pass


@pytest.mark.parametrize("num_prefetched", [0, 3])
def test_eight_in_one_pass_end_as_eight_alone(new, toy_stream, alone, tmp_path, num_prefetched):
    stream = toy_stream()
    results = _together(new, _Hooks(stream), tmp_path, num_prefetched_batches=num_prefetched)
    _assert_as_alone(results, tmp_path, alone)
    assert stream.drawn == 25  # as many as the longest wants; what was read ahead of that is given back
    for kept, given in stream.given:
        assert given.equal(kept)


def test_the_runs_alone_are_what_train_does(new, toy_stream, alone):
    for name in ("topk", "short", "skip"):
        kind = KINDS[name]
        dictionary = new(kind.architecture, **kind.settings)
        train(dictionary, _At(toy_stream(), kind.pick), _config(**kind.config), loss=loss_for(dictionary, kind.loss))
        _assert_same(dictionary, alone[0][name].dictionary)


def test_neither_the_order_of_runs_nor_random_numbers_drawn_elsewhere_change_a_bit(new, toy_stream, alone, tmp_path):
    names = sorted(KINDS, reverse=True)
    results = _together(
        new, _Hooks(toy_stream()), tmp_path, names=names, on_step=lambda done, total: torch.manual_seed(done)
    )
    _assert_as_alone(results, tmp_path, alone)


def test_on_step_counts_the_steps_of_the_longest(new, toy_stream):
    seen: list[tuple[int, int]] = []
    _together(new, _Hooks(toy_stream()), names=("topk", "annealed"), on_step=lambda *step: seen.append(step))
    assert seen == [(step, 25) for step in range(1, 26)]


def test_a_run_that_has_what_it_wants_is_finished_while_others_go_on(new, toy_stream, alone, tmp_path):
    """A kill much later costs it nothing: it does not even make the others wait."""
    with pytest.raises(RuntimeError, match="power went off"):
        _together(new, _Hooks(toy_stream(spoil={23: POWER_CUT})), tmp_path)
    for name in ("topk", "short", "short_and_sparse", "skip"):
        assert newest_checkpoint(tmp_path / name / "checkpoints").values["settled"], name
        assert repr(_log(tmp_path / name)) == repr(_log(alone[1] / name))
    assert _names(tmp_path / "annealed") == ["step-00000015", "step-00000020"]
    stream = toy_stream()
    results = _together(new, _Hooks(stream), tmp_path, resume=True)
    assert len(stream.given) == 5  # those of the longest
    _assert_as_alone(results, tmp_path, alone)


# Going on


@pytest.mark.parametrize(("stop", "num_prefetched"), [(1, 0), (2, 2), (4, 0), (9, 2), (14, 0), (17, 2), (21, 0)])
def test_stopped_anywhere_and_resumed(new, toy_stream, alone, tmp_path, stop, num_prefetched):
    """While some still measure, while others settle, and between; read ahead before the stop, or after it."""
    with pytest.raises(RuntimeError, match="power went off"):
        _together(new, _Hooks(toy_stream(spoil={stop: POWER_CUT})), tmp_path, num_prefetched_batches=num_prefetched)
    results = _together(new, _Hooks(toy_stream()), tmp_path, resume=True, num_prefetched_batches=2 - num_prefetched)
    _assert_as_alone(results, tmp_path, alone)


def test_a_run_that_is_ahead_waits_and_writes_nothing(new, toy_stream, alone, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="power went off"):
        _together(new, _Hooks(toy_stream(spoil={13: POWER_CUT})), tmp_path)
    for name, gone in (("topk", 1), ("annealed", 2), ("short_and_sparse", 1)):  # killed between the writes of several
        for path in checkpoints_in(tmp_path / name / "checkpoints")[-gone:]:
            for part in sorted(path.rglob("*"), reverse=True):
                part.rmdir() if part.is_dir() else part.unlink()
            path.rmdir()
    import saescope.training.run as room

    written: list[tuple[str, int]] = []
    original = room.write_checkpoint

    def noted(folder: Path, checkpoint: Any, **settings: Any) -> Any:
        written.append((folder.parent.name, checkpoint.step))
        return original(folder, checkpoint, **settings)

    monkeypatch.setattr(room, "write_checkpoint", noted)
    stream = toy_stream()
    results = _together(new, _Hooks(stream), tmp_path, resume=True)
    assert len(stream.given) == 25  # for the one that lost all
    assert len(set(written)) == len(written)  # nothing twice
    assert ("wide_and_sparse", 10) not in written
    assert ("topk", 10) in written
    _assert_as_alone(results, tmp_path, alone)


def test_resuming_what_is_finished_changes_no_file(new, toy_stream, tmp_path):
    first = _together(new, _Hooks(toy_stream()), tmp_path)
    files = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    stream = toy_stream()
    again = _together(new, _Hooks(stream), tmp_path, resume=True)
    assert stream.given == []
    after = {path: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    assert after.keys() == files.keys()
    for path, (content, number) in after.items():
        assert content == files[path][0]
        assert number == files[path][1] or path.name == "metrics.jsonl"
    for name, result in again.items():
        _assert_same(result.dictionary, first[name].dictionary)
        assert (result.num_steps, result.dead_share) == (first[name].num_steps, first[name].dead_share)


# What goes wrong


def test_impossible_sets_of_runs_are_refused_in_words(new, toy_stream, tmp_path):
    run, other = _new_run(new, "topk"), _new_run(new, "wide_and_sparse")
    with pytest.raises(ValueError, match="nothing to train: give at least one run"):
        train_many([], toy_stream())
    with pytest.raises(ValueError, match="pick has 1 functions for 2 runs"):
        train_many([run, other], toy_stream(), pick=[_early])
    with pytest.raises(ValueError, match=r"share its batches; batch_size_tokens are \[16, 32\]"):
        train_many([run, _new_run(new, "topk", batch_size_tokens=16)], toy_stream())
    same = [_new_run(new, "topk", tmp_path), Run(new("topk"), _config(), folder=tmp_path / "x" / ".." / "topk")]
    with pytest.raises(ValueError, match="two runs write to one folder"):
        train_many(same, toy_stream())
    with pytest.raises(ValueError, match="one dictionary is in two runs"):
        train_many([run, Run(run.dictionary, _config())], toy_stream())
    with pytest.raises(ValueError, match="one dictionary is in two runs"):
        train_many([run, run], toy_stream())
    loss = loss_for(new("relu"), {"p_end": 0.2, "anneal_start": 0.2})
    with pytest.raises(ValueError, match="one loss is in two runs; give each its own"):
        train_many([Run(new("relu", seed=seed), _config(), loss=loss) for seed in (0, 1)], toy_stream())
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_may_not_begin_costs_the_others_nothing(new, toy_stream, tmp_path):
    """Neither a log nor a folder."""
    _together(new, _Hooks(toy_stream()), tmp_path, names=["skip"])
    (tmp_path / "topk").mkdir()
    (tmp_path / "topk" / "metrics.jsonl").write_text('{"step": 1}\n')  # of a run without checkpoints
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="skip already holds checkpoints of a run; resume it"):
        _together(new, _Hooks(toy_stream()), tmp_path, names=["topk", "wide_and_sparse", "skip"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "wide_and_sparse").exists()


def test_a_run_that_cannot_be_resumed_costs_the_others_nothing(new, toy_stream, tmp_path):
    names = ["topk", "annealed"]
    with pytest.raises(RuntimeError, match="power went off"):
        _together(new, _Hooks(toy_stream(spoil={13: POWER_CUT})), tmp_path, names=names)
    before = (tmp_path / "topk" / "metrics.jsonl").read_text()
    for path in checkpoints_in(tmp_path / "annealed" / "checkpoints"):
        (path / "state.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"every checkpoint in .*annealed.* is damaged"),
    ):
        _together(new, _Hooks(toy_stream()), tmp_path, names=names, resume=True)
    assert (tmp_path / "topk" / "metrics.jsonl").read_text() == before
    for generator in ((x for x in ()), iter([])):
        with pytest.raises(ValueError, match=r"cannot be resumed: it has no state_dict\(\)"):
            _together(new, generator, tmp_path, names=["topk"], resume=True, num_prefetched_batches=1)
    assert (tmp_path / "topk" / "metrics.jsonl").read_text() == before


def test_after_a_batch_with_nan_all_runs_go_on_at_once(new, toy_stream, tmp_path):
    names = ["topk", "annealed", "short_and_sparse"]
    with pytest.raises(NonFiniteActivationsError, match=rf"step 7: .* at topk contain .* kept in {tmp_path}/topk"):
        _together(new, _Hooks(toy_stream(spoil={7: float("nan")})), tmp_path, names=names)
    for name in names:
        assert newest_checkpoint(tmp_path / name / "checkpoints").step == 7, name
    stream = toy_stream(spoil={7: float("nan")})
    results = _together(new, _Hooks(stream), tmp_path, names=names, resume=True)
    assert stream.drawn == 26  # one more than without it
    assert len(stream.given) == 18
    assert {name: result.num_steps for name, result in results.items()} == {
        "topk": 18, "annealed": 25, "short_and_sparse": 12,
    }  # fmt: skip


def test_nan_at_one_hook_point_is_no_matter_to_runs_at_another(new, toy_stream, alone, tmp_path):
    """Those that read the other hook point train on that batch, and end as if nothing had been."""
    for start in (False, True):
        failing = pytest.raises(NonFiniteActivationsError, match="step 7: the activations at annealed contain NaN")
        if not start:
            with failing:
                _together(new, _Hooks(toy_stream(), spoil_late=7), tmp_path)
            assert newest_checkpoint(tmp_path / "annealed" / "checkpoints").step == 7
            assert newest_checkpoint(tmp_path / "topk" / "checkpoints").step == 8
        else:
            results = _together(new, _Hooks(toy_stream(), spoil_late=7), tmp_path, resume=True)
    others = {name: result for name, result in results.items() if KINDS[name].pick is not _late}
    for name, result in others.items():
        _assert_same(result.dictionary, alone[0][name].dictionary, name)
        assert repr(_log(tmp_path / name)) == repr(_log(alone[1] / name))
    assert results["annealed"].num_steps == 25
    assert not results["annealed"].dictionary.W_dec.equal(alone[0]["annealed"].dictionary.W_dec)


def test_nan_while_another_is_still_measuring(new, toy_stream, alone, tmp_path):
    """The one that measures has nothing to keep: it measures the same batches again."""
    names = ["annealed", "short"]
    with pytest.raises(NonFiniteActivationsError, match="step 1: the activations at annealed"):
        _together(new, _Hooks(toy_stream(), spoil_late=1), tmp_path, names=names)
    assert not (tmp_path / "short" / "checkpoints").exists()
    results = _together(new, _Hooks(toy_stream(), spoil_late=1), tmp_path, names=names, resume=True)
    _assert_same(results["short"].dictionary, alone[0]["short"].dictionary)
    assert results["annealed"].num_steps == 25


@pytest.mark.parametrize("spoilt", [7, 8, 9])
def test_nan_in_the_batches_for_the_threshold_is_passed_too(new, toy_stream, tmp_path, spoilt):
    dictionary, config = new("batch_topk", k=2.5), _config(7)
    with pytest.raises(NonFiniteActivationsError, match="step 7"):
        train(dictionary, toy_stream(spoil={spoilt: float("nan")}), config, folder=tmp_path)
    stream = toy_stream(spoil={spoilt: float("nan")})
    result = train(new("batch_topk", k=2.5, seed=4), stream, config, folder=tmp_path, resume=True)
    fresh = torch.cat([raw for raw, _ in stream.given])
    assert len(fresh) == 3 * BATCH  # measured on what follows the spoilt batch
    assert float((result.dictionary.encode(fresh) != 0).sum()) == pytest.approx(2.5 * 3 * BATCH, abs=2)
    assert newest_checkpoint(tmp_path / "checkpoints").values["settled"]


def test_a_loss_that_is_not_finite_stops_all_and_keeps_all(new, toy_stream, tmp_path):
    calls: list[int] = []

    def spoilt(x: Tensor, x_hat: Tensor, pre: Tensor, f: Tensor, dictionary: Dictionary) -> Tensor:
        calls.append(1)
        return (x - x_hat).square().mean() * (float("nan") if len(calls) == 4 else 1)

    runs = [
        Run(new("topk"), _config(), folder=tmp_path / "a"),
        Run(new("topk", seed=1), _config(), loss=spoilt, folder=tmp_path / "b"),
        Run(new("relu"), _config(), folder=tmp_path / "c"),
    ]
    with pytest.raises(NonFiniteLossError, match=rf"step 3: .* kept in {tmp_path}/b"):
        train_many(runs, toy_stream())
    steps = [newest_checkpoint(tmp_path / name / "checkpoints").step for name in "abc"]
    assert steps == [4, 3, 4]
    assert all(bool(p.isfinite().all()) for run in runs for p in run.dictionary.parameters())


def test_a_stream_that_ends_names_the_run_that_lacks_steps(new, toy_stream):
    with pytest.raises(ValueError, match=rf"annealed ended after {20 * BATCH} of {25 * BATCH} training tokens"):
        _together(new, _Hooks(toy_stream(length=20)))


@pytest.mark.parametrize("num_prefetched", [0, 2])
def test_a_stream_that_ends_while_thresholds_are_measured(new, toy_stream, num_prefetched):
    runs = [
        Run(new(name), _config(num_threshold_tokens=10 * BATCH, num_prefetched_batches=num_prefetched))
        for name in ("batch_topk", "topk", "matryoshka")
    ]
    stream = toy_stream(length=STEPS + 2)
    train_many(runs, stream)
    fresh = torch.cat([raw for raw, _ in stream.given[STEPS:]])
    for run in (runs[0], runs[2]):
        assert float((run.dictionary.encode(fresh) != 0).sum()) == pytest.approx(2 * 2 * BATCH, abs=2)


def test_batches_for_a_loss_on_the_models_output_are_not_read_ahead(new, toy_stream):
    """The model would run in two threads at a time."""

    class WithContext(_Hooks):
        def __next__(self) -> Any:
            return TrainingBatch(next(self.stream), context="ids")

    with pytest.raises(ValueError, match=r"can not have its batches read ahead: .* set num_prefetched_batches to 0"):
        train(new("topk"), WithContext(toy_stream()), _config(num_prefetched_batches=1))
    assert train(new("topk"), WithContext(toy_stream()), _config()).num_steps == STEPS
    assert not any(thread.name == "saescope-prefetch" for thread in threading.enumerate())


def test_one_run_that_reads_ahead_is_enough(new, toy_stream):
    """Whichever of them it is."""
    threads: list[bool] = []

    def look(done: int, total: int) -> None:
        threads.append(any(thread.name == "saescope-prefetch" for thread in threading.enumerate()))

    runs = [Run(new("topk"), _config(3, num_prefetched_batches=2)), Run(new("relu"), _config(5))]
    train_many(runs, toy_stream(), on_step=look)
    assert threads == [True] * 5
