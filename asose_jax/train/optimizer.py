"""Builds the optimizer: SGD for the weights, AdamW for alpha, each masked to its own turns."""

import ml_collections
import optax

from asose_jax.train import turn_mask
from asose_jax.train.phases import Schedule

# A step that is a weight turn in every schedule: with it, `update` computes a step of the weights.
LOOKAHEAD_STEP = -1


def lr_for_total_displacement(travel: float, lr_end: float, updates: int) -> float:
    """Returns the initial learning rate of a cosine whose rates add up to `travel`.

    Adam moves a number by at most its learning rate, so the sum bounds how far alpha can go. The
    noise of a draw has the scale 1: a few units settle a choice, in a short run as in a long one.
    Over 10,920 updates of alpha (CIFAR-10), a fixed rate of 3e-4 is a travel of 1.7.

    Args:
      travel: sum of the learning rates of all updates.
      lr_end: learning rate at the end of the cosine.
      updates: number of updates.

    Returns:
      The learning rate of the first update; not below `lr_end`.
    """
    return max(lr_end, 2 * travel / max(1, updates) - lr_end)


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: Schedule
) -> optax.GradientTransformationExtraArgs:
    """Builds one `optax.multi_transform` over `{'params', 'arch'}` (docs/algorithm.md, "Turns").

    Outside its turn, the update of a group is zero, and its moments and schedule count stay the
    same to the bit. Each learning rate follows one cosine over the updates that the whole schedule
    gives its group; with `optimize.lr`, that of the weights ends where optimize begins, and another
    one follows, as in SGDR (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5). They count the
    updates that were made, so steps that are skipped delay them. Where `arch.lr` is `None`, it
    follows from `arch.travel`, see `lr_for_total_displacement`.

    Example:
      updates, opt_state = tx.update(grads, opt_state, trainable, step=step)

    `step` is the step of the run.

    Args:
      config: of the run; its groups `weights` and `arch`, and `optimize.lr`.
      schedule: decides whose turn a step is, and how many updates each group gets.

    Returns:
      The transformation.
    """
    w, a, rise = config.weights, config.arch, config.weights.lr_warmup_steps

    def cosine(first: float, last: float, updates: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(first, max(1, updates), alpha=last / first)

    def with_warmup(peak: float, updates: int) -> optax.Schedule:
        if not rise:
            return cosine(peak, w.lr_end, updates)
        # No update has a rate of 0: the first of N has 1 / (N + 1) of the peak.
        return optax.warmup_cosine_decay_schedule(
            init_value=peak / (rise + 1),
            peak_value=peak,
            warmup_steps=rise,
            decay_steps=max(rise + 1, updates),
            end_value=w.lr_end,
        )

    updates = schedule.weight_updates(schedule.steps)
    if config.optimize.lr is None:
        weight_rates = with_warmup(w.lr, updates)
    else:
        before = schedule.weight_updates(schedule.steps_before_optimize)
        peaks = ((w.lr, before), (config.optimize.lr, updates - before))
        weight_rates = optax.join_schedules([with_warmup(*peak) for peak in peaks], [before])
    weights = optax.chain(
        optax.clip_by_global_norm(w.clip) if w.clip else optax.identity(),
        optax.add_decayed_weights(w.weight_decay),
        optax.sgd(weight_rates, w.momentum, w.nesterov),
    )
    updates = schedule.alpha_updates(schedule.steps)
    arch_lr = a.lr
    if arch_lr is None:
        arch_lr = lr_for_total_displacement(a.travel, a.lr_end, updates)
    # Decoupled (AdamW): alpha's gradients are so small that L2 inside Adam, scaled up with them,
    # pulls every row back to uniform faster than the loss can move it.
    arch = optax.adamw(
        cosine(arch_lr, a.lr_end, updates), b1=a.b1, b2=a.b2, weight_decay=a.weight_decay
    )
    return optax.multi_transform(
        {
            'weights': turn_mask.in_turn(weights, schedule.is_weight_turn),
            'arch': turn_mask.in_turn(arch, schedule.is_alpha_turn),
        },
        {'params': 'weights', 'arch': 'arch'},
    )
