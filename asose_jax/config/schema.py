"""What each field of a config may hold, by itself; `config` checks them, and against each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.costs import expected_cost
from asose_jax.nn import operations
from asose_jax.spaces import chain, registry


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


def _distinct_primitives(value):
    if not isinstance(value, tuple | list) or len(set(value)) != len(value):
        return False
    return all(name in operations.PRIMITIVES for name in value)


def _primitives(value):
    return _distinct_primitives(value) and len(value) >= 2 and 'skip_connect' in value


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


def _growths(value):
    return isinstance(value, tuple | list) and all(map(_growth, value))


def _growth(value):
    """One kind, `'auto'`, or different kinds that take place together, joined by `+`."""
    if not isinstance(value, str):
        return False
    kinds = value.split('+')
    return value == 'auto' or (
        len(set(kinds)) == len(kinds) and set(kinds) <= set(chain.KINDS_OF_GROWTH)
    )


RULES: dict[str, Rule] = {
    'seed': Rule('an integer in [0, 2**32)', _is_seed),
    'seeds': Rule('a tuple of distinct integers in [0, 2**32)', _seeds),
    'random_cells': _integers(0),
    'plain_cells': Rule('a tuple of distinct names of primitives', _distinct_primitives),
    'batch_size': _integers(1),
    'chunk_steps': _integers(1),
    'init_from': _optional(_TEXT),
    'network': _optional(_TEXT),
    'network_channels': _optional(
        Rule('a multiple of 8, from 8', lambda v: _integer(v) and v >= 8 and not v % 8)
    ),
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
    'model.space': Rule(_one_of(*registry.SPACES).allowed, lambda v: v in tuple(registry.SPACES)),
    'model.channels': _integers(1),
    'model.depth': _integers(1),
    'model.reductions': _BLOCKS,
    'model.max_channels': _integers(1),
    'model.primitives': Rule(
        'distinct names, at least two, with skip_connect, out of '
        f'{", ".join(operations.PRIMITIVES)}',
        _primitives,
    ),
    'model.dtype': _one_of('float32', 'bfloat16'),
    'model.residual': _BOOL,
    'model.remat': _BOOL,
    'weights.lr': _POSITIVE,
    'weights.lr_end': _NOT_NEGATIVE,
    'weights.momentum': _SHARE,
    'weights.weight_decay': _NOT_NEGATIVE,
    'weights.clip': _NOT_NEGATIVE,
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
    'search.turns': _one_of('alternate', 'together'),
    'search.arch_data': _one_of('valid', 'train'),
    'search.freeze_epochs': _optional(_integers(0)),
    'search.estimator': _one_of(*ESTIMATORS),
    'search.second_order': _BOOL,
    'search.noise': _optional(_one_of('unit', 'temperature')),
    'search.tau_start': _POSITIVE,
    'search.tau_rate': _between(0, 0.9999),
    'search.tau_floor': _POSITIVE,
    'search.anneal_every': _optional(_integers(1)),
    'search.transition_noise': _NOT_NEGATIVE,
    'search.statistics_batches': _integers(0),
    'search.exact_start': _optional(_BOOL),
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
        "a tuple of 'depth', 'width', 'branch', 'auto', or several joined by + that take place "
        "together ('depth+width'), taken in turn; () does not grow",
        _growths,
    ),
    'growth.where': _one_of('score', 'last', 'random'),
    'growth.threshold': _NOT_NEGATIVE,
    'growth.patience': _integers(1),
    'growth.last_epochs': _integers(1),
    'growth.lead_epochs': _integers(0),
    'growth.none_bias': _FINITE,
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
    'retrain.clip': _NOT_NEGATIVE,
    'retrain.cutout': _integers(0),
    'retrain.drop_path': _SHARE,
    'retrain.second_head': _NOT_NEGATIVE,
    'guard.alpha': _BOOL,
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
