"""The story of a run, top to bottom.

A run is fixed by its config. Started again with the same config and workdir, it goes on from the
newest checkpoint, and ends as if it had never stopped.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from typing import Any

import jax
import ml_collections
import rich.console

from asose_jax.arch import genotype
from asose_jax.config.validation import (
    flatten,
    require_same_config,
    validate,
    with_original_defaults,
)
from asose_jax.costs import expected_cost
from asose_jax.data import dataset
from asose_jax.metrics import arch_analysis, metrics_log, run_record
from asose_jax.nn import factors
from asose_jax.pipeline import (
    builders,
    initialization,
    perturbation,
    phase_loop,
    run_context,
    run_summary,
)
from asose_jax.report import page, tensorboard
from asose_jax.runtime import malloc
from asose_jax.runtime.errors import UserError
from asose_jax.runtime.interrupt import Interrupt
from asose_jax.runtime.workdir import claimed, write_atomically
from asose_jax.spaces import natsbench, registry, tabular
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.phases import Phase

logger = logging.getLogger('asose_jax')


def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Searches, trains what was found, and writes the workdir.

    Args:
      config: see `configs/search.py`.
      workdir: for checkpoints and results; a run that was stopped there goes on.
      console: where a progress bar may be drawn.

    Returns:
      The summary, as in summary.json.

    Raises:
      UserError: something the user can put right; nothing was lost.
      Stopped: after SIGTERM or Ctrl-C; what was done is saved.
    """
    validate(config, jax.device_count())
    if jax.default_backend() == 'cpu':
        malloc.keep_freed_memory()
    workdir = pathlib.Path(workdir).expanduser()
    config = with_original_defaults(config, workdir)
    flat = flatten(config)
    require_same_config(flat, workdir)
    with Interrupt(at_once=jax.process_count() == 1) as interrupt:
        images = builders.load_data(config)
        schedule = builders.make_schedule(config, len(images.train))
        started = checkpoint.has_any(workdir / 'checkpoints')
        if started:
            known = run_record.contents(workdir / 'run.json')
            dataset.require_same_data(images, known, workdir)
        origin = None if started else initialization.origin(config, images, schedule)
        budget = expected_cost.budget(config, workdir, started)
        if budget is not None and origin is not None:
            budget.require_reach(origin.spec, bool(config.growth.epochs and config.growth.kinds))
        table = _table(config)
        is_primary_host = jax.process_index() == 0
        with claimed(workdir, is_primary_host):
            if is_primary_host:
                write_atomically(workdir / 'config.json', json.dumps(flat, indent=2) + '\n')
            try:
                return _run(
                    config, workdir, console, images, schedule, origin, interrupt, table, budget
                )
            except jax.errors.JaxRuntimeError as error:
                told = _explained(error)
                if told is None:
                    raise
                raise told from error


def _table(config):
    """What others measured, if `config` names it."""
    known, space = config.benchmark.table, registry.SPACES[config.model.space]
    if natsbench.is_named(known):
        return natsbench.NatsBench(known)
    if known is None:
        return None
    return tabular.Table.read(known, lambda text: space.dumps(space.loads(text)))


def _explained(error):
    """What a person can do about what went wrong on the devices, if anything."""
    told = (str(error).splitlines() or [''])[0][:300]
    if 'RESOURCE_EXHAUSTED' in str(error):
        return UserError(
            f'the devices have too little memory: {told}\nLower batch_size or model.channels, or '
            'set model.remat=True, model.dtype=bfloat16, or arch.micro_batches.'
        )
    if jax.process_count() > 1:
        return UserError(
            f'lost touch with another host: {told}\nStart the same command on all hosts again; it '
            'goes on from the last checkpoint.'
        )
    return None


def _run(config, workdir, console, images, schedule, origin, interrupt, table, budget):
    milestones = [span.stop for span in schedule.spans]
    c = config.checkpoint
    with checkpoint.Checkpoints(
        workdir / 'checkpoints', c.keep, milestones, c.every_seconds
    ) as checkpoints:
        context = run_context.RunContext(
            config=config,
            workdir=workdir,
            console=console or rich.console.Console(),
            data=images,
            schedule=schedule,
            tx=builders.make_optimizer(config, schedule),
            shared=pmap.shared_arrays(images, run_context.key_for(config.seed, run_context.STEPS)),
            checkpoints=checkpoints,
            interrupt=interrupt,
            table=table,
            is_primary_host=jax.process_index() == 0,
            budget=budget,
        )
        started = checkpoints.latest() is not None
        current = (
            initialization.resume(context) if started else initialization.begin(context, origin)
        )
        context.measure_costs(current.spec)
        log = metrics_log.MetricsLog(
            workdir / 'metrics.jsonl', current.step, context.is_primary_host
        )
        if context.is_primary_host:
            text = json.dumps(run_summary.environment(context), indent=2) + '\n'
            write_atomically(workdir / 'run.json', text)
        with contextlib.closing(
            tensorboard.Events(workdir, current.step, context.is_primary_host)
        ) as told:
            outlets = phase_loop.MetricSinks(log, page.Page(workdir, context.is_primary_host), told)
            outlets.page.draw()
            context = _as_halted(context, current)
            while current.step < context.schedule.steps:
                _enter(context, current)
                phase_loop.train_phase(context, current, outlets)
                context = _as_halted(context, current)
        if not current.spec.is_derived():
            _derive(context, current)
        summary = run_summary.write_summary(context, current)
        outlets.page.draw()
        return summary


# --- Between phases


def _enter(context, current):
    """Enters the phase of the current step. Nothing that was learned is reset (spec section 3)."""
    span = context.schedule.span_at(current.step)
    if current.phase is span.phase and current.history.phases:
        return
    if span.phase.searches and current.phase is Phase.WARMUP:
        key, noise = context.key(run_context.TRANSITION), context.config.search.transition_noise
        arch = state.smooth_transition_to_search(key, current.state.arch, noise)
        current.packed = pmap.replicated(current.packed.put(arch=arch))
    if span.phase is Phase.OPTIMIZE and not current.spec.is_derived():
        _derive(context, current)
    told = arch_analysis.analyze_architecture(current.state.arch, current.spec)
    logger.info(
        '%s: %d epochs; alpha: entropy %.3f, confidence %.2f; most likely: %s',
        span.phase,
        span.epochs,
        told['arch/entropy'],
        told['arch/confidence'],
        ', '.join(f'{count} {name}' for name, count in sorted(told['arch/counts'].items())),
    )
    current.phase = span.phase
    current.history.phases.append(
        {
            'name': span.phase,
            'epochs': span.epochs,
            'steps': span.stop - span.start,
            'valid_accuracy_first': None,
            'valid_accuracy_last': None,
            'seconds': 0.0,
            'compile_seconds': 0.0,
        }
    )


def _as_halted(context, current):
    """The setup of a run whose search ended early: with the plan that had so many epochs of it."""
    halted = current.history.halted
    schedule = (
        context.schedule if halted is None else context.schedule.with_search_until(halted['step'])
    )
    if schedule == context.schedule:
        return context
    context.checkpoints.keep_for_good([span.stop for span in schedule.spans])
    return dataclasses.replace(
        context, schedule=schedule, tx=builders.make_optimizer(context.config, schedule)
    )


def _derive(context, current):
    current.history.selection = context.config.search.selection
    if current.history.selection == 'perturbation':
        chosen = perturbation.by_perturbation(context, current)
    else:
        chosen = genotype.most_likely(current.spec, current.state.arch)
    spec, fresh = factors.folded_spec(current.spec, chosen), None
    if current.spec.partial > 1:
        logger.info('the chosen operations begin anew: so far they saw some of the channels only')
        fresh = state.init_state(
            context.model(spec), context.tx, context.key(run_context.DERIVATION)
        )
    derived = state.derive_state(current.state, current.spec, chosen, context.tx, fresh)
    current.spec = spec
    current.state = derived
    initialization.log_network(context, current.spec)
