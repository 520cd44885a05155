"""Batches: which images a step sees, how they reach the devices, and their augmentation there."""

import functools
from collections.abc import Callable, Iterator

import grain
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
