"""One phase: chunks of steps, and between them evaluation, metrics, checkpoints and alarms."""

import collections
import itertools
import logging
from typing import NamedTuple

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.costs import flops
from asose_jax.data import batches
from asose_jax.metrics import arch_analysis
from asose_jax.metrics.metrics_log import MetricsLog
from asose_jax.metrics.progress import Progress
from asose_jax.nn import factors
from asose_jax.pipeline import compilation, early_stopping, evaluation
from asose_jax.pipeline.growth import controller
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.report import page, tensorboard
from asose_jax.runtime.errors import Stopped, UserError
from asose_jax.train import pmap, state
from asose_jax.train.phases import Phase, Span

logger = logging.getLogger('asose_jax')

# Streams of shuffled indices, told apart.
_TRAIN, _VALID = 0, 1
_CALL_SECONDS = 2.0  # of training in one call, at most


class MetricSinks(NamedTuple):
    """Where evaluations go: metrics.jsonl, report.html, TensorBoard."""

    log: MetricsLog
    page: page.Page
    events: tensorboard.Events


def train_phase(context: RunContext, current: RunState, outlets: MetricSinks) -> None:
    """Goes from the current step to the end of its phase, or of a search that ends early.

    What a chunk or an evaluation came to is looked at when the next chunk is queued, so that the
    devices need not wait for the host. They wait where the host has to decide (in growth, and where
    search may end early), and where the state is saved.
    """
    span = context.schedule.span_at(current.step)
    step, slots, length = current.step, context.slots(), 1
    ahead = int(context.config.search.second_order)  # batches of steps to come that a step looks at
    stream = batches.stream(
        context.data.images,
        lambda s: pmap.host_shard(indices_at(context, span, s)),
        step,
        span.stop + ahead,
    )
    read = []  # from the stream, for steps that are still to be sent

    def next_chunk(first):
        end = min(first + length, span.epoch_end(first))
        read.extend(itertools.islice(stream, end - first + ahead - len(read)))
        chunk = batches.chunk(read, slots + ahead, jax.local_device_count(), ahead)
        del read[: end - first]
        return end, pmap.shard_to_devices(chunk)

    end, batch = next_chunk(step)
    compilation.compile_programs(context, current, span.phase, batch)
    compilation.compile_upcoming(context, current, span, batch)
    controller.prepare(context, current, batch)
    bar = Progress(context.console, span, step, context.config.batch_size)
    with context.interrupt.held(), bar as progress:
        zeros = pmap.replicated(state.Totals.zeros())
        queued = collections.deque()  # what has not been looked at
        agreed, stops, halted = pmap.HostConsensus(2), 0, False
        while step < span.stop and not stops and not halted:
            train = current.programs.train.call
            current.packed, metrics = train(current.packed, batch, context.shared)
            step = end
            sums = None
            if step == span.epoch_end(step - 1):
                evaluation.refresh_statistics(context, current)
                sums = evaluation.evaluate(context, current, context.data.valid)
                current.packed = current.packed.put(totals=zeros)
            queued.append((step, metrics, sums))
            stops, due = agreed(context.interrupt.requested, context.checkpoints.due())
            saves = step == span.stop or stops or due
            decides = sums is not None and (
                controller.decides(context, span) or early_stopping.decides(context, span)
            )
            length = _chunk_length(context, progress, length)
            if step < span.stop:
                end, batch = next_chunk(step)
            while len(queued) > (0 if saves or decides else 1):
                record = _collect(context, current, span, progress, *queued.popleft())
                if record is None:
                    continue
                spec = current.spec
                record['growth'] = controller.consider(context, current, span, record, batch)
                halted = early_stopping.consider(context, current, span, record)
                if record['growth']:
                    record['grown'] = _grown_network(current)
                outlets.log.write(record)
                ended = halted or bool(record['growth']) or record['step'] == span.stop
                outlets.page.draw(at_once=ended)
                outlets.events.write(record, spec, picture=ended)
                saves = saves or ended
                if record['growth'] or 'arch/eigenvalue' in record:
                    progress.resume()
            if saves:
                context.checkpoints.save(step, pmap.replicated(current.state), current.meta())
    if stops and step < context.schedule.steps:
        outlets.page.draw()
        context.checkpoints.finish()
        raise Stopped(
            f'stopped and saved at step {step} of {context.schedule.steps} ({span.phase})'
        )


def _chunk_length(context, progress, before):
    """Steps of the next call: few enough that a wish to stop is heard soon."""
    if jax.process_count() > 1:  # all hosts must call alike, and their clocks differ
        return context.slots()
    in_time = int(_CALL_SECONDS * progress.steps_per_second)
    return max(1, min(context.slots(), 2 * before, in_time))


def _collect(context, current, span, progress, step, metrics, sums):
    """Fetches what the chunk before `step` came to; with an evaluation, returns its record."""
    figures = _training_metrics(context, step, metrics)
    record = None
    if sums is not None:
        record = _evaluation_record(
            context, current, span, {'step': step, **figures}, metrics, sums
        )
    current.row['seconds'] += progress.update(step, figures)
    if record is not None:
        record['images_per_second'] = progress.images_per_second
        record |= {key: current.row[key] for key in ('seconds', 'compile_seconds')}
        progress.evaluated(step, record)
    return record


def indices_at(context: RunContext, span: Span, step: int) -> np.ndarray:
    """Which images `step` sees: of `valid` when alpha learns there, of `train` otherwise.

    A step after the last of `span` is the weights', as far as that one can see ahead.
    """
    c, schedule = context.config, context.schedule
    if c.search.arch_data == 'train':
        pool, tag, number = context.data.train, _TRAIN, step
    elif span.phase.searches and step < span.stop and schedule.is_alpha_turn(step):
        pool, tag, number = context.data.valid, _VALID, schedule.alpha_updates(step)
    else:
        pool, tag, number = context.data.train, _TRAIN, schedule.weight_updates(step)
    return batches.batch_indices(pool, c.seed, tag, number, c.batch_size)


def _training_metrics(context, step, metrics):
    """The metrics of training since the last evaluation; stops a run that has gone bad."""
    limit = context.config.guard.max_consecutive
    if pmap.fetch_replicated(metrics['longest_streak']) > limit:
        last = context.checkpoints.latest()
        good = 'there is no checkpoint yet'
        if last is not None:
            good = f'the last good checkpoint is {context.checkpoints.directory / str(last)}'
        raise UserError(
            f'{context.schedule.span_at(step - 1).phase}: before step {step}, more than {limit} '
            f'steps in a row (guard.max_consecutive) had a gradient that is not finite; {good}. '
            "Look at the data, lower weights.lr, or use model.dtype='float32'."
        )
    totals = jax.tree.map(lambda total: total.item(), pmap.fetch_replicated(metrics['totals']))
    tempered = ESTIMATORS[context.config.search.estimator].tempered
    searches = context.schedule.span_at(step - 1).phase.searches
    return {
        'train/loss': totals.loss / max(1, totals.weight_steps),
        'train/accuracy': totals.correct / max(1, totals.images),
        'arch/loss': totals.arch_loss / totals.arch_steps if totals.arch_steps else None,
        'tau': context.schedule.reported_tau(step - 1) if tempered or not searches else None,
        'guard/arch': totals.guarded_rows,
        'guard/grad': totals.skipped_steps,
    }


def _evaluation_record(context, current, span, figures, metrics, sums):
    """One line of metrics. Warns of a collapse, and of a fall."""
    loss, valid_accuracy = evaluation.mean_loss_and_accuracy(sums)
    arch, totals, held = pmap.fetch_replicated(
        [metrics[key] for key in ('arch', 'totals', 'factors')]
    )
    sampling_temperature = _sampling_temperature(context, current.spec, span, figures['tau'])
    current.history.train_flops += flops.training_flops(
        current.spec,
        context.step_config(current.spec).weight_mode(span.phase),
        ESTIMATORS[context.config.search.estimator],
        genotype.probabilities(current.spec, arch, sampling_temperature or 1.0),
        int(totals.images),
        int(totals.arch_steps) * context.config.batch_size * context.config.arch.samples,
        context.config.search.second_order,
        context.schedule.together,
    )
    expected = {}
    if context.budget is not None:
        rows = genotype.probabilities(current.spec, arch)
        expected['cost/expected'] = float(context.budget.expected(current.spec, rows))
    analysis = arch_analysis.analyze_architecture(
        arch, current.spec, current.history.genotype, sampling_temperature
    )
    current.history.genotype = analysis['genotype']
    row, alarms, network = current.row, [], {}
    if row['valid_accuracy_first'] is None:
        row['valid_accuracy_first'] = valid_accuracy
        alarms += _fall_alarm(context, current.history.phases)
        network = {'network': current.spec.to_json()}
    row['valid_accuracy_last'] = valid_accuracy
    idle = analysis['arch/skip_fraction'] + analysis['arch/none_fraction']
    if span.phase is not Phase.WARMUP and idle > context.config.alarm.skip_share:
        alarms.append(f'collapse: {100 * idle:.0f} % of the genotype is skip_connect or none')
    for alarm in alarms:
        logger.warning('%s (epoch %d of %s)', alarm, span.epoch_at(figures['step']), span.phase)
    return {
        **figures,
        'epoch': span.epoch_at(figures['step']),
        'phase': span.phase,
        'valid/loss': loss,
        'valid/accuracy': valid_accuracy,
        **analysis,
        **expected,
        'params': evaluation.count_parameters(current),
        'train_flops': current.history.train_flops,
        'alarms': alarms,
        'factors': arch_analysis.rounded_factors(held),
        **network,
    }


def _sampling_temperature(context, spec, span, tau):
    """The t of softmax(alpha / t), which draws follow; `None` without draws."""
    if not span.phase.searches:
        return None
    settings = context.model(spec).settings
    return ESTIMATORS[settings.estimator].sampling_temperature(tau, settings.noise)


def _grown_network(current):
    """The network after a growth, for the log."""
    held = current.state
    analysis = arch_analysis.analyze_architecture(held.arch, current.spec)
    return {
        'network': current.spec.to_json(),
        'factors': arch_analysis.rounded_factors(factors.of(current.spec, held.params)),
        **{key: analysis[key] for key in ('genotype', 'arch/probabilities')},
    }


def _fall_alarm(context, rows):
    """The ancestor's crisis: accuracy falls when the search begins (spec section 7)."""
    if len(rows) < 2 or rows[-2]['name'] != Phase.WARMUP:
        return []
    before, after = rows[-2]['valid_accuracy_last'], rows[-1]['valid_accuracy_first']
    if after >= context.config.alarm.fall * before:
        return []
    return [
        f'fall: validation accuracy went from {100 * before:.1f} % at the end of warmup to '
        f'{100 * after:.1f} % at the first evaluation of {rows[-1]["name"]}'
    ]
