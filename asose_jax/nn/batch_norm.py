"""Batch normalisation with as few passes over the images as possible.

Flax's module, differentiated step by step, passes over the images eight times. This one stores
nothing but its input for the backward pass, and reads it once for each pair of sums and once for
each result.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from asose_jax.nn.cpu import reductions

_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # x, scale, mean, 1 / std
_Terms = Callable[..., tuple[jax.Array, ...]]


class BatchNorm(nn.Module):
    """Computes `(x - mean) / sqrt(var + epsilon) * scale + bias` by channel (arXiv:1502.03167).

    Parameters, statistics and attributes have the names and meanings of `flax.linen.BatchNorm`;
    options of that module that are not used here are left out.

    Attributes:
      use_running_average: whether to normalise with the running statistics instead of those of the
        batch.
      momentum: decay of the running statistics.
      epsilon: added to the variance.
      dtype: of the result; statistics are float32.
      axis_name: name of the mapped axis over which statistics are averaged, if any.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises images `[B, H, W, C]`, and updates the running statistics in training."""
        channels = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        if self.use_running_average:
            inverse = lax.rsqrt(var.value + self.epsilon)
            return _affine(x, scale * inverse, bias - scale * inverse * mean.value, self.dtype)
        axis = None if self.is_initializing() else self.axis_name
        results = normalise(x, scale, bias, self.epsilon, self.dtype, axis)
        # `custom_vjp` hides the type of the results.
        y, batch_mean, batch_var = cast(tuple[jax.Array, jax.Array, jax.Array], results)
        if not self.is_initializing():
            for running, now in ((mean, batch_mean), (var, batch_var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * now
        return y


@dataclasses.dataclass(frozen=True)
class Norm:
    """Makes the BatchNorm of every layer; layers with equal factories share compiled code.

    Attributes:
      dtype: name of the dtype of the results.
      synced_over: name of the mapped axis over which statistics are averaged, if any.
    """

    dtype: str
    synced_over: str | None

    def __call__(self, *, use_running_average: bool, name: str) -> BatchNorm:
        """Makes a BatchNorm called `name`."""
        return BatchNorm(
            use_running_average,
            dtype=jnp.dtype(self.dtype),
            axis_name=self.synced_over,
            name=name,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: DTypeLike,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises with the statistics of the batch.

    Args:
      x: images `[B, H, W, C]`.
      scale: `[C]` float32.
      bias: `[C]` float32.
      epsilon: added to the variance.
      dtype: of the result.
      axis_name: name of the mapped axis over which statistics are averaged, or `None`.

    Returns:
      The result `[B, H, W, C]` in `dtype`, then mean and variance of the batch, `[C]` float32. The
      statistics pass no gradient.
    """
    return _forward(x, scale, bias, epsilon, dtype, axis_name)[0]


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: DTypeLike,
    axis_name: str | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], _Residuals]:
    mean, square = _means(lambda x: (x, x * x), axis_name, x)
    var = jnp.maximum(0, square - mean * mean)
    inverse = lax.rsqrt(var + epsilon)
    y = _affine(x, scale * inverse, bias - scale * inverse * mean, dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _backward(
    epsilon: float,
    dtype: DTypeLike,
    axis_name: str | None,
    residuals: _Residuals,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    del epsilon, dtype
    x, scale, mean, inverse = residuals
    g = cotangents[0]
    pixels = x.size // x.shape[-1]
    # The gradients of scale and bias are those of this device; the training step averages them.
    local = _means(lambda g, x: (g, g * x), None, g, x)
    dscale, dbias = pixels * inverse * (local[1] - mean * local[0]), pixels * local[0]
    g_mean, gx_mean = local if axis_name is None else lax.pmean(local, axis_name)
    # dx = scale / std * (g - mean(g) - x_hat * mean(g * x_hat)), as a sum of g, x and a constant.
    g_factor = scale * inverse
    x_factor = -g_factor * inverse * inverse * (gx_mean - mean * g_mean)
    constant = -g_factor * g_mean - x_factor * mean
    dx = _by_channel(g_factor) * g.astype(jnp.float32)
    dx = dx + _by_channel(x_factor) * x.astype(jnp.float32)
    return (dx + _by_channel(constant)).astype(x.dtype), dscale, dbias


normalise.defvjp(_forward, _backward)


def _affine(x: jax.Array, factor: jax.Array, offset: jax.Array, dtype: DTypeLike) -> jax.Array:
    return (x.astype(jnp.float32) * _by_channel(factor) + _by_channel(offset)).astype(dtype)


def _by_channel(numbers: jax.Array) -> jax.Array:
    return numbers.reshape(1, 1, 1, -1)


def _means(terms: _Terms, axis_name: str | None, *images: jax.Array) -> tuple[jax.Array, ...]:
    """Computes means over batch and space in one pass.

    Args:
      terms: maps images in float32 to the arrays whose means are wanted; elementwise.
      axis_name: name of the mapped axis over which to average as well, or `None`.
      *images: arrays `[B, H, W, C]` of one shape.

    Returns:
      The mean of each term, `[C]` float32.
    """
    pixels = images[0].size // images[0].shape[-1]

    def plain(*images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(term.sum((0, 1, 2)) for term in terms(*images))

    wide = [image.astype(jnp.float32) for image in images]
    totals = lax.platform_dependent(*wide, cpu=functools.partial(_sums, terms), default=plain)
    means = tuple(total / pixels for total in totals)
    return means if axis_name is None else lax.pmean(means, axis_name)


def _sums(terms: _Terms, *images: jax.Array) -> tuple[jax.Array, ...]:
    """Sums terms over batch and space: first groups of a few rows, then these partial sums."""
    batch, height, width, channels = images[0].shape
    group = reductions.rows_at_once(batch * height)
    rows = [image.reshape(-1, group, width * channels) for image in images]
    totals = reductions.sum_together(terms(*rows), axis=1)
    return tuple(total.reshape(-1, channels).sum(0) for total in totals)
