"""Convolution and pooling in the fast form for the platform they are compiled for.

GPU and TPU have native kernels, and get them. XLA's CPU backend does not, or not everywhere:

* grouped convolution is 20-100 times slower than a sum of shifted slices, fused into one loop;
* max pooling's gradient is 20 times slower than a comparison of remembered indices;
* the weight gradient of a convolution is 30-100 times slower *inside a loop or a conditional* than
  outside, because only the entry computation's convolutions are brought into the layout that the
  fast kernel takes. Written in that layout to begin with, it is fast everywhere, and bit-identical.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

# Elements in one window of the CPU weight gradient: k*k accumulators of this size stay in cache.
_WINDOW = 8192

_FEW_INPUTS = 32  # of a convolution's output pixel: the stem's

_NHWC = ('NHWC', 'HWIO', 'NHWC')


def outlined(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit(function, **options)`, and on the CPU a computation of its own.

    Calls with equal shapes share one trace. XLA's CPU backend otherwise merges a chain of shifted
    sums into one loop that computes the first sum again for every tap of the second: 25 times the
    work for two 5x5 convolutions, and a compiler that unrolls it all.
    """

    @functools.wraps(function)
    def body(*args, **kwargs):
        with set_xla_metadata(inlineable='true'):
            return function(*args, **kwargs)

    call = jax.jit(body, **options)

    @functools.wraps(function)
    def outside(*args, **kwargs):
        if jax.default_backend() != 'cpu':
            return call(*args, **kwargs)
        with set_xla_metadata(inlineable='false'):
            return call(*args, **kwargs)

    return outside


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: jax.Array, kernel: jax.Array, dilation: int = 1) -> jax.Array:
    """Convolves each channel with its own kernel; stride 1, zero padding, size kept.

    Args:
      x: images `[B, H, W, C]`.
      kernel: taps `[k, k, 1, C]` with odd k, in the dtype of `x`.
      dilation: distance between taps, in pixels.

    Returns:
      `[B, H, W, C]` in the dtype of `x`; sums are taken in float32.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_sum, dilation=dilation),
        default=functools.partial(_native, dilation=dilation),
    )


def _forward(x, kernel, dilation):
    return depthwise_conv(x, kernel, dilation), (x, kernel)


def _backward(dilation, residuals, g):
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=functools.partial(_shifted_vjp, dilation=dilation),
        default=functools.partial(_native_vjp, dilation=dilation),
    )


depthwise_conv.defvjp(_forward, _backward)


def _native(x, kernel, dilation):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding='SAME',
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_NHWC,
        feature_group_count=x.shape[-1],
    )


def _native_vjp(x, kernel, g, dilation):
    return jax.vjp(functools.partial(_native, dilation=dilation), x, kernel)[1](g)


@jax.custom_vjp
def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Ordinary convolution; stride 1, zero padding, size kept.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[kh, kw, C, F]` with odd kh and kw, in the dtype of `x`.

    Returns:
      `[B, H, W, F]` in the dtype of `x`.
    """
    return lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=_NHWC)


def _conv_forward(x, kernel):
    return conv(x, kernel), (x, kernel)


def _conv_backward(residuals, g):
    x, kernel = residuals
    dx = conv(g, kernel[::-1, ::-1].swapaxes(2, 3))
    if kernel.size // kernel.shape[-1] <= _FEW_INPUTS:
        return dx, lax.platform_dependent(x, g, kernel, cpu=_thin_gradient, default=_wide_gradient)
    return dx, _wide_gradient(x, g, kernel)


def _thin_gradient(x, g, kernel):
    """Of few inputs: one matrix product over all pixels' neighbourhoods, written out."""
    b, h, w, c = x.shape
    rows, columns = _reach(kernel, 1)
    padded = _padded(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    places = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    shifts = [lax.slice(padded, (0, i, j, 0), (b, i + h, j + w, c)) for i, j in places]
    return _matrix_gradient(jnp.concatenate(shifts, -1), g).reshape(kernel.shape)


def _wide_gradient(x, g, kernel):
    rows, columns = _reach(kernel, 1)
    # Channels take the place of the batch, the batch that of the channels, g that of the kernel.
    dkernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=((rows, rows), (columns, columns)),
        dimension_numbers=_NHWC,
    )
    return dkernel.transpose(1, 2, 0, 3)


conv.defvjp(_conv_forward, _conv_backward)


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


def dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`x @ kernel`, `[B, H, W, C]` times `[C, F]`, in the form that `nn.Dense` calls."""
    return _product(x, kernel)


def max_pool(x: jax.Array) -> jax.Array:
    """Largest of the valid 3x3 neighbours, `[B, H, W, C]` to the same shape, stride 1."""
    return lax.platform_dependent(
        x, cpu=_max_of_shifts, default=lambda x: nn.max_pool(x, (3, 3), (1, 1), 'SAME')
    )


@jax.custom_vjp
def _max_of_shifts(x):
    return functools.reduce(jnp.maximum, neighbours(x, -jnp.inf))


@outlined
def _max_forward(x):
    first, *rest = neighbours(x, -jnp.inf)
    largest, winner = first, jnp.zeros(x.shape, jnp.int8)
    for i, shifted in enumerate(rest, start=1):
        winner = jnp.where(shifted > largest, jnp.int8(i), winner)
        largest = jnp.maximum(largest, shifted)
    return largest, winner


@outlined
def _max_backward(winner, g):
    # Shift i of x reaches a pixel's neighbour; the opposite shift, 8 - i, brings its gradient home.
    gs, winners = neighbours(g, 0), neighbours(winner, -1)
    shares = [jnp.where(winners[8 - i] == i, gs[8 - i], 0) for i in range(9)]
    return (functools.reduce(jnp.add, shares),)


_max_of_shifts.defvjp(_max_forward, _max_backward)


def neighbours(x: jax.Array, fill: float) -> list[jax.Array]:
    """The nine shifts of `x` `[B, H, W, C]` by at most one pixel, with `fill` beyond the border."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    return [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]


def _reach(kernel, dilation):
    """Pixels the kernel reaches beyond its centre: (rows, columns)."""
    return (kernel.shape[0] - 1) * dilation // 2, (kernel.shape[1] - 1) * dilation // 2


@functools.partial(outlined, static_argnames='dilation')
def _shifted_sum(x, kernel, dilation):
    b, h, w, c = x.shape
    rows, columns = _reach(kernel, dilation)
    padded = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    total = jnp.zeros(x.shape, jnp.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * dilation, j * dilation
            window = lax.slice(padded, (0, top, left, 0), (b, top + h, left + w, c))
            tap = kernel[i, j, 0].astype(jnp.float32).reshape(1, 1, 1, c)
            total += window.astype(jnp.float32) * tap
    return total.astype(x.dtype)


def _shifted_vjp(x, kernel, g, dilation):
    # The transpose of a correlation is the correlation with the kernel turned by 180 degrees.
    dx = _shifted_sum(g, kernel[::-1, ::-1], dilation)
    return dx, _kernel_gradient(x, g, kernel, dilation)


@functools.partial(outlined, static_argnums=1)
def _padded(x, widths):
    """By itself: merged with what flattens it, each number's place would be worked out anew."""
    return jnp.pad(x, widths)


@functools.partial(outlined, static_argnames='dilation')
def _kernel_gradient(x, g, kernel, dilation):
    """dL/dkernel[i, j, c] = sum of x shifted by (i, j) times g, over batch and space.

    Batch, rows and columns are laid out as one line of pixels. A border of zeros after each row
    and each image is shared with the next one, so that a shift in space is a shift along the line,
    and the products that cross a border vanish. Windows of the line are added up element by
    element, and space is reduced once at the end: XLA's CPU reductions are what makes the plain
    form slow.
    """
    kh, kw, _, c = kernel.shape
    b, h, w, _ = x.shape
    rows, columns = _reach(kernel, dilation)
    image = (h + rows) * (w + columns) * c
    window = max(1, _WINDOW // c) * c
    count = -(-b * image // window)
    halo = (rows * (w + columns) + columns) * c
    # Whole images of zeros in front and behind: one copy each, and the rest is a matter of indices.
    tail = -(-(count * window + halo) // image) - b
    x_line, g_line = (
        _padded(y, ((front, tail), (0, rows), (0, columns), (0, 0))).reshape(-1)
        for y, front in ((x, 1), (g, 0))
    )
    shifts = [(i * (w + columns) + j) * dilation * c for i in range(kh) for j in range(kw)]

    def add_window(totals, index):
        start = index * window
        xs = lax.dynamic_slice_in_dim(x_line, image - halo + start, window + 2 * halo)
        gs = lax.dynamic_slice_in_dim(g_line, start, window).astype(jnp.float32)
        return [
            total + lax.slice_in_dim(xs, shift, shift + window).astype(jnp.float32) * gs
            for total, shift in zip(totals, shifts, strict=True)
        ], None

    zeros = [jnp.zeros(window, jnp.float32) for _ in shifts]
    totals, _ = lax.scan(add_window, zeros, jnp.arange(count))
    per_tap = jnp.stack(totals).reshape(kh * kw, -1, c).sum(1)
    return per_tap.reshape(kernel.shape).astype(kernel.dtype)
