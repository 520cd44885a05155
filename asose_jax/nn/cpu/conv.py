"""Convolution in the form that is fast on the platform it is compiled for.

GPU and TPU get XLA's convolutions, which are native kernels there. XLA's CPU backend has no fast
kernel for some cases:

* grouped convolution is 20-100 times slower than a sum of shifted slices, fused into one loop;
* the weight gradient of a convolution is slow, and 30-100 times slower *inside a loop or a
  conditional* than outside. Sums over blocks of images that stay in the cache are fast everywhere.

Second-order steps and early stopping differentiate these gradients once more, by `jax.jvp`.
Functions with a `custom_vjp` have no forward derivative, so the rules of one must not call another.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from asose_jax.nn.cpu import reductions

# Entries of a block of images that a loop on the CPU reads many times; they must fit into its
# cache.
_BLOCK_SIZE = 2**17

# Convolutions with at most this many inputs per output (kernel height * width * input channels) are
# computed as sums of shifted channels on the CPU. That of a stem has so few.
_FEW_INPUTS = 32

_NHWC = ('NHWC', 'HWIO', 'NHWC')


def outlined_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles a function like `jax.jit`, and keeps it a computation of its own.

    Calls with equal shapes share one trace. Without this, XLA's CPU backend merges a chain of
    shifted sums into one loop that computes the first sum again for every tap of the second: 25
    times the work for two 5x5 convolutions, all of it unrolled by the compiler. Other backends
    merge well and would be held up, so this is for programs of the CPU only.

    Args:
      function: what to compile.
      **options: those of `jax.jit`.

    Returns:
      A function with the arguments and results of `function`.
    """

    @functools.wraps(function)
    def body(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable='true'):
            return function(*args, **kwargs)

    call = jax.jit(body, **options)

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable='false'):
            return call(*args, **kwargs)

    return outside


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def relu_depthwise_conv(
    x: jax.Array, kernel: jax.Array, dilation: int = 1, stride: int = 1
) -> jax.Array:
    """Applies ReLU, then convolves each channel with a kernel of its own.

    Both are one operation, so that the ReLU needs no pass over memory of its own.

    Args:
      x: images `[B, H, W, C]`.
      kernel: taps `[k, k, 1, C]` with odd k, in the dtype of `x`.
      dilation: distance between taps, in pixels.
      stride: distance between output pixels; with 1 the output is as large as the input.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), C]` in the dtype of `x`. Zeros pad both sides alike;
      sums are taken in float32.
    """
    return _depthwise(x, kernel, dilation, stride)


# Apart from `relu_depthwise_conv`, since its rules must not call a function with a `custom_vjp`.
def _depthwise(x: jax.Array, kernel: jax.Array, dilation: int, stride: int) -> jax.Array:
    geometry = {'dilation': dilation, 'stride': stride}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_sum, **geometry),
        default=functools.partial(_native, **geometry),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, dilation: int, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, dilation, stride), (x, kernel)


def _backward(
    dilation: int, stride: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    geometry = {'dilation': dilation, 'stride': stride}
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=functools.partial(_shifted_vjp, **geometry),
        default=functools.partial(_native_vjp, **geometry),
    )


relu_depthwise_conv.defvjp(_forward, _backward)


def _native(x: jax.Array, kernel: jax.Array, dilation: int, stride: int) -> jax.Array:
    return lax.conv_general_dilated(
        nn.relu(x),
        kernel,
        window_strides=(stride, stride),
        padding=_border(kernel, dilation)[1:3],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_NHWC,
        feature_group_count=x.shape[-1],
    )


def _native_vjp(
    x: jax.Array, kernel: jax.Array, g: jax.Array, dilation: int, stride: int
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(functools.partial(_native, dilation=dilation, stride=stride), x, kernel)[1](g)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves images with a dense kernel; zeros pad both sides alike.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[kh, kw, C, F]` with odd kh and kw, in the dtype of `x`.
      stride: distance between output pixels; with 1 the output is as large as the input.

    Returns:
      `[B, ceil(H / stride), ceil(W / stride), F]` in the dtype of `x`.
    """
    return _conv(x, kernel, stride)


def _conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    plain = functools.partial(_plain_conv, stride=stride)
    if kernel.size // kernel.shape[-1] <= _FEW_INPUTS:
        thin = functools.partial(_thin_conv, stride=stride)
        return lax.platform_dependent(x, kernel, cpu=thin, default=plain)
    return plain(x, kernel)


def _plain_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    border = _border(kernel)[1:3]
    return lax.conv_general_dilated(x, kernel, (stride, stride), border, dimension_numbers=_NHWC)


@functools.partial(outlined_jit, static_argnames='stride')
def _thin_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Adds up every shifted input channel times its row of the kernel; for few inputs."""
    total = jnp.zeros((), jnp.float32)
    padded = jnp.pad(x, _border(kernel))
    for (i, j), window in _windows(padded, kernel.shape[:2], stride=stride):
        for c in range(x.shape[-1]):
            row = kernel[i, j, c].astype(jnp.float32).reshape(1, 1, 1, -1)
            total += window[..., c : c + 1].astype(jnp.float32) * row
    return total.astype(x.dtype)


def _conv_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    dx = lax.platform_dependent(
        g,
        kernel,
        cpu=lambda g, k: _conv(
            upsample_with_zeros(g, x.shape, stride), k[::-1, ::-1].swapaxes(2, 3), 1
        ),
        default=lambda g, k: jax.vjp(lambda x: _plain_conv(x, k, stride), x)[1](g)[0],
    )
    blocked = functools.partial(_blocked_gradient, stride=stride)
    plain = functools.partial(_plain_gradient, stride=stride)
    return dx, lax.platform_dependent(x, g, kernel, cpu=blocked, default=plain)


def _plain_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Returns dL/dkernel by XLA's own rule."""
    return jax.vjp(lambda kernel: _plain_conv(x, kernel, stride), kernel)[1](g)[0]


def _blocked_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Returns dL/dkernel: block by block, g times the written-out neighbourhoods of all pixels."""
    inputs, features = kernel.size // kernel.shape[-1], kernel.shape[-1]
    images = _images_in_block(x, 4 * _BLOCK_SIZE // inputs)

    def add_block(total: jax.Array, first: jax.Array) -> jax.Array:
        block = _block(x, first, images, _border(kernel))
        patches = _neighbourhoods(block, kernel.shape[:2], stride)
        gs = _block(g, first, images)
        product = gs.reshape(-1, features).T @ patches.reshape(-1, inputs)
        return total + product.astype(jnp.float32)

    zeros = jnp.zeros((features, inputs), jnp.float32)
    total = _over_blocks(add_block, zeros, len(x), images)
    return total.T.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(outlined_jit, static_argnums=(1, 2))
def _neighbourhoods(padded: jax.Array, size: tuple[int, ...], stride: int) -> jax.Array:
    """Returns all inputs of every output pixel side by side, `[B, H', W', kh * kw * C]`."""
    return jnp.concatenate([window for _, window in _windows(padded, size, stride=stride)], -1)


conv.defvjp(_conv_forward, _conv_backward)


def _windows(
    padded: jax.Array, size: tuple[int, ...], dilation: int = 1, stride: int = 1
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields `(i, j)` and the pixels that this tap of a kernel is multiplied with.

    Args:
      padded: images with their border, `[B, H + border, W + border, C]`.
      size: height and width of the kernel, in taps.
      dilation: distance between taps.
      stride: distance between output pixels, in pixels of the input.
    """
    b, h, w, c = padded.shape
    h, w = h - (size[0] - 1) * dilation, w - (size[1] - 1) * dilation
    for i, j in itertools.product(*map(range, size)):
        top, left = i * dilation, j * dilation
        end = (b, top + h, left + w, c)
        yield (i, j), lax.slice(padded, (0, top, left, 0), end, (1, stride, stride, 1))


def upsample_with_zeros(g: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """Puts `g` at every `stride`-th pixel of a larger image: the transpose of taking those pixels.

    Args:
      g: `[B, ceil(H / stride), ceil(W / stride), C]`.
      shape: `(B, H, W, C)` of the result; its last entry may differ from the channels of `g`.
      stride: distance between the pixels of `g` in the result.

    Returns:
      `[B, H, W, C]` with the channels of `g`, and zeros between its pixels.
    """
    if stride == 1:
        return g
    behind = [full - (part - 1) * stride - 1 for full, part in zip(shape, g.shape, strict=True)]
    rows, columns = ((0, behind[axis], stride - 1) for axis in (1, 2))
    return lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def _border(kernel: jax.Array, dilation: int = 1) -> tuple[tuple[int, int], ...]:
    """Returns the zero padding that keeps the size: (before, after) of each axis of the images."""
    rows, columns = ((size - 1) * dilation // 2 for size in kernel.shape[:2])
    return ((0, 0), (rows, rows), (columns, columns), (0, 0))


def _over_blocks(
    add: Callable[[jax.Array, jax.Array], jax.Array], total: jax.Array, batch: int, images: int
) -> jax.Array:
    """Adds up blocks of images in a loop.

    Args:
      add: `(total, number of the first image of a block) -> total`.
      total: what the sum starts with.
      batch: number of all images, a multiple of `images`.
      images: number of images of a block.
    """
    return lax.fori_loop(0, batch // images, lambda k, total: add(total, k * images), total)


def _images_in_block(x: jax.Array, pixels: int) -> int:
    """Returns the largest divisor of the batch with at most `pixels` pixels; at least one image."""
    batch, height, width, _ = x.shape
    limit = min(batch, max(1, pixels // (height * width)))
    return max(size for size in range(1, limit + 1) if batch % size == 0)


@functools.partial(outlined_jit, static_argnames=('dilation', 'stride'))
def _shifted_sum(x: jax.Array, kernel: jax.Array, dilation: int, stride: int) -> jax.Array:
    return _sum_over_taps(nn.relu(x), kernel, dilation, stride)


@functools.partial(outlined_jit, static_argnames='dilation')
def _input_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Returns dL/dx of the depthwise convolution with ReLU, for stride 1."""
    # The transpose of a correlation is the correlation with the kernel turned by 180 degrees.
    return jnp.where(x > 0, _sum_over_taps(g, kernel[::-1, ::-1], dilation), 0)


def _sum_over_taps(x: jax.Array, kernel: jax.Array, dilation: int, stride: int = 1) -> jax.Array:
    """Convolves each channel with its kernel: adds up shifted images times a tap, in float32."""
    total = jnp.zeros((), jnp.float32)
    padded = jnp.pad(x, _border(kernel, dilation))
    for (i, j), window in _windows(padded, kernel.shape[:2], dilation, stride):
        tap = kernel[i, j, 0].astype(jnp.float32).reshape(1, 1, 1, -1)
        total += window.astype(jnp.float32) * tap
    return total.astype(x.dtype)


def _shifted_vjp(
    x: jax.Array, kernel: jax.Array, g: jax.Array, dilation: int, stride: int
) -> tuple[jax.Array, jax.Array]:
    g = upsample_with_zeros(g, x.shape, stride)
    dx = _input_gradient(x, g, kernel, dilation)
    return dx, _kernel_gradient(x, g, kernel, dilation)


@functools.partial(outlined_jit, static_argnames='dilation')
def _kernel_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array, dilation: int) -> jax.Array:
    """Returns dL/dkernel of the depthwise convolution with ReLU, for stride 1.

    dL/dkernel[i, j, c] is the sum of relu(x) shifted by (i, j) times g, over batch and space. It is
    computed for one block of images after another. A single loop adds up all taps of a row of the
    kernel, see `reductions`.
    """
    kh, kw, _, c = kernel.shape
    images = _images_in_block(x, _BLOCK_SIZE // c)

    def add_block(totals: jax.Array, first: jax.Array) -> jax.Array:
        xs = _block(x, first, images, _border(kernel, dilation), rectified=True)
        gs = _block(g, first, images)
        for i in range(kh):
            offsets = tuple((i * dilation, j * dilation) for j in range(kw))
            rows = _sums_of_products(xs, gs, offsets)
            totals = totals.at[i].add(jnp.stack([row.reshape(-1, c).sum(0) for row in rows]))
        return totals

    totals = _over_blocks(add_block, jnp.zeros((kh, kw, c), jnp.float32), len(x), images)
    return totals.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(outlined_jit, static_argnums=(2, 3), static_argnames='rectified')
def _block(
    array: jax.Array,
    first: jax.Array,
    images: int,
    border: tuple[tuple[int, int], ...] = ((0, 0),) * 4,
    *,
    rectified: bool = False,
) -> jax.Array:
    """Copies a block of images and pads it with zeros.

    It is a computation of its own, because XLA would otherwise merge it with the loops that read
    the block, and compute the address of every number again at each read.

    Args:
      array: all images `[B, H, W, C]`.
      first: number of the first image of the block.
      images: number of images of the block.
      border: zeros (before, after) on each axis.
      rectified: whether to apply ReLU.
    """
    block = lax.dynamic_slice_in_dim(array, first, images)
    return jnp.pad(nn.relu(block) if rectified else block, border)


@functools.partial(outlined_jit, static_argnums=2)
def _sums_of_products(
    xs: jax.Array, gs: jax.Array, offsets: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, ...]:
    """Multiplies `gs` by windows of `xs`, and adds up groups of rows of each image.

    Args:
      xs: padded images `[b, h + border, w + border, c]`.
      gs: `[b, h, w, c]`.
      offsets: (row, column) at which each window begins.

    Returns:
      For each offset, float32 `[b, h / r, w * c]`, with r = `reductions.rows_at_once(h)`.
    """
    b, h, w, c = gs.shape
    added = reductions.rows_at_once(h)

    def by_rows(array: jax.Array) -> jax.Array:
        return array.reshape(b, added, h // added, w * c).astype(jnp.float32)

    flat = xs.reshape(*xs.shape[:2], -1)
    products = []
    for top, left in offsets:
        window = lax.slice(flat, (0, top, left * c), (b, top + h, (left + w) * c))
        products.append(by_rows(window) * by_rows(gs))
    return reductions.sum_together(tuple(products), axis=1)
