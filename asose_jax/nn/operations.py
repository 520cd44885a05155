"""The candidate operations of a mixed operation. This room knows nothing of search.

Every operation keeps the channels and follows the DARTS conventions, ReLU-Conv-BN
(Liu et al. 2019, arXiv:1806.09055, section 3.1). To add one: write a module with the attributes
and the call signature of `Operation`, say in `last_norm` where the BatchNorm is that it ends with,
if it does, and give it a row in `PRIMITIVES`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.nn.cpu import conv, conv_1x1, pooling

Array = jax.Array

# Bounded by 1/sqrt(fan-in), the usual start of convolutions in DARTS and its kin.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Operation(nn.Module):
    """What all candidates share: `[B, H, W, C]` to `[B, ceil(H/s), ceil(W/s), C]`, in one dtype.

    Attributes:
      channels: C.
      norm: makes a BatchNorm; called as `norm(use_running_average=..., name=...)`.
      stride: s, 1 or 2.
    """

    channels: int
    norm: Callable[..., nn.Module]
    stride: int = dataclasses.field(default=1, kw_only=True)

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...] | None:
        """Where in its `params` the BatchNorm is that it ends with; `None` if it does not."""
        del stride
        return None


class Zero(Operation):
    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return jnp.zeros_like(x[:, :: self.stride, :: self.stride])


class Identity(Operation):
    """With stride 2 a `FactorizedReduce`, which has weights."""

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...] | None:
        return None if stride == 1 else ('reduce', 'norm')

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.stride == 1:
            return x
        return FactorizedReduce(self.channels, self.norm, name='reduce')(x, train)


class FactorizedReduce(Operation):
    """ReLU, two 1x1 convolutions of every other pixel, the second one pixel further, BN.

    Attributes:
      channels: of the output, even; the input may have any number.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(x)
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        halves = [
            pointwise(self.channels // 2, x.dtype, f'shift_{i}')(x[:, i::2, i::2]) for i in range(2)
        ]
        x = jnp.concatenate(halves, -1)
        return self.norm(use_running_average=not train, name='norm')(x)


class AvgPool(Operation):
    """Mean over the valid 3x3 neighbours; padding is not counted."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return pooling.avg_pool(x, self.stride)


class MaxPool(Operation):
    """Largest of the valid 3x3 neighbours."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        return pooling.max_pool(x, self.stride)


class SepConv(Operation):
    """(ReLU, depthwise k, pointwise, BN), twice."""

    size: int

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...]:
        return ('sep_1', 'norm')

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i in range(2):
            stride = 1 if i else self.stride
            part = _DepthwiseSeparable(
                self.channels, self.norm, self.size, 1, stride=stride, name=f'sep_{i}'
            )
            x = part(x, train)
        return x


class DilConv(Operation):
    """ReLU, depthwise k with dilation 2, pointwise, BN."""

    size: int

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...]:
        return ('dil', 'norm')

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        part = _DepthwiseSeparable(
            self.channels, self.norm, self.size, 2, stride=self.stride, name='dil'
        )
        return part(x, train)


class _DepthwiseSeparable(Operation):
    size: int
    dilation: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shape = (self.size, self.size, 1, self.channels)
        kernel = self.param('depthwise', _KERNEL_INIT, shape, jnp.float32)
        x = conv.relu_depthwise_conv(x, kernel.astype(x.dtype), self.dilation, self.stride)
        x = pointwise(self.channels, x.dtype, 'pointwise')(x)
        return self.norm(use_running_average=not train, name='norm')(x)


def pointwise(features: int, dtype: Any, name: str) -> nn.Dense:
    """A 1x1 convolution without bias: on channels-last images, a matrix product."""
    return nn.Dense(
        features, use_bias=False, dtype=dtype, dot_general=conv_1x1.dot_general, name=name
    )


class CrossConv(Operation):
    """ReLU, convolution 1xk, convolution kx1, BN: a kxk receptive field in two thin passes."""

    size: int

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...]:
        return ('norm',)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(self.channels, (1, self.size), name='horizontal')(nn.relu(x))
        x = Conv(self.channels, (self.size, 1), self.stride, name='vertical')(x)
        return self.norm(use_running_average=not train, name='norm')(x)


class ReluConvNorm(Operation):
    """ReLU, convolution kxk, BN: the `nor_conv` of NAS-Bench-201 (arXiv:2001.00326)."""

    size: int

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...]:
        return ('norm',)

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = nn.relu(x)
        if self.size == 1:
            x = x[:, :: self.stride, :: self.stride]
            x = pointwise(self.channels, x.dtype, 'conv')(x)
        else:
            x = Conv(self.channels, (self.size, self.size), self.stride, name='conv')(x)
        return self.norm(use_running_average=not train, name='norm')(x)


class Conv(nn.Module):
    """A convolution without bias; computes in the dtype of its input."""

    features: int
    size: tuple[int, int]
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', _KERNEL_INIT, shape, jnp.float32)
        return conv.conv(x, kernel.astype(x.dtype), self.stride)


# Name -> module and its own attributes.
PRIMITIVES: dict[str, tuple[type[Operation], Mapping[str, Any]]] = {
    'none': (Zero, {}),
    'avg_pool_3x3': (AvgPool, {}),
    'max_pool_3x3': (MaxPool, {}),
    'skip_connect': (Identity, {}),
    'sep_conv_3x3': (SepConv, {'size': 3}),
    'sep_conv_5x5': (SepConv, {'size': 5}),
    'sep_conv_7x7': (SepConv, {'size': 7}),
    'dil_conv_3x3': (DilConv, {'size': 3}),
    'dil_conv_5x5': (DilConv, {'size': 5}),
    'conv_7x1_1x7': (CrossConv, {'size': 7}),
    'nor_conv_1x1': (ReluConvNorm, {'size': 1}),
    'nor_conv_3x3': (ReluConvNorm, {'size': 3}),
}

# Operations without parameters (but for a skip_connect of stride 2); a genotype full of them is the
# field's usual collapse.
PARAMETER_FREE = frozenset({'none', 'avg_pool_3x3', 'max_pool_3x3', 'skip_connect'})

FACTOR = 'factor'  # a scalar beside an operation's own `params`, by which its output is multiplied


def make(
    name: str, channels: int, norm: Callable[..., nn.Module], stride: int = 1, **options: Any
) -> Operation:
    """The operation called `name`, as a module; `options` are those of `nn.Module`."""
    module, attributes = PRIMITIVES[name]
    return module(channels=channels, norm=norm, stride=stride, **attributes, **options)


def scale(weight: Array, y: Array) -> Array:
    """`weight * y` in the dtype of y, `[B, H, W, C]`."""
    return weight.astype(y.dtype).reshape((1,) * y.ndim) * y


@functools.cache
def function(
    name: str,
    channels: int,
    norm: Callable[..., nn.Module],
    stride: int,
    train: bool,
    remat: bool,
) -> Callable[[Any, Any, Array], tuple[Array, Any]]:
    """The operation called `name`, as a pure function; one trace for all calls of a shape.

    Args:
      name: from `PRIMITIVES`.
      channels: of images, in and out.
      norm: as in `Operation`, hashable.
      stride: 1 or 2.
      train: whether BatchNorm uses and updates the statistics of the batch.
      remat: whether the backward pass keeps nothing but the input.

    Returns:
      `f(params, stats, x) -> (y, stats)`, with the trees of the module's collections; `params` may
      have a `FACTOR` beside them.
    """
    operation = make(name, channels, norm, stride, parent=None)

    def apply(params, stats, x):
        own = {key: tree for key, tree in params.items() if key != FACTOR}
        variables = {'params': own, 'batch_stats': stats}
        if train:
            y, changed = operation.apply(variables, x, train, mutable=['batch_stats'])
            stats = changed.get('batch_stats', stats)
        else:
            y = operation.apply(variables, x, train)
        return (scale(params[FACTOR], y) if FACTOR in params else y), stats

    if remat:
        apply = jax.checkpoint(apply, prevent_cse=False)
    return jax.jit(apply)
