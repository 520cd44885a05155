"""A network grows without forgetting: deeper, wider, with more branches (spec section 6).

Each growth is a pure function of a description and a state, and gives the grown description and a
state that computes the same logits, in training and in evaluation. It is array code on the host,
between steps. Depth and branches: x + f * op(x) with factors f of 0. Width: Net2Wider (Chen et al.
2016, arXiv:1511.05641) with an unequal split, so that copies do not stay twins.

What the optimizer keeps. Moments go through the same maps as the numbers they belong to: momentum
is a velocity, so a grown network with momentum m goes on moving as the old one did. Counts and
schedules go on. Two things no map can keep under a split: the gradient of the grown network is not
the mapped gradient (that of every copy's outgoing weights is the whole old one, that of a copy's
incoming weights a share of it), so its next steps are larger than the old one's would be; and while
one step of weight decay shrinks the function as before, the sum of squares that it lowers counts
incoming weights once per copy, and outgoing ones by the squares of their shares.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from asose_jax.nn.operations import FACTOR
from asose_jax.spaces import chain
from asose_jax.spaces.chain import DEPTH, WIDTH, BlockSpec, ChainSpec
from asose_jax.train.state import SearchState

Fresh = Callable[[ChainSpec], SearchState]  # a state at the start of training, for any description


@dataclasses.dataclass(frozen=True)
class Growth:
    """One step of growth.

    Attributes:
      kind: `'depth'`, `'width'` or `'branch'`.
      where: the number that the new block will have; the stage; or the block that gets a branch.
      channels: of the stage after a growth in width, else 0.
      candidates: of the new mixed operation; empty for a growth in width.
    """

    kind: str
    where: int
    channels: int = 0
    candidates: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'Growth':
        return cls(data['kind'], data['where'], data['channels'], tuple(data['candidates']))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def grow(
    spec: ChainSpec, state: SearchState, growth: Growth, *, fresh: Fresh, key: jax.Array
) -> tuple[ChainSpec, SearchState]:
    """Whichever of `deepen`, `widen`, `branch` it is."""
    if growth.kind == WIDTH:
        return widen(spec, state, growth.where, growth.channels, key=key)
    grower = deepen if growth.kind == DEPTH else branch
    return grower(spec, state, growth.where, growth.candidates, fresh=fresh)


def grown_spec(spec: ChainSpec, growth: Growth) -> ChainSpec:
    """The description that `grow` will give."""
    if growth.kind == WIDTH:
        return _widened(spec, growth.where, growth.channels)
    change = _deepened if growth.kind == DEPTH else _branched
    return change(spec, growth.where, growth.candidates)


def stages(spec: ChainSpec) -> list[int]:
    """The stage of the stem, and of every block after it: `[1 + blocks]`, from 0.

    Channels that a residual sums belong together; a transition begins a new stage.
    """
    numbers, width = [0], spec.stem_channels
    for block in spec.blocks:
        numbers.append(numbers[-1] + chain.needs_transition(block, width))
        width = block.channels
    return numbers


def stage_channels(spec: ChainSpec) -> list[int]:
    """Channels of every stage."""
    widths = [spec.stem_channels, *(block.channels for block in spec.blocks)]
    return list(dict(zip(stages(spec), widths, strict=True)).values())


# --- Depth and branches


def deepen(
    spec: ChainSpec, state: SearchState, position: int, candidates: tuple[str, ...], *, fresh: Fresh
) -> tuple[ChainSpec, SearchState]:
    """Inserts a block of stride 1 whose candidates have factors of 0.

    Args:
      spec: of the network.
      state: its state, on the host or on a device.
      position: the number of the new block, 0 (behind the stem) to `len(spec.blocks)`.
      candidates: of its mixed operation.
      fresh: makes the numbers of the new block, as at the start of training.

    Returns:
      Description and state, with the tree structure of `fresh(description)`.
    """
    grown = _deepened(spec, position, candidates)

    def origin(names):
        number = _block_number(names)
        if number is None or number < position:
            return names
        if number == position:
            return None
        return tuple(f'block_{number - 1}' if _number(n) == number else n for n in names)

    return grown, _carry(state, fresh(grown), origin, (f'block_{position}', 'branch_0'))


def branch(
    spec: ChainSpec, state: SearchState, block: int, candidates: tuple[str, ...], *, fresh: Fresh
) -> tuple[ChainSpec, SearchState]:
    """Adds a mixed operation with factors of 0 to a block. Arguments as for `deepen`."""
    grown = _branched(spec, block, candidates)
    number = len(spec.blocks[block].branches)
    new = {f'{part}_{number}' for part in ('branch', 'choice')}

    def origin(names):
        return None if f'block_{block}' in names and new & set(names) else names

    return grown, _carry(state, fresh(grown), origin, (f'block_{block}', f'branch_{number}'))


def _deepened(spec, position, candidates):
    width = spec.blocks[position - 1].channels if position else spec.stem_channels
    added = BlockSpec(width, 1, (tuple(candidates),))
    blocks = (*spec.blocks[:position], added, *spec.blocks[position:])
    flags = spec.factored()
    flags = (*flags[:position], (True,), *flags[position:])
    return dataclasses.replace(spec, blocks=blocks, factors=flags)


def _branched(spec, block, candidates):
    old = spec.blocks[block]
    new = dataclasses.replace(old, branches=(*old.branches, tuple(candidates)))
    blocks = (*spec.blocks[:block], new, *spec.blocks[block + 1 :])
    flags = spec.factored()
    flags = (*flags[:block], (*flags[block], True), *flags[block + 1 :])
    return dataclasses.replace(spec, blocks=blocks, factors=flags)


def _carry(old, fresh, origin, place):
    """`fresh` with all that `old` knows; `origin` gives names in `old`, `None` for what is new.

    Adam divides by the root of its second moment. At 0 behind a count that goes on, it would let a
    new row jump by many times the learning rate; so it starts at the mean of the others.
    """
    known = {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}

    def value(path, leaf):
        names = _names(path)
        source = origin(names)
        if source is not None:
            return known[source]
        if names[:3] == ('params', *place) and names[-1] == FACTOR:
            return np.zeros(leaf.shape, leaf.dtype)
        if 'nu' in names:
            rows = [np.asarray(v) for n, v in known.items() if 'nu' in n and v.shape == leaf.shape]
            return np.mean(rows, 0, leaf.dtype) if rows else leaf
        return leaf

    return jax.tree.map_with_path(value, fresh)


# --- Width


def widen(
    spec: ChainSpec, state: SearchState, stage: int, channels: int, *, key: jax.Array
) -> tuple[ChainSpec, SearchState]:
    """Widens a stage: all its blocks, every primitive of each, and what leads in and out.

    New channels are copies. What produces a channel (convolution, BatchNorm, depthwise kernel) is
    copied; what consumes it is copied and multiplied by the copy's share.

    Args:
      spec: of the network.
      state: its state, on the host or on a device.
      stage: see `stages`.
      channels: of the stage afterwards.
      key: decides which channels are copied, and their shares.

    Returns:
      Description and state, with the tree structure of a fresh one.
    """
    grown = _widened(spec, stage, channels)
    source, share = channel_map(stage_channels(spec)[stage], channels, key)
    numbers = stages(spec)

    def value(path, leaf):
        axes = _channel_axes(_names(path), leaf.ndim, numbers)
        leaf = np.asarray(leaf)
        for axis, (of, consumes) in axes.items():
            if of == stage:
                leaf = np.take(leaf, source, axis)
                if consumes:
                    leaf = leaf * share.reshape(-1, *(1,) * (-axis - 1)).astype(leaf.dtype)
        return leaf

    return grown, jax.tree.map_with_path(value, state)


def channel_map(old: int, new: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Which old channel each new one copies, and the shares of its outgoing weights.

    Args:
      old: channels before.
      new: channels after.
      key: of the choice.

    Returns:
      `source` int `[new]`, the old channels in order and then copies, each as often as any other up
      to one; `share` float64 `[new]`, which sums to 1 over the copies of a channel, no two alike.
    """
    seeds = np.asarray(jax.random.key_data(key)).tolist()
    random = np.random.default_rng(seeds)
    rounds = [random.permutation(old) for _ in range(math.ceil(new / old) - 1)]
    source = np.concatenate([np.arange(old), *rounds])[:new]
    # The n-th copy weighs n to n + 1/2 before the shares are brought to sum 1.
    nth = np.arange(new) // old + 1
    weight = nth + random.uniform(0, 0.5, new)
    return source, weight / np.bincount(source, weight)[source]


def added_parameters(spec: ChainSpec, params: Any, stage: int, channels: int) -> int:
    """How many numbers a growth in width adds to `params`."""
    ratio, numbers, added = channels / stage_channels(spec)[stage], stages(spec), 0
    for path, leaf in jax.tree.leaves_with_path(params):
        axes = _channel_axes(('params', *_names(path)), leaf.ndim, numbers)
        touched = sum(of == stage for of, _ in axes.values())
        added += round(leaf.size * (ratio**touched - 1))
    return added


def consuming(spec: ChainSpec, params: Any, stage: int) -> list[Any]:
    """The leaves of `params` that read a stage; their last axis but one counts its channels."""
    numbers = stages(spec)
    return [
        leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if (stage, True) in _channel_axes(('params', *_names(path)), leaf.ndim, numbers).values()
    ]


def _widened(spec, stage, channels):
    numbers, widths = stages(spec), stage_channels(spec)
    if channels <= widths[stage]:
        raise ValueError(
            f'stage {stage} has {widths[stage]} channels already: {channels} are not more'
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


def _channel_axes(names, ndim, numbers):
    """The axes of an array that count channels: axis (negative) -> (stage, whether it consumes).

    By Flax's conventions a kernel is `[..., in, out]`; a depthwise kernel, BatchNorm's four arrays
    and all else end in the channels they give.
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
        return {}  # counts, totals
    axes = {-1: (inner, False)}
    if names[-1] == 'kernel':
        axes[-2] = (outer, True)
    return axes


# --- Names in trees


def _names(path):
    """('params', 'block_0', ...) of a path through dataclasses, tuples and dictionaries."""
    return tuple(
        str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', part))))
        for part in path
    )


def _number(name):
    head, _, tail = name.partition('block_')
    return int(tail) if not head and tail.isdigit() else None


def _block_number(names):
    return next((n for n in map(_number, names) if n is not None), None)
