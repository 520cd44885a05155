"""Counts what networks cost: parameters, and floating-point operations as XLA counts them.

The cost of a network is a sum over its parts: what each candidate adds at its places, and a
constant for everything around them. Once each candidate is counted, the cost of every network of
the space is known.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.estimators import Estimator
from asose_jax.arch.genotype import FALLBACK, NONE, MixedOpSite, NetSpec
from asose_jax.nn import operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import DERIVED, Mode
from asose_jax.spaces.supernet import SuperNet

# In units of a forward pass. The gradient of a layer's input and that of its weights cost about as
# much as the layer, each.
TRAINING = 3
_INPUT_GRADIENT = 1
# A second-order step computes both gradients on training and on validation images, and the gradient
# of alpha together with its derivative along the weights. The derivative of a product costs two
# products beside the product itself, in the forward and in the backward pass: hence the factor 3.
_SECOND_ORDER = 2 * TRAINING + 3 * (1 + _INPUT_GRADIENT)
_ONE_IMAGE = (1, 'float32')  # number of images and dtype of activations of what is counted


class Meter(NamedTuple):
    """Determines the cost of operations and of networks, in one unit.

    Attributes:
      operation: `(name, shape, stride) -> cost` of an operation, for an input of `shape`,
        `(H, W, C)`.
      network: `spec -> cost` of a whole derived network; `None` if that is not known.
    """

    operation: Callable[[str, tuple[int, int, int], int], float]
    network: Callable[[NetSpec], float | None]


class CostTable(NamedTuple):
    """Lists what each choice adds to the cost of a network.

    Attributes:
      constant: Cost of all that no choice changes: stem, transitions, sums, head.
      rows: Cost of each candidate, `[K]` float64 for each row of alpha: the sum over all places
        that the row decides on. `none` costs nothing.
    """

    constant: float
    rows: list[np.ndarray]

    def total(self, shares: Sequence[Any]) -> Any:
        """Returns the cost of a network with a share `[K]` of each candidate, NumPy or traced."""
        pairs = zip(shares, self.rows, strict=True)
        return self.constant + sum((share * row).sum() for share, row in pairs)

    def reach(self, spec: NetSpec) -> tuple[float, float]:
        """Returns the costs of the cheapest and the most expensive network that can be derived."""
        top = max(row.max() for row in self.rows)
        choices = [spec.choose(scores) for scores in ([top - row for row in self.rows], self.rows)]
        low, high = (
            self.constant
            + sum(float(row[int(k)]) for row, k in zip(self.rows, chosen, strict=True))
            for chosen in choices
        )
        return low, high


@functools.lru_cache(maxsize=16)
def cost_table(spec: NetSpec, meter: Meter) -> CostTable:
    """Returns the costs of all candidates of a network.

    The constant is the cost of a network with skip_connect on every edge that can be kept, less the
    cost of these skips. It therefore includes the additions of as many edges as a derived network
    can keep.

    Args:
      spec: Description of the network. With partial channels, candidates are counted for the part
        of the channels that they process.
      meter: Determines the costs.

    Returns:
      The table, in the unit of the meter.
    """
    skips = spec.with_groups(tuple(((FALLBACK, NONE),) * len(group) for group in spec.groups()))
    skip_rows = [np.array([1.0, 0.0])] * len(skips.rows())
    skips = genotype.derive(skips, genotype.genotype_from_indices(skips, skips.choose(skip_rows)))
    network_cost = meter.network(skips)
    assert network_cost is not None, 'a table has it, see `LatencyTable.require`'
    skip_costs = sum(float(row.sum()) for row in _candidate_costs(skips, meter))
    # Measured one by one, operations may take longer than within the network: never below 0.
    constant = max(0.0, network_cost - skip_costs)
    return CostTable(constant, _candidate_costs(spec, meter))


def _candidate_costs(spec: NetSpec, meter: Meter) -> list[np.ndarray]:
    def cost(name: str, places: Sequence[MixedOpSite]) -> float:
        if name == NONE:
            return 0.0
        return sum(meter.operation(name, input_shape(place), place.stride) for place in places)

    def input_shape(place: MixedOpSite) -> tuple[int, int, int]:
        height, width, channels = place.shape
        return (height, width, channels // spec.partial)

    return [
        np.array([cost(name, spec.places(group, member)) for name in candidates], np.float64)
        for group, member, candidates in spec.rows()
    ]


def forward_flops(spec: NetSpec, rows: list[np.ndarray] | None = None) -> float:
    """Counts the floating-point operations of the forward pass of one image.

    A multiply-add counts as two. With partial channels, candidates count for the part of the
    channels that they process. `rows` say how much of each candidate is computed, `[K]` for each
    row of alpha: probabilities give the mean over draws. By default, all are computed.
    """
    if rows is None:
        rows = [np.ones(len(candidates)) for _, _, candidates in spec.rows()]
    return float(cost_table(spec, FLOPS).total(rows))


def training_flops(
    spec: NetSpec,
    mode: Mode,
    estimator: Estimator,
    probabilities: list[np.ndarray],
    weight_images: int,
    alpha_images: int,
    *,
    second_order: bool,
    together: bool,
    frozen: bool,
) -> float:
    """Counts the floating-point operations of training, in the mean over draws.

    A weight step costs a forward pass and both gradients of the drawn operations. An alpha step
    costs a forward pass of all candidates and the input gradient of the drawn ones. Auxiliary skips
    are not counted.

    Args:
      spec: Description of the network.
      mode: Mode of the weight steps.
      estimator: Estimator of the gradient of alpha. If it mixes operations, all of them count, also
        those that `gumbel.apply_thresholds` left out.
      probabilities: Probabilities of the draws, `[K]` for each row of alpha.
      weight_images: Number of images in weight steps.
      alpha_images: Number of images in alpha steps.
      second_order: Whether alpha steps look ahead, see `second_order.gradient`; each then uses as
        many training images in addition.
      together: Whether alpha steps are weight steps as well, so that their images are among
        `weight_images`.
      frozen: whether weight steps train the head only; its gradient is not counted.

    Returns:
      The number of operations.
    """
    candidates = [row.candidates for row in spec.rows()]
    if mode is Mode.SKIP:  # an upper bound: with an exact start, not even skip_connect is computed
        probabilities = [np.array([n == FALLBACK for n in names]) for names in candidates]
    if mode is Mode.UNIFORM:
        probabilities = [np.full(len(names), 1 / len(names)) for names in candidates]
    all_flops, drawn_flops = forward_flops(spec), forward_flops(spec, probabilities)
    if mode is Mode.DRAW and not estimator.one_hot:
        drawn_flops = all_flops
    alpha_flops = all_flops if estimator.dense else drawn_flops
    # A joint step has the drawn forward pass and its gradients from the weight step.
    alpha_flops += -drawn_flops if together else _INPUT_GRADIENT * drawn_flops
    if second_order:
        alpha_flops = _SECOND_ORDER * all_flops
    weight_flops = drawn_flops if frozen else TRAINING * drawn_flops
    return weight_flops * weight_images + alpha_flops * alpha_images


@functools.lru_cache(maxsize=16)
def multiply_adds(spec: NetSpec) -> int:
    """Counts what papers call FLOPs: multiply-adds of convolutions and head, and the head's biases.

    A multiply-add counts as one; pooling, BatchNorm and ReLU do not count. This is the convention
    of NAS-Bench-201 (arXiv:2001.00326) and of the papers that follow DARTS.
    """
    return _multiply_adds(network_program(spec, *_ONE_IMAGE)) + spec.num_classes


def _multiply_adds(part: 'Part') -> int:
    total = 0

    def count(
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        nonlocal total
        y = call(*arguments, **keywords)
        for kernel in context.module.variables.get('params', {}).values():
            if getattr(kernel, 'ndim', 0) > 1:
                total += kernel.size * math.prod(y.shape[1:-1])
        return y

    with nn.intercept_methods(count):
        _variable_shapes(part)
    return total


class Part(NamedTuple):
    """Holds an operation or a network as pure functions, in inference mode.

    Attributes:
      start: Initializes it: `(key, x) -> variables`.
      call: Applies it: `(variables, x) -> y`.
      x: Shape and dtype of its input.
    """

    start: Callable[..., Any]
    call: Callable[..., jax.Array]
    x: jax.ShapeDtypeStruct


def operation_program(
    name: str, shape: tuple[int, int, int], stride: int, images: int, dtype: str
) -> Part:
    """Returns an operation by itself, for inputs `[images, H, W, C]`."""
    module = operations.make(name, shape[-1], Norm(dtype, None), stride)
    return _part(module, jax.ShapeDtypeStruct((images, *shape), dtype), train=False)


def network_program(spec: NetSpec, images: int, dtype: str) -> Part:
    """Returns a derived network without factors, for images `[images, H, W, C]` float32."""
    net = SuperNet(dataclasses.replace(spec, factors=()), DERIVED, dtype)
    x = jax.ShapeDtypeStruct((images, *spec.image_shape), jnp.float32)
    return _part(net, x, mode=Mode.ARGMAX, train=False)


def _part(module: nn.Module, x: jax.ShapeDtypeStruct, **options: Any) -> Part:
    """Returns a module as pure functions; `options` are those of its `__call__`."""
    start, call = (functools.partial(f, **options) for f in (module.init, module.apply))
    # `apply` returns variables as well where some are mutable; here none is.
    return Part(start, cast(Callable[..., jax.Array], call), x)


def _variable_shapes(part: Part) -> Any:
    return jax.eval_shape(lambda x: part.start(jax.random.key(0), x), part.x)


def _flops(part: Part) -> float:
    costs = jax.jit(part.call).lower(_variable_shapes(part), part.x).cost_analysis()
    return (costs or {}).get('flops', 0.0)


def _params(part: Part) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(_variable_shapes(part).get('params', {})))


def _cached_meter(cost: Callable[[Part], float]) -> Meter:
    return Meter(
        functools.cache(
            lambda name, shape, s: cost(operation_program(name, shape, s, *_ONE_IMAGE))
        ),
        functools.lru_cache(maxsize=16)(lambda spec: cost(network_program(spec, *_ONE_IMAGE))),
    )


FLOPS = _cached_meter(_flops)  # floating-point operations of the forward pass of one image
PARAMS = _cached_meter(_params)  # number of trainable parameters
MULTIPLY_ADDS = _cached_meter(_multiply_adds)._replace(network=multiply_adds)
# The kinds of cost that are counted, by their names in the config.
COUNTED = {'flops': FLOPS, 'params': PARAMS, 'multiply_adds': MULTIPLY_ADDS}
