"""Alpha's gradient, one step of the weights ahead: second-order DARTS, without finite differences.

The weights are trained for alpha, so they move with it. Liu et al. 2019 (arXiv:1806.09055, eq. 6)
let the weights after one more step, w'(alpha), stand for trained ones, and ask for the gradient of
L_valid(w'(alpha), alpha). This is that gradient, exactly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def gradient(
    loss: Callable[..., tuple[jax.Array, Any]],
    stepped: Callable[[Tree], Tree],
    weights: Tree,
    alpha: Tree,
    valid: tuple[Any, ...],
    train: tuple[Any, ...],
    mean: Callable[[Tree], Tree],
) -> tuple[jax.Array, Any, Tree]:
    """d/dalpha of L_valid(w', alpha), where w' = stepped(dL_train/dw (w, alpha)).

    With v = dL_valid/dw' and plain descent, w' = w - xi dL_train/dw, it has two parts (eq. 7):

        dL_valid/dalpha (w', alpha)  -  xi d/dalpha <dL_train/dw (w, alpha), v>

    The second is the derivative of dL_train/dalpha along v, a direction of the weights. Forward
    over reverse, it takes little more memory than one gradient. The authors' program has the
    difference of two gradients in its place (eq. 8).

    Args:
      loss: `(weights, alpha, *batch) -> (loss, anything else)`.
      stepped: the weights that the optimizer makes of a gradient; whatever it does counts.
      weights: w.
      alpha: the architecture's logits.
      valid: a batch of held-out images, as `loss` takes it.
      train: a batch of images to train on.
      mean: of a tree over the devices, each of which has its own images.

    Returns:
      L_valid(w', alpha), what else `loss` gave there, and the gradient, like `alpha`.
    """
    ahead, pull = jax.vjp(stepped, mean(jax.grad(loss, has_aux=True)(weights, alpha, *train)[0]))
    (value, rest), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(ahead, alpha, *valid)
    value, (v, direct) = mean((value, grads))
    (direction,) = pull(v)  # of plain descent: -xi v

    def slope(weights):
        # Of both, though alpha's is all that is wanted: `jax.jvp` passes a function with rules of
        # its own only where a gradient is taken, and what comes before alpha has none by alpha.
        return jax.grad(loss, (0, 1), has_aux=True)(weights, alpha, *train)[0][1]

    _, through_weights = jax.jvp(slope, (weights,), (direction,))
    return value, rest, jax.tree.map(jnp.add, direct, mean(through_weights))
