"""Translates trained networks of every search space into `Layers`, operation by operation.

It follows the description of the network and calls nothing of JAX: the forms of an operation for
several platforms, between which JAX chooses when it compiles, are one function here. A new
operation or a new space needs a row in `OPERATIONS` or `BODIES`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from asose_jax.arch.genotype import NetSpec
from asose_jax.exports.layers import BatchNorm, Layers, Pixels
from asose_jax.nn import batch_norm, operations
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain, darts, nasbench201

_NORM = batch_norm.Norm('float32', None)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Holds the part of a network's variables that belongs to one module.

    Attributes:
      params: its trained numbers.
      stats: its BatchNorm statistics.
      path: names of the modules down to it.
    """

    params: Mapping[str, Any]
    stats: Mapping[str, Any]
    path: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns the path as one name."""
        return '/'.join(self.path)

    def at(self, name: str) -> 'Weights':
        """Returns the part of a module inside; it is empty if that has no variables."""
        parts = (tree.get(name, {}) for tree in (self.params, self.stats))
        return Weights(*parts, path=(*self.path, name))

    def pointwise(self) -> np.ndarray:
        """Returns the matrix of a 1x1 convolution as a kernel `[1, 1, C, F]`."""
        return np.asarray(self.params['kernel'])[None, None]

    def norm(self, name: str) -> BatchNorm:
        """Returns the BatchNorm of this name inside."""
        part = self.at(name)
        values = {**part.params, **part.stats}
        return BatchNorm(
            **{key: np.asarray(value) for key, value in values.items()},
            epsilon=batch_norm.BatchNorm.epsilon,
        )


def add_network(
    layers: Layers,
    spec: NetSpec,
    variables: Mapping[str, Any],
    *,
    mean: np.ndarray,
    std: np.ndarray,
) -> None:
    """Adds all layers of the network that `SuperNet` computes in evaluation, in float32.

    Args:
      layers: empty.
      spec: description of the network; every operation is chosen.
      variables: its collections `params` and `batch_stats`.
      mean: of each channel, in pixel values 0..255, `[C]`.
      std: standard deviation of each channel, in the same units, `[C]`.

    Raises:
      UserError: the space or one of the operations has no translation.
      ValueError: something is left to choose.
    """
    if not spec.is_derived() or spec.partial > 1:
        raise ValueError('only a derived network can be translated, in which all is chosen')
    if spec.SPACE not in BODIES:
        raise _untranslated(f'the search space {spec.SPACE!r}')
    weights = Weights(variables['params'], variables.get('batch_stats', {}))
    x = layers.normalised(spec.image_shape, mean, std)
    stem = np.asarray(weights.at('stem').params['kernel'])
    x = layers.conv(x, stem, 'stem', norm=weights.norm('stem_norm'))
    x = BODIES[spec.SPACE](layers, spec, x, weights)
    head = weights.at('head').params
    layers.classify(x, head['kernel'], head['bias'])


def add_operation(
    layers: Layers, name: str, x: Pixels, variables: Mapping[str, Any], stride: int
) -> Pixels:
    """Adds a candidate operation by itself.

    Args:
      layers: those of its input.
      name: of the operation, from `operations.PRIMITIVES`; not `none`.
      x: its input.
      variables: its collections `params` and `batch_stats`, if it has them.
      stride: 1 or 2.

    Returns:
      Its output.

    Raises:
      UserError: it has no translation.
    """
    params, stats = ({name: variables.get(kind, {})} for kind in ('params', 'batch_stats'))
    y = _chosen(layers, (name,), x, Weights(params, stats), stride)
    assert y is not None
    return y


def _untranslated(what: str) -> UserError:
    return UserError(
        f'{what} has no translation into layers. Use --export=stablehlo, or add one to '
        'asose_jax/exports/translation.py.'
    )


# --- Operations


def _none(layers: Layers, op: Any, x: Pixels, weights: Weights) -> None:
    del layers, op, x, weights


def _identity(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    return x if op.stride == 1 else _factorized_reduce(layers, op, x, weights.at('reduce'))


def _factorized_reduce(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    """Adds both 1x1 convolutions as one 2x2 convolution: each reads one corner of the window."""
    del op
    halves = [weights.at(f'shift_{i}').pointwise() for i in range(2)]
    inputs, features = halves[0].shape[2:]
    kernel = np.zeros((2, 2, inputs, 2 * features))
    kernel[0, 0, :, :features], kernel[1, 1, :, features:] = halves[0][0, 0], halves[1][0, 0]
    x = layers.relu(x, weights.name)
    norm = weights.norm('norm')
    return layers.conv(x, kernel, weights.name, stride=2, at_end=True, norm=norm)


def _avg_pool(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    return layers.average_3x3(x, weights.name, op.stride)


def _max_pool(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    return layers.max_3x3(x, weights.name, op.stride)


def _sep_conv(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    x = _depthwise_separable(layers, x, weights.at('sep_0'), stride=op.stride)
    return _depthwise_separable(layers, x, weights.at('sep_1'))


def _dil_conv(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    return _depthwise_separable(layers, x, weights.at('dil'), stride=op.stride, dilation=2)


def _depthwise_separable(
    layers: Layers, x: Pixels, weights: Weights, stride: int = 1, dilation: int = 1
) -> Pixels:
    x = layers.relu(x, weights.name)
    x = layers.conv(
        x,
        weights.params['depthwise'],
        f'{weights.name}/depthwise',
        stride=stride,
        dilation=dilation,
        depthwise=True,
    )
    part = weights.at('pointwise')
    return layers.conv(x, part.pointwise(), part.name, norm=weights.norm('norm'))


def _cross_conv(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    across, down = weights.at('horizontal'), weights.at('vertical')
    x = layers.relu(x, weights.name)
    x = layers.conv(x, across.params['kernel'], across.name)
    norm = weights.norm('norm')
    return layers.conv(x, down.params['kernel'], down.name, stride=op.stride, norm=norm)


def _relu_conv_norm(layers: Layers, op: Any, x: Pixels, weights: Weights) -> Pixels:
    part = weights.at('conv')
    kernel = part.pointwise() if op.size == 1 else part.params['kernel']
    x = layers.relu(x, weights.name)
    norm = weights.norm('norm')
    return layers.conv(x, kernel, part.name, stride=op.stride, norm=norm)


# Adds an operation to a network: `f(layers, operation, x, weights)` returns its output, or `None`
# for zeros.
OPERATIONS: dict[type[operations.Operation], Callable[..., Pixels | None]] = {
    operations.Zero: _none,
    operations.Identity: _identity,
    operations.FactorizedReduce: _factorized_reduce,
    operations.AvgPool: _avg_pool,
    operations.MaxPool: _max_pool,
    operations.SepConv: _sep_conv,
    operations.DilConv: _dil_conv,
    operations.CrossConv: _cross_conv,
    operations.ReluConvNorm: _relu_conv_norm,
}


def _chosen(
    layers: Layers, candidates: tuple[str, ...], x: Pixels, weights: Weights, stride: int = 1
) -> Pixels | None:
    """Adds a mixed operation with a single candidate, and its factor if it has one."""
    (name,) = candidates
    operation = operations.make(name, x.channels, _NORM, stride, parent=None)
    if type(operation) not in OPERATIONS:
        raise _untranslated(f'the operation {name!r}')
    own = weights.at(name)
    y = OPERATIONS[type(operation)](layers, operation, x, own)
    if y is None or operations.FACTOR not in own.params:
        return y
    return layers.scale(y, own.params[operations.FACTOR], f'{own.name}/{operations.FACTOR}')


def _relu_conv_1x1(layers: Layers, x: Pixels, weights: Weights, channels: int) -> Pixels:
    return _relu_conv_norm(
        layers, operations.ReluConvNorm(channels, _NORM, 1, parent=None), x, weights
    )


# --- Spaces


def _chain(layers: Layers, spec: chain.ChainSpec, x: Pixels, weights: Weights) -> Pixels:
    x = layers.relu(x, 'stem')
    for i, block in enumerate(spec.blocks):
        own = weights.at(f'block_{i}')
        if chain.needs_transition(block, x.channels):
            part, norm = own.at('transition'), own.norm('transition_norm')
            x = layers.conv(x, part.pointwise(), part.name, stride=block.stride, norm=norm)
        terms = [x if spec.residual else None]
        for b, candidates in enumerate(block.branches):
            terms.append(_chosen(layers, candidates, x, own.at(f'branch_{b}')))
        x = layers.total(terms, x, own.name)
    return x


def _nasbench201(
    layers: Layers, spec: nasbench201.NasBench201Spec, x: Pixels, weights: Weights
) -> Pixels:
    for i, (channels, stride) in enumerate(spec.modules):
        if stride == 1:
            x = _nasbench201_cell(layers, spec, x, weights.at(f'cell_{i}'))
        else:
            x = _residual_block(layers, channels, x, weights.at(f'reduction_{i}'))
    x = layers.batch_norm(x, weights.norm('last_norm'), 'last_norm')
    return layers.relu(x, 'last_norm')


def _nasbench201_cell(
    layers: Layers, spec: nasbench201.NasBench201Spec, x: Pixels, weights: Weights
) -> Pixels:
    nodes = [x]
    for g, edges in enumerate(spec.cell):
        terms = [
            _chosen(layers, candidates, nodes[m], weights.at(f'edge_{g}_{m}'))
            for m, candidates in enumerate(edges)
        ]
        nodes.append(layers.total(terms, x, f'{weights.name}/node_{g}'))
    return nodes[-1]


def _residual_block(layers: Layers, channels: int, x: Pixels, weights: Weights) -> Pixels:
    aside = weights.at('aside')
    shortcut = layers.mean_2x2(x, f'{weights.name}/mean')
    shortcut = layers.conv(shortcut, aside.pointwise(), aside.name)
    for i in range(2):
        layer = operations.ReluConvNorm(channels, _NORM, 3, stride=2 - i, parent=None)
        x = _relu_conv_norm(layers, layer, x, weights.at(f'conv_{i}'))
    return layers.total([shortcut, x], x, weights.name)


def _darts(layers: Layers, spec: darts.DartsSpec, x: Pixels, weights: Weights) -> Pixels:
    earlier, later, halves = x, x, False
    for i, (channels, stride) in enumerate(spec.cells):
        own = weights.at(f'cell_{i}')
        if halves:
            reduce = operations.FactorizedReduce(channels, _NORM, parent=None)
            first = _factorized_reduce(layers, reduce, earlier, own.at('input_0'))
        else:
            first = _relu_conv_1x1(layers, earlier, own.at('input_0'), channels)
        second = _relu_conv_1x1(layers, later, own.at('input_1'), channels)
        edges = spec.reduce if stride == 2 else spec.normal
        y = _darts_cell(layers, edges, stride, [first, second], own)
        earlier, later, halves = later, y, stride == 2
    return later


def _darts_cell(
    layers: Layers,
    edges: tuple[tuple[tuple[str, ...], ...], ...],
    stride: int,
    states: list[Pixels],
    weights: Weights,
) -> Pixels:
    """Adds the nodes of a cell; `states` has its two inputs."""
    inputs, channels = len(states), states[0].channels
    height, width = (-(-size // stride) for size in states[1][2:])
    like = Pixels('', channels, height, width)
    for g, node in enumerate(edges):
        terms = [
            _chosen(
                layers,
                candidates,
                states[m],
                weights.at(f'edge_{g}_{m}'),
                stride if m < inputs else 1,
            )
            for m, candidates in enumerate(node)
        ]
        states = [*states, layers.total(terms, like, f'{weights.name}/node_{g}')]
    return layers.concat(states[inputs:], weights.name)


# Adds all between stem and head: `f(layers, spec, x, weights)`. The stem of every space is a 3x3
# convolution with a BatchNorm.
BODIES: dict[str, Callable[..., Pixels]] = {
    'chain': _chain,
    'nasbench201': _nasbench201,
    'darts': _darts,
}
