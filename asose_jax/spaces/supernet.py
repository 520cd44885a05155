"""The network of a description, supernet or derived: one module for every space.

Collections: `params` (weights), `arch` (alpha, see `mixed_op.Choice`), `batch_stats`, `guard` (how
many rows the weight guard caught in this call), and `second_head` (its logits, in training).
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch.genotype import NetSpec
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Forward, Mode, SearchSettings
from asose_jax.spaces import registry

Array = jax.Array

SECOND_HEAD = 'second_head'  # in `params`; no part of the network that is used in the end


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
        mode: Mode,
        train: bool,
        beta: Array | float = 0.0,
        optimized: Array | float = 0.0,
        positions: Array | None = None,
    ) -> Array:
        """Logits `[B, num_classes]` float32 of normalised images `[B, H, W, C]`.

        What changes from step to step is described in `forward.Forward`.
        """
        norm = Norm(self.dtype, self.synced_over)
        now = {'tau': tau, 'beta': beta, 'optimized': optimized, 'positions': positions}
        forward = Forward(norm, self.settings, mode, train, self.spec.partial, **now)
        body = registry.SPACES[self.spec.SPACE].body
        features = list(body(self.spec, forward, images.astype(self.dtype)))
        if self.settings.second_head and (train or self.is_initializing()):
            head = SecondHead(self.spec.num_classes, norm, name=SECOND_HEAD)
            logits = head(features[2 * len(features) // 3], train)
            if train:
                self.sow('second_head', 'logits', logits)
        x = features[-1].astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.spec.num_classes, name='head')(x)


class SecondHead(nn.Module):
    """The second head of the networks that DARTS trains on CIFAR (arXiv:1806.09055, section 3).

    Smaller images than its 8x8 are pooled whole.
    """

    num_classes: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Logits `[B, num_classes]` float32 of features `[B, H, W, C]`."""
        window = tuple(min(5, size) for size in x.shape[1:3])
        x = nn.avg_pool(nn.relu(x), window, (3, 3))
        x = operations.pointwise(128, x.dtype, 'conv_0')(x)
        x = nn.relu(self.norm(use_running_average=not train, name='norm_0')(x))
        kernel = tuple(min(2, size) for size in x.shape[1:3])
        x = nn.Conv(768, kernel, padding='VALID', use_bias=False, dtype=x.dtype, name='conv_1')(x)
        x = nn.relu(self.norm(use_running_average=not train, name='norm_1')(x))
        return nn.Dense(self.num_classes, name='head')(x.astype(jnp.float32).mean((1, 2)))


def mixture_of(net: SuperNet) -> SuperNet:
    """The same network, in which Mode.DENSE mixes all candidates by softmax(alpha), without a draw.

    What is trained with one-hot draws has never computed this mixture; it is asked all the same.
    """
    return net.clone(settings=dataclasses.replace(net.settings, estimator='softmax'))
