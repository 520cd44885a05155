"""Packs trees of arrays into one vector for each dtype, and unpacks them.

A loop over a hundred small arrays is a hundred loops for XLA to compile and for a device to start;
over one vector it is one.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = Any
Vectors = dict[str, Any]  # an array on the host or on devices for each name of a dtype


class Packing:
    """Packs trees that have the structure, shapes and dtypes of one example.

    Example:
      packing = Packing(params)
      vectors = packing.pack(params)    # {'float32': [n]}
      params = packing.unpack(vectors)

    Args:
      like: the example, of arrays or of shapes.

    Attributes:
      structure: the tree structure of `like`.
    """

    def __init__(self, like: Tree) -> None:
        """Records the structure, shapes and dtypes of `like`."""
        leaves, self.structure = jax.tree.flatten(like)
        self._leaves = tuple((jnp.dtype(leaf.dtype).name, tuple(leaf.shape)) for leaf in leaves)

    def __eq__(self, other: object) -> bool:
        """Whether the other packs the same trees."""
        return isinstance(other, Packing) and self._key() == other._key()

    def __hash__(self) -> int:
        """Hashes structure, shapes and dtypes."""
        return hash(self._key())

    def _key(self) -> Hashable:
        return self.structure, self._leaves

    def pack(self, tree: Tree) -> Vectors:
        """Returns a vector for each dtype, with the arrays of `tree` one after another.

        They are NumPy vectors if all arrays are on the host.
        """
        parts, leaves = {}, jax.tree.leaves(tree)
        for (dtype, _), leaf in zip(self._leaves, leaves, strict=True):
            parts.setdefault(dtype, []).append(leaf.reshape(-1))
        numpy = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
        return {dtype: numpy.concatenate(vectors) for dtype, vectors in parts.items()}

    def unpack(self, vectors: Vectors) -> Tree:
        """Returns the tree that was packed into `vectors`; of NumPy vectors, views."""
        parts = {dtype: iter(self._split(dtype, vector)) for dtype, vector in vectors.items()}
        return self.structure.unflatten(
            [next(parts[dtype]).reshape(shape) for dtype, shape in self._leaves]
        )

    def _split(self, dtype: str, vector: jax.Array | np.ndarray) -> Sequence[Any]:
        """Splits the vector of a dtype into one vector for each array."""
        sizes = [math.prod(shape) for other, shape in self._leaves if other == dtype]
        if isinstance(vector, jax.Array):
            return lax.split(vector, sizes)
        return np.split(vector, np.cumsum(sizes)[:-1])
