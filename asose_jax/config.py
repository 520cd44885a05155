"""Checks a config before anything is done with it: one error that names every wrong field."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from asose_jax import expected_cost, growth, nats, ops, spaces
from asose_jax.errors import UserError
from asose_jax.estimators import ESTIMATORS


class Rule(NamedTuple):
    """What a field may hold."""

    allowed: str  # in words
    holds: Callable[[Any], bool]


def _integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _integers(low: int) -> Rule:
    return Rule(f'an integer of at least {low}', lambda v: _integer(v) and v >= low)


def _optional(rule: Rule) -> Rule:
    return Rule(f'{rule.allowed}, or None', lambda v: v is None or rule.holds(v))


def _between(low: float, high: float) -> Rule:
    """Open at `low`, closed at `high`."""
    return Rule(f'a number in ({low}, {high}]', lambda v: _number(v) and low < v <= high)


def _one_of(*values: str) -> Rule:
    return Rule(' or '.join(repr(v) for v in values), lambda v: v in values)


def _primitives(value):
    names = list(value) if isinstance(value, tuple | list) else []
    known = all(name in ops.PRIMITIVES for name in names)
    return len(names) >= 2 and known and len(set(names)) == len(names) and 'skip_connect' in names


def _block_numbers(value):
    if not isinstance(value, tuple | list) or not all(_integer(i) and i >= 0 for i in value):
        return False
    return len(set(value)) == len(value)


def _is_seed(value):
    return _integer(value) and 0 <= value < 2**32


def _seeds(value):
    known = isinstance(value, tuple | list) and all(map(_is_seed, value))
    return known and len(set(value)) == len(value)


def _thresholds(value):
    if not isinstance(value, tuple | list) or len(value) != 5:
        return False
    return all(_number(t) and 0 <= t <= 1 for t in value)


_BOOL = Rule('True or False', lambda v: isinstance(v, bool))
_TEXT = Rule('a non-empty string', lambda v: isinstance(v, str) and bool(v))
_POSITIVE = Rule('a finite number above 0', lambda v: _number(v) and 0 < v < float('inf'))
_NOT_NEGATIVE = Rule(
    'a finite number of at least 0', lambda v: _number(v) and 0 <= v < float('inf')
)
_FINITE = Rule('a finite number', lambda v: _number(v) and abs(v) < float('inf'))
_SHARE = Rule('a number in [0, 1)', lambda v: _number(v) and 0 <= v < 1)
_INSIDE = Rule('a number in (0, 1)', lambda v: _number(v) and 0 < v < 1)

_BLOCKS = Rule('a tuple of distinct block numbers, from 0', _block_numbers)

_GROWTHS = (*growth.KINDS, 'auto')

RULES: dict[str, Rule] = {
    'seed': Rule('an integer in [0, 2**32)', _is_seed),
    'seeds': Rule('a tuple of distinct integers in [0, 2**32)', _seeds),
    'random_cells': _integers(0),
    'batch_size': _integers(1),
    'chunk_steps': _integers(1),
    'init_from': _optional(_TEXT),
    'network': _optional(_TEXT),
    'genotype': _optional(_TEXT),
    'data.name': _TEXT,
    'data.dir': _optional(_TEXT),
    'data.train_split': _TEXT,
    'data.test_split': _TEXT,
    'data.test_fraction': _optional(_INSIDE),
    'data.image_size': _optional(_integers(1)),
    'data.valid_fraction': _INSIDE,
    'data.crop_padding': _integers(0),
    'data.flip': _BOOL,
    'data.cutout': _integers(0),
    'data.resident_megabytes': _integers(0),
    'model.space': Rule(_one_of(*spaces.SPACES).allowed, lambda v: v in tuple(spaces.SPACES)),
    'model.channels': _integers(1),
    'model.depth': _integers(1),
    'model.reductions': _BLOCKS,
    'model.max_channels': _integers(1),
    'model.primitives': Rule(
        f'distinct names, at least two, with skip_connect, out of {", ".join(ops.PRIMITIVES)}',
        _primitives,
    ),
    'model.dtype': _one_of('float32', 'bfloat16'),
    'model.remat': _BOOL,
    'weights.lr': _POSITIVE,
    'weights.lr_end': _NOT_NEGATIVE,
    'weights.momentum': _SHARE,
    'weights.weight_decay': _NOT_NEGATIVE,
    'weights.clip': _optional(_POSITIVE),
    'arch.micro_batches': _integers(1),
    'arch.samples': _integers(1),
    'arch.anchor': _NOT_NEGATIVE,
    'arch.init_std': _NOT_NEGATIVE,
    'arch.none_bias': _FINITE,
    'arch.skip_bias': _FINITE,
    'arch.lr': _optional(_POSITIVE),
    'arch.lr_end': _NOT_NEGATIVE,
    'arch.travel': _POSITIVE,
    'arch.b1': _SHARE,
    'arch.b2': _SHARE,
    'arch.weight_decay': _NOT_NEGATIVE,
    'warmup.epochs': _integers(0),
    'warmup.operations': _one_of('skip', 'uniform'),
    'search.epochs': _integers(0),
    'search.turn_period': _integers(2),
    'search.arch_data': _one_of('valid', 'train'),
    'search.freeze_epochs': _integers(0),
    'search.estimator': _one_of(*ESTIMATORS),
    'search.second_order': _BOOL,
    'search.noise': _one_of('unit', 'temperature'),
    'search.tau_start': _POSITIVE,
    'search.tau_rate': _INSIDE,
    'search.tau_floor': _POSITIVE,
    'search.anneal_every': _optional(_integers(1)),
    'search.transition_noise': _NOT_NEGATIVE,
    'search.auxiliary_skip': _BOOL,
    'search.partial_channels': _integers(1),
    'search.thresholds': Rule(
        'five numbers in [0, 1]: alone, dominant, beside_dominant, minor, least_sum',
        _thresholds,
    ),
    'search.early_stop': _BOOL,
    'search.stop_window': _integers(1),
    'search.stop_ratio': _INSIDE,
    'search.selection': _one_of('argmax', 'perturbation'),
    'growth.epochs': _integers(0),
    'growth.kinds': Rule(
        "a tuple of 'depth', 'width', 'branch', 'auto', taken in turn; () does not grow",
        lambda v: isinstance(v, tuple | list) and all(k in _GROWTHS for k in v),
    ),
    'growth.where': _one_of('score', 'last', 'random'),
    'growth.threshold': _NOT_NEGATIVE,
    'growth.patience': _integers(1),
    'growth.last_epochs': _integers(1),
    'growth.lead_epochs': _integers(0),
    'growth.skip_bias': _FINITE,
    'growth.score_batches': _integers(1),
    'growth.width_factor': Rule(
        'a finite number above 1', lambda v: _number(v) and 1 < v < float('inf')
    ),
    'growth.max_depth': _integers(1),
    'growth.max_channels': _integers(1),
    'growth.max_branches': _integers(1),
    'growth.max_params': _optional(_integers(1)),
    'optimize.epochs': _integers(0),
    'optimize.drop_path': _SHARE,
    'optimize.second_head': _NOT_NEGATIVE,
    'retrain.epochs': _integers(1),
    'retrain.batch_size': _integers(1),
    'retrain.channels': _optional(_integers(1)),
    'retrain.depth': _optional(_integers(1)),
    'retrain.reductions': _optional(_BLOCKS),
    'retrain.lr': _POSITIVE,
    'retrain.lr_end': _NOT_NEGATIVE,
    'retrain.clip': _optional(_POSITIVE),
    'retrain.cutout': _integers(0),
    'retrain.drop_path': _SHARE,
    'retrain.second_head': _NOT_NEGATIVE,
    'guard.max_consecutive': _integers(0),
    'alarm.skip_share': _between(0, 1),
    'alarm.fall': _between(0, 1),
    'benchmark.table': _optional(_TEXT),
    'cost.kind': _optional(_one_of(*expected_cost.UNITS)),
    'cost.target': _optional(_POSITIVE),
    'cost.weight': _POSITIVE,
    'cost.batch_size': _optional(_integers(1)),
    'checkpoint.every_seconds': _NOT_NEGATIVE,
    'checkpoint.keep': _integers(1),
}


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """`{'search.epochs': 30, ...}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, 'to_dict'):
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[prefix + key] = value
    return flat


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
        wrong = _contradictions(config, devices)
    if wrong:
        raise UserError('the config is wrong:\n  ' + '\n  '.join(sorted(wrong)))


def _contradictions(config, devices):
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
    space, estimator = spaces.SPACES[model['space']], ESTIMATORS[search['estimator']]
    missing = space.needs - set(model['primitives'])
    if missing:
        wrong.append(
            f'model.primitives={tuple(model["primitives"])}: the space {model["space"]!r} needs '
            f'{", ".join(sorted(missing))}'
        )
    partial = search['partial_channels']
    divisor = partial * space.channels_divisor
    for field in ('channels', 'max_channels'):
        if model[field] % divisor:
            wrong.append(
                f'model.{field}={model[field]}: the space {model["space"]!r} with '
                f'search.partial_channels={partial} needs a multiple of {divisor}'
            )
    if config['growth']['epochs'] and config['growth']['kinds'] and partial > 1:
        wrong.append(
            f'search.partial_channels={partial}: networks of partial channels do not grow; set '
            'growth.epochs=0 or growth.kinds=()'
        )
    if config['growth']['epochs'] and config['growth']['kinds'] and not space.grows:
        wrong.append(
            f'growth.kinds={tuple(config["growth"]["kinds"])}: networks of the space '
            f'{model["space"]!r} do not grow; set growth.epochs=0 or growth.kinds=()'
        )
    if search['noise'] != 'unit' and not estimator.noisy:
        noisy = ', '.join(name for name, row in ESTIMATORS.items() if row.noisy)
        wrong.append(
            f'search.noise={search["noise"]!r}: search.estimator={search["estimator"]!r} has no '
            f'such noise; take one of {noisy}, or search.noise=unit'
        )
    if search['freeze_epochs'] and search['freeze_epochs'] >= search['epochs']:
        wrong.append(
            f'search.freeze_epochs={search["freeze_epochs"]}: must be less than '
            f'search.epochs={search["epochs"]}, or alpha never moves in search'
        )
    moving = search['epochs'] - search['freeze_epochs']
    if search['early_stop'] and moving < 2 * search['stop_window']:
        wrong.append(
            f'search.stop_window={search["stop_window"]}: search.early_stop compares twice as many '
            f'evaluations; there are {moving} epochs of search in which alpha moves'
        )
    if search['early_stop'] and config['growth']['epochs']:
        wrong.append('search.early_stop=True: alpha would go on in growth; set growth.epochs=0')
    strangers = sorted(set(model['primitives']) - set(space.primitives))
    table = config['benchmark']['table']
    known = space.dumps and (model['space'] == nats.SPACE or not nats.is_named(table))
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
    second = config['optimize']['second_head']
    if second and not (config['network'] or config['genotype']):
        wrong.append(
            f'optimize.second_head={second}: only networks that are trained from scratch have one; '
            'set network or genotype, or use --mode=retrain'
        )
    if config['random_cells'] and not config['seeds']:
        wrong.append(
            f'random_cells={config["random_cells"]}: is what several searches are compared with; '
            'set seeds'
        )
    phases = ('warmup', 'search', 'growth', 'optimize')
    begins = [field for field in ('network', 'genotype', 'init_from') if config[field] is not None]
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


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The fields in which two flat configs differ, as `name: theirs -> ours`, tuples as lists."""

    def plain(value):
        return list(value) if isinstance(value, tuple) else value

    return [
        f'{key}: {plain(theirs.get(key))!r} -> {plain(ours.get(key))!r}'
        for key in sorted(ours.keys() | theirs.keys())
        if plain(ours.get(key)) != plain(theirs.get(key))
    ]
