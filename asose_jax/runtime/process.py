"""Setup of a process of this package: its log, its compilation cache and its exit."""

import logging
import multiprocessing
import os
import pathlib
import shlex
import sys
import threading
from typing import NoReturn

import jax
from absl import logging as absl_logging

from asose_jax.runtime import compilation_cache
from asose_jax.runtime.errors import UserError

DEFAULT_CACHE_DIR = pathlib.Path('~/.cache/asose_jax')
SPAWN_CONTEXT = multiprocessing.get_context('spawn')


def set_up(handler: logging.Handler, cache: pathlib.Path = DEFAULT_CACHE_DIR) -> logging.Logger:
    """Sets up the log and the compilation cache, and silences duplicate reports of libraries.

    Args:
      handler: writes the log of the package.
      cache: directory of compiled programs; JAX_COMPILATION_CACHE_DIR, if set, overrides it.

    Returns:
      The logger of the package.
    """
    sys.unraisablehook = _drop_late_orbax_errors
    threading.excepthook = _drop_orbax_thread_errors
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax and TFDS also raise what they log
    logger = logging.getLogger('asose_jax')
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    chosen = os.environ.get('JAX_COMPILATION_CACHE_DIR')
    if chosen is None or '://' not in chosen:  # JAX itself handles a bucket
        compilation_cache.install(pathlib.Path(chosen or cache))
    return logger


def require_platform() -> None:
    """Looks for the devices, which this process then claims.

    Raises:
      UserError: JAX_PLATFORMS names a platform that is not there, or no device can be used.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter of a plugin that is not installed
        reason = (str(error).splitlines() or [''])[0][:300] or 'it is not installed'
        asked = os.environ.get('JAX_PLATFORMS', '')
        if not asked:
            raise UserError(
                f'JAX can use no device here: {reason}. Correct or unset variables such as '
                'JAX_NUM_CPU_DEVICES, or choose a platform: JAX_PLATFORMS=cpu.'
            ) from error
        raise UserError(
            f'JAX_PLATFORMS={asked!r}: JAX cannot use this platform here: {reason}. Name another, '
            'such as JAX_PLATFORMS=cpu, or unset the variable.'
        ) from error


def require_32_bits() -> None:
    """Refuses to train where JAX computes in 64 bits: the state of a run has types of 32 bits.

    Raises:
      UserError: JAX_ENABLE_X64 is set, or the script has switched it on.
    """
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            'JAX computes in 64 bits here (JAX_ENABLE_X64=1, or jax_enable_x64 in the script), but '
            'runs are trained in 32 bits or less. Start with JAX_ENABLE_X64=0.'
        )


def exit_now(status: int) -> NoReturn:
    """Ends the process at once with exit status `status`, after flushing log and stdout.

    A thread that is still compiling would crash the normal shutdown of the interpreter.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _drop_late_orbax_errors(unraisable: 'sys.UnraisableHookArgs') -> None:
    """Ignores errors of reads that Orbax abandoned after another array could not be read."""
    message = str(unraisable.exc_value)
    if 'Event loop is closed' not in message and 'reading array index' not in message:
        sys.__unraisablehook__(unraisable)


def _drop_orbax_thread_errors(failed: threading.ExceptHookArgs) -> None:
    """Ignores errors in threads of Orbax, which raises them again in the thread that waits."""
    if not type(failed.thread).__module__.startswith('orbax'):
        threading.__excepthook__(failed)


def command() -> str:
    """Returns the command that started this process, to be copied into a shell."""
    is_script = sys.argv[0].endswith('.py')
    return shlex.join(['python', *sys.argv] if is_script else ['asose', *sys.argv[1:]])
