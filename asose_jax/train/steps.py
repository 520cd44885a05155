"""Trains, evaluates and computes BatchNorm statistics: pure functions that run on each device.

`pmap` compiles them. One call runs as many steps as its batch says, so that the host has time to
prepare the next batch. `gradients` computes the gradients of a training step.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from asose_jax.nn import factors
from asose_jax.nn.batch_norm import BatchNorm
from asose_jax.nn.forward import Mode
from asose_jax.spaces.supernet import HEAD, mixture_logits
from asose_jax.train import gradients
from asose_jax.train.gradients import Fetch, StepInputs, Turn
from asose_jax.train.phases import Phase, Step
from asose_jax.train.state import AveragingState, Packed, Path, SearchState, Totals
from asose_jax.train.step_config import AXIS, StepConfig

Arrays = Mapping[str, jax.Array]
# Names of the trees in a state that have a module of the network below them, as `params` has.
_WEIGHT_TREES = ('params', 'average')


def train_steps(
    step_config: StepConfig, phase: Phase, packed: Packed, batch: Arrays, shared: Arrays
) -> tuple[Packed, dict[str, Any]]:
    """Runs `batch['steps']` training steps.

    Args:
      step_config: static settings of the network's steps.
      phase: static phase of the run.
      packed: the state, the same on every device; its buffers are donated.
      batch: this device's part of `batches.stack_batches`: `[slots, B/D, ...]` per key.
      shared: see `pmap.shared_arrays`.

    Returns:
      The new state, the same on every device, and the metrics that the host may read (`totals`
      since the last evaluation, `longest_streak` of skipped steps, `arch` and `factors`).
    """

    def body(slot: jax.Array, packed: Packed) -> Packed:
        images, labels = _fetch(slot, batch, shared)
        fetch_next = functools.partial(_fetch, slot + 1, batch, shared)
        return train_step(step_config, phase, packed, images, labels, shared, fetch_next)

    packed = lax.fori_loop(0, batch['steps'], body, packed)
    state = packed.unpack()
    metrics = {
        'totals': state.totals,
        'longest_streak': state.longest_streak,
        'arch': state.arch,
        'factors': factors.factors_by_row(step_config.model.spec, state.evaluated['params']),
    }
    return packed, metrics


def train_step(
    step_config: StepConfig,
    phase: Phase,
    packed: Packed,
    images: jax.Array,
    labels: jax.Array,
    shared: Arrays,
    fetch_next: Fetch,
) -> Packed:
    """Updates the weights, alpha, or both where they move together.

    Only the gradient of the current turn is computed (docs/algorithm.md, "Turns"). A step whose
    loss or gradient is not finite changes nothing but counters (docs/algorithm.md, "Guards").

    Args:
      step_config: static settings of the network's steps.
      phase: static phase of the run.
      packed: the state before the step.
      images: this device's images, `[B/D, H, W, C]` float32, normalised.
      labels: `[B/D]` int32.
      shared: see `pmap.shared_arrays`. The key is the same on all devices, so that all draw the
        same operations.
      fetch_next: fetches images and labels of the step after this one; used in second order only.

    Returns:
      The state after the step.
    """
    inputs = gradients.StepInputs(step_config, phase, packed, packed.unpack(), shared)
    batch = gradients.prepare(inputs, inputs.state.step, images, labels)
    turn = gradients.compute(inputs, batch, fetch_next)
    updated = _updated(inputs, turn)
    if step_config.is_frozen(phase):
        updated = _with_frozen(packed, updated)
    skipped = _skipped(packed, turn)
    return _add_counters(packed, _where_finite(turn, updated, skipped))


def _updated(inputs: StepInputs, turn: Turn) -> SearchState:
    """Returns the packed state after the optimizer's update, with the totals of this step alone."""
    step_config, vectors = inputs.step_config, inputs.packed.vectors
    updates, opt_state = step_config.tx.update(
        turn.grads, vectors.opt_state, vectors.trainable, step=vectors.step
    )
    trainable = cast(dict[str, Any], optax.apply_updates(vectors.trainable, updates))
    if isinstance(vectors, AveragingState):
        done = step_config.schedule.steps_of_optimize(vectors.step)
        share = 1 - average_decay(inputs.recipe.ema, done)
        average = optax.incremental_update(trainable['params'], vectors.average, share)
        vectors = vectors.replace(average=average)
    return vectors.replace(
        **trainable,
        batch_stats=turn.batch_stats,
        opt_state=opt_state,
        totals=inputs.packed.layout.totals.pack(turn.totals),
        streak=jnp.int32(0),
    )


def average_decay(decay: float, done: Step) -> jax.Array:
    """Returns the decay of the average of the weights: `min(decay, (1 + done) / (10 + done))`.

    It begins low, as in TensorFlow's ExponentialMovingAverage, so that a short training is not
    averaged with the weights that it began with. `done` counts the steps of optimize before this
    one.
    """
    return jnp.minimum(decay, (1 + done) / (10 + done))


def _with_frozen(packed: Packed, updated: SearchState) -> SearchState:
    """Returns `updated` with all weights and momentum of before, but for those of the head.

    Frozen weights have a gradient of 0, but weight decay and momentum would still move them, and
    rounding would move their average.
    """

    def is_frozen(path: Path) -> bool:
        names = [getattr(part, 'name', getattr(part, 'key', None)) for part in path]
        modules = [name for tree, name in itertools.pairwise(names) if tree in _WEIGHT_TREES]
        return bool(modules) and modules[0] != HEAD

    kept = jax.tree.map_with_path(
        lambda path, old, new: old if is_frozen(path) else new,
        packed.unpack(),
        packed.replace(vectors=updated).unpack(),
    )
    return Packed.of(kept).vectors


def _skipped(packed: Packed, turn: Turn) -> SearchState:
    """Returns the packed state before the step, with the totals of a skipped step."""
    totals = Totals.zeros().replace(
        guarded_rows=turn.totals.guarded_rows, skipped_steps=jnp.int32(1)
    )
    return packed.vectors.replace(
        totals=packed.layout.totals.pack(totals), streak=packed.vectors.streak + 1
    )


def _where_finite(turn: Turn, updated: SearchState, skipped: SearchState) -> SearchState:
    """Selects `updated` if loss and gradient are finite, else `skipped`; without a branch."""
    finite = _all_finite((turn.loss, turn.grads))
    return jax.tree.map(functools.partial(jnp.where, finite), updated, skipped)


def _add_counters(before: Packed, vectors: SearchState) -> Packed:
    """Counts the step, and adds its totals to those since the last evaluation."""
    old = before.vectors
    return before.replace(
        vectors=vectors.replace(
            step=old.step + 1,
            totals=optax.tree.add(old.totals, vectors.totals),
            longest_streak=jnp.maximum(old.longest_streak, vectors.streak),
        )
    )


def _all_finite(tree: Any) -> jax.Array:
    # One copy and one loop: a loop for each of hundreds of arrays would take longer.
    return jnp.isfinite(jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])).all()


def eval_steps(
    step_config: StepConfig, phase: Phase, packed: Packed, batch: Arrays, shared: Arrays
) -> dict[str, jax.Array]:
    """Evaluates the images of `batch['steps']` batches without noise, with running statistics.

    The network is the most likely one (docs/algorithm.md, "Evaluation"), with averaged weights if
    the state has them. With `StepConfig.eval_mixture`, it is the mixture of all candidates with
    statistics of each batch.

    Args:
      step_config: static settings of the network's steps.
      phase: static phase of the run; selects `StepConfig.eval_mode`.
      packed: the state, read only.
      batch: this device's part of `batches.stack_batches`, with `weight` `[slots, B/D]`: 1 for
        images that count, 0 for padding.
      shared: see `pmap.shared_arrays`.

    Returns:
      Sums of each batch over all devices (`loss`, `correct` and `images`, `[slots]` float32), and
      `logits` of this device's images, `[slots, B/D, num_classes]` float32.
    """
    state = packed.unpack()
    variables = {**state.evaluated, 'batch_stats': state.batch_stats}
    beta = step_config.schedule.beta(state.step)
    if step_config.eval_mixture:
        logits_of = functools.partial(
            mixture_logits, step_config.model, variables, beta, shared['key']
        )
    else:
        mode = step_config.eval_mode(phase)
        logits_of = functools.partial(
            step_config.model.apply, variables, beta=beta, mode=mode, train=False
        )

    def body(slot: jax.Array, outputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images, labels = _fetch(slot, batch, shared)
        weight = batch['weight'][slot]
        logits = cast(jax.Array, logits_of(images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        values = {
            'logits': logits,
            'loss': (losses * weight).sum(),
            'correct': ((logits.argmax(-1) == labels) * weight).sum(),
            'images': weight.sum(),
        }
        return {key: outputs[key].at[slot].set(value) for key, value in values.items()}

    zeros = jnp.zeros(len(batch['weight']))
    outputs: dict[str, jax.Array] = {'loss': zeros, 'correct': zeros, 'images': zeros}
    outputs['logits'] = jnp.zeros((*batch['weight'].shape, step_config.model.spec.num_classes))
    outputs = lax.fori_loop(0, batch['steps'], body, outputs)
    logits = outputs.pop('logits')
    return {**lax.psum(outputs, AXIS), 'logits': logits}


def recompute_batch_stats(
    step_config: StepConfig, packed: Packed, batch: Arrays, shared: Arrays
) -> Packed:
    """Computes the BatchNorm statistics of the network that is evaluated.

    The running statistics of a supernet are means over draws, and fit none of its networks; here
    they are those of the most likely one (docs/algorithm.md, "Evaluation"). Those of a network with
    an average of its weights belong to the weights that are trained; here they belong to the
    average, as in stochastic weight averaging (arXiv:1803.05407, section 3.2).

    Args:
      step_config: static settings of the network's steps.
      packed: the state; its buffers are donated.
      batch: this device's part of `batches.stack_batches`, with training images. They are not
        augmented, as the images of an evaluation are not. `batch['done']` is the number of batches
        in earlier calls.
      shared: see `pmap.shared_arrays`.

    Returns:
      The state with the means over all these batches as its running statistics.
    """
    state = packed.unpack()

    def body(slot: jax.Array, batch_stats: Any) -> Any:
        images, _ = _fetch(slot, batch, shared)
        variables = {**state.evaluated, 'batch_stats': batch_stats}
        _, changed = step_config.model.apply(
            variables,
            images,
            beta=step_config.schedule.beta(state.step),
            mode=Mode.ARGMAX,
            train=True,
            mutable=['batch_stats', 'guard', 'second_head'],
            positions=gradients.global_positions(len(images)),
            rngs={'drop_path': shared['key']},  # by the default of `optimized`, nothing is dropped
        )

        def mean_with_batch(path: tuple[Any, ...], moved: jax.Array, mean: jax.Array) -> jax.Array:
            of_batch = (moved - BatchNorm.momentum * mean) / (1 - BatchNorm.momentum)
            mean = mean + (of_batch - mean) / (batch['done'] + slot + 1)
            return jnp.maximum(mean, 0) if path[-1].key == 'var' else mean

        return jax.tree.map_with_path(mean_with_batch, changed['batch_stats'], batch_stats)

    return packed.put(batch_stats=lax.fori_loop(0, batch['steps'], body, state.batch_stats))


def _fetch(slot: jax.Array, batch: Arrays, shared: Arrays) -> tuple[jax.Array, jax.Array]:
    """Returns images `[B/D, H, W, C]`, normalised, and labels `[B/D]` of one step.

    The batch has indices into the resident images, or images and labels.
    """
    if 'index' in batch:
        index = batch['index'][slot]
        images, labels = shared['images'][index], shared['labels'][index]
    else:
        images, labels = batch['image'][slot], batch['label'][slot]
    mean, std = (shared[key].reshape(1, 1, 1, -1) for key in ('mean', 'std'))
    return (images.astype(jnp.float32) - mean) / std, labels
