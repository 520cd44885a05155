"""Computes the gradient of one training step: of the weights, of alpha, or of both.

Each step is the turn of one group (docs/algorithm.md, "Turns"). A turn computes a loss and its
gradient but moves nothing: `steps.train_step` applies the result, or skips the step.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asose_jax.data import augment, mixing, randaugment
from asose_jax.nn.forward import Mode
from asose_jax.spaces.supernet import HEAD
from asose_jax.train import optimizer, second_order
from asose_jax.train.packing import Vectors
from asose_jax.train.phases import Phase
from asose_jax.train.state import Packed, SearchState, Totals
from asose_jax.train.step_config import AXIS, Recipe, StepConfig

# Fetches normalised images `[B/D, H, W, C]` and labels `[B/D]` of a step.
Fetch = Callable[[], tuple[jax.Array, jax.Array]]
# Numbers that are folded into the key of a step; the split of that key uses 0 and 1.
_RANDAUGMENT, _MIXING = 2, 3


class Partners(NamedTuple):
    """Holds what the images of a batch are mixed with.

    Attributes:
      labels: class indices of the other images, `[B/D]` int32.
      share: share of the first label, scalar float32.
    """

    labels: jax.Array
    share: jax.Array


class Batch(NamedTuple):
    """Holds the images that this device sees in one step, and the key of the draw.

    Attributes:
      draw_key: random key of the draw of operations, the same on all devices.
      images: augmented images, `[B/D, H, W, C]` float32.
      labels: class indices, `[B/D]` int32.
      partners: of mixed images; `None` if images are as they are.
    """

    draw_key: jax.Array
    images: jax.Array
    labels: jax.Array
    partners: Partners | None = None

    @property
    def main_labels(self) -> jax.Array:
        """Returns the label of each image that has the larger share, `[B/D]` int32."""
        if self.partners is None:
            return self.labels
        return jnp.where(self.partners.share >= 0.5, self.labels, self.partners.labels)


class Turn(NamedTuple):
    """Holds the result of a turn, the same on all devices.

    Attributes:
      loss: scalar float32, averaged over devices.
      grads: gradient of `params` and of `arch` as packed vectors; zeros for a group at rest.
      batch_stats: running statistics of BatchNorm after the step, packed.
      totals: what the step adds to the totals.
    """

    loss: jax.Array
    grads: dict[str, Vectors]
    batch_stats: Vectors
    totals: Totals


class LossOutputs(NamedTuple):
    """Holds what a forward pass on this device yields beside the loss.

    Attributes:
      correct: number of images classified right, int32; of mixed ones, as their larger share.
      guarded_rows: number of rows of alpha that the guard replaced, int32.
      batch_stats: updated running statistics of BatchNorm, a tree.
    """

    correct: jax.Array
    guarded_rows: jax.Array
    batch_stats: Any


@dataclasses.dataclass(frozen=True, eq=False)
class StepInputs:
    """Holds the inputs that all turns of one training step share, read only.

    Attributes:
      step_config: static settings of the network's steps.
      phase: static phase of the run.
      packed: the state before the step.
      state: the same state as trees; unpacked once, so the program holds one copy of the splits.
      shared: see `pmap.shared_arrays`.
    """

    step_config: StepConfig
    phase: Phase
    packed: Packed
    state: SearchState
    shared: Mapping[str, jax.Array]

    @property
    def recipe(self) -> Recipe:
        """Returns what the images and labels of this phase go through."""
        return self.step_config.recipe_in(self.phase)


def global_positions(count: int) -> jax.Array:
    """Returns the positions of this device's images in the batch of all, `[count]` int32."""
    return lax.axis_index(AXIS) * count + jnp.arange(count)


def prepare(inputs: StepInputs, step: jax.Array, images: jax.Array, labels: jax.Array) -> Batch:
    """Augments and mixes the images of a step, and derives the key of its draw.

    RandAugment comes first, then crop, flip and cutout, as in AutoAugment's program
    (arXiv:1805.09501). Then the images are mixed.

    Args:
      inputs: the inputs of the running step.
      step: the step that the images belong to; randomness is a function of the run's key and it.
      images: normalised images, `[B/D, H, W, C]` float32.
      labels: `[B/D]` int32.

    Returns:
      The batch that the turns take.
    """
    recipe, shared = inputs.recipe, inputs.shared
    step_key = jax.random.fold_in(shared['key'], step)
    draw_key, image_key = jax.random.split(step_key)
    positions = global_positions(len(labels))
    if recipe.randaugment.operations:
        key = jax.random.fold_in(step_key, _RANDAUGMENT)
        images = randaugment.randaugment(
            images, key, positions, recipe.randaugment, shared['mean'], shared['std']
        )
    images = augment.augment(images, image_key, positions, inputs.step_config.augmentation)
    if not any(recipe.mixing):
        return Batch(draw_key, images, labels)
    key = jax.random.fold_in(step_key, _MIXING)
    height, width = images.shape[1:3]
    shares = mixing.draw_shares(key, height, width, recipe.mixing)
    others, other_labels = _opposite((images, labels))
    images = mixing.mix(images, others, shares)
    return Batch(draw_key, images, labels, Partners(other_labels, shares.mean()))


def _opposite(tree: Any) -> Any:
    """Returns the entries at the opposite places of the batch of all devices: last for first.

    So the partner of an image does not depend on the number of devices. Each gets its entries,
    `[B/D, ...]`, from the device at the other end.
    """
    devices = lax.axis_size(AXIS)
    pairs = [(device, devices - 1 - device) for device in range(devices)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, AXIS, pairs)[::-1], tree)


def compute(inputs: StepInputs, batch: Batch, fetch_next: Fetch) -> Turn:
    """Computes the turn of the current step, and no other.

    `fetch_next` is used in second order only.
    """
    weight_turn = functools.partial(_weight_turn, inputs, batch)
    if not inputs.phase.searches:
        return weight_turn()
    schedule = inputs.step_config.schedule
    is_alpha_turn = schedule.is_alpha_turn(inputs.state.step)
    if schedule.together:
        alpha_turn = functools.partial(_joint_turn, inputs, batch)
    else:
        alpha_turn = functools.partial(_alpha_turn, inputs, batch, fetch_next)
    return lax.cond(is_alpha_turn, alpha_turn, weight_turn)


def _weight_turn(inputs: StepInputs, batch: Batch) -> Turn:
    """Takes the gradient of the weights."""
    mode = inputs.step_config.weight_mode(inputs.phase)
    return _turn_of_weights(inputs, batch, ('params',), mode)


def _joint_turn(inputs: StepInputs, batch: Batch) -> Turn:
    """Takes the gradient of the weights and of alpha by one batch and one draw."""
    turn = _turn_of_weights(inputs, batch, ('params', 'arch'), Mode.ALPHA)
    totals = turn.totals.replace(arch_loss=turn.loss, arch_steps=jnp.int32(1))
    return turn._replace(totals=totals)


def _turn_of_weights(inputs: StepInputs, batch: Batch, groups: tuple[str, ...], mode: Mode) -> Turn:
    """Takes the gradient of `groups`, the weights among them, and new BatchNorm statistics."""
    loss, outputs, grads = _mean_gradient(inputs, groups, mode, batch)
    correct = lax.psum(outputs.correct, AXIS)
    totals = Totals.zeros().replace(
        loss=loss,
        correct=correct,
        images=jnp.int32(len(batch.labels) * lax.axis_size(AXIS)),
        weight_steps=jnp.int32(1),
        guarded_rows=outputs.guarded_rows,
    )
    if 'arch' in grads:
        grads = {**grads, 'arch': _add_penalty(inputs, grads['arch'])}
    packed_grads = _pack_gradients(inputs.packed, grads)
    batch_stats = inputs.packed.layout.batch_stats.pack(outputs.batch_stats)
    return Turn(loss, packed_grads, batch_stats, totals)


def _alpha_turn(inputs: StepInputs, batch: Batch, fetch_next: Fetch) -> Turn:
    """Takes the gradient of alpha, the mean over draws and micro-batches.

    BatchNorm normalises with this batch but keeps its running statistics.
    """
    step_config = inputs.step_config
    batches = [batch]
    if step_config.second_order:
        batches.append(prepare(inputs, inputs.state.step + 1, *fetch_next()))
    # One entry per step: the running one and, in second order, the next. Micro-batch i of one step
    # is paired with micro-batch i of the other.
    micro_batches = jax.tree.map(
        functools.partial(_split_images, parts=step_config.arch_micro_batches),
        [(b.images, b.labels) for b in batches],
    )
    draw_keys = [_split_key(b.draw_key, step_config.arch_samples) for b in batches]

    def gradient_of_draw(draw_keys: list[jax.Array]) -> tuple[jax.Array, jax.Array, Any]:
        return _mean_over(functools.partial(_alpha_gradient, inputs, draw_keys), micro_batches)

    guarded_rows, loss, grads = _mean_over(gradient_of_draw, draw_keys)
    totals = Totals.zeros().replace(
        arch_loss=loss, arch_steps=jnp.int32(1), guarded_rows=guarded_rows
    )
    packed_grads = _pack_gradients(inputs.packed, {'arch': _add_penalty(inputs, grads)})
    return Turn(loss, packed_grads, inputs.packed.vectors.batch_stats, totals)


def _alpha_gradient(
    inputs: StepInputs, draw_keys: list[jax.Array], images_and_labels: list[Any]
) -> tuple[jax.Array, jax.Array, Any]:
    """Takes the gradient of alpha for one draw of one micro-batch.

    Args:
      inputs: the inputs of the step.
      draw_keys: the key of the running step's draw and, in second order, of the next step's.
      images_and_labels: a pair for each of these steps.

    Returns:
      Number of guarded rows, loss, and gradient like `arch`; the last two averaged over devices.
    """
    batches = [Batch(key, *pair) for key, pair in zip(draw_keys, images_and_labels, strict=True)]
    if inputs.step_config.second_order:
        loss, outputs, grads = _second_order_gradient(inputs, *batches)
    else:
        loss, outputs, by_group = _mean_gradient(inputs, ('arch',), Mode.ALPHA, *batches)
        grads = by_group['arch']
    return outputs.guarded_rows, loss, grads


def _second_order_gradient(
    inputs: StepInputs, valid: Batch, train: Batch
) -> tuple[jax.Array, LossOutputs, Any]:
    """Takes the gradient of alpha behind the next weight step, see `second_order.gradient`.

    Args:
      inputs: the inputs of the step.
      valid: the batch of the alpha step.
      train: the batch of the weight step after it, with that step's augmentation and draw.

    Returns:
      Loss averaged over devices, the other outputs, and the averaged gradient like `arch`.
    """
    vectors, layout = inputs.packed.vectors, inputs.packed.layout

    def loss(params: Any, arch: Any, *batch: Any) -> tuple[jax.Array, LossOutputs]:
        return _loss(inputs, {'params': params, 'arch': arch}, Mode.ALPHA, Batch(*batch))

    def step_weights(grads: Any) -> Any:
        packed_grads = _pack_gradients(inputs.packed, {'params': grads})
        updates, _ = inputs.step_config.tx.update(
            packed_grads, vectors.opt_state, vectors.trainable, step=optimizer.LOOKAHEAD_STEP
        )
        of_params = cast(dict[str, Vectors], updates)['params']
        return layout.params.unpack(cast(Vectors, optax.apply_updates(vectors.params, of_params)))

    mean = functools.partial(lax.pmean, axis_name=AXIS)
    state = inputs.state
    return second_order.gradient(loss, step_weights, state.params, state.arch, valid, train, mean)


def _mean_gradient(
    inputs: StepInputs, groups: tuple[str, ...], mode: Mode, batch: Batch
) -> tuple[jax.Array, LossOutputs, dict[str, Any]]:
    """Takes the gradient of the loss by some groups, averaged over devices.

    `groups` are `'params'`, `'arch'` or both. Also returns the loss averaged over devices, and this
    device's other outputs.
    """
    trainable = inputs.state.trainable

    def loss_of(moving: dict[str, Any]) -> tuple[jax.Array, LossOutputs]:
        return _loss(inputs, {**trainable, **moving}, mode, batch)

    moving = {group: trainable[group] for group in groups}
    (loss, outputs), grads = jax.value_and_grad(loss_of, has_aux=True)(moving)
    # The gradient is that of a device's own mean, so it is averaged after differentiation, and
    # pmap leaves it at that. Under shard_map the transpose sums over devices by itself: there
    # the mean belongs inside the loss, and this line would make the gradient D times too large.
    loss, grads = lax.pmean((loss, grads), AXIS)
    return loss, outputs, grads


def _loss(
    inputs: StepInputs, trainable: Mapping[str, Any], mode: Mode, batch: Batch
) -> tuple[jax.Array, LossOutputs]:
    """Computes the training loss of this device's images.

    Args:
      inputs: the inputs of the step; its own weights and alpha are not used.
      trainable: weights and alpha, `{'params': ..., 'arch': ...}`.
      mode: how mixed operations use their candidates.
      batch: the images.

    Returns:
      Mean cross-entropy by `mean_cross_entropy`, scalar float32, that of the second head included;
      and the other outputs. In optimize, labels may be smoothed and mixed; alpha's loss never is.
    """
    step_config, state = inputs.step_config, inputs.state
    is_frozen = step_config.is_frozen(inputs.phase)
    if is_frozen:
        trainable = {**trainable, 'params': _with_gradient_of_head(trainable['params'])}
    logits, changed = step_config.model.apply(
        {**trainable, 'batch_stats': state.batch_stats},
        batch.images,
        step_config.schedule.tau(state.step),
        beta=step_config.schedule.beta(state.step),
        mode=mode,
        train=not is_frozen,
        optimized=step_config.schedule.optimized(state.step),
        positions=global_positions(len(batch.labels)),
        mutable=['batch_stats', 'guard', 'second_head'],
        rngs={'gumbel': batch.draw_key, 'drop_path': batch.draw_key},
    )
    mean_loss = functools.partial(
        mean_cross_entropy,
        labels=batch.labels,
        class_weights=step_config.class_weights,
        smoothing=inputs.recipe.label_smoothing,
        partners=batch.partners,
    )
    loss = mean_loss(logits)
    for second_logits in jax.tree.leaves(changed.get('second_head', {})):
        second_loss = mean_loss(second_logits)
        loss += step_config.model.settings.second_head * second_loss
    correct = (logits.argmax(-1) == batch.main_labels).sum()
    guarded = jax.tree.leaves(changed.get('guard', {}))
    guarded_rows = cast(jax.Array, sum(guarded, start=jnp.int32(0)))
    return loss, LossOutputs(correct, guarded_rows, changed['batch_stats'])


def mean_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array | np.ndarray | None = None,
    smoothing: float = 0.0,
    partners: Partners | None = None,
) -> jax.Array:
    """Computes the mean of w_c times cross-entropy over images, c being the class of each.

    The sum is divided by the number of images, and not by the sum of their weights as PyTorch's
    mean does. So the mean over devices, or over micro-batches, of such means is that of the whole
    batch, whatever classes each part has. Divided by its own weights, each part would count alike
    even if it held rare classes only, and a batch without them would count in full. Balanced
    weights have a mean of 1 over the training images, so learning rates keep their meaning.

    A mixed image has the weighted mean of the losses of its two labels (arXiv:1710.09412, section
    2). Smoothing gives the share `smoothing` of a label to all classes alike (Szegedy et al. 2016,
    arXiv:1512.00567, section 7), each class with its weight.

    Args:
      logits: `[B, num_classes]` float32.
      labels: `[B]` int32.
      class_weights: `[num_classes]` float32; `None` computes the plain mean.
      smoothing: 0 to 1; 0 leaves labels as they are.
      partners: what images are mixed with; `None` if they are as they are.

    Returns:
      Scalar float32.
    """

    # By class indices: one-hot labels would make a label out of range a row of zeros, and the
    # guard would not see it.
    def cross_entropy(of: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, of)
        return losses if class_weights is None else losses * jnp.asarray(class_weights)[of]

    losses = cross_entropy(labels)
    if partners is not None:
        losses = partners.share * losses + (1 - partners.share) * cross_entropy(partners.labels)
    if smoothing:
        of_all = -jax.nn.log_softmax(logits)
        if class_weights is not None:
            of_all *= jnp.asarray(class_weights)
        losses = (1 - smoothing) * losses + smoothing * of_all.mean(-1)
    return losses.mean()


def _with_gradient_of_head(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same weights; the gradient of all but the head's is 0, and is not computed."""
    return {
        name: tree if name == HEAD else lax.stop_gradient(tree) for name, tree in params.items()
    }


def _add_penalty(inputs: StepInputs, arch_grads: Any) -> Any:
    """Adds the gradient of the penalty on alpha, if the run has one."""
    penalty = inputs.step_config.penalty
    if penalty is None:
        return arch_grads
    return optax.tree.add(arch_grads, jax.grad(penalty)(inputs.state.arch))


def _pack_gradients(packed: Packed, grads: Mapping[str, Any]) -> dict[str, Vectors]:
    """Packs the gradient of each group into vectors; a group without one gets zeros."""
    known = {group: getattr(packed.layout, group).pack(tree) for group, tree in grads.items()}
    return {**optax.tree.zeros_like(packed.vectors.trainable), **known}


def _split_images(array: jax.Array, parts: int) -> jax.Array:
    """Splits `[B, ...]` into `[parts, B / parts, ...]`."""
    return array.reshape(parts, -1, *array.shape[1:])


def _split_key(key: jax.Array, samples: int) -> jax.Array:
    """Returns `[samples]` keys; a single draw uses the key itself."""
    return jax.random.split(key, samples) if samples > 1 else key[None]


def _mean_over(function: Callable[[Any], Any], cases: Any) -> Any:
    """Calls `function` for one case after another, and combines the results.

    Args:
      function: takes a tree like `cases` without the leading axis.
      cases: a tree of arrays `[cases, ...]`.

    Returns:
      A tree like the result of `function`: the mean of float leaves, the maximum of int32 leaves.
    """
    if len(jax.tree.leaves(cases)[0]) == 1:
        return function(jax.tree.map(lambda leaf: leaf[0], cases))
    results = lax.map(function, cases)
    return jax.tree.map(lambda leaf: leaf.max() if leaf.dtype == 'int32' else leaf.mean(0), results)
