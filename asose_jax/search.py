"""The story of a run, top to bottom.

A run is fixed by its config. Started again with the same config and workdir, it goes on from the
newest checkpoint, and ends as if it had never stopped.
"""

import json
import logging
import pathlib
from typing import Any

import jax
import ml_collections
import optax
import rich.console

from asose_jax import (
    allocator,
    benchmark,
    checkpoint,
    data,
    devices,
    genotype,
    interrupt,
    loop,
    optim,
    page,
    phases,
    report,
    results,
    session,
    spaces,
    start,
    state,
)
from asose_jax import config as rules
from asose_jax import workdir as place
from asose_jax.errors import UserError
from asose_jax.phases import Phase, Plan

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
    rules.validate(config, jax.device_count())
    if jax.default_backend() == 'cpu':
        allocator.keep_freed_memory()
    workdir = pathlib.Path(workdir).expanduser()
    flat = rules.flatten(config)
    require_same_config(flat, workdir)
    with interrupt.Interrupt(at_once=jax.process_count() == 1) as asked:
        images = load_data(config)
        plan = make_plan(config, len(images.train))
        started = checkpoint.has_any(workdir / 'checkpoints')
        origin = None if started else start.origin(config, images, plan)
        known = config.benchmark.table
        space = spaces.SPACES[config.model.space]
        table = None
        if known is not None:
            table = benchmark.Table.read(known, lambda text: space.dumps(space.loads(text)))
        writes = jax.process_index() == 0
        with place.claimed(workdir, writes):
            if writes:
                place.write_atomically(workdir / 'config.json', json.dumps(flat, indent=2) + '\n')
            try:
                return _run(config, workdir, console, images, plan, origin, asked, table)
            except jax.errors.JaxRuntimeError as error:
                told = _explained(error)
                if told is None:
                    raise
                raise told from error


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


def _run(config, workdir, console, images, plan, origin, asked, table):
    milestones = [span.stop for span in plan.spans]
    c = config.checkpoint
    with checkpoint.Checkpoints(
        workdir / 'checkpoints', c.keep, milestones, c.every_seconds
    ) as checkpoints:
        setup = session.Setup(
            config=config,
            workdir=workdir,
            console=console or rich.console.Console(),
            data=images,
            plan=plan,
            tx=make_optimizer(config, plan),
            shared=devices.shared_arrays(images, session.key_for(config.seed, session.STEPS)),
            checkpoints=checkpoints,
            asked=asked,
            table=table,
            writes=jax.process_index() == 0,
        )
        started = checkpoints.latest() is not None
        current = start.resume(setup) if started else start.begin(setup, origin)
        log = report.MetricsLog(workdir / 'metrics.jsonl', current.step, setup.writes)
        if setup.writes:
            text = json.dumps(results.surroundings(setup), indent=2) + '\n'
            place.write_atomically(workdir / 'run.json', text)
        drawn = page.Page(workdir, setup.writes)
        drawn.draw()
        while current.step < plan.steps:
            _enter(setup, current)
            loop.train_phase(setup, current, log, drawn)
        if not current.spec.is_derived():
            _derive(setup, current)
        summary = results.write(setup, current)
        drawn.draw()
        return summary


def make_plan(config: ml_collections.ConfigDict, train_size: int) -> Plan:
    """The plan that `config` makes of a training part with `train_size` images."""
    s = config.search
    return phases.make_plan(
        {phase: config[phase].epochs for phase in Phase},
        max(1, train_size // config.batch_size),
        turn_period=s.turn_period,
        tau_start=s.tau_start,
        tau_rate=s.tau_rate,
        tau_floor=s.tau_floor,
        anneal_every=s.anneal_every,
        freeze_epochs=s.freeze_epochs,
    )


def make_optimizer(
    config: ml_collections.ConfigDict, plan: Plan
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of the run."""
    w, a = config.weights, config.arch
    arch_lr = a.lr
    if arch_lr is None:
        arch_lr = optim.lr_for_travel(a.travel, a.lr_end, plan.alpha_updates(plan.steps))
    return optim.make_optimizer(
        plan,
        weight_lr=w.lr,
        weight_lr_end=w.lr_end,
        momentum=w.momentum,
        weight_decay=w.weight_decay,
        clip=w.clip,
        arch_lr=arch_lr,
        arch_lr_end=a.lr_end,
        arch_b1=a.b1,
        arch_b2=a.b2,
        arch_weight_decay=a.weight_decay,
    )


def require_same_config(
    flat: dict[str, Any], workdir: pathlib.Path, but: tuple[str, ...] = ()
) -> None:
    """Refuses a workdir with a run of another config.

    Args:
      flat: the config, see `config.flatten`.
      workdir: of the run.
      but: fields that may differ.

    Raises:
      UserError: names the fields that differ.
    """
    path = workdir / 'config.json'
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
        differing = [d for d in rules.differences(flat, before) if d.split(':')[0] not in but]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}: {error}). If this command is that of '
            'the run in there, delete the file; otherwise choose another --workdir.'
        ) from error
    if differing:
        raise UserError(
            f'{workdir} holds a run with another config:\n  '
            + '\n  '.join(differing)
            + '\nGo on with the old values, or choose another --workdir (--config.init_from='
            f'{workdir} starts there from what this run has learned).'
        )


def load_data(config: ml_collections.ConfigDict) -> data.Data:
    """The data set that `config` names; what it holds goes to the log."""
    d = config.data
    images = data.load(
        d.name,
        seed=config.seed,
        valid_fraction=d.valid_fraction,
        data_dir=d.dir,
        train_split=d.train_split,
        test_split=d.test_split,
        image_size=d.image_size,
        resident_megabytes=d.resident_megabytes,
    )
    logger.info(
        '%s: %d train, %d valid, %d test images %s, %d classes, %s',
        d.name,
        len(images.train),
        len(images.valid),
        len(images.test),
        'x'.join(map(str, images.image_shape)),
        len(images.class_names),
        'streamed' if images.images.arrays is None else 'resident on the device',
    )
    smallest = 2 ** len(config.model.reductions)
    if min(images.image_shape[:2]) < smallest:
        raise UserError(
            f'images of {images.image_shape[0]}x{images.image_shape[1]} are too small for '
            f'{len(config.model.reductions)} reductions, which need {smallest} pixels a side. Take '
            "fewer (--config.model.reductions='(1,)') or set data.image_size."
        )
    return images


# --- Between phases


def _enter(setup, current):
    """Enters the phase of the current step. Nothing that was learned is reset (spec section 3)."""
    span = setup.plan.span_at(current.step)
    if current.phase is span.phase and current.told['phases']:
        return
    if span.phase.searches and current.phase is Phase.WARMUP:
        key, noise = setup.key(session.TRANSITION), setup.config.search.transition_noise
        arch = state.smooth_transition_to_search(key, current.state.arch, noise)
        current.state = current.state.replace(arch=devices.replicated(arch))
    if span.phase is Phase.OPTIMIZE and not current.spec.is_derived():
        _derive(setup, current)
    told = report.architecture_analysis(jax.device_get(current.state.arch), current.spec)
    logger.info(
        '%s: %d epochs; alpha: entropy %.3f, confidence %.2f; most likely: %s',
        span.phase,
        span.epochs,
        told['arch/entropy'],
        told['arch/confidence'],
        ', '.join(f'{count} {name}' for name, count in sorted(told['arch/counts'].items())),
    )
    current.phase = span.phase
    current.told['phases'].append(
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


def _derive(setup, current):
    chosen = genotype.most_likely(current.spec, current.state.arch)
    derived = state.derive_state(current.state, current.spec, chosen, setup.tx)
    current.spec = genotype.derive(current.spec, chosen)
    current.state = devices.replicated(derived)
    start.log_network(setup, current.spec)
