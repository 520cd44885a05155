"""What is built and what was chosen."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.arch.genotype import Genotype
from asose_jax.config.schema import FIELDS
from asose_jax.spaces import registry

PRIMITIVES = FIELDS['model.primitives'].default
SPEC = networks.build(
    'chain', (32, 32, 3), 10, channels=64, depth=6, reductions=(1, 3), max_channels=256
)


def _arch(*rows):
    return {f'block_{i}': {'choice_0': {'alpha': jnp.array(row)}} for i, row in enumerate(rows)}


def test_default_chain_doubles_channels_where_it_halves_the_image():
    assert [block.stride for block in SPEC.blocks] == [1, 2, 1, 2, 1, 1]
    assert [block.channels for block in SPEC.blocks] == [64, 128, 128, 256, 256, 256]
    assert all(block.branches == (PRIMITIVES,) for block in SPEC.blocks)


def test_channels_stop_at_the_limit_and_never_shrink():
    spec = networks.build(
        'chain', (8, 8, 1), 2, channels=48, depth=3, reductions=(0, 1, 2), max_channels=64
    )
    assert [block.channels for block in spec.blocks] == [64, 64, 64]
    wide = networks.build(
        'chain', (8, 8, 1), 2, channels=48, depth=1, reductions=(0,), max_channels=8
    )
    assert wide.blocks[0].channels == 48


def test_spec_survives_json_and_can_be_a_dictionary_key():
    for spec in (SPEC, dataclasses.replace(SPEC, residual=False, partial=2)):
        again = registry.spec_from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec
        assert {again: 1}[spec] == 1


def test_most_likely_takes_the_largest_alpha():
    spec = networks.build('chain', (8, 8, 1), 2, channels=4, depth=2, reductions=(), max_channels=4)
    first, second = np.zeros(10), np.zeros(10)
    first[7], second[1] = 1, 1
    chosen = genotype.most_likely(spec, _arch(first, second))
    assert chosen == Genotype((('dil_conv_3x3',), ('avg_pool_3x3',)))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_row_that_is_not_finite_chooses_skip_connect_as_the_guard_does(bad):
    spec = networks.build('chain', (8, 8, 1), 2, channels=4, depth=1, reductions=(), max_channels=4)
    row = np.zeros(10)
    row[5] = bad
    assert genotype.most_likely(spec, _arch(row)) == Genotype((('skip_connect',),))


def test_derive_leaves_one_candidate_and_changes_nothing_else():
    chosen = Genotype(tuple((name,) for name in PRIMITIVES[:6]))
    derived = genotype.derive(SPEC, chosen)
    assert derived.is_derived()
    assert not SPEC.is_derived()
    assert genotype.most_likely(derived, {}) == chosen
    assert [b.channels for b in derived.blocks] == [b.channels for b in SPEC.blocks]


def test_genotype_file_names_its_schema_and_network():
    chosen = Genotype(tuple(('skip_connect',) for _ in range(6)))
    content = json.loads(chosen.dumps(genotype.derive(SPEC, chosen)))
    assert (content['schema'], content['network']['space']) == (2, 'chain')
    assert content['genotype'] == [['skip_connect']] * 6
    assert registry.spec_from_json(content['network']).is_derived()
