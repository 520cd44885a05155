"""Convolution in the fast form for the platform it is compiled for.

GPU and TPU have native kernels, and get them. XLA's CPU backend does not, or not everywhere:

* grouped convolution is 20-100 times slower than a sum of shifted slices, fused into one loop;
* the weight gradient of a convolution is slow, and 30-100 times slower *inside a loop or a
  conditional* than outside. Sums over blocks of images that stay in the cache are fast everywhere.

A gradient of its own is differentiated once more where alpha looks a step ahead, by `jax.jvp`: its
rules call no function that has such a gradient, which would know no derivative forwards.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from asose_jax.nn.cpu import reductions

# Numbers in a block of images that a loop on the CPU reads many times: they must fit its cache.
_BLOCK = 2**17

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def relu_depthwise_conv(
    x: jax.Array, kernel: jax.Array, dilation: int = 1, stride: int = 1
) -> jax.Array:
    """ReLU, then a convolution of each channel with its own kernel.

    One operation, because the ReLU then costs no pass over memory of its own.

    Args:
      x: images `[B, H, W, C]`.
      kernel: taps `[k, k, 1, C]` with odd k, in the dtype of `x`.
      dilation: distance between taps, in pixels.
      stride: distance between the pixels that are kept, of the size-keeping convolution.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]` in the dtype of `x`; borders are filled with
      zeros, the same on both sides, and sums taken in float32.
    """
    return _depthwise(x, kernel, dilation, stride)


# Rules call what has no rules of its own: the gradient is differentiated forward (`curvature`).
def _depthwise(x, kernel, dilation, stride):
    how = {'dilation': dilation, 'stride': stride}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_sum, **how),
        default=functools.partial(_native, **how),
    )


def _forward(x, kernel, dilation, stride):
    return _depthwise(x, kernel, dilation, stride), (x, kernel)


def _backward(dilation, stride, residuals, g):
    how = {'dilation': dilation, 'stride': stride}
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=functools.partial(_shifted_vjp, **how),
        default=functools.partial(_native_vjp, **how),
    )


relu_depthwise_conv.defvjp(_forward, _backward)


def _native(x, kernel, dilation, stride):
    return lax.conv_general_dilated(
        nn.relu(x),
        kernel,
        window_strides=(stride, stride),
        padding=_border(kernel, dilation)[1:3],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_NHWC,
        feature_group_count=x.shape[-1],
    )


def _native_vjp(x, kernel, g, dilation, stride):
    return jax.vjp(functools.partial(_native, dilation=dilation, stride=stride), x, kernel)[1](g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Ordinary convolution; zero padding, the same on both sides.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[kh, kw, C, F]` with odd kh and kw, in the dtype of `x`.
      stride: distance between the pixels that are kept, of the size-keeping convolution.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), F]` in the dtype of `x`.
    """
    return _conv(x, kernel, stride)


def _conv(x, kernel, stride):
    plain = functools.partial(_plain_conv, stride=stride)
    if kernel.size // kernel.shape[-1] <= _FEW_INPUTS:
        thin = functools.partial(_thin_conv, stride=stride)
        return lax.platform_dependent(x, kernel, cpu=thin, default=plain)
    return plain(x, kernel)


def _plain_conv(x, kernel, stride):
    border = _border(kernel)[1:3]
    return lax.conv_general_dilated(x, kernel, (stride, stride), border, dimension_numbers=_NHWC)


@functools.partial(outlined, static_argnames='stride')
def _thin_conv(x, kernel, stride):
    """Of few inputs: each of them, shifted, times its row of the kernel."""
    total = jnp.zeros((), jnp.float32)
    padded = jnp.pad(x, _border(kernel))
    for (i, j), window in _windows(padded, kernel.shape[:2], stride=stride):
        for c in range(x.shape[-1]):
            row = kernel[i, j, c].astype(jnp.float32).reshape(1, 1, 1, -1)
            total += window[..., c : c + 1].astype(jnp.float32) * row
    return total.astype(x.dtype)


def _conv_forward(x, kernel, stride):
    return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride, residuals, g):
    x, kernel = residuals
    dx = lax.platform_dependent(
        g,
        kernel,
        cpu=lambda g, k: _conv(spread(g, x.shape, stride), k[::-1, ::-1].swapaxes(2, 3), 1),
        default=lambda g, k: jax.vjp(lambda x: _plain_conv(x, k, stride), x)[1](g)[0],
    )
    blocked = functools.partial(_blocked_gradient, stride=stride)
    plain = functools.partial(_plain_gradient, stride=stride)
    return dx, lax.platform_dependent(x, g, kernel, cpu=blocked, default=plain)


def _plain_gradient(x, g, kernel, stride):
    return jax.vjp(lambda kernel: _plain_conv(x, kernel, stride), kernel)[1](g)[0]


def _blocked_gradient(x, g, kernel, stride):
    """Block by block, the product of g with all pixels' neighbourhoods, written out."""
    inputs, features = kernel.size // kernel.shape[-1], kernel.shape[-1]
    images = _images_in_block(x, 4 * _BLOCK // inputs)

    def add_block(total, first):
        block = _block(x, first, images, _border(kernel))
        written = _neighbourhoods(block, kernel.shape[:2], stride)
        gs = _block(g, first, images)
        product = gs.reshape(-1, features).T @ written.reshape(-1, inputs)
        return total + product.astype(jnp.float32)

    zeros = jnp.zeros((features, inputs), jnp.float32)
    total = _over_blocks(add_block, zeros, len(x), images)
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(outlined, static_argnums=(1, 2))
def _neighbourhoods(padded, size, stride):
    return jnp.concatenate([window for _, window in _windows(padded, size, stride=stride)], -1)


conv.defvjp(_conv_forward, _conv_backward)


def _windows(padded, size, dilation=1, stride=1):
    """What each tap (i, j) of a kernel of that size meets, of images with their border."""
    b, h, w, c = padded.shape
    h, w = h - (size[0] - 1) * dilation, w - (size[1] - 1) * dilation
    for i, j in itertools.product(*map(range, size)):
        top, left = i * dilation, j * dilation
        end = (b, top + h, left + w, c)
        yield (i, j), lax.slice(padded, (0, top, left, 0), end, (1, stride, stride, 1))


def spread(g: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """`g` at every `stride`-th pixel of images of this shape, zeros between: the transpose."""
    if stride == 1:
        return g
    behind = [full - (part - 1) * stride - 1 for full, part in zip(shape, g.shape, strict=True)]
    rows, columns = ((0, behind[axis], stride - 1) for axis in (1, 2))
    return lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def _border(kernel, dilation=1):
    """What `jnp.pad` has to add for the kernel: (before, after) of each axis."""
    rows, columns = ((size - 1) * dilation // 2 for size in kernel.shape[:2])
    return ((0, 0), (rows, rows), (columns, columns), (0, 0))


def _over_blocks(add, total, batch, images):
    """`add(total, first image of a block)` for one block of `images` after another."""
    return lax.fori_loop(0, batch // images, lambda k, total: add(total, k * images), total)


def _images_in_block(x, pixels):
    """A divisor of the batch; so many images have at most `pixels` pixels, if more than one."""
    batch, height, width, _ = x.shape
    most = min(batch, max(1, pixels // (height * width)))
    return max(size for size in range(1, most + 1) if batch % size == 0)


@functools.partial(outlined, static_argnames=('dilation', 'stride'))
def _shifted_sum(x, kernel, dilation, stride):
    return _sum_over_taps(nn.relu(x), kernel, dilation, stride)


@functools.partial(outlined, static_argnames='dilation')
def _input_gradient(x, g, kernel, dilation):
    # The transpose of a correlation is the correlation with the kernel turned by 180 degrees.
    return jnp.where(x > 0, _sum_over_taps(g, kernel[::-1, ::-1], dilation), 0)


def _sum_over_taps(x, kernel, dilation, stride=1):
    total = jnp.zeros((), jnp.float32)
    padded = jnp.pad(x, _border(kernel, dilation))
    for (i, j), window in _windows(padded, kernel.shape[:2], dilation, stride):
        tap = kernel[i, j, 0].astype(jnp.float32).reshape(1, 1, 1, -1)
        total += window.astype(jnp.float32) * tap
    return total.astype(x.dtype)


def _shifted_vjp(x, kernel, g, dilation, stride):
    g = spread(g, x.shape, stride)
    dx = _input_gradient(x, g, kernel, dilation)
    return dx, _kernel_gradient(x, g, kernel, dilation)


@functools.partial(outlined, static_argnames='dilation')
def _kernel_gradient(x, g, kernel, dilation):
    """dL/dkernel[i, j, c] = sum of relu(x) shifted by (i, j) times g, over batch and space.

    Block by block of images. One loop adds up all taps of a row of the kernel, see sums.py.
    """
    kh, kw, _, c = kernel.shape
    images = _images_in_block(x, _BLOCK // c)

    def add_block(totals, first):
        xs = _block(x, first, images, _border(kernel, dilation), rectified=True)
        gs = _block(g, first, images)
        for i in range(kh):
            places = tuple((i * dilation, j * dilation) for j in range(kw))
            rows = _sums_of_products(xs, gs, places)
            totals = totals.at[i].add(jnp.stack([row.reshape(-1, c).sum(0) for row in rows]))
        return totals

    totals = _over_blocks(add_block, jnp.zeros((kh, kw, c), jnp.float32), len(x), images)
    return totals.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(outlined, static_argnums=(2, 3), static_argnames='rectified')
def _block(array, first, images, border=((0, 0),) * 4, *, rectified=False):
    """So many images, after a ReLU if wanted, with a border of zeros, as a copy of their own.

    Merged with what reads it, each number's place would be worked out at every reading.
    """
    block = lax.dynamic_slice_in_dim(array, first, images)
    return jnp.pad(nn.relu(block) if rectified else block, border)


@functools.partial(outlined, static_argnums=2)
def _sums_of_products(xs, gs, places):
    """For each place, `g` times `x` from there on, some of the rows of each image added up."""
    b, h, w, c = gs.shape
    added = reductions.rows_at_once(h)

    def by_rows(array):
        return array.reshape(b, added, h // added, w * c).astype(jnp.float32)

    flat = xs.reshape(*xs.shape[:2], -1)
    products = []
    for top, left in places:
        window = lax.slice(flat, (0, top, left * c), (b, top + h, (left + w) * c))
        products.append(by_rows(window) * by_rows(gs))
    return reductions.together(tuple(products), axis=1)
