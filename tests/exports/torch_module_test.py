"""The source of a PyTorch module fits its weights; its logits are in translation_test.

These tests run without PyTorch: classes here, of the same names, know the shapes of its layers.
"""

import ast
import sys
import types

import numpy as np
import pytest
from helpers import exported

from asose_jax.exports.torch_module import Module as Exported
from asose_jax.spaces import nasbench201

SPECS = {
    'chain': exported.chain_with_factors,
    'nasbench201': exported.cells_of_nasbench201,
    'darts': exported.cells_of_darts,
}


class Module:
    """Knows the shapes of its arrays, by their names in PyTorch."""

    def __init__(self, **shapes):
        self.shapes = shapes

    def __setattr__(self, name, value):
        object.__setattr__(self, name, value)
        if isinstance(value, Module):
            self.shapes |= {f'{name}.{key}': shape for key, shape in value.shapes.items()}
        elif isinstance(value, np.ndarray):
            self.shapes[name] = value.shape

    def register_buffer(self, name, values, persistent):
        assert not persistent


def Sequential(*layers):  # noqa: N802
    whole = Module()
    for i, layer in enumerate(layers):
        setattr(whole, str(i), layer)
    return whole


def Conv2d(channels, features, size, groups=1, bias=True, **_):  # noqa: N802
    assert not bias
    sizes = size if isinstance(size, tuple) else (size, size)
    return Module(weight=(features, channels // groups, *sizes))


def BatchNorm2d(channels, eps):  # noqa: N802
    assert eps == 1e-5
    return Module(**dict.fromkeys(('weight', 'bias', 'running_mean', 'running_var'), (channels,)))


def Linear(features, classes):  # noqa: N802
    return Module(weight=(classes, features), bias=(classes,))


@pytest.fixture
def load(monkeypatch):
    """Runs a source, with the classes above in the place of PyTorch's."""
    nn = types.ModuleType('torch.nn')
    nn.Module, nn.Parameter = Module, np.asarray
    for layer in (Sequential, Conv2d, BatchNorm2d, Linear):
        setattr(nn, layer.__name__, layer)
    for name in ('ReLU', 'AvgPool2d', 'MaxPool2d', 'ZeroPad2d'):
        setattr(nn, name, lambda *_, **__: Module())
    torch, loader = types.ModuleType('torch'), types.ModuleType('safetensors.torch')
    torch.nn, torch.ones = nn, np.ones
    torch.tensor = lambda values: types.SimpleNamespace(view=lambda *_: np.array(values))
    loader.load_file = None
    for module in (torch, nn, loader):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def run(source):
        names = {'__file__': 'network.py'}
        exec(compile(source, 'network.py', 'exec'), names)
        return names

    return run


@pytest.mark.parametrize('space', SPECS)
def test_weights_have_the_names_and_shapes_of_the_module(space, load):
    module = exported.translated(SPECS[space](), Exported())
    names = load(module.source('', {}))
    weights = module.weights()
    assert names['Network']().shapes == {key: array.shape for key, array in weights.items()}
    assert {array.dtype for array in weights.values()} == {np.dtype('float32')}


def test_source_needs_nothing_but_torch_and_safetensors():
    source = exported.translated(SPECS['darts'](), Exported()).source('', {})
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    froms = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert {alias.name for node in nodes for alias in node.names} == {'pathlib', 'torch'}
    assert {node.module for node in froms} == {'safetensors.torch', 'torch'}
    assert max(map(len, source.splitlines())) <= 100


def test_constants_come_through_whatever_the_names_are(load):
    module = exported.translated(exported.without_operations('chain'), Exported())
    classes = ['a, "b"\n', "é\udce9'''", '', *map(str, range(100))]
    names = load(module.source('What it is.', {'CLASS_NAMES': classes, 'GENOTYPE': [['none']]}))
    assert names['__doc__'] == 'What it is.'
    assert names['CLASS_NAMES'] == classes
    assert names['GENOTYPE'] == [['none']]
    assert names['IMAGE_SHAPE'] == exported.ODD
    assert (names['MEAN'], names['STD']) == ([100.0] * 3, [50.0] * 3)


def test_equal_cells_share_a_class_and_what_nothing_depends_on_is_left_out(load):
    """The second node reads the input, and nothing reads the first; the third reads the second."""
    conv, skip, none = ('nor_conv_3x3',), ('skip_connect',), ('none',)
    cell = ((conv,), (conv, none), (none, none, skip))
    spec = nasbench201.NasBench201Spec(exported.ODD, 4, 4, ((4, 1),) * 3, cell)
    module = exported.translated(spec, Exported())
    names = load(module.source('', {}))
    assert {name for name in names if name.startswith('Cell')} == {'Cell0'}
    edges = {key.rsplit('.', 2)[0] for key in module.weights() if key.startswith('cell_')}
    assert edges == {f'cell_{i}.edge_1_0' for i in range(3)}
