"""Masks an optimizer by the step: it moves its group in its turns, and rests in all others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def in_turn(
    inner: optax.GradientTransformation, has_turn: Callable[[jax.Array], bool | jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Applies `inner` in its turns; outside them the update is zero and the state stays.

    Selected number by number: `optax.conditionally_mask` branches, and then every parameter passes
    through half a dozen small loops instead of one.

    Args:
      inner: moves the group.
      has_turn: maps the step of the run, an int32 scalar, to whether the group has its turn.

    Returns:
      The transformation, whose `update` takes the step of the run as the keyword `step`.
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        step: jax.Array,
        **_: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        moved, moved_state = inner.update(updates, state, params)
        select = functools.partial(jnp.where, has_turn(step))
        return (
            jax.tree.map(select, moved, optax.tree.zeros_like(moved)),
            jax.tree.map(select, moved_state, state),
        )

    # The named tuple behind the class is declared for updates without keywords.
    return optax.GradientTransformationExtraArgs(inner.init, update)  # pyright: ignore[reportArgumentType]
