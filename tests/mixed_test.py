"""One mixed operation by itself; the laws on whole networks are in model_test."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asose_jax import mixed
from asose_jax.forward import Forward, Mode, SearchSettings
from asose_jax.norm import Norm

NAMES = ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3', 'conv_7x1_1x7')
NORM = Norm('float32', None)
X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


@functools.cache
def _made():
    op, _ = _op(Mode.SKIP)
    return op.init(jax.random.key(1), X, None)


def _op(mode, remat=False):
    settings = SearchSettings(remat=remat)
    forward = Forward(NORM, settings, mode, True)
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
    jax.make_jaxpr(jax.grad(_loss(Mode.DRAW)))(_trained())
    before = call.cache_info()
    jax.make_jaxpr(jax.grad(_loss(Mode.DRAW)))(_trained())
    after = call.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


@pytest.mark.parametrize('mode', [Mode.DRAW, Mode.ALPHA])
def test_remat_changes_no_number(mode):
    kind = 'params' if mode is Mode.DRAW else 'alpha'

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
    _, choice = _op(Mode.UNIFORM)
    arch = {'arch': {'alpha': jnp.array([9.0, 0, 0, 0, -9])}}
    draw = jax.vmap(lambda key: choice.apply(arch, rngs={'gumbel': key}))
    rows = draw(jax.random.split(jax.random.key(0), 4000))
    assert jnp.array_equal(jnp.sort(rows)[:, -2:], jnp.tile(jnp.array([0.0, 1.0]), (4000, 1)))
    assert jnp.allclose(rows.mean(0), 0.2, atol=0.03)


# --- Remedies against collapse

FEW = ('none', 'skip_connect', 'max_pool_3x3', 'nor_conv_1x1')
DRAWN = jax.nn.one_hot(3, 4)
both_strides = pytest.mark.parametrize('stride', [1, 2])


def _remedied(mode, stride, *, beta=None, partial=1, channels=4):
    settings = SearchSettings(auxiliary_skip=beta is not None)
    forward = Forward(NORM, settings, mode, True, beta=beta or 0.0, partial=partial)
    return mixed.MixedOp(FEW, channels, forward, stride)


def _output(op, variables, x, weights=DRAWN):
    return op.apply(variables, x, weights, mutable=['batch_stats'])[0]


def _begun(op, x=X):
    return jax.jit(lambda: op.init(jax.random.key(1), x, None))()


@both_strides
@pytest.mark.parametrize('mode', [Mode.SKIP, Mode.DRAW, Mode.ALPHA])
def test_auxiliary_skip_is_added_to_what_was_drawn(mode, stride):
    with_it, without = (_remedied(mode, stride, beta=beta) for beta in (0.3, None))
    made = _begun(with_it)
    own = {name: {'skip_connect': tree.get('auxiliary', {})} for name, tree in made.items()}
    skip = _output(_remedied(Mode.SKIP, stride), own, X)
    assert ('auxiliary' in made.get('params', {})) == (stride == 2)
    expected = _output(without, made, X) + 0.3 * skip
    assert jnp.allclose(_output(with_it, made, X), expected, atol=1e-6)


@both_strides
def test_partial_channels_are_cut_weighed_joined_and_shuffled(stride):
    x = jax.random.normal(jax.random.key(2), (2, 5, 5, 6))
    op = _remedied(Mode.DRAW, stride, partial=3, channels=6)
    made = _begun(op, x)
    part = _output(_remedied(Mode.DRAW, stride, channels=2), made, x[..., :2])
    rest = np.asarray(x[..., 2:])
    if stride == 2:
        corners = [(i, j) for i in (0, 2, 4) for j in (0, 2, 4)]
        rest = np.stack([rest[:, i : i + 2, j : j + 2].max((1, 2)) for i, j in corners], 1)
        rest = rest.reshape(2, 3, 3, 4)
    parts = [part, rest[..., :2], rest[..., 2:]]
    y = _output(op, made, x)
    for channel in range(6):
        expected = parts[channel % 3][..., channel // 3]
        np.testing.assert_allclose(y[..., channel], expected, rtol=1e-6)


def test_alpha_has_the_gradient_of_the_dense_form_with_both_remedies():
    def gradients(mode):
        op = _remedied(mode, 2, beta=0.3, partial=2)
        made = _begun(op)
        gradient = jax.grad(lambda w, x: (_output(op, made, x, w) ** 2).sum(), (0, 1))
        return jax.jit(gradient)(DRAWN, X)

    ours, dense = gradients(Mode.ALPHA), gradients(Mode.DENSE)
    assert (ours[0][1:] != 0).all()
    chex.assert_trees_all_close(ours, dense, rtol=1e-4, atol=1e-5)
