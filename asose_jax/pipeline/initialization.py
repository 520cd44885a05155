"""Starts a run: from scratch, from a checkpoint of another run, or where it was stopped."""

import dataclasses
import json
import logging
import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from asose_jax.arch import genotype
from asose_jax.config.consistency import has_exact_start
from asose_jax.data.dataset import Dataset, warn_of_other_pictures
from asose_jax.nn import factors, operations
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import old_checkpoints
from asose_jax.pipeline.builders import make_supernet
from asose_jax.pipeline.run_context import INIT, RunContext, RunState, pack_to_devices
from asose_jax.pipeline.run_history import RunHistory
from asose_jax.runtime import text_file
from asose_jax.runtime.errors import UserError, describe_os_error
from asose_jax.runtime.workdir import checksum, read_json_object, write_atomically
from asose_jax.spaces import chain, genotype_text, registry
from asose_jax.spaces.supernet import HEAD, SECOND_HEAD, SuperNet
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.phases import Phase, Schedule
from asose_jax.train.state import SearchState

logger = logging.getLogger('asose_jax')

# Fields that say what a run begins with, in the place of a new supernet.
START_FIELDS = ('network', 'genotype', 'init_from')
# Values of `genotype` and `network` that are no paths: JSON, the texts of DARTS, NAS-Bench-201.
_TEXT = re.compile(r'^\s*\ufeff?\s*\{|\bGenotype\s*\(|[|¦]\w+~\d[|¦]')
_BOM = '\ufeff'
_MAX_MODULES = 10  # of a network that the log lists; network.txt has them all
_MAX_VALUE = 80  # characters of a value in a message
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
        spec = _read_network(config.network, images)
        _require_same_space(spec, config.model.space, f'network={config.network!r}')
        _warn_if_chosen_on_other_pictures(config.network, images)
        return Origin(_scaled(spec, config.network_channels))
    spec = _configured_supernet(config, images)
    if config.genotype is None:
        return Origin(spec)
    chosen = _chosen_network(config.genotype, spec)
    _warn_if_chosen_on_other_pictures(config.genotype, images)
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
            f'{field}={_quoted(config[field])} is not what the run in the workdir began with. '
            'Restore it, or choose another --workdir.'
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


# --- Files with a network or a genotype


@dataclasses.dataclass(frozen=True)
class _Source:
    """The text that `genotype` or `network` stands for.

    Attributes:
      text: the content of the file, or the value itself.
      file: its file; `None` if the value is the text.
      name: of one genotype in it, if the value ends with one.
    """

    text: str
    file: pathlib.Path | None = None
    name: str | None = None

    def __str__(self) -> str:
        """Returns what the messages call it."""
        return 'this text' if self.file is None else str(self.file)


def _read_source(field: str, value: str) -> _Source:
    """Reads the text that a field of the config names or holds.

    Args:
      field: `genotype` or `network`.
      value: a file, `FILE:NAME`, a workdir, which holds genotype.json, or the text itself.

    Raises:
      UserError: the file cannot be read.
    """
    if _TEXT.search(value):
        return _Source(value.lstrip(_BOM))
    try:
        file, name = pathlib.Path(value).expanduser(), None
        head, colon, tail = value.rpartition(':')
        if colon and tail.isidentifier() and not file.exists():
            file, name = pathlib.Path(head).expanduser(), tail
        file = file / 'genotype.json' if file.is_dir() else file
        return _Source(text_file.read(file), file, name)
    except OSError as error:
        raise UserError(
            f'{field}={value!r} cannot be read as a {field}: {describe_os_error(error)} It may be '
            'a genotype.json, a workdir with one, a file with the text format of the space, '
            'FILE:NAME, or the text itself.'
        ) from error
    except ValueError as error:
        raise UserError(f'{field}={_quoted(value)}: {error}. Name another file.') from error


def _warn_if_chosen_on_other_pictures(value: str, images: Dataset) -> None:
    """Warns if the search that chose a network may have used this run's test pictures."""
    if not _TEXT.search(value):
        path = pathlib.Path(value).expanduser()
        warn_of_other_pictures(images, path if path.is_dir() else path.parent)


def _quoted(value: str) -> str:
    return repr(value if len(value) <= _MAX_VALUE else f'{value[:_MAX_VALUE]}...')


def _chosen_network(value: str, spec: genotype.NetSpec) -> genotype.NetSpec:
    """Returns the network that a genotype derives from a supernet.

    Args:
      value: of the field `genotype`: a file with JSON or with the text format of the space,
        `FILE:NAME` for one of several genotypes in it, a workdir, or the text itself.
      spec: description of the supernet.

    Raises:
      UserError: the genotype cannot be read, or does not fit the supernet.
    """
    source = _read_source('genotype', value)
    try:
        if source.text.lstrip().startswith('{'):
            _require_no_name(source)
            content = json.loads(source.text)
            if content.get('network', {}).get('space', spec.SPACE) != spec.SPACE:
                raise ValueError(f'it is for the space {content["network"]["space"]!r}')
            chosen = genotype.Genotype(genotype.to_tuples(content['genotype']))
        elif (loads := registry.SPACES[spec.SPACE].loads) is not None:
            chosen = loads(source.text, source.name)
        else:
            raise ValueError(f'the space {spec.SPACE!r} has no text format, only genotype.json')
        unknown = {
            name for group in chosen.operations for name in group
        } - operations.PRIMITIVES.keys()
        if unknown:
            raise ValueError(f'unknown operations {sorted(unknown)}')
        return genotype.derive(spec, chosen)
    except genotype_text.ChoiceError as error:
        raise UserError(f'genotype={_quoted(value)}: {source}: {error}.') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if (other := _space_of(source.text)) not in (None, spec.SPACE):
            raise UserError(
                f'genotype={_quoted(value)}: {source} holds a genotype of the space {other!r}, but '
                f'model.space={spec.SPACE!r}. Start with the preset of that space, {other!r}.'
            ) from error
        raise UserError(
            f'genotype={_quoted(value)}: {source} holds no genotype for a network of '
            f'model.space={spec.SPACE!r}: {_reason(error)}. Name a genotype.json, a workdir, or a '
            'file with the text format of the space, and set the fields of model to fit it.'
        ) from error


def _space_of(text: str) -> str | None:
    """Returns the space in whose text format there are genotypes in a text, if there is one."""
    for name, space in registry.SPACES.items():
        if space.loads is not None:
            try:
                space.loads(text)
            except genotype_text.ChoiceError:  # there are several
                return name
            except ValueError:
                continue
            return name
    return None


def _reason(error: Exception) -> str:
    """Returns the message of a ValueError, and also the type of an error without a sentence."""
    return str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'


def _require_no_name(source: _Source) -> None:
    """Raises ValueError if a JSON file, which holds one genotype, is named with one of several."""
    if source.name is not None:
        raise ValueError(f'it is JSON and holds one genotype without a name, not {source.name!r}')


def _read_network(value: str, images: Dataset) -> genotype.NetSpec:
    """Reads the derived network that a genotype.json describes.

    Raises:
      UserError: the network cannot be read, is not derived, or does not fit the images.
    """
    source = _read_source('network', value)
    named = f'network={_quoted(value)}'
    try:
        _require_no_name(source)
        content = json.loads(source.text)
        # Schema 1 had the space beside the network, not in it.
        space = content['network'].get('space', content.get('space'))
        schema = content['schema']
        readable = space in registry.SPACES and schema == genotype.SCHEMA
        spec = registry.spec_from_json(content['network']) if readable else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if (space := _space_of(source.text)) is not None:
            raise UserError(
                f'{named}: {source} holds a genotype of the space {space!r}, not the sizes of a '
                f'network. Start with the preset of that space, {space!r}, and set genotype.'
            ) from error
        raise UserError(
            f'{named}: {source} cannot be read as a network ({type(error).__name__}: '
            f'{error}). Name a genotype.json, or the workdir of a finished run.'
        ) from error
    if spec is None:
        raise UserError(
            f'{named}: {source} is of space {space!r}, schema {schema!r}; this version '
            f'reads schema {genotype.SCHEMA} of {", ".join(map(repr, registry.SPACES))}. Use the '
            'version of asose_jax that wrote it.'
        )
    unknown = {
        name for row in spec.rows() for name in row.candidates
    } - operations.PRIMITIVES.keys()
    if unknown or not spec.is_derived():
        fault = (
            f'unknown operations {sorted(unknown)}' if unknown else 'choices of several candidates'
        )
        raise UserError(
            f'{named}: {source} has {fault}. Every choice must name exactly one of '
            f'{", ".join(operations.PRIMITIVES)}.'
        )
    _require_same_images(images, spec, f'{named} is for')
    # Factors that were left at the end of a search belong to its weights, which are not read.
    return dataclasses.replace(spec, factors=())


def _require_same_images(images: Dataset, spec: genotype.NetSpec, source: str) -> None:
    """Raises UserError unless a network takes the images of the data set, and knows their classes.

    `source` begins the message, such as `"network='FILE' is for"`.
    """
    ours = (images.image_shape, len(images.class_names))
    if (spec.image_shape, spec.num_classes) != ours:
        raise UserError(
            f'{source} images {spec.image_shape} of {spec.num_classes} classes; the images of '
            f'data.name are {ours[0]}, of {ours[1]} classes.'
        )


def _require_same_shape(images: Dataset, spec: genotype.NetSpec, source: str) -> None:
    """Raises UserError unless a network takes images of this shape, see `_require_same_images`."""
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
    log_network(context, spec)
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
    log_network(context, current.spec)
    logger.info('going on from step %d (%s)', current.step, current.phase)
    return current


def _abstract_state(context: RunContext, spec: genotype.NetSpec, averages: bool) -> SearchState:
    sharding = pmap.replicated_sharding()
    return state.abstract_state(context.model(spec), context.tx, sharding, averages)


def _module_order(module: str) -> tuple[int, int, str]:
    """Returns where a module of a network stands among the others, by its name."""
    number = module.rpartition('_')[2]
    if number.isdigit():
        return 1, int(number), module
    return 0 if module.startswith('stem') else 3 if module.endswith('head') else 2, 0, module


def log_network(context: RunContext, spec: genotype.NetSpec) -> None:
    """Logs the parameters of each module of a network; writes the table of all to network.txt."""
    image = jnp.zeros((1, *spec.image_shape), jnp.float32)
    keys: dict[str, jax.Array] = dict.fromkeys(('params', 'arch'), context.key(INIT))
    table = nn.summary.tabulate(
        context.model(spec),
        keys,
        depth=1,
        console_kwargs={'width': 90, 'force_terminal': False},
        column_kwargs={'justify': 'left'},
    )
    path = context.workdir / 'network.txt'
    if context.is_primary_host:
        write_atomically(path, table(image, mode=Mode.SKIP, train=False).strip('\n') + '\n')
    like = state.abstract_state(context.model(spec), context.tx, pmap.replicated_sharding())
    sizes = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params[name]))
        for name in sorted(like.params, key=_module_order)
    }
    lines = [f'{name:12} {size:>12,}' for name, size in sizes.items()]
    if len(lines) > _MAX_MODULES:
        half = _MAX_MODULES // 2
        left = sum([*sizes.values()][half:-half])
        lines[half:-half] = [f'{f"{len(lines) - 2 * half} more":12} {left:>12,}']
    logger.info(
        'network of %s parameters (%s has all modules):\n  %s',
        *(f'{sum(sizes.values()):,}', path, '\n  '.join(lines)),
    )
