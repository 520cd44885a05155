"""Search begins with the function that warmup ended with, and what is kept has no factors left."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.nn import factors
from asose_jax.nn.forward import Mode
from asose_jax.spaces import registry
from asose_jax.train import state, steps
from asose_jax.train.phases import Phase

NAMES = ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3')
SIZES = {
    'chain': {'depth': 2, 'reductions': (1,)},
    'nasbench201': {'depth': 1, 'reductions': ()},
    'darts': {'depth': 1, 'reductions': (0,)},
}
PLAIN = ('none', 'skip_connect', 'max_pool_3x3')  # quickly compiled; no edge of a cell needs more
IMAGES = np.random.default_rng(0).normal(size=(6, 6, 6, 2)).astype('f')
LABELS = np.arange(6) % 3
TX = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))


def _spec(space, names=NAMES):
    made = registry.SPACES[space].build(
        (6, 6, 2), 3, channels=4, max_channels=8, primitives=names, **SIZES[space]
    )
    return made.with_factors()


SPEC = _spec('chain')


def _at(tree, value):
    """The tree with this in the place of every factor."""
    return jax.tree.map_with_path(
        lambda path, leaf: np.float32(value) if factors.is_factor(path) else leaf, tree
    )


def _rows(spec, kind):
    """alpha of which a draw is surely this candidate, or of which none is likelier."""
    shapes = networks.shapes(networks.supernet(spec))['arch']

    def row(leaf):
        if kind == 'uniform':
            return np.zeros(leaf.shape, np.float32)
        return 1e4 * np.eye(leaf.shape[0], dtype=np.float32)[kind % leaf.shape[0]]

    return jax.tree.map(row, shapes)


CASES = [
    ('chain', 'straight_through'),
    ('chain', 'gumbel'),
    *(
        pytest.param('chain', name, marks=pytest.mark.slow)
        for name in ESTIMATORS
        if name not in ('straight_through', 'gumbel')
    ),
    ('nasbench201', 'straight_through'),
    pytest.param('darts', 'straight_through', marks=pytest.mark.slow),
]


@pytest.mark.parametrize(('space', 'estimator'), CASES)
def test_whatever_is_drawn_search_begins_with_the_function_that_warmup_ended_with(space, estimator):
    """Of a cell, an auxiliary skip carries the images, which begins to fade at that step."""
    spec = _spec(space, NAMES if space == 'chain' else PLAIN)
    settings = networks.settings(
        exact_start=True, estimator=estimator, auxiliary_skip=space != 'chain'
    )
    net = networks.supernet(spec, settings)
    made = networks.variables(net)
    modes = (Mode.SKIP, Mode.DRAW, Mode.ALPHA, Mode.DENSE, Mode.ARGMAX)

    @jax.jit
    def logits(params, arch, key):
        def of(mode, train):
            return net.apply(
                {**made, 'params': params, 'arch': arch},
                IMAGES,
                0.7,
                beta=1.0,
                mode=mode,
                train=train,
                mutable=['batch_stats', 'guard'],
                rngs={'gumbel': key},
            )[0]

        return [[of(mode, train) for mode in modes] for train in (True, False)]

    shut = _at(made['params'], 0)
    for number, arch in enumerate([made['arch'], _rows(spec, 'uniform'), *map(_one(spec), NAMES)]):
        for warmup, *search in logits(shut, arch, jax.random.key(number)):
            for found in search:
                np.testing.assert_allclose(found, warmup, atol=1e-5, rtol=0)
    (warmup, *search), _ = logits(made['params'], made['arch'], jax.random.key(0))
    assert all(abs(found - warmup).max() > 1e-2 for found in search)


def _one(spec):
    return lambda name: _rows(spec, NAMES.index(name))


def test_warmup_trains_nothing_of_a_mixed_operation_and_search_opens_what_is_drawn():
    net = networks.supernet(SPEC, exact_start=True)
    made = networks.variables(net)
    shut = _at(made['params'], 0)
    arch = _rows(SPEC, NAMES.index('dil_conv_3x3'))

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(mode):
        def loss(params):
            logits, _ = net.apply(
                {**made, 'params': params, 'arch': arch},
                IMAGES,
                mode=mode,
                train=True,
                mutable=['batch_stats', 'guard'],
                rngs={'gumbel': jax.random.key(0)},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

        return jax.grad(loss)(shut)

    warmup, search = (gradient(mode) for mode in (Mode.SKIP, Mode.DRAW))
    for block in ('block_0', 'block_1'):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(warmup[block]['branch_0']))
        opened = search[block]['branch_0'].pop('dil_conv_3x3')
        assert opened.pop('factor') != 0
        rest = (opened, search[block]['branch_0'])  # the operation learns when it is open
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(rest))
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(warmup['stem']))


@pytest.mark.parametrize('exactly', [True, False])
def test_factors_begin_at_zero_where_search_begins_exactly_else_at_one(exactly):
    net = networks.supernet(SPEC, exact_start=exactly)
    params = state.init_state(net, TX, jax.random.key(0)).params
    found = [leaf for path, leaf in jax.tree.leaves_with_path(params) if factors.is_factor(path)]
    assert len(found) == 2 * (len(NAMES) - 1)  # none of `none`
    assert set(map(float, found)) == {0.0 if exactly else 1.0}


@pytest.mark.parametrize('name', NAMES)
def test_what_is_kept_computes_the_same_and_moves_as_before(name):
    """Of every kind of candidate: v of f s is f v_s + s v_f."""
    net = networks.supernet(SPEC)
    held = networks.fresh_state(net, TX)
    trace = optax.tree.get(held.opt_state, 'trace')
    velocity = networks.random_like(networks.shapes(net)['params'], seed=1)
    moving = optax.tree.set(held.opt_state, trace={**trace, 'params': velocity})
    held = held.replace(opt_state=moving)
    chosen = genotype.Genotype(((name,), (name,)))
    derived, spec = state.derive_state(held, SPEC, chosen, TX), factors.folded_spec(SPEC, chosen)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        derived, networks.fresh_state(networks.supernet(spec), TX)
    )

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def logits(spec, params, batch_stats, mode, arch):
        variables = {'params': params, 'batch_stats': batch_stats, 'arch': arch}
        return networks.supernet(spec).apply(variables, IMAGES, mode=mode, train=False)

    step = 1e-2  # along the velocities
    for size in (0.0, step):
        arch = _rows(SPEC, NAMES.index(name))
        params = jax.tree.map(lambda p, v, size=size: p + size * v, held.params, velocity)
        expected = logits(SPEC, params, held.batch_stats, Mode.ARGMAX, arch)
        speeds = optax.tree.get(derived.opt_state, 'trace')['params']
        params = jax.tree.map(lambda p, v, size=size: p + size * v, derived.params, speeds)
        found = logits(spec, params, derived.batch_stats, Mode.ARGMAX, {})
        tolerance = 1e-5 + 4 * size**2  # a product of two that move is not linear
        np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max(), rtol=0)
    counted = sum(leaf.size for leaf in jax.tree.leaves(derived.params))
    keeps = name in ('max_pool_3x3', 'skip_connect')
    assert spec.factors == (((True,), (True,)) if keeps else ())
    assert counted - factors.count_parameters(derived.params) == 2 * keeps
    plain = networks.parameters(genotype.derive(SPEC, chosen))
    assert factors.count_parameters(derived.params) == plain


def test_statistics_of_their_own_are_those_of_the_most_likely_network():
    """Evaluated with them, it says what it says in training on the same batches."""
    from helpers import search_steps as small

    dropped = networks.settings(drop_path=0.5)  # in optimize, and not here
    net = networks.supernet(small.SPEC, dropped, synced_over=steps.AXIS)
    step_config, images = dataclasses.replace(small.STEP_CONFIG, model=net), small.data()
    held = small.fresh(small.START)
    index = np.arange(8, dtype=np.int32)
    chunk = small.batches.stack_batches([{'index': index}], 2, 1) | {'done': np.zeros(1, np.int32)}
    call = jax.pmap(
        functools.partial(steps.recompute_batch_stats, step_config),
        axis_name=steps.AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=jax.devices()[:1],
    )
    shared = jax.device_put(jax.device_get({**small.SHARED, 'key': None}), jax.devices()[0])
    shared['key'] = small.KEY
    found = call(state.Packed.of(held), chunk, shared).unpack()
    pixels, _ = images.images.read(index)
    normalised = (pixels - np.float32(100)) / np.float32(50)

    @functools.partial(jax.jit, static_argnums=1)
    def logits(batch_stats, train):
        return networks.supernet(small.SPEC).apply(
            {**held.trainable, 'batch_stats': batch_stats},
            normalised,
            mode=Mode.ARGMAX,
            train=train,
            mutable=['batch_stats', 'guard'],
        )[0]

    expected = logits(held.batch_stats, True)
    np.testing.assert_allclose(logits(found.batch_stats, False), expected, rtol=1e-3, atol=1e-4)
    assert abs(logits(held.batch_stats, False) - expected).max() > 1e-2
    unused = genotype.most_likely(small.SPEC, held.arch)
    for (g, m, names), kept in zip(small.SPEC.rows(), unused.operations, strict=True):
        for name in {*names} - {*kept}:
            path = (f'block_{g}', f'branch_{m}')
            before, after = (genotype.subtree(s.batch_stats, path) for s in (held, found))
            if name in before:
                chex.assert_trees_all_close(after[name], before[name], rtol=1e-4, atol=1e-5)
