"""What a step does: pure functions, as they run on each device. `devices` compiles them.

One call runs many steps, as many as the batch says, so that the host has time to prepare the next.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from asose_jax.data import augment
from asose_jax.nn import factors
from asose_jax.nn.batch_norm import BatchNorm
from asose_jax.nn.forward import Mode
from asose_jax.train import optimizer, second_order
from asose_jax.train.phases import Phase
from asose_jax.train.state import Packed, Totals
from asose_jax.train.step_config import AXIS, StepConfig


def train_steps(
    step_config: StepConfig, phase: Phase, packed: Packed, batch: Any, shared: Any
) -> tuple[Packed, dict[str, jax.Array]]:
    """Runs `batch['steps']` steps. State buffers are donated.

    Args:
      step_config: static.
      phase: static.
      packed: the state, the same on every device.
      batch: this device's part of `batches.chunk`: `[slots, B/D, ...]` per key.
      shared: see `pmap.shared_arrays`.

    Returns:
      The new state, the same on every device; and per device what the host wants to look at: the
      totals since the last evaluation, the longest streak of skipped steps, alpha, and factors.
    """

    def body(slot, packed):
        images, labels = _fetch(slot, batch, shared)
        following = functools.partial(_fetch, slot + 1, batch, shared)
        return train_step(step_config, phase, packed, images, labels, shared['key'], following)

    packed = lax.fori_loop(0, batch['steps'], body, packed)
    state = packed.unpack()
    metrics = {
        'totals': state.totals,
        'longest_streak': state.longest_streak,
        'arch': state.arch,
        'factors': factors.of(step_config.model.spec, state.params),
    }
    return packed, metrics


def train_step(
    step_config: StepConfig,
    phase: Phase,
    packed: Packed,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    following: Callable[[], tuple[jax.Array, jax.Array]],
) -> Packed:
    """One update, of the weights or of alpha (spec section 3), or of both where they move together.

    Only the gradient whose turn it is gets computed. A step whose gradient is not finite changes
    nothing but counters (spec section 4).

    Args:
      step_config: static.
      phase: static.
      packed: the state before the step.
      images: this device's, `[B/D, H, W, C]`, normalised float32.
      labels: `[B/D]` int32.
      key: of the run. The draw of operations is the same on all devices.
      following: images and labels of the step after this one; asked for in second order only.

    Returns:
      The state after the step, packed.
    """
    layout, state, vectors = packed.layout, packed.unpack(), packed.vectors

    def places(labels):
        """Of these images in the batch of all devices."""
        return lax.axis_index(AXIS) * len(labels) + jnp.arange(len(labels))

    def prepared(step, images, labels):
        """Key of the draw, augmented images, labels."""
        draw_key, image_key = jax.random.split(jax.random.fold_in(key, step))
        images = augment.augment(images, image_key, places(labels), step_config.augmentation)
        return draw_key, images, labels

    draw_key, images, labels = prepared(state.step, images, labels)

    def loss(trainable, mode, draw_key, images, labels):
        logits, changed = step_config.model.apply(
            {**trainable, 'batch_stats': state.batch_stats},
            images,
            step_config.schedule.tau(state.step),
            beta=step_config.schedule.beta(state.step),
            mode=mode,
            train=True,
            optimized=step_config.schedule.optimized(state.step),
            positions=places(labels),
            mutable=['batch_stats', 'guard', 'second_head'],
            rngs={'gumbel': draw_key, 'drop_path': draw_key},
        )
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        for others in jax.tree.leaves(changed.get('second_head', {})):
            beside = optax.softmax_cross_entropy_with_integer_labels(others, labels).mean()
            value += step_config.model.settings.second_head * beside
        correct = (logits.argmax(-1) == labels).sum()
        guarded = sum(jax.tree.leaves(changed.get('guard', {})), start=jnp.int32(0))
        return value, (correct, guarded, changed['batch_stats'])

    def gradient(groups, mode, draw_key, images, labels):
        """Gradient of these groups, the mean over devices."""

        def of(parts):
            return loss({**state.trainable, **parts}, mode, draw_key, images, labels)

        moving = {group: state.trainable[group] for group in groups}
        (value, aux), grads = jax.value_and_grad(of, has_aux=True)(moving)
        # The gradient is that of a device's own mean, so it is averaged after differentiation, and
        # pmap leaves it at that. Under shard_map the transpose sums over devices by itself: there
        # the mean belongs inside the loss, and this line would make the gradient D times too large.
        value, grads = lax.pmean((value, grads), AXIS)
        return value, aux, grads

    def whole(grads):
        known = {group: getattr(layout, group).pack(tree) for group, tree in grads.items()}
        return {**optax.tree.zeros_like(vectors.trainable), **known}

    def weight_turn(groups=('params',), mode=None):
        mode = mode or step_config.weight_mode(phase)
        value, (correct, guarded, batch_stats), grads = gradient(
            groups, mode, draw_key, images, labels
        )
        correct = lax.psum(correct, AXIS)
        moved = Totals.zeros().replace(
            loss=value,
            correct=correct,
            images=jnp.int32(len(labels) * lax.axis_size(AXIS)),
            weight_steps=jnp.int32(1),
            guarded_rows=guarded,
        )
        if 'arch' in grads:
            grads['arch'] = penalised(grads['arch'])
        return value, whole(grads), layout.batch_stats.pack(batch_stats), moved

    def turn_of_both():
        value, grads, batch_stats, moved = weight_turn(('params', 'arch'), Mode.ALPHA)
        return value, grads, batch_stats, moved.replace(arch_loss=value, arch_steps=jnp.int32(1))

    def penalised(grads):
        if step_config.penalty is None:
            return grads
        return optax.tree.add(grads, jax.grad(step_config.penalty)(state.arch))

    def after_next(valid, train):
        """Gradient of alpha after the weight step that comes next: its images, its draw."""

        def at(params, arch, *batch):
            return loss({'params': params, 'arch': arch}, Mode.ALPHA, *batch)

        def stepped(grads):
            grads = whole({'params': grads})
            opt_state, trainable = vectors.opt_state, vectors.trainable
            updates, _ = step_config.tx.update(grads, opt_state, trainable, step=optimizer.BEFORE)
            moved = optax.apply_updates(vectors.params, updates['params'])
            return layout.params.unpack(moved)

        mean = functools.partial(lax.pmean, axis_name=AXIS)
        return second_order.gradient(at, stepped, state.params, state.arch, valid, train, mean)

    def alpha_turn():
        # BatchNorm normalises with this batch but leaves its running statistics alone.
        def of(keys, parts):
            seen = [(key, *part) for key, part in zip(keys, parts, strict=True)]
            if step_config.second_order:
                value, (_, guarded, _), grads = after_next(*seen)
            else:
                value, (_, guarded, _), grads = gradient(('arch',), Mode.ALPHA, *seen[0])
                grads = grads['arch']
            return guarded, value, grads

        keys, parts = [draw_key], [(images, labels)]
        if step_config.second_order:
            key, *part = prepared(state.step + 1, *following())
            keys, parts = [*keys, key], [*parts, tuple(part)]
        parts = jax.tree.map(
            lambda a: a.reshape(step_config.arch_micro_batches, -1, *a.shape[1:]), parts
        )
        many = functools.partial(jax.random.split, num=step_config.arch_samples)
        keys = [many(key) if step_config.arch_samples > 1 else key[None] for key in keys]
        guarded, value, grads = _mean_over(
            lambda keys: _mean_over(functools.partial(of, keys), parts), keys
        )
        moved = Totals.zeros().replace(
            arch_loss=value, arch_steps=jnp.int32(1), guarded_rows=guarded
        )
        return value, whole({'arch': penalised(grads)}), vectors.batch_stats, moved

    if phase.searches:
        is_alpha_turn = step_config.schedule.is_alpha_turn(state.step)
        moves_alpha = turn_of_both if step_config.schedule.together else alpha_turn
        value, grads, batch_stats, moved = lax.cond(is_alpha_turn, moves_alpha, weight_turn)
    else:
        value, grads, batch_stats, moved = weight_turn()
    updates, opt_state = step_config.tx.update(
        grads, vectors.opt_state, vectors.trainable, step=vectors.step
    )
    updated = vectors.replace(
        **optax.apply_updates(vectors.trainable, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        totals=layout.totals.pack(moved),
        streak=jnp.int32(0),
    )
    skipped = vectors.replace(
        totals=layout.totals.pack(
            Totals.zeros().replace(guarded_rows=moved.guarded_rows, skipped_steps=jnp.int32(1))
        ),
        streak=vectors.streak + 1,
    )
    finite = _all_finite((value, grads))
    after = jax.tree.map(functools.partial(jnp.where, finite), updated, skipped)
    after = after.replace(
        step=vectors.step + 1,
        totals=optax.tree.add(vectors.totals, after.totals),
        longest_streak=jnp.maximum(vectors.longest_streak, after.streak),
    )
    return packed.replace(vectors=after)


def eval_steps(
    step_config: StepConfig, phase: Phase, packed: Packed, batch: Any, shared: Any
) -> dict[str, jax.Array]:
    """Evaluates the images of `batch['steps']` batches, without noise, with running statistics.

    Or as a mixture, see `Recipe`.

    Args:
      step_config: static.
      phase: static; see `Recipe.eval_mode`.
      packed: the state, read only.
      batch: this device's part of `batches.chunk`, with `weight` `[slots, B/D]`: 1 counts, 0 not.
      shared: see `pmap.shared_arrays`.

    Returns:
      Per batch, summed over all devices: `loss`, `correct` and `images`, `[slots]` float32; and
      `logits` of this device's images, `[slots, B/D, num_classes]` float32.
    """
    state = packed.unpack()
    variables = {**state.trainable, 'batch_stats': state.batch_stats}
    beta = step_config.schedule.beta(state.step)

    def logits_of(images):
        if not step_config.eval_mixture:
            mode = step_config.eval_mode(phase)
            return step_config.model.apply(variables, images, beta=beta, mode=mode, train=False)
        logits, _ = step_config.model.apply(
            variables,
            images,
            beta=beta,
            mode=Mode.DENSE,
            train=True,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': shared['key']},  # nothing is drawn
        )
        return logits

    def body(slot, sums):
        images, labels = _fetch(slot, batch, shared)
        weight = batch['weight'][slot]
        logits = logits_of(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        found = {
            'logits': logits,
            'loss': (losses * weight).sum(),
            'correct': ((logits.argmax(-1) == labels) * weight).sum(),
            'images': weight.sum(),
        }
        return {key: sums[key].at[slot].set(value) for key, value in found.items()}

    sums = dict.fromkeys(('loss', 'correct', 'images'), jnp.zeros(len(batch['weight'])))
    sums['logits'] = jnp.zeros((*batch['weight'].shape, step_config.model.spec.num_classes))
    sums = lax.fori_loop(0, batch['steps'], body, sums)
    logits = sums.pop('logits')
    return {**lax.psum(sums, AXIS), 'logits': logits}


def own_statistics(step_config: StepConfig, packed: Packed, batch: Any, shared: Any) -> Packed:
    """Gives BatchNorm the statistics of the network that alpha makes most likely.

    A supernet's running statistics are means over draws, and belong to none of its networks.

    Args:
      step_config: static.
      packed: the state.
      batch: this device's part of `batches.chunk`, images to train on; they are not augmented, as
        those of evaluations are not. `batch['done']` is how many batches came in calls before.
      shared: see `pmap.shared_arrays`.

    Returns:
      The state with means over all those batches as its running statistics.
    """
    state = packed.unpack()
    momentum = BatchNorm.momentum

    def body(slot, batch_stats):
        images, _ = _fetch(slot, batch, shared)
        variables = {**state.trainable, 'batch_stats': batch_stats}
        _, changed = step_config.model.apply(
            variables,
            images,
            beta=step_config.schedule.beta(state.step),
            mode=Mode.ARGMAX,
            train=True,
            mutable=['batch_stats', 'guard', 'second_head'],
            positions=lax.axis_index(AXIS) * len(images) + jnp.arange(len(images)),
            rngs={'drop_path': shared['key']},  # nothing is dropped before optimize
        )

        def mean(path, new, old):
            own = (new - momentum * old) / (1 - momentum)  # of this batch
            found = old + (own - old) / (batch['done'] + slot + 1)
            return jnp.maximum(found, 0) if path[-1].key == 'var' else found

        return jax.tree.map_with_path(mean, changed['batch_stats'], batch_stats)

    found = lax.fori_loop(0, batch['steps'], body, state.batch_stats)
    return packed.put(batch_stats=found)


def _fetch(slot, batch, shared):
    """Normalised images and labels of one step, from the resident set or from the batch itself."""
    if 'index' in batch:
        index = batch['index'][slot]
        images, labels = shared['images'][index], shared['labels'][index]
    else:
        images, labels = batch['image'][slot], batch['label'][slot]
    scale = [shared[key].reshape(1, 1, 1, -1) for key in ('mean', 'std')]
    return (images.astype(jnp.float32) - scale[0]) / scale[1], labels


def _mean_over(function, cases):
    """Mean of `function(case)`, one after another; of integers, the largest."""
    if len(jax.tree.leaves(cases)[0]) == 1:
        return function(jax.tree.map(lambda leaf: leaf[0], cases))
    found = lax.map(function, cases)
    return jax.tree.map(lambda leaf: leaf.max() if leaf.dtype == 'int32' else leaf.mean(0), found)


def _all_finite(tree):
    # One copy and one loop: a loop for each of hundreds of arrays would take longer.
    return jnp.isfinite(jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])).all()
