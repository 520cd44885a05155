"""The matrix product over channels, and its gradients, are the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asose_jax.nn.cpu import conv_1x1

TOLERANCE = {'float32': 2e-4, 'bfloat16': 0.06}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (3, 5, 7, 2), (2, 8, 8, 16)])
def test_product_is_the_matrix_product_over_channels(shape, dtype):
    x, kernel, g = (
        np.random.default_rng(seed).normal(size=size).astype(jnp.dtype(dtype))
        for seed, size in enumerate([shape, (shape[-1], 5), (*shape[:3], 5)])
    )

    @jax.jit
    def both(x, kernel, g):
        ours, vjp = jax.vjp(conv_1x1.dot_general, x, kernel)
        wide = [array.astype(jnp.float32) for array in (x, kernel, g)]
        plain, plain_vjp = jax.vjp(jnp.matmul, *wide[:2])
        return (ours, *vjp(g)), (plain, *plain_vjp(wide[2]))

    for have, want in zip(*jax.device_get(both(x, kernel, g)), strict=True):
        scale = max(1.0, np.abs(want).max())
        assert have.dtype == jnp.dtype(dtype)
        difference = np.abs(np.asarray(have, np.float32) - np.asarray(want)).max()
        assert difference / scale < TOLERANCE[dtype]
