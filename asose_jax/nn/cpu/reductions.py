"""Several sums in one pass over memory.

XLA's CPU backend merges sums into one loop over vector registers when, and only when, they are one
`lax.reduce` with many results.
"""

import jax
import jax.numpy as jnp
from jax import lax

_ROWS_ADDED = 8  # at once: compiled without a loop, and so in registers


def together(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
    """The sum of each of these float32 arrays of one shape along `axis`."""
    return lax.reduce(arrays, (jnp.float32(0),) * len(arrays), _added, (axis,))


def _added(a, b):
    return tuple(p + q for p, q in zip(a, b, strict=True))


def rows_at_once(rows: int) -> int:
    """How many of so many rows to add up at once: a divisor."""
    return max(n for n in range(1, _ROWS_ADDED + 1) if rows % n == 0)
