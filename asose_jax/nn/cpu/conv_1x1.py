"""A 1x1 convolution: on channels-last images, a matrix product."""

import functools
from typing import Any

import jax
from jax import lax

from asose_jax.nn.cpu.conv import outlined


def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`x @ kernel`, `[B, H, W, C]` times `[C, F]`, in the form that `nn.Dense` calls."""
    return _product(x, kernel)


@jax.custom_vjp
def _product(x, kernel):
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(residuals, g):
    x, kernel = residuals
    own = functools.partial(lax.platform_dependent, default=_product_gradient)
    return g @ kernel.T, own(x, g, cpu=_matrix_gradient)


def _product_gradient(x, g):
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])


# By itself: else what came before is written a second time, transposed.
_matrix_gradient = outlined(_product_gradient)
_product.defvjp(_product_forward, _product_backward)
