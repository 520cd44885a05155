"""Gumbel-Softmax draws of architecture weights, their guard, thresholds and temperature.

All functions work on rows of K architecture logits (alpha) in float32, whatever dtype the network
computes in. Sources: Jang et al. 2017 (Gumbel-Softmax, arXiv:1611.01144, eq. 2); Maddison et al.
2017 (arXiv:1611.00712). See docs/algorithm.md, "Drawing operations", "Guards", "Temperature" and
"Mixtures and thresholds".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Thresholds(NamedTuple):
    """Holds the limits below which `apply_thresholds` leaves candidates out of a mixture.

    See docs/algorithm.md, "Mixtures and thresholds".

    Attributes:
      alone: if the largest weight is above this, only that candidate is computed, with weight 1.
      dominant: if the largest weight is above this, `beside_dominant` is the limit for the others.
      beside_dominant: smallest weight that counts beside a dominant one.
      minor: smallest weight that counts otherwise.
      least_sum: if the weights that are left sum to less, the fallback is computed instead.
    """

    alone: float
    dominant: float
    beside_dominant: float
    minor: float
    least_sum: float


def gumbel_softmax(
    alpha: jax.Array, key: jax.Array, tau: float | jax.Array, *, hard: bool, noise: str
) -> jax.Array:
    """Draws architecture weights from logits.

    `noise='unit'` is the published formula, softmax((alpha + g) / tau). Its hard draws follow
    softmax(alpha) *whatever tau is*: the argmax does not depend on tau, which only shapes the
    gradient. `noise='temperature'` scales the noise too, softmax((alpha + tau * g) / tau), so that
    hard draws follow softmax(alpha / tau): near uniform for large tau, near argmax for small tau.

    Args:
      alpha: logits `[..., K]`.
      key: random key of the draw.
      tau: temperature, positive.
      hard: whether to return the one-hot of the largest weight, with the straight-through gradient
        of the soft weights.
      noise: `'unit'` or `'temperature'`.

    Returns:
      Weights `[..., K]`, float32; each row sums to 1.

    Raises:
      ValueError: `noise` is neither of the two.

    Example:
      With alpha = (1, 0) and tau = 0.1, `'unit'` draws the first candidate in 73 % of the draws and
      `'temperature'` in 99.995 %.
    """
    logits = _perturbed(alpha.astype(jnp.float32), key, tau, noise)
    soft = jax.nn.softmax(logits)
    if not hard:
        return soft
    # The bracket is exactly zero, so the value is exactly one-hot and the gradient that of `soft`.
    return _one_hot_of_largest(logits) + (soft - jax.lax.stop_gradient(soft))


def guarded_weights(
    alpha: jax.Array,
    draw: Callable[[jax.Array], jax.Array],
    *,
    fallback: int,
    tau: float | jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Draws architecture weights; a row with a NaN or Inf becomes the one-hot of `fallback`.

    In such a row `draw` gets zeros, because the outer `where` alone would pass 0 * NaN = NaN
    backward; so the gradient of a guarded row is zero. Nothing branches on the data
    (docs/algorithm.md, "Guards").

    Args:
      alpha: logits `[..., K]`.
      draw: maps float32 logits to weights `[..., K]`.
      fallback: index of the candidate that a guarded row chooses.
      tau: positive temperature by which `draw` divides the logits; the quotients must be finite,
        too.

    Returns:
      Weights `[..., K]` float32, and which rows were guarded `[...]` bool.
    """
    logits, tripped = zero_nonfinite_rows(alpha, tau)
    weights = draw(logits)
    safe = jax.nn.one_hot(fallback, alpha.shape[-1], dtype=jnp.float32)
    return jnp.where(tripped, safe, weights), tripped[..., 0]


def zero_nonfinite_rows(
    logits: jax.Array, tau: float | jax.Array = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Replaces rows whose softmax is not finite by zeros; such a row gets no gradient.

    Args:
      logits: `[..., K]`.
      tau: temperature of that softmax, positive.

    Returns:
      Logits `[..., K]` float32, and which rows were replaced `[..., 1]` bool.
    """
    logits = logits.astype(jnp.float32)
    probe = jax.nn.softmax(jax.lax.stop_gradient(logits / tau))
    tripped = ~jnp.isfinite(probe).all(-1, keepdims=True)
    return jnp.where(tripped, 0.0, logits), tripped


def _perturbed(logits: jax.Array, key: jax.Array, tau: float | jax.Array, noise: str) -> jax.Array:
    """Adds Gumbel noise to logits and divides by tau, in the order that `noise` selects."""
    gumbel = jax.random.gumbel(key, logits.shape, jnp.float32)
    if noise == 'unit':
        return (logits + gumbel) / tau
    if noise == 'temperature':
        return logits / tau + gumbel
    raise ValueError(f"noise must be 'unit' or 'temperature', not {noise!r}")


def _one_hot_of_largest(logits: jax.Array) -> jax.Array:
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=jnp.float32)


def apply_thresholds(weights: jax.Array, thresholds: Thresholds, fallback: int) -> jax.Array:
    """Sets weights to zero that are too small to be worth computing.

    If the largest is above `alone`: all but that one, which gets weight 1. Else, if it is above
    `dominant`: all others up to `beside_dominant`. Else: all up to `minor`. If the rest sums to
    less than `least_sum`: all but `fallback`, which gets weight 1 (docs/algorithm.md, "Mixtures and
    thresholds").

    Args:
      weights: one row `[K]` that sums to 1.
      thresholds: the five limits.
      fallback: index of the candidate to use if too little is left.

    Returns:
      `[K]` float32; not renormalised.
    """
    largest = weights.max(-1)
    is_largest = _one_hot_of_largest(weights)
    is_beside = (is_largest > 0) | (weights > thresholds.beside_dominant)
    is_kept = jnp.where(largest > thresholds.dominant, is_beside, weights > thresholds.minor)
    remaining = jnp.where(is_kept, weights, 0.0)
    remaining = jnp.where(largest > thresholds.alone, is_largest, remaining)
    safe = jax.nn.one_hot(fallback, weights.shape[-1], dtype=jnp.float32)
    return jnp.where(remaining.sum(-1) < thresholds.least_sum, safe, remaining)


def anneal_tau(
    decays: int | jax.Array, start: float, rate: float, floor: float
) -> float | jax.Array:
    """Returns the temperature max(floor, start * rate**decays).

    See docs/algorithm.md, "Temperature".

    Args:
      decays: number of decays so far. A Python integer is computed on the host, so that nothing has
        to wait for a busy device.
      start: temperature before the first decay.
      rate: factor of each decay, at most 1.
      floor: smallest temperature.

    Returns:
      A Python float for a Python integer, else a float32 array like `decays`.
    """
    if isinstance(decays, int):
        return max(floor, start * rate**decays)
    return jnp.maximum(floor, start * jnp.power(rate, decays.astype(jnp.float32)))
