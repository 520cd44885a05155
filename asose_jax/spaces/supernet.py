"""Builds the network of a description, supernet or derived: one module for every space.

Its variable collections are `params` (weights), `arch` (alpha, see `mixed_op.Choice`),
`batch_stats`, `guard` (number of rows of alpha that the guard replaced in this call, see
docs/algorithm.md, "Guards") and `second_head` (logits of the second head, in training only).
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch.genotype import NetSpec
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Forward, Mode, NetSettings
from asose_jax.spaces import registry

Array = jax.Array

HEAD = 'head'  # name in `params` of the linear layer behind the global average
SECOND_HEAD = 'second_head'  # its name in `params`; left out when a trained network is loaded


class SuperNet(nn.Module):
    """Computes logits: the body of the space, a global average and a linear layer.

    Attributes:
      spec: Description of the network.
      settings: How it is searched and trained; `DERIVED` where it is neither.
      dtype: Dtype of activations, `'float32'` or `'bfloat16'`. Parameters, BatchNorm statistics,
        alpha, the draw and the logits are float32 in either case.
      synced_over: Name of the mapped axis over which BatchNorm pools its statistics, if any.
      for_cpu: Whether mixed operations take the form that is fast on CPUs: each stays a computation
        of its own (`conv.outlined_jit`), and alpha steps branch wherever that saves work
        (`mixed_op.straight_through`). Results differ by rounding at most.
    """

    spec: NetSpec
    settings: NetSettings
    dtype: str
    synced_over: str | None = None
    for_cpu: bool = True

    if TYPE_CHECKING:

        def __hash__(self) -> int:
            """Hashes the fields: Linen makes this method, which type checkers do not know."""
            ...

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
        """Applies the network.

        Args:
          images: Normalised images `[B, H, W, C]`.
          tau: Temperature of the draws.
          mode: How the mixed operations use their candidates.
          train: Whether BatchNorm uses and updates the statistics of the batch.
          beta: Weight of the auxiliary skips.
          optimized: Share of the optimize phase that is done, 0 to 1; drop-path rises with it.
          positions: Positions of the images in the batch of all devices, `[B]` int32; drop-path
            needs them.

        Returns:
          Logits `[B, num_classes]`, float32.
        """
        norm = Norm(self.dtype, self.synced_over)
        forward = Forward(
            norm,
            self.settings,
            mode,
            train,
            self.spec.partial,
            self.for_cpu,
            tau=tau,
            beta=beta,
            optimized=optimized,
            positions=positions,
        )
        body = registry.SPACES[self.spec.SPACE].body
        features = list(body(self.spec, forward, images.astype(self.dtype)))
        if self.settings.second_head and (train or self.is_initializing()):
            head = SecondHead(self.spec.num_classes, norm, name=SECOND_HEAD)
            logits = head(features[2 * len(features) // 3], train)
            if train:
                self.sow('second_head', 'logits', logits)
        x = features[-1].astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.spec.num_classes, name=HEAD)(x)


class SecondHead(nn.Module):
    """Computes the auxiliary logits that DARTS trains with on CIFAR (arXiv:1806.09055, section 3).

    There, its input has 8x8 pixels; windows larger than the image are cut to its size.

    Attributes:
      num_classes: Number of classes.
      norm: Makes a BatchNorm, called as `norm(use_running_average=..., name=...)`.
    """

    num_classes: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Maps features `[B, H, W, C]` to logits `[B, num_classes]`, float32."""
        window = tuple(min(5, size) for size in x.shape[1:3])
        x = nn.avg_pool(nn.relu(x), window, (3, 3))
        x = operations.pointwise(128, x.dtype, 'conv_0')(x)
        x = nn.relu(self.norm(use_running_average=not train, name='norm_0')(x))
        kernel = tuple(min(2, size) for size in x.shape[1:3])
        x = nn.Conv(768, kernel, padding='VALID', use_bias=False, dtype=x.dtype, name='conv_1')(x)
        x = nn.relu(self.norm(use_running_average=not train, name='norm_1')(x))
        return nn.Dense(self.num_classes, name=HEAD)(x.astype(jnp.float32).mean((1, 2)))


def with_softmax_mixture(net: SuperNet) -> SuperNet:
    """Returns the network with another meaning of `Mode.DENSE`: softmax(alpha), without a draw.

    In this mode it then computes the deterministic mixture of all candidates, which a network that
    is trained with one-hot draws never computes itself. Early stopping and selection by
    perturbation need it.
    """
    return net.clone(settings=dataclasses.replace(net.settings, estimator='softmax'))


def mixture_logits(
    mixture: SuperNet, variables: Any, beta: Array | float, key: Array, images: Array
) -> Array:
    """Computes the logits of `with_softmax_mixture`, with the statistics of the batch.

    A mixture draws nothing; the module asks for a random key nevertheless.
    """
    logits, _ = mixture.apply(
        variables,
        images,
        beta=beta,
        mode=Mode.DENSE,
        train=True,
        mutable=['batch_stats', 'guard'],
        rngs={'gumbel': key},
    )
    return logits
