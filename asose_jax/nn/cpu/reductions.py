"""Computes several sums in one pass over memory.

XLA's CPU backend merges sums into one loop over vector registers when, and only when, they are one
`lax.reduce` with many results.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Up to this many rows are added without a loop, and so in registers.
_ROWS_ADDED = 8


def sum_together(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
    """Sums float32 arrays of one shape along an axis, all in one `lax.reduce`."""
    return lax.reduce(arrays, (jnp.float32(0),) * len(arrays), _added, (axis,))


def _added(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(p + q for p, q in zip(a, b, strict=True))


def rows_at_once(rows: int) -> int:
    """Returns how many of `rows` rows to add up at once: their largest divisor up to 8."""
    return max(count for count in range(1, _ROWS_ADDED + 1) if rows % count == 0)
