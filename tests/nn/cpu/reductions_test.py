"""Sums taken together are the sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asose_jax.nn.cpu import reductions


@pytest.mark.parametrize('count', [1, 2, 7])
def test_sums_taken_together_are_the_sums(count):
    arrays = tuple(jax.random.normal(jax.random.key(i), (3, 8, 5)) for i in range(count))
    for ours, array in zip(
        jax.jit(reductions.sum_together, static_argnums=1)(arrays, 1), arrays, strict=True
    ):
        np.testing.assert_allclose(ours, jnp.sum(array, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('rows', 'expected'), [(1, 1), (7, 7), (11, 1), (12, 6), (64, 8)])
def test_rows_at_once_divide_the_rows(rows, expected):
    assert reductions.rows_at_once(rows) == expected
