"""Settings of one pass through a network: how candidates are drawn, and which are computed."""

import dataclasses
import enum
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch import gumbel

Array = jax.Array


class Mode(enum.Enum):
    """Says how a mixed operation uses its candidates; static, so each value is a program.

    Attributes:
      SKIP: computes `skip_connect` only, or nothing with an exact start (warmup).
      UNIFORM: draws one candidate, all equally likely (warmup with `warmup.operations='uniform'`).
      DRAW: draws, and computes only candidates that get a weight (weight steps).
      ALPHA: draws likewise, and computes every candidate for the gradient of alpha (alpha steps).
      ARGMAX: takes the candidate with the largest alpha, without noise (evaluation).
      DENSE: draws, and computes and differentiates every candidate: the plain definition.
    """

    SKIP = 'skip'
    UNIFORM = 'uniform'
    DRAW = 'draw'
    ALPHA = 'alpha'
    ARGMAX = 'argmax'
    DENSE = 'dense'


@dataclasses.dataclass(frozen=True)
class NetSettings:
    """Says how a network is searched and trained, beside its description (`NetSpec`).

    There are no defaults: a run takes every value from its config.

    Attributes:
      init_std: standard deviation of alpha at the start.
      none_bias: alpha of `none` at the start.
      skip_bias: alpha of `skip_connect` at the start.
      estimator: key of `estimators.ESTIMATORS`: how alpha becomes weights and gets its gradient.
      noise: `'unit'` or `'temperature'`, see `gumbel.gumbel_softmax`.
      thresholds: which candidates weight steps leave out of a mixture, see
        `gumbel.apply_thresholds`.
      remat: whether the backward pass recomputes operations from their input, to save memory.
      exact_start: whether factors start at 0, so that the first step of search computes what the
        last step of warmup computed; else they start at 1. See `mixed_op.MixedOp`.
      auxiliary_skip: whether mixed operations have a skip beside their candidates, see
        `mixed_op.MixedOp`.
      guard: whether rows of alpha that are not finite act as `skip_connect`.
      drop_path: rate at which a derived network drops operations at the end of optimize; it rises
        to that from 0.
      second_head: weight of the loss of a second head that only training has; 0 for none.
    """

    init_std: float
    none_bias: float
    skip_bias: float
    estimator: str
    noise: str
    thresholds: gumbel.Thresholds
    remat: bool
    exact_start: bool
    auxiliary_skip: bool
    guard: bool
    drop_path: float
    second_head: float

    def initial_alpha(self, key: Array, candidates: tuple[str, ...]) -> Array:
        """Draws the start of one row of alpha: normal noise, but fixed for `none` and skips.

        Args:
          key: random key.
          candidates: K names.

        Returns:
          `[K]`, float32.
        """
        alpha = self.init_std * jax.random.normal(key, (len(candidates),), jnp.float32)
        for name, bias in (('none', self.none_bias), ('skip_connect', self.skip_bias)):
            if name in candidates:
                alpha = alpha.at[candidates.index(name)].set(bias)
        return alpha


# Of a derived network that computes logits and is not trained: nothing is chosen or left out.
DERIVED = NetSettings(
    init_std=0.0,
    none_bias=0.0,
    skip_bias=0.0,
    estimator='softmax',
    noise='unit',
    thresholds=gumbel.Thresholds(1, 1, 0, 0, 0),
    remat=False,
    exact_start=False,
    auxiliary_skip=False,
    guard=False,
    drop_path=0.0,
    second_head=0.0,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """Holds what all parts of a network share in one pass.

    `tau` and the attributes after it may be traced: they can change from step to step without
    another compilation.

    Attributes:
      norm: makes a BatchNorm, see `batch_norm.Norm`; hashable.
      settings: of the network.
      mode: how mixed operations use their candidates.
      train: whether BatchNorm uses and updates the statistics of the batch.
      partial: K; one of K channels goes through the candidates.
      for_cpu: whether mixed operations take the form that is fast on CPUs, see `SuperNet`.
      tau: temperature of the draws.
      beta: weight of the auxiliary skips.
      optimized: fraction of the optimize phase that is done; `drop_path` rises with it.
      positions: index of each image in the batch of all devices, `[B]` int32. Drop-path draws
        depend on it, so that they do not depend on the number of devices.
    """

    norm: Callable[..., nn.Module]
    settings: NetSettings
    mode: Mode
    train: bool
    partial: int
    for_cpu: bool
    tau: Array | float = 1.0
    beta: Array | float = 0.0
    optimized: Array | float = 0.0
    positions: Array | None = None
