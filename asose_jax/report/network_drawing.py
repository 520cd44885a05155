"""Networks as drawings: a chain of blocks from top to bottom, cells as nodes and edges.

A drawing is plain numbers in the units of an SVG, which the template turns into shapes. Operations
are told apart by words and outline, not by colour alone. A new space is drawn as a list of its rows
until it has a row in `_DRAWN`.
"""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

from asose_jax.arch.genotype import SAFE, NetSpec
from asose_jax.metrics.run_record import Network
from asose_jax.spaces import chain, darts
from asose_jax.spaces.chain import ChainSpec
from asose_jax.spaces.darts import DartsSpec
from asose_jax.spaces.nasbench201 import NasBench201Spec

WIDTH = 340.0
_LEFT_OUT = 'none'


@dataclasses.dataclass
class Drawing:
    """Shapes, in the order in which they are drawn.

    Attributes:
      title: what it shows.
      alt: the same in words, for who cannot see it.
      height: of the whole; the width is `WIDTH`.
      boxes: `x, y, w, h, kind`.
      lines: `path, kind`.
      texts: `x, y, text, anchor, kind`.
    """

    title: str
    alt: str = ''
    height: float = 0.0
    boxes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    texts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def box(self, x: float, y: float, w: float, h: float, kind: str) -> None:
        self.boxes.append({'x': x, 'y': y, 'w': w, 'h': h, 'kind': kind})

    def line(self, path: str, kind: str = 'wire') -> None:
        self.lines.append({'path': path, 'kind': kind})

    def text(self, x: float, y: float, text: str, kind: str = '', anchor: str = 'start') -> None:
        self.texts.append({'x': x, 'y': y, 'text': text, 'anchor': anchor, 'kind': kind})


def family(name: str) -> str:
    """What kind of operation it is: `conv`, `pool`, `skip` or `none`."""
    if name in (_LEFT_OUT, SAFE):
        return 'none' if name == _LEFT_OUT else 'skip'
    return 'pool' if 'pool' in name else 'conv'


def labels(spec: NetSpec) -> dict[tuple[int, int], str]:
    """A name for every row of alpha, by group and member."""
    made = {}
    for row in spec.rows():
        g, m = row.group, row.member
        if isinstance(spec, ChainSpec):
            several = len(spec.blocks[g].branches) > 1
            made[g, m] = f'block {g}, branch {m}' if several else f'block {g}'
        elif isinstance(spec, NasBench201Spec):
            made[g, m] = f'node {m} to node {g + 1}'
        elif isinstance(spec, DartsSpec):
            kind = 'reduction' if g >= darts.NODES else 'normal'
            nodes = _nodes(darts.INPUTS, darts.NODES)
            made[g, m] = f'{kind} cell, {nodes[m]} to {nodes[g % darts.NODES + darts.INPUTS]}'
        else:
            made[g, m] = f'choice {g}.{m}'
    return made


def draw(
    network: Network,
    changed: Collection[int] = (),
    new: tuple[int, int] | None = None,
    role: str = '',
) -> list[Drawing]:
    """One drawing of a chain, one for each kind of cell.

    Args:
      network: what is drawn.
      changed: blocks that a growth has changed.
      new: block and branch that a growth has added.
      role: what the network is, for the titles.
    """
    for kind, drawn in _DRAWN.items():
        if isinstance(network.spec, kind):
            return drawn(network, changed, new, role)
    return _rows(network, role)


def modules(spec: NetSpec) -> list[str]:
    """What stands behind what, in words; equal neighbours together. Empty where a drawing says."""
    if isinstance(spec, NasBench201Spec):
        kinds, given = ('cell', 'residual block'), spec.modules
    elif isinstance(spec, DartsSpec):
        kinds, given = ('normal cell', 'reduction cell'), spec.cells
    else:
        return []
    height, width, _ = spec.image_shape
    found: list[list[Any]] = []
    for channels, stride in given:
        height, width = -(-height // stride), -(-width // stride)
        told = f'{kinds[stride - 1]}, {channels} channels, {height}×{width}'
        if found and found[-1][1] == told:
            found[-1][0] += 1
        else:
            found.append([1, told])
    parts = [told if count == 1 else f'{count} × {told}' for count, told in found]
    return [f'stem, {spec.stem_channels} channels', *parts, f'mean, {spec.num_classes} classes']


# --- A chain

_TRUNK, _SIDE, _LEFT = 150.0, 14.0, 34.0


def _chain(network, changed, new, role):
    spec, sure = network.spec, _sureness(network)
    made = Drawing(f'{role}: {len(spec.blocks)} blocks'.lstrip(': '))
    y = _fixed(made, 4.0, 'stem 3×3', _size(spec.image_shape[:2], spec.stem_channels))
    told, width = [f'Stem with {spec.stem_channels} channels'], spec.stem_channels
    for g, block in enumerate(spec.blocks):
        if chain.needs_transition(block, width):
            made.line(f'M{_TRUNK},{y} v12')
            y = _fixed(made, y + 12, 'transition 1×1', f'stride {block.stride}')
        width, top = block.channels, y + 18
        made.line(f'M{_TRUNK},{y} V{top}')
        height = 24 + 28 * len(block.branches)
        made.box(_LEFT, top, WIDTH - _LEFT - 2, height, 'changed' if g in changed else 'block')
        made.text(_LEFT + 10, top + 16, f'block {g}', 'strong')
        shape = spec.places(g, 0)[0].shape
        made.text(WIDTH - 12, top + 16, _size(shape[:2], block.channels), 'muted', 'end')
        for m, _ in enumerate(block.branches):
            name, at = network.chosen[g][m], top + 24 + 28 * m
            made.box(_LEFT + 10, at, 128, 22, family(name))
            made.text(_LEFT + 18, at + 15, name)
            factor = network.factors[g][m] if network.factors else None
            share = 'new' if (g, m) == new else _percent(sure.get((g, m)))
            told_factor = '' if factor is None else f'factor {factor:.2f}'
            made.text(_LEFT + 146, at + 15, share, 'new' if share == 'new' else 'muted')
            made.text(WIDTH - 12, at + 15, told_factor, 'muted', 'end')
            facts = [fact for fact in (name, share, told_factor) if fact]
            told.append(f'block {g}, {block.channels} channels: {", ".join(facts)}')
        bottom = top + height
        if spec.residual:
            around = f'H{_SIDE + 6} q-6,0 -6,6 V{bottom + 3} q0,6 6,6 H{_TRUNK - 6}'
            made.line(f'M{_TRUNK},{top - 9} {around}')
        made.line(f'M{_TRUNK},{bottom} v3')
        made.box(_TRUNK - 6, bottom + 3, 12, 12, 'sum')
        made.text(_TRUNK, bottom + 13, '+', 'strong', 'middle')
        y = bottom + 15
    made.line(f'M{_TRUNK},{y} v12')
    made.height = _fixed(made, y + 12, 'mean, linear', f'{spec.num_classes} classes') + 4
    made.alt = '. '.join([*told, f'Linear head for {spec.num_classes} classes']) + '.'
    return [made]


def _fixed(made, y, text, note):
    """A part that is not searched; returns where it ends."""
    made.box(_LEFT + 10, y, 128, 22, 'fixed')
    made.text(_LEFT + 18, y + 15, text)
    made.text(WIDTH - 12, y + 15, note, 'muted', 'end')
    return y + 22


def _size(size, channels):
    return f'{channels} ch · {size[0]}×{size[1]}'


# --- Cells


def _nasbench201(network, changed, new, role):
    del changed, new
    return [_cell(network, f'{role}: cell'.lstrip(': '), 1, range(len(network.chosen)))]


def _darts(network, changed, new, role):
    del changed, new
    return [
        _cell(network, f'{role}: {kind} cell'.lstrip(': '), darts.INPUTS, groups)
        for kind, groups in (
            ('normal', range(darts.NODES)),
            ('reduction', range(darts.NODES, 2 * darts.NODES)),
        )
    ]


def _nodes(inputs, nodes):
    first = ['k−2', 'k−1'] if inputs == 2 else ['0']
    return first + [str(node) for node in range(2 - inputs, 2 - inputs + nodes)]


def _cell(network, title, inputs, groups):
    """Nodes side by side, and below them a lane for every edge, so that nothing can overlap."""
    made, sure, told = Drawing(title), _sureness(network), []
    nodes = _nodes(inputs, len(groups))
    columns = [22 + 180 * i / (len(nodes) - 1) for i in range(len(nodes))]
    y = 46.0
    for node, g in enumerate(groups, start=inputs):
        for m, name in enumerate(network.chosen[g]):
            start, end, kind = columns[m], columns[node], family(name)
            made.line(f'M{start},{y} H{end - 7}', kind)
            made.line(f'M{end - 8},{y - 4} L{end - 1},{y} L{end - 8},{y + 4}z', f'tip {kind}')
            made.box(start - 3, y - 3, 6, 6, f'dot {kind}')
            made.text(end + 8, y + 4, name, 'over faint' if kind == 'none' else 'over')
            made.text(WIDTH - 2, y + 4, _percent(sure.get((g, m))), 'muted', 'end')
            if kind != 'none':
                told.append(f'{nodes[m]} to {nodes[node]}: {name}')
            y += 19
        y += 7
    for x, node in zip(columns, nodes, strict=True):
        made.lines.insert(0, {'path': f'M{x},26 V{y - 12}', 'kind': 'node'})
        made.box(x - 15, 5, 30, 21, 'fixed')
        made.text(x, 20, node, 'strong', 'middle')
    made.height, made.alt = y - 4, '. '.join(told) + '.'
    return made


# --- What all have in common


def _rows(network, role):
    made, sure, y = Drawing(role or 'choices'), _sureness(network), 4.0
    names = labels(network.spec)
    for (g, m), label in names.items():
        name = network.chosen[g][m]
        made.text(4, y + 15, label, 'strong')
        made.box(120, y, 150, 22, family(name))
        made.text(128, y + 15, name)
        made.text(WIDTH - 2, y + 15, _percent(sure.get((g, m))), 'muted', 'end')
        y += 28
    made.height = y
    made.alt = '. '.join(f'{label}: {network.chosen[g][m]}' for (g, m), label in names.items())
    return [made]


def _sureness(network):
    """The probability of what is chosen, where there is a choice; by group and member."""
    found = {}
    for row, shares in zip(network.spec.rows(), network.probabilities, strict=False):
        name = network.chosen[row.group][row.member]
        if len(shares) > 1 and name in row.candidates:
            found[row.group, row.member] = shares[row.candidates.index(name)]
    return found


def _percent(share):
    return '' if share is None or not math.isfinite(share) else f'{100 * share:.0f} %'


_DRAWN = {ChainSpec: _chain, NasBench201Spec: _nasbench201, DartsSpec: _darts}
