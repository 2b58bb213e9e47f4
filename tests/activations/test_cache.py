"""A cache gives the batches that the model would, without it, and survives whatever stops its writing."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from saescope.activations import (
    ActivationBatch,
    ActivationStream,
    CachedActivations,
    DatasetConfig,
    DiskTooSmall,
    ShuffledStream,
    SideBySide,
    StreamConfig,
    TokenWindows,
    WindowConfig,
    cache_files,
    cache_writing,
    write_cache,
)
from saescope.dictionaries import architecture
from saescope.models import LanguageModel
from saescope.training import TrainingBatch, TrainingConfig, train

HOOK, OTHER = "transformer.h.1", "blocks.2.hook_resid_pre"
WIDE = "transformer.h.0.mlp.c_fc"  # 64 wide, the others are 16 wide
SHARD = 9000  # bytes: half a dozen shards or more


@pytest.fixture(scope="session")
def text(documents: Any, tokenizer: Any) -> TokenWindows:
    """Windows of different lengths."""
    return TokenWindows.build(documents[:6], tokenizer, WindowConfig(context_size=16, packing="separate"))


@pytest.fixture
def write(tiny: LanguageModel, text: TokenWindows, tmp_path: Path) -> Callable[..., CachedActivations]:
    """Writes a cache into ``tmp_path / "cache"``; each window is read alone, so that its values do not depend on others."""

    def write(
        folder: Path = tmp_path / "cache",
        hook_points: list[str] | None = None,
        windows: TokenWindows | None = text,
        model: LanguageModel = tiny,
        **settings: Any,
    ) -> CachedActivations:
        defaults: dict[str, Any] = {"shard_size_bytes": SHARD, "model_batch_size_windows": 1}
        return write_cache(model, windows, hook_points or [HOOK, WIDE], folder, **{**defaults, **settings})

    return write


@pytest.fixture(scope="session")
def shared(tiny: LanguageModel, text: TokenWindows, tmp_path_factory: Any) -> Path:
    """A finished cache that no test changes."""
    folder = tmp_path_factory.mktemp("caches") / "shared"
    write_cache(tiny, text, [HOOK, WIDE], folder, shard_size_bytes=SHARD, model_batch_size_windows=1)
    return folder


def config(**settings: Any) -> StreamConfig:
    return StreamConfig(**{"buffer_size_tokens": 200, "model_batch_size_windows": 1, **settings})


def take(stream: ShuffledStream, num_batches: int) -> list[ActivationBatch]:
    return list(itertools.islice(stream, num_batches))


def same(a: list[ActivationBatch], b: list[ActivationBatch]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x.positions, y.positions)
        and list(x.values) == list(y.values)
        and all(x.values[n].dtype == y.values[n].dtype and torch.equal(x.values[n], y.values[n]) for n in x.values)
        for x, y in zip(a, b, strict=True)
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Forwards:
    """Counts the windows that go into the model."""

    def __init__(self, model: LanguageModel) -> None:
        self.windows: list[int] = []
        self._handle = model.module.register_forward_pre_hook(
            lambda module, args, kwargs: self.windows.append(len(kwargs["input_ids"])), with_kwargs=True
        )

    def __enter__(self) -> list[int]:
        return self.windows

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# the same stream


@pytest.mark.parametrize("packing", ["concatenate", "separate"])
@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize(("batch", "buffer", "seed"), [(50, 200, 0), (33, 10_000, 1), (64, 64, 2)])
def test_batches_are_those_of_the_model_bit_for_bit(
    write: Any, tiny: LanguageModel, documents: Any, tokenizer: Any, packing: Any, exclude: bool, batch: int, buffer: int,
    seed: int,
) -> None:  # fmt: skip
    windows = TokenWindows.build(documents[:6], tokenizer, WindowConfig(context_size=16, packing=packing))
    settings = config(buffer_size_tokens=buffer, exclude_special_tokens=exclude)
    mixing: dict[str, Any] = {"batch_size_tokens": batch, "config": settings, "seed": seed}
    live = ActivationStream(tiny, windows, [HOOK, WIDE], **mixing)
    cache = write(windows=windows, exclude_special_tokens=exclude)
    assert cache.manifest.num_shards > 5
    assert cache.num_tokens == live.num_tokens
    length = 2 * live.num_tokens // batch + 3  # into the third pass
    expected = take(live, length)
    with Forwards(tiny) as read:
        cached = cache.stream(**mixing)
        assert cached.mixing() == live.mixing()
        assert same(take(cached, length), expected)
    assert not read


def test_values_are_those_of_each_window_read_alone(shared: Path, tiny: LanguageModel, text: TokenWindows) -> None:
    """In another order than that of the text, and some twice."""
    cache = CachedActivations.open(shared)
    rows = [5, 0, len(text) - 1, 3, 4, 0]
    got = cache.read(rows, [WIDE, HOOK])
    assert list(got.values) == [WIDE, HOOK]
    place = 0
    for row in rows:
        batch = text.batch([row])
        length = int(batch.attention.sum())
        kept = batch.keep[0, :length]
        values = tiny.read(batch.ids[:, :length], [HOOK, WIDE])
        stop = place + int(kept.sum())
        assert torch.equal(got.positions[place:stop], batch.positions[0, :length][kept])
        for name in (HOOK, WIDE):
            torch.testing.assert_close(got.values[name][place:stop], values[name][0][kept], atol=1e-5, rtol=1e-4)
        place = stop
    assert place == len(got)


def test_several_windows_in_a_forward_pass_are_the_same_cache(
    write: Any, shared: Path, tiny: LanguageModel, text: TokenWindows
) -> None:
    alone = CachedActivations.open(shared).read(range(len(text)))
    with Forwards(tiny) as read:
        together = write(model_batch_size_windows=4, shard_size_bytes=5 * SHARD).read(range(len(text)))
    assert max(read) == 4
    assert torch.equal(together.positions, alone.positions)
    for name in (HOOK, WIDE):
        torch.testing.assert_close(together.values[name], alone.values[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_shorter_dtype_rounds_once_and_changes_nothing_else(
    write: Any, tiny: LanguageModel, text: TokenWindows, dtype: str
) -> None:
    live = ActivationStream(tiny, text, [HOOK], batch_size_tokens=50, config=config())
    cache = write(dtype=dtype, hook_points=[HOOK])
    cached = cache.stream(batch_size_tokens=50, config=config())
    rounded = [
        ActivationBatch({HOOK: batch.values[HOOK].to(getattr(torch, dtype)).float()}, batch.positions)
        for batch in take(live, 30)
    ]
    state, got = cached.state_dict(), take(cached, 30)
    assert same(got, rounded)
    assert not same(got, take(ActivationStream(tiny, text, [HOOK], batch_size_tokens=50, config=config()), 30))
    assert got[0].values[HOOK].dtype == torch.float32
    cached.load_state_dict(state)
    assert same(take(cached, 30), rounded)
    stored = load_file(cache.folder / "shard-00000.safetensors")[f"values.{HOOK}"]
    assert stored.dtype == getattr(torch, dtype)
    assert stored.element_size() == 2


@pytest.mark.parametrize(("batch", "buffer"), [(50, 200), (33, 10_000)])
def test_resumed_at_any_step_it_goes_on_bit_for_bit(shared: Path, text: TokenWindows, batch: int, buffer: int) -> None:
    def stream(seed: int = 4) -> ShuffledStream:
        settings = config(buffer_size_tokens=buffer)
        return CachedActivations.open(shared).stream(batch_size_tokens=batch, config=settings, seed=seed)

    length = 2 * text.num_tokens // batch + 6
    whole, states, straight = stream(), [], []
    for _ in range(length):
        states.append(whole.state_dict())
        straight.append(next(whole))
    assert states[-1]["epoch"] == 2
    for step, state in enumerate(states):
        values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        assert all(len(tensor) < batch for tensor in tensors.values())
        resumed = stream()
        next(resumed)
        resumed.load_state_dict({**json.loads(json.dumps(values)), **tensors})
        following = straight[step : step + 3] if step % 7 else straight[step:]
        assert same(take(resumed, len(following)), following)
    assert not same(take(stream(seed=5), length), straight)


def test_a_run_begun_with_the_model_can_go_on_from_the_cache(
    shared: Path, tiny: LanguageModel, text: TokenWindows
) -> None:
    live = ActivationStream(tiny, text, [HOOK, WIDE], batch_size_tokens=50, config=config())
    cached = CachedActivations.open(shared).stream(batch_size_tokens=50, config=config())
    take(live, 7)
    cached.load_state_dict(live.state_dict())
    assert same(take(cached, 20), take(live, 20))


@pytest.mark.parametrize("kind", ["at", "pair", "joined"])
def test_training_from_a_cache_gives_the_weights_of_training_with_the_model(
    shared: Path, tiny: LanguageModel, text: TokenWindows, tmp_path: Path, kind: str
) -> None:
    """Also when it is stopped and resumed."""

    def parts(stream: ShuffledStream) -> tuple[Any, Any]:
        cls = architecture({"at": "topk", "pair": "transcoder", "joined": "topk_crosscoder"}[kind])
        if kind == "at":
            return cls(cls.Config(d_in=16, d_sae=32, k=3), seed=0), stream.at(HOOK)
        if kind == "pair":
            return cls(cls.Config(d_in=16, d_out=64, d_sae=32), seed=0), stream.pair(HOOK, WIDE)
        return (
            cls(cls.Config(d_in=80, source_widths=(16, 64), d_sae=32, k=3), seed=0),
            stream.joined([HOOK, WIDE]),
        )

    mixing: dict[str, Any] = {"batch_size_tokens": 50, "config": config()}
    settings = TrainingConfig(
        num_tokens=20 * 50, batch_size_tokens=50, num_warmup_steps=2, checkpoint_every_n_steps=7, log_every_n_steps=50
    )
    live, batches = parts(ActivationStream(tiny, text, [HOOK, WIDE], **mixing))
    train(live, batches, settings)

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise InterruptedError

    stopped, batches = parts(CachedActivations.open(shared).stream(**mixing))
    with pytest.raises(InterruptedError):
        train(stopped, batches, settings, folder=tmp_path, on_step=stop)
    resumed, batches = parts(CachedActivations.open(shared).stream(**mixing))
    train(resumed, batches, settings, folder=tmp_path, resume=True)
    for name, parameter in live.named_parameters():
        assert parameter.equal(resumed.get_parameter(name)), name
        assert not parameter.equal(stopped.get_parameter(name)), name


def test_two_caches_side_by_side(shared: Path, write: Any, documents: Any, tokenizer: Any) -> None:
    """Values of the same tokens; caches of two texts are told apart by their token ids."""
    write(hook_points=[OTHER])
    caches = [CachedActivations.open(shared), CachedActivations.open(write(hook_points=[OTHER], overwrite=True).folder)]
    mixing: dict[str, Any] = {"batch_size_tokens": 50, "config": config()}
    both = SideBySide([cache.stream(**mixing) for cache in caches])
    alone = [cache.stream(**mixing) for cache in caches]
    for _ in range(12):
        parts = [next(stream) for stream in alone]
        expected = torch.cat([parts[0].values[HOOK], parts[0].values[WIDE], parts[1].values[OTHER]], dim=-1)
        assert torch.equal(next(both), expected)
    longer = TokenWindows.build(documents[:7], tokenizer, WindowConfig(context_size=16, packing="separate"))
    other = write(hook_points=[OTHER], windows=longer, overwrite=True)
    with pytest.raises(ValueError, match="do not give the same tokens"):
        SideBySide([alone[0], other.stream(**mixing)])


def test_the_operating_system_is_told_what_comes_next(
    shared: Path, text: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes announced are the next block's values, all of them and no others."""
    said: list[bytes] = []

    def announce(handle: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        said.append(os.pread(handle, length, offset))

    monkeypatch.setattr(os, "posix_fadvise", announce)
    cache = CachedActivations.open(shared)
    stream = cache.stream([WIDE], batch_size_tokens=50, config=config())
    blocks = [np.sort(stream._rows(0, block)) for block in range(3)]  # in the order of the files, for a disk that seeks
    expected = [[cache.read([row], [WIDE]).values[WIDE].numpy().tobytes() for row in rows] for rows in blocks]
    next(stream)
    stream._announcing.join()
    assert said == expected[0] + expected[1]
    said.clear()
    while stream.state_dict()["block"] == 0:
        next(stream)
    stream._announcing.join()
    assert said == expected[2]


# what else is in the folder


@pytest.mark.parametrize("exclude", [True, False])
def test_analysis_walks_the_text_in_order(write: Any, tiny: LanguageModel, text: TokenWindows, exclude: bool) -> None:
    """Token ids, positions and documents are those of the text, read without it; a batch's values are its kept tokens'."""
    folder = write(exclude_special_tokens=exclude).folder
    cache = CachedActivations.open(folder)
    seen = 0
    for (batch, part), expected in zip(cache.in_order(4), text.in_order(4), strict=True):
        for field in dataclasses.fields(batch):
            assert torch.equal(getattr(batch, field.name), getattr(expected, field.name))
        mask = batch.keep if exclude else batch.attention
        assert torch.equal(part.positions, batch.positions[mask])
        for name in (HOOK, WIDE):
            values = tiny.read(batch.ids, [name], attention_mask=batch.attention)[name][mask]
            torch.testing.assert_close(part.values[name], values, atol=1e-5, rtol=1e-4)
        seen += len(part)
    assert seen == (text.num_tokens if exclude else text.num_attended) == cache.num_tokens
    for name, value in vars(cache.windows).items():
        assert np.array_equal(value, getattr(text, name)), name
    assert [cache.windows.document_of(p) for p in (0, 100)] == [text.document_of(p) for p in (0, 100)]


def test_shards_are_ordinary_safetensors_in_the_order_of_the_text(shared: Path, text: TokenWindows) -> None:
    manifest = json.loads((shared / "manifest.json").read_text())
    names = sorted(path.name for path in shared.glob("shard-*"))
    assert names == list(manifest["shards"])
    shards = [load_file(shared / name) for name in names]
    kept = torch.cat([batch.positions[batch.keep] for batch in text.in_order(99)])
    assert torch.equal(torch.cat([shard["positions"] for shard in shards]), kept)
    for shard, entry in zip(shards, manifest["shards"].values(), strict=True):
        assert set(shard) == {"positions", f"values.{HOOK}", f"values.{WIDE}"}
        assert shard[f"values.{WIDE}"].shape == (entry["num_tokens"], 64)
        assert entry["num_bytes"] <= SHARD + 16 * (8 + 4 * 80) + 400  # a window more, and the header
    assert manifest["num_tokens"] == len(kept) == text.num_tokens
    assert manifest["num_windows"] == len(text)
    assert manifest["num_documents"] == 6
    assert manifest["settings"]["model"] == {"name": "tiny", "dtype": "float32"}
    assert [point["canonical"] for point in manifest["hook_points"]] == [
        "transformer.h.1.output", "transformer.h.0.mlp.c_fc.output",
    ]  # fmt: skip


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any),
    st.integers(1, 30),
)
def test_shards_hold_all_windows_in_order_and_none_is_empty(counts: list[int], size: int) -> None:
    bounds = cache_files.shard_bounds(np.array(counts), size).tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(counts)
    tokens = [sum(counts[a:b]) for a, b in itertools.pairwise(bounds)]
    assert all(0 < num_tokens < size + 9 for num_tokens in tokens)
    assert all(a < b for a, b in itertools.pairwise(bounds))


def test_windows_without_a_token_of_their_own_are_kept(write: Any, text: TokenWindows) -> None:
    """Special ones alone: such windows hold nothing, at either end and in the middle."""
    tokens = text.tokens.copy()
    for row in (0, 7, 8, len(text) - 1):
        tokens[text.starts[row] : text.starts[row] + text.lengths[row]] = next(iter(text.special_ids))
    sparse = dataclasses.replace(text, tokens=tokens)
    cache = write(windows=sparse, shard_size_bytes=1)
    assert cache.manifest.num_shards == len(text) - 4
    assert len(cache.read([0, 7, 8])) == 0
    got = sorted(itertools.chain.from_iterable(part.positions.tolist() for _, part in cache.in_order(3)))
    assert got == sorted(sparse.batch(range(len(text))).positions[sparse.batch(range(len(text))).keep].tolist())
    with pytest.raises(ValueError, match="every token of the text is a special one"):
        write(windows=dataclasses.replace(text, tokens=np.zeros_like(tokens)), overwrite=True)


def test_a_place_may_be_called_by_its_module_path(shared: Path) -> None:
    cache = CachedActivations.open(shared)
    expected = next(cache.stream([HOOK], batch_size_tokens=50, config=config())).values[HOOK]
    for name in (HOOK, "transformer.h.1.output"):
        assert torch.equal(next(cache.stream([name], batch_size_tokens=50, config=config()).at(name)), expected)
    assert cache.width("transformer.h.0.mlp.c_fc.output") == 64
    for name in ("transformer.h.1.input", "transformer.h.2"):
        with pytest.raises(ValueError, match=f"holds activations at {HOOK}, {WIDE}, not at {name}"):
            cache.stream([name])


# going on with a write


def test_a_cache_is_written_again_to_the_same_bytes(write: Any, shared: Path, tmp_path: Path) -> None:
    assert files(write().folder) == files(shared)


class Stopped(BaseException):
    """Nothing catches it: as if the process had ended."""


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """``stopping(n, error)``: the n-th sync or rename of files from now on fails, and leaves what had been done."""

    def stop(n: int, error: BaseException) -> None:
        count = itertools.count(1)

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                if next(count) == n:
                    raise error
                return original(*arguments)

            return call

        monkeypatch.setattr(os, "fsync", counted(_FSYNC))
        monkeypatch.setattr(Path, "replace", counted(_REPLACE))

    return stop


_FSYNC, _REPLACE = lambda handle: None, Path.replace  # that bytes reach the disk is not seen here


@pytest.mark.parametrize("error", ["stop", "full"])
def test_stopped_at_any_moment_a_write_goes_on_to_the_same_bytes(
    write: Any, tmp_path: Path, stopping: Any, error: str
) -> None:
    """Each file is synced, renamed and its folder synced: all of these moments, one after the other."""
    stopping(0, Stopped())
    size = {"shard_size_bytes": 5 * SHARD}
    whole = files(write(tmp_path / "whole", **size).folder)
    tokens = [entry["num_tokens"] for entry in json.loads(whole["manifest.json"])["shards"].values()]
    assert len(tokens) == 4
    for n in itertools.count(1):
        folder = tmp_path / f"cache{n}"
        stopping(n, Stopped() if error == "stop" else OSError(errno.ENOSPC, "No space left on device"))
        stopped: BaseException | None = None
        try:
            write(folder, **size)
        except (Stopped, DiskTooSmall) as failed:
            stopped = failed
        stopping(0, Stopped())
        if stopped is None:
            break
        if error == "full":
            assert getattr(stopped, "filename", None) == str(folder)
        present = files(folder)
        assert not [name for name in present if name.endswith(".partial")]
        assert all(whole[name] == data for name, data in present.items() if name != "manifest.json")
        if "manifest.json" not in present:  # a start that was cut off: nothing to go on with
            write(folder, **size)
            assert files(folder) == whole
            continue
        done = len(json.loads(present["manifest.json"])["shards"])
        if done < len(tokens):
            with pytest.raises(ValueError, match=f"is not finished: it has {done} of 4 shards"):
                CachedActivations.open(folder)
        reported: list[tuple[int, int]] = []
        without_text: dict[str, Any] = {"windows": None} if n % 2 else {}
        write(folder, resume=True, on_progress=lambda *both, to=reported: to.append(both), **size, **without_text)
        assert files(folder) == whole
        assert sorted(reported) == reported
        assert reported[-1:] == [(sum(tokens[done:]), sum(tokens[done:]))][: 4 - done]
    assert n == 3 * (2 + 1 + 2 * 4) + 1  # text, manifest, and for each shard itself and the manifest again


def test_what_a_kill_leaves_beside_is_removed(write: Any, shared: Path, tmp_path: Path) -> None:
    """A process that is killed cleans nothing up: a half-written file, and a shard that no manifest names yet."""
    whole, folder = files(shared), tmp_path / "cache"
    folder.mkdir()
    for name in ("text.safetensors.partial", "documents.jsonl"):
        (folder / name).write_bytes(b"half")
    write(folder)
    assert files(folder) == whole
    manifest = json.loads(whole["manifest.json"])
    last = sorted(manifest["shards"])[-1]
    del manifest["shards"][last]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / last).write_bytes(b"half")
    (folder / f"{last}.partial").write_bytes(b"half")
    write(folder, resume=True)
    assert {**files(folder), "manifest.json": b""} == {**whole, "manifest.json": b""}
    assert json.loads((folder / "manifest.json").read_text()) == json.loads(whole["manifest.json"])


def test_resuming_reads_only_what_is_missing(write: Any, tiny: LanguageModel, shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(shared, folder)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    first, damaged, gone = sorted(shards)[0], sorted(shards)[2], sorted(shards)[4]
    os.truncate(folder / damaged, 1000)
    (folder / gone).unlink()
    for name in (damaged, gone):
        with pytest.raises(ValueError, match=name):
            CachedActivations.open(folder)
    with Forwards(tiny) as read:
        write(folder, resume=True)
    # and one batch to see whether the model is still the same
    assert sum(read) == shards[damaged]["num_windows"] + shards[gone]["num_windows"] + 1
    assert files(folder) == files(shared)
    os.truncate(folder / first, 10)  # what the model is compared with then is another one
    write(folder, resume=True)
    assert files(folder) == files(shared)
    with Forwards(tiny) as read:
        assert write(folder, resume=True).num_tokens == sum(entry["num_tokens"] for entry in shards.values())
    assert not read


def unfinished(shared: Path, folder: Path) -> Path:
    """A copy of which the last shard is missing."""
    shutil.copytree(shared, folder)
    sorted(folder.glob("shard-*"))[-1].unlink()
    return folder


def test_another_model_of_the_same_name_is_refused(
    write: Any, tiny: LanguageModel, shared: Path, tmp_path: Path
) -> None:
    folder = unfinished(shared, tmp_path / "cache")
    weight = tiny.module.transformer.h[0].mlp.c_fc.weight
    before = weight.clone()
    with torch.no_grad():
        weight.mul_(1.1)
    try:
        with pytest.raises(
            ValueError, match=r"was begun with another model of that name: at transformer.* differ by \d+%"
        ):
            write(folder, resume=True)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    write(folder, resume=True)
    assert files(folder) == files(shared)


def test_going_on_with_other_settings_is_refused_with_both_shown(
    write: Any, shared: Path, tmp_path: Path, documents: Any, tokenizer: Any, text: TokenWindows
) -> None:
    folder = unfinished(shared, tmp_path / "cache")
    wider = TokenWindows.build(documents[:6], tokenizer, WindowConfig(context_size=20, packing="separate"))
    longer = TokenWindows.build(documents[:7], tokenizer, text.config)
    for change, said in (
        ({"dtype": "bfloat16"}, "cache.dtype is 'float32' in the cache, and 'bfloat16' is asked for"),
        ({"hook_points": [HOOK]}, rf"cache.hook_points is \['{HOOK}', '{WIDE}'\] in the cache, and \['{HOOK}'\] is"),
        ({"exclude_special_tokens": False}, "exclude_special_tokens is True in the cache, and False is asked for"),
        ({"windows": wider}, "windows.context_size is 16 in the cache, and 20 is asked for"),
        ({"windows": longer}, r"was begun with another text \(\d+ tokens, now \d+\)|another text"),
        ({"dataset": DatasetConfig(name="x.jsonl")}, "dataset.name is None in the cache, and 'x.jsonl' is asked for"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            write(folder, resume=True, **change)
    assert len(files(folder)) == len(files(shared)) - 1


def test_what_is_there_is_not_replaced_unasked(write: Any, shared: Path, tmp_path: Path) -> None:
    folder = unfinished(shared, tmp_path / "cache")
    before = files(folder)
    num_shards = sum(name.startswith("shard") for name in files(shared))
    with pytest.raises(
        FileExistsError, match=f"holds {num_shards - 1} of {num_shards} shards of a cache; pass --resume"
    ):
        write(folder)
    with pytest.raises(ValueError, match="overwrite and resume exclude each other"):
        write(folder, resume=True, overwrite=True)
    assert files(folder) == before
    write(folder, overwrite=True)
    assert files(folder) == files(shared)
    with pytest.raises(FileExistsError, match="already holds a cache; pass --overwrite to replace it"):
        write(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match="holds shards without a manifest"):
        write(folder, resume=True)
    write(folder, overwrite=True, dtype="float16")
    (folder / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match=r"files that are not a cache's \(thesis.tex\)"):
        write(folder, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        write(folder / "thesis.tex")
    with pytest.raises(ValueError, match="holds no cache to go on with"):
        write(tmp_path / "new", windows=None, resume=True)


# bad input


def test_damage_is_named(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(shared, folder)
    third = folder / "shard-00002.safetensors"
    size = third.stat().st_size
    os.truncate(third, size - 1)
    with pytest.raises(
        ValueError, match=f"shard-00002.safetensors is truncated: {size - 1:,} bytes instead of {size:,}"
    ):
        CachedActivations.open(folder)
    os.truncate(third, size)  # the size is right again, the last byte is not
    third.write_bytes(files(shared)[third.name][:-1] + b"\xff")
    cache = CachedActivations.open(folder)
    with pytest.raises(ValueError, match=r"shard-00002.safetensors: the checksum does not match"):
        cache.verify()
    with pytest.raises(ValueError, match=r"shard-00002.safetensors: the checksum does not match"):
        CachedActivations.open(folder, verify=True)
    third.unlink()
    with pytest.raises(ValueError, match=r"shard-00002.safetensors is missing; .* --resume writes it again"):
        CachedActivations.open(folder)
    seen: list[tuple[int, int]] = []
    intact = CachedActivations.open(shared, verify=True)
    intact.verify(lambda *both: seen.append(both))
    total = sum(len(data) for name, data in files(shared).items() if name != "manifest.json")
    assert seen[-1] == (total, total)
    assert len(seen) == len(files(shared)) - 1


def test_a_shard_that_is_changed_while_the_cache_is_open_is_refused(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(shared, folder)
    cache = CachedActivations.open(folder)
    path = folder / "shard-00000.safetensors"
    data = path.read_bytes()
    for changed in (data[:-8], data.replace(b"F32", b"I32")):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"shard-00000.safetensors has been changed"):
            cache.read([0])


def test_a_manifest_that_cannot_be_understood_is_refused(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match=r"is not a cache of activations: .*no such folder"):
        CachedActivations.open(folder)
    shutil.copytree(shared, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, said in (
        ({"version": 2}, "it has version 2, and this saescope reads version 1"),
        ({"format": "photographs"}, "does not say that it is one of activations"),
        ({"num_tokens": "many"}, "num_tokens: "),
        ({"dtype": "int8"}, "dtype: "),
        ({"num_windows": 3}, r"contradicts itself: its shards hold [\d,]+ tokens of \d+ windows"),
    ):  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=said):
            CachedActivations.open(folder)
    for data in (b'{"format": ', b"\xff\xfe", b"[]"):
        (folder / "manifest.json").write_bytes(data)
        with pytest.raises(ValueError, match=r"manifest.json is not the manifest of a cache"):
            CachedActivations.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no manifest.json \(it holds \['documents.jsonl'"):
        CachedActivations.open(folder)


def test_a_cache_of_something_else_is_refused_with_both_shown(shared: Path) -> None:
    cache = CachedActivations.open(shared)
    cache.require({"model": {"name": "tiny"}, "windows": {"context_size": 16}}, [HOOK])
    with pytest.raises(
        ValueError,
        match=r"does not fit: model.name is 'tiny' in the cache, and 'gpt2' is asked for; windows.context_size is 16 in",
    ):
        cache.require({"model": {"name": "gpt2"}, "windows": {"context_size": 64}}, [HOOK])
    with pytest.raises(ValueError, match="exclude_special_tokens is True in the cache, and False is asked for"):
        cache.stream(batch_size_tokens=50, config=config(exclude_special_tokens=False))
    with pytest.raises(ValueError, match="less than one batch of 9000"):
        cache.stream(batch_size_tokens=9000)
    with pytest.raises(ValueError, match="hook_points is a list of at least one name"):
        cache.stream(HOOK)
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        cache.stream(batch_size_tokens=50, device="abacus")


def scaled(model: LanguageModel, factor: float) -> Any:
    """``model`` with the activations at HOOK times ``factor`` at the token of the text at position 30."""
    original = model.read

    def read(ids: Tensor, hook_points: Any, **settings: Any) -> dict[str, Tensor]:
        values = original(ids, hook_points, **settings)
        return {name: value * (factor if name == HOOK else 1) for name, value in values.items()}

    return read


@pytest.mark.parametrize(
    ("factor", "dtype", "said"),
    [
        (
            1e6,
            "float16",
            rf"activations at {HOOK} reach [\d.e+]+, and float16 ends at 6.55e\+04; store them as bfloat16",
        ),
        (
            float("nan"),
            "float32",
            rf"tiny gives activations at {HOOK} that are not finite \(NaN or infinite\), first",
        ),
        (float("inf"), "bfloat16", "not finite"),
    ],
)
def test_values_that_cannot_be_stored_are_refused(
    write: Any,
    tiny: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    factor: float,
    dtype: str,
    said: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "read", scaled(tiny, factor))
        with pytest.raises(ValueError, match=said):
            write(dtype=dtype)
    assert not [name for name in files(tmp_path / "cache") if "shard" in name or "partial" in name]
    if dtype == "float16":
        with monkeypatch.context() as patch:
            patch.setattr(tiny, "read", scaled(tiny, factor))
            write(dtype="bfloat16", overwrite=True)


def test_the_first_token_that_is_not_finite_is_named(
    write: Any, tiny: LanguageModel, text: TokenWindows, monkeypatch: Any
) -> None:
    row, place = 9, 5
    position = int(text.batch([row]).positions[0, place])
    original = tiny.read

    def read(ids: Tensor, *arguments: Any, **settings: Any) -> dict[str, Tensor]:
        values = original(ids, *arguments, **settings)
        if torch.equal(ids, text.batch([row]).ids):
            values[WIDE][0, place:, 3] = float("nan")
        return values

    monkeypatch.setattr(tiny, "read", read)
    with pytest.raises(ValueError, match=f"at {WIDE} that are not finite .* first at position {position} of the text"):
        write()


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    write: Any, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(len(data) for name, data in files(shared).items() if name.startswith("shard"))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 2000))
        with pytest.raises(
            DiskTooSmall, match=r"the disk is too small: [\d.]+ kB are needed and [\d.]+ kB are free"
        ) as no:
            write()
        assert no.value.errno == errno.ENOSPC
        assert not files(tmp_path / "cache")
    folder = unfinished(shared, tmp_path / "begun")
    before = files(folder)
    last = len(files(shared)[sorted(files(shared))[-3]])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=last - 1))
        with pytest.raises(DiskTooSmall, match="the disk is too small"):
            write(folder, resume=True)
        assert {**files(folder), "manifest.json": b""} == {**before, "manifest.json": b""}
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=last))
        write(folder, resume=True)
    capacity = sum(map(len, files(shared).values())) + 20_000

    def left_over(path: Path) -> Any:
        return usage._replace(free=capacity - sum(map(len, files(path).values())))

    with monkeypatch.context() as patch:  # what is replaced counts as free
        patch.setattr(shutil, "disk_usage", left_over)
        write(folder, overwrite=True)
        for part in sorted(folder.glob("shard-*"))[:4]:  # and so does what is damaged, even by one byte
            os.truncate(part, part.stat().st_size - 1)
        write(folder, resume=True)
    assert files(folder) == files(shared)


def test_a_disk_that_becomes_full_says_what_is_still_needed(
    write: Any, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = json.loads((shared / "manifest.json").read_text())
    sizes = [entry["num_tokens"] * (8 + 4 * 80) for entry in manifest["shards"].values()]
    original, written = cache_writing.write_file, itertools.count()

    def write_file(path: Path, parts: Any) -> Any:
        if path.name.startswith("shard") and next(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, parts)

    monkeypatch.setattr(cache_writing, "write_file", write_file)
    needed = cache_files.readable_size(sum(sizes[3:]))
    with pytest.raises(
        DiskTooSmall, match=rf"with 3 of {len(sizes)} shards written, .*; {needed} more are needed, .*free"
    ):
        write()
    monkeypatch.undo()
    write(resume=True)
    assert files(tmp_path / "cache") == files(shared)


def test_wrong_requests_are_refused_before_anything_is_read(write: Any, tiny: LanguageModel, tmp_path: Path) -> None:
    with Forwards(tiny) as read:
        for change, said in (
            ({"dtype": "int8"}, "a cache has dtype float32, bfloat16, float16, not 'int8'"),
            ({"hook_points": "blocks"}, "hook_points is a list of at least one name"),
            ({"hook_points": [HOOK, "transformer.h.9"]}, "no hook point 'transformer.h.9'"),
            ({"shard_size_bytes": 0}, "must be at least 1"),
            ({"model_batch_size_windows": 0}, "must be at least 1"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=said):
                write(**change)
    assert not read
    assert not (tmp_path / "cache").exists()


def test_sizes_in_words() -> None:
    said = [cache_files.readable_size(n) for n in (12, 1234, 45_600_000, 512_000_000_000, 2.5e12)]
    assert said == ["12 bytes", "1.23 kB", "45.6 MB", "512 GB", "2.5 TB"]


def test_a_pair_keeps_input_and_target_together(shared: Path) -> None:
    cache = CachedActivations.open(shared)
    pairs = cache.stream(batch_size_tokens=50, config=config()).pair(HOOK, WIDE)
    plain = cache.stream(batch_size_tokens=50, config=config())
    for batch in take(plain, 6):
        pair = next(pairs)
        assert isinstance(pair, TrainingBatch)
        assert torch.equal(pair.x, batch.values[HOOK])
        assert pair.target is not None
        assert torch.equal(pair.target, batch.values[WIDE])
