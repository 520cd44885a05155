"""Each estimator of the gradient of alpha, against the exact one, by enumeration.

Two choices among three operations; the loss is smooth and far from linear in their weights:
what is drawn first changes what the second choice is worth. `python tests/arch/estimators_test.py`
prints the table of docs/estimators.md.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks
from scipy import integrate, special, stats

from asose_jax.arch import estimators
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.nn import mixed_op
from asose_jax.nn.forward import Mode

ALPHAS = (np.float32([0.4, -0.3, 0.1]), np.float32([-0.2, 0.5, 0.0]))
DRAWS = 20_000


def _operations(seed):
    return jax.random.normal(jax.random.key(seed), (3, 4, 4)) / 2


def _mixed(weights, operations, x, dense):
    """sum_k weights[k] operations[k] x; in GDAS's form, what was not drawn counts as ones."""
    outputs = jnp.tanh(operations @ x)
    if not dense:
        drawn = jax.nn.one_hot(weights.argmax(), 3)
        outputs = jnp.where(drawn[:, None] > 0, outputs, 1.0)
        weights = weights - jax.lax.stop_gradient((1 - drawn) * weights)
    return weights @ outputs


def _loss(first, second, dense=True):
    x = jnp.array([1.0, -0.5, 0.3, 0.8])
    y = x + 1.5 * _mixed(first, _operations(0), x, dense)
    z = y + 1.5 * _mixed(second, _operations(1), y, dense)
    return jnp.sum(jnp.square(z - jnp.array([0.5, 1.0, -1.0, 0.0])))


def _exact(alphas):
    """Gradient of E[L] over networks drawn with softmax(alpha)."""
    eye = jnp.eye(3)

    def mean(alphas):
        first, second = map(jax.nn.softmax, alphas)
        pairs = itertools.product(range(3), range(3))
        return sum(first[i] * second[j] * _loss(eye[i], eye[j]) for i, j in pairs)

    return jnp.concatenate(jax.grad(mean)(alphas))


@functools.cache
def _exact_of_alphas():
    return np.asarray(jax.jit(_exact)(ALPHAS))


@functools.cache
def _program(noise):
    """All estimators in one: they share their noise, and so the time to compile it."""

    def all_of(key, tau):
        def weights(alpha, name):
            found = ESTIMATORS[name].weights(alpha, key, tau, noise)
            return found @ jnp.arange(3.0), found

        slope = jax.value_and_grad(weights, has_aux=True)
        return {name: slope(ALPHAS[0], name) for name in ESTIMATORS}

    return jax.jit(jax.vmap(all_of, in_axes=(0, None)))


@functools.cache
def _all_drawn(tau, noise):
    keys = jax.random.split(jax.random.key(2), DRAWS)
    return jax.device_get(_program(noise)(keys, tau))


def _drawn(name, tau, noise='unit'):
    """Weights `[DRAWS, 3]` of the first row, and the slope of a number that they make."""
    (_, weights), slope = _all_drawn(tau, noise)[name]
    return weights, slope


@pytest.mark.parametrize('noise', ['unit', 'temperature'])
@pytest.mark.parametrize('name', ESTIMATORS)
def test_largest_weight_follows_the_law_that_is_told(name, noise):
    sampling_temperature, alpha = ESTIMATORS[name].sampling_temperature(0.4, noise), ALPHAS[0]
    if sampling_temperature is None:
        assert name in ('softmax', 'drnas')
        return
    counts = np.bincount(_drawn(name, 0.4, noise)[0].argmax(-1), minlength=3)
    expected = special.softmax(np.float64(alpha / sampling_temperature))
    assert stats.chisquare(counts, DRAWS * expected).pvalue > 1e-3


@functools.cache
def _all_estimates(tau):
    def gradients(key):
        keys = jax.random.split(key)

        def loss(alphas, row):
            pairs = zip(alphas, keys, strict=True)
            return _loss(*(row.weights(alpha, k, tau, 'unit') for alpha, k in pairs), row.dense)

        return {n: jnp.concatenate(jax.grad(loss)(ALPHAS, row)) for n, row in ESTIMATORS.items()}

    keys = jax.random.split(jax.random.key(2), DRAWS)
    return jax.device_get(jax.jit(jax.vmap(gradients))(keys))


def _estimates(name, tau):
    """One gradient for each draw, `[DRAWS, 6]`."""
    return _all_estimates(tau)[name]


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def cosines(name, tau):
    """Of the mean estimate, and the mean of those of single draws, to the exact gradient."""
    exact, found = _exact_of_alphas(), _estimates(name, tau)
    single = np.mean(found @ exact / (np.linalg.norm(found, axis=1) + 1e-12))
    return _cosine(found.mean(0), exact), float(single / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ('name', 'cosine'),
    [
        ('straight_through', 0.998),
        ('gdas', 0.136),  # its trick costs it the direction
        ('reinmax', 0.998),
        ('gumbel', 0.997),
        ('softmax', 0.984),
        ('drnas', 0.988),
    ],
)
def test_mean_estimate_is_as_near_to_the_exact_gradient_as_the_docs_say(name, cosine):
    assert cosines(name, 1.0)[0] == pytest.approx(cosine, abs=0.05 if name == 'gdas' else 0.005)


def test_reinmax_is_nearer_to_the_exact_gradient_than_straight_through():
    exact = _exact_of_alphas()
    errors = {
        name: np.linalg.norm(_estimates(name, 1.0).mean(0) - exact)
        for name in ('straight_through', 'reinmax')
    }
    assert errors['reinmax'] < 0.6 * errors['straight_through']


@pytest.mark.parametrize('name', ESTIMATORS)
def test_weights_sum_to_one_and_are_one_hot_where_the_table_says_so(name):
    weights, _ = _drawn(name, 0.7)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    one_hot = (np.sort(weights, -1) == np.array([0, 0, 1])).all(-1)
    assert (one_hot[:20] == ESTIMATORS[name].one_hot).all()
    assert one_hot.all() == ESTIMATORS[name].one_hot


@pytest.mark.parametrize('name', [n for n, row in ESTIMATORS.items() if row.one_hot])
def test_one_hot_draws_follow_softmax_of_alpha(name):
    found = _drawn(name, 0.7)[0].mean(0)
    np.testing.assert_allclose(found, special.softmax(ALPHAS[0]), atol=0.015)


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('field', ['tempered', 'noisy'])
def test_table_knows_what_changes_something(name, field):
    other = (0.3, 'unit') if field == 'tempered' else (0.7, 'temperature')
    pair = zip(_drawn(name, 0.7), _drawn(name, *other), strict=True)
    same = all(np.array_equal(one, another) for one, another in pair)
    assert getattr(ESTIMATORS[name], field) != same


def test_dirichlet_has_the_mean_of_its_concentrations():
    assert ESTIMATORS['drnas'].weights is estimators.dirichlet
    concentration = np.where(ALPHAS[0] > 0, ALPHAS[0] + 1, np.exp(ALPHAS[0]))
    found = _drawn('drnas', 0.7)[0].mean(0)
    np.testing.assert_allclose(found, concentration / concentration.sum(), atol=0.01)


def test_rows_far_below_the_anchor_have_finite_draws_and_gradients():
    row, key = np.float32([-40.0, -18.0, 0.5]), jax.random.key(0)
    for loss in (
        lambda alpha: estimators.dirichlet(alpha, key, 1.0, 'unit')[2],
        estimators.anchor_distance,
    ):
        assert all(np.isfinite(part).all() for part in jax.jit(jax.value_and_grad(loss))(row))


_distance = jax.jit(jax.value_and_grad(estimators.anchor_distance))


def test_distance_from_the_anchor_is_the_divergence_of_the_distributions():
    """KL of Dirichlet(beta) to Dirichlet(1), whose density is (K - 1)!: integral and draws."""
    pair, row = np.float32([0.7, 1.6]), np.float32([0.4, -0.3, 1.5])
    a, b = (np.where(alpha > 0, alpha, np.expm1(alpha)) + 1.0 for alpha in (pair, row))
    density = stats.beta(*a)
    exact, _ = integrate.quad(lambda p: density.pdf(p) * density.logpdf(p), 0, 1)
    np.testing.assert_allclose(_distance(pair)[0], exact, atol=1e-5)
    draws = stats.dirichlet(b).rvs(DRAWS, np.random.default_rng(0))
    mean = (stats.dirichlet(b).logpdf(draws.T) - np.log(2)).mean()
    np.testing.assert_allclose(_distance(row)[0], mean, atol=0.02)


def test_anchor_is_where_nothing_is_preferred_and_a_bad_row_is_not_pulled():
    for row in ([0, 0, 0], [0.5, np.nan]):
        value, slope = _distance(np.float32(row))
        np.testing.assert_allclose([value, *slope], 0, atol=1e-5)
    for alpha in (3.0, -3.0):  # a step downhill leads back
        assert (alpha * _distance(np.full(3, alpha, np.float32))[1] > 0).all()


MIXED = ('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3')


@functools.cache
def _gradients_of_mixed_operations():
    """The drawn operation, dL/dweights by definition and ours, by estimator; and of ones."""
    x, g = (np.random.default_rng(k).normal(size=(2, 5, 5, 3)).astype('f') for k in (3, 4))
    key, alpha = jax.random.key(5), np.float32([0.1, 0.4, -0.2, 0.3])

    def call(names, name, mode, weights):
        forward = networks.forward(mode, True, estimator=name)
        y = mixed_op.MixedOp(names, 3, forward).apply({}, x, weights)
        return (y * g).sum()

    def of(name):
        weights = ESTIMATORS[name].weights(alpha, key, 0.7, 'unit')
        products = [call((each,), name, Mode.ARGMAX, None) for each in MIXED]
        ours = jax.grad(functools.partial(call, MIXED, name, Mode.ALPHA))(weights)
        return weights.argmax(), jnp.stack(products), ours

    return jax.device_get(jax.jit(lambda: {name: of(name) for name in ESTIMATORS})()), g.sum()


@pytest.mark.parametrize('name', ESTIMATORS)
def test_mixed_operation_gives_alpha_the_gradient_of_its_estimator(name):
    """Against the definition, with every candidate written out."""
    found, of_ones = _gradients_of_mixed_operations()
    drawn, products, gradient = found[name]
    expected = [
        product if ESTIMATORS[name].dense or k == drawn else of_ones
        for k, product in enumerate(products)
    ]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
    taus = (1.0, 0.5, 0.1)
    print('estimator', *(f'tau {tau}: mean, single' for tau in taus), sep=' | ')
    for name in ESTIMATORS:
        found = [functools.partial(cosines, name)(tau) for tau in taus]
        print(name, *(f'{mean:.3f}, {single:.3f}' for mean, single in found), sep=' | ')
