"""SIGTERM and Ctrl-C: a run that is asked to stop saves first, and ends in good order."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from asose_jax.runtime.errors import Stopped

logger = logging.getLogger('asose_jax')

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """While this context lasts, SIGTERM and SIGINT ask the run to stop.

    Inside of `held()` they only set `requested`; outside there is nothing to save, and `Stopped` is
    raised at once. A second signal ends the process as if there were no such context. Outside of
    the main thread, which alone hears signals, the context does nothing.

    Python drops what is raised in a callback, such as jax's of the garbage collector, once it was
    told to `sys.unraisablehook`. A `Stopped` that was dropped is raised anew.

    Args:
      at_once: False where several hosts have to agree: then signals only ever set `requested`.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.requested = False
        self._at_once = at_once
        self._held = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> 'Interrupt':
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
            self._tell_dropped, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            sys.unraisablehook = self._tell_dropped

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What happens in here is not to be broken off."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = True
        self._number, name = number, signal.Signals(number).name
        if self._at_once and not self._held:
            raise Stopped(f'stopped by {name}')
        logger.info('%s: stopping as soon as the state is saved; once more stops at once', name)

    def _dropped(self, unraisable: 'sys.UnraisableHookArgs') -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            self._tell_dropped(unraisable)
            return
        self.requested = False
        again = (threading.main_thread().ident, self._number)
        threading.Timer(0.01, signal.pthread_kill, again).start()  # when the callback is over
