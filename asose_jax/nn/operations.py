"""Candidate operations, the choices of a mixed operation; nothing here depends on the search.

Every operation keeps the number of channels and follows the conventions of DARTS, ReLU-Conv-BN
(Liu et al. 2019, arXiv:1806.09055, section 3.1). To add one, write a subclass of `Operation`, set
`LAST_NORM` if it ends with a BatchNorm, and add a row to `PRIMITIVES`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from asose_jax.nn.cpu import conv, conv_1x1, pooling

Array = jax.Array

# Uniform within 1/sqrt(fan-in), as PyTorch starts the convolutions of DARTS.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Operation(nn.Module):
    """Defines what all candidates have in common.

    An operation is called as `operation(x, train)`. It maps images `[B, H, W, C]` to
    `[B, ceil(H / s), ceil(W / s), C]` in the same dtype. With `train`, its BatchNorms use the
    statistics of the batch and update the running ones.

    Attributes:
      LAST_NORM: path in `params` of the BatchNorm that the operation ends with; `None` without one.
      channels: C.
      norm: makes a BatchNorm; called as `norm(use_running_average=..., name=...)`.
      stride: s, 1 or 2.
    """

    LAST_NORM: ClassVar[tuple[str, ...] | None] = None

    channels: int
    norm: Callable[..., nn.Module]
    _: dataclasses.KW_ONLY
    stride: int = 1

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...] | None:
        """Returns `LAST_NORM`, which may depend on the stride."""
        del stride
        return cls.LAST_NORM


class Zero(Operation):
    """Returns zeros: the candidate `none`."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        return jnp.zeros_like(x[:, :: self.stride, :: self.stride])


class Identity(Operation):
    """Returns its input; with stride 2 it is a `FactorizedReduce`, which has weights."""

    @classmethod
    def last_norm(cls, stride: int) -> tuple[str, ...] | None:
        """Returns the path of the last BatchNorm, which only stride 2 has."""
        return None if stride == 1 else ('reduce', 'norm')

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        if self.stride == 1:
            return x
        return FactorizedReduce(self.channels, self.norm, name='reduce')(x, train)


class FactorizedReduce(Operation):
    """Halves the image: ReLU, two 1x1 convolutions of every other pixel, BN.

    The second convolution reads the pixels one row and one column further; each gives half of the
    channels.

    Attributes:
      channels: of the output, even; the input may have any number.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps `[B, H, W, any]` to `[B, ceil(H / 2), ceil(W / 2), C]`."""
        x = nn.relu(x)
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        halves = [
            pointwise(self.channels // 2, x.dtype, f'shift_{i}')(x[:, i::2, i::2]) for i in range(2)
        ]
        x = jnp.concatenate(halves, -1)
        return self.norm(use_running_average=not train, name='norm')(x)


class AvgPool(Operation):
    """Computes the mean of the valid 3x3 neighbours; padding does not count."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        return pooling.avg_pool(x, self.stride)


class MaxPool(Operation):
    """Computes the largest of the valid 3x3 neighbours."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        return pooling.max_pool(x, self.stride)


class SepConv(Operation):
    """Applies ReLU, a depthwise kxk convolution, a 1x1 convolution and BN, twice.

    Attributes:
      size: k.
    """

    LAST_NORM = ('sep_1', 'norm')

    size: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        for i in range(2):
            stride = 1 if i else self.stride
            layers = _DepthwiseSeparable(
                self.channels, self.norm, self.size, 1, stride=stride, name=f'sep_{i}'
            )
            x = layers(x, train)
        return x


class DilConv(Operation):
    """Applies ReLU, a depthwise kxk convolution with dilation 2, a 1x1 convolution and BN.

    Attributes:
      size: k.
    """

    LAST_NORM = ('dil', 'norm')

    size: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        layers = _DepthwiseSeparable(
            self.channels, self.norm, self.size, 2, stride=self.stride, name='dil'
        )
        return layers(x, train)


class _DepthwiseSeparable(Operation):
    """Applies ReLU, a depthwise kxk convolution, a 1x1 convolution and BN.

    Attributes:
      size: k.
      dilation: distance between the taps of the depthwise convolution.
    """

    size: int
    dilation: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        shape = (self.size, self.size, 1, self.channels)
        kernel = self.param('depthwise', _KERNEL_INIT, shape, jnp.float32)
        x = conv.relu_depthwise_conv(x, kernel.astype(x.dtype), self.dilation, self.stride)
        x = pointwise(self.channels, x.dtype, 'pointwise')(x)
        return self.norm(use_running_average=not train, name='norm')(x)


def pointwise(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """Makes a 1x1 convolution without bias: on channels-last images, a matrix product.

    Returns:
      A module that maps `[B, H, W, any]` to `[B, H, W, features]`.
    """
    return nn.Dense(
        features, use_bias=False, dtype=dtype, dot_general=conv_1x1.dot_general, name=name
    )


class CrossConv(Operation):
    """Applies ReLU, a 1xk convolution, a kx1 convolution and BN: a kxk receptive field.

    Attributes:
      size: k.
    """

    LAST_NORM = ('norm',)

    size: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`."""
        x = Conv(self.channels, (1, self.size), name='horizontal')(nn.relu(x))
        x = Conv(self.channels, (self.size, 1), self.stride, name='vertical')(x)
        return self.norm(use_running_average=not train, name='norm')(x)


class ReluConvNorm(Operation):
    """Applies ReLU, a kxk convolution and BN: `nor_conv` of NAS-Bench-201 (arXiv:2001.00326).

    Attributes:
      size: k.
    """

    LAST_NORM = ('norm',)

    size: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation, see `Operation`; the input may have any number of channels."""
        x = nn.relu(x)
        if self.size == 1:
            x = x[:, :: self.stride, :: self.stride]
            x = pointwise(self.channels, x.dtype, 'conv')(x)
        else:
            x = Conv(self.channels, (self.size, self.size), self.stride, name='conv')(x)
        return self.norm(use_running_average=not train, name='norm')(x)


class Conv(nn.Module):
    """Applies a convolution without bias, in the dtype of its input; the kernel is float32.

    Attributes:
      features: channels of the output.
      size: height and width of the kernel, odd.
      stride: distance between output pixels, in pixels of the input.
    """

    features: int
    size: tuple[int, int]
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[B, H, W, any]` to `[B, ceil(H / stride), ceil(W / stride), features]`."""
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', _KERNEL_INIT, shape, jnp.float32)
        return conv.conv(x, kernel.astype(x.dtype), self.stride)


# By name: the module, and its attributes beside those of `Operation`.
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

# Operations without parameters (except for skip_connect with stride 2). A search that chooses
# almost nothing else has collapsed, the usual way in which differentiable searches fail.
PARAMETER_FREE = frozenset({'none', 'avg_pool_3x3', 'max_pool_3x3', 'skip_connect'})

# Key of the scalar in the `params` of an operation by which its output is multiplied.
FACTOR = 'factor'


def make(
    name: str, channels: int, norm: Callable[..., nn.Module], stride: int = 1, **options: Any
) -> Operation:
    """Makes the module of the operation `name`; options are those of `nn.Module`."""
    module, attributes = PRIMITIVES[name]
    return module(channels=channels, norm=norm, stride=stride, **attributes, **options)


def scale(weight: Array, y: Array) -> Array:
    """Multiplies an array by a scalar, in the dtype of the array."""
    return weight.astype(y.dtype).reshape((1,) * y.ndim) * y


@functools.cache
def pure_function(
    name: str,
    channels: int,
    norm: Callable[..., nn.Module],
    stride: int,
    train: bool,
    remat: bool,
) -> Callable[[Any, Any, Array], tuple[Array, Any]]:
    """Returns an operation as a pure function, with one trace for all calls of a shape.

    Args:
      name: key of `PRIMITIVES`.
      channels: of the images, in and out.
      norm: makes a BatchNorm, see `Operation`; hashable.
      stride: 1 or 2.
      train: whether BatchNorm uses and updates the statistics of the batch.
      remat: whether the backward pass recomputes the operation from its input, to save memory.

    Returns:
      `f(params, stats, x) -> (y, stats)`, with the trees of the module in `params` and
      `batch_stats`. If `params` has a `FACTOR`, the output is multiplied by that.
    """
    operation = make(name, channels, norm, stride, parent=None)

    def apply(params: Any, stats: Any, x: Array) -> tuple[Array, Any]:
        own = {key: tree for key, tree in params.items() if key != FACTOR}
        variables = {'params': own, 'batch_stats': stats}
        if train:
            y, changed = operation.apply(variables, x, train, mutable=['batch_stats'])
            stats = changed.get('batch_stats', stats)
        else:
            y = cast(Array, operation.apply(variables, x, train))
        return (scale(params[FACTOR], y) if FACTOR in params else y), stats

    if remat:
        apply = jax.checkpoint(apply, prevent_cse=False)
    return jax.jit(apply)
