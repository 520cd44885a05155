"""Sets of labelled images, and the one way in which images change size."""

import numpy as np
import pytest
from PIL import Image

from asose_jax.data import image_set


def test_sets_in_a_row_keep_their_own_images():
    def numbered(first, count):
        pixels = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1, 1, 1)
        return image_set.ImageSet.from_arrays(pixels, pixels.reshape(-1).astype(np.int32))

    first, second = numbered(0, 3), numbered(3, 4)
    streamed = image_set.ImageSet(3, first.read).concatenate(image_set.ImageSet(4, second.read))
    for both in (first.concatenate(second), streamed):
        assert both.size == 7
        for part in (np.array([2, 0]), np.array([3, 6])):
            np.testing.assert_array_equal(both.read(part)[1], part)


@pytest.mark.parametrize(
    ('size', 'scaled', 'corner'),
    [((40, 20), (20, 10), (5, 0)), ((20, 60), (10, 30), (0, 10)), ((5, 5), (10, 10), (0, 0))],
)
def test_fitted_image_is_the_middle_of_the_scaled_one(size, scaled, corner):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(pixels)
    box = (*corner, corner[0] + 10, corner[1] + 10)
    expected = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR).crop(box), np.int32)
    np.testing.assert_allclose(np.asarray(image_set.center_square(image, 10)), expected, atol=1)


def test_image_of_the_right_size_or_without_a_wish_stays_as_it_is():
    image = Image.new('L', (7, 9))
    assert image_set.center_square(image, None) is image
    square = Image.new('L', (7, 7))
    assert image_set.center_square(square, 7) is square
