"""The network of a description, supernet or derived: one module for every space.

Collections: `params` (weights), `arch` (alpha, see `mixed.Choice`), `batch_stats`, and `guard` (how
many rows the weight guard caught in this call).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax import spaces
from asose_jax.forward import Forward, Mode, SearchSettings
from asose_jax.genotype import NetSpec
from asose_jax.norm import Norm

Array = jax.Array


class SuperNet(nn.Module):
    """The body of the space - global average - linear.

    Attributes:
      spec: what is built.
      settings: of alpha and its draws.
      dtype: of activations, `'float32'` or `'bfloat16'`. Parameters, BatchNorm statistics, alpha,
        the draw and the logits are float32 in either case.
      synced_over: name of the mapped axis over which BatchNorm pools its statistics, if any.
    """

    spec: NetSpec
    settings: SearchSettings = SearchSettings()
    dtype: str = 'float32'
    synced_over: str | None = None

    @nn.compact
    def __call__(
        self,
        images: Array,
        tau: Array | float = 1.0,
        *,
        beta: Array | float = 0.0,
        mode: Mode,
        train: bool,
    ) -> Array:
        """Logits `[B, num_classes]` float32 of normalised images `[B, H, W, C]`."""
        norm, partial = Norm(self.dtype, self.synced_over), self.spec.partial
        forward = Forward(norm, self.settings, mode, train, tau, beta, partial)
        body = spaces.SPACES[self.spec.SPACE].body
        *_, x = body(self.spec, forward, images.astype(self.dtype))
        x = x.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.spec.num_classes, name='head')(x)
