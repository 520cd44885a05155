"""What a step does: pure functions, as they run on each device. `devices` compiles them.

One call runs many steps, as many as the batch says, so that the host has time to prepare the next.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from asose_jax import batches
from asose_jax.model import Mode, SuperNet
from asose_jax.phases import Phase, Plan
from asose_jax.state import SearchState, Totals

AXIS = 'batch'

_WEIGHT_MODE = {
    Phase.WARMUP: Mode.SKIP,
    Phase.SEARCH: Mode.DRAW,
    Phase.GROWTH: Mode.DRAW,
    Phase.OPTIMIZE: Mode.ARGMAX,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """What is static in the compiled steps of one network.

    Attributes:
      model: with `synced_over=AXIS`.
      tx: see `optim.make_optimizer`.
      plan: phases, turns, tau.
      crop_padding: see `batches.augment`.
      flip: see `batches.augment`.
      arch_micro_batches: parts that an alpha step's images are cut into, one after another, to save
        memory; its gradient is their mean, and BatchNorm normalises each part by itself.
    """

    model: SuperNet
    tx: optax.GradientTransformationExtraArgs
    plan: Plan
    crop_padding: int
    flip: bool
    arch_micro_batches: int = 1


def train_steps(
    recipe: Recipe, phase: Phase, state: SearchState, batch: Any, shared: Any
) -> tuple[SearchState, dict[str, jax.Array]]:
    """Runs `batch['steps']` steps. State buffers are donated.

    Args:
      recipe: static.
      phase: static.
      state: the same on every device.
      batch: this device's part of `batches.chunk`: `[slots, B/D, ...]` per key.
      shared: see `shared_arrays`.

    Returns:
      The new state, the same on every device; and per device what the host wants to look at: the
      totals since the last evaluation, the longest streak of skipped steps, and alpha.
    """

    def body(slot, state):
        images, labels = _fetch(slot, batch, shared)
        return train_step(recipe, phase, state, images, labels, shared['key'])

    state = lax.fori_loop(0, batch['steps'], body, state)
    metrics = {
        'totals': state.totals,
        'longest_streak': state.longest_streak,
        'arch': state.arch,
    }
    return state, metrics


def train_step(
    recipe: Recipe,
    phase: Phase,
    state: SearchState,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
) -> SearchState:
    """One update, of the weights or of alpha (spec section 3).

    Only the gradient whose turn it is gets computed. A step whose gradient is not finite changes
    nothing but counters (spec section 4).

    Args:
      recipe: static.
      phase: static.
      state: before the step.
      images: this device's, `[B/D, H, W, C]`, normalised float32.
      labels: `[B/D]` int32.
      key: of the run. The draw of operations is the same on all devices.

    Returns:
      The state after the step.
    """
    draw_key, image_key = jax.random.split(jax.random.fold_in(key, state.step))
    positions = lax.axis_index(AXIS) * len(labels) + jnp.arange(len(labels))
    images = batches.augment(images, image_key, positions, recipe.crop_padding, recipe.flip)

    def loss(part, group, mode, images, labels):
        trainable = {**state.trainable, group: part}
        logits, changed = recipe.model.apply(
            {**trainable, 'batch_stats': state.batch_stats},
            images,
            recipe.plan.tau(state.step),
            mode=mode,
            train=True,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': draw_key},
        )
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        correct = (logits.argmax(-1) == labels).sum()
        guarded = sum(jax.tree.leaves(changed.get('guard', {})), start=jnp.int32(0))
        return value, (correct, guarded, changed['batch_stats'])

    def gradient(group, mode, images, labels):
        """Gradient of one group, the mean over devices."""
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = differentiate(state.trainable[group], group, mode, images, labels)
        # The gradient is that of a device's own mean, so it is averaged after differentiation, and
        # pmap leaves it at that. Under shard_map the transpose sums over devices by itself: there
        # the mean belongs inside the loss, and this line would make the gradient D times too large.
        value, grads = lax.pmean((value, grads), AXIS)
        return value, aux, grads

    def alone(group, grads):
        return {**optax.tree.zeros_like(state.trainable), group: grads}

    def weight_turn():
        mode = _WEIGHT_MODE[phase]
        value, (correct, guarded, batch_stats), grads = gradient('params', mode, images, labels)
        correct = lax.psum(correct, AXIS)
        moved = Totals.zeros().replace(
            loss=value,
            correct=correct,
            images=jnp.int32(len(labels) * lax.axis_size(AXIS)),
            weight_steps=jnp.int32(1),
            guarded_rows=guarded,
        )
        return value, alone('params', grads), batch_stats, moved

    def alpha_turn():
        # BatchNorm normalises with this batch but leaves its running statistics alone.
        def of(part):
            value, (_, guarded, _), grads = gradient('arch', Mode.ALPHA, *part)
            return guarded, (value, grads)

        count = recipe.arch_micro_batches
        if count == 1:
            guarded, (value, grads) = of((images, labels))
        else:
            parts = jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), (images, labels))
            guarded, found = lax.map(of, parts)
            guarded, (value, grads) = guarded[0], jax.tree.map(lambda a: a.mean(0), found)
        moved = Totals.zeros().replace(
            arch_loss=value, arch_steps=jnp.int32(1), guarded_rows=guarded
        )
        return value, alone('arch', grads), state.batch_stats, moved

    if phase.searches:
        is_alpha_turn = recipe.plan.is_alpha_turn(state.step)
        value, grads, batch_stats, moved = lax.cond(is_alpha_turn, alpha_turn, weight_turn)
    else:
        value, grads, batch_stats, moved = weight_turn()
    updates, opt_state = recipe.tx.update(grads, state.opt_state, state.trainable, step=state.step)
    updated = state.replace(
        **optax.apply_updates(state.trainable, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        totals=jax.tree.map(jnp.add, state.totals, moved),
        streak=jnp.int32(0),
    )
    skipped = state.replace(
        totals=state.totals.replace(
            guarded_rows=state.totals.guarded_rows + moved.guarded_rows,
            skipped_steps=state.totals.skipped_steps + 1,
        ),
        streak=state.streak + 1,
    )
    finite = _all_finite((value, grads))
    state = jax.tree.map(functools.partial(jnp.where, finite), updated, skipped)
    return state.replace(
        step=state.step + 1, longest_streak=jnp.maximum(state.longest_streak, state.streak)
    )


def eval_steps(
    recipe: Recipe, phase: Phase, state: SearchState, batch: Any, shared: Any
) -> dict[str, jax.Array]:
    """Evaluates the images of `batch['steps']` batches, without noise, with running statistics.

    Args:
      recipe: static.
      phase: static; warmup uses skip_connect, all others the largest alpha.
      state: read only.
      batch: this device's part of `batches.chunk`, with `weight` `[slots, B/D]`: 1 counts, 0 not.
      shared: see `shared_arrays`.

    Returns:
      Per batch, summed over all devices: `loss`, `correct` and `images`, `[slots]` float32; and
      `logits` of this device's images, `[slots, B/D, num_classes]` float32.
    """
    mode = Mode.SKIP if phase is Phase.WARMUP else Mode.ARGMAX
    variables = {**state.trainable, 'batch_stats': state.batch_stats}

    def body(slot, sums):
        images, labels = _fetch(slot, batch, shared)
        weight = batch['weight'][slot]
        logits = recipe.model.apply(variables, images, mode=mode, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        found = {
            'logits': logits,
            'loss': (losses * weight).sum(),
            'correct': ((logits.argmax(-1) == labels) * weight).sum(),
            'images': weight.sum(),
        }
        return {key: sums[key].at[slot].set(value) for key, value in found.items()}

    sums = dict.fromkeys(('loss', 'correct', 'images'), jnp.zeros(len(batch['weight'])))
    sums['logits'] = jnp.zeros((*batch['weight'].shape, recipe.model.spec.num_classes))
    sums = lax.fori_loop(0, batch['steps'], body, sums)
    logits = sums.pop('logits')
    return {**lax.psum(sums, AXIS), 'logits': logits}


def _fetch(slot, batch, shared):
    """Normalised images and labels of one step, from the resident set or from the batch itself."""
    if 'index' in batch:
        index = batch['index'][slot]
        images, labels = shared['images'][index], shared['labels'][index]
    else:
        images, labels = batch['image'][slot], batch['label'][slot]
    scale = [shared[key].reshape(1, 1, 1, -1) for key in ('mean', 'std')]
    return (images.astype(jnp.float32) - scale[0]) / scale[1], labels


def _all_finite(tree):
    # One copy and one loop: a loop for each of hundreds of arrays would take longer.
    return jnp.isfinite(jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])).all()
