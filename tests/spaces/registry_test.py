"""What holds in every search space, on networks of it that are as small as can be."""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.arch import genotype, published
from asose_jax.costs import flops
from asose_jax.nn import factors
from asose_jax.nn.forward import Mode
from asose_jax.spaces import registry
from asose_jax.spaces.registry import SPACES
from asose_jax.train import state
from asose_jax.train.phases import Phase

SIZES = {
    'chain': {
        'depth': 2,
        'reductions': (1,),
        'primitives': ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3'),
    },
    'nasbench201': {
        'depth': 3,
        'reductions': (1,),
        'primitives': published.NASBENCH201,
    },
    'darts': {
        'depth': 2,
        'reductions': (0,),
        'primitives': ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3'),
    },
}
# What is computed has few operations: each of an edge's takes its time to compile.
COMPILED = {
    'chain': {
        **SIZES['chain'],
        'primitives': ('none', 'avg_pool_3x3', 'skip_connect', 'dil_conv_3x3'),
    },
    'nasbench201': {
        'depth': 2,  # two cells, which share alpha
        'reductions': (),
        'primitives': ('none', 'skip_connect', 'nor_conv_1x1'),
    },
    'darts': {**SIZES['darts'], 'primitives': ('none', 'skip_connect', 'dil_conv_3x3')},
}
# One cell, where nothing is said of several.
ALONE = {
    'chain': {'depth': 1, 'reductions': ()},
    'nasbench201': {'depth': 1, 'reductions': ()},
    'darts': {'depth': 1, 'reductions': (0,)},
}
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(6, 6, 6, 2)).astype('f')
LABELS = np.arange(6) % 3
TAU = 0.7
every_space = pytest.mark.parametrize('space', SPACES)
# Many operations to compile; what is slow in DARTS' space is tested in the slow tests.
a_cell = pytest.mark.parametrize(
    'space', ['nasbench201', pytest.param('darts', marks=pytest.mark.slow)]
)


def _build(space, sizes):
    return SPACES[space].build((6, 6, 2), 3, channels=4, max_channels=8, **sizes)


@functools.cache
def _spec(space):
    return _build(space, SIZES[space])


@functools.cache
def _small(space):
    return _build(space, COMPILED[space])


# Both remedies against collapse, and operations that are quickly compiled.
PLAIN = ('none', 'skip_connect', 'max_pool_3x3')
REMEDIES = networks.settings(auxiliary_skip=True)


def _partial(space, sizes=ALONE):
    sizes = {**sizes[space], 'primitives': PLAIN}
    return dataclasses.replace(_build(space, sizes), partial=2)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _logits(spec, variables, mode, beta=0.0):
    net = networks.supernet(spec, REMEDIES)
    keys = {'gumbel': jax.random.key(3)}
    return net.apply(variables, IMAGES, TAU, beta=beta, mode=mode, train=False, rngs=keys)


@functools.cache
def _variables(spec):
    return networks.variables(networks.supernet(spec))


@functools.partial(jax.jit, static_argnames=('spec', 'mode', 'groups', 'train'))
def _step(trainable, batch_stats, key, spec, mode, groups=(), train=True):
    """Mean loss, logits, and the gradients of these groups."""

    def loss(moved):
        logits, _ = networks.supernet(spec).apply(
            {**trainable, **moved, 'batch_stats': batch_stats},
            IMAGES,
            TAU,
            mode=mode,
            train=train,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': key},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), logits

    return jax.value_and_grad(loss, has_aux=True)({group: trainable[group] for group in groups})


def _stepped(spec, seed, mode, groups=(), train=True, arch=None):
    v = _variables(spec)
    trainable = {'params': v['params'], 'arch': v['arch'] if arch is None else arch}
    found = _step(trainable, v['batch_stats'], jax.random.key(seed), spec, mode, groups, train)
    return jax.device_get(found)


def _alphas(spec, arch):
    return [genotype.subtree(arch, spec.alpha_path(*row[:2]))['alpha'] for row in spec.rows()]


@every_space
def test_description_survives_json_and_can_be_a_dictionary_key(space):
    again = registry.spec_from_json(json.loads(json.dumps(_spec(space).to_json())))
    assert {again: 1}[_spec(space)] == 1


@every_space
def test_every_row_has_its_alpha_and_every_place_its_operations(space):
    spec = _spec(space)
    variables = networks.shapes(networks.supernet(spec))
    assert len(jax.tree.leaves(variables['arch'])) == len(spec.rows())
    for row, alpha in zip(spec.rows(), _alphas(spec, variables['arch']), strict=True):
        assert alpha.shape == (len(row.candidates),)
        for place in spec.places(row.group, row.member):
            held = genotype.subtree(variables['params'], place.path)
            assert {name for name in row.candidates if 'conv' in name} <= set(held)


@pytest.mark.parametrize(
    ('space', 'seed'),  # other seeds draw `none` where nothing else leads on
    [('nasbench201', 0), ('nasbench201', 2), pytest.param('darts', 0, marks=pytest.mark.slow)],
)
def test_steps_take_the_gradients_of_the_dense_form_and_give_one_to_every_primitive(space, seed):
    """Also where cells share alpha."""
    spec = _small(space)
    _, alpha = _stepped(spec, seed, Mode.ALPHA, ('arch',))
    (_, logits), weights = _stepped(spec, seed, Mode.DRAW, ('params',))
    (_, expected), dense = _stepped(spec, seed, Mode.DENSE, ('params', 'arch'))
    chex.assert_trees_all_close(alpha['arch'], dense['arch'], atol=1e-5, rtol=1e-3)
    assert all((row != 0).all() for row in _alphas(spec, alpha['arch']))
    drawn = (logits, weights['params'])
    chex.assert_trees_all_close(drawn, (expected, dense['params']), atol=2e-5, rtol=1e-4)


def test_alpha_step_gives_every_primitive_of_a_cell_the_gradient_of_the_dense_form():
    spec = _build('nasbench201', {**SIZES['nasbench201'], 'depth': 1, 'reductions': ()})
    ours, dense = (
        _stepped(spec, 0, mode, ('arch',))[1]['arch'] for mode in (Mode.ALPHA, Mode.DENSE)
    )
    chex.assert_trees_all_close(ours, dense, atol=1e-5, rtol=1e-3)
    assert all((row != 0).all() for row in _alphas(spec, ours))


@every_space
def test_warmup_gives_a_gradient_to_skip_connect_only(space):
    spec = _build(space, {**COMPILED[space], **ALONE[space]})
    gradient = _stepped(spec, 0, Mode.SKIP, ('params',))[1]['params']
    for row in spec.rows():
        for place in spec.places(row.group, row.member):
            operations = genotype.subtree(gradient, place.path)
            others = [tree for name, tree in operations.items() if name != 'skip_connect']
            assert all((leaf == 0).all() for leaf in jax.tree.leaves(others))
            skip = jax.tree.leaves(operations.get('skip_connect', {}))  # has weights if it halves
            assert all((leaf != 0).any() for leaf in skip)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient['stem']))


@every_space
@pytest.mark.parametrize('seed', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_derived_network_is_the_supernet_under_argmax(space, seed):
    spec = _small(space)
    v = _variables(spec)
    random = np.random.default_rng(seed)
    arch = jax.tree.map(lambda a: random.normal(size=a.shape).astype('f'), v['arch'])
    chosen = genotype.most_likely(spec, arch)
    (_, expected), _ = _stepped(spec, 0, Mode.ARGMAX, train=False, arch=arch)
    pruned = {g: state.prune(v[g], spec, chosen) for g in ('params', 'batch_stats')}
    pruned['params'], _ = factors.fold(spec, chosen, pruned['params'])
    derived = factors.folded_spec(spec, chosen)
    logits = _logits(derived, pruned, Mode.ARGMAX)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    assert genotype.most_likely(derived, {}) == chosen


@every_space
def test_derived_state_has_the_tree_of_a_fresh_one(space):
    tx = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))
    spec = _spec(space)
    held = networks.fresh_state(networks.supernet(spec), tx)
    chosen = genotype.most_likely(spec, held.arch)
    derived = state.derive_state(held, spec, chosen, tx)
    fresh = jax.eval_shape(
        functools.partial(state._initial, networks.supernet(factors.folded_spec(spec, chosen)), tx),
        jax.random.key(0),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(derived, fresh)


@a_cell
def test_a_row_of_nan_acts_as_skip_connect(space):
    spec = _small(space)
    path, candidates = spec.alpha_path(1, 0), spec.groups()[1][0]

    def with_row(value):
        arch = jax.tree.map(lambda leaf: leaf, _variables(spec)['arch'])
        genotype.subtree(arch, path)['alpha'] = np.float32(value)
        return arch

    broken = np.array(genotype.subtree(_variables(spec)['arch'], path)['alpha'])
    broken[2] = np.nan
    sure = 1e4 * np.eye(len(candidates))[candidates.index('skip_connect')]
    for mode, group in ((Mode.DRAW, 'params'), (Mode.ALPHA, 'arch')):
        found, expected = (
            _stepped(spec, 0, mode, (group,), arch=with_row(row))[0][1] for row in (broken, sure)
        )
        np.testing.assert_array_equal(found, expected)


@every_space
def test_rows_weigh_the_flops_of_candidates(space):
    spec = _spec(space)
    one_hot = [np.eye(len(row.candidates))[-1] for row in spec.rows()]
    chosen = tuple(tuple(edge[-1] for edge in group) for group in spec.groups())
    derived = genotype.derive(spec, genotype.Genotype(chosen))
    assert flops.forward_flops(spec, one_hot) == pytest.approx(flops.forward_flops(derived))


@every_space
def test_genotype_survives_the_text_of_its_space(space):
    if SPACES[space].dumps is None:
        pytest.skip('the space has no text of its own')
    chosen = genotype.most_likely(_spec(space), _variables(_spec(space))['arch'])
    assert SPACES[space].loads(SPACES[space].dumps(chosen)) == chosen


@every_space
def test_random_cells_are_of_the_space_and_use_all_of_it(space):
    spec, generator = _spec(space), np.random.default_rng(0)
    drawn = [genotype.random(spec, generator) for _ in range(200)]
    for g, group in enumerate(spec.groups()):
        for m, candidates in enumerate(group):
            found = {each.operations[g][m] for each in drawn}
            kept = spec.EDGES_KEPT is not None and len(group) <= spec.EDGES_KEPT
            assert found == set(candidates) - ({'none'} if kept else set())
    for each in drawn[:20]:
        assert genotype.most_likely(genotype.derive(spec, each), {}) == each


# --- Remedies against collapse


@a_cell
def test_remedies_leave_alpha_and_edges_the_gradient_of_the_dense_form(space):
    spec = _partial(space, COMPILED if space == 'darts' else ALONE)  # both of its cells
    made = networks.variables(networks.supernet(spec, REMEDIES))

    def gradient(mode):
        def loss(arch):
            return (_logits(spec, {**made, 'arch': arch}, mode, 0.4) ** 2).sum()

        return jax.jit(jax.grad(loss))(made['arch'])

    ours = gradient(Mode.ALPHA)
    chex.assert_trees_all_close(ours, gradient(Mode.DENSE), atol=1e-5, rtol=1e-3)
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(ours))


@every_space
def test_auxiliary_skips_at_weight_zero_leave_no_trace_in_the_derived_network(space):
    spec = dataclasses.replace(_partial(space), partial=1)
    made = networks.variables(networks.supernet(spec, REMEDIES))
    chosen = genotype.most_likely(spec, made['arch'])
    pruned = {g: state.prune(made[g], spec, chosen) for g in ('params', 'batch_stats')}
    derived = genotype.keep_chosen(spec, chosen)
    fresh = networks.shapes(networks.supernet(derived))
    chex.assert_trees_all_equal_shapes(pruned, {g: fresh[g] for g in pruned})
    before, faded = (_logits(spec, made, Mode.ARGMAX, beta) for beta in (0.5, 0.0))
    logits = _logits(derived, pruned, Mode.ARGMAX)
    np.testing.assert_allclose(logits, faded, rtol=1e-5, atol=1e-5 * abs(faded).max())
    assert abs(before - faded).max() > 1e-2


@every_space
def test_without_remedies_arrays_are_what_they_were(space):
    spec = _spec(space)
    assert spec.partial == 1
    held = networks.shapes(networks.supernet(spec))
    names = {key.key for path, _ in jax.tree.leaves_with_path(held) for key in path}
    assert not names & {'auxiliary', 'logits'}
    old = {k: v for k, v in spec.to_json().items() if k != 'partial'}  # as it was written before
    assert registry.spec_from_json(json.loads(json.dumps(old))) == spec
    partial = dataclasses.replace(spec, partial=2)
    assert registry.spec_from_json(json.loads(json.dumps(partial.to_json()))) == partial
