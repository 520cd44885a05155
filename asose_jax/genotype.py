"""What is built (`NetSpec`) and what was chosen (`Genotype`): frozen, hashable, plain JSON.

Each search space has a description of its own, a child of `NetSpec`; see `spaces`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

SCHEMA = 2  # of genotype.json
SAFE = 'skip_connect'  # what a guarded row of alpha uses, and all of warmup if not told otherwise
NONE = 'none'  # the operation of an edge that is left out


class Row(NamedTuple):
    """One row of alpha: a choice among candidates, for one or for many mixed operations.

    `group` and `member` number it: a block and its branch, or a node of a cell and its edge.
    """

    group: int
    member: int
    candidates: tuple[str, ...]


class Place(NamedTuple):
    """A mixed operation: its path in `params` and `batch_stats`, its input `(H, W, C)`, stride."""

    path: tuple[str, ...]
    shape: tuple[int, int, int]
    stride: int


@dataclasses.dataclass(frozen=True)
class NetSpec:
    """Everything that fixes the shapes of a network's arrays.

    Attributes:
      image_shape: `(H, W, C)`.
      num_classes: size of the output.
    """

    SPACE: ClassVar[str]

    image_shape: tuple[int, int, int]
    num_classes: int

    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """The candidates of every row of alpha, by group and member."""
        raise NotImplementedError

    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> Self:
        """The same network with other candidates."""
        raise NotImplementedError

    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        """Where the row is in `arch`."""
        raise NotImplementedError

    def places(self, group: int, member: int) -> list[Place]:
        """The mixed operations that the row decides on."""
        raise NotImplementedError

    def choose(self, rows: Sequence[Any]) -> list[Any]:
        """The number of the candidate that each row chooses when the network is derived.

        Args:
          rows: softmax(alpha) `[K]` for each of `rows()`, NumPy or traced.

        Returns:
          An integer for each, of the same kind.
        """
        return [row.argmax() for row in rows]

    def shares(self, rows: Sequence[Any]) -> list[Any]:
        """How likely each candidate is in a network that is derived by chance.

        As `choose` takes the likeliest network, this weighs all of them, and is smooth in `rows`.

        Args:
          rows: softmax(alpha) `[K]` for each of `rows()`, NumPy or traced.

        Returns:
          `[K]` for each, of the same kind. That of `none` has no meaning: it costs nothing.
        """
        return list(rows)

    def used(self, genotype: 'Genotype') -> list[str]:
        """The chosen operations, without what stands for an edge that is left out."""
        return [name for group in genotype.operations for name in group]

    def rows(self) -> list[Row]:
        """Every row of alpha, in order."""
        return [
            Row(g, m, candidates)
            for g, group in enumerate(self.groups())
            for m, candidates in enumerate(group)
        ]

    def is_derived(self) -> bool:
        """Whether every operation is chosen, so that there is nothing left to search."""
        return all(len(row.candidates) == 1 for row in self.rows())

    def to_json(self) -> dict[str, Any]:
        return {'space': self.SPACE, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, also after a trip through a JSON file."""
        return cls(**{key: frozen(value) for key, value in data.items() if key != 'space'})


@dataclasses.dataclass(frozen=True)
class Genotype:
    """The chosen primitive of every row of alpha, `operations[group][member]`."""

    operations: tuple[tuple[str, ...], ...]

    def to_json(self) -> list[list[str]]:
        return [list(group) for group in self.operations]

    def dumps(self, spec: NetSpec) -> str:
        """The text of genotype.json: the choice, and the network it was chosen for."""
        content = {
            'schema': SCHEMA,
            'genotype': self.to_json(),
            'network': spec.to_json(),
        }
        return json.dumps(content, indent=2) + '\n'


def at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The subtree of nested dictionaries at `path`."""
    for name in path:
        tree = tree[name]
    return tree


def probabilities(spec: NetSpec, arch: Mapping[str, Any]) -> list[np.ndarray]:
    """softmax(alpha) of every row, in the order of `spec.rows()`; float32 `[K]`.

    A row that is not finite counts as the one-hot of skip_connect, as in the guarded network.
    """
    found = []
    for group, member, candidates in spec.rows():
        if len(candidates) == 1:
            found.append(np.ones(1, np.float32))
            continue
        alpha = np.asarray(at(arch, spec.alpha_path(group, member))['alpha'], np.float32)
        with np.errstate(invalid='ignore', over='ignore'):
            scaled = np.exp(alpha - alpha.max())
            row = scaled / scaled.sum()
        if not np.isfinite(row).all():
            row = np.eye(len(candidates), dtype=np.float32)[candidates.index(SAFE)]
        found.append(row)
    return found


def most_likely(spec: NetSpec, arch: Mapping[str, Any]) -> Genotype:
    """The genotype that alpha says, by the rule of the space."""
    return chosen(spec, probabilities(spec, arch))


def chosen(spec: NetSpec, rows: Sequence[np.ndarray]) -> Genotype:
    """What the space chooses by `rows`, `[K]` for each of `spec.rows()`."""
    found: list[list[str]] = [[] for _ in spec.groups()]
    for (group, _, candidates), index in zip(spec.rows(), spec.choose(rows), strict=True):
        found[group].append(candidates[int(index)])
    return Genotype(tuple(tuple(group) for group in found))


def derive(spec: NetSpec, genotype: Genotype) -> NetSpec:
    """The plain network of the chosen operations: one candidate left in every row."""
    groups = tuple(tuple((name,) for name in group) for group in genotype.operations)
    if [len(group) for group in groups] != [len(group) for group in spec.groups()]:
        raise ValueError(
            f'the genotype has groups of {[len(group) for group in groups]} operations, the '
            f'network of {[len(group) for group in spec.groups()]}'
        )
    return spec.with_groups(groups)


def widths(
    channels: int, depth: int, reductions: tuple[int, ...], max_channels: int
) -> tuple[tuple[int, int], ...]:
    """`(channels, stride)` of `depth` modules.

    Those in `reductions` have stride 2 and double the channels, up to `max_channels`.
    """
    found = []
    for i in range(depth):
        if i in reductions:
            channels = max(channels, min(2 * channels, max_channels))
        found.append((channels, 2 if i in reductions else 1))
    return tuple(found)


def frozen(value: Any) -> Any:
    """Lists as tuples, all the way down: what JSON made of tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value
