"""SIGTERM, SIGHUP and Ctrl-C: a run that receives one saves its state before it ends."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from asose_jax.runtime.errors import Stopped

logger = logging.getLogger('asose_jax')

# SIGHUP comes when the terminal is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupt:
    """Turns these signals into a request to stop, for as long as this context is active.

    Inside `held()` a signal only sets `requested`, so that the caller can save first. Outside there
    is nothing to save, and `Stopped` is raised at once. A second signal ends the process as if this
    context did not exist. In any thread but the main one, which alone receives signals, the context
    does nothing. Under nohup, SIGHUP stays ignored.

    Python reports an exception that is raised in a callback, such as jax's callback of the garbage
    collector, to `sys.unraisablehook` and then drops it. A `Stopped` lost that way is raised again.

    Example:
      with Interrupt() as interrupt, interrupt.held():
          while not interrupt.requested:
              train_one_chunk()
          save()

    Args:
      at_once: `False` where several hosts must agree on the step to stop at; a signal then only
        ever sets `requested`.

    Attributes:
      requested: whether a signal has arrived.
    """

    def __init__(self, at_once: bool = True) -> None:
        """Installs nothing yet; see the class for the arguments."""
        self.requested = False
        self._at_once = at_once
        self._held = False
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._previous_hook: Callable[[sys.UnraisableHookArgs], Any] = sys.unraisablehook
        self._number = signal.SIGTERM
        self._terminals: list[int] = []  # the descriptors of stdout and stderr that are one

    def __enter__(self) -> 'Interrupt':
        """Installs the signal handlers, in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._on_signal)
                for number in _SIGNALS
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
            }
            self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            self._terminals = [number for number in (1, 2) if os.isatty(number)]
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._previous_handlers:
            sys.unraisablehook = self._previous_hook

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps signals from interrupting the body; they only set `requested`."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = True
        self._number = signal.Signals(number)
        self._drop_closed_terminals()
        if self._at_once and not self._held:
            raise Stopped(f'stopped by {self._number.name}')
        logger.info(
            '%s: stopping as soon as the state is saved; send it again to stop at once',
            self._number.name,
        )

    def _drop_closed_terminals(self) -> None:
        """Sends what is written to a closed terminal nowhere; each line would raise an error."""
        for descriptor in self._terminals:
            if not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

    def _on_unraisable(self, unraisable: 'sys.UnraisableHookArgs') -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            self._previous_hook(unraisable)
            return
        self.requested = False
        # The signal is sent again a moment later, when the callback has returned.
        again = (threading.main_thread().ident, self._number)
        threading.Timer(0.01, signal.pthread_kill, again).start()
