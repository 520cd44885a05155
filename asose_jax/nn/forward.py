"""One pass through a network: how its candidates are used, and how operations are drawn."""

import dataclasses
import enum
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch import gumbel

Array = jax.Array


class Mode(enum.Enum):
    """How a mixed operation uses its candidates. Static: each value is its own program."""

    SKIP = 'skip'  # skip_connect, nothing else; with an exact start not even that (warmup)
    UNIFORM = 'uniform'  # a draw in which all are equally likely (warmup, if wanted)
    DRAW = 'draw'  # a draw; only what it gives a weight is computed (weight steps)
    ALPHA = (
        'alpha'  # the same draw; every candidate computed for the gradient of alpha (alpha steps)
    )
    ARGMAX = 'argmax'  # the largest alpha, without noise (evaluation)
    DENSE = 'dense'  # a draw; every candidate computed and differentiated: the plain definition


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How alpha starts and how operations are drawn. A run takes all of it from its config.

    The defaults are those of the spec (sections 2 and 3).

    Attributes:
      init_std: standard deviation of alpha at the start.
      none_bias: alpha of `none` at the start.
      skip_bias: alpha of `skip_connect` at the start.
      estimator: of `estimators.ESTIMATORS`: how alpha becomes weights and gets its gradient.
      noise: `'unit'` or `'temperature'`, see `gumbel.gumbel_softmax`.
      thresholds: which operations weight steps leave out of a mixture, see `gumbel.drop_small`.
      remat: the backward pass keeps nothing of an operation but its input.
      exact_start: whether factors begin at 0, so that search begins with what warmup ended with;
        else at 1. See `MixedOp`.
      auxiliary_skip: whether mixed operations have a skip beside their candidates, see `MixedOp`.
      guard: whether rows of alpha that are not finite act as `skip_connect`.
      drop_path: at which rate a derived network leaves operations out at the end of optimize.
      second_head: weight of the loss of a head that only training has; 0: there is none.
    """

    init_std: float = 0.5
    none_bias: float = -2.0
    skip_bias: float = 1.0
    estimator: str = 'straight_through'
    noise: str = 'unit'
    thresholds: gumbel.Thresholds = gumbel.Thresholds()
    remat: bool = False
    exact_start: bool = False
    auxiliary_skip: bool = False
    guard: bool = True
    drop_path: float = 0.0
    second_head: float = 0.0

    def initial_alpha(self, key: Array, candidates: tuple[str, ...]) -> Array:
        """One row `[K]`, float32: normal noise; `none` and `skip_connect` set (spec section 2)."""
        alpha = self.init_std * jax.random.normal(key, (len(candidates),), jnp.float32)
        for name, bias in (('none', self.none_bias), ('skip_connect', self.skip_bias)):
            if name in candidates:
                alpha = alpha.at[candidates.index(name)].set(bias)
        return alpha


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """One pass through a network: what is the same in all of its parts.

    Attributes:
      norm: BatchNorm factory handed to the operations; hashable.
      settings: of the draws.
      mode: how candidates are used.
      train: whether BatchNorm uses and updates the statistics of the batch.
      partial: K; one of K channels goes through the candidates.
      tau: temperature of the draws; this and what follows may change from step to step.
      beta: weight of the auxiliary skips.
      optimized: the share of optimize that is done.
      positions: of the images in the batch of all devices, `[B]` int32; for what drops paths.
    """

    norm: Callable[..., nn.Module]
    settings: SearchSettings
    mode: Mode
    train: bool
    partial: int = 1
    tau: Array | float = 1.0
    beta: Array | float = 0.0
    optimized: Array | float = 0.0
    positions: Array | None = None
