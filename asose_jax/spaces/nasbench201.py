"""Defines the space of NAS-Bench-201: one repeated cell of four nodes (arXiv:2001.00326, sec. 2).

Node i of a cell is the sum of one operation on each node before it; node 0 is the input of the
cell, node 3 its output. Cells form three stages, separated by residual blocks that halve the image.
"""

import dataclasses
import re
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch import published
from asose_jax.arch.genotype import Genotype, MixedOpSite, NetSpec, channels_and_strides
from asose_jax.nn import operations
from asose_jax.nn.forward import Forward
from asose_jax.nn.mixed_op import MixedOp, shared_draws
from asose_jax.spaces import genotype_text
from asose_jax.spaces.genotype_text import Found

Array = jax.Array

NODES = 3  # nodes of a cell, not counting its input
_EDGES = r'(?:[^|¦~+\s]+~[^|¦~+\s]+(?P=bar))++'
# A cell in other text. What goes on in front of it or behind it is no whole cell, and not found.
_CELL = re.compile(
    rf'(?<![\w|¦+~])(?<!\+\s)(?P<bar>[|¦]){_EDGES}(?:\s*\+\s*(?P=bar){_EDGES})*+(?!\w|\s*[+|¦])'
)


@dataclasses.dataclass(frozen=True)
class NasBench201Spec(NetSpec):
    """Describes a sequence of cells and residual blocks; all cells are alike.

    A group is a node of the cell, a member of it one of the edges that lead to the node.

    Attributes:
      stem_channels: Output channels of the first 3x3 convolution.
      modules: `(channels, stride)` of each module. Stride 1 is a cell, stride 2 a residual block.
      cell: Candidates by node (1 to 3) and by the node at which an edge starts.
    """

    SPACE = 'nasbench201'

    stem_channels: int
    modules: tuple[tuple[int, int], ...]
    cell: tuple[tuple[tuple[str, ...], ...], ...]

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """Returns the candidates by node and edge."""
        return self.cell

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> 'NasBench201Spec':
        """Returns the same network with other candidates, by node and edge."""
        return dataclasses.replace(self, cell=groups)

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        """Returns the path in `arch` of the alpha of an edge."""
        return (f'choice_{group}_{member}',)

    def places(self, group: int, member: int) -> list[MixedOpSite]:
        """Returns the mixed operations of an edge, one in each cell."""
        (height, width, _), places = self.image_shape, []
        for i, (channels, stride) in enumerate(self.modules):
            height, width = -(-height // stride), -(-width // stride)
            if stride == 1:
                path = (f'cell_{i}', f'edge_{group}_{member}')
                places.append(MixedOpSite(path, (height, width, channels), 1))
        return places


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: int,
    depth: int,
    reductions: tuple[int, ...],
    max_channels: int,
    primitives: tuple[str, ...],
) -> NasBench201Spec:
    """Builds the initial supernet.

    Args:
      image_shape: Shape of an image, `(H, W, C)`.
      num_classes: Number of classes.
      channels: Output channels of the stem.
      depth: Number of modules: cells and residual blocks.
      reductions: Indices of the modules that are residual blocks, which halve the image and double
        the channels.
      max_channels: Limit to this doubling.
      primitives: Candidates of every edge.

    Returns:
      The description of the supernet.
    """
    modules = channels_and_strides(channels, depth, reductions, max_channels)
    cell = tuple((tuple(primitives),) * (node + 1) for node in range(NODES))
    return NasBench201Spec((*image_shape,), num_classes, channels, modules, cell)


class Cell(nn.Module):
    """Computes a cell, which keeps size and channels of its input.

    Attributes:
      cell: Candidates by node and by the node at which an edge starts.
      factors: Whether the candidates have factors, by node and edge.
      forward: Settings of this pass through the network.
    """

    cell: tuple[tuple[tuple[str, ...], ...], ...]
    factors: tuple[tuple[bool, ...], ...]
    forward: Forward

    @nn.compact
    def __call__(self, x: Array, weights: list[list[Array | None]]) -> Array:
        """Applies the cell.

        Args:
          x: Features `[B, H, W, C]`.
          weights: Architecture weights `[K]` by node and edge; `None` where nothing is chosen.

        Returns:
          Features `[B, H, W, C]`.
        """
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
    """Halves the image: two ReLU-Conv-BN, beside a 2x2 average pooling and a 1x1 convolution.

    Attributes:
      channels: Number of channels of the output.
      forward: Settings of this pass through the network.
    """

    channels: int
    forward: Forward

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps features `[B, H, W, C]` to `[B, ceil(H / 2), ceil(W / 2), channels]`."""
        norm, train = self.forward.norm, self.forward.train
        shortcut = nn.avg_pool(
            x,
            (2, 2),
            (2, 2),
            # Flax takes pairs too:
            ((0, x.shape[1] % 2), (0, x.shape[2] % 2)),  # pyright: ignore[reportArgumentType]
        )
        shortcut = operations.pointwise(self.channels, x.dtype, 'aside')(shortcut)
        for i in range(2):
            layer = operations.ReluConvNorm(self.channels, norm, 3, stride=2 - i, name=f'conv_{i}')
            x = layer(x, train)
        return shortcut + x


def body(spec: NasBench201Spec, forward: Forward, x: Array) -> Iterator[Array]:
    """Applies everything but the head. All cells use the same draws.

    To be called in a compact Linen module, which owns the layers.

    Yields:
      The features `[B, H, W, C]` after each module.
    """
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
    """Returns the cell as the benchmark writes it: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    nodes = [
        '|'.join(['', *(f'{name}~{edge}' for edge, name in enumerate(node)), ''])
        for node in chosen.operations
    ]
    return '+'.join(nodes)


def loads(text: str, name: str | None = None) -> Genotype:
    """Parses the text of a cell, as `dumps` writes it.

    Args:
      text: For example `|none~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|`, or a text
        that holds it, such as lines of a log. `¦` may stand for `|`, as in summary.md.
      name: Name that stands before the cell, where the text holds several.

    Returns:
      The genotype.

    Raises:
      ValueError: The text holds no cell of this space, or several and `name` does not say which.
    """
    own = genotype_text.choose(_find(text), name)
    text = (text if own is None else own).replace('¦', '|')
    nodes = []
    for number, node in enumerate(text.strip().split('+'), start=1):
        edges = [edge.split('~') for edge in node.strip().strip('|').split('|')]
        known = all(len(edge) == 2 and edge[0] in published.NASBENCH201 for edge in edges)
        if not known or [edge[1] for edge in edges] != [str(i) for i in range(number)]:
            raise ValueError(
                f'node {number} of this NAS-Bench-201 cell is {node[:60]!r}; expected one '
                f'operation for each node before it, |op~0|...|op~{number - 1}|, where op is one '
                f'of {", ".join(published.NASBENCH201)}'
            )
        nodes.append(tuple(edge[0] for edge in edges))
    if len(nodes) != NODES:
        raise ValueError(f'this NAS-Bench-201 cell has {len(nodes)} nodes instead of {NODES}')
    return Genotype(tuple(nodes))


def _find(text: str) -> list[Found]:
    """Returns the cells that stand in a text; equal ones have equal texts."""
    found = []
    for cell in _CELL.finditer(text):
        before = text[: cell.start()]
        name = genotype_text.name_before(before.rpartition('\n')[2])
        own = ''.join(cell[0].replace('¦', '|').split())
        found.append(Found(own, 1 + before.count('\n'), name))
    return found
