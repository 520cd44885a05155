"""Each estimator of the gradient of alpha, against the exact one, by enumeration.

Two choices among three operations; the loss is smooth and far from linear in their weights:
what is drawn first changes what the second choice is worth. `python tests/estimators_test.py`
prints the table of docs/estimators.md.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from asose_jax import estimators, mixed, norm
from asose_jax.estimators import ESTIMATORS
from asose_jax.forward import Forward, Mode, SearchSettings

ALPHAS = (jnp.array([0.4, -0.3, 0.1]), jnp.array([-0.2, 0.5, 0.0]))
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


@pytest.mark.parametrize('noise', ['unit', 'temperature'])
@pytest.mark.parametrize('name', ESTIMATORS)
def test_largest_weight_follows_the_law_that_is_told(name, noise):
    row, alpha = ESTIMATORS[name], ALPHAS[0]
    law = row.law(0.4, noise)
    if law is None:
        assert name in ('softmax', 'drnas')
        return
    draw = jax.vmap(lambda key: row.weights(alpha, key, 0.4, noise).argmax())
    counts = np.bincount(draw(jax.random.split(jax.random.key(2), DRAWS)), minlength=3)
    expected = DRAWS * np.asarray(jax.nn.softmax(alpha / law), float)
    assert stats.chisquare(counts, expected * DRAWS / expected.sum()).pvalue > 1e-3


def _estimates(name, tau):
    """One gradient for each draw, `[DRAWS, 6]`."""
    row = ESTIMATORS[name]

    def gradient(key):
        def loss(alphas):
            first, second = (
                row.weights(alpha, k, tau, 'unit')
                for alpha, k in zip(alphas, jax.random.split(key), strict=True)
            )
            return _loss(first, second, row.dense)

        return jnp.concatenate(jax.grad(loss)(ALPHAS))

    return jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(2), DRAWS))


def _cosine(a, b):
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def cosines(name, tau):
    """Of the mean estimate, and the mean of those of single draws, to the exact gradient."""
    exact, found = _exact(ALPHAS), _estimates(name, tau)
    single = jnp.mean(jax.vmap(lambda g: g @ exact / (jnp.linalg.norm(g) + 1e-12))(found))
    return _cosine(found.mean(0), exact), float(single / jnp.linalg.norm(exact))


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
    exact = _exact(ALPHAS)
    errors = {
        name: float(jnp.linalg.norm(_estimates(name, 1.0).mean(0) - exact))
        for name in ('straight_through', 'reinmax')
    }
    assert errors['reinmax'] < 0.6 * errors['straight_through']


@pytest.mark.parametrize('name', ESTIMATORS)
def test_weights_sum_to_one_and_are_one_hot_where_the_table_says_so(name):
    row = ESTIMATORS[name]
    for seed in range(20):
        weights = row.weights(ALPHAS[0], jax.random.key(seed), 0.7, 'unit')
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
        assert bool((jnp.sort(weights) == jnp.array([0, 0, 1.0])).all()) == row.one_hot


@pytest.mark.parametrize('name', [n for n, row in ESTIMATORS.items() if row.one_hot])
def test_one_hot_draws_follow_softmax_of_alpha(name):
    draw = jax.vmap(lambda key: ESTIMATORS[name].weights(ALPHAS[0], key, 0.7, 'unit'))
    found = draw(jax.random.split(jax.random.key(0), DRAWS)).mean(0)
    np.testing.assert_allclose(found, jax.nn.softmax(ALPHAS[0]), atol=0.015)


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('field', ['tempered', 'noisy'])
def test_table_knows_what_changes_something(name, field):
    row, key = ESTIMATORS[name], jax.random.key(1)

    def value_and_slope(tau, noise):
        def weights(alpha):
            return row.weights(alpha, key, tau, noise) @ jnp.arange(3.0)

        return np.array([weights(ALPHAS[0]), *jax.grad(weights)(ALPHAS[0])])

    other = (0.3, 'unit') if field == 'tempered' else (0.7, 'temperature')
    same = np.array_equal(value_and_slope(0.7, 'unit'), value_and_slope(*other))
    assert getattr(row, field) != same


def test_dirichlet_has_the_mean_of_its_concentrations():
    draw = jax.vmap(lambda key: estimators.dirichlet(ALPHAS[0], key, 1.0, 'unit'))
    concentration = np.where(ALPHAS[0] > 0, ALPHAS[0] + 1, np.exp(ALPHAS[0]))
    found = draw(jax.random.split(jax.random.key(0), DRAWS)).mean(0)
    np.testing.assert_allclose(found, concentration / concentration.sum(), atol=0.01)


def test_rows_far_below_the_anchor_have_finite_draws_and_gradients():
    row, key = jnp.array([-40.0, -18.0, 0.5]), jax.random.key(0)
    for loss in (
        lambda alpha: estimators.dirichlet(alpha, key, 1.0, 'unit')[2],
        estimators.anchor_distance,
    ):
        assert all(jnp.isfinite(part).all() for part in jax.value_and_grad(loss)(row))


def test_distance_from_the_anchor_is_the_divergence_of_the_distributions():
    """KL of Dirichlet(beta) to Dirichlet(1), whose density is (K - 1)!: integral and draws."""
    pair, row = jnp.array([0.7, 1.6]), jnp.array([0.4, -0.3, 1.5])
    a, b = (np.asarray(jax.nn.elu(alpha), float) + 1 for alpha in (pair, row))
    density = stats.beta(*a)
    exact, _ = integrate.quad(lambda p: density.pdf(p) * density.logpdf(p), 0, 1)
    np.testing.assert_allclose(estimators.anchor_distance(pair), exact, atol=1e-5)
    draws = stats.dirichlet(b).rvs(DRAWS, np.random.default_rng(0))
    mean = (stats.dirichlet(b).logpdf(draws.T) - np.log(2)).mean()
    np.testing.assert_allclose(estimators.anchor_distance(row), mean, atol=0.02)


def test_anchor_is_where_nothing_is_preferred_and_a_bad_row_is_not_pulled():
    value, slope = jax.value_and_grad(estimators.anchor_distance)(jnp.zeros(5))
    np.testing.assert_allclose([value, *slope], 0, atol=1e-5)
    value, slope = jax.value_and_grad(estimators.anchor_distance)(jnp.array([0.5, jnp.nan]))
    np.testing.assert_allclose([value, *slope], 0, atol=1e-5)
    for alpha in (3.0, -3.0):  # a step downhill leads back
        assert (alpha * jax.grad(estimators.anchor_distance)(jnp.full(3, alpha)) > 0).all()


@pytest.mark.parametrize('name', ESTIMATORS)
def test_mixed_operation_gives_alpha_the_gradient_of_its_estimator(name):
    """Against the definition, with every candidate written out."""
    names = ('none', 'skip_connect', 'max_pool_3x3', 'avg_pool_3x3')
    x, g = (jax.random.normal(jax.random.key(k), (2, 5, 5, 3)) for k in (3, 4))
    row, key, alpha = ESTIMATORS[name], jax.random.key(5), jnp.array([0.1, 0.4, -0.2, 0.3])

    def forward(mode):
        return Forward(norm.Norm('float32', None), SearchSettings(estimator=name), mode, True)

    def outputs(index):
        op = mixed.MixedOp((names[index],), 3, forward(Mode.ARGMAX))
        return op.apply({}, x, None)

    def ours(weights):
        y = mixed.MixedOp(names, 3, forward(Mode.ALPHA)).apply({}, x, weights)
        return (y * g).sum()

    weights = row.weights(alpha, key, 0.7, 'unit')
    drawn = int(weights.argmax())
    expected = [
        (g * outputs(k)).sum() if row.dense or k == drawn else g.sum() for k in range(len(names))
    ]
    np.testing.assert_allclose(jax.grad(ours)(weights), expected, rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
    taus = (1.0, 0.5, 0.1)
    print('estimator', *(f'tau {tau}: mean, single' for tau in taus), sep=' | ')
    for name in ESTIMATORS:
        found = [functools.partial(cosines, name)(tau) for tau in taus]
        print(name, *(f'{mean:.3f}, {single:.3f}' for mean, single in found), sep=' | ')
