"""The crisis and its cures differ in what they say, and in nothing else."""

import functools

import pytest

from asose_jax.config.consistency import flatten, validate
from benchmarks import ablation
from configs import crisis, search


def _flat(config):
    return flatten(config)


def _changed(one, other):
    one, other = _flat(one), _flat(other)
    return {field for field in one if one[field] != other[field]}


@pytest.mark.parametrize('name', crisis.NAMES)
def test_every_name_is_a_config_that_runs(name):
    validate(crisis.get_config(name), devices=1)


def test_a_cure_changes_its_own_fields_and_all_together_are_the_seed():
    broken, seed = crisis.get_config('broken'), search.get_config('seed')
    assert _changed(broken, seed) == {f for fields in crisis.CURES.values() for f in fields}
    for cure, fields in crisis.CURES.items():
        assert _changed(broken, crisis.get_config(f'only_{cure}')) == set(fields)
        assert _changed(seed, crisis.get_config(f'without_{cure}')) == set(fields)
    rest = {'arch.lr', 'arch.lr_end', 'model.residual', 'growth.kinds'}
    assert _changed(broken, crisis.get_config('ancestor')) == rest
    assert _changed(seed, crisis.get_config('cured_ancestor')) == rest


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown name 'brokn'; there are broken, only_"):
        crisis.get_config('brokn')


@functools.cache
def _row(name):
    return _flat(ablation.config_of(name, ablation.SIZE))


@pytest.mark.parametrize('row', ablation.ROWS)
def test_every_row_of_the_ablation_is_a_config_that_runs_and_differs_from_the_others(row):
    validate(ablation.config_of(row, ablation.SIZE), devices=1)
    assert [other for other in ablation.ROWS if _row(other) == _row(row)] == [row]
