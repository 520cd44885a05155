"""BatchNorm is Flax's: values, gradients, running statistics, on one device and on many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import test_util

from asose_jax.nn import batch_norm

SHAPES = [(4, 1, 1, 1), (3, 5, 7, 2), (5, 2, 9, 3), (4, 8, 8, 16)]


def _numbers(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype('f')


def _variables(channels):
    scale, bias, mean, var = _numbers(0, (4, channels))
    return {
        'params': {'scale': 1 + 0.3 * scale, 'bias': bias},
        'batch_stats': {'mean': mean, 'var': 1 + var**2},
    }


def _made(module, dtype, train, **options):
    return module(not train, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(dtype), **options)


def _outcome(module, variables, x, g, train):
    """Output, new statistics, and the gradients of scale, bias and x for dL/dy = g."""

    def call(params, x):
        y, changed = module.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
        return y, changed['batch_stats']

    y, pull, stats = jax.vjp(call, variables['params'], x, has_aux=True)
    return y, stats, pull(g)


@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize(
    ('shape', 'dtype'), [*((s, 'float32') for s in SHAPES), ((3, 4, 7, 2), 'bfloat16')]
)
def test_it_is_the_batch_norm_of_flax(shape, dtype, train):
    x = (2 + _numbers(1, shape)).astype(jnp.dtype(dtype))
    g = _numbers(2, shape).astype(jnp.dtype(dtype))

    @jax.jit
    def both(*given):
        kinds = batch_norm.BatchNorm, nn.BatchNorm
        return [_outcome(_made(kind, dtype, train), *given, train) for kind in kinds]

    ours, flax = jax.device_get(both(_variables(shape[-1]), x, g))
    assert ours[0].dtype == flax[0].dtype == jnp.dtype(dtype)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    tolerance = 2e-5 if dtype == 'float32' else 0.05
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        expected = np.asarray(theirs, np.float32)
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(mine.astype(np.float32), expected, atol=tolerance * scale)


def test_gradient_agrees_with_central_differences():
    x = _numbers(1, (3, 2, 2, 2))
    module, variables = _made(batch_norm.BatchNorm, 'float32', True), _variables(2)

    @jax.jit
    def loss(params, x):
        y, _ = module.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
        return jnp.sin(y).sum()

    test_util.check_grads(loss, (variables['params'], x), 1, ['rev'], atol=2e-2, rtol=2e-2)


def test_over_devices_it_is_that_of_the_whole_batch():
    shape, count = (16, 4, 4, 3), jax.device_count()
    x = _numbers(1, shape) + np.arange(16, dtype='f').reshape(16, 1, 1, 1)
    g, variables = _numbers(2, shape), _variables(3)
    alone = _made(batch_norm.BatchNorm, 'float32', True)
    whole = jax.jit(lambda x, g: _outcome(alone, variables, x, g, True))(x, g)
    synced = _made(batch_norm.BatchNorm, 'float32', True, axis_name='batch')

    @functools.partial(jax.pmap, axis_name='batch', in_axes=(0, 0))
    def split(x, g):
        y, stats, (params, dx) = _outcome(synced, variables, x, g, True)
        return y, stats, (jax.lax.psum(params, 'batch'), dx)

    parts = split(*(a.reshape(count, -1, *shape[1:]) for a in (x, g)))
    for mine, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        found = mine.reshape(shape) if theirs.ndim == 4 else mine[0]
        np.testing.assert_allclose(found, theirs, rtol=1e-4, atol=1e-5)
