"""The supernet of the `chain` space, and the derived networks: one module, fixed by its NetSpec.

Collections: `params` (weights), `arch` (alpha, one row per mixed operation), `batch_stats`, and
`guard` (how many rows the weight guard caught in this call).
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax import norm, ops
from asose_jax.genotype import BlockSpec, NetSpec, needs_transition
from asose_jax.mixed import MixedOp, Mode, SearchSettings, scale

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Norm:
    """Makes the BatchNorm of every layer; equal ones share compiled code."""

    dtype: str
    synced_over: str | None

    def __call__(self, *, use_running_average: bool, name: str) -> norm.BatchNorm:
        return norm.BatchNorm(
            use_running_average,
            dtype=jnp.dtype(self.dtype),
            axis_name=self.synced_over,
            name=name,
        )


class Block(nn.Module):
    """`y = x + sum_b gate_b * mixed_b(x)`, after a 1x1 convolution where shape or width changes.

    The residual is always there: no sampled operation cuts the network, and a block whose gates are
    zero is the identity (spec section 2).
    """

    spec: BlockSpec
    norm: Callable[..., nn.Module]
    settings: SearchSettings

    @nn.compact
    def __call__(self, x: Array, tau: Array | float, mode: Mode, train: bool) -> Array:
        width = self.spec.channels
        if needs_transition(self.spec, x.shape[-1]):
            x = x[:, :: self.spec.stride, :: self.spec.stride]
            x = ops.pointwise(width, x.dtype, 'transition')(x)
            x = self.norm(use_running_average=not train, name='transition_norm')(x)
        y = x
        for i, candidates in enumerate(self.spec.branches):
            mixed = MixedOp(candidates, width, self.norm, self.settings, name=f'branch_{i}')
            gate = self.param(f'gate_{i}', nn.initializers.ones, (), jnp.float32)
            y += scale(gate, mixed(x, tau, mode, train))
        return y


class SuperNet(nn.Module):
    """stem - blocks - global average - linear.

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
        self, images: Array, tau: Array | float = 1.0, *, mode: Mode, train: bool
    ) -> Array:
        """Logits `[B, num_classes]` float32 of normalised images `[B, H, W, C]`."""
        dtype = jnp.dtype(self.dtype)
        make_norm = Norm(self.dtype, self.synced_over)
        x = ops.Conv(self.spec.stem_channels, (3, 3), name='stem')(images.astype(dtype))
        x = nn.relu(make_norm(use_running_average=not train, name='stem_norm')(x))
        for i, block in enumerate(self.spec.blocks):
            x = Block(block, make_norm, self.settings, name=f'block_{i}')(x, tau, mode, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.spec.num_classes, name='head')(x)
