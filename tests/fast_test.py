"""The fast forms compute what the plain ones do, forward and backward, on any shape."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from asose_jax import fast

SHAPES = [(1, 1, 1, 1), (3, 5, 7, 2), (5, 2, 9, 3), (2, 8, 8, 16)]
TOLERANCE = {'float32': 2e-4, 'bfloat16': 0.06}


def _plain_depthwise(x, kernel, dilation, stride):
    """As PyTorch pads: the same on both sides."""
    border = dilation * (len(kernel) // 2)
    return lax.conv_general_dilated(
        nn.relu(x),
        kernel,
        (stride, stride),
        ((border, border), (border, border)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


def _plain_conv(x, kernel, stride):
    border = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), border, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def _random(seed, shape, dtype='float32'):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def _assert_same_with_gradients(ours, plain, arguments, dtype):
    """Value and all gradients, relative to the largest entry of the plain float32 result."""
    wide = [a.astype(jnp.float32) for a in arguments]
    expected, plain_vjp = jax.vjp(plain, *wide)
    got, our_vjp = jax.vjp(ours, *arguments)
    assert got.dtype == arguments[0].dtype
    g = _random(9, expected.shape, dtype)
    pairs = [(got, expected)]
    pairs += zip(our_vjp(g), plain_vjp(g.astype(jnp.float32)), strict=True)
    for have, want in pairs:
        scale = max(1.0, float(jnp.abs(want).max()))
        difference = np.abs(np.asarray(have, np.float32) - np.asarray(want)).max() / scale
        assert difference < TOLERANCE[dtype]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    ('size', 'dilation', 'stride'),
    [(3, 1, 1), (5, 1, 1), (7, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2), (5, 2, 2), (3, 1, 3)],
)
def test_depthwise_is_relu_and_the_grouped_convolution(size, dilation, stride, shape, dtype):
    x, kernel = _random(0, shape, dtype), _random(1, (size, size, 1, shape[-1]), dtype)
    _assert_same_with_gradients(
        lambda x, k: fast.relu_depthwise_conv(x, k, dilation, stride),
        lambda x, k: _plain_depthwise(x, k, dilation, stride),
        (x, kernel),
        dtype,
    )


@pytest.mark.parametrize('batch', [1, 5, 6])
def test_gradients_of_many_blocks_are_those_of_one(monkeypatch, batch):
    x, kernel = _random(0, (batch, 9, 7, 2)), _random(1, (5, 5, 1, 2))
    wide = _random(2, (1, 7, 2, 3))

    def loss(x, k, w):
        return (fast.conv(fast.relu_depthwise_conv(x, k, 2), w) ** 2).sum()

    def gradients():
        jax.clear_caches()
        return jax.grad(loss, (0, 1, 2))(x, kernel, wide)

    whole = gradients()
    monkeypatch.setattr(fast, '_BLOCK', 300)
    assert fast._images_in_block(x, 300 // 2) == {1: 1, 5: 1, 6: 2}[batch]
    for one, many in zip(whole, gradients(), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-3)


def test_depthwise_gradients_agree_with_finite_differences():
    x, kernel = _random(0, (2, 4, 5, 2)), _random(1, (3, 3, 1, 2))
    for stride in (1, 2):
        ours = functools.partial(fast.relu_depthwise_conv, dilation=1, stride=stride)
        check_grads(ours, (x, kernel), 1, ['rev'], atol=1e-2)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(1, 7), (7, 1), (3, 3), (1, 1)])
def test_conv_is_the_plain_convolution(size, stride, shape, dtype):
    x, kernel = _random(0, shape, dtype), _random(1, (*size, shape[-1], 4), dtype)
    _assert_same_with_gradients(
        lambda x, k: fast.conv(x, k, stride),
        lambda x, k: _plain_conv(x, k, stride),
        (x, kernel),
        dtype,
    )


def test_the_cpu_form_stays_on_the_cpu():
    x, kernel = _random(0, (2, 4, 4, 2)), _random(1, (3, 3, 1, 2))

    def lowered(platform):
        traced = jax.jit(jax.grad(lambda x, k: fast.relu_depthwise_conv(x, k, 1).sum(), (0, 1)))
        return traced.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert 'stablehlo.convolution' not in lowered('cpu')
    assert 'stablehlo.convolution' in lowered('tpu')
    assert 'stablehlo.while' not in lowered('tpu')


def test_outlined_function_is_the_function_and_traces_once_for_a_shape():
    traces = []

    def square(x):
        traces.append(x.shape)
        return x * x

    call, x = fast.outlined(square), jnp.arange(3.0)
    gradient = jax.jit(jax.grad(lambda x: call(call(x)).sum()))(x)
    np.testing.assert_allclose(gradient, 4 * x**3)
    assert traces == [(3,)]
