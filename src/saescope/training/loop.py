"""The training loop: pull a batch, step every dictionary that wants it, and now and then write a checkpoint.

The loop takes any iterator of ``[B, d_in]`` tensors, or of :class:`TrainingBatch` where there is more to a batch (what
a transcoder is to rebuild; what a loss on the model's output needs). An iterator with ``state_dict()`` and
``load_state_dict()`` (such as ``saescope.ActivationStream``) can be resumed: the same weights come out as from a run
that was never stopped.

Several dictionaries, of any architecture and size, can train on one stream in one pass (:func:`train_many`): the model
runs once, and every dictionary ends as it would have alone.

Activations are normalised, as a rule by one factor that brings their mean norm to sqrt(d_in), so that learning rates
and penalties mean the same for every model. It is measured before the first step and folded away whenever a dictionary
is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from saescope.dictionaries import Dictionary
from saescope.training.config import TrainingConfig
from saescope.training.interrupts import polite_interrupts
from saescope.training.losses import Loss
from saescope.training.prefetch import Prefetch
from saescope.training.records import (
    NonFiniteActivationsError,
    NonFiniteLossError,
    Resumable,
    StepMetrics,
    StreamEndedError,
    TrainingBatch,
    TrainingResult,
)
from saescope.training.run import Run


def train(
    dictionary: Dictionary,
    batches: Iterator[Tensor | TrainingBatch],
    config: TrainingConfig,
    *,
    loss: Loss | Callable[..., Tensor] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    on_metrics: Callable[[StepMetrics], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    source: str = "the stream",
    metadata: dict[str, Any] | None = None,
) -> TrainingResult:
    """Train ``dictionary`` in place. It works on raw activations before and after, also when training is interrupted.

    Args:
        dictionary: a new one, which is set up on the first tokens, or one to train further. Thresholds that the config
            of a new one names are in units of normalised activations.
        batches: activations, ``[batch_size_tokens, d_in]`` each, of any floating dtype; or :class:`TrainingBatch`.
        loss: what to minimise; by default the loss of the architecture. A function ``(x, x_hat, pre, f, dictionary)``
            that gives a scalar will do.
        folder: where ``metrics.jsonl`` and ``checkpoints/`` go; nothing is written when None.
        resume: go on from the newest checkpoint in ``folder``, if there is one.
        on_metrics: called with every line of the log. on_step: called with (steps done, steps in all).
        source: what the batches are, for error messages (the hook point).
        metadata: SAELens metadata written with checkpointed dictionaries.

    Raises:
        NonFiniteActivationsError: a batch holds NaN or infinity. The state before it is checkpointed first.
        NonFiniteLossError: the loss does, in float32. With ``autocast`` the step is skipped instead, and after
            ``max_nan_fallbacks`` of them the run goes on in float32.
        KeyboardInterrupt, SystemExit: after the step in hand, which is checkpointed, on Ctrl-C and SIGTERM.
        ValueError: the stream ends early, or a batch has another shape than announced.
        FileExistsError: the folder holds checkpoints and ``resume`` is not set.
    """
    run = Run(
        dictionary, config, loss=loss, folder=folder, on_metrics=on_metrics, source=source, metadata=metadata
    )  # fmt: skip
    return train_many([run], batches, resume=resume, on_step=on_step)[0]


def train_many(
    runs: Sequence[Run],
    batches: Iterator[Any],
    *,
    pick: Sequence[Callable[[Any], Tensor | TrainingBatch]] | None = None,
    resume: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> list[TrainingResult]:
    """Train several dictionaries in one pass over a stream; each ends with the weights that it would have got alone.

    Args:
        runs: what to train, how, and into which folder (see :class:`Run`); one batch size for all.
        batches: the stream. pick: for every run, what takes its tensor (or :class:`TrainingBatch`) out of what the
            stream gives, for example ``lambda batch: batch.values[hook_point]``; by default it is taken as it is.
        resume: every run goes on from the newest checkpoint in its folder. One that is ahead of the others waits.
        on_step: called with the steps done and in all, of the run with the most steps.

    Raises:
        ValueError: no runs, runs with different batch sizes or with one folder; and what :func:`train` raises.
    """
    _check(runs, pick)
    pick = pick or [lambda item: item] * len(runs)
    longest = max(runs, key=lambda run: run.config.num_steps)
    num_ahead = max(run.config.num_prefetched_batches for run in runs)
    stream = Prefetch(batches, num_ahead) if num_ahead else batches
    if num_ahead:
        pick = [lambda item, part=part: _refuse_context(part(item)) for part in pick]  # type: ignore[misc]
    with ExitStack() as at_the_end:
        for run in runs:
            at_the_end.callback(run.close)
        for run in runs:
            run.begin(resume=resume)
        position = _go_to(stream, runs)
        for run in runs:
            run.open_log()  # not before: a run that is refused costs the others nothing
        if isinstance(stream, Prefetch):
            at_the_end.callback(stream.close)
        interrupt = at_the_end.enter_context(polite_interrupts())

        while any(run.wants_more for run in runs):
            item = next(stream, None)
            if item is None:
                _refuse_early_end(runs)
                break
            position += 1
            state = stream.state_dict() if isinstance(stream, Resumable) else {}
            waiting = [run for run in runs if run.wants_more]

            _step_all(runs, pick, item, state, position)

            if on_step:
                on_step(longest.step, longest.config.num_steps)
            if interrupt.signal:
                for run in waiting:
                    run.checkpoint_if_new()
                interrupt.raise_if_asked()
            for run in waiting:
                if run.wants_more:
                    run.checkpoint_if_due()
                else:
                    run.finish()  # now: what stops the others later costs this one nothing
        for run in runs:
            run.finish()
        interrupt.raise_if_asked()
    return [run.result() for run in runs]


def _go_to(stream: Iterator[Any], runs: Sequence[Run]) -> int:
    """Set the stream to where the run that is furthest behind goes on; returns the batches that lie before."""
    behind = min((run for run in runs if run.wants_more), key=lambda run: run.num_taken, default=None)
    if behind is None or not behind.num_taken:
        return 0
    source = stream.batches if isinstance(stream, Prefetch) else stream
    if not isinstance(source, Resumable) or not isinstance(stream, Resumable):
        raise ValueError("this stream of batches cannot be resumed: it has no state_dict() and load_state_dict()")
    stream.load_state_dict(behind.stream_state)
    return behind.num_taken


def _step_all(
    runs: Sequence[Run],
    pick: Sequence[Callable[[Any], Tensor | TrainingBatch]],
    item: Any,
    state: dict[str, Any],
    position: int,
) -> None:
    """Show a batch to all runs that want it and have not seen it.

    Raises:
        NonFiniteActivationsError, NonFiniteLossError: in one run; all are checkpointed, and go on after this batch.
    """
    failures: dict[Run, ValueError] = {}
    waiting = [(run, part) for run, part in zip(runs, pick, strict=True) if run.wants_more]
    for run, part in waiting:
        if run.num_seen < position:
            try:
                run.take(part(item), state)
            except (NonFiniteActivationsError, NonFiniteLossError) as error:
                failures[run] = error  # the others see the batch too
    for run, _ in waiting if failures else []:
        if run in failures:
            run.checkpoint()
        else:
            run.checkpoint_if_new()
    if failures:
        raise next(iter(failures.values()))


def _refuse_context(batch: Any) -> Any:
    """The batch; an error where a loss is to run the model while a thread reads ahead from it."""
    if isinstance(batch, TrainingBatch) and batch.context is not None:
        raise ValueError(
            "a loss on the model's output can not have its batches read ahead: the model would run twice at a time; set "
            "num_prefetched_batches to 0"
        )
    return batch


def _refuse_early_end(runs: Sequence[Run]) -> None:
    """The stream has ended: an error for runs with steps to make; a threshold makes do with what there was."""
    for run in runs:
        if run.trains:
            done = run.step * run.config.batch_size_tokens
            raise StreamEndedError(
                f"{run.source} ended after {done} of {run.config.num_tokens} training tokens; give more text"
            )


def _check(runs: Sequence[Run], pick: Sequence[Any] | None) -> None:
    if not runs:
        raise ValueError("nothing to train: give at least one run")
    if pick is not None and len(pick) != len(runs):
        raise ValueError(f"pick has {len(pick)} functions for {len(runs)} runs")
    sizes = sorted({run.config.batch_size_tokens for run in runs})
    if len(sizes) > 1:
        raise ValueError(f"dictionaries that train on one stream share its batches; batch_size_tokens are {sizes}")
    folders = [run.folder.resolve() for run in runs if run.folder]
    if len(set(folders)) < len(folders):
        raise ValueError("two runs write to one folder; give each its own")
    if len({id(run.dictionary) for run in runs}) < len(runs):
        raise ValueError("one dictionary is in two runs; give each its own")
    if len({id(run.stepper.loss) for run in runs}) < len(runs):
        raise ValueError("one loss is in two runs; give each its own, as losses may remember what they have seen")
