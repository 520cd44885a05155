"""The mixed operation: candidates side by side, and how one of them is drawn.

A call costs what it uses. A weight step computes and differentiates the drawn candidate; an alpha
step computes all of them, and no gradient but that of alpha and of the image that came in.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asose_jax import fast, gumbel, ops
from asose_jax.estimators import ESTIMATORS
from asose_jax.genotype import SAFE, NetSpec

Array = jax.Array


class Mode(enum.Enum):
    """How a mixed operation uses its candidates. Static: each value is its own program."""

    SKIP = 'skip'  # skip_connect, nothing else (warmup)
    UNIFORM = 'uniform'  # a draw in which all are equally likely (warmup, if wanted)
    DRAW = 'draw'  # a draw; only what it gives a weight is computed (weight steps)
    ALPHA = (
        'alpha'  # the same draw; every candidate computed for the gradient of alpha (alpha steps)
    )
    ARGMAX = 'argmax'  # the largest alpha, without noise (evaluation)
    DENSE = 'dense'  # a draw; every candidate computed and differentiated: the plain definition


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How alpha starts and how operations are drawn; all numbers come from the config.

    Attributes:
      init_std: standard deviation of alpha at the start.
      none_bias: alpha of `none` at the start.
      skip_bias: alpha of `skip_connect` at the start.
      estimator: of `estimators.ESTIMATORS`: how alpha becomes weights and gets its gradient.
      noise: `'unit'` or `'temperature'`, see `gumbel.gumbel_softmax`.
      thresholds: which operations weight steps leave out of a mixture, see `gumbel.drop_small`.
      remat: the backward pass keeps nothing of an operation but its input.
      drop_path: at which rate a derived network leaves operations out at the end of optimize.
      auxiliary: weight of the loss of a second head, which only training has; 0: there is none.
    """

    init_std: float = 0.5
    none_bias: float = -2.0
    skip_bias: float = 1.0
    estimator: str = 'straight_through'
    noise: str = 'unit'
    thresholds: gumbel.Thresholds = gumbel.Thresholds()
    remat: bool = False
    drop_path: float = 0.0
    auxiliary: float = 0.0

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
      tau: temperature of the draws; this and what follows may change from step to step.
      optimized: the share of optimize that is done.
      positions: of the images in the batch of all devices, `[B]` int32; for what drops paths.
    """

    norm: Callable[..., nn.Module]
    settings: SearchSettings
    mode: Mode
    train: bool
    tau: Array | float = 1.0
    optimized: Array | float = 0.0
    positions: Array | None = None


class Choice(nn.Module):
    """A row of architecture logits, alpha `[K]`, and what is drawn from it.

    Attributes:
      candidates: K names. With one there is no alpha and nothing to choose.
      forward: the pass.
    """

    candidates: tuple[str, ...]
    forward: Forward

    @nn.compact
    def __call__(self) -> Array | None:
        """Architecture weights `[K]`, float32; `None` where nothing is chosen.

        ARGMAX gives softmax(alpha); all modes but SKIP and this one need the stream `gumbel`.
        """
        if len(self.candidates) == 1:
            return None
        settings, mode, count = self.forward.settings, self.forward.mode, len(self.candidates)
        tau = self.forward.tau
        alpha = self.variable('arch', 'alpha', self._initial_alpha)
        if self.is_initializing() or mode is Mode.SKIP:
            return None
        if mode is Mode.UNIFORM:
            index = jax.random.randint(self.make_rng('gumbel'), (), 0, count)
            return jax.nn.one_hot(index, count, dtype=jnp.float32)
        draw = jax.nn.softmax
        if mode is not Mode.ARGMAX:
            key, weights_of = self.make_rng('gumbel'), ESTIMATORS[settings.estimator].weights
            draw = functools.partial(weights_of, key=key, tau=tau, noise=settings.noise)
        weights, tripped = gumbel.guarded_weights(
            alpha.value, draw, fallback=self.candidates.index(SAFE), tau=tau
        )
        caught = tripped.astype(jnp.int32)
        self.sow('guard', 'rows', caught, init_fn=lambda: jnp.int32(0), reduce_fn=jnp.add)
        return weights

    def _initial_alpha(self):
        return self.forward.settings.initial_alpha(self.make_rng('arch'), self.candidates)


def shared_draws(spec: NetSpec, forward: Forward) -> list[list[Array | None]]:
    """The weights of every row, by group and member, for mixed operations that share them.

    ARGMAX follows the rule of the space. To be called inside of the module that owns alpha.
    """
    rows = [
        Choice(row.candidates, forward, name=spec.alpha_path(row.group, row.member)[0])()
        for row in spec.rows()
    ]
    if forward.mode is Mode.ARGMAX and not spec.is_derived():
        chosen = spec.choose(rows)
        rows = [jax.nn.one_hot(k, len(row)) for k, row in zip(chosen, rows, strict=True)]
    left = iter(rows)
    return [[next(left) for _ in group] for group in spec.groups()]


class MixedOp(nn.Module):
    """All candidates side by side, weighted by a row of architecture weights.

    Attributes:
      candidates: names from `ops.PRIMITIVES`.
      channels: in and out.
      forward: the pass.
      stride: 1 or 2.
    """

    candidates: tuple[str, ...]
    channels: int
    forward: Forward
    stride: int = 1

    def setup(self):
        for name in self.candidates:
            setattr(self, name, ops.make(name, self.channels, self.forward.norm, self.stride))

    def __call__(self, x: Array, weights: Array | None) -> Array:
        """Images `[B, H, W, C]` to images; `weights` as `Choice` gives them."""
        norm, settings = self.forward.norm, self.forward.settings
        mode, train, names = self.forward.mode, self.forward.train, self.candidates
        if self.is_initializing():
            outputs = [getattr(self, name)(x, train) for name in names]
            return outputs[0]  # every candidate got its variables
        if mode is Mode.SKIP and len(names) > 1:
            names = (SAFE,)
        collections = [self.variables.get(name, {}) for name in ('params', 'batch_stats')]
        params, stats = ([tree.get(name, {}) for name in names] for tree in collections)
        call = _program(names, self.channels, self.stride, norm, settings, mode, train)
        y, stats = call(params, stats, x, weights)
        if train and self.is_mutable_collection('batch_stats'):
            for name, tree in zip(names, stats, strict=True):
                if tree:
                    self.put_variable('batch_stats', name, tree)
        identity = names == (SAFE,) and self.stride == 1
        if settings.drop_path and train and mode is Mode.ARGMAX and not identity:
            rate = settings.drop_path * self.forward.optimized
            y = drop_path(y, rate, self.make_rng('drop_path'), self.forward.positions)
        return y


@functools.cache
def _program(names, channels, stride, norm, settings, mode, train):
    """`f(params, stats, x, weights) -> (y, stats)`; one trace for all mixed operations of a kind.

    `params` and `stats` are lists, one tree for each candidate.
    """
    estimator = ESTIMATORS[settings.estimator]
    functions = [
        ops.function(name, channels, norm, stride, train, settings.remat) for name in names
    ]

    def one(k, params, stats, x):
        y, new = functions[k](params[k], stats[k], x)
        return y, [*stats[:k], new, *stats[k + 1 :]]

    def single(params, stats, x, _):
        return one(0, params, stats, x)

    branches = [functools.partial(one, k) for k in range(len(names))]

    def drawn(params, stats, x, weights):
        return lax.switch(jnp.argmax(weights), branches, params, stats, x)

    def ones(params, stats, x):
        del params, stats
        return jnp.ones_like(x[:, ::stride, ::stride])

    candidates = tuple(lambda *tree, branch=branch: branch(*tree)[0] for branch in branches)
    if not estimator.dense:
        candidates = (ones,) * len(names)

    def for_alpha(params, stats, x, weights):
        y, new = lax.switch(jnp.argmax(weights), branches, params, stats, x)
        return straight_through(candidates, y, weights, (params, stats, x)), new

    def dense(params, stats, x, weights):
        each = [functions[k](params[k], stats[k], x) for k in range(len(names))]
        y = sum(scale(w, out) for w, (out, _) in zip(weights, each, strict=True))
        return y, [new for _, new in each]

    def mixture(params, stats, x, weights):
        """A soft draw without the operations that `drop_small` sets to zero."""
        kept = gumbel.drop_small(weights, settings.thresholds, names.index(SAFE))

        def nothing(_, stats, x):
            return jnp.zeros_like(x[:, ::stride, ::stride]), stats

        each = [
            lax.cond(kept[k] > 0, functions[k], nothing, params[k], stats[k], x)
            for k in range(len(names))
        ]
        y = sum(scale(w, out) for w, (out, _) in zip(kept, each, strict=True))
        return y, [new for _, new in each]

    if len(names) == 1:
        return jax.jit(single)
    if mode is Mode.DENSE or (mode is Mode.ALPHA and not estimator.one_hot):
        return fast.outlined(dense)
    if mode is Mode.ALPHA:
        return fast.outlined(for_alpha)
    if mode is Mode.DRAW and not estimator.one_hot:
        return fast.outlined(mixture)
    return fast.outlined(drawn)


def scale(weight: Array, y: Array) -> Array:
    """`weight * y` in the dtype of y, `[B, H, W, C]`."""
    return weight.astype(y.dtype).reshape((1,) * y.ndim) * y


def drop_path(x: Array, rate: Array | float, key: Array, positions: Array) -> Array:
    """Zeros for some images, and the others scaled up, so that the mean stays (arXiv:1605.07648).

    Args:
      x: `[B, H, W, C]`.
      rate: share of images that are dropped, below 1.
      key: of the step and the place; the draw of an image depends on it and on its position only.
      positions: of the images in the batch of all devices, `[B]` int32.

    Returns:
      `[B, H, W, C]`.
    """
    draw = jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position)))
    factors = jnp.where(draw(positions) < rate, 0, 1 / (1 - rate))
    return factors.astype(x.dtype).reshape(-1, 1, 1, 1) * x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def straight_through(
    candidates: tuple[Callable[..., Array], ...], drawn: Array, weights: Array, arguments: Any
) -> Array:
    """Forward what was drawn, backward the gradient of `sum_k weights[k] * candidates[k]`.

    dL/dweights[k] = <dL/dy, candidates[k]> for *every* k, drawn or not: this is what lets alpha
    learn (spec section 3). Only `drawn` passes a gradient to what lies below it, as its weight is 1
    and all others are 0. The candidates are computed when dL/dy is known, and each is used at once:
    none is kept.

    Args:
      candidates: K functions of `arguments`, with the shape of `drawn`; all of them but the drawn
        one are called, in the backward pass.
      drawn: the output of the drawn operation `[B, H, W, C]`.
      weights: one-hot draw `[K]`, float32, carrying the straight-through gradient to alpha.
      arguments: what the candidates take; gets no gradient.

    Returns:
      `drawn`.
    """
    del candidates, weights, arguments
    return drawn


def _straight_through_forward(candidates, drawn, weights, arguments):
    del candidates
    return drawn, (drawn, jnp.argmax(weights), arguments)


def _straight_through_backward(candidates, residuals, g):
    drawn, index, arguments = residuals

    def product(k):
        y = lax.cond(index == k, lambda *_: drawn, candidates[k], *arguments)
        return jnp.vdot(g.astype(jnp.float32), y.astype(jnp.float32))

    return g, jnp.stack([product(k) for k in range(len(candidates))]), None


straight_through.defvjp(_straight_through_forward, _straight_through_backward)
