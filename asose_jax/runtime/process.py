"""A process of ours: what it has for itself, its log, its compilation cache, a clean end."""

import logging
import multiprocessing
import os
import pathlib
import sys
import threading
from typing import NoReturn, TextIO

from absl import logging as absl_logging

from asose_jax.runtime import compilation_cache

CACHE = pathlib.Path('~/.cache/asose_jax')
SPAWN = multiprocessing.get_context('spawn')


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
