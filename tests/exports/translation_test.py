"""A network in ONNX and in PyTorch has the logits of the network itself, in every space."""

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import exported

from asose_jax.exports import translation
from asose_jax.exports.onnx_graph import BATCH, OPSET, Graph
from asose_jax.exports.torch_module import Module
from asose_jax.nn import operations
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain, nasbench201
from asose_jax.spaces.registry import SPACES

TOLERANCE = 1e-5  # of the largest logit
# PyTorch is installed for the slow ring; torch_module_test holds what can be said without it.
KINDS = ['onnx', pytest.param('torch', marks=pytest.mark.slow)]


def _onnx_logits(graph, images):
    """By onnxruntime; the file is whole, and its probabilities are those of the logits."""
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']
    )
    probabilities, logits = session.run(['probabilities', 'logits'], {'images': images})
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    return logits


def _torch_logits(module, images):
    """By PyTorch; the source has exactly these weights."""
    import torch

    names = {'__file__': 'network.py'}
    exec(module.source('', {}), names)
    network = names['Network']().eval()
    weights = {key: torch.from_numpy(array) for key, array in module.weights().items()}
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def _assert_same_logits(spec, kind):
    layers, run = {'onnx': (Graph(), _onnx_logits), 'torch': (Module(), _torch_logits)}[kind]
    example = exported.example(spec)
    translation.add_network(layers, spec, example.variables, mean=example.mean, std=example.std)
    logits, expected = run(layers, example.images), example.logits
    limit = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)
    second, first = np.sort(expected, -1)[:, -2:].T
    clear = first - second > limit
    assert clear.any()
    np.testing.assert_array_equal(logits.argmax(-1)[clear], expected.argmax(-1)[clear])


# --- Every space and every primitive


@pytest.mark.parametrize('kind', KINDS)
def test_chain_with_factors_has_the_same_logits(kind):
    _assert_same_logits(exported.chain_with_factors(), kind)


@pytest.mark.parametrize('kind', KINDS)
def test_cells_of_nasbench201_have_the_same_logits(kind):
    _assert_same_logits(exported.cells_of_nasbench201(), kind)


@pytest.mark.parametrize('kind', KINDS)
def test_reduction_cell_of_darts_has_the_same_logits(kind):
    _assert_same_logits(exported.cells_of_darts(), kind)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('space', SPACES)
def test_network_without_operations_has_the_same_logits(space, kind):
    _assert_same_logits(exported.without_operations(space), kind)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['onnx', 'torch'])
@pytest.mark.parametrize('name', operations.PRIMITIVES)
def test_each_primitive_with_either_stride_has_the_same_logits(name, kind):
    _assert_same_logits(exported.both_strides(name), kind)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['onnx', 'torch'])
@pytest.mark.parametrize('space', SPACES)
def test_random_network_has_the_same_logits(space, kind):
    _assert_same_logits(exported.random_network(space), kind)


# --- What a file is


def test_batch_is_free_and_batchnorm_stays_only_where_no_convolution_precedes():
    modules = (4, 1), (6, 2)
    cell = tuple((('skip_connect',),) * n for n in (1, 2, 3))
    spec = nasbench201.NasBench201Spec(exported.ODD, 4, 4, modules, cell)
    model = exported.translated(spec, Graph()).model()
    arrays = [*model.graph.input, *model.graph.output]
    assert [each.name for each in arrays] == ['images', 'probabilities', 'logits']
    dims = [each.type.tensor_type.shape.dim for each in arrays]
    assert [each[0].dim_param for each in dims] == [BATCH] * 3
    assert [[side.dim_value for side in each[1:]] for each in dims] == [[*exported.ODD], [4], [4]]
    assert [(each.domain, each.version) for each in model.opset_import] == [('', OPSET)]
    kept = [node.name for node in model.graph.node if node.op_type == 'BatchNormalization']
    assert kept == ['last_norm']
    names = [node.name for node in model.graph.node]
    assert len({*names}) == len(names)


def test_operation_or_space_without_a_translation_is_named(monkeypatch):
    spec = exported.small_chain(exported.EVEN, chain.BlockSpec(4, 1, (('max_pool_3x3',),)))
    monkeypatch.delitem(translation.OPERATIONS, operations.MaxPool)
    with pytest.raises(UserError, match="operation 'max_pool_3x3' has no translation into layers"):
        exported.translated(spec, Graph())
    monkeypatch.delitem(translation.BODIES, 'chain')
    with pytest.raises(UserError, match="search space 'chain' has no translation into layers"):
        exported.translated(spec, Graph())


def test_network_with_a_choice_left_is_refused():
    spec = exported.small_chain(exported.EVEN, chain.BlockSpec(4, 1, (('none', 'skip_connect'),)))
    with pytest.raises(ValueError, match='only a derived network'):
        exported.translated(spec, Graph())
