"""One mixed operation alone; `tests/spaces/supernet_test.py` has the laws of whole networks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks

from asose_jax.nn import mixed_op
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Mode

NAMES = ('none', 'skip_connect', 'max_pool_3x3', 'dil_conv_3x3')
NORM = Norm('float32', None)
X = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype('f')


@functools.cache
def _made():
    return _begun(_op(Mode.SKIP)[0])


def _begun(op, x=X):
    """Random variables, without waiting for a compiler."""
    return networks.random_like(jax.eval_shape(lambda: op.init(jax.random.key(1), x, None)))


def _op(mode, remat=False):
    forward = networks.forward(mode, True, remat=remat)
    return mixed_op.MixedOp(NAMES, 4, forward), mixed_op.Choice(NAMES, forward)


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
    return {'params': _made()['params'], 'alpha': np.arange(4, dtype='f')}


def test_equal_mixed_operations_share_one_trace():
    """Tracing is a third of the time to a compiled search; a block like the others adds none."""
    call = mixed_op._program
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


@pytest.mark.parametrize(
    'estimator', ['straight_through', pytest.param('gdas', marks=pytest.mark.slow)]
)
def test_form_for_accelerators_computes_what_the_form_for_cpus_does(estimator):
    """Output, statistics and gradients, whatever is drawn, and a candidate that yields NaN."""

    def outcome(for_cpu, params, weights):
        forward = networks.forward(Mode.ALPHA, True, for_cpu=for_cpu, estimator=estimator)
        op = mixed_op.MixedOp(NAMES, 4, forward)

        def loss(params, weights, x):
            values = {**_made(), 'params': params}
            y, changed = op.apply(values, x, weights, mutable=['batch_stats'])
            return (y**2).sum(), (y, changed)

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(params, weights, X)

    both = jax.jit(lambda *args: (outcome(False, *args), outcome(True, *args)))
    made = _made()['params']
    poisoned = {**made, NAMES[3]: jax.tree.map(lambda p: p * np.nan, made[NAMES[3]])}
    for params in (made, poisoned):
        for drawn, weights in enumerate(np.eye(4, dtype='f')):
            ours, of_cpu = jax.device_get(both(params, weights))
            chex.assert_trees_all_close(ours, of_cpu, atol=1e-5, rtol=1e-5)
            is_computed = estimator == 'straight_through' or drawn == 3
            assert np.isnan(ours[1][1][3]) == (params is poisoned and is_computed)


def test_paths_are_dropped_by_image_and_position_and_the_mean_stays():
    x, key = np.ones((4000, 1, 1, 2), 'f'), jax.random.key(0)
    positions = np.arange(4000)
    drop = jax.jit(mixed_op.drop_path)
    y = np.asarray(drop(x, 0.25, key, positions))
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-5)
    np.testing.assert_allclose(y.mean(), 1, atol=0.03)
    np.testing.assert_array_equal(drop(x[:9], 0.25, key, positions[90:99]), y[90:99])
    np.testing.assert_array_equal(drop(x, 0.0, key, positions), x)


def test_uniform_draws_whatever_alpha_says():
    _, choice = _op(Mode.UNIFORM)
    arch = {'arch': {'alpha': np.float32([9, 0, 0, -9])}}
    draw = jax.jit(jax.vmap(lambda key: choice.apply(arch, rngs={'gumbel': key})))
    rows = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    np.testing.assert_array_equal(np.sort(rows)[:, -2:], np.tile([0.0, 1.0], (4000, 1)))
    np.testing.assert_allclose(rows.mean(0), 0.25, atol=0.03)


# --- Remedies against collapse

FEW = ('none', 'skip_connect', 'max_pool_3x3', 'nor_conv_1x1')
DRAWN = np.eye(4, dtype='f')[3]
both_strides = pytest.mark.parametrize('stride', [1, 2])


def _remedied(mode, stride, *, beta=None, partial=1, channels=4):
    forward = networks.forward(
        mode, True, partial=partial, beta=beta or 0.0, auxiliary_skip=beta is not None
    )
    return mixed_op.MixedOp(FEW, channels, forward, stride)


def _output(op, variables, x, weights=DRAWN):
    return op.apply(variables, x, weights, mutable=['batch_stats'])[0]


@pytest.mark.parametrize(
    ('mode', 'stride'),
    [
        (Mode.SKIP, 2),
        (Mode.DRAW, 1),
        (Mode.ALPHA, 2),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((Mode.SKIP, 1), (Mode.DRAW, 2), (Mode.ALPHA, 1))
        ),
    ],
)
def test_auxiliary_skip_is_added_to_what_was_drawn(mode, stride):
    with_it, without = (_remedied(mode, stride, beta=beta) for beta in (0.3, None))
    made = _begun(with_it)
    own = {name: {'skip_connect': tree.get('auxiliary', {})} for name, tree in made.items()}
    assert ('auxiliary' in made.get('params', {})) == (stride == 2)

    @jax.jit
    def outputs():
        skip = _output(_remedied(Mode.SKIP, stride), own, X)
        return _output(with_it, made, X), _output(without, made, X) + 0.3 * skip

    np.testing.assert_allclose(*outputs(), rtol=1e-5, atol=1e-6)


@both_strides
def test_partial_channels_are_cut_weighed_joined_and_shuffled(stride):
    x = np.random.default_rng(2).normal(size=(2, 5, 5, 6)).astype('f')
    op = _remedied(Mode.DRAW, stride, partial=3, channels=6)
    made = _begun(op, x)

    @jax.jit
    def outputs():
        alone = _remedied(Mode.DRAW, stride, channels=2)
        return _output(op, made, x), _output(alone, made, x[..., :2])

    y, part = jax.device_get(outputs())
    rest = x[..., 2:]
    if stride == 2:
        corners = [(i, j) for i in (0, 2, 4) for j in (0, 2, 4)]
        rest = np.stack([rest[:, i : i + 2, j : j + 2].max((1, 2)) for i, j in corners], 1)
        rest = rest.reshape(2, 3, 3, 4)
    parts = [part, rest[..., :2], rest[..., 2:]]
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
