"""One mixed operation by itself; the laws on whole networks are in model_test."""

import functools

import jax
import jax.numpy as jnp
import pytest

from asose_jax import mixed
from asose_jax.model import Norm

NAMES = ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3', 'conv_7x1_1x7')
X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


@functools.cache
def _made(remat=False):
    op = mixed.MixedOp(NAMES, 4, Norm('float32', None), mixed.SearchSettings(remat=remat))
    keys = {'params': jax.random.key(1), 'arch': jax.random.key(2)}
    return op, op.init(keys, X, 1.0, mixed.Mode.SKIP, False)


def _jaxpr(mode, kinds, remat=False):
    """The traced gradient of a step for a list of collections."""
    op, variables = _made(remat)

    def loss(part):
        changed = {**variables, **part}
        rngs = {'gumbel': jax.random.key(3)}
        y, _ = op.apply(changed, X, 1.0, mode, True, mutable=['batch_stats', 'guard'], rngs=rngs)
        return (y**2).sum()

    return jax.make_jaxpr(jax.grad(loss))({kind: variables[kind] for kind in kinds})


def test_equal_mixed_operations_share_one_trace():
    """Tracing is a third of the time to a compiled search; a block like the others adds none."""
    call = mixed._program
    _jaxpr(mixed.Mode.DRAW, ['params'])
    before = call.cache_info()
    _jaxpr(mixed.Mode.DRAW, ['params'])
    after = call.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


@pytest.mark.parametrize('mode', [mixed.Mode.DRAW, mixed.Mode.ALPHA])
def test_remat_changes_no_number(mode):
    op, variables = _made()
    lean, _ = _made(remat=True)

    def gradient(op):
        def loss(trained):
            values = {**variables, **trained}
            rngs = {'gumbel': jax.random.key(4)}
            y, _ = op.apply(values, X, 1.0, mode, True, mutable=['batch_stats', 'guard'], rngs=rngs)
            return (y**2).sum()

        kind = 'params' if mode is mixed.Mode.DRAW else 'arch'
        return jax.jit(jax.grad(loss))({kind: variables[kind]})

    for ours, theirs in zip(
        jax.tree.leaves(gradient(op)), jax.tree.leaves(gradient(lean)), strict=True
    ):
        assert jnp.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
