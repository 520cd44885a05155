"""Pooling, in the form that is fast on the platform it is compiled for.

On the CPU the gradient of XLA's own max pooling is 20 times slower than a comparison of remembered
indices.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asose_jax.nn.cpu.conv import outlined, spread


def max_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Largest of the valid 3x3 neighbours of every `stride`-th pixel of `[B, H, W, C]`."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: _max_of_shifts(x, stride, x.shape),
        default=lambda x: nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1))),
    )


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Largest of every 2x2 pixels of `[B, H, W, C]`: half the size, rounded up."""
    border = ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0))
    padded = jnp.pad(x, border, constant_values=-jnp.inf)
    corners = [padded[:, i::2, j::2] for i in range(2) for j in range(2)]
    # Not `max` over axes: its gradient looks for the largest number, and is NaN where the compiler
    # has computed x twice, not quite alike.
    return functools.reduce(jnp.maximum, corners)


def avg_pool(x: jax.Array, stride: int = 1) -> jax.Array:
    """Mean of the valid 3x3 neighbours of every `stride`-th pixel; padding is not counted."""
    return _mean(x, stride, x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _mean(x, stride, shape):
    return _mean_forward(x, stride, shape)[0]


def _mean_forward(x, stride, shape):
    return _total(x, stride) / _count(shape, stride, x.dtype), None


def _mean_backward(stride, shape, _, g):
    # A sum over neighbours is its own transpose; by itself, or XLA divides g nine times.
    return (_total_alone(spread(g / _count(shape, stride, g.dtype), shape, stride), 1),)


_mean.defvjp(_mean_forward, _mean_backward)


def _total(x, stride):
    return functools.reduce(jnp.add, neighbours(x, 0, stride))


_total_alone = outlined(_total, static_argnums=1)


def _count(shape, stride, dtype):
    ones = jnp.ones((1, *shape[1:3], 1), dtype)
    return functools.reduce(jnp.add, neighbours(ones, 0, stride))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_of_shifts(x, stride, shape):
    del shape
    return functools.reduce(jnp.maximum, neighbours(x, -jnp.inf, stride))


@functools.partial(outlined, static_argnums=1)
def _max_and_winner(x, stride):
    first, *rest = neighbours(x, -jnp.inf, stride)
    largest, winner = first, jnp.zeros(first.shape, jnp.int8)
    for i, shifted in enumerate(rest, start=1):
        winner = jnp.where(shifted > largest, jnp.int8(i), winner)
        largest = jnp.maximum(largest, shifted)
    return largest, winner


def _max_forward(x, stride, shape):
    del shape
    return _max_and_winner(x, stride)


def _max_backward(stride, shape, winner, g):
    return (_to_winners(spread(winner, shape, stride), spread(g, shape, stride)),)


@outlined
def _to_winners(winner, g):
    # Shift i of x reaches a pixel's neighbour; the opposite shift, 8 - i, brings its gradient home.
    gs, winners = neighbours(g, 0), neighbours(winner, -1)
    shares = [jnp.where(winners[8 - i] == i, gs[8 - i], 0) for i in range(9)]
    return functools.reduce(jnp.add, shares)


_max_of_shifts.defvjp(_max_forward, _max_backward)


def neighbours(x: jax.Array, fill: float, stride: int = 1) -> list[jax.Array]:
    """The nine shifts of `x` `[B, H, W, C]` by at most one pixel, with `fill` beyond the border.

    Of each, every `stride`-th pixel.
    """
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
