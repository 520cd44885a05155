"""Ends the search early when the validation loss gets sharply curved in alpha (DARTS-ES).

A search that collapses moves into sharp minima: the largest eigenvalue of the Hessian of the
validation loss with respect to alpha rises before accuracy falls (Zela et al. 2020,
arXiv:1909.09656, section 4). It is estimated after each evaluation of the search phase. When it has
risen too fast, the phase ends there, with the alpha of an earlier epoch. The decision depends on
steps and alpha only, so that a run that was stopped and resumed decides as one that was not.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jax import lax

from asose_jax.data import batches
from asose_jax.pipeline import evaluation, run_context
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces.supernet import SuperNet, mixture_logits, with_softmax_mixture
from asose_jax.train import pmap
from asose_jax.train.gradients import mean_cross_entropy
from asose_jax.train.phases import Phase, Span

Array = jax.Array

logger = logging.getLogger('asose_jax')

# Tag of a stream of validation batches; `training_loop` and `growth.controller` have others.
_CURVATURE_STREAM = 3
# Validation images at most: the Hessian is computed on one device.
_IMAGES = 128
# Products with the Hessian in one estimate, at most as many as alpha has numbers.
_ITERATIONS = 20


def largest_eigenvalue(product: Callable[[Array], Array], start: Array) -> Array:
    """Estimates the largest eigenvalue of a symmetric matrix, or 0 if all are negative (Lanczos).

    The estimate is the largest eigenvalue of the matrix restricted to the Krylov space of `start`,
    for which an orthonormal basis is built. The 0 is no loss for alpha: the Hessian of a function
    of softmax has an eigenvalue 0 for every row.

    Args:
      product: multiplies a vector `[n]` by the matrix.
      start: a vector `[n]`, such as noise, that is not orthogonal to the eigenvector.

    Returns:
      The eigenvalue, a scalar.
    """
    count = min(_ITERATIONS, len(start))

    def unit(vector: Array, scale: Array | float) -> Array:
        # Once the basis spans the Krylov space, only rounding is left, and the vector becomes 0.
        norm = jnp.linalg.norm(vector)
        return jnp.where(norm > 1e-5 * scale, vector / jnp.maximum(norm, 1e-30), 0.0)

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, images, vector = carry
        image = product(vector)
        basis, images = basis.at[i].set(vector), images.at[i].set(image)
        rest = image
        for _ in range(2):  # twice, since rounding leaves a part in the basis the first time
            rest -= basis.T @ (basis @ rest)
        return basis, images, unit(rest, jnp.linalg.norm(image))

    zeros = jnp.zeros((count, len(start)), start.dtype)
    basis, images, _ = lax.fori_loop(0, count, body, (zeros, zeros, unit(start, 0.0)))
    restricted = basis @ images.T
    return jnp.linalg.eigvalsh((restricted + restricted.T) / 2)[-1]


@functools.partial(jax.jit, static_argnums=0)
def eigenvalue(
    net: SuperNet,
    variables: Any,
    beta: Array | float,
    images: Array,
    labels: Array,
    key: Array,
    class_weights: Array | None,
) -> Array:
    """Estimates the largest eigenvalue of the Hessian of the loss with respect to alpha.

    The loss is that of the mixture of all candidates by softmax(alpha), with the statistics of the
    batch, whatever the estimator: the Hessian of a one-hot draw is not defined. A product of the
    Hessian and a vector is the derivative of the gradient along the vector.

    Args:
      net: the supernet; static.
      variables: `params`, `arch` and `batch_stats`.
      beta: weight of the auxiliary skips, if the supernet has any.
      images: normalized, float32 `[B, H, W, C]`.
      labels: `[B]` int32.
      key: random key of the vector that the iteration starts from.
      class_weights: of the loss, `[num_classes]`, see `gradients.mean_cross_entropy`.

    Returns:
      The eigenvalue that is largest as a number, not in magnitude, as in the authors' program; a
      scalar.
    """
    mixture = with_softmax_mixture(net)
    alpha, unravel = jax.flatten_util.ravel_pytree(variables['arch'])

    def loss(alpha: Array) -> Array:
        moved = {**variables, 'arch': unravel(alpha)}
        logits = mixture_logits(mixture, moved, beta, key, images)
        return mean_cross_entropy(logits, labels, class_weights)

    def product(vector: Array) -> Array:
        return jax.jvp(jax.grad(loss), (alpha,), (vector,))[1]

    return largest_eigenvalue(product, jax.random.normal(key, alpha.shape))


def has_risen(eigenvalues: Sequence[float], window: int, ratio: float) -> bool:
    """Decides whether the eigenvalue has risen so much that the search should stop.

    The rule is mean(i - k) / mean(i) < ratio, with k = 5 and a ratio of 0.75 in the paper (Zela et
    al. 2020, arXiv:1909.09656, section 4.3). mean(i) is the mean of the k eigenvalues around
    evaluation i. The newest i for which all of them are known has k // 2 evaluations after it, so
    the last k eigenvalues are compared with the k before them.

    Args:
      eigenvalues: one for each evaluation, in order.
      window: k.
      ratio: the limit.

    Returns:
      Whether the search should stop; never before there are 2 k eigenvalues.
    """
    if len(eigenvalues) < 2 * window:
        return False
    before, now = np.split(np.array(eigenvalues[-2 * window :]), 2)
    return bool(before.mean() < ratio * now.mean())


def may_stop(context: RunContext, span: Span) -> bool:
    """Returns whether evaluations of this phase may end it.

    If so, the next step must wait for each evaluation.
    """
    return span.phase is Phase.SEARCH and context.config.search.early_stop


def update(context: RunContext, current: RunState, span: Span, record: dict[str, Any]) -> bool:
    """Ends the search if the curvature has risen too fast; called after every evaluation.

    Alpha becomes that of evaluation i - k, see `has_risen`. The weights stay, and the next phase
    trains them further. Evaluations before alpha's first step do not count.

    Args:
      context: of the run.
      current: its state; alpha and the history change when the search ends.
      span: the phase.
      record: metrics of the evaluation; `arch/eigenvalue` is added.

    Returns:
      Whether the search has ended.
    """
    step, c = record['step'], context.config.search
    if not may_stop(context, span) or not context.schedule.alpha_updates(step):
        return False
    alpha, unravel = jax.flatten_util.ravel_pytree(current.state.arch)
    record['arch/eigenvalue'] = _measure_eigenvalue(context, current)
    evaluations = current.history.curvature
    evaluations.append(
        {
            'epoch': span.epoch_at(step),
            'eigenvalue': record['arch/eigenvalue'],
            'alpha': np.asarray(alpha).tolist(),
        }
    )
    del evaluations[: -2 * c.stop_window]
    eigenvalues = [entry['eigenvalue'] for entry in evaluations]
    if not has_risen(eigenvalues, c.stop_window, c.stop_ratio):
        return False
    earlier = evaluations[c.stop_window // 2]
    restored = unravel(jnp.array(earlier['alpha'], jnp.float32))
    current.packed = pmap.replicated(current.packed.put(arch=restored))
    _record_end(current, span, step, earlier['epoch'], eigenvalues)
    return True


def _record_end(
    current: RunState, span: Span, step: int, alpha_epoch: int, eigenvalues: list[float]
) -> None:
    """Records in the history, and logs, that the search has ended at `step`."""
    current.history.halt(span, step, alpha_of_epoch=alpha_epoch, eigenvalues=eigenvalues)
    current.history.curvature = []
    logger.info(
        "search ends after epoch %d of %d: the largest eigenvalue of alpha's Hessian has risen "
        '(%s); alpha is set back to that of epoch %d',
        span.epoch_at(step),
        span.epochs,
        ', '.join(f'{number:.3g}' for number in eigenvalues),
        alpha_epoch,
    )


def _measure_eigenvalue(context: RunContext, current: RunState) -> float:
    """Estimates the eigenvalue on one device, in float32, on the same images in the whole run."""
    size = min(context.config.batch_size, _IMAGES)
    indices = batches.batch_indices(
        context.data.valid, context.config.seed, _CURVATURE_STREAM, 0, size
    )
    state = current.state
    return float(
        eigenvalue(
            context.model(current.spec).clone(dtype='float32', synced_over=None),
            {**state.trainable, 'batch_stats': state.batch_stats},
            context.schedule.beta(current.step),
            *evaluation.normalized_images(context, indices),
            context.key(run_context.CURVATURE),
            context.class_weights,
        )
    )
