"""Computes the gradient of alpha one weight step ahead: second-order DARTS, exactly.

The weights are trained for alpha, so they move with it. Liu et al. 2019 (arXiv:1806.09055, eq. 6)
let the weights after one more step, w'(alpha), stand for trained ones, and take the gradient of
L_valid(w'(alpha), alpha). Their program approximates it by finite differences; this one does not.
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
    """Computes d/dalpha of L_valid(w', alpha), where w' = stepped(dL_train/dw (w, alpha)).

    With v = dL_valid/dw' and plain descent, w' = w - xi dL_train/dw, it has two parts (eq. 7):

        dL_valid/dalpha (w', alpha)  -  xi d/dalpha <dL_train/dw (w, alpha), v>

    The second part is the derivative of dL_train/dalpha along v, a direction of the weights.
    Forward over reverse differentiation takes little more memory for it than one gradient. The
    authors' program takes the difference of two gradients instead (eq. 8).

    Args:
      loss: maps `(weights, alpha, *batch)` to the scalar loss and auxiliary outputs.
      stepped: maps a gradient of the weights to the weights after the optimizer's step. It is
        differentiated, so momentum, decay and clipping count.
      weights: w.
      alpha: logits of the architecture.
      valid: a batch of held-out images, the last arguments of `loss`.
      train: a batch of training images, likewise.
      mean: averages a tree over the devices, each of which has its own images.

    Returns:
      L_valid(w', alpha), the auxiliary outputs of `loss` there, and the gradient, like `alpha`.
    """
    train_grads, _ = jax.grad(loss, has_aux=True)(weights, alpha, *train)
    ahead, pull_back = jax.vjp(stepped, mean(train_grads))
    (value, outputs), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(ahead, alpha, *valid)
    value, (v, direct) = mean((value, grads))
    (direction,) = pull_back(v)  # of plain descent: -xi v

    def alpha_gradient(weights: Tree) -> Tree:
        # Differentiates by the weights as well, though only alpha's gradient is used: `jax.jvp`
        # cannot pass a function with a custom gradient rule unless a gradient is taken there, and
        # what comes before the first use of alpha has none by alpha alone.
        return jax.grad(loss, (0, 1), has_aux=True)(weights, alpha, *train)[0][1]

    _, through_weights = jax.jvp(alpha_gradient, (weights,), (direction,))
    return value, outputs, jax.tree.map(jnp.add, direct, mean(through_weights))
