"""Batches: which images a step sees, how they reach the devices, and their augmentation there."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.data.image_set import ImageSet


@functools.lru_cache(maxsize=8)
def _shuffled(seed, tag, epoch, size):
    return np.random.default_rng([seed, tag, epoch]).permutation(size)


def batch_indices(
    pool: np.ndarray, seed: int, tag: int, number: int, batch_size: int
) -> np.ndarray:
    """Batch `number` of an endless stream that shuffles `pool` anew for each pass.

    A pure function: any batch can be had without those before it, so a restart needs no data state.

    Args:
      pool: indices to draw from.
      seed: of the run.
      tag: tells streams of one run apart.
      number: of the batch, from 0.
      batch_size: indices per batch.

    Returns:
      `[batch_size]` elements of `pool`.
    """
    positions = np.arange(number * batch_size, (number + 1) * batch_size)
    passes, places = np.divmod(positions, len(pool))
    orders = {int(p): _shuffled(seed, tag, int(p), len(pool)) for p in np.unique(passes)}
    picks = [orders[int(p)][place] for p, place in zip(passes, places, strict=True)]
    return pool[picks]


def stream(
    images: ImageSet, indices_at: Callable[[int], np.ndarray], start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
    """One batch per step from `start` to `stop`: indices of a resident set, images of any other.

    Images are read ahead by grain's threads, in order.
    """
    if images.arrays is not None:
        for step in range(start, stop):
            yield {'index': indices_at(step).astype(np.int32)}
        return

    def read(step):
        pixels, labels = images.read(indices_at(step))
        return {'image': pixels, 'label': labels}

    yield from (
        grain.MapDataset.range(start, stop)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=16))
    )


def chunk(
    batches: list[dict[str, np.ndarray]], slots: int, devices: int, ahead: int = 0
) -> dict[str, np.ndarray]:
    """Stacks up to `slots` batches for one compiled call.

    Args:
      batches: of consecutive steps, each `[B, ...]`.
      slots: the fixed number of batches that the call has room for.
      devices: D, a divisor of B.
      ahead: how many of the last batches belong to steps after the call, which only looks at them.

    Returns:
      Arrays `[D, slots, B/D, ...]`, unused slots zero, and `steps` `[D]`: how many to run.
    """
    result = {'steps': np.full(devices, len(batches) - ahead, np.int32)}
    for key in batches[0]:
        used = np.stack([batch[key] for batch in batches])
        n, size = used.shape[:2]
        padded = np.zeros((slots, *used.shape[1:]), used.dtype)
        padded[:n] = used
        split = padded.reshape(slots, devices, size // devices, *used.shape[2:])
        result[key] = np.ascontiguousarray(split.swapaxes(0, 1))
    return result


class Augmentation(NamedTuple):
    """What is done to training images.

    Attributes:
      padding: pixels on each side, of which a random crop is taken; 0 crops nothing.
      flip: whether half of them are turned left to right.
      cutout: side of a square of zeros around a random pixel (arXiv:1708.04552); 0: none.
    """

    padding: int
    flip: bool
    cutout: int = 0


def augment(
    images: jax.Array, key: jax.Array, positions: jax.Array, how: Augmentation
) -> jax.Array:
    """Random crop of the zero-padded image, random left-right flip, cutout.

    The noise of an image depends on its position in the *global* batch, so that one device and many
    see the same images.

    Args:
      images: normalised, `[B, H, W, C]`.
      key: of the step.
      positions: of the images in the global batch, `[B]` int32.
      how: see there.

    Returns:
      `[B, H, W, C]`.
    """
    padding, flip, cutout = how
    if not padding and not flip and not cutout:
        return images
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def one(image, position):
        noise = jax.random.uniform(jax.random.fold_in(key, position), (5 if cutout else 3,))
        top, left = (noise[:2] * (2 * padding + 1)).astype(jnp.int32)
        rows, columns = top + jnp.arange(height), left + jnp.arange(width)
        if flip:
            columns = jnp.where(noise[2] < 0.5, columns[::-1], columns)
        image = image[rows][:, columns]
        if cutout:
            # From cutout // 2 pixels before the middle; borders may cut the square.
            below, right = (
                jnp.arange(size) - jnp.floor(size * u).astype(jnp.int32) + cutout // 2
                for size, u in zip((height, width), noise[3:], strict=True)
            )
            inside = [(away >= 0) & (away < cutout) for away in (below, right)]
            hole = inside[0][:, None, None] & inside[1][None, :, None]
            image = jnp.where(hole, 0, image)
        return image

    return jax.vmap(one)(padded, positions)
