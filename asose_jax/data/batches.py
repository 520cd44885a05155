"""Batches of the training stream: their indices, their images, and their layout for a call."""

import functools
from collections.abc import Callable, Iterator

import grain
import numpy as np

from asose_jax.data.image_set import ImageSet


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, tag: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, tag, epoch]).permutation(size)


def batch_indices(
    pool: np.ndarray, seed: int, tag: int, number: int, batch_size: int
) -> np.ndarray:
    """Returns batch `number` of an endless stream that shuffles `pool` anew in every pass.

    This is a pure function: any batch can be computed without the ones before it, so a resumed run
    needs no saved state of the data.

    Args:
      pool: indices to draw from, `[N]`.
      seed: seed of the run.
      tag: distinguishes the streams of one run.
      number: number of the batch, from 0.
      batch_size: indices per batch.

    Returns:
      `[batch_size]` elements of `pool`. A batch at the end of a pass goes on into the next pass.
    """
    positions = np.arange(number * batch_size, (number + 1) * batch_size)
    passes, offsets = np.divmod(positions, len(pool))
    orders = {int(p): _shuffled(seed, tag, int(p), len(pool)) for p in np.unique(passes)}
    picks = [orders[int(p)][offset] for p, offset in zip(passes, offsets, strict=True)]
    return pool[picks]


def batch_stream(
    images: ImageSet, indices_at: Callable[[int], np.ndarray], start: int, stop: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields one batch per step, in order, from step `start` up to but excluding `stop`.

    Threads of grain read the images of a streamed set ahead of time.

    Args:
      images: the set to read from.
      indices_at: maps a step to the indices of its batch, `[B]`.
      start: first step.
      stop: step after the last one.

    Yields:
      For a set held in memory, `{'index': [B] int32}`, since its images are on the device already.
      For any other set, `{'image': [B, H, W, C] uint8, 'label': [B] int32}`.
    """
    if images.arrays is not None:
        for step in range(start, stop):
            yield {'index': indices_at(step).astype(np.int32)}
        return

    def read(step: int) -> dict[str, np.ndarray]:
        pixels, labels = images.read(indices_at(step))
        return {'image': pixels, 'label': labels}

    yield from (
        grain.MapDataset.range(start, stop)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=16))
    )


def stack_batches(
    batches: list[dict[str, np.ndarray]], slots: int, devices: int, ahead: int = 0
) -> dict[str, np.ndarray]:
    """Stacks up to `slots` batches into the arrays of one compiled call.

    Args:
      batches: batches of consecutive steps, at least one, each `[B, ...]` per key.
      slots: number of batches that the call has space for; fixed when it is compiled.
      devices: number D of devices, a divisor of B.
      ahead: how many of the last batches belong to steps after this call, which reads them but runs
        no step on them.

    Returns:
      Arrays `[D, slots, B/D, ...]` per key, with zeros in unused slots, and `steps`, int32 `[D]`:
      how many steps to run.
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
