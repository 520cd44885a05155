"""The optimizer moves the group whose turn it is, and leaves the other the same to the bit."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.train import optimizer
from asose_jax.train.phases import Phase

EPOCHS = {Phase.WARMUP: 1, Phase.SEARCH: 2, Phase.GROWTH: 0, Phase.OPTIMIZE: 1}
SCHEDULE = networks.make_schedule(EPOCHS, 4)
EVEN = {'weights.lr': 0.1, 'weights.lr_end': 0.1}
PLAIN = {'weights.momentum': 0.0, 'weights.weight_decay': 0.0}
TRAINABLE = {'params': {'w': jnp.array([1.0, -2.0])}, 'arch': {'alpha': jnp.array([0.5, 0.1])}}
GRADS = {'params': {'w': jnp.array([0.3, 0.2])}, 'arch': {'alpha': jnp.array([0.1, -0.4])}}


def _trajectory(tx, steps):
    state, trainable, seen = tx.init(TRAINABLE), TRAINABLE, []
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(GRADS, state, trainable, step=jnp.int32(step))
        trainable = optax.apply_updates(trainable, updates)
        seen.append((trainable, state))
    return seen


def _inner(state, group):
    return state.inner_states[group].inner_state


def test_every_step_moves_one_group_and_leaves_the_other_bit_identical():
    tx = networks.make_optimizer(SCHEDULE)
    before = (TRAINABLE, tx.init(TRAINABLE))
    for step, after in enumerate(_trajectory(tx, SCHEDULE.steps)):
        moved, still = ('arch', 'params') if SCHEDULE.is_alpha_turn(step) else ('params', 'arch')
        names = {'params': 'weights', 'arch': 'arch'}
        (old, old_state), (new, new_state) = before, after
        chex.assert_trees_all_equal(old[still], new[still])
        same = _inner(old_state, names[still]), _inner(new_state, names[still])
        chex.assert_trees_all_equal(*same)
        assert all(
            (a != b).all()
            for a, b in zip(*map(jax.tree.leaves, (old[moved], new[moved])), strict=True)
        )
        before = after


def test_both_groups_move_in_a_step_of_alpha_that_is_the_weights_as_well():
    schedule = dataclasses.replace(SCHEDULE, together=True)
    tx = networks.make_optimizer(schedule)
    before = TRAINABLE
    for step, (after, _) in enumerate(_trajectory(tx, SCHEDULE.steps)):
        moved = {
            group: bool((jax.tree.leaves(before[group])[0] != jax.tree.leaves(tree)[0]).any())
            for group, tree in after.items()
        }
        assert moved == {'params': True, 'arch': bool(schedule.is_alpha_turn(step))}
        before = after


def test_weights_follow_sgd_with_momentum_and_decay_by_hand():
    tx = networks.make_optimizer(SCHEDULE, **EVEN)
    (first, _), (second, _) = _trajectory(tx, 2)
    w, g = TRAINABLE['params']['w'], GRADS['params']['w']
    velocity = g + 3e-4 * w
    expected = w - 0.1 * velocity
    np.testing.assert_allclose(first['params']['w'], expected, rtol=1e-6)
    velocity = 0.9 * velocity + g + 3e-4 * expected
    np.testing.assert_allclose(second['params']['w'], expected - 0.1 * velocity, rtol=1e-6)


def test_alpha_follows_adamw_by_hand():
    tx = networks.make_optimizer(SCHEDULE)
    trainable = _trajectory(tx, 5)[-1][0]  # steps 0-3 warm up, step 4 moves alpha
    alpha, g = TRAINABLE['arch']['alpha'], GRADS['arch']['alpha']
    # Adam's first step is the sign of the gradient; the decay is not scaled with it.
    expected = alpha - 3e-4 * (jnp.sign(g) + 1e-3 * alpha)
    np.testing.assert_allclose(trainable['arch']['alpha'], expected, rtol=1e-6)


def test_learning_rates_from_a_travel_add_up_to_it():
    lr = optimizer.lr_for_total_displacement(4.0, 1e-5, 1000)
    schedule = optax.cosine_decay_schedule(lr, 1000, alpha=1e-5 / lr)
    assert sum(float(schedule(i)) for i in range(1000)) == pytest.approx(4.0, rel=2e-3)
    assert optimizer.lr_for_total_displacement(4.0, 1e-5, 10**7) == 1e-5


def test_decay_of_alpha_does_not_outweigh_a_small_gradient():
    """With L2 inside Adam, a gradient of 1e-5 would lose against the decay of alpha = 1."""
    tx = networks.make_optimizer(SCHEDULE)
    trainable = {**TRAINABLE, 'arch': {'alpha': jnp.ones(2)}}
    small = {**GRADS, 'arch': {'alpha': jnp.array([-1e-5, 1e-5])}}
    updates, _ = tx.update(small, tx.init(trainable), trainable, step=jnp.int32(4))
    up, down = updates['arch']['alpha']
    assert up > 0 > down


@pytest.mark.parametrize(
    ('group', 'name', 'last'), [('weights', 'params', 1e-4), ('arch', 'arch', 1e-5)]
)
def test_learning_rate_ends_where_it_should_with_the_last_update(group, name, last):
    """The last update of each group is made with the rate that is one update short of the end."""
    del group
    tx = networks.make_optimizer(
        SCHEDULE, **PLAIN, **{'arch.weight_decay': 0.0, 'arch.b1': 0.0, 'arch.b2': 0.0}
    )
    seen = [TRAINABLE] + [trainable for trainable, _ in _trajectory(tx, SCHEDULE.steps)]
    sizes = [
        float(jnp.abs(jax.tree.leaves(b[name])[0] - jax.tree.leaves(a[name])[0]).max())
        for a, b in itertools.pairwise(seen)
    ]
    moves = [size for size in sizes if size > 0]
    gradient = 1.0 if name == 'arch' else 0.3
    start = 3e-4 if name == 'arch' else 0.025
    assert moves[0] == pytest.approx(start * gradient, rel=1e-2)
    assert last * gradient < moves[-1] < 0.4 * moves[0]
    assert all(b < a for a, b in itertools.pairwise(moves))


def test_clip_shortens_the_weights_gradient_before_decay():
    tx = networks.make_optimizer(SCHEDULE, **EVEN, **{'weights.clip': 0.1})
    ((first, _),) = _trajectory(tx, 1)
    w, g = TRAINABLE['params']['w'], GRADS['params']['w']
    expected = w - 0.1 * (g * 0.1 / jnp.linalg.norm(g) + 3e-4 * w)
    np.testing.assert_allclose(first['params']['w'], expected, rtol=1e-6)


def test_nesterov_momentum_looks_one_step_ahead_by_hand():
    tx = networks.make_optimizer(SCHEDULE, **EVEN, **{'weights.nesterov': True})
    (first, _), (second, _) = _trajectory(tx, 2)
    w, g = TRAINABLE['params']['w'], GRADS['params']['w']
    gradient = g + 3e-4 * w
    expected = w - 0.1 * (gradient + 0.9 * gradient)
    np.testing.assert_allclose(first['params']['w'], expected, rtol=1e-6)
    velocity, gradient = gradient, g + 3e-4 * expected
    velocity = gradient + 0.9 * velocity
    expected = expected - 0.1 * (gradient + 0.9 * velocity)
    np.testing.assert_allclose(second['params']['w'], expected, rtol=1e-6)


def _rates(**changes):
    """The learning rate of each update of the weights: its move, if nothing else moves them."""
    tx = networks.make_optimizer(SCHEDULE, **PLAIN, **changes)
    seen = [TRAINABLE, *(trainable for trainable, _ in _trajectory(tx, SCHEDULE.steps))]
    moves = [float((a['params']['w'] - b['params']['w'])[0]) for a, b in itertools.pairwise(seen)]
    return [move / 0.3 for step, move in enumerate(moves) if SCHEDULE.is_weight_turn(step)]


def _cosine(peak, last, updates):
    steps = np.arange(updates) / updates
    return last + (peak - last) * (1 + np.cos(np.pi * steps)) / 2


def test_learning_rate_rises_to_its_peak_by_hand():
    fields = {'weights.lr': 0.8, 'weights.lr_end': 0.0, 'weights.lr_warmup_steps': 3}
    found = _rates(**fields)
    expected = [0.2, 0.4, 0.6, *_cosine(0.8, 0.0, len(found) - 3)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('rise', [0, 2])
def test_learning_rate_starts_anew_with_optimize_and_ends_before_it(rise):
    fields = {'weights.lr': 0.3, 'weights.lr_end': 0.01, 'weights.lr_warmup_steps': rise}
    found = _rates(**fields, **{'optimize.lr': 0.9})
    assert len(found) == 4 + 2 * 4 + 4  # warmup, search, optimize
    before, anew = found[:12], found[12:]
    for rates, peak in ((before, 0.3), (anew, 0.9)):
        np.testing.assert_allclose(
            rates[:rise], [peak * (i + 1) / (rise + 1) for i in range(rise)], rtol=1e-4
        )
        np.testing.assert_allclose(rates[rise:], _cosine(peak, 0.01, len(rates) - rise), rtol=1e-4)
