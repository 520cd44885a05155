"""Pooling in the form that is fast on the platform it is compiled for.

On the CPU the gradient of XLA's own max pooling is 20 times slower than comparing stored indices of
the largest pixels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from asose_jax.nn.cpu.conv import outlined_jit, upsample_with_zeros


def max_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Computes the largest valid 3x3 neighbour of every `stride`-th pixel.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]`, in the dtype of `x`.
    """
    return lax.platform_dependent(
        x,
        cpu=lambda x: _max_of_shifts(x, stride, x.shape),
        default=lambda x: nn.max_pool(
            x,
            (3, 3),
            (stride, stride),
            ((1, 1), (1, 1)),  # pyright: ignore[reportArgumentType]  # Flax takes pairs too
        ),
    )


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Computes the largest of every 2x2 pixels, without overlap: half the size, rounded up."""
    border = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
    padded = jnp.pad(x, border, constant_values=-jnp.inf)
    corners = [padded[:, i::2, j::2] for i in range(2) for j in range(2)]
    # Not `max` over axes: its gradient searches for the entry equal to the maximum, and is NaN if
    # the compiler computed x twice with different rounding.
    return functools.reduce(jnp.maximum, corners)


def avg_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Computes the mean of the valid 3x3 neighbours of every `stride`-th pixel.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]`, in the dtype of `x`; padding does not count.
    """
    return _mean(x, stride, x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _mean(x: jax.Array, stride: int, shape: tuple[int, ...]) -> jax.Array:
    return _mean_forward(x, stride, shape)[0]


def _mean_forward(x: jax.Array, stride: int, shape: tuple[int, ...]) -> tuple[jax.Array, None]:
    return _total(x, stride) / _count(shape, stride, x.dtype), None


def _mean_backward(stride: int, shape: tuple[int, ...], _: None, g: jax.Array) -> tuple[jax.Array]:
    # A sum over neighbours is its own transpose. On the CPU it is a computation of its own, because
    # XLA would otherwise divide g nine times.
    spread = upsample_with_zeros(g / _count(shape, stride, g.dtype), shape, stride)
    return (
        lax.platform_dependent(
            spread, cpu=lambda g: _total_alone(g, 1), default=lambda g: _total(g, 1)
        ),
    )


_mean.defvjp(_mean_forward, _mean_backward)


def _total(x: jax.Array, stride: int) -> jax.Array:
    return functools.reduce(jnp.add, neighbours(x, 0, stride))


_total_alone = outlined_jit(_total, static_argnums=1)


def _count(shape: tuple[int, ...], stride: int, dtype: DTypeLike) -> jax.Array:
    """Counts the valid 3x3 neighbours of every `stride`-th pixel, `[1, H', W', 1]`."""
    ones = jnp.ones((1, *shape[1:3], 1), dtype)
    return functools.reduce(jnp.add, neighbours(ones, 0, stride))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_of_shifts(x: jax.Array, stride: int, shape: tuple[int, ...]) -> jax.Array:
    del shape
    return functools.reduce(jnp.maximum, neighbours(x, -jnp.inf, stride))


@functools.partial(outlined_jit, static_argnums=1)
def _max_and_winner(x: jax.Array, stride: int) -> tuple[jax.Array, jax.Array]:
    """Returns the largest neighbour of each pixel, and the int8 number of its shift."""
    first, *rest = neighbours(x, -jnp.inf, stride)
    largest, winner = first, jnp.zeros(first.shape, jnp.int8)
    for i, shifted in enumerate(rest, start=1):
        winner = jnp.where(shifted > largest, jnp.int8(i), winner)
        largest = jnp.maximum(largest, shifted)
    return largest, winner


def _max_forward(x: jax.Array, stride: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    del shape
    return _max_and_winner(x, stride)


def _max_backward(
    stride: int, shape: tuple[int, ...], winner: jax.Array, g: jax.Array
) -> tuple[jax.Array]:
    return (
        _to_winners(
            upsample_with_zeros(winner, shape, stride), upsample_with_zeros(g, shape, stride)
        ),
    )


@outlined_jit
def _to_winners(winner: jax.Array, g: jax.Array) -> jax.Array:
    """Adds each gradient to the pixel that was the largest."""
    # If shift i leads from a pixel to its neighbour, the opposite shift, 8 - i, leads back.
    gs, winners = neighbours(g, 0), neighbours(winner, -1)
    shares = [jnp.where(winners[8 - i] == i, gs[8 - i], 0) for i in range(9)]
    return functools.reduce(jnp.add, shares)


_max_of_shifts.defvjp(_max_forward, _max_backward)


def neighbours(x: jax.Array, fill: float, stride: int = 1) -> list[jax.Array]:
    """Shifts images by at most one pixel along each axis, in the nine possible ways.

    Args:
      x: images `[B, H, W, C]`.
      fill: value of pixels beyond the border.
      stride: distance between output pixels, in pixels of the input.

    Returns:
      Nine arrays `[B, ceil(H / stride), ceil(W / stride), C]`, row by row of the 3x3 window.
    """
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
