"""The cells of NAS-Bench-201: published counts, exactly; and what a cell computes."""

import jax
import numpy as np
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.nn.forward import Mode
from asose_jax.spaces import nasbench201

# FLOPs and parameters in millions, as NATS-Bench prints them (10 classes, 32x32), and for two of
# them with 100 and 120 classes; sources: its issues 24 and 36, and tables of other benchmarks.
SKIPS = '|skip_connect~0|+|none~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|'
FIRST = (
    '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|'
    '+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|'
)
LARGEST = (
    '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|'
    '+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|'
)
SMALLEST = '|none~0|+|none~0|none~1|+|none~0|none~1|none~2|'


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


PUBLISHED = [
    (FIRST, (32, 32, 3), 10, '15.64737', '0.129306'),
    (LARGEST, (32, 32, 3), 100, '220.12554', '1.537396'),
    (SMALLEST, (16, 16, 3), 120, '1.95340', '0.080456'),
    _slow(SKIPS, (32, 32, 3), 10, '113.95137', '0.802426'),
    _slow(LARGEST, (32, 32, 3), 10, '220.11969', '1.531546'),
    _slow(SMALLEST, (32, 32, 3), 10, '7.78305', '0.073306'),
    _slow(SMALLEST, (32, 32, 3), 100, '7.78890', '0.079156'),
    _slow(LARGEST, (16, 16, 3), 120, '55.03756', '1.538696'),
]


@pytest.mark.parametrize(('text', 'shape', 'classes', 'multiply_adds', 'params'), PUBLISHED)
def test_counts_are_the_published_ones(monkeypatch, text, shape, classes, multiply_adds, params):
    """Both from one trace of the network."""
    traced, variable_shapes = [], flops._variable_shapes
    monkeypatch.setattr(
        flops, '_variable_shapes', lambda part: traced.append(variable_shapes(part))
    )
    spec = genotype.derive(networks.build('nasbench201', shape, classes), nasbench201.loads(text))
    assert f'{flops.multiply_adds(spec) / 1e6:.5f}' == multiply_adds
    (made,) = traced
    assert f'{sum(leaf.size for leaf in jax.tree.leaves(made["params"])) / 1e6:.6f}' == params


def test_strings_survive_a_round_trip():
    for text in (FIRST, SKIPS, LARGEST, SMALLEST):
        assert nasbench201.dumps(nasbench201.loads(text)) == text


@pytest.mark.parametrize(
    'text',
    [
        '',
        '|none~0|',
        FIRST.replace('avg_pool_3x3', 'avg_pool_5x5'),
        FIRST.replace('~2', '~1'),
        FIRST.replace('~2', '~two'),
        FIRST + '|none~0|none~1|none~2|none~3|',
    ],
)
def test_a_string_of_another_kind_is_refused_with_its_fault(text):
    with pytest.raises(ValueError, match='NAS-Bench-201'):
        nasbench201.loads(text)


@pytest.mark.parametrize(
    ('text', 'times'),
    [
        # node 1 = x, node 2 = x + node 1, node 3 = x + node 1 + node 2
        (LARGEST.replace('nor_conv_3x3', 'skip_connect'), 4),
        ('|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|', 1),
        ('|none~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|none~1|skip_connect~2|', 2),
        (SMALLEST, 0),
    ],
)
def test_nodes_are_sums_of_edges(text, times):
    cell = tuple(tuple((name,) for name in node) for node in nasbench201.loads(text).operations)
    forward = networks.forward(Mode.ARGMAX, False)
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype('f')
    weights = [[None] * len(node) for node in cell]
    plain = tuple((False,) * len(edges) for edges in cell)
    y = jax.jit(lambda: nasbench201.Cell(cell, plain, forward).apply({}, x, weights))()
    np.testing.assert_allclose(y, times * x, rtol=1e-6)


def test_stages_halve_the_image_and_double_the_channels():
    spec = networks.build('nasbench201', (32, 32, 3), 10)
    assert (
        spec.modules == ((16, 1),) * 5 + ((32, 2),) + ((32, 1),) * 5 + ((64, 2),) + ((64, 1),) * 5
    )
    shapes = [place.shape for place in spec.places(2, 1)]
    assert shapes == [(32, 32, 16)] * 5 + [(16, 16, 32)] * 5 + [(8, 8, 64)] * 5
