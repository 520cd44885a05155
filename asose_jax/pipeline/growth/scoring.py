"""Where a network could grow, and what each place promises.

A growth is worth what one step of gradient descent on the parameters that it adds takes from the
loss: to first order, the square of their gradient's norm, times the learning rate. That is the
criterion of GradMax (Evci et al. 2022, arXiv:2201.05125) and, for its off-shoots, of Firefly (Wu et
al. 2020, arXiv:2102.08574), applied to growths that keep the function. Splitting steepest descent
(Liu et al. 2019, arXiv:1910.02366) looks at the second order instead, which costs more passes.

All growths are scored by one backward pass of the network as it stands: it gives the gradient at
every place where a block with factors of 0 could be, and that of every weight which reads a stage.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asose_jax.arch import genotype
from asose_jax.nn import factors, mixed_op, operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import Mode
from asose_jax.pipeline.growth import transforms
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.spaces import chain
from asose_jax.spaces.chain import BRANCH, DEPTH, WIDTH, ChainSpec
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import state
from asose_jax.train.state import SearchState

Array = jax.Array

_NORM = Norm('float32', None)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What no growth may exceed.

    Attributes:
      depth: blocks.
      channels: of a stage.
      branches: mixed operations in a block.
      params: numbers in `params` of the network that trains; `None`: any.
    """

    depth: int
    channels: int
    branches: int
    params: int | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible growth.

    Attributes:
      growth: what it would be.
      added: numbers it would add to `params`, without factors.
      score: root of the expected gain, the norm of the gradient of what is added: |dL/dfactor| for
        depth and branches, |dL/d(outgoing weights of the copies)| for width.
    """

    growth: Growth
    added: int
    score: float = 0.0

    @property
    def gain_per_parameter(self) -> float:
        return self.score**2 / self.added


def possible(
    spec: ChainSpec, params: Any, kinds: Iterable[str], width_factor: float, limits: Limits
) -> tuple[list[Candidate], list[str]]:
    """All growths of these kinds that the limits allow, unscored; and why others were left out.

    Args:
      spec: of the network.
      params: its weights.
      kinds: of growth.
      width_factor: a widened stage has so many times its channels, rounded to a multiple of 8.
      limits: see there.

    Returns:
      Candidates, and sentences for the log.
    """
    names = _names_to_search(spec)
    size = factors.count(params)
    found, refused = [], []

    def consider(step, added, where, value, limit, limit_name):
        if value > limit:
            refused.append(f'{where} would make {value}, over growth.{limit_name}={limit}')
        elif limits.params is not None and size + added > limits.params:
            refused.append(
                f'{where} would make {size + added} parameters, over '
                f'growth.max_params={limits.params}'
            )
        else:
            found.append(Candidate(step, added))

    widths = [spec.stem_channels, *(block.channels for block in spec.blocks)]
    for kind in kinds:
        if kind == DEPTH:
            for position, width in enumerate(widths):
                step = Growth(DEPTH, position, candidates=names)
                added = _size_of_mixed(names, width)
                where = f'a block at {position}'
                consider(step, added, where, len(spec.blocks) + 1, limits.depth, 'max_depth')
        elif kind == BRANCH:
            for number, block in enumerate(spec.blocks):
                step = Growth(BRANCH, number, candidates=names)
                added = _size_of_mixed(names, block.channels)
                where = f'a branch of block {number}'
                count = len(block.branches) + 1
                consider(step, added, where, count, limits.branches, 'max_branches')
        else:
            for stage, width in enumerate(transforms.stage_channels(spec)):
                channels = widened(width, width_factor)
                step = Growth(WIDTH, stage, channels=channels)
                try:
                    transforms.grown_spec(spec, step)
                except ValueError as error:
                    refused.append(str(error))
                    continue
                added = transforms.added_parameters(spec, params, stage, channels)
                where = f'widening stage {stage}'
                consider(step, added, where, channels, limits.channels, 'max_channels')
    return found, refused


def widened(channels: int, factor: float) -> int:
    """`channels` times `factor`, as a multiple of 8; at least one step of 8 more."""
    return max(chain.rounded(channels * factor), (channels // 8 + 1) * 8)


def scored(
    found: list[Candidate],
    spec: ChainSpec,
    current: SearchState,
    batches: Sequence[tuple[Array, Array]],
    key: Array,
) -> list[Candidate]:
    """The candidates with their scores.

    The network is the one that alpha makes most likely. The gradient of a factor that is 0 is
    <dL/dy, f(x)>, with y what the block adds to, and f the new operation with the weights of its
    start; the score is its root mean square over those candidate operations that have
    weights, if any has.

    Args:
      found: see `possible`.
      spec: of the network.
      current: its state.
      batches: of validation images `[B, H, W, C]`, normalised, and labels `[B]`; same shapes.
      key: of the new operations' weights.

    Returns:
      Candidates in the same order.
    """
    chosen = genotype.most_likely(spec, current.arch)
    variables = {
        'params': state.prune(current.params, spec, chosen),
        'batch_stats': state.prune(current.batch_stats, spec, chosen),
    }
    derived = genotype.chosen_alone(spec, chosen)
    places = [c.growth for c in found if c.growth.kind != WIDTH]
    slopes = dict.fromkeys(places, 0.0)
    gradient = None
    for images, labels in batches:
        change, taps, streams, inputs = _backward(derived, variables, images, labels)
        change = jax.device_get(change)  # many small arrays: the host adds them at once
        gradient = change if gradient is None else jax.tree.map(np.add, gradient, change)
        for place in places:
            if place.kind == DEPTH:
                x, g = streams[place.where], taps[place.where]
            else:
                x, g = inputs[place.where], taps[place.where + 1]
            names = tuple(n for n in place.candidates if n not in operations.PARAMETER_FREE)
            slopes[place] += np.asarray(_factor_gradients(names or place.candidates, x, g, key))

    def score(candidate):
        step = candidate.growth
        if step.kind != WIDTH:
            return float(np.sqrt(np.mean(np.square(slopes[step] / len(batches)))))
        before = transforms.stage_channels(spec)[step.where]
        # Each channel is copied with the same probability (or the same number of times).
        copies = (step.channels - before) / before
        kernels = transforms.consuming(derived, gradient, step.where)
        return float(np.sqrt(copies * sum(np.sum(np.square(k / len(batches))) for k in kernels)))

    return [dataclasses.replace(c, score=score(c)) for c in found]


# These run a few times each: time spent on optimizing them would not come back.
_once = functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)


@_once
def _backward(derived, variables, images, labels):
    """Gradients of the weights and of every place, and what the operations there would see."""
    net = SuperNet(derived)

    def run(params, taps):
        streams, inputs = {}, {}  # behind the stem and every block; of every block's operations

        def tap(call, arguments, keywords, context):
            module = context.module
            if context.method_name != '__call__':
                return call(*arguments, **keywords)
            if isinstance(module, mixed_op.MixedOp):
                inputs[_number(module.path[-2])] = arguments[0]
            if not isinstance(module, chain.Block):
                return call(*arguments, **keywords)
            number = _number(module.name)
            if number == 0:
                streams[0] = arguments[0] + taps.get(0, 0)
                arguments = (streams[0], *arguments[1:])
            streams[number + 1] = call(*arguments, **keywords) + taps.get(number + 1, 0)
            return streams[number + 1]

        with nn.intercept_methods(tap):
            logits, _ = net.apply(
                {**variables, 'params': params},
                images,
                mode=Mode.ARGMAX,
                train=True,
                mutable=['batch_stats'],
            )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (streams, inputs)

    shapes = jax.eval_shape(run, variables['params'], {})[1][0]
    taps = {place: jnp.zeros(shape.shape, shape.dtype) for place, shape in shapes.items()}
    gradients, (streams, inputs) = jax.grad(run, (0, 1), has_aux=True)(variables['params'], taps)
    return (*gradients, streams, inputs)


@_once
def _factor_gradients(names, x, g, key):
    """<g, f(x)> for every operation of `names`, fresh; `[len(names)]`."""
    products = []
    for number, name in enumerate(names):
        operation = operations.make(name, x.shape[-1], _NORM)
        y, _ = operation.init_with_output(jax.random.fold_in(key, number), x, True)
        products.append(jnp.vdot(g, y))
    return jnp.stack(products)


def _number(name):
    return int(name.removeprefix('block_'))


def _names_to_search(spec):
    """What a new mixed operation chooses from: whatever the others do."""
    return tuple(dict.fromkeys(name for _, _, row in spec.rows() for name in row))


@functools.cache
def _size_of_mixed(names, width):
    """Weights of a mixed operation."""
    x = jax.ShapeDtypeStruct((1, 8, 8, width), jnp.float32)

    def start(x):
        return [operations.make(n, width, _NORM).init(jax.random.key(0), x, False) for n in names]

    made = jax.eval_shape(start, x)
    return sum(leaf.size for leaf in jax.tree.leaves([v.get('params', {}) for v in made]))
