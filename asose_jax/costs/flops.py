"""What networks cost: parameters, and floating-point operations as XLA counts them in programs.

The cost of a network is a sum over its parts: what each candidate adds at its places, and what is
around them. So it is known of every network of a space when it is known of each candidate.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.estimators import Estimator
from asose_jax.arch.genotype import NONE, SAFE, NetSpec
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Mode
from asose_jax.spaces.supernet import SuperNet

# The gradients of a layer's input and of its weights cost about as much as the layer, each.
_TRAINING = 3
_INPUT_GRADIENT = 1
# Both gradients in training and in validation, and alpha's gradient with its derivative along the
# weights: of a product, forwards and backwards, that is the product and two more.
_SECOND_ORDER = 2 * _TRAINING + 3 * (1 + _INPUT_GRADIENT)


class Meter(NamedTuple):
    """A way to say what something costs.

    Attributes:
      operation: `(name, shape, stride) -> cost` of one with an input of `shape`, `(H, W, C)`.
      network: `spec -> cost` of a whole derived network.
    """

    operation: Callable[[str, tuple[int, int, int], int], float]
    network: Callable[[NetSpec], float]


class Table(NamedTuple):
    """What every choice adds to the cost of a network.

    Attributes:
      constant: of what no choice changes: stem, transitions, sums, head.
      rows: float64 `[K]` per row of alpha: of each candidate, at all places that the row decides on
        together. `none` costs nothing.
    """

    constant: float
    rows: list[np.ndarray]

    def total(self, shares: Sequence[Any]) -> Any:
        """The cost of a network with so much of each candidate: `[K]` per row, NumPy or traced."""
        pairs = zip(shares, self.rows, strict=True)
        return self.constant + sum((share * row).sum() for share, row in pairs)


@functools.lru_cache(maxsize=16)
def table(spec: NetSpec, meter: Meter) -> Table:
    """The costs of every candidate of `spec`.

    With partial channels, candidates see their part of them. The constant is the cost of a network
    that keeps skip_connect everywhere, without those. So the sum over the edges of a node counts as
    if all of them that may stay did stay.
    """
    skips = spec.with_groups(tuple(((SAFE, NONE),) * len(group) for group in spec.groups()))
    sure = [np.array([1.0, 0.0])] * len(skips.rows())
    skips = genotype.derive(skips, genotype.of_rows(skips, skips.choose(sure)))
    around = meter.network(skips) - sum(float(row.sum()) for row in _rows(skips, meter))
    # What is measured may take longer alone than in the network.
    return Table(max(0.0, around), _rows(spec, meter))


def _rows(spec, meter):
    def of(name, places):
        if name == NONE:
            return 0.0
        return sum(meter.operation(name, seen(place), place.stride) for place in places)

    def seen(place):
        *size, channels = place.shape
        return (*size, channels // spec.partial)

    return [
        np.array([of(name, spec.places(group, member)) for name in candidates], np.float64)
        for group, member, candidates in spec.rows()
    ]


def forward_flops(spec: NetSpec, rows: list[np.ndarray] | None = None) -> float:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    With partial channels, candidates count as they are computed, for their part of the channels.

    Args:
      spec: of the network.
      rows: how much of each candidate is computed, `[K]` per row of alpha: probabilities give
        the mean over draws. All of each, if not given.

    Returns:
      The count.
    """
    if rows is None:
        rows = [np.ones(len(candidates)) for _, _, candidates in spec.rows()]
    return float(table(spec, FLOPS).total(rows))


def training_flops(
    spec: NetSpec,
    mode: Mode,
    estimator: Estimator,
    probabilities: list[np.ndarray],
    weight_images: int,
    alpha_images: int,
    second_order: bool = False,
    together: bool = False,
) -> float:
    """What training cost, in the mean over draws. Auxiliary skips are not counted.

    Args:
      spec: of the network.
      mode: how weight steps used it.
      estimator: of alpha's gradient. Where it mixes operations, all of them count, also those that
        `gumbel.drop_small` left out.
      probabilities: of every row, those that draws follow.
      weight_images: seen by weight steps: forward, and both gradients of what was drawn.
      alpha_images: seen by alpha steps: all candidates forward, and the gradient of what was drawn.
      second_order: whether alpha steps look ahead, see `second_order.gradient`; they see as
        many training images beside those.
      together: whether steps of alpha are weight steps as well, and so among `weight_images`.

    Returns:
      Floating-point operations.
    """
    candidates = [row.candidates for row in spec.rows()]
    if mode is Mode.SKIP:  # with an exact start not even that
        probabilities = [np.array([n == SAFE for n in names]) for names in candidates]
    if mode is Mode.UNIFORM:
        probabilities = [np.full(len(names), 1 / len(names)) for names in candidates]
    everything, drawn = forward_flops(spec), forward_flops(spec, probabilities)
    if mode is Mode.DRAW and not estimator.one_hot:
        drawn = everything
    alpha = everything if estimator.dense else drawn
    alpha += -drawn if together else _INPUT_GRADIENT * drawn
    if second_order:
        alpha = _SECOND_ORDER * everything
    return _TRAINING * drawn * weight_images + alpha * alpha_images


def multiply_adds(spec: NetSpec) -> int:
    """What papers call FLOPs: products in convolutions and the head, and the head's additions.

    Pooling, BatchNorm and ReLU do not count, and a multiply-add counts as one: so do NAS-Bench-201
    (arXiv:2001.00326) and those who followed DARTS.

    Args:
      spec: of a derived network.
    """
    total = 0

    def count(call, arguments, keywords, context):
        nonlocal total
        y = call(*arguments, **keywords)
        for kernel in context.module.variables.get('params', {}).values():
            if getattr(kernel, 'ndim', 0) > 1:
                total += kernel.size * math.prod(y.shape[1:-1])
        return y

    with nn.intercept_methods(count):
        _variables(network(spec))
    return total + spec.num_classes


class Part(NamedTuple):
    """An operation or a network as a program of its own, as it is used when training is over.

    Attributes:
      start: `(key, x) -> variables`.
      call: `(variables, x) -> y`.
      x: shape and dtype of its input.
    """

    start: Callable[..., Any]
    call: Callable[..., jax.Array]
    x: jax.ShapeDtypeStruct


def operation(
    name: str, shape: tuple[int, int, int], stride: int, images: int = 1, dtype: str = 'float32'
) -> Part:
    """The operation called `name`, for `images` inputs `shape`, `(H, W, C)`."""
    module = operations.make(name, shape[-1], Norm(dtype, None), stride)
    start, call = (functools.partial(f, train=False) for f in (module.init, module.apply))
    return Part(start, call, jax.ShapeDtypeStruct((images, *shape), dtype))


def network(spec: NetSpec, images: int = 1, dtype: str = 'float32') -> Part:
    """The whole network, for so many images; as a plain one, without factors."""
    net = SuperNet(dataclasses.replace(spec, factors=()), dtype=dtype)
    start, call = (
        functools.partial(f, mode=Mode.ARGMAX, train=False) for f in (net.init, net.apply)
    )
    return Part(start, call, jax.ShapeDtypeStruct((images, *spec.image_shape), jnp.float32))


def _variables(part):
    return jax.eval_shape(lambda x: part.start(jax.random.key(0), x), part.x)


def _flops(part):
    counted = jax.jit(part.call).lower(_variables(part), part.x).cost_analysis()
    return (counted or {}).get('flops', 0.0)


def _params(part):
    return sum(leaf.size for leaf in jax.tree.leaves(_variables(part).get('params', {})))


def _meter(of):
    return Meter(
        functools.cache(lambda *what: of(operation(*what))),
        functools.lru_cache(maxsize=16)(lambda spec: of(network(spec))),
    )


FLOPS = _meter(_flops)  # of one image's forward pass
PARAMS = _meter(_params)  # numbers in `params`
