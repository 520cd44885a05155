"""Defines the `chain` space: a sequence of residual blocks, each a sum of mixed operations.

It is the only space whose networks grow while they are searched (docs/algorithm.md, "Growth").
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import flax.linen as nn
import jax

from asose_jax.arch.genotype import MixedOpSite, NetSpec, channels_and_strides, to_tuples
from asose_jax.nn import operations
from asose_jax.nn.forward import Forward
from asose_jax.nn.mixed_op import Choice, MixedOp

Array = jax.Array

DEPTH, WIDTH, BRANCH = KINDS_OF_GROWTH = ('depth', 'width', 'branch')


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """Describes one block: a residual sum of mixed operations.

    Attributes:
      channels: Number of channels of the output.
      stride: 1, or 2 to halve the image.
      branches: Candidate primitives of each mixed operation. A branch with a single candidate has
        no alpha.
    """

    channels: int
    stride: int
    branches: tuple[tuple[str, ...], ...]


def needs_transition(block: BlockSpec, channels: int) -> bool:
    """Returns whether a block whose input has `channels` starts with a 1x1 convolution."""
    return block.stride != 1 or block.channels != channels


@dataclasses.dataclass(frozen=True)
class ChainSpec(NetSpec):
    """Describes a chain of blocks.

    A group is a block, a member of it one of its branches.

    Attributes:
      stem_channels: Output channels of the first 3x3 convolution.
      blocks: The blocks from input to output.
      residual: Whether each block adds its input to its output.
    """

    SPACE = 'chain'

    stem_channels: int
    blocks: tuple[BlockSpec, ...]
    residual: bool = dataclasses.field(default=True, kw_only=True)

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """Returns the candidates by block and branch."""
        return tuple(block.branches for block in self.blocks)

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> 'ChainSpec':
        """Returns the same chain with other candidates, by block and branch."""
        blocks = [
            dataclasses.replace(block, branches=branches)
            for block, branches in zip(self.blocks, groups, strict=True)
        ]
        return dataclasses.replace(self, blocks=tuple(blocks))

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        """Returns the path in `arch` of the alpha of a branch."""
        return (f'block_{group}', f'choice_{member}')

    def places(self, group: int, member: int) -> list[MixedOpSite]:
        """Returns the one mixed operation that the alpha of a branch decides on."""
        height, width, _ = self.image_shape
        for block in self.blocks[: group + 1]:
            height, width = (math.ceil(size / block.stride) for size in (height, width))
        shape = (height, width, self.blocks[group].channels)
        return [MixedOpSite((f'block_{group}', f'branch_{member}'), shape, 1)]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'ChainSpec':
        """Reads what `to_json` wrote, also after a round trip through a JSON file.

        Fields that descriptions of earlier versions lack take their default values.
        """
        blocks = tuple(
            BlockSpec(b['channels'], b['stride'], to_tuples(b['branches'])) for b in data['blocks']
        )
        return cls(
            tuple(data['image_shape']),
            data['num_classes'],
            data['stem_channels'],
            blocks,
            partial=data.get('partial', 1),
            factors=to_tuples(data.get('factors', ())),
            residual=data.get('residual', True),
        )


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: int,
    depth: int,
    reductions: tuple[int, ...],
    max_channels: int,
    primitives: tuple[str, ...],
) -> ChainSpec:
    """Builds the initial supernet: a chain of blocks with one mixed operation each.

    Args:
      image_shape: Shape of an image, `(H, W, C)`.
      num_classes: Number of classes.
      channels: Output channels of the stem.
      depth: Number of blocks.
      reductions: Indices of the blocks that halve the image and double the channels.
      max_channels: Limit to this doubling.
      primitives: Candidates of every mixed operation.

    Returns:
      The description of the supernet, in which the candidates have factors.
    """
    sizes = channels_and_strides(channels, depth, reductions, max_channels)
    blocks = tuple(BlockSpec(width, stride, (tuple(primitives),)) for width, stride in sizes)
    return ChainSpec((*image_shape,), num_classes, channels, blocks).with_factors()


def with_stem_channels(spec: ChainSpec, channels: int) -> ChainSpec:
    """Returns the same chain with another width; all widths change in proportion to the stem.

    Args:
      spec: Description of the network, which may have grown.
      channels: New output channels of the stem, a multiple of 8. All other widths are rounded to
        multiples of 8.

    Returns:
      The description of the scaled network.

    Raises:
      ValueError: Two stages would have the same width, so that the transition of stride 1 between
        them would no longer exist.
    """

    def scaled_width(width: int) -> int:
        return round_to_multiple_of_8(width * channels / spec.stem_channels)

    blocks = tuple(
        dataclasses.replace(block, channels=scaled_width(block.channels)) for block in spec.blocks
    )
    stem_channels = scaled_width(spec.stem_channels)
    resized = dataclasses.replace(spec, stem_channels=stem_channels, blocks=blocks)
    if _transitions(resized) != _transitions(spec):
        raise ValueError(
            f'with {channels} stem channels instead of {spec.stem_channels}, two stages would be '
            'equally wide, and the stride-1 transition between them would disappear'
        )
    return resized


def round_to_multiple_of_8(channels: float) -> int:
    """Returns the nearest multiple of 8, at least 8."""
    return max(1, int(channels / 8 + 0.5)) * 8


def _transitions(spec: ChainSpec) -> list[bool]:
    input_channels = (spec.stem_channels, *(block.channels for block in spec.blocks))
    return [needs_transition(*pair) for pair in zip(spec.blocks, input_channels, strict=False)]


class Block(nn.Module):
    """Computes `y = x + sum_b mixed_b(x)`, after a 1x1 convolution if size or width changes.

    Because of the residual, no draw can cut the network, and a block whose operations all have
    factors of zero is the identity. Without the residual (for comparison), `none` cuts it.

    Attributes:
      spec: Description of the block.
      factors: Whether the operations of each branch have factors.
      forward: Settings of this pass through the network.
      residual: Whether `x` is added.
    """

    spec: BlockSpec
    factors: tuple[bool, ...]
    forward: Forward
    residual: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps features `[B, H, W, C]` to `[B, ceil(H / stride), ceil(W / stride), channels]`."""
        width, forward = self.spec.channels, self.forward
        if needs_transition(self.spec, x.shape[-1]):
            x = x[:, :: self.spec.stride, :: self.spec.stride]
            x = operations.pointwise(width, x.dtype, 'transition')(x)
            x = forward.norm(use_running_average=not forward.train, name='transition_norm')(x)
        y = x if self.residual else 0.0
        for i, (candidates, factor) in enumerate(
            zip(self.spec.branches, self.factors, strict=True)
        ):
            weights = Choice(candidates, forward, name=f'choice_{i}')()
            mixed = MixedOp(candidates, width, forward, factor=factor, name=f'branch_{i}')
            y += mixed(x, weights)
        return cast(Array, y)  # a block has at least one branch


def body(spec: ChainSpec, forward: Forward, x: Array) -> Iterator[Array]:
    """Applies stem and blocks. To be called in a compact Linen module, which owns the layers.

    Yields:
      The features `[B, H, W, C]` after the stem and after each block.
    """
    x = operations.Conv(spec.stem_channels, (3, 3), name='stem')(x)
    x = nn.relu(forward.norm(use_running_average=not forward.train, name='stem_norm')(x))
    yield x
    for i, (block, factors) in enumerate(zip(spec.blocks, spec.factored(), strict=True)):
        x = Block(block, factors, forward, spec.residual, name=f'block_{i}')(x)
        yield x
