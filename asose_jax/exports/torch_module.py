"""Builds the source of a PyTorch module and its weights layer by layer; it needs no PyTorch.

Layers that follow each other in one branch become an `nn.Sequential`, and each block or cell a
class. Blocks of the same source share a class.
"""

import dataclasses
import pprint
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from asose_jax.exports.layers import BatchNorm, Layers, Pixels
from asose_jax.nn import operations

_LINE = 92  # characters of a line, without its indentation
_HEADER = """
import pathlib

import torch
from safetensors.torch import load_file
from torch import nn
"""
_SCALE = '''
class Scale(nn.Module):
    """Multiplies by a trained number."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.factor * x
'''
_LOAD = '''
def load(weights=pathlib.Path(__file__).with_suffix('.safetensors')):
    """Returns the network with its trained weights, in evaluation mode."""
    network = Network()
    network.load_state_dict(load_file(weights))
    return network.eval()
'''


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Holds the expression that makes a layer, and its arrays by their names in PyTorch."""

    code: str
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Step:
    """Computes an array of the network.

    Attributes:
      inputs: names of the arrays that it is computed from.
      expression: turns the texts of the inputs into that of the array.
      layers: one after another; empty if the expression has none.
      operation: name of the candidate operation that the layers are, if any.
    """

    inputs: tuple[str, ...]
    expression: Callable[..., str]
    layers: list[_Layer] = dataclasses.field(default_factory=list)
    operation: str = ''


class Module(Layers):
    """Collects the steps that compute the arrays of a network, by their names.

    Attributes:
      image_shape: `(H, W, C)`.
    """

    def __init__(self) -> None:
        """Starts with an empty network."""
        self._steps: dict[str, _Step] = {}
        self._mean = self._std = np.zeros(0)
        self.image_shape = (0, 0, 0)

    # --- Layers

    def normalised(
        self, image_shape: tuple[int, int, int], mean: np.ndarray, std: np.ndarray
    ) -> Pixels:
        """Adds the normalisation of images, with buffers that are not among the weights."""
        self.image_shape, self._mean, self._std = image_shape, mean, std
        height, width, channels = image_shape
        text = '(images.permute(0, 3, 1, 2).float() - self.mean) / self.std'
        return Pixels(self._add('x', (), lambda: text), channels, height, width)

    def conv(
        self,
        x: Pixels,
        kernel: npt.ArrayLike,
        name: str,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        at_end: bool = False,
        norm: BatchNorm | None = None,
    ) -> Pixels:
        """Adds `Conv2d`, and `BatchNorm2d` and `ZeroPad2d` where needed."""
        if at_end:
            x = self._padded(x, name)
        weight = np.asarray(kernel, np.float32).transpose(3, 2, 0, 1)
        features, _, *size = weight.shape
        padding = [0 if at_end else (taps - 1) * dilation // 2 for taps in size]
        options = {
            'stride': (stride, 1),
            'padding': (_pair(padding), '0'),
            'dilation': (dilation, 1),
            'groups': (x.channels if depthwise else 1, 1),
            'bias': (False, True),
        }
        chosen = [f'{key}={value}' for key, (value, usual) in options.items() if value != usual]
        arguments = [str(x.channels), str(features), _pair(size), *chosen]
        layer = _Layer(f'nn.Conv2d({", ".join(arguments)})', {'weight': weight})
        y = self._then(x, layer, name).strided(stride)._replace(channels=features)
        return y if norm is None else self.batch_norm(y, norm, name)

    def relu(self, x: Pixels, name: str) -> Pixels:
        """Adds `ReLU`."""
        return self._then(x, _Layer('nn.ReLU()'), name)

    def batch_norm(self, x: Pixels, norm: BatchNorm, name: str) -> Pixels:
        """Adds `BatchNorm2d`."""
        arrays = {
            'weight': norm.scale,
            'bias': norm.bias,
            'running_mean': norm.mean,
            'running_var': norm.var,
        }
        code = f'nn.BatchNorm2d({x.channels}, eps={norm.epsilon})'
        return self._then(x, _Layer(code, arrays), name)

    def average_3x3(self, x: Pixels, name: str, stride: int) -> Pixels:
        """Adds `AvgPool2d` that leaves the padding out."""
        code = f'nn.AvgPool2d(3, {stride}, padding=1, count_include_pad=False)'
        return self._then(x, _Layer(code), name).strided(stride)

    def max_3x3(self, x: Pixels, name: str, stride: int) -> Pixels:
        """Adds `MaxPool2d`."""
        return self._then(x, _Layer(f'nn.MaxPool2d(3, {stride}, padding=1)'), name).strided(stride)

    def mean_2x2(self, x: Pixels, name: str) -> Pixels:
        """Adds `AvgPool2d`, behind `ZeroPad2d` where a size is odd."""
        return self._then(self._padded(x, name), _Layer('nn.AvgPool2d(2)'), name).strided(2)

    def scale(self, x: Pixels, factor: npt.ArrayLike, name: str) -> Pixels:
        """Adds the class `Scale`."""
        array = np.asarray(factor, np.float32).reshape(())
        return self._then(x, _Layer('Scale()', {'factor': array}), name)

    def total(self, terms: Iterable[Pixels | None], like: Pixels, name: str) -> Pixels:
        """Adds a sum, or `new_zeros` where there is nothing to add up."""
        remaining = [term.name for term in terms if term is not None]
        if len(remaining) == 1:
            return like._replace(name=remaining[0])
        if not remaining:  # any array has the number of images
            source, shape = like.name or next(reversed(self._steps)), str([*like[1:]])[1:-1]
            zeros = self._add(name, (source,), lambda x: f'{x}.new_zeros(len({x}), {shape})')
            return like._replace(name=zeros)
        return like._replace(name=self._add(name, remaining, lambda *x: ' + '.join(x)))

    def concat(self, parts: list[Pixels], name: str) -> Pixels:
        """Adds `torch.cat`."""
        names = [part.name for part in parts]
        y = self._add(name, names, lambda *x: f'torch.cat([{", ".join(x)}], 1)')
        return parts[0]._replace(name=y, channels=sum(part.channels for part in parts))

    def classify(self, x: Pixels, kernel: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        """Adds the mean over the pixels and `Linear`."""
        weight = np.asarray(kernel, np.float32).T
        layer = _Layer(
            f'nn.Linear({x.channels}, {len(weight)})', {'weight': weight, 'bias': np.asarray(bias)}
        )
        self._add('head', [x.name], lambda x: f'self.head({x}.mean((2, 3)))', [layer])

    def _padded(self, x: Pixels, name: str) -> Pixels:
        """Adds a row below and a column to the right where a size is odd."""
        rows, columns = x.height % 2, x.width % 2
        if not rows + columns:
            return x
        padded = self._then(x, _Layer(f'nn.ZeroPad2d((0, {columns}, 0, {rows}))'), name)
        return padded._replace(height=x.height + rows, width=x.width + columns)

    def _then(self, x: Pixels, layer: _Layer, name: str) -> Pixels:
        """Adds a layer behind those of the same branch, or begins the branch."""
        branch, _, rest = name.partition('/')
        if rest:
            member, *inside = rest.split('/')
            branch = f'{branch}/{member}'
            operation = inside[0] if inside and inside[0] in operations.PRIMITIVES else ''
        else:
            member, operation = branch, ''
        if x.name == branch and not any(branch in s.inputs for s in self._steps.values()):
            self._steps[branch].layers.append(layer)
        else:
            self._add(branch, [x.name], lambda x: f'self.{member}({x})', [layer], operation)
        return x._replace(name=branch)

    def _add(
        self,
        name: str,
        inputs: Iterable[str],
        expression: Callable[..., str],
        layers: Collection[_Layer] = (),
        operation: str = '',
    ) -> str:
        if name in self._steps:
            raise ValueError(f'two arrays of the network are called {name!r}')
        self._steps[name] = _Step(tuple(inputs), expression, [*layers], operation)
        return name

    # --- The result

    def weights(self) -> dict[str, np.ndarray]:
        """Returns all arrays by their names in the `state_dict` of the module."""
        return {
            '.'.join([*name.split('/'), *([str(i)] if len(step.layers) > 1 else []), key]): (
                np.array(array, np.float32, order='C')
            )
            for name, step in self._needed().items()
            for i, layer in enumerate(step.layers)
            for key, array in layer.arrays.items()
        }

    def source(self, description: str, constants: Mapping[str, Any]) -> str:
        """Returns the text of the Python file.

        Args:
          description: its docstring.
          constants: plain values by the names that they get in the file.
        """
        steps = self._needed()
        given = {
            **constants,
            'IMAGE_SHAPE': self.image_shape,
            'MEAN': [float(value) for value in self._mean],
            'STD': [float(value) for value in self._std],
        }
        lines = [f'{key} = {pprint.pformat(value, width=_LINE)}\n' for key, value in given.items()]
        codes = {layer.code for step in steps.values() for layer in step.layers}
        parts = [
            f'"""{description}"""\n{_HEADER}\n{"".join(lines)}',
            *([_SCALE] if 'Scale()' in codes else []),
            *_classes(steps),
            _LOAD,
        ]
        return '\n'.join(parts)

    def _needed(self) -> dict[str, _Step]:
        """Returns the steps that the logits depend on, in order."""
        needed = {'head'}
        for name, step in reversed(self._steps.items()):
            if name in needed:
                needed.update(step.inputs)
        return {name: step for name, step in self._steps.items() if name in needed}


def _pair(sizes: list[int]) -> str:
    """Returns two sizes as PyTorch takes them: one number if they are equal."""
    return str(sizes[0]) if sizes[0] == sizes[1] else str(tuple(sizes))


# --- Classes


def _classes(steps: Mapping[str, _Step]) -> list[str]:
    """Returns the sources of the classes of all blocks, and of `Network`."""
    blocks: dict[str, dict[str, _Step]] = {}
    for name, step in steps.items():
        block = name.split('/')[0]
        blocks.setdefault(block, {})[name] = step
    classes: dict[str, tuple[str, list[str]]] = {}  # by its source: its name, and its blocks
    members, outer, results = [], {}, {}
    for block, inside in blocks.items():
        if {*inside} == {block}:  # not in a class of its own
            outer[block] = inside[block]
            members += _members(inside)
            continue
        inputs = [*dict.fromkeys(i for s in inside.values() for i in s.inputs if i not in inside)]
        others = {i for name, s in steps.items() if name not in inside for i in s.inputs}
        (result,) = inside.keys() & others
        results[result] = block
        body = _body(inside, inputs, result)
        name, users = classes.setdefault(body, (block.title().replace('_', ''), []))
        users.append(block)
        members.append(f'self.{block} = {name}()')
        outer[block] = _Step(tuple(inputs), lambda *x, block=block: f'self.{block}({", ".join(x)})')
    for block, step in outer.items():
        inputs = tuple(results.get(name, name) for name in step.inputs)
        outer[block] = dataclasses.replace(step, inputs=inputs)
    return [
        *(
            _class(name, f'Computes {", ".join(users)}', body)
            for body, (name, users) in classes.items()
        ),
        _class(
            'Network',
            'Maps images [N, H, W, C], pixel values 0 to 255, to logits',
            _network(members, outer),
        ),
    ]


def _class(name: str, doc: str, body: str) -> str:
    return f'\nclass {name}(nn.Module):\n    """{doc}."""\n\n{body}'


def _network(members: list[str], steps: Mapping[str, _Step]) -> str:
    buffers = [
        f"self.register_buffer('{name}', torch.tensor({name.upper()}).view(1, -1, 1, 1), "
        'persistent=False)'
        for name in ('mean', 'std')
    ]
    lines = [f'{name} = {step.expression(*step.inputs)}' for name, step in steps.items()]
    lines[-1] = f'return {lines[-1].removeprefix("head = ")}'
    return _methods([*buffers, *members], 'images', lines)


def _body(steps: Mapping[str, _Step], inputs: list[str], result: str) -> str:
    """Returns the methods of the class of a block.

    Args:
      steps: those of the block.
      inputs: names of arrays of other blocks that it needs.
      result: name of the one array that others need.
    """
    arguments = ['x'] if len(inputs) == 1 else [f'x_{i}' for i in range(len(inputs))]
    texts = dict(zip(inputs, arguments, strict=True))
    uses = [name for step in steps.values() for name in step.inputs]
    lines = []
    for name, step in steps.items():
        text = step.expression(*(texts[each] for each in step.inputs))
        consumers = [other for other in steps.values() if name in other.inputs]
        if name == result and not consumers:
            lines.append(f'return {text}')
        elif step.layers and uses.count(name) == 1 and _is_short_sum(consumers[0]):
            texts[name] = text  # written where it is used
        else:
            texts[name] = name.split('/')[-1]
            lines.append(f'{texts[name]} = {text}')
    if not lines[-1].startswith('return '):
        lines.append(f'return {texts[result]}')
    return _methods(_members(steps), ', '.join(arguments), lines)


def _is_short_sum(step: _Step) -> bool:
    return not step.layers and len(step.inputs) <= 3


def _members(steps: Mapping[str, _Step]) -> list[str]:
    """Returns the lines that make the layers of these steps."""
    lines = []
    for name, step in steps.items():
        member, remark = f'self.{name.split("/")[-1]}', step.operation and f'  # {step.operation}'
        if len(step.layers) == 1:
            lines.append(f'{member} = {step.layers[0].code}{remark}')
        elif step.layers:
            lines.append(f'{member} = nn.Sequential({remark}')
            lines += [f'    {layer.code},' for layer in step.layers]
            lines.append(')')
    return lines


def _methods(members: list[str], arguments: str, lines: list[str]) -> str:
    both = {
        '    def __init__(self):': ['super().__init__()', *members],
        f'    def forward(self, {arguments}):': lines,
    }
    return '\n'.join(
        '\n'.join([head, *(f'        {line}' for line in body), '']) for head, body in both.items()
    )
