"""Devices, or CPU cores, that the runs of a sweep share."""

import concurrent.futures
import concurrent.futures.process
import dataclasses
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from asose_jax.runtime import process
from asose_jax.runtime.errors import UserError

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Slot:
    """The share of the machine that one process uses alone.

    Attributes:
      environment: environment variables that make one device visible; empty on a CPU.
      core: the CPU core to run on; `None` means all of them.
    """

    environment: dict[str, str]
    core: int | None = None


def available_slots() -> list[Slot]:
    """Returns one place for each device of this machine, or for each core if it has only a CPU.

    Raises:
      UserError: no process can be started, or JAX can use no device.

    Searches share a machine as processes and not by `jax.vmap`: a switch under vmap computes all of
    its branches, and two seeds took six times as long as one after another (nasbench201_small).
    """
    platform, chips = in_child(_devices)
    if platform == 'cpu' and hasattr(os, 'sched_getaffinity'):
        return [Slot({}, core) for core in sorted(os.sched_getaffinity(0))]
    if platform == 'cpu':  # other systems than Linux cannot pin: one run at a time, on all cores
        return [Slot({})]
    if platform == 'tpu':
        alone = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
        return [Slot({**alone, 'TPU_VISIBLE_CHIPS': str(chip)}) for chip in range(chips)]
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    numbers = visible.split(',') if visible else [str(chip) for chip in range(chips)]
    return [Slot({'CUDA_VISIBLE_DEVICES': number}) for number in numbers]


def in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function that uses a device in a process of its own, and returns its result.

    A process that looks at the devices claims them until it ends.

    Raises:
      UserError: no process can be started, or the function raised it.
    """
    try:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=process.SPAWN_CONTEXT) as pool:
            return pool.submit(function, *arguments).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            'the process that looks for the devices ended at once. Each search is a process of its '
            'own, which imports the script that started it: the script has to be a file, and the '
            "call of asose_jax.search in it has to stand under if __name__ == '__main__':"
        ) from error


def _devices() -> tuple[str, int]:
    """Returns the platform and its number of chips; one TPU chip may count as two devices."""
    process.require_platform()
    devices = jax.local_devices()
    chips = {tuple(getattr(device, 'coords', (device.id,))) for device in devices}
    return devices[0].platform, len(chips)
