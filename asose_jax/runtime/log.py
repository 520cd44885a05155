"""The log of the package: who shows it, and how."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

import rich.console
import rich.logging

from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')


@contextlib.contextmanager
def shown(console: rich.console.Console | None = None) -> Iterator[rich.console.Console]:
    """Shows the log while the context lasts, unless the caller's program has set up logging.

    It has, if the logger `asose_jax` has a level or a handler, or if the root logger has a handler.
    In a notebook, a root logger that lets no INFO pass does not count, since Colab sets it up
    before any cell runs. Afterwards everything is as before.

    Args:
      console: where a progress bar may be drawn; `None` means stderr, or the notebook.

    Yields:
      That console. Lines and bar do not break each other on it.
    """
    if console is not None and not isinstance(console, rich.console.Console):
        raise UserError(f'console={console!r} is no rich.console.Console. Leave it out.')
    console = console or rich.console.Console(stderr=True)
    with root_unchanged():
        if _is_set_up(console.is_jupyter):
            yield console
            return
        in_notebook = console.is_jupyter  # where stderr has a red background
        handler = plain_handler(sys.stdout) if in_notebook else handler_for(console)
        level, propagate = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield console
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def _is_set_up(in_notebook: bool) -> bool:
    if logger.handlers or logger.level != logging.NOTSET:
        return True
    return logger.hasHandlers() and (not in_notebook or logger.isEnabledFor(logging.INFO))


@contextlib.contextmanager
def root_unchanged() -> Iterator[None]:
    """Removes handlers that libraries add to the root logger in the body.

    The first message of absl calls `logging.basicConfig()`, and Orbax sends one when it is
    imported. `logging.basicConfig` of the caller's program would have no effect after that.
    """
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in logging.root.handlers[:]:
            if handler not in before:
                logging.root.removeHandler(handler)


def handler_for(console: rich.console.Console) -> logging.Handler:
    """Returns the handler of the log; in a terminal it keeps the progress bar intact."""
    if console.is_terminal:
        return rich.logging.RichHandler(
            console=console, show_path=False, show_level=False, log_time_format='%H:%M:%S'
        )
    return plain_handler()


def plain_handler(stream: TextIO | None = None) -> logging.Handler:
    """Returns a handler that writes lines with a time stamp, to stderr without a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    return handler
