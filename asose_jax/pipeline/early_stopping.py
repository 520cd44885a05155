"""When a search ends early: the curvature of the validation loss in alpha grows (DARTS-ES).

A search that collapses moves into sharp minima: the largest eigenvalue of the Hessian of the
validation loss with respect to alpha rises before accuracy falls (Zela et al. 2020,
arXiv:1909.09656, section 4). After each evaluation of search it is estimated; when it has risen too
fast, the search phase ends there, with alpha as it was before. This depends on steps and alpha
only, so that a run that was stopped decides as one that was not.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asose_jax.data import batches
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import evaluation, run_context
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces.supernet import SuperNet, mixture_of
from asose_jax.train import pmap
from asose_jax.train.phases import Phase, Span

Array = jax.Array

logger = logging.getLogger('asose_jax')

_STREAM = 3  # of validation batches; `loop` and `controller` have the streams before
_IMAGES = 128  # validation images, at most: the Hessian is computed on one device
_ITERATIONS = 20  # products with the Hessian


def largest_eigenvalue(
    product: Callable[[Array], Array], start: Array, iterations: int = _ITERATIONS
) -> Array:
    """The largest eigenvalue of a symmetric matrix, or 0 if all are negative (Lanczos).

    It is that of the matrix restricted to `start` and its first images, for which an orthonormal
    basis is built. The Hessian of a function of softmax has an eigenvalue 0 for every row anyway.

    Args:
      product: the matrix times a vector `[n]`.
      start: a vector `[n]` with a part in the direction that is looked for, such as noise.
      iterations: products; n of them, if n is less.

    Returns:
      The eigenvalue, a scalar.
    """
    count = min(iterations, len(start))

    def unit(vector, scale):
        norm = jnp.linalg.norm(vector)  # of rounding alone, where there is no further direction
        return jnp.where(norm > 1e-5 * scale, vector / jnp.maximum(norm, 1e-30), 0.0)

    def body(i, carry):
        basis, images, vector = carry
        image = product(vector)
        basis, images = basis.at[i].set(vector), images.at[i].set(image)
        rest = image
        for _ in range(2):  # the second time for what rounding left over
            rest -= basis.T @ (basis @ rest)
        return basis, images, unit(rest, jnp.linalg.norm(image))

    zeros = jnp.zeros((count, len(start)), start.dtype)
    basis, images, _ = lax.fori_loop(0, count, body, (zeros, zeros, unit(start, 0.0)))
    restricted = basis @ images.T
    return jnp.linalg.eigvalsh((restricted + restricted.T) / 2)[-1]


@functools.partial(jax.jit, static_argnums=0)
def eigenvalue(
    net: SuperNet, variables: Any, beta: Array | float, images: Array, labels: Array, key: Array
) -> Array:
    """The largest eigenvalue of the Hessian of the loss with respect to all rows of alpha.

    The loss is that of the mixture of all candidates by softmax(alpha), with the statistics of the
    batch, whatever the estimator: the Hessian of a one-hot draw is not defined. A Hessian-vector
    product is the derivative of the gradient along the vector.

    Args:
      net: the supernet; static.
      variables: `params`, `arch` and `batch_stats`.
      beta: weight of the auxiliary skips, if it has any.
      images: normalised, `[B, H, W, C]`.
      labels: `[B]` int32.
      key: of the vector that the iteration starts from.

    Returns:
      Largest as a number, as in the authors' program, not in magnitude: a scalar.
    """
    mixture = mixture_of(net)
    alpha, unravel = jax.flatten_util.ravel_pytree(variables['arch'])

    def loss(alpha):
        logits, _ = mixture.apply(
            {**variables, 'arch': unravel(alpha)},
            images,
            beta=beta,
            mode=Mode.DENSE,
            train=True,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': key},  # nothing is drawn
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def product(vector):
        return jax.jvp(jax.grad(loss), (alpha,), (vector,))[1]

    return largest_eigenvalue(product, jax.random.normal(key, alpha.shape))


def has_risen(eigenvalues: Sequence[float], window: int, ratio: float) -> bool:
    """The rule of Zela et al. 2020, section 4.3: stop if mean(i - k) / mean(i) < 0.75, k = 5.

    mean(i) is that of the k eigenvalues around evaluation i. The newest i for which it is known has
    k // 2 evaluations after it: what is compared are the last k values and the k before them.

    Args:
      eigenvalues: one for each evaluation.
      window: k.
      ratio: the limit.
    """
    if len(eigenvalues) < 2 * window:
        return False
    before, now = np.split(np.array(eigenvalues[-2 * window :]), 2)
    return bool(before.mean() < ratio * now.mean())


def decides(context: RunContext, span: Span) -> bool:
    """Whether evaluations of this phase may end it, so that the next step must wait."""
    return span.phase is Phase.SEARCH and context.config.search.early_stop


def consider(context: RunContext, current: RunState, span: Span, record: dict[str, Any]) -> bool:
    """Ends the search, if it is time; to be called after every evaluation.

    Alpha becomes that of evaluation i - k, see `has_risen`. The weights stay: what comes next is
    trained from where they are. Evaluations before alpha's first step do not count.

    Args:
      context: of the run.
      current: where it is.
      span: the phase.
      record: of the evaluation; gets `arch/eigenvalue`.

    Returns:
      Whether the search is over.
    """
    step, c = record['step'], context.config.search
    if not decides(context, span) or not context.schedule.alpha_updates(step):
        return False
    alpha, unravel = jax.flatten_util.ravel_pytree(current.state.arch)
    record['arch/eigenvalue'] = _measure(context, current)
    seen = current.history.curvature
    seen.append(
        {
            'epoch': span.epoch_at(step),
            'eigenvalue': record['arch/eigenvalue'],
            'alpha': np.asarray(alpha).tolist(),
        }
    )
    del seen[: -2 * c.stop_window]
    eigenvalues = [each['eigenvalue'] for each in seen]
    if not has_risen(eigenvalues, c.stop_window, c.stop_ratio):
        return False
    back = seen[c.stop_window // 2]
    restored = unravel(jnp.array(back['alpha'], jnp.float32))
    current.packed = pmap.replicated(current.packed.put(arch=restored))
    current.history.halted = {
        'step': step,
        'epoch': span.epoch_at(step),
        'alpha_of_epoch': back['epoch'],
        'eigenvalues': eigenvalues,
    }
    current.history.curvature = []
    current.row.update(epochs=span.epoch_at(step), steps=step - span.start)
    logger.info(
        "search ends after epoch %d of %d: the largest eigenvalue of alpha's Hessian has risen "
        '(%s); alpha is that of epoch %d again',
        span.epoch_at(step),
        span.epochs,
        ', '.join(f'{number:.3g}' for number in eigenvalues),
        back['epoch'],
    )
    return True


def _measure(context, current):
    """On one device, in float32, on images that are the same in the whole run."""
    size = min(context.config.batch_size, _IMAGES)
    chosen = batches.batch_indices(context.data.valid, context.config.seed, _STREAM, 0, size)
    held = current.state
    return float(
        eigenvalue(
            context.model(current.spec).clone(dtype='float32', synced_over=None),
            {**held.trainable, 'batch_stats': held.batch_stats},
            context.schedule.beta(current.step),
            *evaluation.normalized_images(context, chosen),
            context.key(run_context.CURVATURE),
        )
    )
