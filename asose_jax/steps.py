"""The compiled steps. The only room that maps over devices.

    train(state, batch, shared) -> (state, metrics)         evaluate(state, batch, shared) -> sums

`batch` is cut along its first axis, one piece per device; `state` and `shared` go in whole. One
call runs many steps, as many as the batch says, so that the host has time to prepare the next one.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asose_jax import batches
from asose_jax.data import Data
from asose_jax.model import Mode, SuperNet
from asose_jax.phases import Phase, Plan
from asose_jax.state import SearchState, Totals

AXIS = 'batch'

# Wide vectors have more registers: a step takes 15 % less. Where a CPU has none, this says nothing.
_WIDE = {'xla_cpu_prefer_vector_width': 512}
# The library that jax 0.10 gives convolutions to runs most of them on one core: 12 % of a step.
_OWN_CONV = {
    'xla_cpu_experimental_ynn_fusion_type': (
        'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
    )
}
_OPTIONS = {'cpu': _WIDE | (_OWN_CONV if jax.__version_info__ < (0, 11) else {})}

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
    """

    model: SuperNet
    tx: optax.GradientTransformationExtraArgs
    plan: Plan
    crop_padding: int
    flip: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled call, what compiling it cost, and what it will take of a device's memory."""

    call: Callable[..., Any]
    compile_seconds: float
    peak_bytes: int


def shared_arrays(images: Data, key: jax.Array) -> dict[str, jax.Array]:
    """What every step reads and none changes, on every device: key, statistics, resident images."""
    shared = {'key': key, 'mean': images.mean, 'std': images.std}
    if images.images.arrays is not None:
        shared['images'], shared['labels'] = images.images.arrays
    return replicated(shared)


def replicated(tree: Any) -> Any:
    """`tree` with a whole copy on every device, so that calls need not send it again."""
    return jax.device_put(tree, everywhere())


def everywhere() -> jax.sharding.Sharding:
    """The placement of `state` and `shared`: a whole copy on every device."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_train(recipe: Recipe, phase: Phase, *example: Any) -> Program:
    """Compiles the training call of (network, phase). `example`: state, batch, shared."""
    call = jax.pmap(
        functools.partial(train_steps, recipe, phase),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, 0),
        donate_argnums=0,
    )
    return _compile(call, example)


def compile_eval(recipe: Recipe, phase: Phase, *example: Any) -> Program:
    """Compiles the evaluating call of (network, phase). `example`: state, batch, shared."""
    call = jax.pmap(
        functools.partial(eval_steps, recipe, phase),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=0,
    )
    return _compile(call, example)


def _compile(call, example):
    start = time.perf_counter()
    compiled = call.lower(*example).compile(compiler_options=_OPTIONS.get(jax.default_backend()))
    return Program(compiled, time.perf_counter() - start, _peak_bytes(compiled))


def _peak_bytes(compiled):
    """What comes in, what goes out elsewhere, and what is held in between."""
    memory = compiled.memory_analysis()
    if memory is None:  # not every platform tells
        return 0
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes


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
      totals since the last evaluation, and the longest streak of skipped steps.
    """

    def body(slot, state):
        images, labels = _fetch(slot, batch, shared)
        return train_step(recipe, phase, state, images, labels, shared['key'])

    state = lax.fori_loop(0, batch['steps'], body, state)
    metrics = {'totals': state.totals, 'longest_streak': state.longest_streak}
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

    def loss(part, group, mode):
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

    def gradient(group, mode):
        """Gradient of one group, zeros for the other; the mean over devices."""
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = differentiate(state.trainable[group], group, mode)
        # The gradient is that of a device's own mean, so it is averaged after differentiation, and
        # pmap leaves it at that. Under shard_map the transpose sums over devices by itself: there
        # the mean belongs inside the loss, and this line would make the gradient D times too large.
        value, grads = lax.pmean((value, grads), AXIS)
        zeros = optax.tree.zeros_like(state.trainable)
        return value, aux, {**zeros, group: grads}

    def weight_turn():
        value, (correct, guarded, batch_stats), grads = gradient('params', _WEIGHT_MODE[phase])
        correct = lax.psum(correct, AXIS)
        moved = Totals.zeros().replace(
            loss=value,
            correct=correct,
            images=jnp.int32(len(labels) * lax.axis_size(AXIS)),
            weight_steps=jnp.int32(1),
            guarded_rows=guarded,
        )
        return value, grads, batch_stats, moved

    def alpha_turn():
        # BatchNorm normalises with this batch but leaves its running statistics alone.
        value, (_, guarded, _), grads = gradient('arch', Mode.ALPHA)
        moved = Totals.zeros().replace(
            arch_loss=value, arch_steps=jnp.int32(1), guarded_rows=guarded
        )
        return value, grads, state.batch_stats, moved

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
      `loss`, `correct` and `images`, float32, summed over all devices; and `logits` of this
      device's images, `[slots, B/D, num_classes]` float32.
    """
    mode = Mode.SKIP if phase is Phase.WARMUP else Mode.ARGMAX
    variables = {**state.trainable, 'batch_stats': state.batch_stats}

    def body(slot, sums):
        images, labels = _fetch(slot, batch, shared)
        weight = batch['weight'][slot]
        logits = recipe.model.apply(variables, images, mode=mode, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {
            'logits': sums['logits'].at[slot].set(logits),
            'loss': sums['loss'] + (losses * weight).sum(),
            'correct': sums['correct'] + ((logits.argmax(-1) == labels) * weight).sum(),
            'images': sums['images'] + weight.sum(),
        }

    sums = dict.fromkeys(('loss', 'correct', 'images'), jnp.float32(0))
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
