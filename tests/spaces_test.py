"""What holds in every search space, on networks of it that are as small as can be."""

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asose_jax import cost, genotype, nasbench201, optim, phases, spaces, state
from asose_jax.forward import Mode, SearchSettings
from asose_jax.model import SuperNet
from asose_jax.phases import Phase
from asose_jax.spaces import SPACES

SIZES = {
    'chain': {
        'depth': 2,
        'reductions': (1,),
        'primitives': ('none', 'avg_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3'),
    },
    'nasbench201': {
        'depth': 3,
        'reductions': (1,),
        'primitives': nasbench201.PRIMITIVES,
    },
    'darts': {
        'depth': 2,
        'reductions': (0,),
        'primitives': ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3'),
    },
}
IMAGES = jax.random.normal(jax.random.key(0), (6, 6, 6, 2))
LABELS = jnp.arange(6) % 3
TAU = 0.7
every_space = pytest.mark.parametrize('space', SPACES)
# Many operations to compile; what is slow in DARTS' space is tested in the slow tests.
a_cell = pytest.mark.parametrize(
    'space', ['nasbench201', pytest.param('darts', marks=pytest.mark.slow)]
)


@functools.cache
def _spec(space):
    return SPACES[space].build((6, 6, 2), 3, channels=4, max_channels=8, **SIZES[space])


# Both remedies against collapse, and operations that are quickly compiled.
PLAIN = ('none', 'skip_connect', 'max_pool_3x3')
REMEDIES = SearchSettings(auxiliary_skip=True)


def _partial(space):
    sizes = {**SIZES[space], 'primitives': PLAIN}
    spec = SPACES[space].build((6, 6, 2), 3, channels=4, max_channels=8, **sizes)
    return dataclasses.replace(spec, partial=2)


def _logits(spec, variables, mode, beta=0.0):
    net = SuperNet(spec, REMEDIES)
    keys = {'gumbel': jax.random.key(3)}
    return net.apply(variables, IMAGES, TAU, beta=beta, mode=mode, train=False, rngs=keys)


@functools.cache
def _variables(space):
    return _shaken(SuperNet(_spec(space), SearchSettings()))


def _begun(net):
    keys = {'params': jax.random.key(1), 'arch': jax.random.key(2)}
    return net.init(keys, IMAGES[:1], mode=Mode.SKIP, train=False)


def _shaken(net):
    """Fresh weights, with BatchNorm statistics and scales that are not trivial."""
    made = jax.jit(lambda: _begun(net))()
    random = np.random.default_rng(0)

    def shaken(leaf):
        return leaf + random.uniform(0, 0.2, leaf.shape).astype('f')

    moved = jax.tree.map(shaken, {k: made[k] for k in ('params', 'batch_stats')})
    return {**moved, 'arch': made['arch']}


@functools.partial(jax.jit, static_argnames=('space', 'mode', 'train'))
def _loss(params, arch, key, space, mode, train=True):
    logits, changed = SuperNet(_spec(space)).apply(
        {'params': params, 'arch': arch, 'batch_stats': _variables(space)['batch_stats']},
        IMAGES,
        TAU,
        mode=mode,
        train=train,
        mutable=['batch_stats', 'guard'],
        rngs={'gumbel': key},
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
    return loss, (logits, changed['batch_stats'])


def _alphas(space, arch):
    spec = _spec(space)
    return [genotype.at(arch, spec.alpha_path(*row[:2]))['alpha'] for row in spec.rows()]


@every_space
def test_description_survives_json_and_can_be_a_dictionary_key(space):
    again = spaces.spec_from_json(json.loads(json.dumps(_spec(space).to_json())))
    assert {again: 1}[_spec(space)] == 1


@every_space
def test_every_row_has_its_alpha_and_every_place_its_operations(space):
    spec, variables = _spec(space), _variables(space)
    assert len(jax.tree.leaves(variables['arch'])) == len(spec.rows())
    for row, alpha in zip(spec.rows(), _alphas(space, variables['arch']), strict=True):
        assert alpha.shape == (len(row.candidates),)
        for place in spec.places(row.group, row.member):
            held = genotype.at(variables['params'], place.path)
            assert {name for name in row.candidates if 'conv' in name} <= set(held)


@a_cell
@pytest.mark.parametrize('seed', range(2))
def test_alpha_step_gives_every_primitive_of_every_row_the_gradient_of_the_dense_form(space, seed):
    v, key = _variables(space), jax.random.key(seed)

    def gradient(mode):
        return jax.grad(lambda a: _loss(v['params'], a, key, space, mode)[0])(v['arch'])

    ours = gradient(Mode.ALPHA)
    chex.assert_trees_all_close(ours, gradient(Mode.DENSE), atol=1e-5, rtol=1e-3)
    for alpha in _alphas(space, ours):
        assert (alpha != 0).all()


@a_cell
def test_drawn_only_and_dense_give_the_same_logits_and_weight_gradients(space):
    v, key = _variables(space), jax.random.key(3)

    def run(mode):
        loss = jax.value_and_grad(lambda p: _loss(p, v['arch'], key, space, mode), has_aux=True)
        (_, (logits, _)), gradient = loss(v['params'])
        return logits, gradient

    chex.assert_trees_all_close(run(Mode.DRAW), run(Mode.DENSE), atol=2e-5, rtol=1e-4)


@every_space
def test_warmup_gives_a_gradient_to_skip_connect_only(space):
    v, spec = _variables(space), _spec(space)
    gradient = jax.grad(lambda p: _loss(p, v['arch'], jax.random.key(0), space, Mode.SKIP)[0])(
        v['params']
    )
    for row in spec.rows():
        for place in spec.places(row.group, row.member):
            operations = genotype.at(gradient, place.path)
            others = [tree for name, tree in operations.items() if name != 'skip_connect']
            assert all((leaf == 0).all() for leaf in jax.tree.leaves(others))
            skip = jax.tree.leaves(operations.get('skip_connect', {}))  # has weights if it halves
            assert all((leaf != 0).any() for leaf in skip)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient['stem']))


@every_space
@pytest.mark.parametrize('seed', range(2))
def test_derived_network_is_the_supernet_under_argmax(space, seed):
    v, spec = _variables(space), _spec(space)
    random = np.random.default_rng(seed)
    arch = jax.tree.map(lambda a: random.normal(size=a.shape).astype('f'), v['arch'])
    chosen = genotype.most_likely(spec, arch)
    expected = _loss(v['params'], arch, jax.random.key(0), space, Mode.ARGMAX, train=False)[1][0]
    pruned = {g: state.prune(v[g], spec, chosen) for g in ('params', 'batch_stats')}
    derived = SuperNet(genotype.derive(spec, chosen))
    logits = derived.apply(pruned, IMAGES, mode=Mode.ARGMAX, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    assert genotype.most_likely(derived.spec, {}) == chosen


@every_space
def test_derived_state_has_the_tree_of_a_fresh_one(space):
    tx = optim.make_optimizer(phases.make_plan(dict.fromkeys(Phase, 1), 4))
    spec = _spec(space)
    held = state.init_state(SuperNet(spec), tx, jax.random.key(0))
    chosen = genotype.most_likely(spec, held.arch)
    derived = state.derive_state(held, spec, chosen, tx)
    fresh = jax.eval_shape(
        functools.partial(state._initial, SuperNet(genotype.derive(spec, chosen)), tx),
        jax.random.key(0),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(derived, fresh)


@a_cell
def test_a_row_of_nan_acts_as_skip_connect(space):
    v, spec = _variables(space), _spec(space)
    path = spec.alpha_path(1, 0)

    def poisoned(value):
        arch = jax.tree.map(lambda leaf: leaf, v['arch'])
        row = genotype.at(arch, path)
        row['alpha'] = value(row['alpha'])
        return arch

    candidates = spec.groups()[1][0]
    sure = 1e4 * jax.nn.one_hot(candidates.index('skip_connect'), len(candidates))
    for mode in (Mode.DRAW, Mode.ALPHA):
        broken, expected = (
            _loss(v['params'], poisoned(value), jax.random.key(0), space, mode)[1][0]
            for value in (lambda alpha: alpha.at[2].set(jnp.nan), lambda alpha: sure)
        )
        np.testing.assert_array_equal(broken, expected)


@every_space
def test_rows_weigh_the_flops_of_candidates(space):
    spec = _spec(space)
    one_hot = [np.eye(len(row.candidates))[-1] for row in spec.rows()]
    chosen = tuple(tuple(edge[-1] for edge in group) for group in spec.groups())
    derived = genotype.derive(spec, genotype.Genotype(chosen))
    assert cost.forward_flops(spec, one_hot) == pytest.approx(cost.forward_flops(derived))


@every_space
def test_genotype_survives_the_text_of_its_space(space):
    if SPACES[space].dumps is None:
        pytest.skip('the space has no text of its own')
    chosen = genotype.most_likely(_spec(space), _variables(space)['arch'])
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
    spec = _partial(space)
    made = _shaken(SuperNet(spec, REMEDIES))

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
    made = _shaken(SuperNet(spec, REMEDIES))
    chosen = genotype.most_likely(spec, made['arch'])
    pruned = {g: state.prune(made[g], spec, chosen) for g in ('params', 'batch_stats')}
    derived = genotype.derive(spec, chosen)
    fresh = jax.eval_shape(lambda: _begun(SuperNet(derived)))
    chex.assert_trees_all_equal_shapes(pruned, {g: fresh[g] for g in pruned})
    before, faded = (_logits(spec, made, Mode.ARGMAX, beta) for beta in (0.5, 0.0))
    logits = _logits(derived, pruned, Mode.ARGMAX)
    np.testing.assert_allclose(logits, faded, rtol=1e-5, atol=1e-5 * abs(faded).max())
    assert abs(before - faded).max() > 1e-2


@every_space
def test_without_remedies_arrays_are_what_they_were(space):
    spec = _spec(space)
    assert spec.partial == 1
    held = jax.eval_shape(lambda: _begun(SuperNet(spec)))
    names = {key.key for path, _ in jax.tree.leaves_with_path(held) for key in path}
    assert not names & {'auxiliary', 'logits'}
    old = {k: v for k, v in spec.to_json().items() if k != 'partial'}  # as it was written before
    assert spaces.spec_from_json(json.loads(json.dumps(old))) == spec
    partial = dataclasses.replace(spec, partial=2)
    assert spaces.spec_from_json(json.loads(json.dumps(partial.to_json()))) == partial
