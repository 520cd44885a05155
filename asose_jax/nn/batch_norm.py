"""Batch normalisation that reads its images as seldom as can be.

Flax's module, differentiated step by step, passes over the images eight times; this one keeps
nothing but its input, and reads it once for each pair of sums and once for each result.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asose_jax.nn.cpu import reductions


class BatchNorm(nn.Module):
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, for each channel (arXiv:1502.03167).

    The names and meanings of `flax.linen.BatchNorm`, as far as they are used here.

    Attributes:
      use_running_average: of the statistics, instead of those of the batch.
      momentum: of the running statistics.
      epsilon: added to the variance.
      dtype: of the result; statistics are float32.
      axis_name: name of the mapped axis over which statistics are pooled, if any.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to the same shape."""
        channels = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, channels, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
        var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
        if self.use_running_average:
            inverse = lax.rsqrt(var.value + self.epsilon)
            return _affine(x, scale * inverse, bias - scale * inverse * mean.value, self.dtype)
        axis = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_var = normalise(x, scale, bias, self.epsilon, self.dtype, axis)
        if not self.is_initializing():
            for running, now in ((mean, batch_mean), (var, batch_var)):
                running.value = self.momentum * running.value + (1 - self.momentum) * now
        return y


@dataclasses.dataclass(frozen=True)
class Norm:
    """Makes the BatchNorm of every layer; equal ones share compiled code."""

    dtype: str
    synced_over: str | None

    def __call__(self, *, use_running_average: bool, name: str) -> BatchNorm:
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
    dtype: Any,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises with the statistics of the batch.

    Args:
      x: images `[B, H, W, C]`.
      scale: `[C]` float32.
      bias: `[C]` float32.
      epsilon: added to the variance.
      dtype: of the result.
      axis_name: mapped axis over which statistics are pooled, or `None`.

    Returns:
      The result, like `x`; mean and variance of the batch, `[C]` float32, which pass no gradient.
    """
    return _forward(x, scale, bias, epsilon, dtype, axis_name)[0]


def _forward(x, scale, bias, epsilon, dtype, axis_name):
    mean, square = _means(lambda x: (x, x * x), axis_name, x)
    var = jnp.maximum(0, square - mean * mean)
    inverse = lax.rsqrt(var + epsilon)
    y = _affine(x, scale * inverse, bias - scale * inverse * mean, dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _backward(epsilon, dtype, axis_name, residuals, cotangents):
    del epsilon, dtype
    x, scale, mean, inverse = residuals
    g = cotangents[0]
    pixels = x.size // x.shape[-1]
    own = _means(lambda g, x: (g, g * x), None, g, x)  # this device's: those of scale and bias
    dscale, dbias = pixels * inverse * (own[1] - mean * own[0]), pixels * own[0]
    g_mean, gx_mean = own if axis_name is None else lax.pmean(own, axis_name)
    # dx = scale / std * (g - mean(g) - x_hat * mean(g * x_hat)), as a sum of g, x and a constant.
    of_g = scale * inverse
    of_x = -of_g * inverse * inverse * (gx_mean - mean * g_mean)
    constant = -of_g * g_mean - of_x * mean
    dx = _by_channel(of_g) * g.astype(jnp.float32) + _by_channel(of_x) * x.astype(jnp.float32)
    return (dx + _by_channel(constant)).astype(x.dtype), dscale, dbias


normalise.defvjp(_forward, _backward)


def _affine(x, factor, offset, dtype):
    return (x.astype(jnp.float32) * _by_channel(factor) + _by_channel(offset)).astype(dtype)


def _by_channel(numbers):
    return numbers.reshape(1, 1, 1, -1)


def _means(terms, axis_name, *images):
    """Means over batch and space, `[C]` float32 each, of the terms that are made of the images."""
    pixels = images[0].size // images[0].shape[-1]

    def plain(*images):
        return tuple(term.sum((0, 1, 2)) for term in terms(*images))

    images = [image.astype(jnp.float32) for image in images]
    own = functools.partial(_sums, terms)
    totals = lax.platform_dependent(*images, cpu=own, default=plain)
    means = tuple(total / pixels for total in totals)
    return means if axis_name is None else lax.pmean(means, axis_name)


def _sums(terms, *images):
    """Sums of a few rows of pixels at once, then of what is left, a small part."""
    batch, height, width, channels = images[0].shape
    added = reductions.rows_at_once(batch * height)
    rows = [image.reshape(-1, added, width * channels) for image in images]
    totals = reductions.together(terms(*rows), axis=1)
    return tuple(total.reshape(-1, channels).sum(0) for total in totals)
