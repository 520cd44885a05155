"""The supernet of the `chain` space, and the derived networks: one module, fixed by its NetSpec.

Collections: `params` (weights), `arch` (alpha, one row per mixed operation), `batch_stats`, and
`guard` (how many rows the weight guard caught in this call).
"""

import dataclasses
import enum
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax import gumbel, ops
from asose_jax.genotype import BlockSpec, NetSpec, needs_transition

Array = jax.Array
SAFE = 'skip_connect'  # what a guarded row, and all of warmup, uses


class Mode(enum.Enum):
    """How a mixed operation uses its candidates. Static: each value is its own program."""

    SKIP = 'skip'  # skip_connect, nothing else (warmup)
    DRAW = 'draw'  # a Gumbel-Softmax draw; only what is drawn is computed (weight steps)
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
      hard: one-hot draws; otherwise soft mixtures, cut by `thresholds`.
      noise: `'unit'` or `'temperature'`, see `gumbel.gumbel_softmax`.
      thresholds: see `gumbel.drop_small`.
    """

    init_std: float = 0.5
    none_bias: float = -2.0
    skip_bias: float = 1.0
    hard: bool = True
    noise: str = 'unit'
    thresholds: gumbel.Thresholds = gumbel.Thresholds()

    def initial_alpha(self, key: Array, candidates: tuple[str, ...]) -> Array:
        """One row `[K]`, float32: normal noise; `none` and `skip_connect` set (spec section 2)."""
        alpha = self.init_std * jax.random.normal(key, (len(candidates),), jnp.float32)
        for name, bias in (('none', self.none_bias), ('skip_connect', self.skip_bias)):
            if name in candidates:
                alpha = alpha.at[candidates.index(name)].set(bias)
        return alpha


class MixedOp(nn.Module):
    """All candidates side by side, weighted by a row of architecture weights.

    Attributes:
      candidates: names from `ops.PRIMITIVES`. With one there is no alpha and nothing to choose.
      channels: in and out.
      norm: BatchNorm factory handed to the operations.
      settings: of the draw.
    """

    candidates: tuple[str, ...]
    channels: int
    norm: Callable[..., nn.Module]
    settings: SearchSettings

    def setup(self):
        for name in self.candidates:
            setattr(self, name, ops.make(name, self.channels, self.norm))
        if len(self.candidates) > 1:
            self.alpha = self.variable('arch', 'alpha', self._initial_alpha)

    def _initial_alpha(self):
        return self.settings.initial_alpha(self.make_rng('arch'), self.candidates)

    def __call__(self, x: Array, tau: Array | float, mode: Mode, train: bool) -> Array:
        """`[B, H, W, C]` to the same shape. DRAW, ALPHA and DENSE need the stream `gumbel`."""
        calls = [functools.partial(_call, name, train) for name in self.candidates]
        if self.is_initializing():
            outputs = [call(self, x) for call in calls]  # every candidate gets its variables
            return outputs[0]
        if len(calls) == 1:
            return calls[0](self, x)
        if mode is Mode.SKIP:
            return calls[self._safe](self, x)
        if mode is Mode.ARGMAX:
            return nn.switch(jnp.argmax(self._weights(None, tau)), calls, self, x)
        weights = self._weights(self.make_rng('gumbel'), tau)
        if mode is Mode.DENSE or (mode is Mode.ALPHA and not self.settings.hard):
            return sum(_scale(w, call(self, x)) for w, call in zip(weights, calls, strict=True))
        if not self.settings.hard:
            return self._mixture(x, weights, calls)
        index = jnp.argmax(weights)
        drawn = nn.switch(index, calls, self, x)
        if mode is Mode.DRAW:
            return drawn
        return straight_through(drawn, self._all_outputs(x, index, drawn, calls), weights)

    @property
    def _safe(self) -> int:
        return self.candidates.index(SAFE)

    def _weights(self, key, tau):
        weights, tripped = gumbel.guarded_weights(
            self.alpha.value,
            key,
            tau,
            fallback=self._safe,
            hard=self.settings.hard,
            noise=self.settings.noise,
        )
        count = tripped.astype(jnp.int32)
        self.sow('guard', 'rows', count, init_fn=lambda: jnp.int32(0), reduce_fn=jnp.add)
        return weights

    def _mixture(self, x, weights, calls):
        """A soft draw without the operations that `drop_small` sets to zero."""
        weights = gumbel.drop_small(weights, self.settings.thresholds, self._safe)

        def nothing(_, x):
            return jnp.zeros_like(x)

        return sum(
            _scale(w, nn.cond(w > 0, call, nothing, self, x))
            for w, call in zip(weights, calls, strict=True)
        )

    def _all_outputs(self, x, index, drawn, calls):
        """Outputs of all candidates, cut off from the gradient; the drawn one is not repeated."""
        x, drawn = jax.lax.stop_gradient((x, drawn))

        def output(k, call):
            def fresh(mdl, x, _):
                return call(mdl, x)

            return nn.cond(index == k, lambda _mdl, _x, drawn: drawn, fresh, self, x, drawn)

        return tuple(output(k, call) for k, call in enumerate(calls))


def _call(name, train, mdl, x):
    return getattr(mdl, name)(x, train)


def _scale(weight, y):
    return weight.astype(y.dtype).reshape((1,) * y.ndim) * y


@jax.custom_vjp
def straight_through(drawn: Array, outputs: tuple[Array, ...], weights: Array) -> Array:
    """Forward what was drawn, backward the gradient of `sum_k weights[k] * outputs[k]`.

    dL/dweights[k] = <dL/dy, outputs[k]> for *every* k, drawn or not: this is what lets alpha learn
    (spec section 3). Only `drawn` passes a gradient to what lies below it, as its weight is 1 and
    all others are 0.

    Args:
      drawn: the output of the drawn operation `[B, H, W, C]`.
      outputs: those of all K operations, same shape; get no gradient.
      weights: one-hot draw `[K]`, float32, carrying the straight-through gradient to alpha.

    Returns:
      `drawn`.
    """
    del outputs, weights
    return drawn


def _straight_through_forward(drawn, outputs, weights):
    del weights
    return drawn, outputs


def _straight_through_backward(outputs, g):
    products = [jnp.vdot(g.astype(jnp.float32), y.astype(jnp.float32)) for y in outputs]
    return g, tuple(jnp.zeros_like(y) for y in outputs), jnp.stack(products)


straight_through.defvjp(_straight_through_forward, _straight_through_backward)


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
            x = nn.Dense(width, use_bias=False, dtype=x.dtype, name='transition')(x)
            x = self.norm(use_running_average=not train, name='transition_norm')(x)
        y = x
        for i, candidates in enumerate(self.spec.branches):
            mixed = MixedOp(candidates, width, self.norm, self.settings, name=f'branch_{i}')
            gate = self.param(f'gate_{i}', nn.initializers.ones, (), jnp.float32)
            y += _scale(gate, mixed(x, tau, mode, train))
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
        norm = functools.partial(
            nn.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, axis_name=self.synced_over
        )
        x = ops.Conv(self.spec.stem_channels, (3, 3), name='stem')(images.astype(dtype))
        x = nn.relu(norm(use_running_average=not train, name='stem_norm')(x))
        for i, block in enumerate(self.spec.blocks):
            x = Block(block, norm, self.settings, name=f'block_{i}')(x, tau, mode, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return nn.Dense(self.spec.num_classes, name='head')(x)
