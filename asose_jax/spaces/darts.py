"""Defines the space of DARTS: a normal and a reduction cell (Liu et al. 2019, arXiv:1806.09055).

A cell (section 2 there) has two inputs, the outputs of the two cells before it, and four nodes. A
node is the sum of one operation on each input and on each node before it; the output of the cell
concatenates the nodes. When the network is derived, each node keeps the two edges with the most
probable operation other than `none`.

With partial channels, edges have weights as well: a softmax over one logit for each edge of a node.
The weight multiplies the output of the edge, and its strength when edges are kept. This is the edge
normalization of PC-DARTS (Xu et al. 2020, arXiv:1907.05737, section 3.3).
"""

import ast
import contextlib
import dataclasses
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.arch import published
from asose_jax.arch.genotype import NONE, Genotype, MixedOpSite, NetSpec, channels_and_strides
from asose_jax.nn import operations
from asose_jax.nn.forward import Forward
from asose_jax.nn.mixed_op import MixedOp, edge_weights, shared_draws
from asose_jax.spaces import genotype_text
from asose_jax.spaces.genotype_text import Found

Array = jax.Array

NODES = 4  # nodes of a cell, not counting its inputs
INPUTS = 2
EDGES_PER_NODE = 2  # edges that a node keeps when the network is derived
STEM_MULTIPLIER = 3
_ARGUMENTS = ('normal', 'normal_concat', 'reduce', 'reduce_concat')  # of Genotype, in order
# Avoids 0 / 0 where fewer than two edges of a node have any probability outside of `none`.
_MIN_STRENGTH = 1e-12


@dataclasses.dataclass(frozen=True)
class DartsSpec(NetSpec):
    """Describes a sequence of normal and reduction cells.

    A group is a node of the normal cell or, after those, of the reduction cell; a member of it is
    one of the edges that lead to the node.

    Attributes:
      stem_channels: Output channels of the first 3x3 convolution.
      cells: `(channels, stride)` of each cell; those of stride 2 are reduction cells. The output of
        a cell has four times its channels.
      normal: Candidates of normal cells, by node and by the input or node at which an edge starts.
      reduce: The same for reduction cells.
    """

    SPACE = 'darts'
    EDGES_KEPT = EDGES_PER_NODE

    stem_channels: int
    cells: tuple[tuple[int, int], ...]
    normal: tuple[tuple[tuple[str, ...], ...], ...]
    reduce: tuple[tuple[tuple[str, ...], ...], ...]

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """Returns the candidates by node and edge, normal cell first."""
        return self.normal + self.reduce

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> 'DartsSpec':
        """Returns the same network with other candidates, by node and edge, normal cell first."""
        return dataclasses.replace(self, normal=groups[:NODES], reduce=groups[NODES:])

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        """Returns the path in `arch` of the alpha of an edge."""
        kind = 'reduce' if group >= NODES else 'normal'
        return (f'{kind}_{group % NODES}_{member}',)

    def edge_path(self, group: int) -> tuple[str, ...] | None:
        """Returns the path in `arch` of the edge logits of a node; `None` unless partial > 1."""
        kind = 'reduce' if group >= NODES else 'normal'
        return (f'{kind}_{group % NODES}_edges',) if self.partial > 1 else None

    def places(self, group: int, member: int) -> list[MixedOpSite]:
        """Returns the mixed operations of an edge, one in each cell of its kind."""
        (height, width, _), places = self.image_shape, []
        for i, (channels, stride) in enumerate(self.cells):
            output_size = -(-height // stride), -(-width // stride)
            if (stride == 2) == (group >= NODES):
                from_input = member < INPUTS
                size = (height, width) if from_input else output_size
                path = (f'cell_{i}', f'edge_{group % NODES}_{member}')
                places.append(MixedOpSite(path, (*size, channels), stride if from_input else 1))
            height, width = output_size
        return places

    def choose(self, rows: Sequence[Any], edges: Sequence[Any] | None = None) -> list[Any]:
        """Returns the index of the candidate that each row chooses when the network is derived.

        A node keeps the two edges whose best operation other than `none` is the most probable; of
        equals, the earlier ones. All other edges choose `none`.
        """
        xp = np if isinstance(rows[0], np.ndarray) else jnp
        chosen, remaining = [], iter(rows)
        for group, members in enumerate(self.groups()):
            # With -1 instead of its probability, `none` is never the best operation of an edge, and
            # an edge of a derived network that has no other candidate ranks last.
            scores = [xp.where(np.array(names) == NONE, -1.0, next(remaining)) for names in members]
            strengths = xp.stack([row.max() for row in scores])
            if edges is not None and edges[group] is not None:
                strengths = strengths * edges[group]
            for rank, row, names in zip(_ranks(strengths), scores, members, strict=True):
                none_index = names.index(NONE) if NONE in names else 0
                chosen.append(xp.where(rank < EDGES_PER_NODE, row.argmax(), none_index))
        return chosen

    def shares(self, rows: Sequence[Any]) -> list[Any]:
        """Returns how likely each candidate is in a network that is derived at random.

        At random, a node keeps two edges, and each of them one operation other than `none`. The
        strength of an edge is the largest probability of such an operation, by which `choose` ranks
        edges; a pair of edges is kept with a probability proportional to the product of their
        strengths. On an edge that is kept, operations are chosen in proportion to their
        probabilities. Where alpha is sure of a genotype, its operations have shares of 1.
        """
        xp = np if isinstance(rows[0], np.ndarray) else jnp
        shares, remaining = [], iter(rows)
        for members in self.groups():
            scores = [xp.where(np.array(names) == NONE, 0.0, next(remaining)) for names in members]
            strengths = xp.maximum(xp.stack([row.max() for row in scores]), _MIN_STRENGTH)
            strengths = strengths / strengths.max()
            others = (1.0 - np.eye(len(members), dtype=np.float32)) @ strengths
            pairs = strengths * others
            kept_probabilities = EDGES_PER_NODE * pairs / pairs.sum()
            shares += [
                kept * row / xp.maximum(row.sum(), _MIN_STRENGTH)
                for kept, row in zip(kept_probabilities, scores, strict=True)
            ]
        return shares

    def used(self, genotype: Genotype) -> list[str]:
        """Returns the chosen operations, without the `none` of edges that are not kept."""
        return [name for name in super().used(genotype) if name != NONE]


def _ranks(strengths: np.ndarray | Array) -> np.ndarray | Array:
    """Returns how many edges rank before each edge; of equals, the earlier one ranks first."""
    positions = np.arange(len(strengths))
    theirs, own = strengths[None, :], strengths[:, None]
    earlier = positions[None, :] < positions[:, None]
    return ((theirs > own) | ((theirs == own) & earlier)).sum(1)


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: int,
    depth: int,
    reductions: tuple[int, ...],
    max_channels: int,
    primitives: tuple[str, ...],
) -> DartsSpec:
    """Builds the initial supernet.

    Args:
      image_shape: Shape of an image, `(H, W, C)`.
      num_classes: Number of classes.
      channels: Channels of a node before the first reduction; the stem has three times as many.
      depth: Number of cells.
      reductions: Indices of the reduction cells, which halve the image and double the channels.
      max_channels: Limit to this doubling.
      primitives: Candidates of every edge.

    Returns:
      The description of the supernet.
    """
    cells = channels_and_strides(channels, depth, reductions, max_channels)
    cell = tuple((tuple(primitives),) * (INPUTS + node) for node in range(NODES))
    stem = STEM_MULTIPLIER * channels
    return DartsSpec((*image_shape,), num_classes, stem, cells, cell, cell)


class Cell(nn.Module):
    """Computes a cell of two inputs, whose output has four times `channels`.

    Attributes:
      edges: Candidates by node and by the input or node at which an edge starts.
      factors: Whether the candidates have factors, by node and edge.
      channels: Channels of every node.
      stride: Stride of the edges that start at an input.
      halves: Whether the earlier input is twice as large as the later one.
      forward: Settings of this pass through the network.
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
        """Applies the cell.

        Args:
          earlier: Output of the cell before the previous one, `[B, H, W, C]` with any C; its images
            are twice as large if `halves` is set.
          later: Output of the previous cell, `[B, H, W, C]` with any C.
          weights: Architecture weights `[K]` by node and edge; `None` where nothing is chosen.
          shares: Weights `[edges]` of the edges of each node; `None` for a node without.

        Returns:
          Features `[B, ceil(H / stride), ceil(W / stride), 4 * channels]`.
        """
        norm, train = self.forward.norm, self.forward.train
        if self.halves:
            first = operations.FactorizedReduce(self.channels, norm, name='input_0')(earlier, train)
        else:
            first = operations.ReluConvNorm(self.channels, norm, 1, name='input_0')(earlier, train)
        second = operations.ReluConvNorm(self.channels, norm, 1, name='input_1')(later, train)
        states = [first, second]
        small = second[:, :: self.stride, :: self.stride]
        for g, edges in enumerate(self.edges):
            total, edge_shares = jnp.zeros_like(small), shares[g]
            for m, candidates in enumerate(edges):
                if candidates == (NONE,):
                    continue
                stride, factor = self.stride if m < INPUTS else 1, self.factors[g][m]
                name = f'edge_{g}_{m}'
                mixed = MixedOp(candidates, self.channels, self.forward, stride, factor, name=name)
                y = mixed(states[m], weights[g][m])
                total += y if edge_shares is None else operations.scale(edge_shares[m], y)
            states.append(total)
        return jnp.concatenate(states[INPUTS:], -1)


def body(spec: DartsSpec, forward: Forward, x: Array) -> Iterator[Array]:
    """Applies everything but the head. All cells of a kind use the same draws.

    To be called in a compact Linen module, which owns the layers.

    Yields:
      The features `[B, H, W, C]` after each cell.
    """
    shares = edge_weights(spec)
    weights = shared_draws(spec, forward, shares)
    x = operations.Conv(spec.stem_channels, (3, 3), name='stem')(x)
    x = forward.norm(use_running_average=not forward.train, name='stem_norm')(x)
    earlier, later, halves = x, x, False
    for i, (channels, stride) in enumerate(spec.cells):
        edges, groups = spec.normal, slice(NODES)
        if stride == 2:
            edges, groups = spec.reduce, slice(NODES, None)
        factors = spec.factored()[groups]
        cell = Cell(edges, factors, channels, stride, halves, forward, name=f'cell_{i}')
        y = cell(earlier, later, weights[groups], shares[groups])
        earlier, later, halves = later, y, stride == 2
        yield later


def dumps(chosen: Genotype) -> str:
    """Returns the text that DARTS and related programs exchange.

    Its form is `Genotype(normal=[(operation, input), ...], normal_concat=range(2, 6), reduce=...,
    reduce_concat=...)`, with two pairs for each node.
    """
    cells = {
        'normal': chosen.operations[:NODES],
        'reduce': chosen.operations[NODES:],
    }
    parts = []
    for kind, nodes in cells.items():
        edges = [(name, edge) for node in nodes for edge, name in enumerate(node) if name != NONE]
        parts += [f'{kind}={edges!r}', f'{kind}_concat=range({INPUTS}, {INPUTS + NODES})']
    return f'Genotype({", ".join(parts)})'


def loads(text: str, name: str | None = None) -> Genotype:
    """Parses the text of a genotype, as `dumps` and programs related to DARTS write it.

    Args:
      text: The output of `dumps`, or a text that holds it: a Python file with imports and
        definitions, or lines of a log. Arguments may be positional. A genotype may nest the two
        pairs of each node in a tuple or list of their own, and list the concatenated nodes instead
        of a range.
      name: Variable that the genotype is assigned to, where the text holds several.

    Returns:
      The genotype.

    Raises:
      ValueError: The text holds no such genotype, its cells are not of this space, or it holds
        several and `name` does not say which.
    """
    own = genotype_text.choose(_find(text), name)
    try:
        statement = ast.parse((text if own is None else own).strip()).body[0]
        call = cast(Any, statement).value  # raises if the statement is no expression
        arguments: dict[str, Any] = dict(zip(_ARGUMENTS, call.args, strict=False))
        arguments |= {keyword.arg: keyword.value for keyword in call.keywords}
        cells = [(arguments[kind], arguments[f'{kind}_concat']) for kind in ('normal', 'reduce')]
        edges = [ast.literal_eval(cell) for cell, _ in cells]
        outputs = [ast.unparse(concat).replace(' ', '') for _, concat in cells]
    except (SyntaxError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            'not a DARTS genotype; expected Genotype(normal=[(operation, input), ...], '
            'normal_concat=range(2, 6), reduce=[...], reduce_concat=range(2, 6)), got '
            f'{(own or text)[:60]!r}'
        ) from error
    allowed = {'range(2,6)', '[2,3,4,5]', '(2,3,4,5)', 'list(range(2,6))'}
    if not allowed.issuperset(outputs):
        raise ValueError(
            'the output of a DARTS cell concatenates nodes 2 to 5: normal_concat and reduce_concat '
            f'must be range(2, 6), not {outputs[0]} and {outputs[1]}'
        )
    return Genotype(tuple(node for cell in edges for node in _parse_nodes(cell)))


def _find(text: str) -> list[Found]:
    """Returns the genotypes in a Python file or, where the text is no Python, in its lines."""
    try:
        tree = ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return _find_in_lines(text)
    names: dict[ast.AST, str] = {}
    aliases: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            targets = [node.target.id]
        elif isinstance(node, ast.Dict):
            keys = [(k, v) for k, v in zip(node.keys, node.values, strict=True) if k is not None]
            names |= {v: str(k.value) for k, v in keys if isinstance(k, ast.Constant)}
            continue
        else:
            continue
        if isinstance(node.value, ast.Name):
            aliases.setdefault(node.value.id, []).extend(targets)
        elif node.value is not None and targets:
            names[node.value] = targets[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_genotype(node):
            name, own = names.get(node), ast.unparse(node)
            every = [name, *aliases.get(name or '', ())]
            found += [Found(own, node.lineno, label) for label in every]
    return sorted(found, key=lambda entry: entry.line)


def _is_genotype(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', '')
    return name == 'Genotype'


def _find_in_lines(text: str) -> list[Found]:
    """Returns the genotypes that stand in lines of other text, such as a log or a table."""
    found = []
    for start in re.finditer(r'(?<!class )\b(?:\w+\.)*Genotype\(', text):
        for end in re.finditer(r'\)', text[start.end() :]):
            own = text[start.start() : start.end() + end.end()]
            if own.count('(') == own.count(')'):
                before = text[: start.start()]
                name = genotype_text.name_before(before.rpartition('\n')[2])
                with contextlib.suppress(SyntaxError, ValueError):
                    own = ast.unparse(ast.parse(own))
                found.append(Found(own, 1 + before.count('\n'), name))
                break
    return found


def _parse_nodes(cell: Any) -> Iterator[tuple[str, ...]]:
    """Yields the operations of each node, one for each of its edges, from a list of pairs."""
    if not isinstance(cell, list) or not all(isinstance(entry, tuple | list) for entry in cell):
        raise ValueError(f'a DARTS cell must be a list of (operation, input), not {cell!r}')
    pairs = [pair for entry in cell for pair in (entry if _is_nested(entry) else [entry])]
    if len(pairs) != EDGES_PER_NODE * NODES:
        raise ValueError(
            f'a DARTS cell has {EDGES_PER_NODE * NODES} edges; this one has {len(pairs)}: {cell}'
        )
    for node in range(NODES):
        names = [NONE] * (INPUTS + node)
        for pair in pairs[EDGES_PER_NODE * node : EDGES_PER_NODE * (node + 1)]:
            known = len(pair) == 2 and pair[0] in published.DARTS[1:]
            if not known or pair[1] not in range(INPUTS + node) or names[pair[1]] != NONE:
                raise ValueError(
                    f'edge {pair} of node {INPUTS + node} does not fit the DARTS space: a node '
                    'takes two different inputs before it, by operations out of '
                    f'{published.DARTS[1:]}'
                )
            names[pair[1]] = pair[0]
        yield tuple(names)


def _is_nested(entry: tuple | list) -> bool:
    return all(isinstance(part, tuple | list) for part in entry)
