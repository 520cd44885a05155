"""Trees packed into vectors come back as they were, on the host and in compiled code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks

from asose_jax.train import state
from asose_jax.train.packing import Packing
from asose_jax.train.phases import Phase

TREE = {
    'a': np.arange(6, dtype='f').reshape(2, 3),
    'b': {'n': np.int32(7), 'empty': {}},
    'c': [np.float32(1.5), np.arange(2, dtype='i4')],
}


@pytest.mark.parametrize('compiled', [False, True])
def test_tree_comes_back_bit_for_bit_with_a_vector_for_each_dtype(compiled):
    packing = Packing(TREE)
    pack, unpack = (jax.jit(f) if compiled else f for f in (packing.pack, packing.unpack))
    packed = pack(TREE)
    assert {kind: vector.shape for kind, vector in packed.items()} == {
        'float32': (7,),
        'int32': (3,),
    }
    chex.assert_trees_all_equal(unpack(packed), TREE)
    assert isinstance(packed['int32'], jax.Array if compiled else np.ndarray)


def test_tree_without_arrays_is_no_vector():
    assert Packing({}).pack({}) == {}
    assert Packing({}).unpack({}) == {}


def test_layouts_are_equal_where_structure_shapes_and_dtypes_are():
    assert Packing(TREE) == Packing(jax.tree.map(jnp.asarray, TREE))
    assert hash(Packing(TREE)) == hash(Packing(TREE))
    assert Packing(TREE) != Packing({**TREE, 'a': TREE['a'].T})


def test_gradient_by_a_vector_is_the_packed_gradient_by_the_tree():
    tree = {'w': jnp.arange(4.0).reshape(2, 2), 'v': jnp.arange(3.0)}
    packing = Packing(tree)

    def loss(tree):
        return (tree['w'] ** 2).sum() * tree['v'].sum()

    by_vector = jax.grad(lambda vector: loss(packing.unpack(vector)))(packing.pack(tree))
    chex.assert_trees_all_close(by_vector, packing.pack(jax.grad(loss)(tree)))


def test_packed_state_holds_moments_as_vectors_and_comes_back_bit_for_bit():
    spec = networks.build(
        'chain', (6, 6, 1), 3, channels=4, depth=2, reductions=(1,), max_channels=8
    )
    tx = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda key: state._initial(networks.supernet(spec), tx, key), jax.random.key(0)
    )
    held = jax.tree.map(lambda a: random.normal(size=a.shape).astype(a.dtype), shapes)
    packed = state.Packed.of(held)
    assert len(jax.tree.leaves(packed)) < 20 < len(jax.tree.leaves(held))
    chex.assert_trees_all_equal(packed.unpack(), held)
    doubled = jax.tree.map(lambda a: 2 * a, held.arch)
    changed = packed.put(arch=doubled)
    chex.assert_trees_all_equal(changed.unpack(), held.replace(arch=doubled))
    assert changed.layout == packed.layout
