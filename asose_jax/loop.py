"""One phase: chunks of steps, and between them evaluation, metrics, checkpoints and alarms."""

import dataclasses
import itertools
import logging
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import rich.console

from asose_jax import batches, checkpoint, genotype, gumbel, report, state, steps
from asose_jax.data import Data
from asose_jax.errors import UserError
from asose_jax.model import SearchSettings, SuperNet
from asose_jax.phases import Phase, Plan

logger = logging.getLogger('asose_jax')

# Streams of shuffled indices, told apart.
_TRAIN, _VALID = 0, 1
# Uses of the run's key, told apart.
STEPS, INIT, TRANSITION = 0, 1, 2
_STREAMED_BYTES = 2**26  # of images in one call, where they are not resident


def key_for(seed: int, use: int) -> jax.Array:
    """The key of a run for one of its uses."""
    return jax.random.fold_in(jax.random.key(seed), use)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What does not change during a run."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    console: rich.console.Console
    data: Data
    plan: Plan
    tx: optax.GradientTransformationExtraArgs
    shared: dict[str, jax.Array]
    checkpoints: checkpoint.Checkpoints

    def key(self, use: int) -> jax.Array:
        """The run's key for one of its uses."""
        return key_for(self.config.seed, use)

    def model(self, spec: genotype.NetSpec) -> SuperNet:
        c = self.config
        settings = SearchSettings(
            init_std=c.arch.init_std,
            none_bias=c.arch.none_bias,
            skip_bias=c.arch.skip_bias,
            hard=c.search.hard,
            noise=c.search.noise,
            thresholds=gumbel.Thresholds(*c.search.thresholds),
        )
        return SuperNet(spec, settings, c.model.dtype, synced_over=steps.AXIS)

    def recipe(self, spec: genotype.NetSpec) -> steps.Recipe:
        d = self.config.data
        return steps.Recipe(self.model(spec), self.tx, self.plan, d.crop_padding, d.flip)

    def slots(self) -> int:
        """Steps that one compiled call has room for."""
        if self.data.images.arrays is not None:
            return self.config.chunk_steps
        batch_bytes = self.config.batch_size * math.prod(self.data.image_shape)
        return max(1, min(self.config.chunk_steps, _STREAMED_BYTES // batch_bytes))


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The compiled calls of one network in one way of using it; search and growth use it alike."""

    spec: genotype.NetSpec
    way: str
    train: steps.Program | None
    evaluate: steps.Program


@dataclasses.dataclass
class Current:
    """Where a run is. `phase` is the last phase that was entered; `told` what it has to tell."""

    spec: genotype.NetSpec
    state: state.SearchState
    phase: Phase | None
    told: dict[str, Any]
    programs: Programs | None = None

    @property
    def row(self) -> dict[str, Any]:
        """What is told of the phase that was entered last."""
        return self.told['phases'][-1]

    @property
    def step(self) -> int:
        return int(self.state.step)

    def meta(self) -> dict[str, Any]:
        """The description that a checkpoint holds beside the arrays."""
        return {'spec': self.spec.to_json(), 'phase': self.phase, 'told': self.told}


def train_phase(setup: Setup, current: Current, log: report.MetricsLog) -> None:
    """Goes from the current step to the end of its phase.

    The next chunk is queued before the metrics of the one before are looked at, so that the devices
    need not wait for the host.
    """
    span = setup.plan.span_at(current.step)
    step, slots, every = current.step, setup.slots(), setup.config.checkpoint.every_steps
    stream = batches.stream(
        setup.data.images, lambda s: _indices_at(setup, span, s), step, span.stop
    )

    def next_chunk(first):
        end = min(first + slots, span.epoch_end(first), (first // every + 1) * every)
        taken = list(itertools.islice(stream, end - first))
        return end, batches.chunk(taken, slots, jax.device_count())

    end, batch = next_chunk(step)
    compile_programs(setup, current, span.phase, batch)
    with report.Progress(setup.console, span, step, setup.config.batch_size) as progress:
        waiting = []  # chunks whose metrics have not been looked at
        while step < span.stop:
            train = current.programs.train.call
            current.state, metrics = train(current.state, batch, setup.shared)
            step = end
            waiting.append((step, metrics))
            epoch_ends = step == span.epoch_end(step - 1)
            pause = epoch_ends or step % every == 0
            if step < span.stop:
                end, batch = next_chunk(step)
            while len(waiting) > (0 if pause else 1):
                done, metrics = waiting.pop(0)
                figures = _figures(setup, done, metrics)
                current.row['seconds'] += progress.update(done, figures)
            if epoch_ends:
                record = _evaluate(setup, current, span, {'step': step, **figures})
                record['images_per_second'] = progress.images_per_second(step)
                log.write(record)
                progress.evaluated(step, record)
            if pause:
                setup.checkpoints.save(step, current.state, current.meta())
                progress.resume()


def compile_programs(
    setup: Setup, current: Current, phase: Phase, batch: dict[str, np.ndarray] | None
) -> None:
    """Makes `current.programs` those of (network, phase), unless they are.

    Args:
      setup: of the run.
      current: where it is.
      phase: how the network is used.
      batch: an example of a chunk to train on; `None` if there will be no training.
    """
    way = 'search' if phase.searches else str(phase)
    ready = current.programs
    if ready and (ready.spec, ready.way) == (current.spec, way):
        return
    recipe, shared = setup.recipe(current.spec), setup.shared
    train = None
    if batch is not None:
        train = steps.compile_train(recipe, phase, current.state, batch, shared)
        current.row['compile_seconds'] += train.compile_seconds
    example = next(eval_chunks(setup, setup.data.valid))
    evaluate = steps.compile_eval(recipe, phase, current.state, example, shared)
    current.row['compile_seconds'] += evaluate.compile_seconds
    current.programs = Programs(current.spec, way, train, evaluate)
    logger.info(
        'compiled %s: train %.1f s, evaluate %.1f s',
        phase,
        train.compile_seconds if train else 0,
        evaluate.compile_seconds,
    )


def _indices_at(setup, span, step):
    """Which images `step` sees: of `valid` when alpha learns there, of `train` otherwise."""
    c, plan = setup.config, setup.plan
    if c.search.arch_data == 'train':
        pool, tag, number = setup.data.train, _TRAIN, step
    elif span.phase.searches and plan.is_alpha_turn(step):
        pool, tag, number = setup.data.valid, _VALID, plan.alpha_updates(step)
    else:
        pool, tag, number = setup.data.train, _TRAIN, plan.weight_updates(step)
    return batches.batch_indices(pool, c.seed, tag, number, c.batch_size)


def _figures(setup, step, metrics):
    """The metrics of training since the last evaluation; stops a run that has gone bad."""
    limit = setup.config.guard.max_consecutive
    if metrics['longest_streak'][0] > limit:
        last = setup.checkpoints.latest()
        good = 'there is no checkpoint yet'
        if last is not None:
            good = f'the last good checkpoint is {setup.checkpoints.directory / str(last)}'
        raise UserError(
            f'{setup.plan.span_at(step - 1).phase}: before step {step}, more than {limit} steps '
            f'in a row (guard.max_consecutive) had a gradient that is not finite; {good}. '
            "Look at the data, lower weights.lr, or use model.dtype='float32'."
        )
    totals = jax.tree.map(lambda per_device: per_device[0].item(), metrics['totals'])
    return {
        'train/loss': totals.loss / max(1, totals.weight_steps),
        'train/accuracy': totals.correct / max(1, totals.images),
        'arch/loss': totals.arch_loss / totals.arch_steps if totals.arch_steps else None,
        'tau': setup.plan.reported_tau(step - 1),
        'guard/arch': totals.guarded_rows,
        'guard/grad': totals.skipped_steps,
    }


def _evaluate(setup, current, span, figures):
    """One line of metrics. Warns of a collapse; the sums of training start again."""
    loss, valid_accuracy = accuracy(setup, current, setup.data.valid)
    arch = jax.device_get(current.state.arch)
    analysis = report.architecture_analysis(arch, current.spec, current.told['genotype'])
    current.told['genotype'] = analysis['genotype']
    row = current.row
    if row['valid_accuracy_first'] is None:
        row['valid_accuracy_first'] = valid_accuracy
        _warn_of_fall(setup, current.told['phases'])
    row['valid_accuracy_last'] = valid_accuracy
    idle = analysis['arch/skip_fraction'] + analysis['arch/none_fraction']
    if span.phase is not Phase.WARMUP and idle > setup.config.alarm.skip_share:
        logger.warning(
            'collapse: %.0f %% of the genotype is skip_connect or none (epoch %d of %s)',
            100 * idle,
            span.epoch_at(figures['step']),
            span.phase,
        )
    current.state = current.state.replace(totals=steps.replicated(state.Totals.zeros()))
    return {
        **figures,
        'epoch': span.epoch_at(figures['step']),
        'phase': span.phase,
        'valid/loss': loss,
        'valid/accuracy': valid_accuracy,
        **analysis,
        'params': count_parameters(current),
    }


def _warn_of_fall(setup, rows):
    """The ancestor's crisis: accuracy falls when the search begins (spec section 7)."""
    if len(rows) < 2 or rows[-2]['name'] != Phase.WARMUP:
        return
    before, after = rows[-2]['valid_accuracy_last'], rows[-1]['valid_accuracy_first']
    if after < setup.config.alarm.fall * before:
        logger.warning(
            'fall: validation accuracy went from %.1f %% at the end of warmup to %.1f %% at the '
            'first evaluation of %s',
            100 * before,
            100 * after,
            rows[-1]['name'],
        )


def eval_chunks(setup: Setup, pool: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """`pool` once, in order, as chunks; the last batch is filled up with images of weight 0."""
    size, slots = setup.config.batch_size, setup.slots()
    count = -(-len(pool) // size)
    padded = np.resize(pool, count * size).reshape(count, size)
    weights = (np.arange(count * size) < len(pool)).reshape(count, size).astype(np.float32)
    stream = batches.stream(setup.data.images, lambda number: padded[number], 0, count)
    weighted = ({**batch, 'weight': weights[i]} for i, batch in enumerate(stream))
    while taken := list(itertools.islice(weighted, slots)):
        yield batches.chunk(taken, slots, jax.device_count())


def accuracy(setup: Setup, current: Current, pool: np.ndarray) -> tuple[float, float]:
    """Mean loss and accuracy of the current network over all images of `pool`."""
    sums = {'loss': 0.0, 'correct': 0.0, 'images': 0.0}
    for batch in eval_chunks(setup, pool):
        part = current.programs.evaluate.call(current.state, batch, setup.shared)
        sums = {key: sums[key] + float(part[key][0]) for key in sums}
    return sums['loss'] / sums['images'], sums['correct'] / sums['images']


def count_parameters(current: Current) -> int:
    """Numbers in `params` of the current network."""
    return sum(leaf.size for leaf in jax.tree.leaves(current.state.params))
