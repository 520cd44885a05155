"""Draws networks: a chain as blocks from top to bottom, a cell as nodes and edges.

A drawing holds plain numbers in SVG units, which `templates/shapes.jinja` turns into shapes.
Operations differ in text and outline, not in colour alone. A space that `draw` does not know is
drawn as a list of its rows.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from asose_jax.arch.genotype import FALLBACK, NetSpec
from asose_jax.metrics.run_record import Network
from asose_jax.spaces import chain, darts
from asose_jax.spaces.chain import ChainSpec
from asose_jax.spaces.darts import DartsSpec
from asose_jax.spaces.nasbench201 import NasBench201Spec

WIDTH = 340.0
_LEFT_OUT = 'none'

# Coordinates of a chain: x of the main path, of the residual path, and of the blocks.
_TRUNK, _SIDE, _LEFT = 150.0, 14.0, 34.0


@dataclasses.dataclass
class Drawing:
    """Collects shapes, in the order in which they are drawn.

    Attributes:
      title: title of the drawing.
      alt: description in words, for screen readers.
      height: height of the whole; the width is `WIDTH`.
      boxes: rectangles: `x, y, w, h, kind`.
      lines: paths: `path, kind`.
      texts: texts: `x, y, text, anchor, kind`.
    """

    title: str
    alt: str = ''
    height: float = 0.0
    boxes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    texts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, kind: str) -> None:
        """Adds a rectangle with its upper left corner at (x, y); `kind` is its CSS class."""
        self.boxes.append({'x': x, 'y': y, 'w': w, 'h': h, 'kind': kind})

    def line(self, path: str, kind: str = 'wire') -> None:
        """Adds an SVG path; `kind` is its CSS class."""
        self.lines.append({'path': path, 'kind': kind})

    def text(self, x: float, y: float, text: str, kind: str = '', anchor: str = 'start') -> None:
        """Adds a text whose base line starts, or with `anchor` ends or is centred, at (x, y)."""
        self.texts.append({'x': x, 'y': y, 'text': text, 'anchor': anchor, 'kind': kind})


def family(name: str) -> str:
    """Returns the kind of an operation: `conv`, `pool`, `skip` or `none`."""
    if name in (_LEFT_OUT, FALLBACK):
        return 'none' if name == _LEFT_OUT else 'skip'
    return 'pool' if 'pool' in name else 'conv'


def labels(spec: NetSpec) -> dict[tuple[int, int], str]:
    """Names every row of alpha by group and member: `block 2, branch 1`, `node 0 to node 3`."""
    names = {}
    for row in spec.rows():
        g, m = row.group, row.member
        if isinstance(spec, ChainSpec):
            several = len(spec.blocks[g].branches) > 1
            names[g, m] = f'block {g}, branch {m}' if several else f'block {g}'
        elif isinstance(spec, NasBench201Spec):
            names[g, m] = f'node {m} to node {g + 1}'
        elif isinstance(spec, DartsSpec):
            kind = 'reduction' if g >= darts.NODES else 'normal'
            nodes = _node_names(darts.INPUTS, darts.NODES)
            names[g, m] = f'{kind} cell, {nodes[m]} to {nodes[g % darts.NODES + darts.INPUTS]}'
        else:
            names[g, m] = f'choice {g}.{m}'
    return names


def draw(
    network: Network,
    changed: Collection[int] = (),
    new: tuple[int, int] | None = None,
    role: str = '',
) -> list[Drawing]:
    """Draws a network: one drawing of a chain, or one for each kind of cell.

    Args:
      network: the network to draw.
      changed: blocks that a growth has changed, which are outlined.
      new: block and branch that a growth has added.
      role: beginning of the titles, such as `before`.
    """
    spec, prefix = network.spec, f'{role}: ' if role else ''
    if isinstance(spec, ChainSpec):
        return [_draw_chain(network, spec, changed, new, prefix)]
    if isinstance(spec, NasBench201Spec):
        return [_draw_cell(network, f'{prefix}cell', 1, range(len(network.chosen)))]
    if isinstance(spec, DartsSpec):
        groups = {
            'normal': range(darts.NODES),
            'reduction': range(darts.NODES, 2 * darts.NODES),
        }
        return [
            _draw_cell(network, f'{prefix}{kind} cell', darts.INPUTS, nodes)
            for kind, nodes in groups.items()
        ]
    return [_draw_rows(network, role or 'choices')]


def modules(spec: NetSpec) -> list[str]:
    """Lists the modules of a network of cells in order, merging equal neighbours.

    The texts are such as `5 × cell, 16 channels, 32×32`. A chain has none: its drawing shows them.
    """
    if isinstance(spec, NasBench201Spec):
        kinds, widths = ('cell', 'residual block'), spec.modules
    elif isinstance(spec, DartsSpec):
        kinds, widths = ('normal cell', 'reduction cell'), spec.cells
    else:
        return []
    height, width, _ = spec.image_shape
    merged: list[list[Any]] = []  # count and text
    for channels, stride in widths:
        height, width = -(-height // stride), -(-width // stride)
        text = f'{kinds[stride - 1]}, {channels} channels, {height}×{width}'
        if merged and merged[-1][1] == text:
            merged[-1][0] += 1
        else:
            merged.append([1, text])
    parts = [text if count == 1 else f'{count} × {text}' for count, text in merged]
    head = f'global average pooling, {spec.num_classes} classes'
    return [f'stem, {spec.stem_channels} channels', *parts, head]


# --- Chains


def _draw_chain(
    network: Network,
    spec: ChainSpec,
    changed: Collection[int],
    new: tuple[int, int] | None,
    prefix: str,
) -> Drawing:
    """Draws a chain; `prefix` begins its title, for the others see `draw`."""
    drawing = Drawing(f'{prefix}{len(spec.blocks)} blocks')
    size = _size_text(spec.image_shape[:2], spec.stem_channels)
    y = _draw_fixed(drawing, 4.0, 'stem 3×3', size)
    sentences, channels = [f'Stem with {spec.stem_channels} channels'], spec.stem_channels
    for g, block in enumerate(spec.blocks):
        if chain.needs_transition(block, channels):
            drawing.line(f'M{_TRUNK},{y} v12')
            y = _draw_fixed(drawing, y + 12, 'transition 1×1', f'stride {block.stride}')
        channels = block.channels
        y, branches = _draw_block(drawing, y, network, spec, g, g in changed, new)
        sentences += branches
    drawing.line(f'M{_TRUNK},{y} v12')
    head = 'pooling, linear'
    drawing.height = _draw_fixed(drawing, y + 12, head, f'{spec.num_classes} classes') + 4
    drawing.alt = '. '.join([*sentences, f'Linear head for {spec.num_classes} classes']) + '.'
    return drawing


def _draw_block(
    drawing: Drawing,
    y: float,
    network: Network,
    spec: ChainSpec,
    g: int,
    is_changed: bool,
    new: tuple[int, int] | None,
) -> tuple[float, list[str]]:
    """Draws block `g` of a chain below `y`: its branches and the sum behind them.

    Returns:
      The lower edge, and the branches in words.
    """
    block, probabilities = spec.blocks[g], _probabilities_of_chosen(network)
    top, sentences = y + 18, []
    drawing.line(f'M{_TRUNK},{y} V{top}')
    height = 24 + 28 * len(block.branches)
    drawing.box(_LEFT, top, WIDTH - _LEFT - 2, height, 'changed' if is_changed else 'block')
    drawing.text(_LEFT + 10, top + 16, f'block {g}', 'strong')
    shape = spec.places(g, 0)[0].shape
    drawing.text(WIDTH - 12, top + 16, _size_text(shape[:2], block.channels), 'muted', 'end')
    for m, _ in enumerate(block.branches):
        name, branch_y = network.chosen[g][m], top + 24 + 28 * m
        drawing.box(_LEFT + 10, branch_y, 128, 22, family(name))
        drawing.text(_LEFT + 18, branch_y + 15, name)
        factor = network.factors[g][m] if network.factors else None
        share = 'new' if (g, m) == new else _percent(probabilities.get((g, m)))
        factor_text = '' if factor is None else f'factor {factor:.2f}'
        drawing.text(_LEFT + 146, branch_y + 15, share, 'new' if share == 'new' else 'muted')
        drawing.text(WIDTH - 12, branch_y + 15, factor_text, 'muted', 'end')
        facts = [fact for fact in (name, share, factor_text) if fact]
        sentences.append(f'block {g}, {block.channels} channels: {", ".join(facts)}')
    bottom = top + height
    if spec.residual:
        around = f'H{_SIDE + 6} q-6,0 -6,6 V{bottom + 3} q0,6 6,6 H{_TRUNK - 6}'
        drawing.line(f'M{_TRUNK},{top - 9} {around}')
    drawing.line(f'M{_TRUNK},{bottom} v3')
    drawing.box(_TRUNK - 6, bottom + 3, 12, 12, 'sum')
    drawing.text(_TRUNK, bottom + 13, '+', 'strong', 'middle')
    return bottom + 15, sentences


def _draw_fixed(drawing: Drawing, y: float, text: str, note: str) -> float:
    """Draws a part that is not searched, below `y`; returns its lower edge."""
    drawing.box(_LEFT + 10, y, 128, 22, 'fixed')
    drawing.text(_LEFT + 18, y + 15, text)
    drawing.text(WIDTH - 12, y + 15, note, 'muted', 'end')
    return y + 22


def _size_text(size: Sequence[int], channels: int) -> str:
    return f'{channels} ch · {size[0]}×{size[1]}'


# --- Cells


def _node_names(inputs: int, nodes: int) -> list[str]:
    """Names the nodes of a cell; two inputs are the outputs of the last two cells."""
    names = ['k−2', 'k−1'] if inputs == 2 else ['0']
    return names + [str(node) for node in range(2 - inputs, 2 - inputs + nodes)]


def _draw_cell(network: Network, title: str, inputs: int, groups: Sequence[int]) -> Drawing:
    """Draws the nodes side by side, and below them a lane for each edge, so that none overlap.

    Args:
      network: the network.
      title: title of the drawing.
      inputs: number of input nodes.
      groups: groups of `network.chosen`, one for each further node.
    """
    drawing, probabilities, sentences = Drawing(title), _probabilities_of_chosen(network), []
    nodes = _node_names(inputs, len(groups))
    columns = [22 + 180 * i / (len(nodes) - 1) for i in range(len(nodes))]
    y = 46.0
    for node, g in enumerate(groups, start=inputs):
        for m, name in enumerate(network.chosen[g]):
            start, end, kind = columns[m], columns[node], family(name)
            drawing.line(f'M{start},{y} H{end - 7}', kind)
            drawing.line(f'M{end - 8},{y - 4} L{end - 1},{y} L{end - 8},{y + 4}z', f'tip {kind}')
            drawing.box(start - 3, y - 3, 6, 6, f'dot {kind}')
            drawing.text(end + 8, y + 4, name, 'over faint' if kind == 'none' else 'over')
            share = _percent(probabilities.get((g, m)))
            drawing.text(WIDTH - 2, y + 4, share, 'muted', 'end')
            if kind != 'none':
                sentences.append(f'{nodes[m]} to {nodes[node]}: {name}')
            y += 19
        y += 7
    for x, node in zip(columns, nodes, strict=True):
        drawing.lines.insert(0, {'path': f'M{x},26 V{y - 12}', 'kind': 'node'})  # below the edges
        drawing.box(x - 15, 5, 30, 21, 'fixed')
        drawing.text(x, 20, node, 'strong', 'middle')
    drawing.height, drawing.alt = y - 4, '. '.join(sentences) + '.'
    return drawing


# --- Any space


def _draw_rows(network: Network, title: str) -> Drawing:
    """Draws a list of the rows of alpha with the chosen operations."""
    drawing, y = Drawing(title), 4.0
    probabilities = _probabilities_of_chosen(network)
    names = labels(network.spec)
    for (g, m), label in names.items():
        name = network.chosen[g][m]
        drawing.text(4, y + 15, label, 'strong')
        drawing.box(120, y, 150, 22, family(name))
        drawing.text(128, y + 15, name)
        share = _percent(probabilities.get((g, m)))
        drawing.text(WIDTH - 2, y + 15, share, 'muted', 'end')
        y += 28
    drawing.height = y
    drawing.alt = '. '.join(f'{label}: {network.chosen[g][m]}' for (g, m), label in names.items())
    return drawing


def _probabilities_of_chosen(network: Network) -> dict[tuple[int, int], float]:
    """Returns the probability of each chosen operation, by group and member.

    Rows with a single candidate, where there was no choice, are left out.
    """
    chosen = {}
    for row, shares in zip(network.spec.rows(), network.probabilities, strict=False):
        name = network.chosen[row.group][row.member]
        if len(shares) > 1 and name in row.candidates:
            chosen[row.group, row.member] = shares[row.candidates.index(name)]
    return chosen


def _percent(share: float | None) -> str:
    return '' if share is None or not math.isfinite(share) else f'{100 * share:.0f} %'
