"""Which images a step sees: a function of seed and step, the same on one device and on many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asose_jax.data import augment, batches
from asose_jax.data.augment import Augmentation
from asose_jax.data.dataset import ImageSet

POOL = np.arange(100, 123)
_augment = jax.jit(augment.augment, static_argnums=3)


def test_each_pass_of_the_stream_is_a_permutation_of_the_pool():
    stream = np.concatenate([batches.batch_indices(POOL, 0, 0, k, 5) for k in range(23)])
    passes = stream.reshape(5, 23)
    for one in passes:
        np.testing.assert_array_equal(np.sort(one), POOL)
    assert not (passes[0] == passes[1]).all()


def test_batch_larger_than_the_pool_goes_round():
    batch = batches.batch_indices(POOL, 0, 0, 3, 64)
    assert len(batch) == 64
    assert set(batch) == set(POOL)


def test_streams_and_seeds_are_told_apart():
    first = batches.batch_indices(POOL, 0, 0, 0, 23)
    batches._shuffled.cache_clear()  # as in a new process
    assert (first == batches.batch_indices(POOL, 0, 0, 0, 23)).all()
    assert (first != batches.batch_indices(POOL, 0, 1, 0, 23)).any()
    assert (first != batches.batch_indices(POOL, 1, 0, 0, 23)).any()


def test_streamed_and_resident_sets_give_the_same_images():
    images = np.arange(30 * 4).reshape(30, 2, 2, 1).astype(np.uint8)
    resident = ImageSet.from_arrays(images, np.arange(30, dtype=np.int32))
    streamed = ImageSet(30, resident.read)

    def indices_at(step):
        return batches.batch_indices(np.arange(30), 7, 0, step, 4)

    indexed = list(batches.batch_stream(resident, indices_at, 3, 20))
    read = list(batches.batch_stream(streamed, indices_at, 3, 20))
    assert len(indexed) == len(read) == 17
    for one, other in zip(indexed, read, strict=True):
        np.testing.assert_array_equal(images[one['index']], other['image'])
        np.testing.assert_array_equal(one['index'], other['label'])


@pytest.mark.parametrize('devices', [1, 2, 4])
def test_chunk_cuts_the_global_batch_in_order_and_fills_unused_slots(devices):
    steps = [{'index': np.arange(8, dtype=np.int32) + 10 * s} for s in range(3)]
    chunk = batches.stack_batches(steps, 5, devices)
    assert chunk['index'].shape == (devices, 5, 8 // devices)
    assert (chunk['steps'] == 3).all()
    for s in range(3):
        np.testing.assert_array_equal(chunk['index'][:, s].reshape(-1), steps[s]['index'])
    assert (chunk['index'][:, 3:] == 0).all()


def test_chunk_holds_batches_that_are_only_looked_at():
    steps = [{'index': np.full(4, s, np.int32)} for s in range(3)]
    chunk = batches.stack_batches(steps, 5, 2, ahead=1)
    assert (chunk['steps'] == 2).all()
    assert chunk['index'].shape == (2, 5, 2)
    assert (chunk['index'][:, 2] == 2).all()


def test_augmentation_depends_on_the_place_in_the_global_batch_only():
    images = jax.random.normal(jax.random.key(0), (8, 6, 6, 2))
    both = Augmentation(2, True, cutout=3)
    whole = _augment(images, jax.random.key(1), jnp.arange(8), both)
    half = _augment(images[4:], jax.random.key(1), jnp.arange(4, 8), both)
    np.testing.assert_array_equal(whole[4:], half)


def test_augmentation_crops_the_padded_image_and_flips():
    image = np.arange(1.0, 17.0).reshape(4, 4)
    images = jnp.broadcast_to(jnp.array(image).reshape(1, 4, 4, 1), (400, 4, 4, 1))
    padded = np.pad(image, 1)
    crops = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    for flip, expected in ((False, crops), (True, crops + [crop[:, ::-1] for crop in crops])):
        how = Augmentation(1, flip, 0)
        seen = _augment(images, jax.random.key(0), jnp.arange(400), how)[..., 0]
        kinds = {np.asarray(one).tobytes() for one in seen}
        assert kinds == {np.ascontiguousarray(e, np.float32).tobytes() for e in expected}


@pytest.mark.parametrize('side', [1, 2, 3, 12])
def test_cutout_zeroes_a_square_around_any_pixel(side):
    images = jnp.ones((600, 5, 4, 1))
    seen = _augment(images, jax.random.key(0), jnp.arange(600), Augmentation(0, False, side))[
        ..., 0
    ]
    expected = set()
    for row in range(5):
        for column in range(4):
            hole = np.ones((5, 4), np.float32)
            top, left = row - side // 2, column - side // 2
            hole[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
            expected.add(hole.tobytes())
    assert {np.asarray(one).tobytes() for one in seen} == expected


@pytest.mark.parametrize(('cutout', 'left'), [(13, True), (14, True), (15, False), (16, False)])
def test_cutout_of_twice_an_image_leaves_nothing_of_any(cutout, left):
    """The least size that a run warns of."""
    images = jnp.ones((256, 8, 8, 1))
    cut = _augment(images, jax.random.key(0), jnp.arange(256), Augmentation(0, False, cutout))
    assert bool(cut.any()) == left


def test_no_augmentation_leaves_images_alone():
    images = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))
    same = _augment(images, jax.random.key(1), jnp.arange(2), Augmentation(0, False, 0))
    np.testing.assert_array_equal(same, images)
