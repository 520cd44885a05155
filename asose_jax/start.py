"""Where a run begins: at step 0, from what another run has learned, or where it was stopped."""

import json
import logging
import pathlib

import flax.linen as nn
import jax.numpy as jnp

from asose_jax import checkpoint, devices, genotype, state
from asose_jax.errors import UserError
from asose_jax.model import Mode
from asose_jax.phases import Phase
from asose_jax.session import INIT, Current, Setup

logger = logging.getLogger('asose_jax')


def begin(setup: Setup) -> Current:
    """Step 0: fresh, or with what another run has learned."""
    c = setup.config
    if c.init_from is not None:
        return begin_from(setup, c.init_from)
    if c.network is not None:
        spec = _read_network(setup, c.network)
    else:
        spec = genotype.chain_spec(
            setup.data.image_shape,
            len(setup.data.class_names),
            channels=c.model.channels,
            depth=c.model.depth,
            reductions=tuple(c.model.reductions),
            max_channels=c.model.max_channels,
            primitives=tuple(c.model.primitives),
        )
    start = state.init_state(setup.model(spec), setup.tx, setup.key(INIT))
    checkpoint.require_room(setup.workdir, start)
    log_network(setup, spec)
    return Current(spec, devices.replicated(start), None)


def begin_from(setup: Setup, source: str) -> Current:
    """Weights, alpha, BN statistics and moments of another run; steps and schedules from 0."""
    directory, step = checkpoint.locate(source)
    with checkpoint.Checkpoints(directory) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise UserError(f'init_from={source!r}: no finished checkpoint in {directory}')
        meta = checkpoints.describe(step)
        spec = genotype.NetSpec.from_json(meta['spec'])
        _require_same_images(setup, spec, f'init_from={source!r} was trained on')
        if spec.is_derived() and setup.plan.spans[0].phase is not Phase.OPTIMIZE:
            raise UserError(
                f'init_from={source!r} holds a derived network, which can only be optimized '
                'further: set warmup.epochs, search.epochs and growth.epochs to 0, or take a '
                'checkpoint from the end of an earlier phase (WORKDIR/checkpoints/STEP).'
            )
        old = checkpoints.restore(step, _abstract_state(setup, spec))
    start = state.restart(old, setup.tx)
    log_network(setup, spec)
    logger.info('starting from %s, end of step %d (%s)', directory, step, meta['phase'])
    return Current(spec, devices.replicated(start), Phase(meta['phase']))


def _read_network(setup, path):
    """The description in a genotype.json, or in that of a workdir."""
    given = pathlib.Path(path).expanduser()
    file = given / 'genotype.json' if given.is_dir() else given
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        spec = genotype.NetSpec.from_json(content['network'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'network={path!r}: {file} cannot be read as a network ({type(error).__name__}: '
            f'{error}). Name a genotype.json, or the workdir of a finished run.'
        ) from error
    _require_same_images(setup, spec, f'network={path!r} is for')
    return spec


def _require_same_images(setup, spec, whose):
    ours = (setup.data.image_shape, len(setup.data.class_names))
    if (spec.image_shape, spec.num_classes) != ours:
        raise UserError(
            f'{whose} images {spec.image_shape} of {spec.num_classes} classes, '
            f'data.name={setup.config.data.name!r} has {ours[0]} of {ours[1]}.'
        )


def resume(setup: Setup) -> Current:
    """The newest checkpoint; its description first, since that gives the shapes."""
    step = setup.checkpoints.latest()
    meta = setup.checkpoints.describe(step)
    spec = genotype.NetSpec.from_json(meta['spec'])
    log_network(setup, spec)
    restored = setup.checkpoints.restore(step, _abstract_state(setup, spec))
    logger.info('going on from step %d (%s)', step, meta['phase'])
    return Current(spec, restored, Phase(meta['phase']), meta['told'])


def _abstract_state(setup, spec):
    return state.abstract_state(setup.model(spec), setup.tx, devices.everywhere())


def log_network(setup: Setup, spec: genotype.NetSpec) -> None:
    """Logs a table of the network: shapes, parameters, sizes."""
    image = jnp.zeros((1, *spec.image_shape), jnp.float32)
    keys = dict.fromkeys(('params', 'arch'), setup.key(INIT))
    table = nn.tabulate(
        setup.model(spec),
        keys,
        depth=1,
        console_kwargs={'width': 90, 'force_terminal': False},
        column_kwargs={'justify': 'left'},
    )
    logger.info('network:\n%s', table(image, mode=Mode.SKIP, train=False))
