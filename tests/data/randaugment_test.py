"""Operations of RandAugment, worked out by hand, and how they are drawn."""

import jax
import numpy as np
import pytest

from asose_jax.data import randaugment
from asose_jax.data.randaugment import OPERATIONS, RandAugment

MEAN, STD = np.float32([100.0]), np.float32([50.0])
# Compiled once for each shape.
TRANSFORM = jax.jit(randaugment.transform)
RANDAUGMENT = jax.jit(randaugment.randaugment, static_argnums=3)
RAMP = np.arange(16.0).reshape(4, 4)


def _transformed(image, operation, strength, mean=MEAN, std=STD):
    """The pixel values of an image after an operation."""
    normalised = np.float32((image - mean) / std)
    number = np.int32(OPERATIONS.index(operation))
    return np.asarray(TRANSFORM(normalised, number, np.float32(strength), mean, std)) * std + mean


def _grey(image, operation, strength):
    return _transformed(np.asarray(image)[..., None], operation, strength)[..., 0]


def _shifted(rows, columns):
    """The ramp, each pixel taken from so much further down and right; outside is the mean."""
    padded = np.pad(RAMP, 4, constant_values=100.0)
    return padded[4 + rows : 8 + rows, 4 + columns : 8 + columns]


@pytest.mark.parametrize(
    ('operation', 'strength', 'expected'),
    [
        ('identity', 1, RAMP),
        # 0.3 of 4 pixels is 1.2, to the nearest pixel.
        ('translate_x', 1, _shifted(0, 1)),
        ('translate_x', -1, _shifted(0, -1)),
        ('translate_y', 1, _shifted(1, 0)),
        ('brightness', 1, 1.9 * RAMP),
        ('brightness', -1, 0.1 * RAMP),
        ('contrast', -1, 7.5 + 0.1 * (RAMP - 7.5)),
        ('color', 1, RAMP),  # there is none
        ('posterize', 1, np.zeros((4, 4))),  # the low four bits
        ('posterize', -0.5, RAMP // 4 * 4),
        ('solarize', 1, 255 - RAMP),
        ('solarize', 0.5, RAMP),  # nothing is as bright as 128
        ('autocontrast', 0.1, RAMP * 17),
    ],
)
def test_operation_on_a_grey_ramp_is_worked_out_by_hand(operation, strength, expected):
    np.testing.assert_allclose(_grey(RAMP, operation, strength), expected, atol=1e-3)


def test_rotation_and_shear_turn_and_slant_around_the_middle():
    line = np.full((9, 9), 100.0)
    line[:, 4] = 200.0
    slanted = _grey(line, 'shear_x', 1)  # 0.3 pixels to the side a row
    offsets = np.round(0.3 * (np.arange(9) - 4))
    np.testing.assert_array_equal(slanted.argmax(1), 4 - offsets)
    np.testing.assert_allclose(_grey(line.T, 'shear_y', 1), slanted.T, atol=1e-4)
    turned = _grey(line, 'rotate', 1)  # by 30 degrees: its ends are 4 tan(30) to the sides
    assert turned[4, 4] == 200
    assert abs(turned[0].argmax() - turned[8].argmax()) == 4
    np.testing.assert_allclose(_grey(line, 'rotate', -1), turned[:, ::-1], atol=1e-4)


def test_color_moves_pixels_from_their_grey():
    pixel, mean, std = np.array([[[100.0, 50, 0]]]), np.float32([120] * 3), np.float32([60] * 3)
    grey = 0.299 * 100 + 0.587 * 50
    found = _transformed(pixel, 'color', -0.5, mean, std)
    expected = grey + 0.55 * (np.array([100, 50, 0]) - grey)  # 0.55 = 1 - 0.9 / 2
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)


def test_flat_channel_has_no_contrast_to_stretch():
    np.testing.assert_allclose(_grey(np.full((4, 4), 7.0), 'autocontrast', 1), 7.0, rtol=1e-5)


def test_draws_depend_on_the_place_in_the_global_batch_only():
    images = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)
    places, how = np.arange(8), RandAugment(2, 9.0)
    whole = RANDAUGMENT(images, jax.random.key(1), places, how, MEAN, STD)
    turned = RANDAUGMENT(images[::-1], jax.random.key(1), places[::-1], how, MEAN, STD)
    np.testing.assert_array_equal(whole, turned[::-1])
    other = RANDAUGMENT(images, jax.random.key(2), places, how, MEAN, STD)
    assert (np.asarray(other) != whole).any((1, 2, 3)).sum() > 4


def test_every_operation_is_drawn_in_both_directions():
    image = 7 * np.arange(36.0).reshape(6, 6)  # grey: `color` does what identity does
    batch = np.broadcast_to(np.float32((image[..., None] - MEAN) / STD), (1200, 6, 6, 1))
    how = RandAugment(1, 10.0)
    seen = RANDAUGMENT(batch, jax.random.key(0), np.arange(1200), how, MEAN, STD)
    kinds = {one.round().tobytes() for one in np.asarray(seen) * STD + MEAN}
    expected = {
        _grey(image, name, sign).round().tobytes() for name in OPERATIONS for sign in (-1, 1)
    }
    assert len(expected) == 18  # one each of identity, posterize, solarize and autocontrast
    assert kinds == expected
