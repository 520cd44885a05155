"""Pooling computes what the plain form does, forward and backward, on any shape."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import pairwise

from asose_jax.nn.cpu import pooling

SHAPES = [(1, 1, 1, 1), (3, 5, 7, 2), (5, 2, 9, 3), (2, 8, 8, 16)]
STRIDES = (1, 2, 3)
TOLERANCE = {'float32': 1e-5, 'bfloat16': 0.05}
BORDER = ((1, 1), (1, 1))
MAXIMA = [*itertools.product(SHAPES, ('float32',), STRIDES)]
MAXIMA += [((3, 4, 7, 2), 'bfloat16', stride) for stride in STRIDES]
MEANS = SHAPES, tuple(TOLERANCE), STRIDES
MEAN_CASES = pairwise.cases(*MEANS)


def _plain_maximum(x, stride):
    return nn.max_pool(x, (3, 3), (stride, stride), BORDER)


def _plain_mean(x, stride):
    return nn.avg_pool(x, (3, 3), (stride, stride), BORDER, count_include_pad=False)


def _numbers(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype('f')


def _distinct(seed, shape):
    """In bfloat16 up to 256 values are: of equal ones, either may get the gradient."""
    return np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype('f')


def _outcomes(forms, cases, images):
    """By case, from one program: result and gradient, and those of the plain form in float32."""
    xs = [images(0, shape) for shape, *_ in cases]

    def compared(case, x):
        _, dtype, *stride = case
        ours, plain = (functools.partial(form, *stride) for form in forms)
        y, pull = jax.vjp(ours, x.astype(dtype))
        expected, plain_pull = jax.vjp(plain, x)
        g = _numbers(1, expected.shape)
        return (y, pull(g.astype(dtype))[0]), (expected, plain_pull(g)[0])

    program = jax.jit(lambda xs: [compared(*each) for each in zip(cases, xs, strict=True)])
    return dict(zip(cases, jax.device_get(program(xs)), strict=True))


@functools.cache
def _maxima():
    forms = (lambda s, x: pooling.max_pool(x, s)), (lambda s, x: _plain_maximum(x, s))
    return _outcomes(forms, MAXIMA, _distinct)


@functools.cache
def _means():
    forms = (lambda s, x: pooling.avg_pool(x, s)), (lambda s, x: _plain_mean(x, s))
    return _outcomes(forms, MEAN_CASES, _numbers)


@functools.cache
def _halves():
    forms = pooling.max_pool_2x2, lambda x: nn.max_pool(x, (2, 2), (2, 2), 'SAME')
    return _outcomes(forms, [(shape, 'float32') for shape in SHAPES], _distinct)


@pytest.mark.parametrize('case', MAXIMA, ids=str)
def test_max_pool_is_the_plain_pooling(case):
    (y, ours), (expected, plain) = _maxima()[case]
    assert y.dtype == ours.dtype == jnp.dtype(case[1])
    np.testing.assert_array_equal(y.astype('f'), expected)
    tolerance = 1e-5 if case[1] == 'float32' else 0.06 * np.abs(plain).max()
    np.testing.assert_allclose(ours.astype('f'), plain, atol=tolerance)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_max_pool_2x2_is_the_plain_pooling_also_at_odd_borders(shape):
    (y, ours), (expected, plain) = _halves()[shape, 'float32']
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(ours, plain)


def test_max_pool_gives_a_gradient_to_one_of_equals():
    gradient = jax.jit(jax.grad(lambda x: pooling.max_pool(x).sum()))(np.ones((1, 3, 3, 1), 'f'))
    np.testing.assert_allclose(gradient.sum(), 9)


def test_any_two_values_of_two_factors_meet_in_a_case_of_the_mean():
    assert pairwise.covers(MEAN_CASES, *MEANS)


@pytest.mark.parametrize('case', MEAN_CASES, ids=str)
def test_avg_pool_is_the_plain_pooling_without_its_padding(case):
    (y, ours), (expected, plain) = _means()[case]
    assert y.dtype == ours.dtype == jnp.dtype(case[1])
    np.testing.assert_allclose(y.astype('f'), expected, atol=TOLERANCE[case[1]])
    np.testing.assert_allclose(ours.astype('f'), plain, atol=TOLERANCE[case[1]])
