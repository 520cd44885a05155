"""The largest eigenvalue of alpha's Hessian, the rule that ends a search, and what that leaves."""

import functools
import json

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks
from helpers.runs import (
    CHEAPEST,
    Compiled,
    assert_resumed_as_the_whole,
    assert_same_end,
    final_state,
    lines_of,
    run_with_stops,
    stop_after,
    tiny,
)

from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import builders, early_stopping, single_run
from asose_jax.spaces.registry import SPACES
from asose_jax.spaces.supernet import with_softmax_mixture
from asose_jax.train import checkpoint, optimizer, pmap, state, steps

PRIMITIVES = ('none', 'max_pool_3x3', 'skip_connect', 'nor_conv_1x1')
NORM = Norm('float32', None)
IMAGES = jax.random.normal(jax.random.key(0), (6, 6, 6, 2))
LABELS = jnp.arange(6) % 3


@functools.cache
def _net():
    sizes = {'channels': 4, 'depth': 2, 'reductions': (1,), 'max_channels': 8}
    spec = SPACES['chain'].build((6, 6, 2), 3, primitives=PRIMITIVES, **sizes)
    net = networks.supernet(spec)
    keys = {'params': jax.random.key(1), 'arch': jax.random.key(2)}
    return net, jax.jit(lambda: net.init(keys, IMAGES[:1], mode=Mode.SKIP, train=False))()


# --- The eigenvalue


@pytest.mark.parametrize(
    'eigenvalues',
    [
        (5.0, 1.0, 0.5, 0.0, -2.0, -7.0),  # largest as a number, not in magnitude
        (3.0, 3.0, 3.0),  # one product is all there is
        (0.0, 0.0),
        (1e-4, 0.9e-4, -1e-4, 0.0),
        tuple(np.linspace(-1, 2, 60)),  # more than there are iterations
    ],
)
def test_largest_eigenvalue_of_a_known_matrix(eigenvalues):
    random, n = np.random.default_rng(0), len(eigenvalues)
    turn = np.linalg.qr(random.normal(size=(n, n)))[0]
    matrix = np.float32(turn * eigenvalues @ turn.T)
    start = np.float32(random.normal(size=n))
    found = early_stopping.largest_eigenvalue(lambda v: matrix @ v, start)
    np.testing.assert_allclose(found, max(eigenvalues), rtol=1e-3, atol=1e-7)


def test_eigenvalue_is_that_of_the_whole_hessian_of_the_mixtures_loss():
    net, variables = _net()
    alpha, unravel = jax.flatten_util.ravel_pytree(variables['arch'])
    mixture = with_softmax_mixture(net)

    @jax.jit
    def gradient(alpha):
        def loss(alpha):
            logits, _ = mixture.apply(
                {**variables, 'arch': unravel(alpha)},
                IMAGES,
                mode=Mode.DENSE,
                train=True,
                mutable=['batch_stats', 'guard'],
                rngs={'gumbel': jax.random.key(9)},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

        return jax.grad(loss)(alpha)

    # Small steps: over the kinks of ReLU and max pooling, differences see curvature that is not.
    steps = 3e-3 * np.eye(len(alpha), dtype=np.float32)
    hessian = np.stack([gradient(alpha + d) - gradient(alpha - d) for d in steps]) / 6e-3
    expected = np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
    found = early_stopping.eigenvalue(net, variables, 0.0, IMAGES, LABELS, jax.random.key(3), None)
    assert expected > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.slow
def test_eigenvalue_is_that_of_the_loss_with_class_weights():
    key = jax.random.key(3)
    plain = early_stopping.eigenvalue(*_net(), 0.0, IMAGES, LABELS, key, None)
    twice = early_stopping.eigenvalue(*_net(), 0.0, IMAGES, LABELS, key, np.full(3, 2, 'f'))
    np.testing.assert_allclose(twice, 2 * plain, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', operations.PRIMITIVES)
def test_gradient_of_every_operation_can_be_differentiated_along_a_vector(name, stride):
    x, v = jax.random.normal(jax.random.key(0), (2, 2, 6, 6, 4))
    call = operations.pure_function(name, 4, NORM, stride, True, False)
    made = operations.make(name, 4, NORM, stride).init(jax.random.key(1), x, False)

    def loss(x):
        y, _ = call(made.get('params', {}), made.get('batch_stats', {}), x)
        return (y**3).sum()

    along = jax.jvp(jax.grad(loss), (x,), (v,))[1]
    h = 1e-3
    differences = (jax.grad(loss)(x + h * v) - jax.grad(loss)(x - h * v)) / (2 * h)
    # Maxima and ReLUs have kinks, over which a difference may step.
    apart = jnp.abs(along - differences) > 2e-2 * (jnp.abs(along).max() + 1e-3)
    assert apart.mean() < 0.05


# --- The rule


@pytest.mark.parametrize(
    ('eigenvalues', 'window', 'risen'),
    [
        ([1.0] * 10, 5, False),
        ([1.0] * 5 + [1.3] * 5, 5, False),  # 1 / 1.3 is 0.77
        ([1.0] * 5 + [1.4] * 5, 5, True),
        ([9.0] * 3 + [1.0] * 5 + [1.4] * 5, 5, True),  # older ones do not count
        ([1.0] * 4 + [1.4] * 5, 5, False),  # too few
        ([1.4] * 5 + [1.0] * 5, 5, False),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.7], 5, True),  # mean 1.34
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.6], 5, False),  # mean 1.32
        ([1.0, 1.4], 1, True),
        ([0.0] * 10, 5, False),
        ([1.0] * 9 + [float('nan')], 5, False),
    ],
)
def test_search_ends_when_the_mean_of_a_window_has_risen_by_a_third(eigenvalues, window, risen):
    assert early_stopping.has_risen(eigenvalues, window, 0.75) is risen


# --- The run

# The eigenvalue rises in epoch 5: two windows of 2 are epochs 2 and 3, and 4 and 5.
SERIES = {6: 1.0, 12: 1.0, 18: 1.0, 24: 1.0, 30: 3.0}
FIELDS = {
    'model.primitives': CHEAPEST,
    'warmup.epochs': 0,
    'search.epochs': 8,
    'search.freeze_epochs': 0,
    'search.early_stop': True,
    'search.stop_window': 2,
    'growth.epochs': 0,
}


@pytest.fixture(scope='module')
def halted(tmp_path_factory):
    """A run whose search ended early, and alpha at the end of each of its epochs.

    And `stopped` beside it: the same, stopped before, at the end of search, and after.
    """
    place, alphas = tmp_path_factory.mktemp('halted'), {}

    def remembered(context, current):
        alphas[current.step] = jax.device_get(current.state.arch)
        return _measured(context, current)

    with pytest.MonkeyPatch.context() as patch:
        Compiled().install(patch)
        patch.setattr(early_stopping, '_measure_eigenvalue', remembered)
        summary = single_run.run(tiny(**FIELDS), place / 'run')
        patch.setattr(early_stopping, '_measure_eigenvalue', _measured)
        stops = [(stop_after, step) for step in (29, 30, 32)]
        run_with_stops(tiny(**FIELDS), place / 'stopped', stops)
    return place / 'run', summary, alphas


def _measured(context, current):
    return SERIES[current.step]


@pytest.mark.slow
def test_search_ends_with_the_alpha_of_before_and_the_next_phase_begins(halted):
    workdir, summary, alphas = halted
    assert summary['halted'] == {
        'step': 30,
        'epoch': 5,
        'alpha_of_epoch': 3,
        'eigenvalues': [1.0, 1.0, 1.0, 3.0],
    }
    rows = [(row['name'], row['epochs'], row['steps']) for row in summary['phases']]
    assert rows == [('search', 5, 30), ('optimize', 1, 4)]
    lines = lines_of(workdir)
    assert [line['step'] for line in lines] == [*SERIES, 34]
    assert [line.get('arch/eigenvalue') for line in lines] == [*SERIES.values(), None]
    with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
        spec = SPACES['chain'].spec.from_json(checkpoints.describe(30)['spec'])
        saved = checkpoints.restore(30, _like(spec))
    chex.assert_trees_all_equal(jax.device_get(saved.arch), alphas[18])
    moved = zip(jax.tree.leaves(alphas[18]), jax.tree.leaves(alphas[30]), strict=True)
    assert all((before != after).any() for before, after in moved)


def _like(spec):
    config = tiny(**FIELDS)
    tx = optimizer.make_optimizer(config, builders.make_schedule(config, 287))
    return state.abstract_state(
        networks.supernet(spec, synced_over=steps.AXIS), tx, pmap.replicated_sharding()
    )


@pytest.mark.slow
def test_stopped_and_resumed_run_ends_its_search_alike(halted):
    assert_same_end(halted[0].parent / 'stopped', halted[0], tiny(**FIELDS))


@pytest.mark.slow
def test_run_that_ended_its_search_is_as_long_as_one_that_planned_it(halted):
    config = tiny(**FIELDS)
    schedule = builders.make_schedule(config, 287).with_search_until(30)
    assert schedule.steps == 34
    assert schedule == schedule.with_search_until(30)
    assert (
        schedule.spans == builders.make_schedule(tiny(**{**FIELDS, 'search.epochs': 5}), 287).spans
    )
    _, _, state = final_state(halted[0], config)
    counts = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(state.opt_state.inner_states['weights'])
        if 'count' in jax.tree_util.keystr(path)
    ]
    assert counts == [schedule.weight_updates(schedule.steps)]


@pytest.mark.slow
def test_run_with_both_remedies_is_resumed_bit_for_bit(tmp_path):
    never = {'search.epochs': 4, 'search.stop_window': 1, 'search.stop_ratio': 1e-9}
    fields = {**FIELDS, **never, 'search.selection': 'perturbation'}
    assert_resumed_as_the_whole(fields, 11, tmp_path)
    values = [line['arch/eigenvalue'] for line in lines_of(tmp_path / 'whole')[:-1]]
    assert all(value >= 0 for value in values)
    assert len(set(values)) == len(values) == 4
    summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
    assert (summary['halted'], summary['selection']) == (None, 'perturbation')
