"""The mixed operation: candidates side by side, and how one of them is drawn.

A call costs what it uses. A weight step computes and differentiates the drawn candidate; an alpha
step computes all of them, and no gradient but that of alpha and of the image that came in.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asose_jax.arch import gumbel
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.arch.genotype import NONE, SAFE, NetSpec
from asose_jax.nn import operations
from asose_jax.nn.cpu import conv, pooling
from asose_jax.nn.forward import Forward, Mode

Array = jax.Array

AUXILIARY = 'auxiliary'  # the skip beside the candidates, in `params` and `batch_stats`


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
        if not settings.guard:
            return draw(alpha.value)
        weights, tripped = gumbel.guarded_weights(
            alpha.value, draw, fallback=self.candidates.index(SAFE), tau=tau
        )
        _tell_caught(self, tripped)
        return weights

    def _initial_alpha(self):
        return self.forward.settings.initial_alpha(self.make_rng('arch'), self.candidates)


class EdgeWeights(nn.Module):
    """Logits of edges that are summed, and their softmax; zeros at the start.

    Attributes:
      count: of edges.
    """

    count: int

    @nn.compact
    def __call__(self) -> Array:
        """Weights `[count]`, float32; all alike where a logit is not finite."""
        logits = self.variable('arch', 'logits', jnp.zeros, (self.count,), jnp.float32)
        safe, tripped = gumbel.guarded(logits.value)
        _tell_caught(self, tripped[0])
        return jax.nn.softmax(safe)


def _tell_caught(module, tripped):
    caught = tripped.astype(jnp.int32)
    module.sow('guard', 'rows', caught, init_fn=lambda: jnp.int32(0), reduce_fn=jnp.add)


def edge_weights(spec: NetSpec) -> list[Array | None]:
    """The weights of every group's edges, `None` where it has none; see `shared_draws`."""
    paths = [spec.edge_path(group) for group in range(len(spec.groups()))]
    return [
        EdgeWeights(len(members), name=path[0])() if path else None
        for path, members in zip(paths, spec.groups(), strict=True)
    ]


def shared_draws(
    spec: NetSpec, forward: Forward, edges: list[Array | None] | None = None
) -> list[list[Array | None]]:
    """The weights of every row, by group and member, for mixed operations that share them.

    ARGMAX follows the rule of the space, to which `edges` are those of `edge_weights`. To be called
    inside of the module that owns alpha.
    """
    rows = [
        Choice(row.candidates, forward, name=spec.alpha_path(row.group, row.member)[0])()
        for row in spec.rows()
    ]
    if forward.mode is Mode.ARGMAX and not spec.is_derived():
        chosen = spec.choose(rows, edges)
        rows = [jax.nn.one_hot(k, len(row)) for k, row in zip(chosen, rows, strict=True)]
    left = iter(rows)
    return [[next(left) for _ in group] for group in spec.groups()]


class Factored(nn.Module):
    """An operation and its factor, side by side in one tree of `params`.

    Attributes:
      operation: what is multiplied.
      start: of the factor.
    """

    operation: operations.Operation
    start: float

    def setup(self):
        nn.share_scope(self, self.operation)
        start = nn.initializers.constant(self.start)
        self.factor = self.param(operations.FACTOR, start, (), jnp.float32)

    def __call__(self, x: Array, train: bool) -> Array:
        """As `operations.Operation`."""
        return operations.scale(self.factor, self.operation(x, train))


class MixedOp(nn.Module):
    """All candidates side by side, weighted by a row of architecture weights.

    Where there is a choice, two remedies against collapse, if they are asked for. Auxiliary skip:
    `beta * skip(x)` is added, outside of the draw, so that the candidate skip_connect need not
    help training along (Chu et al. 2021, arXiv:2009.01027). Partial channels: the candidates, and
    that skip, see and give the first of K parts of the channels only; the others are handed on, at
    stride 2 as the largest of 2x2 pixels, and a shuffle brings them to the front in what follows
    (Xu et al. 2020, arXiv:1907.05737, section 3.2).

    Factors, if they are asked for: what each candidate but `none` gives is multiplied by a scalar
    of its own, which is one of the weights. With an exact start it begins at 0, and warmup trains
    what is around the mixed operations alone: whatever is drawn then, search begins with the
    function that warmup ended with, and each candidate opens by its own gradient.

    Attributes:
      candidates: names from `operations.PRIMITIVES`.
      channels: in and out.
      forward: the pass.
      stride: 1 or 2.
      factor: whether candidates have factors.
    """

    candidates: tuple[str, ...]
    channels: int
    forward: Forward
    stride: int = 1
    factor: bool = False

    def setup(self):
        settings, norm = self.forward.settings, self.forward.norm
        self.width = self.channels // self.forward.partial
        self.has_auxiliary = settings.auxiliary_skip and len(self.candidates) > 1
        for name in self.candidates:
            operation = operations.make(name, self.width, norm, self.stride)
            if self.factor and name != NONE:
                operation = Factored(operation, 0.0 if settings.exact_start else 1.0)
            setattr(self, name, operation)
        if self.has_auxiliary:
            setattr(self, AUXILIARY, operations.make(SAFE, self.width, norm, self.stride))

    def __call__(self, x: Array, weights: Array | None) -> Array:
        """Images `[B, H, W, C]` to images; `weights` as `Choice` gives them."""
        partial = self.forward.partial
        seen = x if partial == 1 else x[..., : self.width]
        y = self._weighted(seen, weights)
        if self.has_auxiliary:
            skip = getattr(self, AUXILIARY)(seen, self.forward.train)
            y += operations.scale(jnp.asarray(self.forward.beta), skip)
        if partial == 1:
            return y
        rest = x[..., self.width :]
        rest = pooling.max_pool_2x2(rest) if self.stride == 2 else rest
        return shuffled(jnp.concatenate([y, rest], -1), partial)

    def _weighted(self, x, weights):
        norm, settings = self.forward.norm, self.forward.settings
        mode, train, names = self.forward.mode, self.forward.train, self.candidates
        if self.is_initializing():
            outputs = [getattr(self, name)(x, train) for name in names]
            return outputs[0]  # every candidate got its variables
        if mode is Mode.SKIP and len(names) > 1:
            if self.factor and settings.exact_start:
                return jnp.zeros_like(x[:, :: self.stride, :: self.stride])
            names = (SAFE,)
        collections = [self.variables.get(name, {}) for name in ('params', 'batch_stats')]
        params, stats = ([tree.get(name, {}) for name in names] for tree in collections)
        call = _program(names, self.width, self.stride, norm, settings, mode, train)
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
        operations.function(name, channels, norm, stride, train, settings.remat) for name in names
    ]

    def one(k, params, stats, x):
        y, new = functions[k](params[k], stats[k], x)
        return y, [*stats[:k], new, *stats[k + 1 :]]

    def single(params, stats, x, _):
        return one(0, params, stats, x)

    branches = [functools.partial(one, k) for k in range(len(names))]

    def drawn(params, stats, x, weights):
        return lax.switch(jnp.argmax(weights), branches, params, stats, x)

    def ones(k, params, stats, x):
        del stats
        found = jnp.ones_like(x[:, ::stride, ::stride])
        if not any(operations.FACTOR in own for own in params):
            return found
        factor = params[k].get(operations.FACTOR, jnp.float32(0))  # 0 of `none`
        return operations.scale(factor, found)

    candidates = tuple(lambda *tree, branch=branch: branch(*tree)[0] for branch in branches)
    if not estimator.dense:
        candidates = tuple(functools.partial(ones, k) for k in range(len(names)))

    def for_alpha(params, stats, x, weights):
        y, new = lax.switch(jnp.argmax(weights), branches, params, stats, x)
        return straight_through(candidates, y, weights, (params, stats, x)), new

    def dense(params, stats, x, weights):
        each = [functions[k](params[k], stats[k], x) for k in range(len(names))]
        y = sum(operations.scale(w, out) for w, (out, _) in zip(weights, each, strict=True))
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
        y = sum(operations.scale(w, out) for w, (out, _) in zip(kept, each, strict=True))
        return y, [new for _, new in each]

    if len(names) == 1:
        return jax.jit(single)
    if mode is Mode.DENSE or (mode is Mode.ALPHA and not estimator.one_hot):
        return conv.outlined(dense)
    if mode is Mode.ALPHA:
        return conv.outlined(for_alpha)
    if mode is Mode.DRAW and not estimator.one_hot:
        return conv.outlined(mixture)
    return conv.outlined(drawn)


def shuffled(x: Array, parts: int) -> Array:
    """Channels of `[B, H, W, C]` dealt anew: the first of every part, all the second ..."""
    return x.reshape(*x.shape[:-1], parts, -1).swapaxes(-1, -2).reshape(x.shape)


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
