"""Starts a run: from scratch, from a checkpoint of another run, or where it was stopped."""

import dataclasses
import logging
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import jax
import ml_collections
import optax

from asose_jax.arch import genotype
from asose_jax.config.consistency import has_exact_start
from asose_jax.data.dataset import Dataset
from asose_jax.nn import factors
from asose_jax.pipeline import genotype_files, network_log, old_checkpoints
from asose_jax.pipeline.builders import make_supernet
from asose_jax.pipeline.run_context import INIT, RunContext, RunState, pack_to_devices
from asose_jax.pipeline.run_history import RunHistory
from asose_jax.runtime.errors import UserError
from asose_jax.runtime.workdir import checksum, read_json_object
from asose_jax.spaces import chain, registry
from asose_jax.spaces.supernet import HEAD, SECOND_HEAD, SuperNet
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.phases import Phase, Schedule
from asose_jax.train.state import SearchState

logger = logging.getLogger('asose_jax')

# Fields that say what a run begins with, in the place of a new supernet.
START_FIELDS = ('network', 'genotype', 'init_from')
_MAX_NAMES = 5  # names of classes in a message


@dataclasses.dataclass(frozen=True)
class Origin:
    """Describes the start of a new run.

    Attributes:
      spec: description of the network.
      directory: of the checkpoints of another run, whose state is taken over; `None` if weights
        start fresh.
      step: of the checkpoint there.
      phase: that the other run was in at that step.
      has_gates: whether the checkpoint is of an older version, see `old_checkpoints`.
      has_average: whether it has an average of the weights, see `state.AveragingState`.
      checksums: of the arrays in the checkpoint.
      num_classes: number of classes that the network in the checkpoint tells apart.
      with_head: whether the head is taken over, too; otherwise its weights start fresh.
      drops_second_head: whether the checkpoint has a second head that this run does not train.
    """

    spec: genotype.NetSpec
    directory: pathlib.Path | None = None
    step: int | None = None
    phase: Phase | None = None
    has_gates: bool = False
    has_average: bool = False
    checksums: Mapping[str, int] | None = None
    num_classes: int = 0
    with_head: bool = True
    drops_second_head: bool = False

    def digest(self) -> int:
        """Returns a number by which a run knows its origin again, wherever the files are."""
        return checksum([self.spec.to_json(), self.checksums])


def find_origin(config: ml_collections.ConfigDict, images: Dataset, schedule: Schedule) -> Origin:
    """Finds out what a run with this config starts from. Reads files and writes none.

    It is the checkpoint that `init_from` names; or else, with fresh weights, the derived network
    that `network` names, or the supernet of the config, in which `genotype` may choose.

    Args:
      config: of the run.
      images: the data set, which the network must fit.
      schedule: of the run.

    Returns:
      The origin; nothing of another run's state is read yet, see `start`.

    Raises:
      UserError: `init_from`, `network` or `genotype` cannot be read, or does not fit the data, the
        schedule or the rest of the config.
    """
    if config.init_from is not None:
        return _checkpoint_origin(config, images, schedule)
    if config.network is not None:
        spec = genotype_files.read_network(config.network, images)
        _require_same_space(spec, config.model.space, f'network={config.network!r}')
        genotype_files.warn_if_chosen_on_other_pictures(config.network, images)
        return Origin(_scaled(spec, config.network_channels))
    spec = _configured_supernet(config, images)
    if config.genotype is None:
        return Origin(spec)
    chosen = genotype_files.chosen_network(config.genotype, spec)
    genotype_files.warn_if_chosen_on_other_pictures(config.genotype, images)
    return Origin(chosen)


def require_same_origin(
    config: ml_collections.ConfigDict,
    images: Dataset,
    schedule: Schedule,
    recorded: Mapping[str, Any],
    moved: Collection[str],
) -> None:
    """Refuses to go on with a run that began with another network or checkpoint than `config` says.

    Args:
      config: of the command.
      images: the data set.
      schedule: of the run.
      recorded: run.json of the run; older versions wrote no `origin`, and nothing is compared.
      moved: fields with another path than before. Where the path is the same, a missing file is no
        mistake, and a run that `init_from` names may have gone on.

    Raises:
      UserError: the origin differs, or it has moved and cannot be read.
    """
    field = next((name for name in START_FIELDS if config[name] is not None), None)
    if field is None or 'origin' not in recorded or (field == 'init_from' and field not in moved):
        return
    try:
        origin = find_origin(config, images, schedule)
    except UserError:
        if field in moved:
            raise
        return
    if origin.digest() != recorded['origin']:
        raise UserError(
            f'{field}={genotype_files.quoted(config[field])} is not what the run in the workdir '
            'began with. Restore it, or choose another --workdir.'
        )


def _configured_supernet(config: ml_collections.ConfigDict, images: Dataset) -> genotype.NetSpec:
    """Returns the description of the supernet that `config` asks for."""
    m = config.model
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
            f'{m.space!r}, some rows of alpha would control no operation. The space needs modules '
            "that reduce ('darts') and modules that do not."
        )
    return spec


# --- Checkpoints of other runs


def _checkpoint_origin(
    config: ml_collections.ConfigDict, images: Dataset, schedule: Schedule
) -> Origin:
    """Returns the checkpoint that `init_from` names, if this run can go on from it."""
    try:
        source, arrays = _describe_checkpoint(config.init_from, images, schedule)
    except checkpoint.DamagedError as error:
        raise UserError(
            f'init_from={config.init_from!r}: {error}. Restore it from a copy, or name another '
            'checkpoint, WORKDIR/checkpoints/STEP.'
        ) from error
    _require_same_space(source.spec, config.model.space, f'init_from={config.init_from!r}')
    if not source.spec.is_derived():
        _require_same_form(source.spec, config)
        if config.optimize.frozen and source.spec.partial > 1:
            raise UserError(
                f'init_from={config.init_from!r} holds a supernet with '
                f'search.partial_channels={source.spec.partial}: the operations that are chosen '
                'there begin with fresh weights, which optimize.frozen=True would never train; set '
                'optimize.frozen=False, or take a checkpoint from its optimize phase'
            )
    _require_same_weights(source.spec, arrays, config)
    has_second_head = any(name.startswith(f".params['{SECOND_HEAD}']") for name in arrays)
    return dataclasses.replace(
        source, drops_second_head=has_second_head and not config.optimize.second_head
    )


def _describe_checkpoint(
    path: str, images: Dataset, schedule: Schedule
) -> tuple[Origin, list[str]]:
    """Reads the description of a checkpoint of another run, and the names of its arrays.

    Raises:
      UserError: there is no checkpoint, or it does not fit the data or the schedule.
      DamagedError: it cannot be read.
    """
    directory, step = checkpoint.parse_init_from(path)
    with checkpoint.Checkpoints(directory) as checkpoints:
        step = checkpoints.latest() if step is None else step
        if step is None:
            raise UserError(f'init_from={path!r}: no finished checkpoint in {directory}')
        meta = checkpoints.describe(step)
    spec = registry.spec_from_json(meta['spec'])
    _require_same_shape(images, spec, f'init_from={path!r} was trained on')
    if spec.is_derived() and schedule.spans[0].phase is not Phase.OPTIMIZE:
        raise UserError(
            f'init_from={path!r} holds a derived network, which can only be optimized '
            'further: set warmup.epochs, search.epochs and growth.epochs to 0, or take a '
            'checkpoint from the end of an earlier phase (WORKDIR/checkpoints/STEP).'
        )
    arrays = [*meta['checksums']]
    ours = [*images.class_names]
    names = read_json_object(directory.parent / 'run.json').get('classes', ours)
    origin = Origin(
        spec=dataclasses.replace(spec, num_classes=len(ours)),
        directory=directory,
        step=step,
        phase=Phase(meta['phase']),
        has_gates=old_checkpoints.has_gates(arrays),
        has_average=checkpoint.has_average(arrays),
        checksums=meta['checksums'],
        num_classes=spec.num_classes,
        with_head=spec.num_classes == len(ours) and names == ours,
    )
    return origin, arrays


def _require_same_form(spec: genotype.NetSpec, config: ml_collections.ConfigDict) -> None:
    """Compares the parts of a supernet's form that its channels and blocks do not show.

    Raises:
      UserError: one differs from what `config` asks for.
    """
    forms = [('search.partial_channels', spec.partial, config.search.partial_channels)]
    if isinstance(spec, chain.ChainSpec):
        forms.append(('model.residual', spec.residual, config.model.residual))
    else:
        forms.append(('search.exact_start', bool(spec.factors), has_exact_start(config)))
    for field, theirs, ours in forms:
        if theirs != ours:
            raise UserError(
                f'init_from={config.init_from!r} holds a network with {field}={theirs}, this run '
                f'has {ours}: set {field}={theirs}'
            )


def _require_same_weights(
    spec: genotype.NetSpec, arrays: Sequence[str], config: ml_collections.ConfigDict
) -> None:
    """Compares the names of the weights in a checkpoint with those that this run trains.

    They may differ in weights beside the candidates (second head, auxiliary skips), which the
    description of a network does not mention. A second head there may be left out here.

    Raises:
      UserError: they differ.
    """
    model = make_supernet(config, spec)
    like = state.abstract_state(model, optax.identity(), pmap.replicated_sharding())
    theirs, ours = (
        {name for name in names if name.startswith('.params') and not old_checkpoints.is_gate(name)}
        for names in (arrays, checkpoint.array_paths(like))
    )
    if not config.optimize.second_head:
        theirs = {name for name in theirs if SECOND_HEAD not in name}
    if theirs != ours:
        name = min(theirs ^ ours)
        field = 'optimize.second_head' if SECOND_HEAD in name else 'search.auxiliary_skip'
        difference = (
            f'has the weights {name}, which this run lacks'
            if theirs - ours
            else f'lacks the weights {name}, which this run has'
        )
        raise UserError(
            f'init_from={config.init_from!r} {difference}: set {field} as in the other run'
        )


def _scaled(spec: genotype.NetSpec, channels: int | None) -> genotype.NetSpec:
    if channels is None:
        return spec
    try:
        return chain.with_stem_channels(cast(chain.ChainSpec, spec), channels)
    except ValueError as error:
        raise UserError(f'network_channels={channels}: {error}. Set another number.') from error


def _require_same_space(spec: genotype.NetSpec, space: str, source: str) -> None:
    """Raises UserError unless `spec`, which the setting `source` names, is of this space."""
    if space != spec.SPACE:
        raise UserError(
            f'{source} is a network of the space {spec.SPACE!r}; model.space={space!r}. Set '
            f'model.space={spec.SPACE!r}, or start with the preset of that space.'
        )


def _require_same_shape(images: Dataset, spec: genotype.NetSpec, source: str) -> None:
    """Raises UserError unless a network takes images of this shape.

    `source` begins the message, such as `"init_from='DIR' was trained on"`.
    """
    ours, theirs = images.image_shape, spec.image_shape
    if ours == theirs:
        return
    advice = []
    if ours[:2] != theirs[:2]:
        is_square = theirs[0] == theirs[1]
        advice.append(
            f'set data.image_size={theirs[0]}' if is_square else 'take images of its size'
        )
    if ours[2] != theirs[2]:
        advice.append(f'save the images with {theirs[2]} channels instead of {ours[2]}')
    raise UserError(
        f'{source} images {theirs} (height, width, channels); the images of data.name are {ours}: '
        f'{" and ".join(advice)}.'
    )


# --- The state


def start(context: RunContext, origin: Origin) -> RunState:
    """Returns the state of a new run at step 0.

    Args:
      context: of the run.
      origin: what it starts from. Of a checkpoint of another run, weights, alpha, BatchNorm
        statistics and the optimizer's moments are taken over, see `state.restart`; but not those
        of the head where the classes are others.

    Raises:
      UserError: the checkpoint is damaged, or the disk is too full for checkpoints.
    """
    spec = origin.spec
    network_log.log_network(context, spec)
    if origin.directory is None:
        start = state.init_state(context.model(origin.spec), context.tx, context.key(INIT))
    else:
        spec, start = _restore_origin(context, origin)
        _warn_of_trained_candidates(context, start)
        logger.info(
            'starting from %s, end of step %d (%s)', origin.directory, origin.step, origin.phase
        )
        _log_heads(context, origin)
    largest = start.with_average() if context.config.optimize.ema else start
    checkpoint.require_disk_space(context.workdir, largest)
    return RunState(spec, pack_to_devices(start), origin.phase)


def _restore_origin(
    context: RunContext, origin: Origin
) -> tuple[genotype.NetSpec, state.SearchState]:
    """Restores the checkpoint of another run, with the heads that this run trains.

    Returns description and state of the network of this run, at step 0. An average of the weights
    has taken their place already, and a fresh head takes the place of both.

    Raises:
      UserError: the checkpoint is damaged.
    """
    assert origin.directory is not None
    assert origin.step is not None

    def model_of(spec: genotype.NetSpec) -> SuperNet:
        net = context.model(spec)
        if not origin.drops_second_head:
            return net
        return net.clone(settings=dataclasses.replace(net.settings, second_head=1.0))

    saved = dataclasses.replace(origin.spec, num_classes=origin.num_classes)
    with checkpoint.Checkpoints(origin.directory) as checkpoints:
        try:
            if origin.has_gates:
                saved, restored = old_checkpoints.restore(
                    checkpoints, origin.step, saved, model_of, context.tx
                )
            else:
                sharding = pmap.replicated_sharding()
                like = state.abstract_state(
                    model_of(saved), context.tx, sharding, origin.has_average
                )
                restored = checkpoints.restore(origin.step, like)
        except checkpoint.DamagedError as error:
            raise UserError(f'init_from={context.config.init_from!r}: {error}') from error
    begun = state.restart(restored)
    if origin.with_head and not origin.drops_second_head:
        return saved, begun
    spec = dataclasses.replace(saved, num_classes=origin.spec.num_classes)
    fresh = state.init_state(context.model(spec), context.tx, context.key(INIT), below=HEAD)
    return spec, state.inherit(fresh, begun, origin.with_head)


def _log_heads(context: RunContext, origin: Origin) -> None:
    """Logs which heads of another run are not taken over."""
    if not origin.with_head:
        names = context.data.class_names
        shown = ', '.join(names[:_MAX_NAMES]) + (', ...' if len(names) > _MAX_NAMES else '')
        logger.info(
            'the head starts from fresh weights: this run has %d classes (%s), that one had %s',
            len(names),
            shown,
            'others' if origin.num_classes == len(names) else origin.num_classes,
        )
    if origin.drops_second_head:
        logger.info('the second head of that run is left out: optimize.second_head=0')


def _warn_of_trained_candidates(context: RunContext, restored: SearchState) -> None:
    """Warns if factors are not 0 at the start of a warmup that uses no candidate.

    With an exact start, warmup trains what is around the candidates, and search begins with all
    factors at 0 (docs/algorithm.md, "Exact start").
    """
    leaves = jax.tree.leaves_with_path(restored.params)
    has_trained = any(bool(leaf != 0) for path, leaf in leaves if factors.is_factor(path))
    if has_trained and has_exact_start(context.config) and context.config.warmup.epochs:
        logger.warning(
            'init_from=%r holds candidates that are already trained: warmup does not use them, and '
            'search starts with them again. Set warmup.epochs=0, or search.exact_start=False.',
            context.config.init_from,
        )


def resume(context: RunContext) -> RunState:
    """Returns the state in the newest checkpoint of the run that is not damaged.

    Raises:
      UserError: all checkpoints are damaged, or another version of the program wrote them.
    """

    def read(step: int) -> RunState:
        # The description comes first: it gives the shapes of the arrays.
        meta = context.checkpoints.describe(step)
        if old_checkpoints.has_gates(meta['checksums']):
            raise UserError(
                f'{context.workdir} holds a run of an older version of asose_jax, whose blocks had '
                'gates; this version cannot continue it. Finish it with that version, or start a '
                'new run in another --workdir with '
                f'--config.init_from={context.checkpoints.directory / str(step)}'
            )
        spec = registry.spec_from_json(meta['spec'])
        like = _abstract_state(context, spec, checkpoint.has_average(meta['checksums']))
        restored = context.checkpoints.restore(step, like)
        history = RunHistory.from_json(meta['told'])
        return RunState(spec, pack_to_devices(restored), Phase(meta['phase']), history)

    current = context.checkpoints.restore_latest_valid(read)
    network_log.log_network(context, current.spec)
    logger.info('going on from step %d (%s)', current.step, current.phase)
    return current


def _abstract_state(context: RunContext, spec: genotype.NetSpec, averages: bool) -> SearchState:
    sharding = pmap.replicated_sharding()
    return state.abstract_state(context.model(spec), context.tx, sharding, averages)
