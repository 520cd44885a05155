"""Architecture weights: Gumbel-Softmax draws, their temperature, their guards.

Everything here works on rows of K architecture logits (alpha) in float32, whatever the network
computes in. Sources: Jang et al. 2017 (Gumbel-Softmax, arXiv:1611.01144, eq. 2); Maddison et al.
2017 (arXiv:1611.00712); spec sections 3-5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Thresholds(NamedTuple):
    """When operations of small weight are left out of a soft mixture (spec section 5)."""

    alone: float = 0.95
    dominant: float = 0.8
    beside_dominant: float = 0.05
    minor: float = 0.02
    least_sum: float = 0.1


def gumbel_softmax(
    alpha: jax.Array,
    key: jax.Array | None = None,
    tau: float | jax.Array = 1.0,
    *,
    hard: bool = True,
    noise: str = 'unit',
) -> jax.Array:
    """Draws architecture weights from logits.

    `noise='unit'` is the published formula, softmax((alpha + g) / tau). Its hard draws follow
    softmax(alpha) *whatever tau is*: the argmax does not see tau, which only shapes the gradient.
    `noise='temperature'` scales the noise too, softmax((alpha + tau * g) / tau), so that hard draws
    follow softmax(alpha / tau): near uniform for large tau, near argmax for small tau.

    Args:
      alpha: logits `[..., K]`.
      key: randomness of the draw; `None` evaluates: the one-hot of the largest alpha, no noise.
      tau: temperature, positive.
      hard: one-hot of the largest, with the straight-through gradient of the soft weights.
      noise: `'unit'` or `'temperature'`.

    Returns:
      Weights `[..., K]`, float32; each row sums to 1.
    """
    logits = alpha.astype(jnp.float32)
    if key is None:
        return _one_hot_of_largest(logits)
    return _weights(_perturbed(logits, key, tau, noise), hard)


def guarded_weights(
    alpha: jax.Array,
    draw: Callable[[jax.Array], jax.Array],
    *,
    fallback: int,
    tau: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Architecture weights, in which a row with a NaN or Inf becomes the one-hot of `fallback`.

    What draws is fed zeros in a guarded row, since `where` alone would pass 0 * NaN = NaN
    backward: the gradient of a guarded row is zero. No branch on the data (spec section 4).

    Args:
      alpha: logits `[..., K]`.
      draw: makes weights `[..., K]` of float32 logits.
      fallback: index of the operation that a guarded row chooses.
      tau: positive temperature that logits will be divided by; the quotients must be finite, too.

    Returns:
      Weights `[..., K]` float32, and which rows were guarded `[...]` bool.
    """
    logits, tripped = guarded(alpha, tau)
    weights = draw(logits)
    safe = jax.nn.one_hot(fallback, alpha.shape[-1], dtype=jnp.float32)
    return jnp.where(tripped, safe, weights), tripped[..., 0]


def guarded(logits: jax.Array, tau: float | jax.Array = 1.0) -> tuple[jax.Array, jax.Array]:
    """Logits `[..., K]` float32, zeros in rows whose softmax, with `tau`, is not finite.

    Such a row gets no gradient. Which they are comes beside, `[..., 1]` bool.
    """
    logits = logits.astype(jnp.float32)
    probe = jax.nn.softmax(jax.lax.stop_gradient(logits / tau))
    tripped = ~jnp.isfinite(probe).all(-1, keepdims=True)
    return jnp.where(tripped, 0.0, logits), tripped


def _perturbed(logits, key, tau, noise):
    gumbel = jax.random.gumbel(key, logits.shape, jnp.float32)
    if noise == 'unit':
        return (logits + gumbel) / tau
    if noise == 'temperature':
        return logits / tau + gumbel
    raise ValueError(f"noise must be 'unit' or 'temperature', not {noise!r}")


def _weights(logits, hard):
    soft = jax.nn.softmax(logits)
    if not hard:
        return soft
    # The bracket is exactly zero, so the value is exactly one-hot and the gradient that of `soft`.
    return _one_hot_of_largest(logits) + (soft - jax.lax.stop_gradient(soft))


def _one_hot_of_largest(logits):
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=jnp.float32)


def drop_small(weights: jax.Array, thresholds: Thresholds, fallback: int) -> jax.Array:
    """Sets weights to zero that are too small to be worth computing (spec section 5).

    The largest above `alone`: that one only, with weight 1. Above `dominant`: it and those above
    `beside_dominant`. Else: those above `minor`. If less than `least_sum` is left: `fallback` only.

    Args:
      weights: one row `[K]` that sums to 1.
      thresholds: the five limits.
      fallback: index of the operation that stands in.

    Returns:
      `[K]` float32; not renormalised.
    """
    largest = weights.max(-1)
    is_largest = jax.nn.one_hot(jnp.argmax(weights, -1), weights.shape[-1], dtype=jnp.float32)
    beside = (is_largest > 0) | (weights > thresholds.beside_dominant)
    keep = jnp.where(largest > thresholds.dominant, beside, weights > thresholds.minor)
    kept = jnp.where(keep, weights, 0.0)
    kept = jnp.where(largest > thresholds.alone, is_largest, kept)
    safe = jax.nn.one_hot(fallback, weights.shape[-1], dtype=jnp.float32)
    return jnp.where(kept.sum(-1) < thresholds.least_sum, safe, kept)


def anneal_tau(
    decays: int | jax.Array, start: float = 0.8, rate: float = 0.98, floor: float = 0.1
) -> float | jax.Array:
    """Temperature after a number of decays: max(floor, start * rate**decays) (spec section 3).

    Python numbers give a Python number, so that the host need not ask a device that is busy.
    """
    if isinstance(decays, int):
        return max(floor, start * rate**decays)
    return jnp.maximum(floor, start * jnp.power(rate, decays.astype(jnp.float32)))
