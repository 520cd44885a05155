"""A process refuses to train with settings of JAX that a run cannot have."""

import types

import pytest
from helpers.runs import tiny

import asose_jax
from asose_jax.config import retrain
from asose_jax.runtime import process
from asose_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    'config',
    [tiny(), tiny(seeds=(0, 1)), retrain.retrain_config(tiny(genotype='found', network=None))],
    ids=['search', 'sweep', 'training'],
)
def test_64_bits_are_one_line_before_anything_is_written(tmp_path, monkeypatch, config):
    switched_on = types.SimpleNamespace(jax_enable_x64=True)
    there = types.SimpleNamespace(config=switched_on, devices=list)
    monkeypatch.setattr(process, 'jax', there)
    with pytest.raises(UserError, match=r'64 bits .* Start with JAX_ENABLE_X64=0') as told:
        asose_jax.search(config, tmp_path / 'run')
    assert '\n' not in str(told.value)
    assert not (tmp_path / 'run').exists()
