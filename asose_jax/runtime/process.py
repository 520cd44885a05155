"""A process of ours: what it has for itself, its log, its compilation cache, a clean end."""

import concurrent.futures
import dataclasses
import logging
import multiprocessing
import os
import pathlib
import sys
import threading
from typing import NoReturn, TextIO

import jax
from absl import logging as absl_logging

from asose_jax.runtime import compilation_cache

CACHE = pathlib.Path('~/.cache/asose_jax')
SPAWN = multiprocessing.get_context('spawn')


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
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
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


def prepare(handler: logging.Handler, cache: pathlib.Path = CACHE) -> logging.Logger:
    """Sets up log and compilation cache, and silences what libraries say twice.

    Args:
      handler: where the log goes.
      cache: of compiled programs, unless JAX_COMPILATION_CACHE_DIR says where.

    Returns:
      The logger of the package.
    """
    sys.unraisablehook = _drop_echoes
    threading.excepthook = _drop_second_tellings
    absl_logging.set_verbosity(absl_logging.FATAL)  # of Orbax and TFDS: what they log, they raise
    logger = logging.getLogger('asose_jax')
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    named = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    if named is None or '://' not in named:  # in a bucket: JAX's own way
        compilation_cache.install(pathlib.Path(named or cache).expanduser())
    return logger


def plain_handler(stream: TextIO | None = None) -> logging.Handler:
    """Lines with their time, to `stream` or stderr."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    return handler


def leave(status: int) -> NoReturn:
    """Ends the process. A thread that is compiling would crash the usual way out."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _drop_echoes(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Where one array cannot be read, Orbax abandons its other reads; these complain late."""
    told = str(unraisable.exc_value)
    if 'Event loop is closed' not in told and 'reading array index' not in told:
        sys.__unraisablehook__(unraisable)


def _drop_second_tellings(failed: threading.ExceptHookArgs) -> None:
    """What goes wrong in a thread of Orbax's is raised again where it is waited for."""
    if not type(failed.thread).__module__.startswith('orbax'):
        threading.__excepthook__(failed)
