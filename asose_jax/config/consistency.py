"""Checks a config before anything is done with it: one error that names every wrong field."""

import copy
import json
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from asose_jax.arch.estimators import ESTIMATORS, Estimator
from asose_jax.config.schema import BEFORE, FIELDS, SAME_FLOPS
from asose_jax.costs import expected_cost, limit
from asose_jax.runtime import paths
from asose_jax.runtime.errors import UserError, counted
from asose_jax.spaces import natsbench, registry

logger = logging.getLogger('asose_jax')

Config = Mapping[str, Any]

_MAX_MISSING = 5  # fields that a config may lack and still be checked one by one
_PHASES = ('warmup', 'search', 'growth', 'optimize')
_IGNORED_BY_DIGITS = ('dir', 'train_split', 'test_split')
_NO_GROWTH = 'set growth.epochs=0 or growth.kinds=()'
# Fields of `retrain` that give the network that is trained another size.
RETRAIN_SIZES = ('channels', 'depth', 'reductions')


def flatten(config: Config, prefix: str = '') -> dict[str, Any]:
    """Returns a nested config as `{'search.epochs': 30, ...}`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, 'to_dict'):
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def unflatten(flat: Config) -> ml_collections.ConfigDict:
    """Inverts `flatten`, also after a trip through a JSON file, which makes lists of tuples.

    Fields that are newer than the run have the values that describe runs begun before them.
    """
    nested: dict[str, Any] = {}
    for name, value in {**BEFORE, **flat}.items():
        *groups, last = name.split('.')
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = tuple(value) if isinstance(value, list) else value
    return ml_collections.ConfigDict(nested)


def as_config(config: Config) -> ml_collections.ConfigDict:
    """Returns a config whose values are of the types that the command line has.

    Dictionaries, nested or with dotted names, become a config. NumPy scalars, arrays and
    `pathlib.Path` become numbers, tuples and strings. A config without such values stays as it is.

    Raises:
      UserError: it is no config, or it lacks so many fields that it was not made from a preset.
    """
    advice = "start from a preset: config = asose_jax.config.presets.get_config('digits')"
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise UserError(f'config={config!r} is no config; {advice}')
    flat = flatten(config)
    missing = [name for name in FIELDS if name not in flat]
    if len(missing) > _MAX_MISSING:
        raise UserError(
            f'the config lacks {len(missing)} of {len(FIELDS)} fields, such as {missing[0]} and '
            f'{missing[1]}; {advice}, then config.update_from_flattened_dict({{NAME: VALUE}})'
        )
    plain = {name: _plain(value) for name, value in flat.items()}
    if type(config) is not ml_collections.ConfigDict:
        return unflatten(plain)
    foreign = {name: value for name, value in plain.items() if value is not flat[name]}
    return with_fields(config, foreign) if foreign else config


def with_fields(config: ml_collections.ConfigDict, fields: Config) -> ml_collections.ConfigDict:
    """Returns a copy of the config with other values of some fields, by dotted name."""
    changed = copy.deepcopy(config)
    with changed.ignore_type():
        changed.update_from_flattened_dict(fields)
    return changed


def _plain(value: Any) -> Any:
    """Returns a value of the config without types of NumPy, JAX and pathlib."""
    if isinstance(value, range):
        return tuple(value)
    if isinstance(value, tuple | list):
        parts = [*map(_plain, value)]
        changed = any(one is not other for one, other in zip(parts, value, strict=True))
        return tuple(parts) if changed else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, 'tolist'):  # scalars and arrays of NumPy and JAX
        value = value.tolist()
        return tuple(value) if isinstance(value, list) else value
    return value


def validate(config: Config, devices: int) -> None:
    """Checks every field, alone and against the others.

    Args:
      config: as `presets.get_config` builds it.
      devices: number of devices that a batch is split over.

    Raises:
      UserError: one line for each wrong field: its value, what is allowed, what to do.
    """
    flat = flatten(config)
    wrong = [
        f'{key}: missing; start from a preset, see configs/search.py'
        for key in FIELDS.keys() - flat.keys()
    ]
    wrong += [f'{key}: there is no such field' for key in flat.keys() - FIELDS.keys()]
    wrong += _value_errors(flat)
    if not wrong:
        wrong = [*_batch_errors(config, devices)]
        wrong += [line for check in _CHECKS for line in check(config)]
    _refuse(wrong)


def require_values(config: Config, group: str) -> None:
    """Checks the fields of a group, each alone.

    Raises:
      UserError: one line for each wrong field.
    """
    _refuse(_value_errors({f'{group}.{key}': value for key, value in config[group].items()}))


def _value_errors(flat: Config) -> list[str]:
    return [
        f'{key}={flat[key]!r}: must be {FIELDS[key].rule.allowed}'
        for key in FIELDS.keys() & flat.keys()
        if not FIELDS[key].rule.holds(flat[key])
    ]


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise UserError('the config is wrong:\n  ' + '\n  '.join(sorted(wrong)))


def _batch_errors(config: Config, devices: int) -> list[str]:
    size, parts = config['batch_size'], config['arch']['micro_batches']
    if size % devices:
        return [
            f'batch_size={size}: must be divisible by the {devices} devices; try '
            f'{max(1, round(size / devices)) * devices}'
        ]
    if size // devices % parts:
        return [
            f'arch.micro_batches={parts}: must divide the {size // devices} images of a batch '
            'that each device gets'
        ]
    return []


def _data_errors(config: Config) -> list[str]:
    data, wrong = config['data'], []
    if data['name'] == 'folder' and data['dir'] is None:
        wrong.append("data.dir=None: data.name='folder' needs the folder, --config.data.dir=DIR")
    chooses = any(config[phase]['epochs'] for phase in _PHASES[:3])
    if not data['valid_fraction'] and (chooses or config['search']['selection'] != 'argmax'):
        wrong.append(
            f'data.valid_fraction={data["valid_fraction"]}: a search decides by validation images; '
            'take e.g. 0.2, or train a network that is chosen already, as --mode=retrain does'
        )
    if data['name'] != 'folder' and data['test_fraction'] is not None:
        wrong.append(
            f'data.test_fraction={data["test_fraction"]}: is for folders of pictures; '
            f'{data["name"]!r} has its test images, see data.test_split'
        )
    return wrong


def _digits_errors(config: Config) -> list[str]:
    """Returns the fields that the digits ignore, since they come with scikit-learn."""
    data = config['data']
    if data['name'] != 'digits':
        return []
    return [
        f"data.{field}={data[field]!r}: has no effect on data.name='digits', which comes with "
        f"scikit-learn and has a fixed test split; remove it, or set data.name='folder' or a TFDS "
        'name'
        for field in _IGNORED_BY_DIGITS
        if data[field] != FIELDS[f'data.{field}'].default
    ]


def _model_errors(config: Config) -> list[str]:
    model, partial, wrong = config['model'], config['search']['partial_channels'], []
    space = registry.SPACES[model['space']]
    if any(number >= model['depth'] for number in model['reductions']):
        wrong.append(
            f'model.reductions={tuple(model["reductions"])}: with model.depth={model["depth"]} the '
            f'blocks are 0..{model["depth"] - 1}'
        )
    if missing := space.needs - set(model['primitives']):
        wrong.append(
            f'model.primitives={tuple(model["primitives"])}: the space {model["space"]!r} needs '
            f'{", ".join(sorted(missing))}'
        )
    if not model['residual'] and model['space'] != 'chain':
        wrong.append(
            f"model.residual=False: is for the space 'chain'; the sums of {model['space']!r} are "
            'part of its cells'
        )
    divisor = partial * space.channels_divisor
    wrong += [
        f'model.{field}={model[field]}: the space {model["space"]!r} with '
        f'search.partial_channels={partial} needs a multiple of {divisor}'
        for field in ('channels', 'max_channels')
        if model[field] % divisor
    ]
    return wrong


def _growth_errors(config: Config) -> list[str]:
    growth, model, wrong = config['growth'], config['model'], []
    partial = config['search']['partial_channels']
    if 'auto' in growth['kinds'] and growth['where'] != 'score':
        wrong.append(
            f'growth.where={growth["where"]!r}: growth.kinds={growth["kinds"]} compares scores, '
            "which needs 'score'"
        )
    if not expected_cost.grows(config):
        return wrong
    if partial > 1:
        wrong.append(
            f'search.partial_channels={partial}: networks of partial channels do not grow; '
            + _NO_GROWTH
        )
    if not registry.SPACES[model['space']].grows:
        wrong.append(
            f'growth.kinds={tuple(growth["kinds"])}: networks of the space {model["space"]!r} do '
            f'not grow; {_NO_GROWTH}'
        )
    if not model['residual']:
        wrong.append(
            'model.residual=False: blocks without it do not grow, since a factor of 0 would cut '
            f'the network; {_NO_GROWTH}'
        )
    return wrong


def _exact_start_errors(config: Config) -> list[str]:
    """Returns why an exact start is impossible: something has to carry the images through."""
    model, search = config['model'], config['search']
    otherwise = 'set search.exact_start=False'
    if not search['exact_start']:
        return []
    if not model['residual']:
        return [
            'search.exact_start=True: with model.residual=False nothing would go through a block '
            f'at the start; {otherwise}'
        ]
    if config['warmup']['operations'] == 'uniform' and config['warmup']['epochs']:
        return [
            "search.exact_start=True: warmup.operations='uniform' trains the candidates, which "
            f'would begin at 0; {otherwise}, or warmup.operations=skip'
        ]
    if model['space'] != 'chain' and not search['auxiliary_skip']:
        return [
            f'search.exact_start=True: nothing would go through a cell of {model["space"]!r} at '
            f'the start; set search.auxiliary_skip=True, or {otherwise}'
        ]
    return []


def _estimator_errors(config: Config) -> list[str]:
    search, arch, wrong = config['search'], config['arch'], []
    estimator = ESTIMATORS[search['estimator']]
    named = f'search.estimator={search["estimator"]!r}'
    if search['noise'] == 'temperature' and not estimator.noisy:
        wrong.append(
            f'search.noise={search["noise"]!r}: {named} has no such noise; take one of '
            f'{_names(lambda row: row.noisy)}, or search.noise=unit'
        )
    if arch['samples'] > 1 and not estimator.draws:
        wrong.append(
            f'arch.samples={arch["samples"]}: {named} draws nothing, so all samples would be '
            'alike; set it to 1'
        )
    if arch['anchor'] and not estimator.anchored:
        wrong.append(
            f'arch.anchor={arch["anchor"]}: is a regulariser of Dirichlet draws; set '
            'search.estimator=drnas, or arch.anchor=0'
        )
    if search['second_order'] and (estimator.one_hot or search['arch_data'] != 'valid'):
        mixtures = _names(lambda row: not row.one_hot, ' or ')
        wrong.append(
            f'search.second_order=True: needs search.estimator={mixtures} (weight steps of the '
            'others train what was drawn, and say nothing of the rest) and search.arch_data=valid'
        )
    if search['tau_floor'] < estimator.least_tau:
        wrong.append(
            f'search.tau_floor={search["tau_floor"]}: {named} needs at least '
            f'{estimator.least_tau}; set search.tau_start and search.tau_floor to '
            f'{estimator.least_tau}'
        )
    if search['tau_floor'] > search['tau_start']:
        wrong.append(
            f'search.tau_floor={search["tau_floor"]}: must not exceed '
            f'search.tau_start={search["tau_start"]}'
        )
    return wrong


def _names(condition: Callable[[Estimator], bool], separator: str = ', ') -> str:
    return separator.join(name for name, row in ESTIMATORS.items() if condition(row))


def _search_errors(config: Config) -> list[str]:
    search, wrong = config['search'], []
    frozen = frozen_epochs(config)
    if frozen and frozen >= search['epochs']:
        wrong.append(
            f'search.freeze_epochs={search["freeze_epochs"]}: must be less than '
            f'search.epochs={search["epochs"]}, or alpha never moves in search'
        )
    moving = search['epochs'] - frozen
    if search['early_stop'] and moving < 2 * search['stop_window']:
        wrong.append(
            f'search.stop_window={search["stop_window"]}: search.early_stop compares twice as many '
            f'evaluations; alpha moves in {counted(moving, "epoch")} of the search'
        )
    if search['settle_epochs'] is not None and search['settle_epochs'] >= moving:
        wrong.append(
            f'search.settle_epochs={search["settle_epochs"]}: must be less than the '
            f'{counted(moving, "epoch")} of search in which alpha moves'
        )
    if search['early_stop'] and config['growth']['epochs']:
        wrong.append('search.early_stop=True: alpha would go on in growth; set growth.epochs=0')
    if search['turns'] == 'together':
        flat = flatten(config)
        alone = {'search.arch_data': 'train', 'search.second_order': False}
        alone |= {'arch.micro_batches': 1, 'arch.samples': 1}
        wrong += [
            'search.turns=together: one batch and one draw move alpha and the weights; set '
            f'{field}={value}'
            for field, value in alone.items()
            if flat[field] != value
        ]
    return wrong


def _learning_rate_errors(config: Config) -> list[str]:
    peaks = [('weights', 'weights'), ('arch', 'arch'), ('weights', 'optimize')]
    return [
        f'{group}.lr_end={config[group]["lr_end"]}: must not exceed {of}.lr={config[of]["lr"]}'
        for group, of in peaks
        if config[of]['lr'] is not None and config[group]['lr_end'] > config[of]['lr']
    ]


def _recipe_errors(config: Config) -> list[str]:
    """Returns the settings of the final training that have nothing to act on."""
    optimize, weights, wrong = config['optimize'], config['weights'], []
    if not optimize['epochs']:
        wrong += [
            f'optimize.{field}={optimize[field]}: nothing is optimized; set optimize.epochs above 0'
            for field in ('lr', 'label_smoothing', 'mixup', 'cutmix', 'randaugment', 'ema')
            if optimize[field]
        ]
    moves_average = optimize['ema'] and not optimize['frozen']
    if moves_average and not config['search']['statistics_batches']:
        wrong.append(
            f'optimize.ema={optimize["ema"]}: running statistics of BatchNorm do not belong to '
            'averaged weights; set search.statistics_batches above 0'
        )
    if weights['nesterov'] and not weights['momentum']:
        wrong.append('weights.nesterov=True: there is no momentum; set weights.momentum above 0')
    return wrong


def _benchmark_errors(config: Config) -> list[str]:
    table, model = config['benchmark']['table'], config['model']
    if table is None:
        return []
    space = registry.SPACES[model['space']]
    foreign = sorted(set(model['primitives']) - set(space.primitives)) if space.dumps else []
    known = space.dumps and (model['space'] == natsbench.SPACE or not natsbench.is_named(table))
    if known and not foreign:
        return []
    where = f'{foreign} in the space' if foreign else 'the space'
    return [
        f'benchmark.table={table!r}: there is no text by which this table could name networks '
        f'with {where} {model["space"]!r}'
    ]


def _sweep_errors(config: Config) -> list[str]:
    wrong = [
        f'{field}={config[field]}: is compared with several searches; set seeds'
        for field in ('random_cells', 'plain_cells')
        if config[field] and not has_several_runs(config)
    ]
    controls = config['random_cells'] or config['plain_cells']
    if controls and config['retrain']['epochs'] == SAME_FLOPS:
        wrong.append(
            f'retrain.epochs={SAME_FLOPS!r}: random and plain cells were found by no run; set a '
            'number'
        )
    if controls and config['cost']['targets'] and config['cost']['kind'] == 'latency':
        wrong += [
            f'retrain.{size}={config["retrain"][size]}: cost.table has no latencies of networks of '
            'another size; set it to None'
            for size in RETRAIN_SIZES
            if config['retrain'][size] is not None
        ]
    model = config['model']
    unknown = sorted(set(config['plain_cells']) - set(model['primitives']))
    if unknown:
        wrong.append(f'plain_cells: {", ".join(unknown)} is not in model.primitives')
    if (
        'none' in config['plain_cells']
        and registry.SPACES[model['space']].spec.EDGES_KEPT is not None
    ):
        wrong.append(f"plain_cells: cells of the space {model['space']!r} never choose 'none'")
    return wrong


def _start_errors(config: Config) -> list[str]:
    """Checks where a run begins: anew, from another run, or with a network that is given."""
    search, wrong = config['search'], []
    starts = [field for field in ('network', 'genotype', 'init_from') if config[field] is not None]
    derived = bool(starts) and starts != ['init_from']
    if len(starts) > 1:
        wrong.append(f'{", ".join(starts)}: set one of them; each says where a run begins')
    elif derived and any(config[phase]['epochs'] for phase in _PHASES[:3]):
        wrong.append(
            f'{starts[0]}={config[starts[0]]!r}: a derived network can only be optimized; set the '
            'epochs of warmup, search and growth to 0, as --mode=retrain does'
        )
    if search['selection'] != 'argmax' and derived:
        wrong.append(
            f'search.selection={search["selection"]!r}: {starts[0]} names the operations already; '
            'set search.selection=argmax'
        )
    if search['auxiliary_skip'] and not search['epochs'] and not starts:
        wrong.append('search.auxiliary_skip=True: it fades over search; set search.epochs above 0')
    if config['optimize']['second_head'] and not starts:
        wrong.append(
            f'optimize.second_head={config["optimize"]["second_head"]}: only networks that are '
            'trained from scratch have one; set network or genotype, or use --mode=retrain; '
            'init_from goes on with such a network'
        )
    channels = config['network_channels']
    if channels and not (config['network'] and registry.SPACES[config['model']['space']].grows):
        wrong.append(
            f'network_channels={channels}: makes the network of `network` wider, in the space '
            'chain; elsewhere set model.channels, or retrain.channels with --mode=retrain'
        )
    if not any(config[phase]['epochs'] for phase in _PHASES):
        wrong.append('warmup, search, growth, optimize: at least one needs epochs above 0')
    return wrong


def _frozen_errors(config: Config) -> list[str]:
    """Returns the settings that contradict `optimize.frozen`."""
    optimize = config['optimize']
    if not optimize['frozen']:
        return []
    wrong = [
        f'optimize.{field}={optimize[field]}: acts on weights that optimize.frozen=True does not '
        f'train; set optimize.{field}=0'
        for field in ('drop_path', 'second_head')
        if optimize[field]
    ]
    if config['init_from'] is None or not optimize['epochs']:
        wrong.append(
            'optimize.frozen=True: trains the head of a network that has learned before; set '
            'init_from to its workdir, and optimize.epochs above 0'
        )
    wrong += [
        f'{phase}.epochs={config[phase]["epochs"]}: trains weights that optimize.frozen=True keeps '
        f'as they are; set {phase}.epochs=0'
        for phase in _PHASES[:3]
        if config[phase]['epochs']
    ]
    return wrong


_CHECKS: tuple[Callable[[Config], list[str]], ...] = (
    _data_errors,
    _digits_errors,
    _model_errors,
    _growth_errors,
    _exact_start_errors,
    _estimator_errors,
    _search_errors,
    _learning_rate_errors,
    _recipe_errors,
    _benchmark_errors,
    expected_cost.validation_errors,
    limit.validation_errors,
    _sweep_errors,
    _start_errors,
    _frozen_errors,
)


# Beginning of the names of fields, when they change nothing, and what they need.
_IdleRows = tuple[tuple[str, Callable[[Config], bool], str], ...]
_IDLE: _IdleRows = (
    ('cost.weight', lambda c: c['cost']['kind'] is None, 'needs cost.kind and cost.target'),
    (
        'growth.',
        lambda c: not expected_cost.grows(c),
        'needs growth.epochs above 0 and growth.kinds',
    ),
    (
        'growth.score_batches',
        lambda c: c['growth']['where'] != 'score',
        "needs growth.where='score'",
    ),
    *(
        (
            f'growth.{name}',
            lambda c, kind=kind: not any(kind in k or k == 'auto' for k in c['growth']['kinds']),
            f'needs {kind!r} in growth.kinds',
        )
        for name, kind in (('width_factor', 'width'), ('max_branches', 'branch'))
    ),
    (
        'search.thresholds',
        lambda c: ESTIMATORS[c['search']['estimator']].one_hot,
        'needs an estimator that mixes candidates',
    ),
    *(
        (
            f'search.{name}',
            lambda c: not ESTIMATORS[c['search']['estimator']].tempered,
            'needs an estimator with a temperature',
        )
        for name in ('tau_', 'anneal_every')
    ),
    (
        'search.transition_noise',
        lambda c: not c['warmup']['epochs'] and c['init_from'] is None,
        'needs warmup.epochs above 0',
    ),
    ('search.stop_', lambda c: not c['search']['early_stop'], 'needs search.early_stop=True'),
    ('arch.travel', lambda c: c['arch']['lr'] is not None, 'arch.lr takes its place'),
    *(
        (
            f'{group}.randaugment_magnitude',
            lambda c, group=group: not c[group]['randaugment'],
            f'needs {group}.randaugment above 0',
        )
        for group in ('optimize', 'retrain')
    ),
)
_IDLE_IN_SEARCH: _IdleRows = (
    (
        'retrain.',
        lambda c: not (c['random_cells'] or c['plain_cells']),
        'is for --mode=retrain, and for controls (random_cells, plain_cells)',
    ),
)
_IDLE_IN_RETRAIN: _IdleRows = (  # the value 0 is idle on purpose
    (
        'retrain.second_head',
        lambda c: c['init_from'] is not None and c['retrain']['second_head'] > 0,
        'a network that init_from names is trained without one',
    ),
    (
        'retrain.drop_path',
        lambda c: c['optimize']['frozen'] and c['retrain']['drop_path'] > 0,
        'acts on weights that optimize.frozen=True does not train',
    ),
)
_SWITCHES = ('growth.epochs', 'growth.kinds')  # are idle on purpose
_RENAMED = ('genotype', 'network')  # --mode=retrain moves one to the other


def ignored_fields(chosen: Config, config: Config, retrains: bool) -> list[str]:
    """Lists the fields that the user has set and that change nothing beside the others.

    Args:
      chosen: the fields that the command sets, by name, with their values.
      config: of the run.
      retrains: whether it is that of --mode=retrain, which sets fields of its own.

    Returns:
      Such fields, joined where they need the same, with what they need.
    """
    flat = flatten(config)
    rows = (*(_IDLE_IN_RETRAIN if retrains else _IDLE_IN_SEARCH), *_IDLE)
    by_reason: dict[str, list[str]] = {}
    for name, value in chosen.items():
        reasons = [
            needs
            for prefix, is_idle, needs in rows
            if name.startswith(prefix) and name not in _SWITCHES and is_idle(config)
        ]
        if retrains and name not in _RENAMED and _as_list(flat.get(name)) != _as_list(value):
            reasons = [f'--mode=retrain sets {name}={flat.get(name)!r}']
        for reason in reasons[:1]:
            by_reason.setdefault(reason, []).append(f'{name}={value!r}')
    return [f'{", ".join(names)} ({reason})' for reason, names in by_reason.items()]


def has_several_runs(config: Config) -> bool:
    """Returns whether a config asks for several searches, by seeds or by targets of the cost."""
    return bool(config['seeds'] or config['cost']['targets'])


def has_exact_start(config: Config) -> bool:
    """Returns whether search begins with the function that warmup ended with.

    See docs/algorithm.md, "Exact start". `search.exact_start=None` means: wherever it is possible
    without an auxiliary skip.
    """
    wanted = config['search']['exact_start']
    if wanted is not None:
        return wanted
    alone = config['model']['residual'] and config['warmup']['operations'] == 'skip'
    return config['model']['space'] == 'chain' and alone


def frozen_epochs(config: Config) -> int:
    """Returns the number of epochs at the start of search in which alpha does not move."""
    search = config['search']
    if search['freeze_epochs'] is not None:
        return search['freeze_epochs']
    return search['epochs'] // 5 if has_exact_start(config) else 0


def differences(ours: Config, theirs: Config) -> list[str]:
    """Lists the fields in which two flat configs differ, as `name: theirs -> ours`."""
    return [
        f'{key}: {_as_list(theirs.get(key))!r} -> {_as_list(ours.get(key))!r}'
        for key in sorted(ours.keys() | theirs.keys())
        if _as_list(ours.get(key)) != _as_list(theirs.get(key))
    ]


def _as_list(value: Any) -> Any:
    """Returns tuples as lists, which is what JSON makes of them."""
    return list(value) if isinstance(value, tuple) else value


def with_original_defaults(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
    """Returns the config with the old behaviour for fields that are newer than the run in workdir.

    Where no run has begun, that is the config itself.
    """
    before = _recorded(workdir)
    if before is None:
        return config
    missing = {
        name: value
        for name, value in BEFORE.items()
        if name not in before and not FIELDS[name].changeable
    }
    if not missing:
        return config
    if config.search.freeze_epochs is None:  # the meaning of None is as new as these fields
        missing.setdefault('search.freeze_epochs', before.get('search.freeze_epochs'))
    changed = with_fields(config, missing)
    fields = ', '.join(f'{name}={value}' for name, value in missing.items())
    logger.info('the run in %s was begun by an older version; it goes on with %s', workdir, fields)
    return changed


def fields_to_record(flat: dict[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the fields to write to config.json: without those that are newer than the run there.

    So the run is known as one of an older version whenever it goes on, see
    `with_original_defaults`.
    """
    before = _recorded(workdir)
    if before is None:
        return flat
    return {name: v for name, v in flat.items() if name in before or name not in BEFORE}


def _recorded(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the fields in config.json; `None` without a run, or if it cannot be read.

    A file that cannot be read is refused by `require_same_config`.
    """
    try:
        fields = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def require_whole(path: pathlib.Path, fields: Config) -> None:
    """Refuses `fields` of a config.json at `path` that are missing or hold impossible values.

    Raises:
      UserError: names the first such field.
    """
    for name, field in FIELDS.items():
        if name not in fields and name not in BEFORE:
            fault = f'it lacks the field {name}'
        elif name in fields and not field.rule.holds(fields[name]):
            fault = f'{name}={fields[name]!r}: must be {field.rule.allowed}'
        else:
            continue
        raise UserError(
            f'{path} is damaged: {fault}. Restore it from a copy. To resume the run by the command '
            'that started it, delete the file; otherwise choose another --workdir.'
        )


def require_same_config(
    flat: dict[str, Any],
    workdir: pathlib.Path,
    but: Collection[str] = (),
    movable: Collection[str] = (),
    base: str | None = None,
) -> set[str]:
    """Refuses to go on with a run under another config.

    Fields that are `changeable` may differ; a line in the log says so. Paths are compared as the
    files that they name, not as they are spelled.

    Args:
      flat: the config, see `flatten`.
      workdir: of the run; nothing is checked where none has begun.
      but: more fields that may differ.
      movable: paths that may differ, since the caller compares what is in the files.
      base: the directory that the relative paths of the run count from; `None` means the current.

    Returns:
      The fields in `movable` that differ.

    Raises:
      UserError: names the fields that differ.
    """
    path = workdir / 'config.json'
    if not path.exists():
        return set()
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
        lines = {line.split(':')[0]: line for line in differences(flat, {**BEFORE, **before})}
        same = [n for n in paths.FIELDS if paths.name_same(flat.get(n), before.get(n), base)]
        lines = {name: line for name, line in lines.items() if name not in same}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}: {error}). If this command is that of '
            'the run in there, delete the file; otherwise choose another --workdir.'
        ) from error
    moved = {name for name in lines if name in movable}
    changed = moved | {name for name in lines if name in FIELDS and FIELDS[name].changeable}
    if flat.get('data.name') == before.get('data.name') == 'digits':
        # Earlier versions ignored them; now `validate` asks for their removal.
        but = (*but, *(f'data.{field}' for field in _IGNORED_BY_DIGITS))
    differing = [line for name, line in lines.items() if name not in changed and name not in but]
    if differing:
        require_whole(path, before)
        raise UserError(
            f'{workdir} holds a run with another config:\n  '
            + '\n  '.join(differing)
            + '\nGo on with the old values, or choose another --workdir (--config.init_from='
            f'{workdir} starts there from what this run has learned).'
        )
    if changed:
        logger.info(
            'going on with changed fields: %s', '; '.join(lines[n] for n in sorted(changed))
        )
    return moved
