"""The stream: every token once per pass with the model's own values, well mixed, and resumable at any step."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from saescope.activations import ActivationBatch, ActivationStream, SideBySide, StreamConfig, TokenWindows, WindowConfig
from saescope.dictionaries import Dictionary, architecture
from saescope.models import HookPointError, LanguageModel
from saescope.training import TrainingBatch, TrainingConfig, train

HOOK, OTHER = "transformer.h.1", "blocks.2.hook_resid_pre"
WIDE = "transformer.h.0.mlp.c_fc"  # 64 wide, the others are 16 wide
Make = Callable[..., ActivationStream]


@pytest.fixture(scope="session")
def text(documents: Any, tokenizer: Any) -> TokenWindows:
    """Few windows, some padded: passes are short."""
    config = WindowConfig(context_size=16, packing="separate")
    return TokenWindows.build(documents[:6], tokenizer, config)


@pytest.fixture
def make(tiny: LanguageModel, text: TokenWindows) -> Make:
    def stream(
        windows: TokenWindows = text,
        hook_points: list[str] | None = None,
        batch: int = 50,
        seed: int = 0,
        model: LanguageModel = tiny,
        **config: Any,
    ) -> ActivationStream:
        settings = StreamConfig(**{"buffer_size_tokens": 200, "model_batch_size_windows": 4, **config})
        return ActivationStream(
            model, windows, hook_points or [HOOK], batch_size_tokens=batch, config=settings, seed=seed
        )

    return stream


def take(stream: ActivationStream, num_batches: int) -> list[ActivationBatch]:
    return list(itertools.islice(stream, num_batches))


def same(a: list[ActivationBatch], b: list[ActivationBatch]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(
        torch.equal(x.positions, y.positions)
        and x.values.keys() == y.values.keys()
        and all(torch.equal(x.values[name], y.values[name]) for name in x.values)
        for x, y in zip(a, b, strict=True)
    )


def read_window_by_window(model: LanguageModel, windows: TokenWindows, hook: str) -> dict[int, Tensor]:
    """The activation of every position of the text, each window read alone and without its padding."""
    found: dict[int, Tensor] = {}
    for number in range(len(windows)):
        batch = windows.batch([number])
        length = int(batch.attention.sum())
        values = model.read(batch.ids[:, :length], [hook])[hook][0]
        found |= dict(zip(batch.positions[0, :length].tolist(), values, strict=True))
    return found


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("packing", ["concatenate", "separate"])
def test_each_pass_holds_every_token_once_with_the_models_own_value(
    make: Make, tiny: LanguageModel, documents: Any, tokenizer: Any, packing: Any, exclude: bool
) -> None:
    config = WindowConfig(context_size=16, packing=packing)
    windows = TokenWindows.build(documents[:6], tokenizer, config)
    every = windows.batch(range(len(windows)))
    expected = Counter(every.positions[every.keep if exclude else every.attention].tolist())
    total = sum(expected.values())
    assert total == (windows.num_tokens if exclude else windows.num_attended)
    size = 8
    passes = size // math.gcd(size, total)  # after so many, a pass and a batch end together
    stream = make(windows, batch=size, exclude_special_tokens=exclude)
    batches: list[ActivationBatch] = []
    for done in range(1, passes + 1):
        batches += take(stream, done * total // size - len(batches))
        assert {len(batch.positions) for batch in batches} == {size}
        drawn = Counter(position for batch in batches for position in batch.positions.tolist())
        missing = {position: done * times - drawn[position] for position, times in expected.items()}
        assert drawn.keys() <= expected.keys()
        assert min(missing.values()) >= 0
        assert sum(missing.values()) == done * total % size  # left over: less than a batch
    values = read_window_by_window(tiny, windows, HOOK)
    for batch in batches[:: len(batches) // 40]:
        assert batch.values[HOOK].dtype == torch.float32
        for position, value in zip(batch.positions.tolist(), batch.values[HOOK], strict=True):
            if position >= 0:
                torch.testing.assert_close(value, values[position], atol=1e-5, rtol=1e-4)


def test_padding_is_hidden_from_a_model_that_sees_both_sides(make: Make, tokenizer: Any, text: TokenWindows) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    model, hook = LanguageModel(BertForMaskedLM(config), tokenizer, "tiny-bert"), "bert.encoder.layer.1"
    values = read_window_by_window(model, text, hook)
    for batch in take(make(model=model, hook_points=[hook]), 10):
        expected = torch.stack([values[position] for position in batch.positions.tolist()])
        torch.testing.assert_close(batch.values[hook], expected, atol=1e-5, rtol=1e-4)


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


def test_a_read_that_fails_is_made_again(make: Make, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a block: neither what the block before left over nor the place is lost."""
    expected, original = take(make(), 20), tiny.read
    for moment in (1, 3, 6, 9):
        stream, got, calls = make(), [], itertools.count(1)

        def read(*arguments: Any, calls: Any = calls, moment: int = moment, **settings: Any) -> Any:
            if next(calls) == moment:
                raise InterruptedError
            return original(*arguments, **settings)

        failures = 0
        with monkeypatch.context() as patch:
            patch.setattr(tiny, "read", read)
            while len(got) < 20:
                try:
                    got.append(next(stream))
                except InterruptedError:
                    failures += 1
        assert failures == 1
        assert same(got, expected)


def test_two_hook_points_share_one_forward_pass(make: Make, tiny: LanguageModel, text: TokenWindows) -> None:
    one, other = make(), make(hook_points=[OTHER])
    both = make(hook_points=[HOOK, OTHER])
    with Forwards(tiny) as windows:
        alone = take(one, 12)
    with Forwards(tiny) as windows_of_both:
        together = take(both, 12)
    assert windows == windows_of_both
    assert max(windows) == 4
    assert set(together[0].values) == {HOOK, OTHER}
    for batch, first, second in zip(together, alone, take(other, 12), strict=True):
        assert torch.equal(batch.positions, first.positions)
        assert torch.equal(batch.positions, second.positions)
        torch.testing.assert_close(batch.values[HOOK], first.values[HOOK])
        torch.testing.assert_close(batch.values[OTHER], second.values[OTHER])


def test_nothing_is_read_before_it_is_needed(make: Make, tiny: LanguageModel) -> None:
    stream = make()
    with Forwards(tiny) as windows:
        assert not windows
        next(stream)
        assert sum(windows) == pytest.approx(stream.buffer_windows, abs=1)  # one block, and no more
        block = len(windows)
        next(stream)
        assert len(windows) == block


def test_the_seed_decides_everything(make: Make) -> None:
    assert same(take(make(seed=3), 40), take(make(seed=3), 40))
    first, second = (torch.cat([b.positions for b in take(make(seed=seed), 4)]) for seed in (3, 4))
    assert not torch.equal(first, second)
    assert set(first.tolist()) != set(second.tolist())  # other windows come first, not only another order within


def test_passes_differ_in_order(make: Make, text: TokenWindows) -> None:
    """Also where one buffer holds the whole text, so that a pass has no order of windows."""
    size = next(size for size in range(20, 100) if text.num_tokens % size == 0)
    for buffer in (200, 10_000):
        stream = make(batch=size, buffer_size_tokens=buffer)
        passes = [torch.cat([b.positions for b in take(stream, text.num_tokens // size)]) for _ in range(3)]
        orders = [tuple(positions.tolist()) for positions in passes]
        assert len(set(orders)) == 3
        assert len({tuple(sorted(order)) for order in orders}) == 1
        if stream.num_blocks > 1:  # other windows meet in the first block of each
            first = torch.cat([positions[: 5 * stream.buffer_windows] for positions in passes])
            met = np.unique(np.searchsorted(text.starts, first.numpy(), side="right"))
            assert len(met) > 1.5 * stream.buffer_windows


@pytest.mark.parametrize(("batch", "buffer"), [(50, 200), (64, 64), (33, 10_000)])
def test_resumed_at_any_step_it_goes_on_bit_for_bit(make: Make, text: TokenWindows, batch: int, buffer: int) -> None:
    def stream() -> ActivationStream:
        return make(hook_points=[HOOK, OTHER], batch=batch, buffer_size_tokens=buffer)

    length = 2 * text.num_tokens // batch + 6  # into the third pass
    straight, states = [], []
    whole = stream()
    for _ in range(length):
        states.append(whole.state_dict())
        straight.append(next(whole))
    assert states[-1]["epoch"] == 2
    for step, state in enumerate(states):
        values = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        assert all(len(tensor) < batch for tensor in tensors.values())  # a checkpoint stays small
        resumed = stream()
        next(resumed)  # whatever it did before is forgotten
        resumed.load_state_dict({**json.loads(json.dumps(values)), **tensors})
        following = straight[step : step + 3] if step % 7 else straight[step:]
        assert same(take(resumed, len(following)), following)


def test_a_state_is_not_changed_by_going_on(make: Make) -> None:
    stream = make()
    take(stream, 9)
    state = stream.state_dict()
    copy = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    expected = take(stream, 15)
    stream.load_state_dict(state)
    assert same(take(stream, 15), expected)
    assert all(np.array_equal(state[name], copy[name]) for name in copy)


def test_a_batch_owns_its_memory(make: Make) -> None:
    """The trainer scales in place: no other batch may see it, and no batch may hold on to the whole buffer."""
    expected = take(make(), 12)
    stream, got = make(), []
    for _ in range(12):
        batch = next(stream)
        got.append(ActivationBatch({n: v.clone() for n, v in batch.values.items()}, batch.positions.clone()))
        for tensor in (batch.values[HOOK], batch.positions):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            tensor.zero_()
        carry = stream.state_dict()["carry.values.0"]
        assert carry.untyped_storage().nbytes() == carry.nbytes
    assert same(got, expected)


def test_one_hook_point_alone(make: Make) -> None:
    stream = make(hook_points=[HOOK, OTHER])
    view = stream.at(OTHER)
    expected = [batch.values[OTHER] for batch in take(make(hook_points=[HOOK, OTHER]), 9)]
    got = [next(view) for _ in range(5)]
    state = view.state_dict()
    next(view)
    view.load_state_dict(state)
    got += [next(view) for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    with pytest.raises(ValueError, match=f"the stream reads {HOOK}, .*not transformer.h.0"):
        stream.at("transformer.h.0")


def pieces(item: Any) -> list[Tensor]:
    return [item.x, item.target] if isinstance(item, TrainingBatch) else [item]


def test_a_pair_is_input_and_target_of_the_same_tokens(make: Make, tiny: LanguageModel, text: TokenWindows) -> None:
    pairs = make(hook_points=[WIDE, HOOK, OTHER]).pair(HOOK, WIDE)
    plain = make(hook_points=[WIDE, HOOK, OTHER])
    inputs, outputs = (read_window_by_window(tiny, text, name) for name in (HOOK, WIDE))
    for batch in take(plain, 9):
        pair = next(pairs)
        assert isinstance(pair, TrainingBatch)
        assert pair.context is None
        assert torch.equal(pair.x, batch.values[HOOK])
        assert pair.target is not None
        assert torch.equal(pair.target, batch.values[WIDE])
        for place, position in enumerate(batch.positions.tolist()):
            torch.testing.assert_close(pair.x[place], inputs[position], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(pair.target[place], outputs[position], atol=1e-5, rtol=1e-4)


def test_joined_lays_hook_points_side_by_side_in_the_order_given(make: Make) -> None:
    """The order of the call, not that of the stream: a crosscoder's sources are told apart by their place."""
    names = [HOOK, OTHER, WIDE]
    batch = next(make(hook_points=names))
    for order in ([WIDE, HOOK], [HOOK, WIDE], [OTHER, WIDE, HOOK]):
        joined = next(make(hook_points=names).joined(order))
        assert isinstance(joined, Tensor)
        start = 0
        for name in order:
            width = batch.values[name].shape[1]
            assert torch.equal(joined[:, start : start + width], batch.values[name])
            start += width
        assert joined.shape == (50, start)


def test_views_resume_like_the_stream_behind_them(make: Make) -> None:
    def views(stream: ActivationStream) -> list[Any]:
        return [stream.at(WIDE), stream.pair(HOOK, WIDE), stream.joined([WIDE, HOOK])]

    def stream() -> ActivationStream:
        return make(hook_points=[HOOK, WIDE])

    for number in range(3):
        whole, states, straight = views(stream())[number], [], []
        for _ in range(12):
            states.append(whole.state_dict())
            straight.append(pieces(next(whole)))
        for step in (0, 3, 4, 11):
            resumed = views(stream())[number]
            next(resumed)
            resumed.load_state_dict(states[step])
            for expected in straight[step:]:
                assert all(torch.equal(a, b) for a, b in zip(pieces(next(resumed)), expected, strict=True))


def test_a_view_of_what_the_stream_does_not_read_is_refused(make: Make) -> None:
    stream = make(hook_points=[HOOK, OTHER])
    words = f"the stream reads {HOOK}, {OTHER}, not {WIDE}"
    for ask in (
        lambda: stream.at(WIDE), lambda: stream.pair(WIDE, HOOK), lambda: stream.pair(HOOK, WIDE),
        lambda: stream.joined([HOOK, WIDE]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            ask()


@pytest.fixture(scope="module")
def second(tokenizer: Any) -> LanguageModel:
    """Another model that reads the same tokens: 2 layers, 24 wide."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=320, n_positions=32, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return LanguageModel(GPT2LMHeadModel(config), tokenizer, "second")


def test_side_by_side_holds_two_models_values_of_the_same_tokens(
    make: Make, tiny: LanguageModel, second: LanguageModel, text: TokenWindows
) -> None:
    positions = [batch.positions.tolist() for batch in take(make(), 30)]
    assert sum(map(len, positions)) > 2 * text.num_tokens  # into the third pass
    both = SideBySide([make(hook_points=[HOOK, WIDE]), make(model=second, hook_points=["transformer.h.0"])])
    parts = [
        read_window_by_window(model, text, name)
        for model, name in ((tiny, HOOK), (tiny, WIDE), (second, "transformer.h.0"))
    ]
    for tokens in positions:
        x = next(both)
        assert x.shape == (50, 16 + 64 + 24)
        expected = torch.stack([torch.cat([part[position] for part in parts]) for position in tokens])
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-4)


def test_side_by_side_refuses_streams_of_other_tokens(
    make: Make, second: LanguageModel, text: TokenWindows, documents: Any, tokenizer: Any
) -> None:
    longer = TokenWindows.build(documents[:7], tokenizer, text.config)
    others = (
        {"seed": 1}, {"batch": 40}, {"buffer_size_tokens": 150}, {"windows": longer},
        {"exclude_special_tokens": False},
    )  # fmt: skip
    for change in others:
        streams = [make(), make(**{"model": second, "hook_points": ["transformer.h.0"], **change})]
        with pytest.raises(ValueError, match="the streams do not give the same tokens; they need the same windows"):
            take(SideBySide(streams), 30)  # type: ignore[arg-type]
    whole = [make(batch=text.num_tokens, buffer_size_tokens=10_000, seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="the streams do not give the same tokens"):
        next(SideBySide(whole))  # the same in every batch, in another order
    stream = make()
    with pytest.raises(ValueError, match="the streams do not give the same tokens"):
        next(SideBySide([stream, stream]))  # it goes on between the two
    with pytest.raises(ValueError, match="give at least one stream"):
        SideBySide([])


def test_side_by_side_refuses_another_text_of_the_same_layout(make: Make, text: TokenWindows) -> None:
    """Every place is there in both texts; only the tokens at them differ."""
    shifted = np.where(np.isin(text.tokens, list(text.special_ids)), text.tokens, (text.tokens + 1) % 319 + 1)
    other = dataclasses.replace(text, tokens=shifted.astype(text.tokens.dtype))
    assert other.num_tokens == text.num_tokens
    with pytest.raises(ValueError, match="the streams do not give the same tokens"):
        take(SideBySide([make(), make(other)]), 3)  # type: ignore[arg-type]


def test_side_by_side_resumes_bit_for_bit(make: Make, second: LanguageModel, text: TokenWindows) -> None:
    def streams() -> list[ActivationStream]:
        """Eleven, so that one number begins with another."""
        return [
            make(hook_points=[HOOK, OTHER]), *(make(model=second, hook_points=["transformer.h.0"]) for _ in range(9)),
            make(hook_points=[WIDE]),
        ]  # fmt: skip

    whole, states, straight = SideBySide(streams()), [], []
    for _ in range(2 * text.num_tokens // 50 + 2):
        states.append(whole.state_dict())
        straight.append(next(whole))
    for step in (0, 1, 5, len(states) - 2):
        values = {name: value for name, value in states[step].items() if not isinstance(value, Tensor)}
        tensors = {name: value for name, value in states[step].items() if isinstance(value, Tensor)}
        resumed = SideBySide(streams())
        next(resumed)
        resumed.load_state_dict({**json.loads(json.dumps(values)), **tensors})
        for expected in straight[step : step + 4]:
            assert torch.equal(next(resumed), expected)


def build(name: str, **widths: Any) -> Dictionary:
    cls = architecture(name)
    k = {} if name == "transcoder" else {"k": 3}
    return cls(cls.Config(d_sae=32, **k, **widths), seed=0)


@pytest.mark.parametrize("kind", ["pair", "joined", "side by side"])
def test_training_on_a_view_resumes_to_the_same_weights(
    make: Make, second: LanguageModel, tmp_path: Any, kind: str
) -> None:
    def parts() -> tuple[Dictionary, Any]:
        if kind == "pair":
            return build("transcoder", d_in=16, d_out=64), make(hook_points=[HOOK, WIDE]).pair(HOOK, WIDE)
        if kind == "joined":
            widths = {"d_in": 80, "source_widths": (16, 64)}
            return build("topk_crosscoder", **widths), make(hook_points=[HOOK, WIDE]).joined([HOOK, WIDE])
        widths = {"d_in": 40, "source_widths": (16, 24)}
        streams = SideBySide([make(), make(model=second, hook_points=["transformer.h.0"])])
        return build("topk_crosscoder", **widths), streams

    config = TrainingConfig(
        num_tokens=20 * 50, batch_size_tokens=50, num_warmup_steps=2, checkpoint_every_n_steps=7, log_every_n_steps=50
    )
    whole, batches = parts()
    train(whole, batches, config)
    stopped, batches = parts()

    def stop(done: int, total: int) -> None:
        if done == 11:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(stopped, batches, config, folder=tmp_path, on_step=stop)
    resumed, batches = parts()
    train(resumed, batches, config, folder=tmp_path, resume=True)
    for name, parameter in whole.named_parameters():
        assert parameter.equal(resumed.get_parameter(name)), name
        assert not parameter.equal(stopped.get_parameter(name)), name


@pytest.mark.parametrize("buffer", [300, 1000, 2500])
def test_a_batch_mixes_as_many_documents_as_the_log_says(
    make: Make, tiny: LanguageModel, windows: TokenWindows, buffer: int
) -> None:
    """Neighbours in a batch come from the same window as often as chance has it among the windows in the buffer."""
    stream = make(windows, batch=20, buffer_size_tokens=buffer)
    stated = int(stream.mixing().split("drawn from ")[1].split()[0].replace(",", ""))
    assert 0.5 * buffer <= stated <= 1.05 * buffer
    with Forwards(tiny) as read:
        next(stream)
    per_window = windows.num_tokens / len(windows)
    assert sum(read) == pytest.approx(stated / per_window, abs=1)  # rows resident, measured
    hits = pairs = 0
    for batch in itertools.islice(stream, 10 * windows.num_tokens // 20):
        number = np.searchsorted(windows.starts, batch.positions.numpy(), side="right")
        hits += int((number[1:] == number[:-1]).sum())
        pairs += len(number) - 1
    # of the stated tokens and half a batch that the block before left over, so many others are of the same window
    expected = (per_window - 1) / (stated + 20 / 2 - 1)
    assert expected == pytest.approx(1 / stream.buffer_windows, rel=0.15)
    assert hits / pairs == pytest.approx(expected, rel=0.1, abs=3 * (expected / pairs) ** 0.5)


def test_no_block_is_short(make: Make, tiny: LanguageModel, windows: TokenWindows) -> None:
    """A short last block of a pass would give batches from a window or two."""
    per_window = windows.num_tokens / len(windows)
    for wanted in (5, len(windows) // 2 - 1, len(windows) - 1, len(windows)):
        stream = make(windows, batch=20, buffer_size_tokens=round(wanted * per_window), model_batch_size_windows=9999)
        with Forwards(tiny) as blocks:
            take(stream, windows.num_tokens // 20)
        assert len(blocks) == stream.num_blocks
        assert max(blocks) - min(blocks) <= 1
        assert max(blocks) <= wanted


def test_mixing_in_words(make: Make, text: TokenWindows) -> None:
    said = make(batch=50, buffer_size_tokens=10_000).mixing()
    assert said == (
        f"each batch of 50 tokens is drawn from {text.num_tokens:,} mixed tokens "
        f"({len(text)} random windows of {len(text)})"
    )
    said = make(batch=50, buffer_size_tokens=10_000, exclude_special_tokens=False).mixing()
    assert f" {text.num_attended:,} mixed tokens" in said


def test_a_name_given_twice_is_read_once(make: Make) -> None:
    stream = make(hook_points=[HOOK, HOOK])
    assert same(take(stream, 8), take(make(), 8))
    assert sum(name.startswith("carry.values") for name in stream.state_dict()) == 1


def test_unknown_hook_point_is_refused_at_once(make: Make, tiny: LanguageModel, text: TokenWindows) -> None:
    with pytest.raises(HookPointError, match=r"no hook point 'transformer\.h\.9'; nearest: transformer\.h\."):
        make(hook_points=[HOOK, "transformer.h.9"])
    nothing: list[str] = []
    for names in (nothing, HOOK):
        with pytest.raises(ValueError, match="hook_points is a list of at least one name"):
            ActivationStream(tiny, text, names, batch_size_tokens=50)


def test_sizes_that_do_not_fit_are_refused(make: Make, text: TokenWindows) -> None:
    with pytest.raises(
        ValueError, match=r"batch_size_tokens = 201 must be at least 1 and at most buffer_size_tokens = 2"
    ):
        make(batch=201)
    with pytest.raises(ValueError, match=r"batch_size_tokens = 0 must be at least 1"):
        make(batch=0)
    too_many = text.num_tokens + 1
    with pytest.raises(ValueError, match=rf"too small: {text.num_tokens} tokens, less than one batch of {too_many}"):
        make(batch=too_many, buffer_size_tokens=too_many)
    make(batch=too_many, buffer_size_tokens=too_many, exclude_special_tokens=False)  # enough, special ones counted
    with pytest.raises(ValueError, match="model_batch_size_windows must be at least 1, got 0"):
        make(model_batch_size_windows=0)


def test_the_defaults_fit_together(tiny: LanguageModel, documents: Any, tokenizer: Any) -> None:
    """Only the required arguments, on a text of a little more than one batch."""
    windows = TokenWindows.build(documents * 2, tokenizer, WindowConfig(context_size=32))
    assert windows.num_tokens > 4096
    stream = ActivationStream(tiny, windows, [HOOK])
    assert next(stream).values[HOOK].shape == (4096, 16)
    assert next(stream).values[HOOK].shape == (4096, 16)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"batch_size_tokens": 32}, "batch_size_tokens was 64 and is 32"),
        ({"config": StreamConfig(buffer_size_tokens=256)}, "num_blocks was"),
        ({"hook_points": ["blocks.0.hook_resid_post"]}, "hook_points was"),
    ],
)
def test_a_position_of_another_stream_is_refused(tiny, windows, setting, said):
    settings = {
        "hook_points": ["blocks.1.hook_resid_post"], "batch_size_tokens": 64, "seed": 3,
        "config": StreamConfig(buffer_size_tokens=512),
    }  # fmt: skip
    stream = ActivationStream(tiny, windows, **settings)
    next(stream)
    other = ActivationStream(tiny, windows, **(settings | setting))
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(stream.state_dict())
