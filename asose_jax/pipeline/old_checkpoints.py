"""Reads checkpoints of older versions, in which all candidates of a branch shared one gate.

Now each candidate has a factor of its own, see `nn.mixed_op.MixedOp`.
"""

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


def has_gates(names: Iterable[str]) -> bool:
    """Returns whether a checkpoint whose arrays have these names has gates."""
    return any("['gate_0']" in name for name in names)


def is_gate(name: str) -> bool:
    """Returns whether an array of this name is a gate, or a factor, which took its place."""
    return "['gate_" in name or f"['{FACTOR}']" in name


def restore(
    checkpoints: checkpoint.Checkpoints,
    step: int,
    spec: NetSpec,
    model_of: Callable[[NetSpec], SuperNet],
    tx: optax.GradientTransformationExtraArgs,
) -> tuple[NetSpec, SearchState]:
    """Restores a checkpoint with gates; the factors of each branch get the value of its gate.

    Args:
      checkpoints: those of the run.
      step: of the checkpoint.
      spec: description of the network, as the checkpoint has it.
      model_of: builds the network of a description.
      tx: the optimizer.

    Returns:
      Description and state of the same network with factors, on the host. If the network is
      derived, its factors are folded into BatchNorms, see `nn.factors`.
    """
    flags = tuple((True,) * len(group) for group in spec.groups())
    spec = dataclasses.replace(spec, factors=flags)
    like = state.abstract_state(model_of(spec), tx, pmap.replicated_sharding())
    with_gates = _map_weights(functools.partial(_with_gates, spec), like)
    with_gates = jax.device_get(checkpoints.restore(step, with_gates))
    restored = _map_weights(_with_factors, like, with_gates)
    if not spec.is_derived():
        return spec, restored
    chosen = genotype.most_likely(spec, {})
    return factors.folded_spec(spec, chosen), state.derive_state(restored, spec, chosen, tx)


def _map_weights(change: Callable[..., Any], *states: SearchState) -> SearchState:
    """Applies `change` to the weights of some states, and to the momentum of the weights.

    It takes a tree like `params` of each state, and returns one; all else is that of the last
    state.
    """
    traces = [optax.tree.get(old.opt_state, 'trace') for old in states]
    trace = {**traces[-1], 'params': change(*(old['params'] for old in traces))}
    return states[-1].replace(
        params=change(*(old.params for old in states)),
        opt_state=optax.tree.set(states[-1].opt_state, trace=trace),
    )


def _with_gates(spec: NetSpec, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes of weights with a gate for each branch, and without factors."""
    shapes = factors.remove_factors(params)
    example = jax.tree.leaves(params)[0]
    gate = jax.ShapeDtypeStruct((), np.float32, sharding=example.sharding)
    for group, member, _ in spec.rows():
        shapes.setdefault(f'block_{group}', {})[f'gate_{member}'] = gate
    return shapes


def _with_factors(like: Mapping[str, Any], with_gates: Mapping[str, Any]) -> Any:
    """Returns weights in the structure of `like`, with the gate of its branch for each factor."""

    def value(path: tuple[Any, ...], _: Any) -> Any:
        names = [part.key for part in path]
        if names[-1] == FACTOR:
            return with_gates[names[0]][names[1].replace('branch', 'gate')]
        return genotype.subtree(with_gates, names)

    return jax.tree.map_with_path(value, like)
