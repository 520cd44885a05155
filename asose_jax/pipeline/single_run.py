"""Runs all phases of a search, from the config to the summary.

The config fixes the run. Started again with the same config and workdir, it continues from the
newest checkpoint, and ends bit for bit as if it had never stopped.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import rich.console

from asose_jax.arch import genotype
from asose_jax.config.consistency import (
    as_config,
    fields_to_record,
    flatten,
    require_same_config,
    validate,
    with_original_defaults,
)
from asose_jax.costs import expected_cost, limit
from asose_jax.costs.latency import Latencies
from asose_jax.data import dataset
from asose_jax.metrics import arch_analysis, metrics_log
from asose_jax.nn import factors
from asose_jax.pipeline import (
    builders,
    evaluation,
    initialization,
    network_log,
    perturbation,
    run_context,
    run_summary,
    training_loop,
)
from asose_jax.pipeline.hooks import (
    DrawPage,
    GrowNetwork,
    SendToTracker,
    StopEarly,
    StopWhenSettled,
    WriteMetrics,
    WriteTensorBoard,
)
from asose_jax.report import page, tensorboard, tracker, tracker_clients
from asose_jax.runtime import malloc, paths, process
from asose_jax.runtime.errors import UserError, counted, os_errors
from asose_jax.runtime.interrupt import Interrupt
from asose_jax.runtime.workdir import locked, read_json_object, require_kind, write_atomically
from asose_jax.spaces import natsbench, registry, tabular
from asose_jax.spaces.supernet import HEAD
from asose_jax.train import checkpoint, optimizer, pmap, state
from asose_jax.train.phases import Phase, Schedule

logger = logging.getLogger('asose_jax')


@os_errors('running a search or a training', resumes=True)
def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    console: rich.console.Console | None = None,
    only_warmup: bool = False,
) -> dict[str, Any]:
    """Searches a network, trains it, and writes checkpoints and results to the workdir.

    Args:
      config: see `configs/search.py`.
      workdir: directory of checkpoints and results; a run that was stopped there is continued.
      console: where a progress bar may be drawn.
      only_warmup: whether to stop at the end of warmup, with a checkpoint there.

    Returns:
      The summary, as in summary.json; nothing with `only_warmup`.

    Raises:
      UserError: something that the user can put right; nothing was lost.
      Stopped: SIGTERM or Ctrl-C; all that was done is saved.
    """
    config = as_config(config)
    workdir = paths.expand_workdir(workdir)
    paths.require_local_fields(flatten(config))
    process.require_platform()
    process.require_32_bits()
    validate(config, jax.device_count())
    tracker_clients.require(config.track)
    require_kind(workdir, config.seeds)
    platform = pmap.platform()
    if platform == 'cpu':
        malloc.keep_freed_memory()
    config = with_original_defaults(config, workdir)
    fields = flatten(config)
    recorded = read_json_object(workdir / 'run.json')
    resumes = checkpoint.has_checkpoint(workdir / 'checkpoints')
    moved = require_same_config(
        fields, workdir, movable=_movable(recorded, resumes), base=recorded.get('directory')
    )
    with Interrupt(at_once=jax.process_count() == 1) as interrupt:
        images = _load_data(config, workdir, recorded, resumes)
        schedule = builders.make_schedule(config, len(images.train))
        if resumes:
            dataset.require_same_data(images, recorded, workdir)
            initialization.require_same_origin(config, images, schedule, recorded, moved)
        origin = None if resumes else initialization.find_origin(config, images, schedule)
        if origin is not None and origin.directory is not None:
            dataset.warn_of_other_pictures(images, origin.directory.parent)
        latencies, budget, cost_limit = _costs(config, workdir, origin)
        table = _benchmark_table(config)
        is_primary_host = jax.process_index() == 0
        with locked(workdir, is_primary_host), _device_errors():
            if checkpoint.has_checkpoint(workdir / 'checkpoints') != resumes:
                raise UserError(
                    f'another process has worked in {workdir} since this one began. Run the same '
                    'command again: it resumes from there.'
                )
            if is_primary_host:
                recording = json.dumps(fields_to_record(fields, workdir), indent=2)
                write_atomically(workdir / 'config.json', recording + '\n')
            with _open_checkpoints(config, workdir, schedule) as checkpoints:
                key = run_context.key_for(config.seed, run_context.STEPS)
                context = run_context.RunContext(
                    config=config,
                    workdir=workdir,
                    console=console or rich.console.Console(),
                    data=images,
                    schedule=schedule,
                    tx=optimizer.make_optimizer(config, schedule),
                    shared=pmap.shared_arrays(images, key),
                    checkpoints=checkpoints,
                    interrupt=interrupt,
                    table=table,
                    is_primary_host=is_primary_host,
                    platform=platform,
                    class_weights=builders.make_class_weights(config, images),
                    latencies=latencies,
                    budget=budget,
                    limit=cost_limit,
                    only_warmup=only_warmup,
                )
                digest = recorded.get('origin')
                if origin is not None:
                    starts = [config[name] for name in initialization.START_FIELDS]
                    digest = origin.digest() if any(starts) else None
                return _run_phases(context, origin, digest)


def _load_data(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    recorded: Mapping[str, Any],
    resumes: bool,
) -> dataset.Dataset:
    """Loads the data of a run, which may have begun with an older way to split them."""
    split_by = 'content'
    if resumes and config.data.name == 'folder':
        split_by = dataset.recorded_split(recorded, workdir)
    elif config.data.name == 'folder':
        paths.require_outside(workdir, config.data.dir)
    images = builders.load_data(config, split_by, begun=resumes)
    if not len(images.valid):
        logger.info(
            'no validation (data.valid_fraction=0): all %d images are trained on, and accuracy is '
            'known at the end, on the test split',
            len(images.train),
        )
    return images


def _costs(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, origin: initialization.Origin | None
) -> tuple[Latencies | None, expected_cost.Budget | None, limit.CostLimit | None]:
    """Returns latencies, price and limit of a run, as it has any; refuses what no network can keep.

    Without an origin the run resumes, perhaps with a network that has grown: nothing is refused.
    """
    latencies = expected_cost.open_latencies(config, workdir, origin is None)
    if latencies is not None and origin is not None:
        latencies.require(origin.spec)
    budget = expected_cost.make_budget(config, latencies)
    cost_limit = limit.make_limit(config, latencies)
    if budget is not None and origin is not None:
        budget.require_reachable_target(origin.spec, expected_cost.grows(config))
    if cost_limit is not None and origin is not None:
        cost_limit.require_reachable(origin.spec)
    return latencies, budget, cost_limit


def _movable(recorded: Mapping[str, Any], resumes: bool) -> Collection[str]:
    """Returns the paths of the config that may change, since what is in them is compared.

    Args:
      recorded: run.json of the run in the workdir; empty if nothing is known about it.
      resumes: whether the run has checkpoints. Without a record, it is held to its paths then.
    """
    if not recorded and not resumes:
        return paths.FIELDS
    starts = initialization.START_FIELDS if 'origin' in recorded else ()
    return (*(('data.dir',) if isinstance(recorded.get('data'), dict) else ()), *starts)


def _benchmark_table(
    config: ml_collections.ConfigDict,
) -> tabular.Table | natsbench.NatsBench | None:
    """Opens the table of published accuracies that `config` names, if it names one."""
    name, space = config.benchmark.table, registry.SPACES[config.model.space]
    if natsbench.is_named(name):
        return natsbench.NatsBench(name)
    if name is None:
        return None
    dumps, loads = space.dumps, space.loads
    # Validation refuses tables of spaces without a text form.
    assert dumps is not None
    assert loads is not None
    return tabular.Table.read(name, lambda text: dumps(loads(text)))


def _open_checkpoints(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, schedule: Schedule
) -> checkpoint.Checkpoints:
    c, milestones = config.checkpoint, [span.stop for span in schedule.spans]
    return checkpoint.Checkpoints(workdir / 'checkpoints', c.keep, milestones, c.every_seconds)


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    """Turns a failure of the devices into an error that says what to do, if anything helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        first_line = (str(error).splitlines() or [''])[0][:300]
        if 'RESOURCE_EXHAUSTED' in str(error):
            raise UserError(
                f'the devices have too little memory: {first_line}\nLower batch_size or '
                'model.channels, or set model.remat=True, model.dtype=bfloat16, or '
                'arch.micro_batches.'
            ) from error
        if jax.process_count() > 1:
            raise UserError(
                f'lost touch with another host: {first_line}\nStart the same command on all hosts '
                'again; it goes on from the last checkpoint.'
            ) from error
        raise


def _run_phases(
    context: run_context.RunContext,
    origin: initialization.Origin | None,
    origin_digest: int | None,
) -> dict[str, Any]:
    """Goes through all phases that are left, derives the network, and writes the summary.

    Without an origin it continues from the newest checkpoint. `origin_digest` is that of the files
    that the run began with, if there were any.
    """
    if origin is None:
        current = initialization.resume(context)
    else:
        current = initialization.start(context, origin)
    context.measure_costs(current.spec)
    workdir, is_primary_host = context.workdir, context.is_primary_host
    log = metrics_log.MetricsLog(workdir / 'metrics.jsonl', current.step, is_primary_host)
    if is_primary_host:
        run_summary.write_environment(context, origin_digest)
    report = page.Page(workdir, is_primary_host)
    report.draw()
    with _tracker(context) as sender:
        writer = tensorboard.Events(workdir, current.step, is_primary_host)
        with contextlib.closing(writer) as events:
            hooks = (
                GrowNetwork(),
                StopEarly(),
                StopWhenSettled(),
                WriteMetrics(log),
                DrawPage(report),
                WriteTensorBoard(events),
                SendToTracker(sender),
            )
            context = _with_halted_schedule(context, current)
            while not _is_over(context, current):
                _enter_phase(context, current)
                training_loop.train_phase(context, current, hooks)
                context = _with_halted_schedule(context, current)
        if context.only_warmup:
            return {}
        if not current.spec.is_derived():
            _derive(context, current)
        summary = run_summary.write_summary(context, current)
        report.draw()
        context.checkpoints.finish()  # the tracker gets the last one
    return summary


def _tracker(context: run_context.RunContext) -> tracker.Tracker:
    """Returns the tracker of the run; it sends nothing without `track`, and on other hosts."""
    track, workdir = context.config.track, context.workdir
    if track is None or not context.is_primary_host:
        return tracker.Tracker(None, workdir)
    client = tracker_clients.make(
        track, workdir, tracker.identity(workdir), tracker.name_of(workdir), flatten(context.config)
    )
    return tracker.Tracker(client, workdir)


# --- Between phases


def _is_over(context: run_context.RunContext, current: run_context.RunState) -> bool:
    schedule = context.schedule
    return current.step >= (schedule.spans[0].stop if context.only_warmup else schedule.steps)


def _enter_phase(context: run_context.RunContext, current: run_context.RunState) -> None:
    """Enters the phase of the current step, unless a run that was resumed has done so.

    Nothing that was learned is reset (docs/algorithm.md, "Four phases").
    """
    span = context.schedule.span_at(current.step)
    if current.phase is span.phase and current.history.phases:
        return
    if span.phase.searches and current.phase is Phase.WARMUP:
        key, noise = context.key(run_context.TRANSITION), context.config.search.transition_noise
        arch = state.smooth_transition_to_search(key, current.state.arch, noise)
        current.packed = pmap.replicated(current.packed.put(arch=arch))
    if span.phase is Phase.OPTIMIZE and not current.spec.is_derived():
        _derive(context, current)
    if span.phase is Phase.OPTIMIZE and context.config.optimize.ema:
        current.state = current.state.with_average()
    arch = current.state.arch
    chosen = context.most_likely(current.spec, arch)
    analysis = arch_analysis.analyze_architecture(arch, current.spec, chosen=chosen)
    logger.info(
        '%s: %s; alpha: entropy %.3f, confidence %.2f; most likely%s: %s',
        span.phase,
        counted(span.epochs, 'epoch'),
        analysis['arch/entropy'],
        analysis['arch/confidence'],
        '' if context.limit is None else f' within {context.limit}',
        ', '.join(f'{count} {name}' for name, count in sorted(analysis['arch/counts'].items())),
    )
    if context.step_config(current.spec).is_frozen(span.phase):
        trained = sum(leaf.size for leaf in jax.tree.leaves(current.state.params[HEAD]))
        logger.info(
            'only the head is trained, %d of %d parameters',
            trained,
            evaluation.count_parameters(current),
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


def _with_halted_schedule(
    context: run_context.RunContext, current: run_context.RunState
) -> run_context.RunContext:
    """Returns the context with the schedule that ends the search where the run has ended it early.

    Steps of the phases after it, their checkpoints and the learning rates follow that schedule. A
    run whose search did not end early keeps its context.
    """
    halted = current.history.halted
    if halted is None:
        return context
    hands_over = 'settled_for' in halted
    schedule = context.schedule.with_search_until(halted['step'], hands_over=hands_over)
    if schedule == context.schedule:
        return context
    context.checkpoints.keep_for_good([span.stop for span in schedule.spans])
    return dataclasses.replace(
        context, schedule=schedule, tx=optimizer.make_optimizer(context.config, schedule)
    )


def _derive(context: run_context.RunContext, current: run_context.RunState) -> None:
    """Chooses an operation of every row, and leaves the plain network of them in `current`."""
    current.history.selection = context.config.search.selection
    if current.history.selection == 'perturbation':
        chosen = perturbation.select_by_perturbation(context, current)
    else:
        arch = current.state.arch
        chosen = context.most_likely(current.spec, arch)
        if chosen != genotype.most_likely(current.spec, arch):
            logger.info('the most likely network exceeds %s; another one is derived', context.limit)
    spec, fresh = factors.folded_spec(current.spec, chosen), None
    if current.spec.partial > 1:
        logger.info(
            'the chosen operations start from fresh weights: with search.partial_channels=%d they '
            'were trained on a part of the channels',
            current.spec.partial,
        )
        fresh = state.init_state(
            context.model(spec), context.tx, context.key(run_context.DERIVATION)
        )
    if context.limit is not None:
        context.limit.require_kept(spec)
    derived = state.derive_state(current.state, current.spec, chosen, context.tx, fresh)
    current.spec = spec
    current.state = derived
    network_log.log_network(context, current.spec)
