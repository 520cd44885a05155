"""A starting run logs its network in a dozen lines, and writes the whole into a file."""

import logging
import math
import types

import jax
import optax
import pytest
from helpers import networks
from helpers.runs import CHEAPEST

from asose_jax.pipeline import network_log
from asose_jax.spaces import chain
from asose_jax.train import pmap, state


def _chain(depth):
    size = {'channels': 8, 'depth': depth, 'reductions': (), 'max_channels': 8}
    return chain.build((8, 8, 3), 10, **size, primitives=CHEAPEST)


def _cells():
    sizes = {'channels': 8, 'depth': 3, 'reductions': (1,)}
    return networks.build('nasbench201', (8, 8, 1), 10, **sizes)


@pytest.mark.parametrize(
    ('spec', 'count', 'is_primary_host'),
    [
        (_chain(1), 1, True),
        (_chain(1), 1, False),
        (_chain(7), 7, True),
        (_chain(12), 12, True),
        (_cells(), 3, True),
    ],
    ids=['short', 'another host', 'as long as fits', 'long', 'cells'],
)
def test_network_is_told_in_a_dozen_lines_and_whole_in_a_file(
    tmp_path, caplog, spec, count, is_primary_host
):
    model, tx = networks.supernet(spec), optax.identity()
    context = types.SimpleNamespace(
        workdir=tmp_path,
        is_primary_host=is_primary_host,
        model=lambda spec: model,
        key=lambda use: jax.random.key(0),
        tx=tx,
    )
    with caplog.at_level(logging.INFO, 'asose_jax'):
        network_log.log_network(context, spec)
    first, *lines = caplog.messages[-1].splitlines()
    assert len(lines) < 12
    numbers = [int(line.split()[-1].replace(',', '')) for line in lines]
    like = state.abstract_state(model, tx, pmap.replicated_sharding())
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params))
    assert first.startswith(f'network of {total:,} parameters ({tmp_path / "network.txt"} has all')
    assert sum(numbers) == total
    names = [line.split()[0] for line in lines]
    assert (names[0], names[-1]) == ('stem', 'head')
    numbered = [int(name.split('_')[1]) for name in names if '_' in name and name[-1].isdigit()]
    assert numbered == sorted(numbered)
    assert len(numbered) == count or f'{count - len(numbered)} more' in caplog.text
    assert (tmp_path / 'network.txt').exists() == is_primary_host
    if is_primary_host:
        text = (tmp_path / 'network.txt').read_text(encoding='utf-8')
        assert all(f'_{i} ' in text for i in range(count))
