"""FLOPs agree with what one counts by hand."""

import dataclasses

import numpy as np
import pytest

from asose_jax.arch import genotype
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.costs import flops
from asose_jax.nn.forward import Mode
from asose_jax.spaces import chain

NAMES = ('none', 'skip_connect', 'sep_conv_3x3', 'conv_7x1_1x7')


def _chain(names, channels=16):
    return chain.build(
        (8, 8, 3),
        10,
        channels=channels,
        depth=2,
        reductions=(1,),
        max_channels=32,
        primitives=names,
    )


def test_convolutions_count_two_for_each_multiply_add():
    pixels = {'sep_conv_3x3': 2 * (9 * 16 + 16 * 16), 'conv_7x1_1x7': 2 * 7 * 16 * 16}
    for name, per_pixel in pixels.items():
        counted = flops.FLOPS.operation(name, (8, 8, 16), 1)
        # Borders save a little, ReLU and BatchNorm add a little.
        assert counted == pytest.approx(2 * 64 * per_pixel, rel=0.25)


def test_rows_weigh_the_candidates():
    spec = _chain(NAMES)
    one_hot = [np.eye(4)[2], np.eye(4)[1]]
    derived = genotype.derive(spec, genotype.Genotype((('sep_conv_3x3',), ('skip_connect',))))
    assert flops.forward_flops(spec, one_hot) == flops.forward_flops(derived)
    everything = flops.forward_flops(spec, [np.ones(4)] * 2)
    mean = flops.forward_flops(spec, [np.full(4, 0.25)] * 2)
    nothing = flops.forward_flops(spec, [np.zeros(4)] * 2)
    assert mean == pytest.approx(nothing + (everything - nothing) / 4)
    assert 0 < nothing < mean < everything


def test_wider_and_deeper_costs_more():
    small, wide = _chain(('sep_conv_3x3',)), _chain(('sep_conv_3x3',), channels=24)
    assert flops.forward_flops(wide) > 1.5 * flops.forward_flops(small)


def _training(*counts, second_order=False, frozen=False):
    return flops.training_flops(*counts, second_order=second_order, together=False, frozen=frozen)


@pytest.mark.parametrize(
    ('estimator', 'weights', 'alpha'),
    # In forward passes of what is drawn and of everything: forward, input and weight gradients.
    [
        ('straight_through', (3, 0), (1, 1)),
        ('gdas', (3, 0), (2, 0)),
        ('softmax', (0, 3), (0, 2)),
    ],
)
def test_training_counts_each_kind_of_step(estimator, weights, alpha):
    spec, row = _chain(NAMES), ESTIMATORS[estimator]
    rows = [np.full(4, 0.25)] * 2
    passes = [flops.forward_flops(spec, rows), flops.forward_flops(spec, [np.ones(4)] * 2)]
    told = _training(spec, Mode.DRAW, row, rows, 20, 10)
    assert told == pytest.approx(20 * np.dot(weights, passes) + 10 * np.dot(alpha, passes))
    if not row.one_hot:  # both gradients twice, and a derivative of forward and input gradient
        told = _training(spec, Mode.DRAW, row, rows, 0, 10, second_order=True)
        assert told == pytest.approx(10 * (3 + 3 + 3 * 2) * passes[1])
    skip = flops.forward_flops(spec, [np.eye(4)[1]] * 2)
    assert _training(spec, Mode.SKIP, row, rows, 20, 0) == pytest.approx(60 * skip)
    told = _training(spec, Mode.SKIP, row, rows, 20, 0, frozen=True)
    assert told == pytest.approx(20 * skip)
    told = _training(spec, Mode.UNIFORM, row, [np.eye(4)[2]] * 2, 20, 0)
    assert told == pytest.approx(60 * passes[0])


def test_candidates_of_partial_channels_count_for_their_channels():
    spec = dataclasses.replace(_chain(NAMES), partial=4)
    convolution, nothing = (flops.forward_flops(spec, [np.eye(4)[k]] * 2) for k in (2, 0))
    by_hand = sum(flops.FLOPS.operation(NAMES[2], shape, 1) for shape in ((8, 8, 4), (4, 4, 8)))
    assert convolution - nothing == pytest.approx(by_hand)
