"""A network in ONNX has the logits of the network itself, in every space."""

import dataclasses

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.exports import onnx_network
from asose_jax.exports.onnx_graph import BATCH, OPSET
from asose_jax.nn import operations
from asose_jax.nn.forward import Mode
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain, darts, nasbench201
from asose_jax.spaces.registry import SPACES

ODD, EVEN, BOTH = (7, 5, 3), (6, 8, 1), (7, 8, 1)
RANDOM = np.random.default_rng(0)
TOLERANCE = 1e-5  # of the largest logit
STRIDE_TWO = ('sep_conv_3x3', 'dil_conv_3x3', 'conv_7x1_1x7', 'nor_conv_1x1')
STRIDE_TWO += ('nor_conv_3x3', 'avg_pool_3x3', 'max_pool_3x3', 'skip_connect')


def _translated(spec):
    """The model, the variables and the statistics of the pixels, all random."""
    variables = networks.variables(networks.supernet(spec))
    channels = spec.image_shape[2]
    mean, std = (RANDOM.uniform(low, 2 * low, channels).astype('f') for low in (80, 40))
    return onnx_network.build(spec, variables, mean=mean, std=std), variables, mean, std


def _assert_same_logits(spec):
    model, variables, mean, std = _translated(spec)
    onnx.checker.check_model(model, full_check=True)
    images = RANDOM.integers(0, 256, (3, *spec.image_shape), dtype=np.uint8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']
    )
    probabilities, logits = session.run(['probabilities', 'logits'], {'images': images})
    net, x = networks.supernet(spec), (images.astype('f') - mean) / std
    expected = jax.jit(lambda: net.apply(variables, x, mode=Mode.ARGMAX, train=False))()
    expected = np.asarray(expected)
    limit = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)
    second, first = np.sort(expected, -1)[:, -2:].T
    clear = first - second > limit
    assert clear.any()
    np.testing.assert_array_equal(logits.argmax(-1)[clear], expected.argmax(-1)[clear])
    np.testing.assert_allclose(probabilities, jax.nn.softmax(expected), atol=1e-5)


def _chain(shape, *blocks, **options):
    return chain.ChainSpec(shape, 4, 4, blocks, **options)


def _reduction(shape, edges):
    """A reduction cell with operations at these `(node, edge)`, and a cell without any."""
    spec = networks.build('darts', shape, 4, channels=4, depth=2, reductions=(0,))
    chosen = {(darts.NODES + node, edge): name for (node, edge), name in edges.items()}
    groups = [
        [(chosen.get((g, m), 'none'),) for m in range(len(members))]
        for g, members in enumerate(spec.groups())
    ]
    return spec.with_groups(genotype.to_tuples(groups))


# --- Every space and every primitive


def test_chain_with_factors_has_the_same_logits():
    """Of all primitives that the reduction cell below does not have, and of those without BN."""
    names = {*operations.PRIMITIVES} - {*STRIDE_TWO} | operations.PARAMETER_FREE
    branches = tuple((name,) for name in sorted(names))
    blocks = chain.BlockSpec(6, 2, (('skip_connect',),)), chain.BlockSpec(6, 1, branches)
    factors = (False,), (True,) * len(branches)
    _assert_same_logits(_chain(EVEN, *blocks, factors=factors))


def test_cells_of_nasbench201_have_the_same_logits():
    edges = (('nor_conv_3x3',),), (('none',), ('none',)), (('avg_pool_3x3',), ('skip_connect',))
    cell = (*edges[:2], (*edges[2], ('nor_conv_1x1',)))
    modules = (4, 1), (6, 2), (6, 2), (6, 1)
    _assert_same_logits(nasbench201.NasBench201Spec(ODD, 4, 4, modules, cell))


def test_reduction_cell_of_darts_has_the_same_logits():
    """Each of eight operations with stride 2; behind it, a cell of which one input is halved."""
    edges = {divmod(i, 2): name for i, name in enumerate(STRIDE_TWO)}
    spec = _reduction(ODD, {**edges, (1, 2): 'max_pool_3x3'})  # from node to node, stride 1
    normal = ((('skip_connect',), ('none',)), *spec.normal[1:])
    _assert_same_logits(dataclasses.replace(spec, normal=normal))


@pytest.mark.parametrize('space', SPACES)
def test_network_without_operations_has_the_same_logits(space):
    specs = {
        'chain': _chain(ODD, chain.BlockSpec(4, 1, (('none',),)), residual=False),
        'nasbench201': nasbench201.NasBench201Spec(
            ODD, 4, 4, ((4, 1),), tuple((('none',),) * n for n in (1, 2, 3))
        ),
        'darts': _reduction(ODD, {}),
    }
    _assert_same_logits(specs[space])


@pytest.mark.slow
@pytest.mark.parametrize('name', operations.PRIMITIVES)
def test_each_primitive_with_either_stride_has_the_same_logits(name):
    """On images of odd height and even width."""
    _assert_same_logits(_reduction(BOTH, {(0, 0): name, (1, 2): name}))


@pytest.mark.slow
@pytest.mark.parametrize('space', SPACES)
def test_random_network_has_the_same_logits(space):
    sizes = {'channels': 4, 'depth': 3, 'reductions': (1,), 'max_channels': 8}
    spec = networks.build(space, EVEN, 4, **sizes)
    chosen = genotype.random(spec, np.random.default_rng(1))
    _assert_same_logits(genotype.derive(spec, chosen))


# --- What a file is


def test_batch_is_free_and_batchnorm_stays_only_where_no_convolution_precedes():
    modules = (4, 1), (6, 2)
    cell = tuple((('skip_connect',),) * n for n in (1, 2, 3))
    model, *_ = _translated(nasbench201.NasBench201Spec(ODD, 4, 4, modules, cell))
    arrays = [*model.graph.input, *model.graph.output]
    assert [each.name for each in arrays] == ['images', 'probabilities', 'logits']
    dims = [each.type.tensor_type.shape.dim for each in arrays]
    assert [each[0].dim_param for each in dims] == [BATCH] * 3
    assert [[side.dim_value for side in each[1:]] for each in dims] == [[*ODD], [4], [4]]
    assert [(each.domain, each.version) for each in model.opset_import] == [('', OPSET)]
    kept = [node.name for node in model.graph.node if node.op_type == 'BatchNormalization']
    assert kept == ['last_norm']
    names = [node.name for node in model.graph.node]
    assert len({*names}) == len(names)


def test_operation_or_space_without_a_translation_is_named(monkeypatch):
    spec = _chain(EVEN, chain.BlockSpec(4, 1, (('max_pool_3x3',),)))
    monkeypatch.delitem(onnx_network.OPERATIONS, operations.MaxPool)
    with pytest.raises(UserError, match="operation 'max_pool_3x3' has no translation into ONNX"):
        _translated(spec)
    monkeypatch.delitem(onnx_network.BODIES, 'chain')
    with pytest.raises(UserError, match="search space 'chain' has no translation into ONNX"):
        _translated(spec)


def test_network_with_a_choice_left_is_refused():
    with pytest.raises(ValueError, match='only a derived network'):
        _translated(_chain(EVEN, chain.BlockSpec(4, 1, (('none', 'skip_connect'),))))
