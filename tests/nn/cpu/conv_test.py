"""The fast forms compute what the plain ones do, forward and backward, on any shape."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pairwise
from jax import lax
from jax.test_util import check_grads

from asose_jax.nn.cpu import conv

SHAPES = [(1, 1, 1, 1), (3, 5, 7, 2), (5, 2, 9, 3), (2, 8, 8, 16)]
TOLERANCE = {'float32': 2e-4, 'bfloat16': 0.06}
DTYPES = tuple(TOLERANCE)

# Sizes, dilations, strides, shapes, dtypes; and the same without dilations.
DEPTHWISE = (3, 5, 7), (1, 2), (1, 2, 3), SHAPES[:3], DTYPES
CONV = ((1, 7), (7, 1), (3, 3), (1, 1)), (1, 2), SHAPES[:3], DTYPES
DEPTHWISE_CASES, CONV_CASES = (tuple(pairwise.cases(*each)) for each in (DEPTHWISE, CONV))
# What the search spaces use, on every shape in every dtype.
USED = [(3, 1, 1), (5, 1, 1), (7, 1, 1), (3, 2, 1), (5, 2, 1), (3, 1, 2), (5, 2, 2), (3, 1, 3)]


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
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.dtype(dtype))


def _with_gradients(ours, plain, arguments, g):
    """Value and all gradients of both forms; the plain one in float32."""
    got, our_vjp = jax.vjp(ours, *arguments)
    wide = [a.astype(jnp.float32) for a in arguments]
    expected, plain_vjp = jax.vjp(plain, *wide)
    return (got, *our_vjp(g)), (expected, *plain_vjp(g.astype(jnp.float32)))


def _outcomes(forms, arguments_of, cases):
    """Of every case, from a single program: that takes a third of the time of one for each."""
    arguments = [arguments_of(*case) for case in cases]
    shapes = [jax.eval_shape(forms(*case)[1], *a) for case, a in zip(cases, arguments, strict=True)]
    gs = [_random(9, one.shape, one.dtype) for one in shapes]

    @jax.jit
    def program(arguments, gs):
        each = zip(cases, arguments, gs, strict=True)
        return [_with_gradients(*forms(*case), *given) for case, *given in each]

    return dict(zip(cases, jax.device_get(program(arguments, gs)), strict=True))


def _assert_same(have_all, want_all, dtype):
    """Relative to the largest entry of the plain float32 result."""
    for have, want in zip(have_all, want_all, strict=True):
        assert have.dtype == jnp.dtype(dtype)
        scale = max(1.0, np.abs(want).max())
        difference = np.abs(have.astype(np.float32) - want).max() / scale
        assert difference < TOLERANCE[dtype]


def _depthwise_forms(size, dilation, stride, *_):
    del size
    ours = functools.partial(conv.relu_depthwise_conv, dilation=dilation, stride=stride)
    return ours, functools.partial(_plain_depthwise, dilation=dilation, stride=stride)


def _depthwise_arguments(size, dilation, stride, shape, dtype):
    del dilation, stride
    return _random(0, shape, dtype), _random(1, (size, size, 1, shape[-1]), dtype)


def _conv_forms(size, stride, *_):
    del size
    return functools.partial(conv.conv, stride=stride), functools.partial(
        _plain_conv, stride=stride
    )


def _conv_arguments(size, stride, shape, dtype):
    del stride
    return _random(0, shape, dtype), _random(1, (*size, shape[-1], 4), dtype)


@functools.cache
def _depthwise_outcomes(cases):
    return _outcomes(_depthwise_forms, _depthwise_arguments, cases)


@functools.cache
def _conv_outcomes(cases):
    return _outcomes(_conv_forms, _conv_arguments, cases)


def test_any_two_values_of_two_factors_meet_in_a_case():
    assert pairwise.covers(DEPTHWISE_CASES, *DEPTHWISE)
    assert pairwise.covers(CONV_CASES, *CONV)
    assert not pairwise.covers(CONV_CASES[1:], *CONV)


@pytest.mark.parametrize('case', DEPTHWISE_CASES, ids=str)
def test_depthwise_is_relu_and_the_grouped_convolution(case):
    _assert_same(*_depthwise_outcomes(DEPTHWISE_CASES)[case], case[-1])


@pytest.mark.soak
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_depthwise_of_the_search_spaces_is_the_grouped_convolution(shape):
    cases = tuple((*how, shape, dtype) for how in USED for dtype in DTYPES)
    for case, outcome in _depthwise_outcomes(cases).items():
        _assert_same(*outcome, case[-1])


@pytest.mark.parametrize('batch', [1, 5, 6])
def test_gradients_of_many_blocks_are_those_of_one(monkeypatch, batch):
    x, kernel = _random(0, (batch, 9, 7, 2)), _random(1, (3, 3, 1, 2))
    wide = _random(2, (1, 3, 2, 3))

    def loss(x, k, w):
        return (conv.conv(conv.relu_depthwise_conv(x, k, 2), w) ** 2).sum()

    def gradients():
        jax.clear_caches()
        return jax.jit(jax.grad(loss, (0, 1, 2)))(x, kernel, wide)

    whole = gradients()
    monkeypatch.setattr(conv, '_BLOCK_SIZE', 300)
    assert conv._images_in_block(x, 300 // 2) == {1: 1, 5: 1, 6: 2}[batch]
    for one, many in zip(whole, gradients(), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-3)


def test_depthwise_gradients_agree_with_finite_differences():
    x, kernel = _random(0, (2, 4, 5, 2)), _random(1, (3, 3, 1, 2))
    for stride in (1, 2):
        ours = functools.partial(conv.relu_depthwise_conv, dilation=1, stride=stride)
        check_grads(jax.jit(ours), (x, kernel), 1, ['rev'], atol=1e-2)


@pytest.mark.parametrize('case', CONV_CASES, ids=str)
def test_conv_is_the_plain_convolution(case):
    _assert_same(*_conv_outcomes(CONV_CASES)[case], case[-1])


@pytest.mark.soak
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_conv_is_the_plain_convolution_in_every_combination(shape):
    cases = tuple(itertools.product(*CONV[:2], (shape,), DTYPES))
    for case, outcome in _conv_outcomes(cases).items():
        _assert_same(*outcome, case[-1])


def test_the_cpu_form_stays_on_the_cpu():
    x, kernel = _random(0, (2, 4, 4, 2)), _random(1, (3, 3, 1, 2))

    def lowered(platform):
        traced = jax.jit(jax.grad(lambda x, k: conv.relu_depthwise_conv(x, k, 1).sum(), (0, 1)))
        return traced.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    assert 'stablehlo.convolution' not in lowered('cpu')
    assert 'stablehlo.convolution' in lowered('tpu')
    assert 'stablehlo.while' not in lowered('tpu')


def test_outlined_function_is_the_function_and_traces_once_for_a_shape():
    traces = []

    def square(x):
        traces.append(x.shape)
        return x * x

    call, x = conv.outlined_jit(square), jnp.arange(3.0)
    gradient = jax.jit(jax.grad(lambda x: call(call(x)).sum()))(x)
    np.testing.assert_allclose(gradient, 4 * x**3)
    assert traces == [(3,)]
