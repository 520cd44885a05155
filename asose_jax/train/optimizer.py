"""The one optimizer: SGD for the weights, AdamW for alpha, each masked to its own turns."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from asose_jax.train.phases import Schedule

# No turn of alpha in any plan: with this step, `update` tells what the weights would do.
BEFORE = -1


def lr_for_total_displacement(travel: float, lr_end: float, updates: int) -> float:
    """The learning rate from which a cosine of `updates` steps to `lr_end` adds up to `travel`.

    Adam moves a number by at most its learning rate, so the sum bounds how far alpha can go. The
    noise of a draw has the scale 1: a few units settle a choice, in a short run as in a long one.
    At the lengths of the spec (10,920 alpha updates on CIFAR-10) its 3e-4 is a travel of 1.7.
    """
    return max(lr_end, 2 * travel / max(1, updates) - lr_end)


def make_optimizer(
    schedule: Schedule,
    *,
    weight_lr: float = 0.025,
    weight_lr_end: float = 1e-4,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    clip: float = 0.0,
    arch_lr: float = 3e-4,
    arch_lr_end: float = 1e-5,
    arch_b1: float = 0.5,
    arch_b2: float = 0.999,
    arch_weight_decay: float = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """One `multi_transform` over `{'params', 'arch'}` (spec section 3, Turns).

    Call `update(grads, state, trainable, step=step)` with the step of the run. Outside its turn, a
    group's update is zero and its moments and schedule count stay as they are, to the bit. Both
    learning rates follow one cosine over the updates that the whole plan gives their group.

    Args:
      schedule: says whose turn a step is, and how many updates each group gets.
      weight_lr: SGD's learning rate at the start.
      weight_lr_end: and at the end.
      momentum: of SGD.
      weight_decay: L2, added to the gradient.
      clip: largest norm of the weights' gradient, all together; longer ones are shortened. 0: any.
      arch_lr: Adam's learning rate at the start.
      arch_lr_end: and at the end.
      arch_b1: decay of Adam's first moment.
      arch_b2: decay of Adam's second moment.
      arch_weight_decay: decoupled, scaled by the learning rate only (Loshchilov & Hutter 2019,
        arXiv:1711.05101).

    Returns:
      The transformation.
    """

    def cosine(first, last, updates):
        return optax.cosine_decay_schedule(first, max(1, updates), alpha=last / first)

    weights = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.add_decayed_weights(weight_decay),
        optax.sgd(
            cosine(weight_lr, weight_lr_end, schedule.weight_updates(schedule.steps)), momentum
        ),
    )
    # Decoupled (AdamW): alpha's gradients are so small that L2 inside Adam, scaled up with them,
    # pulls every row back to uniform faster than the loss can move it.
    arch = optax.adamw(
        cosine(arch_lr, arch_lr_end, schedule.alpha_updates(schedule.steps)),
        b1=arch_b1,
        b2=arch_b2,
        weight_decay=arch_weight_decay,
    )

    return optax.multi_transform(
        {
            'weights': _in_turn(weights, schedule.is_weight_turn),
            'arch': _in_turn(arch, schedule.is_alpha_turn),
        },
        {'params': 'weights', 'arch': 'arch'},
    )


def _in_turn(
    inner: optax.GradientTransformation, has_turn: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """`inner` at its turns; else its update is zero and its state stays.

    Chosen number by number: `optax.conditionally_mask` branches, and then every parameter passes
    through half a dozen small loops instead of one.
    """

    def update(updates, state, params=None, *, step, **_):
        moved, moved_state = inner.update(updates, state, params)
        choose = functools.partial(jnp.where, has_turn(step))
        return (
            jax.tree.map(choose, moved, optax.tree.zeros_like(moved)),
            jax.tree.map(choose, moved_state, state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)
