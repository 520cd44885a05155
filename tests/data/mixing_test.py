"""Mixing of images: which share of a pixel, and so of a label, each of the two has."""

import functools

import jax
import numpy as np
import pytest

from asose_jax.data import mixing
from asose_jax.data.mixing import Mixing

RECTANGLE = jax.jit(mixing.rectangle, static_argnums=(2, 3))


@functools.cache
def _draws():
    """The shares of steps with mixup, and of those with CutMix: images of 6 x 4, `[N, 6, 4]`."""
    how = Mixing(mixup=0.5, cutmix=1.0)
    draw = jax.jit(jax.vmap(lambda key: mixing.draw_shares(key, 6, 4, how)))
    shares = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))[..., 0]
    is_cutmix = ((shares == 0) | (shares == 1)).all((1, 2))
    return shares[~is_cutmix], shares[is_cutmix]


@pytest.mark.parametrize(
    ('share', 'center', 'rows', 'columns'),
    [
        (0.75, (0.5, 0.5), range(2, 6), range(3, 9)),  # half of each side, a quarter of the area
        (0.75, (0.0, 0.5), range(2), range(3, 9)),  # the border cuts it
        (0.75, (0.9, 0.9), range(5, 8), range(7, 12)),
        (0.9999, (0.5, 0.5), (), ()),
        (0.0, (0.5, 0.5), range(8), range(12)),
    ],
)
def test_rectangle_of_cutmix_is_worked_out_by_hand(share, center, rows, columns):
    expected = np.zeros((8, 12), bool)
    expected[np.ix_(list(rows), list(columns))] = True
    found = RECTANGLE(np.float32(share), np.float32(center), 8, 12)
    np.testing.assert_array_equal(found, expected)


def test_mixup_weighs_all_pixels_alike_with_a_share_of_the_beta_distribution():
    shares, _ = _draws()
    assert (shares == shares[:, :1, :1]).all()
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); four standard errors of 2000 draws.
    assert shares[:, 0, 0].mean() == pytest.approx(0.5, abs=0.032)
    assert shares[:, 0, 0].var() == pytest.approx(1 / 8, abs=0.008)


def test_cutmix_cuts_rectangles_of_every_size_in_every_place():
    _, shares = _draws()
    assert (shares.mean(0) < 1).all()
    assert (shares.mean(0) > 0).all()
    rows, columns = (1 - shares).any(2), (1 - shares).any(1)
    np.testing.assert_array_equal(1 - shares, rows[:, :, None] & columns[:, None, :])
    assert {(a.sum(), b.sum()) for a, b in zip(rows, columns, strict=True)} >= {(0, 0), (4, 2)}


def test_one_of_both_is_drawn_evenly_for_a_step():
    assert len(_draws()[1]) / 4000 == pytest.approx(0.5, abs=0.032)


def test_images_are_weighed_by_their_shares():
    images, others = np.full((2, 2, 2, 1), 8.0), np.full((2, 2, 2, 1), 4.0)  # two images each
    shares = np.array([[1, 0], [0.25, 0.5]])[..., None]
    found = mixing.mix(images, others, shares)
    np.testing.assert_array_equal(found[1, ..., 0], [[8, 4], [5, 6]])
