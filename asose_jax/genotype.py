"""What is built (`NetSpec`) and what was chosen (`Genotype`): frozen, hashable, plain JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from asose_jax import ops

SPACE, SCHEMA = 'chain', 1  # of genotype.json


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
class NetSpec:
    """Everything that fixes the shapes of a network's arrays.

    Attributes:
      image_shape: `(H, W, C)`.
      num_classes: size of the output.
      stem_channels: of the 3x3 convolution at the entrance.
      blocks: from entrance to exit.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    stem_channels: int
    blocks: tuple[BlockSpec, ...]

    def rows(self) -> list[tuple[int, int, tuple[str, ...]]]:
        """(block, branch, candidates) of every mixed operation, in order."""
        return [
            (b, m, candidates)
            for b, block in enumerate(self.blocks)
            for m, candidates in enumerate(block.branches)
        ]

    def is_derived(self) -> bool:
        """Whether every operation is chosen, so that there is nothing left to search."""
        return all(len(candidates) == 1 for _, _, candidates in self.rows())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> 'NetSpec':
        """The inverse of `to_json`, also after a trip through a JSON file."""
        blocks = tuple(
            BlockSpec(b['channels'], b['stride'], tuple(tuple(m) for m in b['branches']))
            for b in data['blocks']
        )
        shape = tuple(data['image_shape'])
        return cls(shape, data['num_classes'], data['stem_channels'], blocks)


@dataclasses.dataclass(frozen=True)
class Genotype:
    """The chosen primitive of every mixed operation, `operations[block][branch]`."""

    operations: tuple[tuple[str, ...], ...]

    def to_json(self) -> list[list[str]]:
        return [list(block) for block in self.operations]

    def dumps(self, spec: NetSpec) -> str:
        """The text of genotype.json: the choice, and the network it was chosen for."""
        content = {
            'schema': SCHEMA,
            'space': SPACE,
            'genotype': self.to_json(),
            'network': spec.to_json(),
        }
        return json.dumps(content, indent=2) + '\n'

    def share(self, names: frozenset[str]) -> float:
        """The fraction of mixed operations whose choice is one of `names`."""
        flat = [name for block in self.operations for name in block]
        return sum(name in names for name in flat) / len(flat)


def chain_spec(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: int,
    depth: int,
    reductions: tuple[int, ...],
    max_channels: int,
    primitives: tuple[str, ...] = tuple(ops.PRIMITIVES),
) -> NetSpec:
    """The supernet at the start (spec section 2): a chain of blocks with one mixed operation each.

    Blocks listed in `reductions` halve the image and double the channels, up to `max_channels`.
    """
    blocks, width = [], channels
    for i in range(depth):
        stride = 2 if i in reductions else 1
        if stride == 2:
            width = max(width, min(2 * width, max_channels))
        blocks.append(BlockSpec(width, stride, (tuple(primitives),)))
    return NetSpec(tuple(image_shape), num_classes, channels, tuple(blocks))


def row_of(tree: Mapping[str, Any], block: int, branch: int) -> Any:
    """The subtree of one mixed operation in `params`, `batch_stats` or `arch`."""
    return tree[f'block_{block}'][f'branch_{branch}']


def probabilities(spec: NetSpec, arch: Mapping[str, Any]) -> list[np.ndarray]:
    """softmax(alpha) of every mixed operation, in the order of `spec.rows()`; float32 `[K]`.

    A row that is not finite counts as the one-hot of skip_connect, as in the guarded network.
    """
    rows = []
    for block, branch, candidates in spec.rows():
        if len(candidates) == 1:
            rows.append(np.ones(1, np.float32))
            continue
        alpha = np.asarray(row_of(arch, block, branch)['alpha'], np.float32)
        with np.errstate(invalid='ignore', over='ignore'):
            scaled = np.exp(alpha - alpha.max())
            row = scaled / scaled.sum()
        if not np.isfinite(row).all():
            row = np.eye(len(candidates), dtype=np.float32)[candidates.index('skip_connect')]
        rows.append(row)
    return rows


def most_likely(spec: NetSpec, arch: Mapping[str, Any]) -> Genotype:
    """The genotype under argmax alpha."""
    chosen: list[list[str]] = [[] for _ in spec.blocks]
    for (block, _, candidates), row in zip(spec.rows(), probabilities(spec, arch), strict=True):
        chosen[block].append(candidates[int(row.argmax())])
    return Genotype(tuple(tuple(block) for block in chosen))


def derive(spec: NetSpec, genotype: Genotype) -> NetSpec:
    """The plain network of the chosen operations: one candidate left in every mixed operation."""
    blocks = [
        dataclasses.replace(block, branches=tuple((name,) for name in chosen))
        for block, chosen in zip(spec.blocks, genotype.operations, strict=True)
    ]
    return dataclasses.replace(spec, blocks=tuple(blocks))
