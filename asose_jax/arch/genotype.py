"""Descriptions of networks (`NetSpec`) and of chosen operations (`Genotype`).

Both are frozen and hashable, and can be written as plain JSON. Each search space has a subclass of
`NetSpec`; `spaces.registry` lists them.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import flax.traverse_util
import numpy as np
import numpy.typing as npt

SCHEMA = 2  # version of the format of genotype.json
NONE = 'none'  # the candidate that stands for an edge that is left out
FALLBACK = 'skip_connect'  # the candidate of guarded rows of alpha, and of warmup if that uses any
# A logit whose softmax is exactly 0. It is finite, since guards treat infinity as a fault.
_ZERO_LOGIT = -1e9


class Row(NamedTuple):
    """Describes one row of alpha: a choice among candidates, for one or many mixed operations.

    Attributes:
      group: number of the block, or of the node of a cell.
      member: number of the branch of that block, or of the edge into that node.
      candidates: K names of operations.
    """

    group: int
    member: int
    candidates: tuple[str, ...]


class MixedOpSite(NamedTuple):
    """Says where one mixed operation is in the network, and what its input looks like.

    Attributes:
      path: keys to its subtree in `params` and in `batch_stats`.
      shape: `(H, W, C)` of its input.
      stride: 1 or 2.
    """

    path: tuple[str, ...]
    shape: tuple[int, int, int]
    stride: int


@dataclasses.dataclass(frozen=True)
class NetSpec(abc.ABC):
    """Describes a network: everything that fixes the shapes of its arrays.

    Attributes:
      SPACE: name of the search space.
      EDGES_KEPT: how many rows of each group choose an operation other than `none` in a derived
        network; `None` if any number may.
      image_shape: `(H, W, C)`.
      num_classes: number of logits.
      partial: K; one of K channels goes through the candidates of a mixed operation, see
        `mixed_op.MixedOp`. 1 in a derived network.
      factors: by group and member, whether the outputs of the candidates are multiplied by
        factors, see `mixed_op.MixedOp`. Empty if no candidate has one.
    """

    SPACE: ClassVar[str]
    EDGES_KEPT: ClassVar[int | None] = None

    image_shape: tuple[int, int, int]
    num_classes: int
    partial: int = dataclasses.field(default=1, kw_only=True)
    factors: tuple[tuple[bool, ...], ...] = dataclasses.field(default=(), kw_only=True)

    @abc.abstractmethod
    def groups(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """Returns the candidates of every row of alpha, by group and member."""

    @abc.abstractmethod
    def with_groups(self, groups: tuple[tuple[tuple[str, ...], ...], ...]) -> Self:
        """Returns the same network with other candidates, by group and member."""

    @abc.abstractmethod
    def alpha_path(self, group: int, member: int) -> tuple[str, ...]:
        """Returns the path of a row in the `arch` tree."""

    def edge_path(self, group: int) -> tuple[str, ...] | None:
        """Returns the path of the edge logits of a group in `arch`; `None` if edges have none."""
        del group
        return None

    @abc.abstractmethod
    def places(self, group: int, member: int) -> list[MixedOpSite]:
        """Returns the mixed operations whose candidate a row chooses."""

    def choose(self, rows: Sequence[Any], edges: Sequence[Any] | None = None) -> list[Any]:
        """Returns the index of the candidate that each row chooses in the derived network.

        Args:
          rows: softmax(alpha) `[K]` for each of `rows()`, NumPy or traced.
          edges: the edge weights `[members]` of each group, of the same kind; `None` in the place
            of a group without edge weights, or if no group has any.

        Returns:
          An integer for each row, of the same kind.
        """
        del edges
        return [row.argmax() for row in rows]

    def shares(self, rows: Sequence[Any]) -> list[Any]:
        """Returns the probability of each candidate in a network that is derived by a random draw.

        Where `choose` takes the likeliest network, this averages over all networks, and is smooth
        in `rows`; expected costs are computed from it.

        Args:
          rows: softmax(alpha) `[K]` for each of `rows()`, NumPy or traced.

        Returns:
          `[K]` for each row, of the same kind. The entry of `none` has no meaning, because `none`
          costs nothing.
        """
        return list(rows)

    def used(self, genotype: 'Genotype') -> list[str]:
        """Returns the names of the chosen operations, without those of edges that are left out."""
        return [name for group in genotype.operations for name in group]

    def rows(self) -> list[Row]:
        """Returns all rows of alpha, in the order of groups and members."""
        return [
            Row(g, m, candidates)
            for g, group in enumerate(self.groups())
            for m, candidates in enumerate(group)
        ]

    def factored(self) -> tuple[tuple[bool, ...], ...]:
        """Returns `factors` in full: a flag for every group and member."""
        return self.factors or tuple((False,) * len(group) for group in self.groups())

    def with_factors(self) -> Self:
        """Returns the same network with factors in every row that has more than one candidate."""
        flags = tuple(tuple(len(names) > 1 for names in group) for group in self.groups())
        return dataclasses.replace(self, factors=flags)

    def is_derived(self) -> bool:
        """Returns whether every row has a single candidate, so that nothing is left to search."""
        return all(len(row.candidates) == 1 for row in self.rows())

    def to_json(self) -> dict[str, Any]:
        """Returns the description as plain JSON, with the name of the space under `space`."""
        return {'space': self.SPACE, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Builds a description from what `to_json` returned, or from its copy in a JSON file."""
        return cls(**{key: to_tuples(value) for key, value in data.items() if key != 'space'})


@dataclasses.dataclass(frozen=True)
class Genotype:
    """Holds the chosen operation of every row of alpha.

    Attributes:
      operations: names, as `operations[group][member]`.
    """

    operations: tuple[tuple[str, ...], ...]

    def to_json(self) -> list[list[str]]:
        """Returns the names as nested lists."""
        return [list(group) for group in self.operations]

    def dumps(self, spec: NetSpec) -> str:
        """Returns the text of genotype.json: the genotype, and the network it was chosen for."""
        content = {
            'schema': SCHEMA,
            'genotype': self.to_json(),
            'network': spec.to_json(),
        }
        return json.dumps(content, indent=2) + '\n'


def subtree(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Returns the subtree of nested dictionaries at `path`.

    Raises:
      KeyError: there is no such path.
    """
    for name in path:
        tree = tree[name]
    return tree


def probabilities(spec: NetSpec, arch: Mapping[str, Any], tau: float = 1.0) -> list[np.ndarray]:
    """Computes softmax(alpha / tau) of every row, on the host; `tau` is positive.

    Returns:
      Probabilities `[K]`, float32, in the order of `spec.rows()`. A row that is not finite becomes
      the one-hot of `skip_connect`, as in the guarded network.
    """
    rows = []
    for group, member, candidates in spec.rows():
        if len(candidates) == 1:
            rows.append(np.ones(1, np.float32))
            continue
        alpha = np.asarray(subtree(arch, spec.alpha_path(group, member))['alpha'], np.float32) / tau
        safe = np.eye(len(candidates), dtype=np.float32)[candidates.index(FALLBACK)]
        rows.append(_softmax(alpha, safe))
    return rows


def edge_weights(spec: NetSpec, arch: Mapping[str, Any]) -> list[np.ndarray | None]:
    """Computes the edge weights of every group, on the host.

    Returns:
      Weights `[members]`, float32, which sum to 1, or `None` for a group without edge weights. If
      they are not finite, all edges get the same weight, as in the guarded network.
    """
    weights = []
    for group, members in enumerate(spec.groups()):
        path = spec.edge_path(group)
        uniform = np.full(len(members), 1 / len(members), np.float32)
        weights.append(None if path is None else _softmax(subtree(arch, path)['logits'], uniform))
    return weights


def _softmax(logits: npt.ArrayLike, otherwise: np.ndarray) -> np.ndarray:
    """Returns softmax(logits) in float32, or `otherwise` if that is not finite."""
    logits = np.asarray(logits, np.float32)
    with np.errstate(invalid='ignore', over='ignore'):
        scaled = np.exp(logits - logits.max())
        row = scaled / scaled.sum()
    return row if np.isfinite(row).all() else otherwise


def one_hot_rows(spec: NetSpec, genotype: Genotype) -> list[np.ndarray]:
    """Returns the one-hot rows `[K]`, float32, of a genotype, in the order of `spec.rows()`."""
    return [
        np.eye(len(names), dtype=np.float32)[names.index(genotype.operations[group][member])]
        for group, member, names in spec.rows()
    ]


def with_row_weights(
    spec: NetSpec, rows: Sequence[np.ndarray], arch: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns `arch` with alphas whose softmax has the ratios of the rows.

    Args:
      spec: description of the supernet.
      rows: weight of each candidate, `[K]` for each of `spec.rows()`; of a weight of 0, the softmax
        is exactly 0.
      arch: tree of alpha; what it has beside the rows, such as logits of edges, is taken over.

    Returns:
      A tree like `arch`, with alpha in float32.
    """
    leaves: dict[tuple[str, ...], Any] = dict(flax.traverse_util.flatten_dict(arch))
    for (group, member, names), row in zip(spec.rows(), rows, strict=True):
        if len(names) > 1:
            tiny = np.finfo(row.dtype).tiny
            logits = np.where(row > 0, np.log(np.maximum(row, tiny)), _ZERO_LOGIT)
            leaves[*spec.alpha_path(group, member), 'alpha'] = logits.astype(np.float32)
    return flax.traverse_util.unflatten_dict(leaves)


def most_likely(spec: NetSpec, arch: Mapping[str, Any]) -> Genotype:
    """Returns the genotype that alpha makes most likely, by the rule of the search space.

    For every row the largest alpha, except where `NetSpec.choose` of the space says otherwise.
    """
    return genotype_from_indices(
        spec, spec.choose(probabilities(spec, arch), edge_weights(spec, arch))
    )


def random(spec: NetSpec, generator: np.random.Generator) -> Genotype:
    """Draws a genotype of the space; all are equally likely."""
    rows = [generator.dirichlet(np.ones(len(row.candidates))) for row in spec.rows()]
    return genotype_from_indices(spec, spec.choose(rows))


def uniform_genotype(spec: NetSpec, name: str) -> Genotype:
    """Returns the genotype in which every edge that is kept has the operation `name`."""
    rows = [
        np.array([other == name for other in row.candidates], np.float32) for row in spec.rows()
    ]
    return genotype_from_indices(spec, spec.choose(rows))


def genotype_from_indices(spec: NetSpec, picked: Sequence[Any]) -> Genotype:
    """Builds the genotype from the index of the chosen candidate of each of `spec.rows()`."""
    operations: list[list[str]] = [[] for _ in spec.groups()]
    for (group, _, candidates), index in zip(spec.rows(), picked, strict=True):
        operations[group].append(candidates[int(index)])
    return Genotype(tuple(tuple(group) for group in operations))


def derive(spec: NetSpec, genotype: Genotype) -> NetSpec:
    """Describes the derived network: one candidate in every row, all channels, no factors.

    The network derived from a *trained* supernet may keep some factors, see `factors.folded_spec`.

    Raises:
      ValueError: the genotype does not have the groups and members of `spec`.
    """
    return dataclasses.replace(keep_chosen(spec, genotype), partial=1, factors=())


def keep_chosen(spec: NetSpec, genotype: Genotype) -> NetSpec:
    """Describes the supernet without the candidates that were not chosen, else unchanged.

    Raises:
      ValueError: the genotype does not have the groups and members of `spec`.
    """
    groups = tuple(tuple((name,) for name in group) for group in genotype.operations)
    sizes, expected = ([len(group) for group in part] for part in (groups, spec.groups()))
    if sizes != expected:
        raise ValueError(
            f'the genotype does not fit the network: its groups have {sizes} operations, those of '
            f'the network need {expected}'
        )
    return spec.with_groups(groups)


def channels_and_strides(
    channels: int, depth: int, reductions: tuple[int, ...], max_channels: int
) -> tuple[tuple[int, int], ...]:
    """Returns `(channels, stride)` of `depth` blocks or cells in a row.

    Args:
      channels: channels before the first one.
      depth: how many there are.
      reductions: indices of those with stride 2, which double the channels.
      max_channels: limit of that doubling; channels never shrink to it.

    Returns:
      One pair for each.

    Example:
      `channels_and_strides(16, 3, (1,), 64)` is `((16, 1), (32, 2), (32, 1))`.
    """
    pairs = []
    for i in range(depth):
        if i in reductions:
            channels = max(channels, min(2 * channels, max_channels))
        pairs.append((channels, 2 if i in reductions else 1))
    return tuple(pairs)


def to_tuples(value: Any) -> Any:
    """Turns nested lists back into the tuples that they were before they became JSON."""
    return tuple(map(to_tuples, value)) if isinstance(value, list | tuple) else value
