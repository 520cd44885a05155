"""Pooling computes what the plain form does, forward and backward, on any shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from asose_jax import pooling

SHAPES = [(1, 1, 1, 1), (3, 5, 7, 2), (5, 2, 9, 3), (2, 8, 8, 16)]


BORDER = ((1, 1), (1, 1))


def _plain(x, stride):
    return nn.max_pool(x, (3, 3), (stride, stride), BORDER)


@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize(
    ('shape', 'dtype'), [*((s, 'float32') for s in SHAPES), ((3, 4, 7, 2), 'bfloat16')]
)
def test_max_pool_is_the_plain_pooling(shape, dtype, stride):
    # Distinct values, in bfloat16 up to 256 of them: of equal ones, either may get the gradient.
    values = jax.random.normal(jax.random.key(0), shape).reshape(-1)
    x = values.argsort().argsort().reshape(shape).astype(dtype)
    y, ours = jax.vjp(lambda x: pooling.max_pool(x, stride), x)
    expected, plain = jax.vjp(lambda x: _plain(x, stride), x.astype(jnp.float32))
    g = jax.random.normal(jax.random.key(1), y.shape).astype(dtype)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), expected)
    want = plain(g.astype(jnp.float32))[0]
    tolerance = 1e-5 if dtype == 'float32' else 0.06 * float(jnp.abs(want).max())
    np.testing.assert_allclose(ours(g)[0].astype(jnp.float32), want, atol=tolerance)


@pytest.mark.parametrize('shape', SHAPES)
def test_max_pool_2x2_is_the_plain_pooling_also_at_odd_borders(shape):
    x, g = (jax.random.normal(jax.random.key(k), shape) for k in range(2))
    g = g[:, ::2, ::2]
    y, ours = jax.vjp(pooling.max_pool_2x2, x)
    expected, plain = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2), 'SAME'), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(ours(g)[0], plain(g)[0])


def test_max_pool_gives_a_gradient_to_one_of_equals():
    gradient = jax.grad(lambda x: pooling.max_pool(x).sum())(jnp.ones((1, 3, 3, 1)))
    np.testing.assert_allclose(gradient.sum(), 9)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('bfloat16', 0.05)])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('shape', SHAPES)
def test_avg_pool_is_the_plain_pooling_without_its_padding(shape, stride, dtype, tolerance):
    x = jax.random.normal(jax.random.key(0), shape)
    strides = (stride, stride)
    expected, plain = jax.vjp(
        lambda x: nn.avg_pool(x, (3, 3), strides, BORDER, count_include_pad=False), x
    )
    y, ours = jax.vjp(lambda x: pooling.avg_pool(x, stride), x.astype(dtype))
    g = jax.random.normal(jax.random.key(1), y.shape)
    dx = ours(g.astype(dtype))[0]
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_allclose(y.astype('float32'), expected, atol=tolerance)
    np.testing.assert_allclose(dx.astype('float32'), plain(g)[0], atol=tolerance)
