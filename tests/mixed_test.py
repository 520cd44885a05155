"""One mixed operation by itself; the laws on whole networks are in model_test."""

import functools

import jax
import jax.numpy as jnp
import pytest

from asose_jax import mixed
from asose_jax.norm import Norm

NAMES = ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3', 'conv_7x1_1x7')
X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


@functools.cache
def _made():
    op, _ = _op(mixed.Mode.SKIP)
    return op.init(jax.random.key(1), X, None)


def _op(mode, remat=False):
    settings = mixed.SearchSettings(remat=remat)
    forward = mixed.Forward(Norm('float32', None), settings, mode, True)
    return mixed.MixedOp(NAMES, 4, forward), mixed.Choice(NAMES, forward)


def _loss(mode, remat=False):
    """Of `params`, of a step that draws for `alpha`."""
    op, choice = _op(mode, remat)

    def loss(trained):
        values = {**_made(), 'params': trained['params']}
        arch = {'arch': {'alpha': trained['alpha']}}
        weights, _ = choice.apply(arch, mutable=['guard'], rngs={'gumbel': jax.random.key(3)})
        y, _ = op.apply(values, X, weights, mutable=['batch_stats'])
        return (y**2).sum()

    return loss


def _trained():
    return {'params': _made()['params'], 'alpha': jnp.arange(5.0)}


def test_equal_mixed_operations_share_one_trace():
    """Tracing is a third of the time to a compiled search; a block like the others adds none."""
    call = mixed._program
    jax.make_jaxpr(jax.grad(_loss(mixed.Mode.DRAW)))(_trained())
    before = call.cache_info()
    jax.make_jaxpr(jax.grad(_loss(mixed.Mode.DRAW)))(_trained())
    after = call.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


@pytest.mark.parametrize('mode', [mixed.Mode.DRAW, mixed.Mode.ALPHA])
def test_remat_changes_no_number(mode):
    kind = 'params' if mode is mixed.Mode.DRAW else 'alpha'

    def gradient(remat):
        loss = _loss(mode, remat)
        return jax.jit(jax.grad(lambda part: loss({**_trained(), kind: part})))(_trained()[kind])

    for ours, theirs in zip(
        jax.tree.leaves(gradient(False)), jax.tree.leaves(gradient(True)), strict=True
    ):
        assert jnp.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_paths_are_dropped_by_image_and_position_and_the_mean_stays():
    x, key = jnp.ones((4000, 1, 1, 2)), jax.random.key(0)
    positions = jnp.arange(4000)
    y = mixed.drop_path(x, 0.25, key, positions)
    assert jnp.array_equal(y[..., 0], y[..., 1])
    assert jnp.allclose(jnp.unique(y), jnp.array([0, 4 / 3]))
    assert jnp.allclose(y.mean(), 1, atol=0.03)
    assert jnp.array_equal(mixed.drop_path(x[:9], 0.25, key, positions[90:99]), y[90:99])
    assert jnp.array_equal(mixed.drop_path(x, 0.0, key, positions), x)


def test_uniform_draws_whatever_alpha_says():
    _, choice = _op(mixed.Mode.UNIFORM)
    arch = {'arch': {'alpha': jnp.array([9.0, 0, 0, 0, -9])}}
    draw = jax.vmap(lambda key: choice.apply(arch, rngs={'gumbel': key}))
    rows = draw(jax.random.split(jax.random.key(0), 4000))
    assert jnp.array_equal(jnp.sort(rows)[:, -2:], jnp.tile(jnp.array([0.0, 1.0]), (4000, 1)))
    assert jnp.allclose(rows.mean(0), 0.2, atol=0.03)
