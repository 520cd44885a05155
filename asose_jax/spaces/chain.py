"""The `chain` space: a residual sum of mixed operations after another (spec section 2)."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from asose_jax.arch.genotype import NetSpec, Place, frozen, widths
from asose_jax.nn import operations
from asose_jax.nn.forward import Forward
from asose_jax.nn.mixed_op import Choice, MixedOp

Array = jax.Array

PRIMITIVES = (
    'none',
    'avg_pool_3x3',
    'max_pool_3x3',
    'skip_connect',
    'sep_conv_3x3',
    'sep_conv_5x5',
    'sep_conv_7x7',
    'dil_conv_3x3',
    'dil_conv_5x5',
    'conv_7x1_1x7',
)


DEPTH, WIDTH, BRANCH = KINDS_OF_GROWTH = ('depth', 'width', 'branch')


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One block: a residual sum of mixed operations.

    Attributes:
      channels: of the output.
      stride: 1 or 2.
      branches: the candidate primitives of each mixed operation; a single one needs no alpha.
    """

    channels: int
    stride: int
    branches: tuple[tuple[str, ...], ...]


def needs_transition(block: BlockSpec, channels: int) -> bool:
    """Whether a block that gets `channels` begins with a 1x1 convolution."""
    return block.stride != 1 or block.channels != channels


@dataclasses.dataclass(frozen=True)
class ChainSpec(NetSpec):
    """A chain of blocks.

    Attributes:
      stem_channels: of the 3x3 convolution at the entrance.
      blocks: from entrance to exit.
      residual: whether blocks add what comes in to what they make of it.
    """

    SPACE = 'chain'

    stem_channels: int
    blocks: tuple[BlockSpec, ...]
    residual: bool = dataclasses.field(default=True, kw_only=True)

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        return tuple(block.branches for block in self.blocks)

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> 'ChainSpec':
        blocks = [
            dataclasses.replace(block, branches=branches)
            for block, branches in zip(self.blocks, groups, strict=True)
        ]
        return dataclasses.replace(self, blocks=tuple(blocks))

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        return (f'block_{group}', f'choice_{member}')

    def places(self, group: int, member: int) -> list[Place]:
        height, width, _ = self.image_shape
        for block in self.blocks[: group + 1]:
            height, width = (math.ceil(size / block.stride) for size in (height, width))
        shape = (height, width, self.blocks[group].channels)
        return [Place((f'block_{group}', f'branch_{member}'), shape, 1)]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'ChainSpec':
        """The inverse of `to_json`, also after a trip through a JSON file."""
        blocks = tuple(
            BlockSpec(b['channels'], b['stride'], frozen(b['branches'])) for b in data['blocks']
        )
        return cls(
            tuple(data['image_shape']),
            data['num_classes'],
            data['stem_channels'],
            blocks,
            partial=data.get('partial', 1),
            factors=frozen(data.get('factors', ())),
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
    primitives: tuple[str, ...] = PRIMITIVES,
) -> ChainSpec:
    """The supernet at the start: a chain of blocks with one mixed operation each.

    Blocks listed in `reductions` halve the image and double the channels, up to `max_channels`.
    """
    sizes = widths(channels, depth, reductions, max_channels)
    blocks = tuple(BlockSpec(width, stride, (tuple(primitives),)) for width, stride in sizes)
    return ChainSpec(tuple(image_shape), num_classes, channels, blocks).with_factors()


def scaled(spec: ChainSpec, channels: int) -> ChainSpec:
    """The same blocks with a stem of `channels`; all other widths change in proportion.

    Args:
      spec: of a network, which may have grown.
      channels: of the stem, a multiple of 8. The others are rounded to such.

    Raises:
      ValueError: two stages would be equally wide, so that a transition of stride 1 would vanish.
    """

    def width(old):
        return rounded(old * channels / spec.stem_channels)

    blocks = tuple(dataclasses.replace(b, channels=width(b.channels)) for b in spec.blocks)
    made = dataclasses.replace(spec, stem_channels=width(spec.stem_channels), blocks=blocks)
    if _transitions(made) != _transitions(spec):
        raise ValueError(
            f'with {channels} channels in the stem, instead of {spec.stem_channels}, two stages '
            'would be equally wide, and the transition between them, of stride 1, would vanish'
        )
    return made


def rounded(channels: float) -> int:
    """The nearest multiple of 8, and at least 8."""
    return max(1, int(channels / 8 + 0.5)) * 8


def _transitions(spec):
    before = (spec.stem_channels, *(block.channels for block in spec.blocks))
    return [needs_transition(*pair) for pair in zip(spec.blocks, before, strict=False)]


class Block(nn.Module):
    """`y = x + sum_b mixed_b(x)`, after a 1x1 convolution where shape or width changes.

    The residual is there whatever is drawn: no operation cuts the network, and a block whose
    operations all have factors of zero is the identity. Without it, for comparison, `none` cuts.

    Attributes:
      spec: what is built.
      factors: whether the operations of each branch have factors.
      forward: the pass.
      residual: whether `x` is added.
    """

    spec: BlockSpec
    factors: tuple[bool, ...]
    forward: Forward
    residual: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
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
        return y


def body(spec: ChainSpec, forward: Forward, x: Array) -> Iterator[Array]:
    """Stem and blocks, inside of the module that calls it: the features after each."""
    x = operations.Conv(spec.stem_channels, (3, 3), name='stem')(x)
    x = nn.relu(forward.norm(use_running_average=not forward.train, name='stem_norm')(x))
    yield x
    for i, (block, factors) in enumerate(zip(spec.blocks, spec.factored(), strict=True)):
        x = Block(block, factors, forward, spec.residual, name=f'block_{i}')(x)
        yield x
