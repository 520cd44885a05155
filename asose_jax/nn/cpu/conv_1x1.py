"""1x1 convolution as a matrix product over channels, with a fast weight gradient on the CPU."""

import functools
from typing import Any

import jax
from jax import lax

from asose_jax.nn.cpu.conv import outlined_jit


def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Multiplies images by a matrix over their channels; has the signature `nn.Dense` calls.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[C, F]`, in the dtype of `x`.
      *_: dimension numbers, always those of `x @ kernel`.
      **__: further options of `lax.dot_general`, unused.

    Returns:
      `[B, H, W, F]`, in the dtype of `x`.
    """
    return _product(x, kernel)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _product_backward(
    residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    by_platform = functools.partial(lax.platform_dependent, default=_product_gradient)
    return g @ kernel.T, by_platform(x, g, cpu=_matrix_gradient)


def _product_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])


# A computation of its own, because XLA would otherwise write the result of the operation before it
# a second time, transposed.
_matrix_gradient = outlined_jit(_product_gradient)
_product.defvjp(_product_forward, _product_backward)
