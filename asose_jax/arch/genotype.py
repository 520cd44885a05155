"""What is built (`NetSpec`) and what was chosen (`Genotype`): frozen, hashable, plain JSON.

Each search space has a description of its own, a child of `NetSpec`; see `registry`.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

SCHEMA = 2  # of genotype.json
NONE = 'none'  # an edge that is left out
SAFE = 'skip_connect'  # what a guarded row of alpha uses, and warmup, where it uses any


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
class NetSpec(abc.ABC):
    """Everything that fixes the shapes of a network's arrays.

    Attributes:
      image_shape: `(H, W, C)`.
      num_classes: size of the output.
      partial: K; one of K channels goes through the candidates of a mixed operation, see
        `mixed_op.MixedOp`. 1 in a derived network.
      factors: by group and member, whether what the operations there give is multiplied by a
        factor, see `mixed_op.MixedOp`; empty: none is.
    """

    SPACE: ClassVar[str]
    EDGES_KEPT: ClassVar[int | None] = None  # rows of a group that do not choose NONE; None: any

    image_shape: tuple[int, int, int]
    num_classes: int
    partial: int = dataclasses.field(default=1, kw_only=True)
    factors: tuple[tuple[bool, ...], ...] = dataclasses.field(default=(), kw_only=True)

    @abc.abstractmethod
    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """The candidates of every row of alpha, by group and member."""

    @abc.abstractmethod
    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> Self:
        """The same network with other candidates."""

    @abc.abstractmethod
    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        """Where the row is in `arch`."""

    def edge_path(self, group: int) -> tuple[str, ...] | None:
        """Where the group has a logit for each of its edges in `arch`, if edges have weights."""
        del group
        return None

    @abc.abstractmethod
    def places(self, group: int, member: int) -> list[Place]:
        """The mixed operations that the row decides on."""

    def choose(self, rows: Sequence[Any], edges: Sequence[Any] | None = None) -> list[Any]:
        """The number of the candidate that each row chooses when the network is derived.

        Args:
          rows: softmax(alpha) `[K]` for each of `rows()`, NumPy or traced.
          edges: the weights `[members]` of each group's edges, of the same kind; `None` for a group
            without, or for all.

        Returns:
          An integer for each, of the same kind.
        """
        del edges
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

    def factored(self) -> tuple[tuple[bool, ...], ...]:
        """`factors` in full, by group and member."""
        return self.factors or tuple((False,) * len(group) for group in self.groups())

    def with_factors(self) -> Self:
        """The same network, with factors wherever there is a choice."""
        found = tuple(tuple(len(names) > 1 for names in group) for group in self.groups())
        return dataclasses.replace(self, factors=found)

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


def probabilities(spec: NetSpec, arch: Mapping[str, Any], tau: float = 1.0) -> list[np.ndarray]:
    """softmax(alpha / tau) of every row, in the order of `spec.rows()`; float32 `[K]`.

    A row that is not finite counts as the one-hot of skip_connect, as in the guarded network.
    """
    found = []
    for group, member, candidates in spec.rows():
        if len(candidates) == 1:
            found.append(np.ones(1, np.float32))
            continue
        alpha = np.asarray(at(arch, spec.alpha_path(group, member))['alpha'], np.float32) / tau
        safe = np.eye(len(candidates), dtype=np.float32)[candidates.index(SAFE)]
        found.append(_softmax(alpha, safe))
    return found


def edge_weights(spec: NetSpec, arch: Mapping[str, Any]) -> list[np.ndarray | None]:
    """The weights of every group's edges, which sum to 1, float32; `None` where it has none.

    Where they are not finite, all are alike, as in the guarded network.
    """
    found = []
    for group, members in enumerate(spec.groups()):
        path = spec.edge_path(group)
        uniform = np.full(len(members), 1 / len(members), np.float32)
        found.append(None if path is None else _softmax(at(arch, path)['logits'], uniform))
    return found


def _softmax(logits, otherwise):
    """In float32; `otherwise` if that is not finite."""
    logits = np.asarray(logits, np.float32)
    with np.errstate(invalid='ignore', over='ignore'):
        scaled = np.exp(logits - logits.max())
        row = scaled / scaled.sum()
    return row if np.isfinite(row).all() else otherwise


def most_likely(spec: NetSpec, arch: Mapping[str, Any]) -> Genotype:
    """The genotype that alpha says, by the rule of the space."""
    return of_rows(spec, spec.choose(probabilities(spec, arch), edge_weights(spec, arch)))


def random(spec: NetSpec, generator: np.random.Generator) -> Genotype:
    """A genotype of the space, all alike likely."""
    rows = [generator.dirichlet(np.ones(len(row.candidates))) for row in spec.rows()]
    return of_rows(spec, spec.choose(rows))


def plain(spec: NetSpec, name: str) -> Genotype:
    """The genotype that has one operation wherever it has any."""
    rows = [np.float32([other == name for other in row.candidates]) for row in spec.rows()]
    return of_rows(spec, spec.choose(rows))


def of_rows(spec: NetSpec, picked: Sequence[Any]) -> Genotype:
    """The genotype of these choices, the number of a candidate for each of `spec.rows()`."""
    chosen: list[list[str]] = [[] for _ in spec.groups()]
    for (group, _, candidates), index in zip(spec.rows(), picked, strict=True):
        chosen[group].append(candidates[int(index)])
    return Genotype(tuple(tuple(group) for group in chosen))


def derive(spec: NetSpec, genotype: Genotype) -> NetSpec:
    """The plain network of the chosen operations: one candidate in every row, all channels.

    It has no factors; that of a trained supernet may keep some, see `factors.folded_spec`.
    """
    return dataclasses.replace(chosen_alone(spec, genotype), partial=1, factors=())


def chosen_alone(spec: NetSpec, genotype: Genotype) -> NetSpec:
    """The supernet without the candidates that were not chosen; all else is as it was."""
    chosen = tuple(tuple((name,) for name in group) for group in genotype.operations)
    if [len(group) for group in chosen] != [len(group) for group in spec.groups()]:
        raise ValueError(
            f'the genotype has groups of {[len(group) for group in chosen]} operations, the '
            f'network of {[len(group) for group in spec.groups()]}'
        )
    return spec.with_groups(chosen)


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
