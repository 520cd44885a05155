"""Factors of candidates, and how a derived network folds them into its BatchNorms.

A factor is a trained scalar that multiplies the output of a candidate, see `mixed_op.MixedOp`. If
the operation ends with a BatchNorm, its factor f is folded into that: scale s becomes f s, and bias
likewise, which is the same function. The momentum follows by the product rule: with the velocities
v_s and v_f, that of f s is f v_s + s v_f. Operations without a BatchNorm keep their factor, one
number, which `NetSpec.factors` records and parameter counts leave out (docs/algorithm.md,
"Derivation").
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NONE, Genotype, NetSpec
from asose_jax.nn import operations
from asose_jax.nn.operations import FACTOR


def factors_by_row(spec: NetSpec, params: Mapping[str, Any]) -> list[list[list[Any]]]:
    """Returns the factor of every candidate.

    Returns:
      Scalars by group, member and candidate, `None` for a candidate without a factor. The whole
      list is empty if a row of alpha chooses for more than one mixed operation, as in cells.
    """
    if any(len(spec.places(row.group, row.member)) != 1 for row in spec.rows()):
        return []
    groups: list[list[list[Any]]] = [[] for _ in spec.groups()]
    for group, member, candidates in spec.rows():
        (place,) = spec.places(group, member)
        operations_at = _at(params, place.path)
        groups[group].append([operations_at.get(name, {}).get(FACTOR) for name in candidates])
    return groups


def folded_spec(spec: NetSpec, chosen: Genotype) -> NetSpec:
    """Describes the network that `fold` makes of a trained supernet.

    It has factors at operations without a BatchNorm to fold them into.
    """
    plain = genotype.derive(spec, chosen)
    if spec.partial > 1:  # the chosen operations get all channels and start from new weights
        return plain
    flags = tuple(
        tuple(
            has_factor and name != NONE and _norm(spec, group, member, name) is None
            for member, (has_factor, name) in enumerate(zip(has_factors, names, strict=True))
        )
        for group, (has_factors, names) in enumerate(
            zip(spec.factored(), chosen.operations, strict=True)
        )
    )
    return dataclasses.replace(plain, factors=flags if any(map(any, flags)) else ())


def fold(
    spec: NetSpec, chosen: Genotype, params: Any, velocity: Any | None = None
) -> tuple[Any, Any]:
    """Multiplies the factors of chosen operations into the BatchNorms behind them.

    Args:
      spec: description of the supernet.
      chosen: its genotype.
      params: its weights without those of the other candidates, nested dictionaries.
      velocity: SGD's momentum, a tree like `params`, or `None`.

    Returns:
      `params` and `velocity` of the network `folded_spec(spec, chosen)`. With partial channels, the
      factors are removed and nothing is folded.
    """
    if spec.partial > 1:
        return remove_factors(params), None if velocity is None else remove_factors(velocity)
    params, velocity = (jax.tree.map(lambda leaf: leaf, tree) for tree in (params, velocity))
    for path, norm_path in _sites(spec, chosen):
        operation = _at(params, path)
        factor = operation.pop(FACTOR)
        norm = _at(operation, norm_path)
        moving = None if velocity is None else _at(velocity, path)
        factor_velocity = None if moving is None else moving.pop(FACTOR)
        for name in ('scale', 'bias'):
            if moving is not None:
                velocities = _at(moving, norm_path)
                velocities[name] = factor * velocities[name] + norm[name] * factor_velocity
            norm[name] = factor * norm[name]
    return params, velocity


def remove_factors(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries without factors, and without dictionaries that become empty."""
    parts = {
        name: remove_factors(part) if isinstance(part, Mapping) else part
        for name, part in params.items()
        if name != FACTOR
    }
    return {name: part for name, part in parts.items() if not isinstance(part, Mapping) or part}


def _sites(spec: NetSpec, chosen: Genotype) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yields the paths of each chosen operation with a factor to fold, and of its BatchNorm."""
    for group, member, _ in spec.rows():
        name = chosen.operations[group][member]
        norm = _norm(spec, group, member, name)
        if spec.factored()[group][member] and name != NONE and norm is not None:
            for place in spec.places(group, member):
                yield (*place.path, name), norm


def _norm(spec: NetSpec, group: int, member: int, name: str) -> tuple[str, ...] | None:
    """Returns the path of the last BatchNorm in an operation, if it ends with one.

    It is the same in all places for which a row chooses.
    """
    return operations.PRIMITIVES[name][0].last_norm(spec.places(group, member)[0].stride)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    """Returns the subtree at a path, or an empty dictionary if there is none."""
    for name in path:
        tree = tree.get(name, {})
    return tree


def count_parameters(params: Any) -> int:
    """Counts the numbers in a tree of arrays or shapes, without the factors."""
    leaves = jax.tree.leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if not is_factor(path))


def is_factor(path: tuple[Any, ...]) -> bool:
    """Returns whether a path of `jax.tree.leaves_with_path` leads to a factor."""
    return bool(path) and getattr(path[-1], 'key', None) == FACTOR
