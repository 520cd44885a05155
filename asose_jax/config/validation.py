"""Checks a config before anything is done with it: one error that names every wrong field."""

import copy
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.config.schema import RULES
from asose_jax.costs import expected_cost
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import natsbench, registry

logger = logging.getLogger('asose_jax')

# What runs did before there was the field.
_BEFORE = {'search.exact_start': False, 'search.statistics_batches': 0}


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """`{'search.epochs': 30, ...}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, 'to_dict'):
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The inverse of `flatten`, also after a trip through a JSON file."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split('.')
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = tuple(value) if isinstance(value, list) else value
    return ml_collections.ConfigDict(nested)


def validate(config: Mapping[str, Any], devices: int) -> None:
    """Checks every field, alone and against the others.

    Args:
      config: as `configs/search.py` makes it.
      devices: over which a batch is split.

    Raises:
      UserError: one line per wrong field: its value, what is allowed, what to do.
    """
    flat = flatten(config)
    wrong = [f'{key}: missing; start from configs/search.py' for key in RULES.keys() - flat.keys()]
    wrong += [f'{key}: there is no such field' for key in flat.keys() - RULES.keys()]
    for key in RULES.keys() & flat.keys():
        if not RULES[key].holds(flat[key]):
            wrong.append(f'{key}={flat[key]!r}: must be {RULES[key].allowed}')
    if not wrong:
        wrong = _contradictions(config, flat, devices)
    if wrong:
        raise UserError('the config is wrong:\n  ' + '\n  '.join(sorted(wrong)))


def _contradictions(config, flat, devices):
    wrong = []
    if config['batch_size'] % devices:
        wrong.append(
            f'batch_size={config["batch_size"]}: must be divisible by the {devices} devices; try '
            f'{max(1, round(config["batch_size"] / devices)) * devices}'
        )
    elif config['batch_size'] // devices % config['arch']['micro_batches']:
        wrong.append(
            f'arch.micro_batches={config["arch"]["micro_batches"]}: must divide the '
            f'{config["batch_size"] // devices} images of a batch that each device gets'
        )
    data, model, search = config['data'], config['model'], config['search']
    if data['name'] == 'folder' and data['dir'] is None:
        wrong.append("data.dir=None: data.name='folder' needs the folder, --config.data.dir=DIR")
    if data['name'] != 'folder' and data['test_fraction'] is not None:
        wrong.append(
            f'data.test_fraction={data["test_fraction"]}: is of folders of pictures; '
            f'{data["name"]!r} has its test images, see data.test_split'
        )
    beyond = [i for i in model['reductions'] if i >= model['depth']]
    if beyond:
        wrong.append(
            f'model.reductions={tuple(model["reductions"])}: with model.depth={model["depth"]} the '
            f'blocks are 0..{model["depth"] - 1}'
        )
    space, estimator = registry.SPACES[model['space']], ESTIMATORS[search['estimator']]
    missing = space.needs - set(model['primitives'])
    if missing:
        wrong.append(
            f'model.primitives={tuple(model["primitives"])}: the space {model["space"]!r} needs '
            f'{", ".join(sorted(missing))}'
        )
    if not model['residual'] and model['space'] != 'chain':
        wrong.append(
            f"model.residual=False: is of the space 'chain'; the sums of {model['space']!r} are "
            'part of its cells'
        )
    partial = search['partial_channels']
    divisor = partial * space.channels_divisor
    for field in ('channels', 'max_channels'):
        if model[field] % divisor:
            wrong.append(
                f'model.{field}={model[field]}: the space {model["space"]!r} with '
                f'search.partial_channels={partial} needs a multiple of {divisor}'
            )
    grows = config['growth']['epochs'] and config['growth']['kinds']
    instead = 'set growth.epochs=0 or growth.kinds=()'
    if grows and partial > 1:
        wrong.append(
            f'search.partial_channels={partial}: networks of partial channels do not grow; '
            + instead
        )
    if grows and not space.grows:
        wrong.append(
            f'growth.kinds={tuple(config["growth"]["kinds"])}: networks of the space '
            f'{model["space"]!r} do not grow; {instead}'
        )
    if grows and not model['residual']:
        wrong.append(
            f'model.residual=False: blocks without it do not grow, a factor of 0 would cut; '
            f'{instead}'
        )
    wrong += _no_exact_start(config)
    if search['noise'] == 'temperature' and not estimator.noisy:
        noisy = ', '.join(name for name, row in ESTIMATORS.items() if row.noisy)
        wrong.append(
            f'search.noise={search["noise"]!r}: search.estimator={search["estimator"]!r} has no '
            f'such noise; take one of {noisy}, or search.noise=unit'
        )
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
            f'evaluations; there are {moving} epochs of search in which alpha moves'
        )
    if search['early_stop'] and config['growth']['epochs']:
        wrong.append('search.early_stop=True: alpha would go on in growth; set growth.epochs=0')
    strangers = sorted(set(model['primitives']) - set(space.primitives))
    table = config['benchmark']['table']
    known = space.dumps and (model['space'] == natsbench.SPACE or not natsbench.is_named(table))
    if table is not None and (strangers or not known):
        whose = f'{strangers} in the space' if strangers else 'the space'
        wrong.append(
            f'benchmark.table={table!r}: there is no text by which this table could name networks '
            f'with {whose} {model["space"]!r}'
        )
    if config['arch']['samples'] > 1 and not estimator.draws:
        wrong.append(
            f'arch.samples={config["arch"]["samples"]}: search.estimator={search["estimator"]!r} '
            'draws nothing, so all samples would be alike; set it to 1'
        )
    wrong += expected_cost.contradictions(config)
    if config['arch']['anchor'] and not estimator.anchored:
        wrong.append(
            f'arch.anchor={config["arch"]["anchor"]}: a regulariser of Dirichlet draws; set '
            'search.estimator=drnas, or arch.anchor=0'
        )
    if search['second_order'] and (estimator.one_hot or search['arch_data'] != 'valid'):
        mixed = ' or '.join(name for name, row in ESTIMATORS.items() if not row.one_hot)
        wrong.append(
            f'search.second_order=True: needs search.estimator={mixed} (weight steps of the others '
            'train what was drawn, and say nothing of the rest) and search.arch_data=valid'
        )
    if search['turns'] == 'together':
        alone = {'search.arch_data': 'train', 'search.second_order': False}
        alone |= {'arch.micro_batches': 1, 'arch.samples': 1}
        wrong += [
            f'search.turns=together: one batch and one draw move alpha and the weights; set '
            f'{field}={value}'
            for field, value in alone.items()
            if flat[field] != value
        ]
    if search['tau_floor'] < estimator.least_tau:
        wrong.append(
            f'search.tau_floor={search["tau_floor"]}: search.estimator={search["estimator"]!r} '
            f'needs at least {estimator.least_tau}; set search.tau_start and '
            f'search.tau_floor to {estimator.least_tau}'
        )
    if search['tau_floor'] > search['tau_start']:
        wrong.append(
            f'search.tau_floor={search["tau_floor"]}: must not exceed '
            f'search.tau_start={search["tau_start"]}'
        )
    for group in ('weights', 'arch'):
        if config[group]['lr'] is not None and config[group]['lr_end'] > config[group]['lr']:
            wrong.append(
                f'{group}.lr_end={config[group]["lr_end"]}: must not exceed '
                f'{group}.lr={config[group]["lr"]}'
            )
    if 'auto' in config['growth']['kinds'] and config['growth']['where'] != 'score':
        wrong.append(
            f'growth.where={config["growth"]["where"]!r}: growth.kinds={config["growth"]["kinds"]} '
            "compares scores, which needs 'score'"
        )
    begins = [field for field in ('network', 'genotype', 'init_from') if config[field] is not None]
    second = config['optimize']['second_head']
    if second and not begins:
        wrong.append(
            f'optimize.second_head={second}: only networks that are trained from scratch have one; '
            'set network or genotype, or use --mode=retrain; init_from goes on with such a network'
        )
    for field in ('random_cells', 'plain_cells'):
        if config[field] and not config['seeds']:
            wrong.append(
                f'{field}={config[field]}: is what several searches are compared with; set seeds'
            )
    scaled = config['network_channels']
    if scaled and not (config['network'] and space.grows):
        wrong.append(
            f'network_channels={scaled}: makes the network of `network` wider, in the space chain; '
            'elsewhere set model.channels, or retrain.channels with --mode=retrain'
        )
    unknown = sorted(set(config['plain_cells']) - set(model['primitives']))
    if unknown:
        wrong.append(f'plain_cells: {", ".join(unknown)} is not in model.primitives')
    if 'none' in config['plain_cells'] and space.spec.EDGES_KEPT is not None:
        wrong.append(
            f"plain_cells: 'none' is what cells of the space {model['space']!r} never choose"
        )
    phases = ('warmup', 'search', 'growth', 'optimize')
    if len(begins) > 1:
        wrong.append(f'{", ".join(begins)}: set one of them; each says where a run begins')
    elif begins and begins != ['init_from'] and any(config[p]['epochs'] for p in phases[:3]):
        wrong.append(
            f'{begins[0]}={config[begins[0]]!r}: a derived network can only be optimized; set the '
            'epochs of warmup, search and growth to 0, as configs/scratch.py does'
        )
    if search['selection'] != 'argmax' and begins and begins != ['init_from']:
        wrong.append(
            f'search.selection={search["selection"]!r}: {begins[0]} names what is chosen already; '
            'set search.selection=argmax'
        )
    if search['auxiliary_skip'] and not search['epochs'] and not begins:
        wrong.append('search.auxiliary_skip=True: it fades over search; set search.epochs above 0')
    if not any(config[phase]['epochs'] for phase in phases):
        wrong.append('warmup, search, growth, optimize: at least one needs epochs above 0')
    return wrong


def _no_exact_start(config):
    """Why a search that is to begin exactly cannot: something has to carry the images then."""
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


def has_exact_start(config: ml_collections.ConfigDict) -> bool:
    """Whether search begins with the function that warmup ended with; see `mixed_op.MixedOp`."""
    wanted = config.search.get('exact_start')  # runs of before the field have none
    if wanted is not None:
        return wanted
    alone = config.model.get('residual', True) and config.warmup.operations == 'skip'
    return config.model.space == 'chain' and alone


def frozen_epochs(config: ml_collections.ConfigDict) -> int:
    """How many epochs of search, its first ones, leave alpha at rest."""
    if config.search.freeze_epochs is not None:
        return config.search.freeze_epochs
    return config.search.epochs // 5 if has_exact_start(config) else 0


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The fields in which two flat configs differ, as `name: theirs -> ours`, tuples as lists."""

    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    return [
        f'{key}: {plain(theirs.get(key))!r} -> {plain(ours.get(key))!r}'
        for key in sorted(ours.keys() | theirs.keys())
        if plain(ours.get(key)) != plain(theirs.get(key))
    ]


def with_original_defaults(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
    """The config, but with what a run in `workdir` did that was begun before a field existed."""
    try:
        before = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
        missing = {name: value for name, value in _BEFORE.items() if name not in before}
    except (OSError, ValueError, TypeError):
        return config  # there is none, or `require_same_config` tells
    if not missing:
        return config
    if config.search.freeze_epochs is None:
        missing['search.freeze_epochs'] = before.get('search.freeze_epochs', 0)
    made = copy.deepcopy(config)
    made.update_from_flattened_dict(missing)
    told = ', '.join(f'{name}={value}' for name, value in missing.items())
    logger.info('the run in %s was begun by an older version; it goes on with %s', workdir, told)
    return made


def require_same_config(
    flat: dict[str, Any], workdir: pathlib.Path, but: tuple[str, ...] = ()
) -> None:
    """Refuses a workdir with a run of another config.

    Args:
      flat: the config, see `validation.flatten`.
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
        told = differences(flat, {**_BEFORE, **before})
        differing = [line for line in told if line.split(':')[0] not in but]
    except (OSError, ValueError, AttributeError, TypeError) as error:
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
