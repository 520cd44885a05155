"""Trains one phase: chunks of steps, and between them evaluations, hooks and checkpoints."""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from asose_jax.data import batches
from asose_jax.metrics.progress import Progress
from asose_jax.pipeline import compilation, evaluation, evaluation_record
from asose_jax.pipeline.growth import controller
from asose_jax.pipeline.hooks import Decision, Evaluation, Hook
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.runtime.errors import Stopped
from asose_jax.train import pmap, state
from asose_jax.train.phases import Span

# Streams of shuffled indices, told apart.
_TRAIN, _VALID = 0, 1
_CALL_SECONDS = 2.0  # of training in one call, at most


def train_phase(context: RunContext, current: RunState, hooks: Sequence[Hook]) -> None:
    """Trains from the current step to the end of its phase, or of a search that ends early.

    The results of a chunk are fetched when the next chunk has been queued, so that the devices do
    not wait for the host. They wait where a hook may decide, and where the state is saved. Hooks
    are called in order after each evaluation.

    Raises:
      Stopped: the process was asked to stop; the state is saved.
      UserError: too many steps in a row had a gradient that is not finite.
    """
    span = context.schedule.span_at(current.step)
    step, length = current.step, 1
    chunks = _Chunks(context, span, step)
    end, batch = chunks.next(step, length)
    compilation.compile_programs(context, current, span.phase, batch)
    compilation.compile_upcoming(context, current, span, batch)
    controller.prepare(context, current, batch)
    bar = Progress(context.console, span, step, context.config.batch_size)
    with context.interrupt.held(), bar as progress:
        zeros = pmap.replicated(state.Totals.zeros())
        queued: collections.deque[tuple[int, Any, Any]] = collections.deque()
        consensus, stops, decided = pmap.HostConsensus(2), 0, Decision()
        while step < span.stop and not stops and not decided.ends_phase:
            train = current.programs_in_use.train
            assert train is not None, 'phases with steps have a program for them'
            current.packed, metrics = train.call(current.packed, batch, context.shared)
            step, sums = end, None
            if step == span.epoch_end(step - 1):
                evaluation.refresh_statistics(context, current)
                sums = evaluation.evaluate(context, current, context.data.valid)
                current.packed = current.packed.put(totals=zeros)
            queued.append((step, metrics, sums))
            stops, due = consensus(context.interrupt.requested, context.checkpoints.due())
            waits = sums is not None and any(hook.may_decide(context, span) for hook in hooks)
            saves = step == span.stop or bool(stops or due)
            length = _chunk_length(context, progress, length)
            if step < span.stop:
                end, batch = chunks.next(step, length)
            while len(queued) > (0 if saves or waits else 1):
                record = _collect(context, current, span, progress, *queued.popleft())
                if record is None:
                    continue
                decided = _run_hooks(hooks, context, current, span, record, batch)
                saves |= decided.saves or record['step'] == span.stop
                if decided.stalled:
                    progress.resume()
            if step == span.stop:
                current.adopt_average()
            if saves:
                context.checkpoints.save(step, pmap.replicated(current.state), current.meta())
    if stops and step < context.schedule.steps:
        for hook in hooks:
            hook.on_stop()
        context.checkpoints.finish()
        steps = context.schedule.steps
        raise Stopped(f'stopped and saved at step {step} of {steps} ({span.phase})')


class _Chunks:
    """The batches of a phase from a step on, stacked for compiled calls and sent to the devices."""

    def __init__(self, context: RunContext, span: Span, first: int) -> None:
        self._span, self._slots = span, context.slots()
        # Steps in second order look at the batch of the step after them.
        self._ahead = int(context.config.search.second_order)
        self._stream = batches.batch_stream(
            context.data.images,
            lambda step: pmap.host_shard(indices_at(context, span, step)),
            first,
            span.stop + self._ahead,
        )
        self._read: list[dict[str, np.ndarray]] = []  # of steps that are still to be sent

    def next(self, first: int, length: int) -> tuple[int, Any]:
        """Returns the step after a chunk of up to `length` steps from `first`, and the chunk."""
        end = min(first + length, self._span.epoch_end(first))
        missing = end - first + self._ahead - len(self._read)
        self._read.extend(itertools.islice(self._stream, missing))
        slots, devices = self._slots + self._ahead, jax.local_device_count()
        chunk = batches.stack_batches(self._read, slots, devices, self._ahead)
        del self._read[: end - first]
        return end, pmap.shard_to_devices(chunk)


def _chunk_length(context: RunContext, progress: Progress, before: int) -> int:
    """Returns the steps of the next call: few enough that a request to stop is soon heard."""
    if jax.process_count() > 1:  # all hosts must call alike, and their clocks differ
        return context.slots()
    in_time = int(_CALL_SECONDS * progress.steps_per_second)
    return max(1, min(context.slots(), 2 * before, in_time))


def _run_hooks(
    hooks: Sequence[Hook],
    context: RunContext,
    current: RunState,
    span: Span,
    record: dict[str, Any],
    batch: Any,
) -> Decision:
    event = Evaluation(span, current.spec, record, batch)
    for hook in hooks:
        decided = event.decided.also(hook.on_evaluation(context, current, event))
        event = dataclasses.replace(event, decided=decided)
    return event.decided


def _collect(
    context: RunContext,
    current: RunState,
    span: Span,
    progress: Progress,
    step: int,
    metrics: dict[str, Any],
    sums: list[dict[str, jax.Array]] | None,
) -> dict[str, Any] | None:
    """Fetches the results of the chunk that ended at `step`.

    Returns:
      The record of the evaluation after it, `None` where there was none.
    """
    figures = evaluation_record.training_metrics(context, step, metrics)
    record = None
    if sums is not None:
        record = evaluation_record.build(context, current, span, figures, metrics, sums)
    current.row['seconds'] += progress.update(step, figures)
    if record is not None:
        record['images_per_second'] = progress.images_per_second
        record |= {key: current.row[key] for key in ('seconds', 'compile_seconds')}
        progress.evaluated(step, record)
    return record


def indices_at(context: RunContext, span: Span, step: int) -> np.ndarray:
    """Returns the indices of the images that `step` sees, `[B]`.

    They are of `valid` where alpha learns there, of `train` otherwise. The step after the last of
    `span`, which steps in second order look at, counts as one of the weights.
    """
    c, schedule = context.config, context.schedule
    if c.search.arch_data == 'train':
        pool, stream, number = context.data.train, _TRAIN, step
    elif span.phase.searches and step < span.stop and schedule.is_alpha_turn(step):
        pool, stream, number = context.data.valid, _VALID, schedule.alpha_updates(step)
    else:
        pool, stream, number = context.data.train, _TRAIN, schedule.weight_updates(step)
    return batches.batch_indices(pool, c.seed, stream, number, c.batch_size)
