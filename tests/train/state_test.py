"""What goes from phase to phase: nothing that was learned is lost."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.arch.genotype import Genotype
from asose_jax.spaces import chain
from asose_jax.train import state
from asose_jax.train.phases import Phase

NAMES = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'dil_conv_3x3')
SPEC = dataclasses.replace(  # what becomes of factors is in factors_test
    chain.build(
        (4, 4, 1), 3, channels=4, depth=2, reductions=(1,), max_channels=8, primitives=NAMES
    ),
    factors=(),
)
SCHEDULE = networks.make_schedule(dict.fromkeys(Phase, 1), 4)
TX = networks.make_optimizer(SCHEDULE)


def _fresh(spec, seed=0):
    return networks.fresh_state(networks.supernet(spec), TX, seed)


@functools.cache
def trained():
    """A state in which every array differs from its start."""
    leaves, structure = jax.tree.flatten(_fresh(SPEC))
    moved = [np.asarray(leaf + i + 1, leaf.dtype) for i, leaf in enumerate(leaves)]
    return structure.unflatten(moved)


def _paths(tree):
    return {
        jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_seed_fixes_the_start():
    spec = chain.build(
        (4, 4, 1), 3, channels=4, depth=1, reductions=(), max_channels=4, primitives=NAMES[1:3]
    )
    make = functools.partial(state.init_state, networks.supernet(spec), TX)
    first, again, other = (make(jax.random.key(seed)) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first.params['stem']['kernel'] != other.params['stem']['kernel']).all()


def test_transition_adds_noise_of_the_stated_size_and_nothing_else():
    row = np.tile(np.arange(10, dtype=np.float32), 100)
    arch = {f'block_{i}': {'choice_0': {'alpha': row}} for i in range(2)}
    moved = jax.jit(state.smooth_transition_to_search)(jax.random.key(0), arch, 0.05)
    noise = np.stack(
        [a - b for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(arch), strict=True)]
    )
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 0.05) < 0.005
    assert len(np.unique(noise)) > 1900
    still = state.smooth_transition_to_search(jax.random.key(0), arch, 0.0)
    chex.assert_trees_all_equal(still, arch)


@pytest.mark.parametrize(
    'names', [('sep_conv_3x3', 'dil_conv_3x3'), ('skip_connect', 'none'), ('none', 'sep_conv_3x3')]
)
def test_derived_state_has_the_structure_of_a_fresh_one_and_the_values_of_the_old(names):
    chosen = Genotype(tuple((name,) for name in names))
    derived = state.derive_state(trained(), SPEC, chosen, TX)
    fresh = _fresh(genotype.derive(SPEC, chosen))
    assert jax.tree.structure(derived) == jax.tree.structure(fresh)
    assert _paths(derived) == _paths(fresh)
    old = {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree.leaves_with_path(trained())}
    for path, leaf in jax.tree.leaves_with_path(derived):
        np.testing.assert_array_equal(leaf, old[jax.tree_util.keystr(path)])


def test_chosen_operations_of_partial_channels_begin_anew_and_all_else_goes_on():
    spec = dataclasses.replace(SPEC, partial=2)
    held = jax.tree.map(lambda leaf: np.asarray(leaf + 1, leaf.dtype), _fresh(spec))
    chosen = Genotype((('sep_conv_3x3',), ('dil_conv_3x3',)))
    fresh = _fresh(genotype.derive(spec, chosen), seed=2)
    derived = state.derive_state(held, spec, chosen, TX, fresh)
    assert jax.tree.structure(derived) == jax.tree.structure(fresh)
    assert _paths(derived) == _paths(fresh)
    old, new = (
        {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (held, fresh)
    )
    for path, leaf in jax.tree.leaves_with_path(derived):
        name = jax.tree_util.keystr(path)
        expected = new[name] if "'branch_0'" in name else old[name]
        np.testing.assert_array_equal(leaf, expected)


def test_deriving_leaves_the_supernet_as_it_was():
    before = _paths(trained())
    state.derive_state(trained(), SPEC, Genotype((('none',), ('none',))), TX)
    assert _paths(trained()) == before


def test_restart_keeps_what_was_learned_and_forgets_what_was_counted():
    again = state.restart(trained())
    for name in ('params', 'arch', 'batch_stats'):
        chex.assert_trees_all_equal(getattr(again, name), getattr(trained(), name))
    assert again.step == 0
    assert again.totals.weight_steps == 0
    old = {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree.leaves_with_path(trained())}
    kinds = {'moments': 0, 'schedules': 0, 'corrections': 0}
    for path, leaf in jax.tree.leaves_with_path(again.opt_state):
        before = old[f'.opt_state{jax.tree_util.keystr(path)}']
        if leaf.dtype == jnp.int32 and leaf == 0:
            assert before > 0
            kinds['schedules'] += 1
        else:
            np.testing.assert_array_equal(leaf, before)
            kinds['corrections' if leaf.dtype == jnp.int32 else 'moments'] += 1
    weights, rows = len(jax.tree.leaves(again.params)), len(jax.tree.leaves(again.arch))
    assert kinds == {'moments': weights + 2 * rows, 'schedules': 2, 'corrections': 1}


def test_trainable_is_the_tree_of_the_optimizer():
    zeros = optax.tree.zeros_like(trained().trainable)
    update = jax.jit(TX.update)
    updates, _ = update(zeros, trained().opt_state, trained().trainable, step=np.int32(0))
    assert jax.tree.structure(updates) == jax.tree.structure(trained().trainable)


def test_state_without_an_average_has_the_fields_of_earlier_checkpoints():
    """Orbax reads no checkpoint into a state that has one more, not even an empty one."""
    names = [
        'step',
        'params',
        'arch',
        'batch_stats',
        'opt_state',
        'totals',
        'streak',
        'longest_streak',
    ]
    assert [field.name for field in dataclasses.fields(trained())] == names
    averaging = trained().with_average()
    assert [field.name for field in dataclasses.fields(averaging)] == [*names, 'average']
    assert [field.name for field in dataclasses.fields(state.restart(averaging))] == names
