"""Devices, or cores of a CPU, that the runs of a sweep share."""

import concurrent.futures
import dataclasses
import os

import jax

from asose_jax.runtime import process


@dataclasses.dataclass(frozen=True)
class Place:
    """What one process has for itself: environment variables, or a core of the CPU."""

    environment: dict[str, str]
    core: int | None = None


def places() -> list[Place]:
    """One for each device of this machine. A process of its own looks, since looking claims them.

    On a CPU, each run has a core. Searches are not vmapped: a switch under vmap computes all of its
    branches, and two seeds took six times as long as one after another (nasbench201_small).
    """
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=process.SPAWN) as pool:
        platform, chips = pool.submit(_devices).result()
    if platform == 'cpu' and hasattr(os, 'sched_getaffinity'):
        return [Place({}, core) for core in sorted(os.sched_getaffinity(0))]
    if platform == 'cpu':  # not Linux: one run at a time, on all cores
        return [Place({})]
    if platform == 'tpu':
        alone = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
        return [Place({**alone, 'TPU_VISIBLE_CHIPS': str(chip)}) for chip in range(chips)]
    known = os.environ.get('CUDA_VISIBLE_DEVICES')
    numbers = known.split(',') if known else [str(chip) for chip in range(chips)]
    return [Place({'CUDA_VISIBLE_DEVICES': number}) for number in numbers]


def _devices():
    """The platform, and how many chips of it there are; a chip may count as two devices."""
    found = jax.local_devices()
    chips = {tuple(getattr(device, 'coords', (device.id,))) for device in found}
    return found[0].platform, len(chips)
