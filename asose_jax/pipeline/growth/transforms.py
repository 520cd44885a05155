"""Grows a network in depth, in width or by branches without changing its function.

Each growth is a pure function of a description and a state. It returns the grown description and a
state that computes the same logits, in training and in evaluation. It is array code on the host,
between steps (docs/algorithm.md, "Growth").

- Depth and branches: x + f * op(x), with factors f of 0.
- Width: Net2Wider (Chen et al. 2016, arXiv:1511.05641) with an unequal split, so that copies of a
  channel do not stay equal.

The state of the optimizer is mapped like the numbers that it belongs to. Momentum is a velocity, so
a grown network with momentum m goes on moving as the old one did. Counts and schedules go on.
Two properties cannot be kept when a channel is split:

- The gradient of the grown network is not the mapped gradient: that of every copy's outgoing
  weights is the whole old one, that of a copy's incoming weights a share of it. So its next steps
  are larger than those of the old network would be.
- One step of weight decay shrinks the function as before, but the sum of squares that it lowers
  counts incoming weights once per copy, and outgoing ones by the squares of their shares.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from asose_jax.arch.genotype import Genotype
from asose_jax.nn.operations import FACTOR
from asose_jax.spaces import chain
from asose_jax.spaces.chain import DEPTH, WIDTH, BlockSpec, ChainSpec
from asose_jax.train.state import SearchState

# Makes a state at the start of training for a description.
Fresh = Callable[[ChainSpec], SearchState]
KeyPath = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Growth:
    """One step of growth.

    Attributes:
      kind: `'depth'`, `'width'` or `'branch'`.
      where: the position, by kind: the number that the new block will have, the stage, or the block
        that gets a branch.
      channels: of the stage after a growth in width, else 0.
      candidates: operations of the new mixed operation; empty for a growth in width.
    """

    kind: str
    where: int
    channels: int = 0
    candidates: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'Growth':
        """Reads what `to_json` has made of a growth."""
        return cls(data['kind'], data['where'], data['channels'], tuple(data['candidates']))

    def to_json(self) -> dict[str, Any]:
        """Returns the growth as a dictionary for JSON."""
        return dataclasses.asdict(self)


def grow(
    spec: ChainSpec, state: SearchState, growth: Growth, *, fresh: Fresh, key: jax.Array
) -> tuple[ChainSpec, SearchState]:
    """Applies a growth: one of `deepen`, `widen` and `branch`.

    The state may be on the host or on a device. `fresh` makes initial numbers for a new block or
    branch, and `key` decides a growth in width.

    Raises:
      ValueError: a growth in width is not possible, see `widen`.
    """
    if growth.kind == WIDTH:
        return widen(spec, state, growth.where, growth.channels, key=key)
    grower = deepen if growth.kind == DEPTH else branch
    return grower(spec, state, growth.where, growth.candidates, fresh=fresh)


def grown_spec(spec: ChainSpec, growth: Growth) -> ChainSpec:
    """Returns the description of the grown network, as `grow` does, without its state.

    Raises:
      ValueError: a growth in width is not possible, see `widen`.
    """
    if growth.kind == WIDTH:
        return _widened(spec, growth.where, growth.channels)
    change = _deepened if growth.kind == DEPTH else _branched
    return change(spec, growth.where, growth.candidates)


def carried_genotype(chosen: Genotype, growth: Growth) -> Genotype:
    """Returns the genotype of the grown network that computes the same as `chosen` did.

    New operations have factors of 0, so any of them will do.
    """
    blocks, where = list(chosen.operations), growth.where
    if growth.kind == DEPTH:
        blocks.insert(where, growth.candidates[:1])
    elif growth.kind != WIDTH:
        blocks[where] = (*blocks[where], growth.candidates[0])
    return Genotype(tuple(blocks))


def stages(spec: ChainSpec) -> list[int]:
    """Returns the stage of the stem and of every block after it: `[1 + blocks]`, from 0.

    A stage is a series of layers whose outputs are added up by residuals, so that they have the
    same channels. A block with a transition begins a new stage.
    """
    numbers, width = [0], spec.stem_channels
    for block in spec.blocks:
        numbers.append(numbers[-1] + chain.needs_transition(block, width))
        width = block.channels
    return numbers


def stage_channels(spec: ChainSpec) -> list[int]:
    """Returns the number of channels of every stage, in order."""
    widths = [spec.stem_channels, *(block.channels for block in spec.blocks)]
    return list(dict(zip(stages(spec), widths, strict=True)).values())


# --- Depth and branches


def deepen(
    spec: ChainSpec, state: SearchState, position: int, candidates: tuple[str, ...], *, fresh: Fresh
) -> tuple[ChainSpec, SearchState]:
    """Inserts a block of stride 1 whose candidates have factors of 0.

    It gets the number `position`: 0 behind the stem, `len(spec.blocks)` at the end.

    Returns:
      Description and state of the grown network; the state has the tree structure of
      `fresh(description)`.
    """
    grown = _deepened(spec, position, candidates)

    def source(names: tuple[str, ...]) -> tuple[str, ...] | None:
        number = _block_number(names)
        if number is None or number < position:
            return names
        if number == position:
            return None
        return tuple(f'block_{number - 1}' if _number(name) == number else name for name in names)

    return grown, _carry_over(state, fresh(grown), source, (f'block_{position}', 'branch_0'))


def branch(
    spec: ChainSpec, state: SearchState, block: int, candidates: tuple[str, ...], *, fresh: Fresh
) -> tuple[ChainSpec, SearchState]:
    """Adds a mixed operation with factors of 0 to a block.

    Returns:
      Description and state of the grown network; the state has the tree structure of
      `fresh(description)`.
    """
    grown = _branched(spec, block, candidates)
    number = len(spec.blocks[block].branches)
    added = {f'{part}_{number}' for part in ('branch', 'choice')}

    def source(names: tuple[str, ...]) -> tuple[str, ...] | None:
        return None if f'block_{block}' in names and added & set(names) else names

    return grown, _carry_over(state, fresh(grown), source, (f'block_{block}', f'branch_{number}'))


def _deepened(spec: ChainSpec, position: int, candidates: Sequence[str]) -> ChainSpec:
    width = spec.blocks[position - 1].channels if position else spec.stem_channels
    added = BlockSpec(width, 1, (tuple(candidates),))
    blocks = (*spec.blocks[:position], added, *spec.blocks[position:])
    flags = spec.factored()
    flags = (*flags[:position], (True,), *flags[position:])
    return dataclasses.replace(spec, blocks=blocks, factors=flags)


def _branched(spec: ChainSpec, block: int, candidates: Sequence[str]) -> ChainSpec:
    old = spec.blocks[block]
    new = dataclasses.replace(old, branches=(*old.branches, tuple(candidates)))
    blocks = (*spec.blocks[:block], new, *spec.blocks[block + 1 :])
    flags = spec.factored()
    flags = (*flags[:block], (*flags[block], True), *flags[block + 1 :])
    return dataclasses.replace(spec, blocks=blocks, factors=flags)


def _carry_over(
    old: SearchState,
    fresh: SearchState,
    source: Callable[[tuple[str, ...]], tuple[str, ...] | None],
    position: tuple[str, str],
) -> SearchState:
    """Returns a fresh state in which all numbers that the old network has are taken over.

    Adam divides by the root of its second moment. At 0 behind a count that goes on, it would let a
    new row of alpha jump by many times the learning rate. So it starts at the mean of the others.

    Args:
      old: state of the old network.
      fresh: initial state of the grown network.
      source: maps the path of an array in the grown network to that in the old one; `None` if the
        array is new.
      position: path of the new mixed operation in `params`; its factors start at 0.
    """
    old_leaves = {_path_names(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}

    def value(path: KeyPath, leaf: Any) -> Any:
        names = _path_names(path)
        old_names = source(names)
        if old_names is not None:
            return old_leaves[old_names]
        if names[:3] == ('params', *position) and names[-1] == FACTOR:
            return np.zeros(leaf.shape, leaf.dtype)
        if 'nu' in names:
            rows = [
                np.asarray(other)
                for other_names, other in old_leaves.items()
                if 'nu' in other_names and other.shape == leaf.shape
            ]
            return np.mean(rows, 0, leaf.dtype) if rows else leaf
        return leaf

    return jax.tree.map_with_path(value, fresh)


# --- Width


def widen(
    spec: ChainSpec, state: SearchState, stage: int, channels: int, *, key: jax.Array
) -> tuple[ChainSpec, SearchState]:
    """Widens a stage: all its blocks, every operation of each, and the weights around the stage.

    New channels are copies of old ones. Weights that produce a channel (convolution, BatchNorm,
    depthwise kernel) are copied; weights that read it are copied and multiplied by the share of the
    copy.

    Args:
      spec: description of the network.
      state: its state, on the host or on a device.
      stage: number of the stage, see `stages`.
      channels: of the stage afterwards.
      key: random key that decides which channels are copied, and their shares.

    Returns:
      Description and state of the grown network; the state has the tree structure of a fresh one.

    Raises:
      ValueError: the stage has as many channels already, or would become as wide as its neighbour,
        so that the transition between them would vanish.
    """
    grown = _widened(spec, stage, channels)
    source, share = channel_map(stage_channels(spec)[stage], channels, key)
    numbers = stages(spec)

    def value(path: KeyPath, leaf: Any) -> np.ndarray:
        axes = _channel_axes(_path_names(path), leaf.ndim, numbers)
        leaf = np.asarray(leaf)
        for axis, (axis_stage, reads) in axes.items():
            if axis_stage == stage:
                leaf = np.take(leaf, source, axis)
                if reads:
                    leaf = leaf * share.reshape(-1, *(1,) * (-axis - 1)).astype(leaf.dtype)
        return leaf

    return grown, jax.tree.map_with_path(value, state)


def channel_map(old: int, new: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Draws which old channel each new one copies, and the shares of outgoing weights.

    Args:
      old: number of channels before.
      new: number of channels after.
      key: random key.

    Returns:
      `source` int `[new]`: the old channels in order, and then copies; how often two channels are
      copied differs by one at most. `share` float64 `[new]`: sums to 1 over the copies of a
      channel, and no two copies have equal shares.
    """
    seeds = np.asarray(jax.random.key_data(key)).tolist()
    random = np.random.default_rng(seeds)
    rounds = [random.permutation(old) for _ in range(math.ceil(new / old) - 1)]
    source = np.concatenate([np.arange(old), *rounds])[:new]
    # Before the shares are scaled to sum 1, the n-th copy weighs n to n + 1/2: never twice alike.
    nth = np.arange(new) // old + 1
    weight = nth + random.uniform(0, 0.5, new)
    return source, weight / np.bincount(source, weight)[source]


def added_parameters(spec: ChainSpec, params: Any, stage: int, channels: int) -> int:
    """Counts the numbers that a growth in width adds to `params`."""
    ratio, numbers, added = channels / stage_channels(spec)[stage], stages(spec), 0
    for path, leaf in jax.tree.leaves_with_path(params):
        axes = _channel_axes(('params', *_path_names(path)), leaf.ndim, numbers)
        widened_axes = sum(axis_stage == stage for axis_stage, _ in axes.values())
        added += round(leaf.size * (ratio**widened_axes - 1))
    return added


def reading_kernels(spec: ChainSpec, params: Any, stage: int) -> list[Any]:
    """Returns the leaves of `params` that read a stage.

    Their last axis but one counts its channels. A tree like `params` will do, such as their
    gradient.
    """
    numbers = stages(spec)
    return [
        leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if (stage, True)
        in _channel_axes(('params', *_path_names(path)), leaf.ndim, numbers).values()
    ]


def _widened(spec: ChainSpec, stage: int, channels: int) -> ChainSpec:
    numbers, widths = stages(spec), stage_channels(spec)
    if channels <= widths[stage]:
        raise ValueError(
            f'stage {stage} has {widths[stage]} channels already; {channels} is not more'
        )
    blocks = tuple(
        dataclasses.replace(block, channels=channels) if number == stage else block
        for block, number in zip(spec.blocks, numbers[1:], strict=True)
    )
    stem = channels if stage == 0 else spec.stem_channels
    grown = dataclasses.replace(spec, stem_channels=stem, blocks=blocks)
    if stages(grown) != numbers:
        raise ValueError(
            f'with {channels} channels, stage {stage} would be as wide as its neighbour, and the '
            'transition between them, which has stride 1, would vanish'
        )
    return grown


def _channel_axes(
    names: tuple[str, ...], ndim: int, numbers: Sequence[int]
) -> dict[int, tuple[int | None, bool]]:
    """Finds the axes of an array that count channels.

    By Flax's conventions a kernel is `[..., in, out]`. Depthwise kernels, the four arrays of
    BatchNorm and all others end in the channels that they produce.

    Args:
      names: path of the array.
      ndim: number of its axes.
      numbers: see `stages`.

    Returns:
      For each such axis, as a negative number: the stage whose channels it counts (`None` for
      pixels and classes), and whether the array reads these channels, or else produces them.
    """
    if ndim == 0 or names[-1] == 'alpha':
        return {}
    number = _block_number(names)
    if number is not None:
        inner = numbers[number + 1]
        outer = numbers[number] if 'transition' in names else inner
    elif 'stem' in names or 'stem_norm' in names:
        inner, outer = 0, None
    elif 'head' in names:
        inner, outer = None, numbers[-1]
    else:
        return {}  # counts and totals
    axes = {-1: (inner, False)}
    if names[-1] == 'kernel':
        axes[-2] = (outer, True)
    return axes


# --- Names in trees


def _path_names(path: KeyPath) -> tuple[str, ...]:
    """Returns the names on a path through dataclasses, tuples and dictionaries.

    Example: `('params', 'block_0', 'branch_0', 'skip_connect', 'factor')`.
    """
    return tuple(
        str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', part))))
        for part in path
    )


def _number(name: str) -> int | None:
    head, _, tail = name.partition('block_')
    return int(tail) if not head and tail.isdigit() else None


def _block_number(names: tuple[str, ...]) -> int | None:
    return next((number for number in map(_number, names) if number is not None), None)
