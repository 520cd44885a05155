"""The space of DARTS: a normal and a reduction cell (Liu et al. 2019, arXiv:1806.09055, section 2).

A cell has two inputs, the outputs of the two cells before it, and four nodes; a node is the sum of
an operation on each input and on each node before it, and the output has the nodes side by side.
Derived, a node keeps the two edges that are surest of an operation other than `none`.

With partial channels, edges have weights as well: the softmax of a logit for each edge of a node,
which multiplies what the edge gives, and what it is sure of. This is the edge normalization of
PC-DARTS (Xu et al. 2020, arXiv:1907.05737, section 3.3).
"""

import ast
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.arch.genotype import NONE, Genotype, NetSpec, Place, widths
from asose_jax.nn import operations
from asose_jax.nn.forward import Forward
from asose_jax.nn.mixed_op import MixedOp, edge_weights, shared_draws

Array = jax.Array

PRIMITIVES = (
    'none',
    'max_pool_3x3',
    'avg_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_3x3',
    'dil_conv_5x5',
)
NODES = 4  # of a cell, but for its inputs
INPUTS = 2
KEPT = 2  # edges of a node, when derived
STEM_MULTIPLIER = 3
_LEAST = 1e-12  # where a node has no two edges with anything but none


@dataclasses.dataclass(frozen=True)
class DartsSpec(NetSpec):
    """Cells, one after another.

    Attributes:
      stem_channels: of the 3x3 convolution at the entrance.
      cells: `(channels, stride)` of each: those of stride 2 are reduction cells. Their output has
        four times the channels.
      normal: candidates of normal cells, by node and by what an edge comes from.
      reduce: those of reduction cells.
    """

    SPACE = 'darts'
    EDGES_KEPT = KEPT

    stem_channels: int
    cells: tuple[tuple[int, int], ...]
    normal: tuple[tuple[tuple[str, ...], ...], ...]
    reduce: tuple[tuple[tuple[str, ...], ...], ...]

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        return self.normal + self.reduce

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> 'DartsSpec':
        return dataclasses.replace(self, normal=groups[:NODES], reduce=groups[NODES:])

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        kind = 'reduce' if group >= NODES else 'normal'
        return (f'{kind}_{group % NODES}_{member}',)

    def edge_path(self, group: int) -> tuple[str, ...] | None:
        kind = 'reduce' if group >= NODES else 'normal'
        return (f'{kind}_{group % NODES}_edges',) if self.partial > 1 else None

    def places(self, group: int, member: int) -> list[Place]:
        (height, width, _), found = self.image_shape, []
        for i, (channels, stride) in enumerate(self.cells):
            small = -(-height // stride), -(-width // stride)
            if (stride == 2) == (group >= NODES):
                entering = member < INPUTS
                size = (height, width) if entering else small
                path = (f'cell_{i}', f'edge_{group % NODES}_{member}')
                found.append(Place(path, (*size, channels), stride if entering else 1))
            height, width = small
        return found

    def choose(self, rows: Sequence[Any], edges: Sequence[Any] | None = None) -> list[Any]:
        xp = np if isinstance(rows[0], np.ndarray) else jnp
        found, left = [], iter(rows)
        for group, members in enumerate(self.groups()):
            # A single candidate is none where an edge is left out already.
            sure = [xp.where(np.array(names) == NONE, -1.0, next(left)) for names in members]
            strengths = xp.stack([row.max() for row in sure])
            if edges is not None and edges[group] is not None:
                strengths = strengths * edges[group]
            for rank, row, names in zip(_ranks(strengths), sure, members, strict=True):
                left_out = names.index(NONE) if NONE in names else 0
                found.append(xp.where(rank < KEPT, row.argmax(), left_out))
        return found

    def shares(self, rows: Sequence[Any]) -> list[Any]:
        """By chance, a node keeps two edges, and an edge one operation that is not `none`.

        A pair of edges is as likely as the product of what they derive by, their largest
        probabilities of such an operation; the operations of an edge that stays are as likely as
        their probabilities. Where alpha is sure of a genotype, its operations have shares of 1.
        """
        xp = np if isinstance(rows[0], np.ndarray) else jnp
        found, left = [], iter(rows)
        for edges in self.groups():
            sure = [xp.where(np.array(names) == NONE, 0.0, next(left)) for names in edges]
            strengths = xp.maximum(xp.stack([row.max() for row in sure]), _LEAST)
            strengths = strengths / strengths.max()
            others = (1.0 - np.eye(len(edges), dtype=np.float32)) @ strengths
            pairs = strengths * others
            kept = KEPT * pairs / pairs.sum()
            found += [
                k * row / xp.maximum(row.sum(), _LEAST) for k, row in zip(kept, sure, strict=True)
            ]
        return found

    def used(self, genotype: Genotype) -> list[str]:
        return [name for name in super().used(genotype) if name != NONE]


def _ranks(strengths):
    """How many others are stronger; of equals, the earlier one is."""
    places = np.arange(len(strengths))
    theirs, own = strengths[None, :], strengths[:, None]
    before = places[None, :] < places[:, None]
    return ((theirs > own) | ((theirs == own) & before)).sum(1)


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: int = 16,
    depth: int = 8,
    reductions: tuple[int, ...] = (2, 5),
    max_channels: int = 256,
    primitives: tuple[str, ...] = PRIMITIVES,
) -> DartsSpec:
    """The supernet at the start; the defaults are those of the paper's search.

    Of `depth` cells, those in `reductions` halve the image and double the channels.
    """
    cells = widths(channels, depth, reductions, max_channels)
    cell = tuple((tuple(primitives),) * (INPUTS + node) for node in range(NODES))
    stem = STEM_MULTIPLIER * channels
    return DartsSpec(tuple(image_shape), num_classes, stem, cells, cell, cell)


class Cell(nn.Module):
    """Two inputs of any width; the output has four times `channels`.

    Attributes:
      edges: candidates, by node and by what an edge comes from.
      factors: likewise, whether they have factors.
      channels: of every node.
      stride: of edges that come from the inputs.
      halves: whether the earlier input is twice as large as the later one.
      forward: the pass.
    """

    edges: tuple[tuple[tuple[str, ...], ...], ...]
    factors: tuple[tuple[bool, ...], ...]
    channels: int
    stride: int
    halves: bool
    forward: Forward

    @nn.compact
    def __call__(
        self,
        earlier: Array,
        later: Array,
        weights: list[list[Array | None]],
        shares: list[Array | None],
    ) -> Array:
        """`shares`: the weights of every node's edges, if they have any."""
        norm, train = self.forward.norm, self.forward.train
        if self.halves:
            first = operations.FactorizedReduce(self.channels, norm, name='input_0')(earlier, train)
        else:
            first = operations.ReluConvNorm(self.channels, norm, 1, name='input_0')(earlier, train)
        second = operations.ReluConvNorm(self.channels, norm, 1, name='input_1')(later, train)
        states = [first, second]
        small = second[:, :: self.stride, :: self.stride]
        for g, edges in enumerate(self.edges):
            total = jnp.zeros_like(small)
            for m, candidates in enumerate(edges):
                if candidates == (NONE,):
                    continue
                stride, factor = self.stride if m < INPUTS else 1, self.factors[g][m]
                name = f'edge_{g}_{m}'
                mixed = MixedOp(candidates, self.channels, self.forward, stride, factor, name=name)
                y = mixed(states[m], weights[g][m])
                total += y if shares[g] is None else operations.scale(shares[g][m], y)
            states.append(total)
        return jnp.concatenate(states[INPUTS:], -1)


def body(spec: DartsSpec, forward: Forward, x: Array) -> Iterator[Array]:
    """All but the head, inside of the module that calls it. Cells of a kind share their draws."""
    shares = edge_weights(spec)
    weights = shared_draws(spec, forward, shares)
    x = operations.Conv(spec.stem_channels, (3, 3), name='stem')(x)
    x = forward.norm(use_running_average=not forward.train, name='stem_norm')(x)
    earlier, later, halves = x, x, False
    for i, (channels, stride) in enumerate(spec.cells):
        edges, own = spec.normal, slice(NODES)
        if stride == 2:
            edges, own = spec.reduce, slice(NODES, None)
        factors = spec.factored()[own]
        cell = Cell(edges, factors, channels, stride, halves, forward, name=f'cell_{i}')
        y = cell(earlier, later, weights[own], shares[own])
        earlier, later, halves = later, y, stride == 2
        yield later


def dumps(chosen: Genotype) -> str:
    """The text that DARTS and its kin exchange: `Genotype(normal=[(op, input), ...], ...)`."""
    cells = {
        'normal': chosen.operations[:NODES],
        'reduce': chosen.operations[NODES:],
    }
    parts = []
    for kind, nodes in cells.items():
        edges = [(name, edge) for node in nodes for edge, name in enumerate(node) if name != NONE]
        parts += [f'{kind}={edges!r}', f'{kind}_concat=range({INPUTS}, {INPUTS + NODES})']
    return f'Genotype({", ".join(parts)})'


def loads(text: str) -> Genotype:
    """The inverse of `dumps`; also of its dialects: `NAME = `, nested pairs, lists for ranges.

    Raises:
      ValueError: it is something else, or a cell of another space.
    """
    try:
        call = ast.parse(text.strip()).body[0].value
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        cells = [(given[kind], given[f'{kind}_concat']) for kind in ('normal', 'reduce')]
        edges = [ast.literal_eval(cell) for cell, _ in cells]
        outputs = [ast.unparse(concat).replace(' ', '') for _, concat in cells]
    except (SyntaxError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            'this is no DARTS genotype: Genotype(normal=[(operation, input), ...], '
            f'normal_concat=range(2, 6), reduce=..., reduce_concat=...): {text[:200]!r}'
        ) from error
    legal = {'range(2,6)', '[2,3,4,5]', '(2,3,4,5)', 'list(range(2,6))'}
    if not legal.issuperset(outputs):
        raise ValueError(f'DARTS cells give out nodes 2 to 5, not {outputs[0]} and {outputs[1]}')
    return Genotype(tuple(node for cell in edges for node in _nodes(cell)))


def _nodes(cell):
    """The operations by node and edge of a list of (operation, input), two for each node."""
    if not isinstance(cell, list) or not all(isinstance(pair, tuple | list) for pair in cell):
        raise ValueError(f'a DARTS cell is a list of (operation, input), not {cell!r}')
    flat = [pair for each in cell for pair in (each if _nested(each) else [each])]
    if len(flat) != KEPT * NODES:
        raise ValueError(f'a DARTS cell has {KEPT * NODES} edges; this one has {len(flat)}: {cell}')
    for node in range(NODES):
        names = [NONE] * (INPUTS + node)
        for pair in flat[KEPT * node : KEPT * (node + 1)]:
            known = len(pair) == 2 and pair[0] in PRIMITIVES[1:]
            if not known or pair[1] not in range(INPUTS + node) or names[pair[1]] != NONE:
                raise ValueError(
                    f'edge {pair} of node {INPUTS + node} does not fit the DARTS space: a node has '
                    f'two different inputs before it, and operations out of {PRIMITIVES[1:]}'
                )
            names[pair[1]] = pair[0]
        yield tuple(names)


def _nested(pair):
    return all(isinstance(part, tuple | list) for part in pair)
