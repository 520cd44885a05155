"""Laws of the draw: docs/algorithm.md, "Drawing operations", "Guards" and "Temperature"."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asose_jax.arch import gumbel
from asose_jax.config.schema import FIELDS

ALPHA = jnp.array([0.3, -2.0, 1.0, 0.0])
THRESHOLDS = gumbel.Thresholds(*FIELDS['search.thresholds'].default)
DRAW = functools.partial(gumbel.gumbel_softmax, noise='unit')
_draw = jax.jit(gumbel.gumbel_softmax, static_argnames=('hard', 'noise'))


@pytest.mark.parametrize('noise', ['unit', 'temperature'])
@pytest.mark.parametrize('hard', [True, False])
@pytest.mark.parametrize('tau', [0.1, 1.0, 5.0])
def test_rows_sum_to_one_and_hard_rows_are_one_hot(noise, hard, tau):
    alpha = np.random.default_rng(0).normal(size=(50, 10)).astype('f')
    rows = _draw(alpha, jax.random.key(1), tau, hard=hard, noise=noise)
    np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)
    if hard:
        assert set(np.unique(rows)) == {0.0, 1.0}
    else:
        assert ((rows > 0) & (rows < 1)).any(-1).all()


def test_straight_through_gradient_is_the_soft_gradient():
    direction = jnp.array([1.0, -2.0, 0.5, 3.0])

    def along(alpha, hard):
        return DRAW(alpha, jax.random.key(3), 0.7, hard=hard) @ direction

    hard, soft = jax.jit(lambda alpha: [jax.grad(along)(alpha, h) for h in (True, False)])(ALPHA)
    np.testing.assert_array_equal(hard, soft)
    assert (hard != 0).all()


@functools.cache
def _many(noise):
    one = functools.partial(DRAW, ALPHA, hard=True, noise=noise)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


@pytest.mark.parametrize('tau', [0.1, 0.8, 5.0])
@pytest.mark.parametrize('noise', ['unit', 'temperature'])
def test_draws_follow_the_stated_law(noise, tau):
    """Hard draws follow softmax(alpha) whatever tau is, or softmax(alpha / tau)."""
    draws = 40_000
    keys = jax.random.split(jax.random.key(0), draws)
    frequencies = _many(noise)(keys, tau).mean(0)
    expected = jax.nn.softmax(ALPHA if noise == 'unit' else ALPHA / tau)
    np.testing.assert_allclose(frequencies, expected, atol=4 * 0.5 / draws**0.5)


def test_draw_is_float32_for_bfloat16_logits():
    weights = DRAW(ALPHA.astype(jnp.bfloat16), jax.random.key(0), 1.0, hard=True)
    assert weights.dtype == jnp.float32


def test_unknown_noise_is_an_error():
    with pytest.raises(ValueError, match="'unit' or 'temperature', not 'loud'"):
        DRAW(ALPHA, jax.random.key(0), 1.0, hard=True, noise='loud')


@functools.partial(jax.jit, static_argnums=1)
def _guarded(alpha, hard):
    """Guarded weights of two rows, which of them were bad, and the gradient of a sum of them."""

    def draw(alpha):
        if hard is None:  # an evaluation, which draws nothing
            return jax.nn.softmax(alpha / 0.5)
        return DRAW(alpha, jax.random.key(0), 0.5, hard=hard)

    def weighed(alpha):
        rows, tripped = gumbel.guarded_weights(alpha, draw, fallback=3, tau=0.5)
        return (rows * np.arange(8.0, dtype='f').reshape(2, 4)).sum(), (rows, tripped)

    return jax.value_and_grad(weighed, has_aux=True)(alpha)


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
@pytest.mark.parametrize('hard', [None, True, False])
def test_guarded_row_becomes_the_fallback_and_passes_no_gradient(bad, hard):
    alpha = np.stack([ALPHA, ALPHA])
    alpha[1, 1] = bad
    (_, (rows, tripped)), gradient = _guarded(alpha, hard)
    np.testing.assert_array_equal(tripped, [False, True])
    np.testing.assert_array_equal(rows[1], [0, 0, 0, 1])
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)


def test_guard_leaves_healthy_rows_alone():
    draw = functools.partial(DRAW, key=jax.random.key(5), tau=0.5, hard=True)
    rows, tripped = gumbel.guarded_weights(ALPHA, draw, fallback=0, tau=0.5)
    np.testing.assert_array_equal(rows, draw(ALPHA))
    assert not tripped


def test_minus_infinity_is_a_legal_logit():
    alpha = ALPHA.at[2].set(-jnp.inf)
    weights, tripped = gumbel.guarded_weights(alpha, jax.nn.softmax, fallback=3)
    assert not tripped
    np.testing.assert_array_equal(weights > 0, [True, True, False, True])


@pytest.mark.parametrize(
    ('weights', 'expected'),
    [
        ([0.96, 0.04, 0.0, 0.0], [1, 0, 0, 0]),  # alone
        ([0.85, 0.06, 0.05, 0.04], [0.85, 0.06, 0, 0]),  # dominant, and what is beside it
        ([0.5, 0.3, 0.185, 0.015], [0.5, 0.3, 0.185, 0]),  # all but the minor
        ([0.019, 0.018, 0.017, 0.016], [0, 0, 0, 1]),  # next to nothing left: the fallback
    ],
)
def test_thresholds_by_hand(weights, expected):
    kept = gumbel.apply_thresholds(jnp.array(weights), THRESHOLDS, fallback=3)
    np.testing.assert_allclose(kept, expected)


def test_thresholds_compile_without_a_branch():
    jaxpr = str(
        jax.make_jaxpr(lambda w: gumbel.apply_thresholds(w, THRESHOLDS, 3))(jnp.ones(4) / 4)
    )
    assert 'cond' not in jaxpr


def test_tau_falls_to_its_floor_and_not_below():
    anneal = functools.partial(gumbel.anneal_tau, start=0.8, rate=0.98, floor=0.1)
    taus = np.asarray(jax.jit(anneal)(np.arange(300)))
    np.testing.assert_allclose(taus[0], 0.8, rtol=1e-6)
    np.testing.assert_allclose(taus[1], 0.784, rtol=1e-6)
    assert (np.diff(taus) <= 0).all()
    np.testing.assert_allclose(taus[102], 0.8 * 0.98**102, rtol=1e-5)
    np.testing.assert_array_equal(taus[103:], np.float32(0.1))
    several = [0, 1, 2, 50, 102, 103, 299]
    np.testing.assert_allclose([anneal(n) for n in several], taus[several], rtol=1e-5)
