"""The factors of candidates (see `mixed_op.MixedOp`), and how a derived network folds them in.

An operation that ends with a BatchNorm takes its factor f into that: scale s to f s, and bias
likewise, which is the same function. What the optimizer knows moves along: with the velocities
v_s and v_f, that of f s is f v_s + s v_f. Operations without a BatchNorm keep their factor, one
number, which the description of the network tells of and no count of parameters includes.
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


def of(spec: NetSpec, params: Mapping[str, Any]) -> list[list[list[Any]]]:
    """The factor of every candidate, by group, member and candidate.

    Empty where a choice decides on many places; `None` for a candidate without a factor.
    """
    if any(len(spec.places(row.group, row.member)) != 1 for row in spec.rows()):
        return []
    found: list[list[list[Any]]] = [[] for _ in spec.groups()]
    for group, member, candidates in spec.rows():
        (place,) = spec.places(group, member)
        held = _at(params, place.path)
        found[group].append([held.get(name, {}).get(FACTOR) for name in candidates])
    return found


def folded_spec(spec: NetSpec, chosen: Genotype) -> NetSpec:
    """The description of what `fold` makes of a trained supernet from which `chosen` is kept."""
    plain = genotype.derive(spec, chosen)
    if spec.partial > 1:  # the chosen operations begin anew, as large as they are then
        return plain
    flags = tuple(
        tuple(
            has and name != NONE and _norm(spec, g, m, name) is None
            for m, (has, name) in enumerate(zip(group, names, strict=True))
        )
        for g, (group, names) in enumerate(zip(spec.factored(), chosen.operations, strict=True))
    )
    return dataclasses.replace(plain, factors=flags if any(map(any, flags)) else ())


def fold(
    spec: NetSpec, chosen: Genotype, params: Any, velocity: Any | None = None
) -> tuple[Any, Any]:
    """Takes factors into the BatchNorms behind them.

    Args:
      spec: of the supernet.
      chosen: what was kept of it.
      params: its weights without those of the other candidates, nested dictionaries.
      velocity: SGD's momentum, like `params`, if there is any.

    Returns:
      `params` and `velocity` of `folded_spec(spec, chosen)`; of partial channels, without factors.
    """
    if spec.partial > 1:
        return without(params), None if velocity is None else without(velocity)
    params, velocity = (jax.tree.map(lambda leaf: leaf, tree) for tree in (params, velocity))
    for path, norm in _sites(spec, chosen):
        held = _at(params, path)
        factor = held.pop(FACTOR)
        moving = None if velocity is None else _at(velocity, path)
        speed = None if moving is None else moving.pop(FACTOR)
        numbers = _at(held, norm)
        for name in ('scale', 'bias'):
            if moving is not None:
                speeds = _at(moving, norm)
                speeds[name] = factor * speeds[name] + numbers[name] * speed
            numbers[name] = factor * numbers[name]
    return params, velocity


def without(params: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries without factors, and without what is empty then."""
    parts = {
        name: without(part) if isinstance(part, Mapping) else part
        for name, part in params.items()
        if name != FACTOR
    }
    return {name: part for name, part in parts.items() if not isinstance(part, Mapping) or part}


def _sites(spec, chosen) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Paths of the kept operations with a factor to fold, and of the BatchNorm in each."""
    for group, member, _ in spec.rows():
        name = chosen.operations[group][member]
        norm = _norm(spec, group, member, name)
        if spec.factored()[group][member] and name != NONE and norm is not None:
            for place in spec.places(group, member):
                yield (*place.path, name), norm


def _norm(spec, group, member, name):
    """Where the operation's last BatchNorm is, if it ends with one; alike in all of its places."""
    return operations.PRIMITIVES[name][0].last_norm(spec.places(group, member)[0].stride)


def _at(tree, path):
    for name in path:
        tree = tree.get(name, {})
    return tree


def count(params: Any) -> int:
    """Counts the numbers in `params`, arrays or shapes, without the factors."""
    leaves = jax.tree.leaves_with_path(params)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if not is_factor(path))


def is_factor(path: tuple[Any, ...]) -> bool:
    """Whether a path in a tree of arrays leads to a factor."""
    return bool(path) and getattr(path[-1], 'key', None) == FACTOR
