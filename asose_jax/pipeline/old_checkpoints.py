"""Checkpoints of before factors, in which a branch had one gate for all of its candidates."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NetSpec
from asose_jax.nn import factors
from asose_jax.nn.operations import FACTOR
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.state import SearchState


def are_in(names: Iterable[str]) -> bool:
    """Whether a checkpoint with arrays of these names has gates."""
    return any("['gate_0']" in name for name in names)


def is_gate(name: str) -> bool:
    """Whether the array of this name is a gate, or a factor, which took its place."""
    return "['gate_" in name or f"['{FACTOR}']" in name


def restore(
    checkpoints: checkpoint.Checkpoints,
    step: int,
    spec: NetSpec,
    model_of: Callable[[NetSpec], SuperNet],
    tx: optax.GradientTransformationExtraArgs,
) -> tuple[NetSpec, SearchState]:
    """Reads a checkpoint with gates: every factor of a branch is its gate.

    Args:
      checkpoints: where it is.
      step: which one.
      spec: as it tells of the network.
      model_of: the network of a description.
      tx: the optimizer.

    Returns:
      The description and the state of the same network, on the host; folded, if it is derived.
    """
    flags = tuple((True,) * len(group) for group in spec.groups())
    spec = dataclasses.replace(spec, factors=flags)
    like = state.abstract_state(model_of(spec), tx, pmap.replicated_sharding())
    held = _each(functools.partial(_with_gates, spec), like)
    held = jax.device_get(checkpoints.restore(step, held))
    held = _each(_with_factors, like, held)
    if not spec.is_derived():
        return spec, held
    chosen = genotype.most_likely(spec, {})
    return factors.folded_spec(spec, chosen), state.derive_state(held, spec, chosen, tx)


def _each(change, *states):
    """The last of the states, with what `change` makes of all weights, and of their momentum."""
    traces = [optax.tree.get(each.opt_state, 'trace') for each in states]
    trace = {**traces[-1], 'params': change(*(each['params'] for each in traces))}
    return states[-1].replace(
        params=change(*(each.params for each in states)),
        opt_state=optax.tree.set(states[-1].opt_state, trace=trace),
    )


def _with_gates(spec: NetSpec, params: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes as they were: without factors, and with a gate for each branch."""
    found = factors.without(params)
    number = jax.tree.leaves(params)[0]
    gate = jax.ShapeDtypeStruct((), np.float32, sharding=number.sharding)
    for group, member, _ in spec.rows():
        found.setdefault(f'block_{group}', {})[f'gate_{member}'] = gate
    return found


def _with_factors(like, old):
    def value(path, _):
        names = [part.key for part in path]
        if names[-1] == FACTOR:
            return old[names[0]][names[1].replace('branch', 'gate')]
        return genotype.at(old, names)

    return jax.tree.map_with_path(value, like)
