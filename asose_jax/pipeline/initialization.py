"""Where a run begins: at step 0, from what another run has learned, or where it was stopped."""

import dataclasses
import json
import logging
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from asose_jax.arch import genotype
from asose_jax.config.validation import has_exact_start
from asose_jax.data.dataset import Dataset
from asose_jax.nn import factors, operations
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import old_checkpoints
from asose_jax.pipeline.builders import make_supernet
from asose_jax.pipeline.run_context import INIT, RunContext, RunState, on_devices
from asose_jax.pipeline.run_history import RunHistory
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain, registry
from asose_jax.spaces.supernet import SECOND_HEAD
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.phases import Phase, Schedule

logger = logging.getLogger('asose_jax')


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a new run begins with: a network, and the checkpoint of another run, if any."""

    spec: genotype.NetSpec
    directory: pathlib.Path | None = None
    step: int | None = None
    phase: Phase | None = None
    gates: bool = False  # of an older version, see `old_checkpoints`


def origin(config: ml_collections.ConfigDict, images: Dataset, schedule: Schedule) -> Origin:
    """Where a run with this config begins; nothing is written.

    Raises:
      UserError: `network` or `init_from` cannot be read, or does not fit the data or the plan.
    """
    m = config.model
    if config.init_from is not None:
        try:
            found, arrays = _of_another_run(config.init_from, images, schedule)
        except checkpoint.DamagedError as error:
            raise UserError(f'init_from={config.init_from!r}: {error}') from error
        _require_same_space(found.spec, m.space, f'init_from={config.init_from!r}')
        if not found.spec.is_derived():
            _require_same_form(found.spec, config)
        _require_same_weights(found.spec, arrays, config)
        return found
    if config.network is not None:
        spec = _read_network(config.network, images)
        _require_same_space(spec, m.space, f'network={config.network!r}')
        return Origin(_scaled(spec, config.network_channels))
    spec = registry.SPACES[m.space].build(
        images.image_shape,
        len(images.class_names),
        channels=m.channels,
        depth=m.depth,
        reductions=tuple(m.reductions),
        max_channels=m.max_channels,
        primitives=tuple(m.primitives),
    )
    spec = dataclasses.replace(spec, partial=config.search.partial_channels)
    if not m.residual:
        spec = dataclasses.replace(spec, residual=False)
    if has_exact_start(config):
        spec = spec.with_factors()
    if not all(spec.places(row.group, row.member) for row in spec.rows()):
        raise UserError(
            f'model.reductions={tuple(m.reductions)}: with model.depth={m.depth} in the space '
            f'{m.space!r}, some choices would decide on nothing; it needs modules that reduce '
            "('darts') and modules that do not"
        )
    return Origin(spec if config.genotype is None else _chosen(config.genotype, spec))


def _require_same_form(spec, config):
    """What is of the model's form and yet no number of channels or blocks."""
    forms = [('search.partial_channels', spec.partial, config.search.partial_channels)]
    if isinstance(spec, chain.ChainSpec):
        forms.append(('model.residual', spec.residual, config.model.residual))
    else:
        forms.append(('search.exact_start', bool(spec.factors), has_exact_start(config)))
    for field, found, wanted in forms:
        if found != wanted:
            raise UserError(
                f'init_from={config.init_from!r} holds a network of {field}={found}, this run has '
                f'{wanted}: set it to the same'
            )


def _require_same_weights(spec, arrays, config):
    """Those beside the candidates, of which a description of the network does not tell."""
    model = make_supernet(config, spec)
    like = state.abstract_state(model, optax.identity(), pmap.replicated_sharding())
    theirs, ours = (
        {name for name in names if name.startswith('.params') and not old_checkpoints.is_gate(name)}
        for names in (arrays, checkpoint.names(like))
    )
    if theirs != ours:
        verb, name = 'has' if theirs - ours else 'has not', min(theirs ^ ours)
        field = 'optimize.second_head' if SECOND_HEAD in name else 'search.auxiliary_skip'
        raise UserError(
            f'init_from={config.init_from!r} {verb} the weights {name}, unlike this run: set '
            f'{field} to what it was there'
        )


def _scaled(spec, channels):
    if channels is None:
        return spec
    try:
        return chain.scaled(spec, channels)
    except ValueError as error:
        raise UserError(f'network_channels={channels}: {error}; take another number') from error


def _require_same_space(spec, space, whose):
    if space != spec.SPACE:
        raise UserError(
            f'{whose} is of the space {spec.SPACE!r}; model.space={space!r}. Set it, or begin with '
            'the preset of that space.'
        )


def _genotype_file(path):
    given = pathlib.Path(path).expanduser()
    return given / 'genotype.json' if given.is_dir() else given


def _chosen(path, spec):
    """The derived network of the genotype in a file: JSON, or the text of the space."""
    file = _genotype_file(path)
    try:
        text = file.read_text(encoding='utf-8')
        if text.lstrip().startswith('{'):
            content = json.loads(text)
            if content.get('network', {}).get('space', spec.SPACE) != spec.SPACE:
                raise ValueError(f'it is of the space {content["network"]["space"]!r}')
            chosen = genotype.Genotype(genotype.frozen(content['genotype']))
        elif (loads := registry.SPACES[spec.SPACE].loads) is not None:
            chosen = loads(text)
        else:
            raise ValueError(f'the space {spec.SPACE!r} has no text of its own, only genotype.json')
        unknown = {
            name for group in chosen.operations for name in group
        } - operations.PRIMITIVES.keys()
        if unknown:
            raise ValueError(f'unknown operations {sorted(unknown)}')
        return genotype.derive(spec, chosen)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'genotype={path!r}: {file} holds no genotype for a network of model.space='
            f'{spec.SPACE!r} ({type(error).__name__}: {error}). Name a genotype.json, a workdir, '
            'or a file with the text of the space, and set the fields of model to fit it.'
        ) from error


def _of_another_run(source, images, schedule):
    directory, step = checkpoint.locate(source)
    with checkpoint.Checkpoints(directory) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise UserError(f'init_from={source!r}: no finished checkpoint in {directory}')
        meta = checkpoints.describe(step)
    spec = registry.spec_from_json(meta['spec'])
    _require_same_images(images, spec, f'init_from={source!r} was trained on')
    if spec.is_derived() and schedule.spans[0].phase is not Phase.OPTIMIZE:
        raise UserError(
            f'init_from={source!r} holds a derived network, which can only be optimized '
            'further: set warmup.epochs, search.epochs and growth.epochs to 0, or take a '
            'checkpoint from the end of an earlier phase (WORKDIR/checkpoints/STEP).'
        )
    arrays = [*meta['checksums']]
    return Origin(
        spec, directory, step, Phase(meta['phase']), old_checkpoints.are_in(arrays)
    ), arrays


def _read_network(path, images):
    """The description in a genotype.json, or in that of a workdir."""
    file = _genotype_file(path)
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        # Schema 1 named the space at the top.
        kind = (content['network'].get('space', content.get('space')), content['schema'])
        known = kind[0] in registry.SPACES and kind[1] == genotype.SCHEMA
        spec = registry.spec_from_json(content['network']) if known else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'network={path!r}: {file} cannot be read as a network ({type(error).__name__}: '
            f'{error}). Name a genotype.json, or the workdir of a finished run.'
        ) from error
    if spec is None:
        raise UserError(
            f'network={path!r}: {file} is of space {kind[0]!r}, schema {kind[1]!r}; this version '
            f'reads schema {genotype.SCHEMA} of {", ".join(map(repr, registry.SPACES))}. Use the '
            'version of asose_jax that wrote it.'
        )
    unknown = {
        name for row in spec.rows() for name in row.candidates
    } - operations.PRIMITIVES.keys()
    if unknown or not spec.is_derived():
        what = f'the unknown operations {sorted(unknown)}' if unknown else 'a choice left open'
        raise UserError(
            f'network={path!r}: {file} has {what}. It must name one of these everywhere: '
            f'{", ".join(operations.PRIMITIVES)}.'
        )
    _require_same_images(images, spec, f'network={path!r} is for')
    return dataclasses.replace(spec, factors=())  # of a trained supernet's end


def _require_same_images(images, spec, whose):
    ours = (images.image_shape, len(images.class_names))
    if (spec.image_shape, spec.num_classes) != ours:
        raise UserError(
            f'{whose} images {spec.image_shape} of {spec.num_classes} classes; the images of '
            f'data.name are {ours[0]}, of {ours[1]} classes.'
        )


def begin(context: RunContext, origin: Origin) -> RunState:
    """Step 0: fresh, or with weights, alpha, BN statistics and moments of another run."""
    spec = origin.spec
    log_network(context, spec)
    if origin.directory is None:
        start = state.init_state(context.model(origin.spec), context.tx, context.key(INIT))
    else:
        with checkpoint.Checkpoints(origin.directory) as checkpoints:
            try:
                if origin.gates:
                    spec, old = old_checkpoints.restore(
                        checkpoints, origin.step, spec, context.model, context.tx
                    )
                else:
                    old = checkpoints.restore(origin.step, _abstract_state(context, spec))
            except checkpoint.DamagedError as error:
                raise UserError(f'init_from={context.config.init_from!r}: {error}') from error
        start = state.restart(old)
        _tell_open(context, old)
        logger.info(
            'starting from %s, end of step %d (%s)', origin.directory, origin.step, origin.phase
        )
    checkpoint.require_room(context.workdir, start)
    return RunState(spec, on_devices(start), origin.phase)


def _tell_open(context, old):
    """Warns of a warmup of the residuals alone that begins with candidates which are open."""
    leaves = jax.tree.leaves_with_path(old.params)
    is_open = any(bool(leaf != 0) for path, leaf in leaves if factors.is_factor(path))
    if is_open and has_exact_start(context.config) and context.config.warmup.epochs:
        logger.warning(
            'init_from=%r holds candidates that are trained, which warmup leaves out and search '
            'begins with again: set warmup.epochs=0, or search.exact_start=False',
            context.config.init_from,
        )


def resume(context: RunContext) -> RunState:
    """The newest checkpoint that is whole; its description first, since that gives the shapes."""

    def read(step):
        meta = context.checkpoints.describe(step)
        if old_checkpoints.are_in(meta['checksums']):
            raise UserError(
                f'{context.workdir} holds a run of an older version of asose_jax, whose blocks had '
                'gates. Let that version finish it; or begin a run in another --workdir with '
                f'--config.init_from={context.checkpoints.directory / str(step)}'
            )
        spec = registry.spec_from_json(meta['spec'])
        restored = context.checkpoints.restore(step, _abstract_state(context, spec))
        told = RunHistory.from_json(meta['told'])
        return RunState(spec, on_devices(restored), Phase(meta['phase']), told)

    current = context.checkpoints.restore_latest_valid(read)
    log_network(context, current.spec)
    logger.info('going on from step %d (%s)', current.step, current.phase)
    return current


def _abstract_state(context, spec):
    return state.abstract_state(context.model(spec), context.tx, pmap.replicated_sharding())


def log_network(context: RunContext, spec: genotype.NetSpec) -> None:
    """Logs a table of the network: shapes, parameters, sizes."""
    image = jnp.zeros((1, *spec.image_shape), jnp.float32)
    keys = dict.fromkeys(('params', 'arch'), context.key(INIT))
    table = nn.tabulate(
        context.model(spec),
        keys,
        depth=1,
        console_kwargs={'width': 90, 'force_terminal': False},
        column_kwargs={'justify': 'left'},
    )
    logger.info('network:\n%s', table(image, mode=Mode.SKIP, train=False))
