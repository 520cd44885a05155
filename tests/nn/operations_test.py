"""The primitives, each against its definition in the paper it is from."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks

from asose_jax.config.schema import FIELDS
from asose_jax.nn import operations

NORM = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)


def _random(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype('f')


def _variables(op, x):
    """Random ones, without waiting for a compiler."""
    return networks.random_like(jax.eval_shape(lambda: op.init(jax.random.key(0), x, False)))


def _apply(name, x, channels=4):
    op = operations.make(name, channels, NORM)
    return jax.jit(lambda: op.apply(_variables(op, x), x, False))()


def test_primitives_of_the_chain_keep_their_order():
    assert list(FIELDS['model.primitives'].default) == [
        'none',
        'avg_pool_3x3',
        'max_pool_3x3',
        'skip_connect',
        'sep_conv_3x3',
        'sep_conv_5x5',
        'sep_conv_7x7',
        'dil_conv_3x3',
        'dil_conv_5x5',
        'conv_7x1_1x7',
    ]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', operations.PRIMITIVES)
def test_shape_and_dtype_are_kept_and_parameters_are_float32(name, dtype):
    op = operations.make(name, 4, functools.partial(NORM, dtype=dtype))
    x = jax.ShapeDtypeStruct((2, 5, 6, 4), dtype)
    start = functools.partial(op.init_with_output, train=False)
    y, variables = jax.eval_shape(start, jax.random.key(0), x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ('name', 'numbers'),
    [
        # By hand for C = 4: depthwise k*k*C, pointwise C*C, BatchNorm 2*C.
        ('none', 0),
        ('avg_pool_3x3', 0),
        ('max_pool_3x3', 0),
        ('skip_connect', 0),
        ('sep_conv_3x3', 2 * (9 * 4 + 16 + 8)),
        ('sep_conv_5x5', 2 * (25 * 4 + 16 + 8)),
        ('sep_conv_7x7', 2 * (49 * 4 + 16 + 8)),
        ('dil_conv_3x3', 9 * 4 + 16 + 8),
        ('dil_conv_5x5', 25 * 4 + 16 + 8),
        ('conv_7x1_1x7', 2 * 7 * 16 + 8),
        ('nor_conv_1x1', 16 + 8),
        ('nor_conv_3x3', 9 * 16 + 8),
    ],
)
def test_number_of_parameters_by_hand(name, numbers):
    variables = _variables(operations.make(name, 4, NORM), np.ones((1, 3, 3, 4), 'f'))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.get('params', {}))) == numbers
    assert (numbers == 0) == (name in operations.PARAMETER_FREE)


@pytest.mark.parametrize('name', operations.PRIMITIVES)
def test_stride_keeps_every_other_pixel_of_odd_images_too(name):
    x, thin = _random(1, (2, 5, 6, 4)), operations.make(name, 4, NORM, 2)
    variables = _variables(thin, x)
    y = jax.eval_shape(lambda: thin.apply(variables, x, False))
    assert y.shape == (2, 3, 3, 4)
    if name == 'skip_connect' or name.startswith('sep_conv'):  # these see less in between
        return
    each = (op.apply(variables, x, False) for op in (thin, operations.make(name, 4, NORM)))
    y, whole = jax.jit(lambda: tuple(each))()
    np.testing.assert_allclose(y, whole[:, ::2, ::2], atol=1e-5)


def test_skip_of_stride_two_is_two_shifted_halves():
    x, op = _random(1, (1, 4, 4, 4)), operations.make('skip_connect', 4, NORM, 2)
    y, variables = jax.jit(op.init_with_output, static_argnums=2)(jax.random.key(0), x, False)
    first, second = (variables['params']['reduce'][f'shift_{i}']['kernel'] for i in range(2))
    rectified = np.maximum(x, 0)
    halves = [rectified[:, ::2, ::2] @ first, rectified[:, 1::2, 1::2] @ second]
    expected = np.concatenate(halves, -1) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_none_is_zero_and_skip_is_identity():
    x = _random(1, (2, 5, 6, 4))
    np.testing.assert_array_equal(_apply('none', x), 0)
    np.testing.assert_array_equal(_apply('skip_connect', x), x)


def test_average_does_not_count_padding():
    x = np.arange(9, dtype='f').reshape(1, 3, 3, 1)
    y = _apply('avg_pool_3x3', x, channels=1)[0, :, :, 0]
    np.testing.assert_allclose(y, [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]])


def test_maximum_ignores_padding_also_below_zero():
    x = -np.arange(1, 10, dtype='f').reshape(1, 3, 3, 1)
    y = _apply('max_pool_3x3', x, channels=1)[0, :, :, 0]
    np.testing.assert_allclose(y, [[-1, -1, -2], [-1, -1, -2], [-4, -4, -5]])


@pytest.mark.parametrize(
    ('name', 'reach'),
    [
        ('sep_conv_3x3', 2),  # twice one pixel
        ('sep_conv_5x5', 4),
        ('sep_conv_7x7', 6),
        ('dil_conv_3x3', 2),  # one tap, two pixels away
        ('dil_conv_5x5', 4),
        ('conv_7x1_1x7', 3),
    ],
)
def test_reach_of_the_convolutions(name, reach):
    """How far one changed pixel is felt, along both axes."""
    pair = np.ones((2, 21, 21, 4), 'f')
    pair[1, 10, 10] += 1
    one, other = _apply(name, pair)
    felt = np.abs(one - other).max(-1) > 1e-6
    for axis in (0, 1):
        where = np.flatnonzero(felt.any(axis))
        assert (where.min(), where.max()) == (10 - reach, 10 + reach)
