"""Trees of arrays as one vector for each dtype, and back.

A loop over a hundred small arrays is a hundred loops for XLA to compile and for a device to start;
over one vector it is one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = Any
Vectors = dict[str, jax.Array]


class Packing:
    """The layout of trees that have the structure, shapes and dtypes of `like`."""

    def __init__(self, like: Tree):
        leaves, self.structure = jax.tree.flatten(like)
        self._leaves = tuple((jnp.dtype(leaf.dtype).name, tuple(leaf.shape)) for leaf in leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packing) and self._known() == other._known()

    def __hash__(self) -> int:
        return hash(self._known())

    def _known(self):
        return self.structure, self._leaves

    def pack(self, tree: Tree) -> Vectors:
        """Returns a vector for each dtype, with the arrays of `tree` one after another.

        Arrays on the host stay there.
        """
        parts, leaves = {}, jax.tree.leaves(tree)
        for (kind, _), leaf in zip(self._leaves, leaves, strict=True):
            parts.setdefault(kind, []).append(leaf.reshape(-1))
        join = jnp if any(isinstance(leaf, jax.Array) for leaf in leaves) else np
        return {kind: join.concatenate(vectors) for kind, vectors in parts.items()}

    def unpack(self, vectors: Vectors) -> Tree:
        """Returns the tree that `pack` was given; of vectors on the host, views."""
        parts = {kind: iter(self._cut(kind, vector)) for kind, vector in vectors.items()}
        return self.structure.unflatten(
            [next(parts[kind]).reshape(shape) for kind, shape in self._leaves]
        )

    def _cut(self, kind, vector):
        sizes = [math.prod(shape) for other, shape in self._leaves if other == kind]
        if isinstance(vector, jax.Array):
            return lax.split(vector, sizes)
        return np.split(vector, np.cumsum(sizes)[:-1])
