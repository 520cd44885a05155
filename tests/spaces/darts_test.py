"""The cells of DARTS: published counts, exactly; which edges are kept; and its text."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.nn import mixed_op
from asose_jax.nn.forward import Mode
from asose_jax.spaces import darts

# As their authors published them (genotypes.py of DARTS, PC-DARTS and GDAS; issue 7 of P-DARTS).
V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
    'reduce_concat=[2, 3, 4, 5])'
)
PC = (
    "PC_DARTS_cifar = Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), "
    "('sep_conv_3x3', 0), ('dil_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), "
    "('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), "
    "('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 2)], reduce_concat=range(2, 6))"
)
GDAS = (
    "Genotype(normal=[(('skip_connect', 0), ('skip_connect', 1)), (('skip_connect', 0), "
    "('sep_conv_5x5', 2)), (('sep_conv_3x3', 3), ('skip_connect', 0)), (('sep_conv_5x5', 4), "
    "('sep_conv_3x3', 3))], normal_concat=[2, 3, 4, 5], reduce=[(('sep_conv_5x5', 0), "
    "('sep_conv_3x3', 1)), (('sep_conv_5x5', 2), ('sep_conv_5x5', 1)), (('dil_conv_5x5', 2), "
    "('sep_conv_3x3', 1)), (('sep_conv_5x5', 0), ('sep_conv_5x5', 1))], "
    'reduce_concat=[2, 3, 4, 5], connectN=None, connects=None)'
)
P_DARTS = (
    "Genotype(normal=[('skip_connect', 0), ('dil_conv_3x3', 1), ('skip_connect', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 0), "
    "('dil_conv_5x5', 4)], normal_concat=range(2, 6), reduce=[('avg_pool_3x3', 0), "
    "('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('dil_conv_5x5', 2), ('max_pool_3x3', 0), "
    "('dil_conv_3x3', 1), ('dil_conv_3x3', 1), ('dil_conv_5x5', 3)], reduce_concat=range(2, 6))"
)


def _derived(text):
    spec = networks.build('darts', (32, 32, 3), 10, channels=36, depth=20, reductions=(6, 13))
    return genotype.derive(spec, darts.loads(text))


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ('text', 'params', 'millions'),
    [
        (V2, 3_349_342, 528),  # printed by its own train.py as 3.349342MB
        _slow(P_DARTS, 3_433_798, None),  # issue 7 of its repository
        _slow(PC, 3_634_678, None),  # published as 3.63M
        _slow(GDAS, 3_368_782, 519),  # published as 3.36M (and 3.37M rounded)
    ],
)
def test_parameters_and_multiply_adds_are_the_published_ones(monkeypatch, text, params, millions):
    """Both from one trace of the network, which takes seconds."""
    traced, variable_shapes = [], flops._variable_shapes
    monkeypatch.setattr(
        flops, '_variable_shapes', lambda part: traced.append(variable_shapes(part))
    )
    found = flops.multiply_adds(_derived(text))
    (made,) = traced
    assert sum(leaf.size for leaf in jax.tree.leaves(made['params'])) == params
    assert millions is None or int(found / 1e6) == millions


@pytest.mark.parametrize('text', [V2, PC, GDAS, P_DARTS])
def test_text_survives_a_round_trip(text):
    chosen = darts.loads(text)
    assert darts.loads(darts.dumps(chosen)) == chosen
    assert all(
        sum(name != 'none' for name in node) == 2 and len(node) == 2 + i % 4
        for i, node in enumerate(chosen.operations)
    )


@pytest.mark.parametrize(
    'text',
    [
        '',
        'Genotype()',
        V2.replace("('sep_conv_3x3', 0)", '7'),
        '__import__("os").abort()',
        V2.replace('sep_conv_3x3', 'sep_conv_9x9'),
        V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)"),
        V2.replace("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)"),
        V2.replace('normal_concat=[2, 3, 4, 5]', 'normal_concat=[3, 4, 5]'),
    ],
)
def test_a_text_of_another_kind_is_refused_with_its_fault(text):
    with pytest.raises(ValueError, match='DARTS'):
        darts.loads(text)


def _rows(spec, **given):
    """Uniform probabilities, but for `given`: `n0_1={'sep_conv_3x3': 0.9}`: node 0, edge 1."""
    rows = []
    for group, member, candidates in spec.rows():
        wanted = given.get(f'n{group}_{member}', {})
        left = (1 - sum(wanted.values())) / (len(candidates) - len(wanted))
        rows.append(np.array([wanted.get(name, left) for name in candidates], np.float32))
    return rows


@pytest.mark.parametrize('traced', [False, True])
def test_two_edges_are_kept_by_their_surest_operation_and_none_is_never_chosen(traced):
    spec = networks.build('darts', (8, 8, 3), 10, channels=4, depth=2, reductions=(1,))
    rows = _rows(
        spec,
        n1_0={'none': 0.9},  # sure of none only: its best other has 0.1 / 7
        n1_1={'sep_conv_3x3': 0.4},
        n1_2={'skip_connect': 0.3},
    )
    choose = jax.jit(spec.choose) if traced else spec.choose
    chosen = choose([jnp.array(row) for row in rows] if traced else rows)
    names = [row.candidates[int(k)] for row, k in zip(spec.rows(), chosen, strict=True)]
    assert names[:2] == ['max_pool_3x3'] * 2  # node 0 has two edges only: both stay
    assert names[2:5] == ['none', 'sep_conv_3x3', 'skip_connect']
    # Of equals the earlier edges stay, and the first operation that is not none.
    assert names[5:9] == ['max_pool_3x3'] * 2 + ['none'] * 2


def test_reduction_cells_halve_the_image_where_edges_come_from_the_inputs():
    spec = networks.build('darts', (8, 8, 3), 10, channels=4, depth=3, reductions=(1,))
    assert [(p.shape, p.stride) for p in spec.places(5, 1)] == [((8, 8, 8), 2)]
    assert [(p.shape, p.stride) for p in spec.places(5, 2)] == [((4, 4, 8), 1)]
    assert [p.shape for p in spec.places(1, 1)] == [(8, 8, 4), (4, 4, 8)]


# --- Edges with weights

PARTIAL = dataclasses.replace(
    networks.build('darts', (8, 8, 3), 10, channels=4, depth=2, reductions=(1,)), partial=2
)


def test_weight_of_an_edge_decides_with_its_operation_which_two_are_kept():
    rows = _rows(PARTIAL, n1_0={'sep_conv_3x3': 0.9}, n1_1={'skip_connect': 0.5})
    edges = [np.full(len(group), 1 / len(group), np.float32) for group in PARTIAL.groups()]
    edges[1] = np.array([0.1, 0.6, 0.3], np.float32)  # 0.09, 0.3, and 0.3 / 8

    def kept():
        chosen = PARTIAL.choose(rows, edges)
        names = [row.candidates[int(k)] for row, k in zip(PARTIAL.rows(), chosen, strict=True)]
        return names[2:5]

    assert kept() == ['sep_conv_3x3', 'skip_connect', 'none']
    edges[1] = np.array([0.02, 0.6, 0.38], np.float32)
    assert kept() == ['none', 'skip_connect', 'max_pool_3x3']


class Draws(nn.Module):
    """What a network of `PARTIAL` draws, without the network."""

    @nn.compact
    def __call__(self, mode=Mode.ARGMAX):
        edges = mixed_op.edge_weights(PARTIAL)
        forward = networks.forward(mode, False)
        return mixed_op.shared_draws(PARTIAL, forward, edges), edges


@jax.jit
def _drawn(arch):
    return Draws().apply({'arch': arch}, mutable=['guard'])


def _random_arch(seed):
    arch = jax.eval_shape(lambda: Draws().init(jax.random.key(0), Mode.SKIP))['arch']
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype('f'), arch)


@pytest.mark.parametrize('broken', [None, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('seed', range(3))
def test_supernet_and_genotype_choose_alike_also_where_an_edge_is_not_finite(seed, broken):
    arch = _random_arch(seed)
    if broken is not None:
        arch['normal_2_edges']['logits'][1] = broken
    (rows, edges), told = _drawn(arch)
    ours = genotype.edge_weights(PARTIAL, arch)
    for theirs, weights in zip(edges, ours, strict=True):
        np.testing.assert_allclose(theirs, weights, rtol=1e-5)
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    uniform = broken in (np.nan, np.inf)  # an edge of -inf is merely never taken
    assert (ours[2] == 0.25).all() == uniform
    assert sum(jax.tree.leaves(told)) == uniform
    chosen = genotype.most_likely(PARTIAL, arch).operations
    for names, group, drawn in zip(chosen, PARTIAL.groups(), rows, strict=True):
        assert names == tuple(
            members[int(row.argmax())] for members, row in zip(group, drawn, strict=True)
        )


def test_edge_that_is_not_finite_gets_no_gradient():
    arch = _random_arch(0)
    arch['normal_2_edges']['logits'][1] = np.nan

    def first(arch):
        (_, edges), _ = _drawn(arch)
        return sum(weights[0] for weights in edges)

    gradient = jax.jit(jax.grad(first))(arch)
    assert (gradient['normal_2_edges']['logits'] == 0).all()
    assert (gradient['normal_1_edges']['logits'] != 0).all()


def test_edges_have_weights_in_supernets_of_partial_channels_only():
    arch = jax.eval_shape(lambda: Draws().init(jax.random.key(0), Mode.SKIP))['arch']
    assert len(arch) == len(PARTIAL.rows()) + len(PARTIAL.groups())
    chosen = genotype.most_likely(PARTIAL, _random_arch(0))
    derived = genotype.derive(PARTIAL, chosen)
    for spec in (derived, dataclasses.replace(PARTIAL, partial=1)):
        assert spec.partial == 1
        assert genotype.edge_weights(spec, {}) == [None] * 8
