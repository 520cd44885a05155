"""The space of NAS-Bench-201: one cell of four nodes, repeated (arXiv:2001.00326, section 2).

Node i of a cell is the sum of an operation on each node before it; node 0 is the cell's input, and
node 3 its output. Three stages of cells, between them residual blocks that halve the image.
"""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch.genotype import Genotype, NetSpec, Place, widths
from asose_jax.nn import operations
from asose_jax.nn.forward import Forward
from asose_jax.nn.mixed_op import MixedOp, shared_draws

Array = jax.Array

PRIMITIVES = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
NODES = 3  # of a cell, but for its input


@dataclasses.dataclass(frozen=True)
class NasBench201Spec(NetSpec):
    """Cells and residual blocks, one after another; all cells are alike.

    Attributes:
      stem_channels: of the 3x3 convolution at the entrance.
      modules: `(channels, stride)` of each: stride 1 is a cell, stride 2 a residual block.
      cell: candidates by node (1 to 3) and by the node that an edge comes from.
    """

    SPACE = 'nasbench201'

    stem_channels: int
    modules: tuple[tuple[int, int], ...]
    cell: tuple[tuple[tuple[str, ...], ...], ...]

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        return self.cell

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> 'NasBench201Spec':
        return dataclasses.replace(self, cell=groups)

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        return (f'choice_{group}_{member}',)

    def places(self, group: int, member: int) -> list[Place]:
        (height, width, _), found = self.image_shape, []
        for i, (channels, stride) in enumerate(self.modules):
            height, width = -(-height // stride), -(-width // stride)
            if stride == 1:
                path = (f'cell_{i}', f'edge_{group}_{member}')
                found.append(Place(path, (height, width, channels), 1))
        return found


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: int = 16,
    depth: int = 17,
    reductions: tuple[int, ...] = (5, 11),
    max_channels: int = 64,
    primitives: tuple[str, ...] = PRIMITIVES,
) -> NasBench201Spec:
    """The supernet at the start; the defaults are the benchmark's, five cells a stage.

    Of `depth` modules, those in `reductions` are residual blocks, the others are cells.
    """
    modules = widths(channels, depth, reductions, max_channels)
    cell = tuple((tuple(primitives),) * (node + 1) for node in range(NODES))
    return NasBench201Spec(tuple(image_shape), num_classes, channels, modules, cell)


class Cell(nn.Module):
    """Keeps size and channels.

    Attributes:
      cell: candidates, by node and by the node that an edge comes from.
      factors: likewise, whether they have factors.
      forward: the pass.
    """

    cell: tuple[tuple[tuple[str, ...], ...], ...]
    factors: tuple[tuple[bool, ...], ...]
    forward: Forward

    @nn.compact
    def __call__(self, x: Array, weights: list[list[Array | None]]) -> Array:
        nodes = [x]
        for g, edges in enumerate(self.cell):
            total = jnp.zeros_like(x)
            for m, candidates in enumerate(edges):
                if candidates != ('none',):
                    name = f'edge_{g}_{m}'
                    factor = self.factors[g][m]
                    mixed = MixedOp(candidates, x.shape[-1], self.forward, factor=factor, name=name)
                    total += mixed(nodes[m], weights[g][m])
            nodes.append(total)
        return nodes[-1]


class ResidualBlock(nn.Module):
    """Two ReLU-convolution-BatchNorm, and beside them a mean of 2x2 pixels and a 1x1."""

    channels: int
    forward: Forward

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm, train = self.forward.norm, self.forward.train
        aside = nn.avg_pool(x, (2, 2), (2, 2), ((0, x.shape[1] % 2), (0, x.shape[2] % 2)))
        aside = operations.pointwise(self.channels, x.dtype, 'aside')(aside)
        for i in range(2):
            part = operations.ReluConvNorm(self.channels, norm, 3, stride=2 - i, name=f'conv_{i}')
            x = part(x, train)
        return aside + x


def body(spec: NasBench201Spec, forward: Forward, x: Array) -> Iterator[Array]:
    """All but the head, inside of the module that calls it. All cells share their draws."""
    weights = shared_draws(spec, forward)
    average = not forward.train
    x = operations.Conv(spec.stem_channels, (3, 3), name='stem')(x)
    x = forward.norm(use_running_average=average, name='stem_norm')(x)
    for i, (channels, stride) in enumerate(spec.modules):
        if stride == 1:
            x = Cell(spec.cell, spec.factored(), forward, name=f'cell_{i}')(x, weights)
        else:
            x = ResidualBlock(channels, forward, name=f'reduction_{i}')(x)
        if i + 1 == len(spec.modules):
            x = nn.relu(forward.norm(use_running_average=average, name='last_norm')(x))
        yield x


def dumps(chosen: Genotype) -> str:
    """The benchmark's own text: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    nodes = [
        '|'.join(['', *(f'{name}~{edge}' for edge, name in enumerate(node)), ''])
        for node in chosen.operations
    ]
    return '+'.join(nodes)


def loads(text: str) -> Genotype:
    """The inverse of `dumps`.

    Raises:
      ValueError: it is something else.
    """
    nodes = []
    for number, node in enumerate(text.strip().split('+'), start=1):
        edges = [edge.split('~') for edge in node.strip().strip('|').split('|')]
        known = all(len(edge) == 2 and edge[0] in PRIMITIVES for edge in edges)
        if not known or [edge[1] for edge in edges] != [str(i) for i in range(number)]:
            raise ValueError(
                f'node {number} of this NAS-Bench-201 cell is {node!r}; it needs an operation for '
                f'each node before it, |op~0|...|op~{number - 1}|, out of {", ".join(PRIMITIVES)}'
            )
        nodes.append(tuple(edge[0] for edge in edges))
    if len(nodes) != NODES:
        raise ValueError(f'this NAS-Bench-201 cell has {len(nodes)} nodes instead of {NODES}')
    return Genotype(tuple(nodes))
