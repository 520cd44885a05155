"""Lists the positions where a network can grow, and scores each by the expected gain.

The gain of a growth is what one step of gradient descent on the added parameters takes from the
loss: to first order, the square of the norm of their gradient, times the learning rate. That is the
criterion of GradMax (Evci et al. 2022, arXiv:2201.05125) and, for its off-shoots, of Firefly (Wu et
al. 2020, arXiv:2102.08574), applied to growths that keep the function. Splitting steepest descent
(Liu et al. 2019, arXiv:1910.02366) uses the second order instead, which costs more passes.

One backward pass of the current network scores all growths: it gives the gradient at every position
where a block with factors of 0 could be, and that of every weight that reads a stage
(docs/algorithm.md, "Growth").
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.arch import genotype
from asose_jax.nn import factors, mixed_op, operations
from asose_jax.nn.batch_norm import Norm
from asose_jax.nn.forward import DERIVED, Mode
from asose_jax.pipeline.growth import transforms
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.spaces import chain
from asose_jax.spaces.chain import BRANCH, DEPTH, WIDTH, ChainSpec
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import state
from asose_jax.train.gradients import mean_cross_entropy
from asose_jax.train.state import SearchState

Array = jax.Array

_NORM = Norm('float32', None)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes that no growth may exceed.

    Attributes:
      depth: number of blocks.
      channels: of a stage.
      branches: mixed operations in a block.
      params: numbers in `params` of the network that trains; `None` for no limit.
    """

    depth: int
    channels: int
    branches: int
    params: int | None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible growth.

    Attributes:
      growth: what would be added, and where.
      added: numbers that it would add to `params`, without factors.
      score: root of the expected gain, the norm of the gradient of what is added: |dL/dfactor| for
        depth and branches, |dL/d(outgoing weights of the copies)| for width.
    """

    growth: Growth
    added: int
    score: float = 0.0

    @property
    def gain_per_parameter(self) -> float:
        """Expected gain for each number that is added to `params`."""
        return self.score**2 / self.added


class _Proposal(NamedTuple):
    """A growth that is still to be compared with the limits.

    Attributes:
      growth: what would be added, and where.
      added: numbers that it would add to `params`.
      description: of the growth, for the log.
      size: what it would make of that which `limit` bounds.
      limit: of `size`.
      limit_field: name of the limit in `config.growth`.
      obstacle: why the space does not allow the growth, if it does not.
    """

    growth: Growth
    added: int
    description: str
    size: int
    limit: int
    limit_field: str
    obstacle: str | None = None


def list_candidates(
    spec: ChainSpec, params: Any, kinds: Iterable[str], width_factor: float, limits: Limits
) -> tuple[list[Candidate], list[str]]:
    """Lists the growths of these kinds that the limits allow.

    Returns:
      The candidates, without scores, and for each growth that is left out a sentence that says why.
    """
    size = factors.count_parameters(params)
    candidates, refused = [], []
    for kind in kinds:
        if kind == DEPTH:
            proposals = _deeper(spec, limits)
        elif kind == BRANCH:
            proposals = _branched(spec, limits)
        else:
            proposals = _wider(spec, params, width_factor, limits)
        for proposal in proposals:
            reason = _refusal(proposal, size, limits.params)
            if reason is None:
                candidates.append(Candidate(proposal.growth, proposal.added))
            else:
                refused.append(reason)
    return candidates, refused


def _deeper(spec: ChainSpec, limits: Limits) -> list[_Proposal]:
    """Proposes a new block at every position, also before the first and after the last block."""
    names = _names_to_search(spec)
    widths = [spec.stem_channels, *(block.channels for block in spec.blocks)]
    return [
        _Proposal(
            growth=Growth(DEPTH, position, candidates=names),
            added=_size_of_mixed(names, width),
            description=f'a block at {position}',
            size=len(spec.blocks) + 1,
            limit=limits.depth,
            limit_field='max_depth',
        )
        for position, width in enumerate(widths)
    ]


def _branched(spec: ChainSpec, limits: Limits) -> list[_Proposal]:
    """Proposes another branch for every block."""
    names = _names_to_search(spec)
    return [
        _Proposal(
            growth=Growth(BRANCH, number, candidates=names),
            added=_size_of_mixed(names, block.channels),
            description=f'a branch of block {number}',
            size=len(block.branches) + 1,
            limit=limits.branches,
            limit_field='max_branches',
        )
        for number, block in enumerate(spec.blocks)
    ]


def _wider(spec: ChainSpec, params: Any, width_factor: float, limits: Limits) -> list[_Proposal]:
    """Proposes more channels for every stage."""
    proposals = []
    for stage, width in enumerate(transforms.stage_channels(spec)):
        channels = wider(width, width_factor)
        growth = Growth(WIDTH, stage, channels=channels)
        added, obstacle = 0, None
        try:
            transforms.grown_spec(spec, growth)
        except ValueError as error:
            obstacle = str(error)
        else:
            added = transforms.added_parameters(spec, params, stage, channels)
        proposals.append(
            _Proposal(
                growth=growth,
                added=added,
                description=f'widening stage {stage}',
                size=channels,
                limit=limits.channels,
                limit_field='max_channels',
                obstacle=obstacle,
            )
        )
    return proposals


def _refusal(proposal: _Proposal, size: int, max_params: int | None) -> str | None:
    """Returns why a growth is left out, or `None` if it is possible."""
    if proposal.obstacle is not None:
        return proposal.obstacle
    if proposal.size > proposal.limit:
        return (
            f'{proposal.description} would make {proposal.size}, over '
            f'growth.{proposal.limit_field}={proposal.limit}'
        )
    if max_params is not None and size + proposal.added > max_params:
        return (
            f'{proposal.description} would make {size + proposal.added} parameters, over '
            f'growth.max_params={max_params}'
        )
    return None


def wider(channels: int, factor: float) -> int:
    """Returns `channels` times `factor`, as a multiple of 8, and always a larger one than before.

    Example: `wider(8, 1.5)` is 16, `wider(64, 1.0)` is 72.
    """
    return max(chain.round_to_multiple_of_8(channels * factor), (channels // 8 + 1) * 8)


def score_candidates(
    candidates: Sequence[Candidate],
    spec: ChainSpec,
    current: SearchState,
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    key: Array,
    chosen: genotype.Genotype,
    class_weights: np.ndarray | None,
) -> list[Candidate]:
    """Scores candidates by the gradients of the network that would be derived.

    The gradient of a factor that is 0 is <dL/dy, f(x)>, with y what the block adds to, and f the
    new operation with initial weights. The score of a growth in depth or by a branch is the root
    mean square of these gradients over the candidate operations that have weights, or over all if
    none has. That of a growth in width is the root of the expected square of the gradient of the
    outgoing weights of the copies.

    Args:
      candidates: see `list_candidates`.
      spec: description of the network.
      current: its state.
      batches: validation images, normalized, `[B, H, W, C]`, and labels `[B]`; all of one shape.
      key: random key of the weights of new operations.
      chosen: genotype of that network.
      class_weights: of the loss, `[num_classes]`, see `gradients.mean_cross_entropy`.

    Returns:
      The candidates with their scores, in the same order.
    """
    variables = {
        'params': state.prune(current.params, spec, chosen),
        'batch_stats': state.prune(current.batch_stats, spec, chosen),
    }
    derived = cast(ChainSpec, genotype.keep_chosen(spec, chosen))
    insertions = [c.growth for c in candidates if c.growth.kind != WIDTH]
    gradient, slopes = _summed_gradients(
        derived, variables, insertions, batches, key, class_weights
    )

    def score(growth: Growth) -> float:
        if growth.kind != WIDTH:
            return float(np.sqrt(np.mean(np.square(slopes[growth] / len(batches)))))
        before = transforms.stage_channels(spec)[growth.where]
        # The expected number of copies of a channel: all are copied with the same probability, or
        # the same number of times.
        copies = (growth.channels - before) / before
        kernels = transforms.reading_kernels(derived, gradient, growth.where)
        return float(np.sqrt(copies * sum(np.sum(np.square(k / len(batches))) for k in kernels)))

    return [dataclasses.replace(c, score=score(c.growth)) for c in candidates]


def _summed_gradients(
    derived: ChainSpec,
    variables: Mapping[str, Any],
    insertions: Sequence[Growth],
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    key: Array,
    class_weights: np.ndarray | None,
) -> tuple[Any, dict[Growth, Any]]:
    """Adds up the gradients of all batches; for the arguments see `score_candidates`.

    Returns the gradient of `params`, on the host; and for each insertion, a growth in depth or by a
    branch, the gradients of the factors of its operations, see `_factor_gradients`.
    """
    slopes: dict[Growth, Any] = dict.fromkeys(insertions, 0.0)
    gradient = None
    for images, labels in batches:
        change, taps, streams, inputs = _backward(derived, variables, images, labels, class_weights)
        change = jax.device_get(change)  # many small arrays, which the host adds faster
        gradient = change if gradient is None else jax.tree.map(np.add, gradient, change)
        for growth in insertions:
            if growth.kind == DEPTH:
                x, g = streams[growth.where], taps[growth.where]
            else:
                x, g = inputs[growth.where], taps[growth.where + 1]
            names = tuple(n for n in growth.candidates if n not in operations.PARAMETER_FREE)
            slopes[growth] += np.asarray(_factor_gradients(names or growth.candidates, x, g, key))
    return gradient, slopes


# These run a few times each: time spent on optimizing them would not come back.
_once = functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)


@_once
def _backward(
    derived: ChainSpec,
    variables: Mapping[str, Any],
    images: Array,
    labels: Array,
    class_weights: Array | None,
) -> tuple[Any, dict[int, Array], dict[int, Array], dict[int, Array]]:
    """Computes the gradients at every position where a network could grow.

    Position 0 is behind the stem, position n behind block n - 1. The network has one candidate in
    each row.

    Returns:
      The gradient of `params`; the gradient of the features at each position, `[B, H, W, C]`; the
      features themselves; and what the operations of each block see, by the number of the block.
    """
    net = SuperNet(derived, DERIVED, 'float32')

    def run(
        params: Any, taps: Mapping[int, Array]
    ) -> tuple[Array, tuple[dict[int, Array], dict[int, Array]]]:
        # Taps are zeros that are added to the features, so that their gradient is that of those.
        streams, inputs = {}, {}

        def tap(
            call: Callable[..., Any],
            arguments: tuple[Any, ...],
            keywords: dict[str, Any],
            context: nn.module.InterceptorContext,
        ) -> Any:
            module = context.module
            if context.method_name != '__call__':
                return call(*arguments, **keywords)
            if isinstance(module, mixed_op.MixedOp):
                inputs[_number(module.path[-2])] = arguments[0]
            if not isinstance(module, chain.Block):
                return call(*arguments, **keywords)
            number = _number(module.path[-1])
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
        loss = mean_cross_entropy(logits, labels, class_weights)
        return loss, (streams, inputs)

    shapes = jax.eval_shape(run, variables['params'], {})[1][0]
    taps = {position: jnp.zeros(shape.shape, shape.dtype) for position, shape in shapes.items()}
    gradients, (streams, inputs) = jax.grad(run, (0, 1), has_aux=True)(variables['params'], taps)
    return (*gradients, streams, inputs)


@_once
def _factor_gradients(names: tuple[str, ...], x: Array, g: Array, key: Array) -> Array:
    """Returns the gradient <g, f(x)> of the factor of each operation f, with initial weights.

    x is their input, `[B, H, W, C]`, and g the gradient of what their output is added to.
    """
    products = []
    for number, name in enumerate(names):
        operation = operations.make(name, x.shape[-1], _NORM)
        y, _ = operation.init_with_output(jax.random.fold_in(key, number), x, True)
        products.append(jnp.vdot(g, y))
    return jnp.stack(products)


def _number(name: str) -> int:
    return int(name.removeprefix('block_'))


def _names_to_search(spec: ChainSpec) -> tuple[str, ...]:
    """Returns the candidates of a new mixed operation: all that any other one has."""
    return tuple(dict.fromkeys(name for _, _, row in spec.rows() for name in row))


@functools.cache
def _size_of_mixed(names: tuple[str, ...], width: int) -> int:
    """Counts the weights of a mixed operation with these candidates and so many channels."""
    x = jax.ShapeDtypeStruct((1, 8, 8, width), jnp.float32)

    def init_all(x: Array) -> list[Any]:
        return [operations.make(n, width, _NORM).init(jax.random.key(0), x, False) for n in names]

    variables = jax.eval_shape(init_all, x)
    return sum(leaf.size for leaf in jax.tree.leaves([v.get('params', {}) for v in variables]))
