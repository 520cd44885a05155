"""The mixed operation: candidates side by side, and the architecture weights that choose.

Each step computes only what it needs. A weight step computes and differentiates the drawn
candidate; an alpha step computes all candidates, but only the gradients of alpha and of the input
images (docs/algorithm.md, "The gradient of alpha").
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from asose_jax.arch import gumbel
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.arch.genotype import FALLBACK, NONE, NetSpec
from asose_jax.nn import operations
from asose_jax.nn.cpu import conv, pooling
from asose_jax.nn.forward import Forward, Mode, NetSettings

Array = jax.Array

# Key of the skip beside the candidates in `params` and `batch_stats`.
AUXILIARY = 'auxiliary'

_Function = Callable[[Any, Any, Array], tuple[Array, Any]]  # see `operations.pure_function`
# `(params, stats, x, weights) -> (y, stats)`, see `_program`.
_Program = Callable[..., tuple[Array, Any]]


class Choice(nn.Module):
    """Owns a row of alpha `[K]`, and draws architecture weights from it.

    Attributes:
      candidates: K names. With a single one there is no alpha.
      forward: settings of the pass.
    """

    candidates: tuple[str, ...]
    forward: Forward

    @nn.compact
    def __call__(self) -> Array | None:
        """Returns architecture weights for the mode of the pass.

        All modes except SKIP and ARGMAX need the random stream `gumbel`.

        Returns:
          `[K]`, float32: softmax(alpha) in mode ARGMAX, else a draw. `None` with a single
          candidate, in mode SKIP, and while variables are initialised.
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
        draw: Callable[[Array], Array] = jax.nn.softmax
        if mode is not Mode.ARGMAX:
            key, weights_of = self.make_rng('gumbel'), ESTIMATORS[settings.estimator].weights
            draw = functools.partial(weights_of, key=key, tau=tau, noise=settings.noise)
        if not settings.guard:
            return draw(alpha.value)
        weights, tripped = gumbel.guarded_weights(
            alpha.value, draw, fallback=self.candidates.index(FALLBACK), tau=tau
        )
        _count_guarded(self, tripped)
        return weights

    def _initial_alpha(self) -> Array:
        return self.forward.settings.initial_alpha(self.make_rng('arch'), self.candidates)


class EdgeWeights(nn.Module):
    """Owns the logits of the edges into a node, zeros at the start (arXiv:1907.05737, sec. 3.3).

    Attributes:
      count: number of edges.
    """

    count: int

    @nn.compact
    def __call__(self) -> Array:
        """Returns softmax(logits) `[count]`, float32; equal weights if it would not be finite."""
        logits = self.variable('arch', 'logits', jnp.zeros, (self.count,), jnp.float32)
        safe, tripped = gumbel.zero_nonfinite_rows(logits.value)
        _count_guarded(self, tripped[0])
        return jax.nn.softmax(safe)


def _count_guarded(module: nn.Module, tripped: Array) -> None:
    """Adds a row that the guard replaced to the count in the collection `guard`."""
    count = tripped.astype(jnp.int32)
    module.sow('guard', 'rows', count, init_fn=lambda: jnp.int32(0), reduce_fn=jnp.add)


def edge_weights(spec: NetSpec) -> list[Array | None]:
    """Computes the edge weights of every group, inside the module that owns alpha.

    They are `[members]`, float32, or `None` for a group without edge weights.
    """
    paths = [spec.edge_path(group) for group in range(len(spec.groups()))]
    return [
        EdgeWeights(len(members), name=path[0])() if path else None
        for path, members in zip(paths, spec.groups(), strict=True)
    ]


def shared_draws(
    spec: NetSpec, forward: Forward, edges: list[Array | None] | None = None
) -> list[list[Array | None]]:
    """Draws the weights of every row, inside the module that owns alpha.

    Mixed operations of all cells of a kind share them. In mode ARGMAX the weights are the one-hot
    of `spec.choose`, which follows the rule of the space and uses `edges`, see `edge_weights`.

    Returns weights `[K]`, float32, by group and member; `None` where `Choice` returns `None`.
    """
    rows = [
        Choice(row.candidates, forward, name=spec.alpha_path(row.group, row.member)[0])()
        for row in spec.rows()
    ]
    if forward.mode is Mode.ARGMAX and not spec.is_derived():
        indices = spec.choose(rows, edges)
        rows = [
            jax.nn.one_hot(k, len(row.candidates))
            for k, row in zip(indices, spec.rows(), strict=True)
        ]
    remaining = iter(rows)
    return [[next(remaining) for _ in group] for group in spec.groups()]


class Factored(nn.Module):
    """Multiplies the output of an operation by a factor, a trained scalar.

    The factor is in the same tree of `params` as the weights of the operation.

    Attributes:
      operation: the operation.
      start: value of the factor at the start.
    """

    operation: operations.Operation
    start: float

    def setup(self) -> None:
        """Declares the factor beside the variables of the operation."""
        nn.share_scope(self, self.operation)
        start = nn.initializers.constant(self.start)
        self.factor = self.param(operations.FACTOR, start, (), jnp.float32)

    def __call__(self, x: Array, train: bool) -> Array:
        """Applies the operation and the factor, see `operations.Operation`."""
        return operations.scale(self.factor, self.operation(x, train))


class MixedOp(nn.Module):
    """Computes candidates side by side, weighted by a row of architecture weights.

    Two optional remedies against collapse, where there is more than one candidate:

    *Auxiliary skip* adds `beta * skip(x)`, outside of the draw, so that the candidate skip_connect
    is not chosen only because it helps the others to train (Chu et al. 2021, arXiv:2009.01027).

    *Partial channels* sends only the first of K parts of the channels through the candidates and
    that skip. The other parts pass unchanged, at stride 2 as the largest of 2x2 pixels. A shuffle
    then mixes the parts, so that the next mixed operation sees others (Xu et al. 2020,
    arXiv:1907.05737, section 3.2).

    *Factors*, also optional, multiply the output of each candidate except `none` by a scalar of its
    own, which is one of the weights. With an exact start factors begin at 0, and warmup trains only
    what is around the mixed operations. So search begins with the function that warmup ended with,
    whatever is drawn, and each factor grows by its own gradient (docs/algorithm.md, "Exact start").

    Attributes:
      candidates: names from `operations.PRIMITIVES`.
      channels: of the images, in and out.
      forward: settings of the pass.
      stride: 1 or 2.
      factor: whether candidates have factors.
    """

    candidates: tuple[str, ...]
    channels: int
    forward: Forward
    stride: int = 1
    factor: bool = False

    def setup(self) -> None:
        """Declares the candidates, under their names, and the auxiliary skip."""
        settings, norm = self.forward.settings, self.forward.norm
        self.width = self.channels // self.forward.partial
        self.has_auxiliary = settings.auxiliary_skip and len(self.candidates) > 1
        for name in self.candidates:
            operation = operations.make(name, self.width, norm, self.stride)
            if self.factor and name != NONE:
                operation = Factored(operation, 0.0 if settings.exact_start else 1.0)
            setattr(self, name, operation)
        if self.has_auxiliary:
            setattr(self, AUXILIARY, operations.make(FALLBACK, self.width, norm, self.stride))

    def __call__(self, x: Array, weights: Array | None) -> Array:
        """Applies the mixed operation.

        Args:
          x: images `[B, H, W, C]`.
          weights: result of `Choice`, `[K]` float32 or `None`.

        Returns:
          `[B, ceil(H / stride), ceil(W / stride), C]` in the dtype of `x`.
        """
        partial = self.forward.partial
        inputs = x if partial == 1 else x[..., : self.width]
        y = self._weighted(inputs, weights)
        if self.has_auxiliary:
            skip = getattr(self, AUXILIARY)(inputs, self.forward.train)
            y += operations.scale(jnp.asarray(self.forward.beta), skip)
        if partial == 1:
            return y
        rest = x[..., self.width :]
        rest = pooling.max_pool_2x2(rest) if self.stride == 2 else rest
        return shuffle_channels(jnp.concatenate([y, rest], -1), partial)

    def _weighted(self, x: Array, weights: Array | None) -> Array:
        """Computes the candidates that the mode needs, and stores their new statistics."""
        norm, settings = self.forward.norm, self.forward.settings
        mode, train, names = self.forward.mode, self.forward.train, self.candidates
        if self.is_initializing():
            outputs = [getattr(self, name)(x, train) for name in names]
            return outputs[0]  # all were called, so that each creates its variables
        if mode is Mode.SKIP and len(names) > 1:
            if self.factor and settings.exact_start:
                return jnp.zeros_like(x[:, :: self.stride, :: self.stride])
            names = (FALLBACK,)
        collections = [self.variables.get(name, {}) for name in ('params', 'batch_stats')]
        params, stats = ([tree.get(name, {}) for name in names] for tree in collections)
        for_cpu = self.forward.for_cpu
        call = _program(names, self.width, self.stride, norm, settings, mode, train, for_cpu)
        y, stats = call(params, stats, x, weights)
        if train and self.is_mutable_collection('batch_stats'):
            for name, tree in zip(names, stats, strict=True):
                if tree:
                    self.put_variable('batch_stats', name, tree)
        identity = names == (FALLBACK,) and self.stride == 1
        if settings.drop_path and train and mode is Mode.ARGMAX and not identity:
            rate = settings.drop_path * self.forward.optimized
            positions = self.forward.positions
            assert positions is not None, 'drop-path draws by the positions of the images'
            y = drop_path(y, rate, self.make_rng('drop_path'), positions)
        return y


@functools.cache
def _program(
    names: tuple[str, ...],
    channels: int,
    stride: int,
    norm: Callable[..., nn.Module],
    settings: NetSettings,
    mode: Mode,
    train: bool,
    for_cpu: bool,
) -> _Program:
    """Returns the compiled function of a mixed operation; equal ones share one trace.

    Args:
      names: of the candidates to compute or to choose from.
      channels: of the images that the candidates see.
      stride: 1 or 2.
      norm: makes a BatchNorm, see `operations.Operation`; hashable.
      settings: of the network.
      mode: how the candidates are used.
      train: whether BatchNorm uses and updates the statistics of the batch.
      for_cpu: whether it has the form that is fast on CPUs, see `SuperNet`.

    Returns:
      `f(params, stats, x, weights) -> (y, stats)`; `params` and `stats` are lists, one tree for
      each candidate.
    """
    estimator = ESTIMATORS[settings.estimator]
    functions = [
        operations.pure_function(name, channels, norm, stride, train, settings.remat)
        for name in names
    ]
    if len(names) == 1:
        return jax.jit(_single_program(functions))
    compiled = conv.outlined_jit if for_cpu else jax.jit
    if mode is Mode.DENSE or (mode is Mode.ALPHA and not estimator.one_hot):
        return compiled(_dense_program(functions))
    if mode is Mode.ALPHA:
        return compiled(_alpha_program(functions, stride, estimator.dense, for_cpu))
    if mode is Mode.DRAW and not estimator.one_hot:
        fallback = names.index(FALLBACK)
        return compiled(_mixture_program(functions, stride, settings.thresholds, fallback))
    return compiled(_drawn_program(functions))


def _run_candidate(
    functions: Sequence[_Function], k: int, params: Any, stats: Any, x: Array
) -> tuple[Array, Any]:
    """Computes candidate k, and returns its output and the statistics of all candidates."""
    y, new = functions[k](params[k], stats[k], x)
    return y, [*stats[:k], new, *stats[k + 1 :]]


def _branches(functions: Sequence[_Function]) -> list[Callable[..., tuple[Array, Any]]]:
    return [functools.partial(_run_candidate, functions, k) for k in range(len(functions))]


def _single_program(functions: Sequence[_Function]) -> _Program:
    """Builds the program of a mixed operation with a single candidate."""

    def single(params: Any, stats: Any, x: Array, _: Array | None) -> tuple[Array, Any]:
        return _run_candidate(functions, 0, params, stats, x)

    return single


def _drawn_program(functions: Sequence[_Function]) -> _Program:
    """Builds the program that computes the candidate with the largest weight only."""
    branches = _branches(functions)

    def drawn(params: Any, stats: Any, x: Array, weights: Array) -> tuple[Array, Any]:
        return lax.switch(jnp.argmax(weights), branches, params, stats, x)

    return drawn


def _alpha_program(
    functions: Sequence[_Function], stride: int, dense: bool, for_cpu: bool
) -> _Program:
    """Builds the program of alpha steps with one-hot draws, see `straight_through`.

    Args:
      functions: the candidates.
      stride: of the mixed operation.
      dense: whether candidates that were not drawn are computed; else they count as images of ones,
        times their factors.
      for_cpu: whether the backward pass branches around the drawn candidate.
    """
    branches = _branches(functions)

    def ones(k: int, params: Any, stats: Any, x: Array) -> Array:
        del stats
        image = jnp.ones_like(x[:, ::stride, ::stride])
        if not any(operations.FACTOR in own for own in params):
            return image
        # `none` has no factor; it counts as 0.
        factor = params[k].get(operations.FACTOR, jnp.float32(0))
        return operations.scale(factor, image)

    candidates = tuple(lambda *tree, branch=branch: branch(*tree)[0] for branch in branches)
    if not dense:
        candidates = tuple(functools.partial(ones, k) for k in range(len(functions)))

    def for_alpha(params: Any, stats: Any, x: Array, weights: Array) -> tuple[Array, Any]:
        y, new = lax.switch(jnp.argmax(weights), branches, params, stats, x)
        return straight_through(candidates, for_cpu, y, weights, (params, stats, x)), new

    return for_alpha


def _dense_program(functions: Sequence[_Function]) -> _Program:
    """Builds the program that computes all candidates and adds them up by their weights."""

    def dense(params: Any, stats: Any, x: Array, weights: Array) -> tuple[Array, Any]:
        results = [functions[k](params[k], stats[k], x) for k in range(len(functions))]
        y = sum(operations.scale(w, out) for w, (out, _) in zip(weights, results, strict=True))
        return cast(Array, y), [new for _, new in results]

    return dense


def _mixture_program(
    functions: Sequence[_Function], stride: int, thresholds: gumbel.Thresholds, fallback: int
) -> _Program:
    """Builds the program of weight steps with soft draws, which leaves small weights out.

    Args:
      functions: the candidates.
      stride: of the mixed operation.
      thresholds: see `gumbel.apply_thresholds`.
      fallback: index of the candidate that is computed if nothing else is left.
    """

    def zeros(_: Any, stats: Any, x: Array) -> tuple[Array, Any]:
        return jnp.zeros_like(x[:, ::stride, ::stride]), stats

    def mixture(params: Any, stats: Any, x: Array, weights: Array) -> tuple[Array, Any]:
        remaining = gumbel.apply_thresholds(weights, thresholds, fallback)
        results = [
            lax.cond(remaining[k] > 0, functions[k], zeros, params[k], stats[k], x)
            for k in range(len(functions))
        ]
        y = sum(operations.scale(w, out) for w, (out, _) in zip(remaining, results, strict=True))
        return cast(Array, y), [new for _, new in results]

    return mixture


def shuffle_channels(x: Array, parts: int) -> Array:
    """Shuffles channels: the first of every part, then the second of every part, and so on.

    Example:
      With 2 parts, channels (0, 1, 2, 3) become (0, 2, 1, 3).
    """
    return x.reshape(*x.shape[:-1], parts, -1).swapaxes(-1, -2).reshape(x.shape)


def drop_path(x: Array, rate: Array | float, key: Array, positions: Array) -> Array:
    """Sets some images to zero and scales the others up to keep the mean (arXiv:1605.07648).

    Args:
      x: `[B, H, W, C]`.
      rate: share of images to drop, below 1.
      key: random key of this step and this mixed operation. The draw for an image depends on it
        and on the position of the image only.
      positions: index of each image in the batch of all devices, `[B]` int32.

    Returns:
      `[B, H, W, C]`.
    """
    draw = jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position)))
    factors = jnp.where(draw(positions) < rate, 0, 1 / (1 - rate))
    return factors.astype(x.dtype).reshape(-1, 1, 1, 1) * x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def straight_through(
    candidates: tuple[Callable[..., Array], ...],
    branch: bool,
    drawn: Array,
    weights: Array,
    arguments: Any,
) -> Array:
    """Returns the drawn output, with the gradient of `sum_k weights[k] * candidates[k]`.

    dL/dweights[k] = <dL/dy, candidates[k]> for *every* k, drawn or not: without this, alpha would
    not learn (docs/algorithm.md, "The gradient of alpha"). Only `drawn` passes a gradient to the
    layers below, as its weight is 1 and all others are 0. The candidates are computed in the
    backward pass, when dL/dy is known. Each is used at once and none is stored.

    Args:
      candidates: K functions of `arguments` that return arrays like `drawn`.
      branch: whether a branch at each candidate saves computing the drawn one again. On a CPU it
        costs nothing; a GPU would wait for the host at each (docs/accelerators.md).
      drawn: the output of the drawn candidate `[B, H, W, C]`.
      weights: one-hot draw `[K]`, float32, carrying the straight-through gradient to alpha.
      arguments: passed to the candidates; gets no gradient.

    Returns:
      `drawn`.
    """
    del candidates, branch, weights, arguments
    return drawn


def _straight_through_forward(
    candidates: tuple[Callable[..., Array], ...],
    branch: bool,
    drawn: Array,
    weights: Array,
    arguments: Any,
) -> tuple[Array, tuple[Array, Array, Any]]:
    del candidates, branch
    return drawn, (drawn, jnp.argmax(weights), arguments)


def _straight_through_backward(
    candidates: tuple[Callable[..., Array], ...],
    branch: bool,
    residuals: tuple[Array, Array, Any],
    g: Array,
) -> tuple[Array, Array, None]:
    drawn, index, arguments = residuals

    def product(y: Array) -> Array:
        return jnp.vdot(g.astype(jnp.float32), y.astype(jnp.float32))

    def branching(k: int) -> Array:
        return product(lax.cond(index == k, lambda *_: drawn, candidates[k], *arguments))

    if branch:
        products = [branching(k) for k in range(len(candidates))]
    else:
        of_drawn = product(drawn)
        products = [
            jnp.where(index == k, of_drawn, product(candidate(*arguments)))
            for k, candidate in enumerate(candidates)
        ]
    return g, jnp.stack(products), None


straight_through.defvjp(_straight_through_forward, _straight_through_backward)
