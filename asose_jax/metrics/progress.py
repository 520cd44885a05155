"""Shows progress: a bar in a terminal or a notebook, a log line once a minute elsewhere."""

import contextlib
import datetime
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import rich.console
import rich.progress

from asose_jax.train.phases import Span

logger = logging.getLogger('asose_jax')

_FULL_WIDTH = 100  # columns; a narrower terminal shows no loss beside the bar
_MAX_ETA_SECONDS = 99 * 24 * 3600  # keeps the width of the remaining time bounded
_SECONDS_BETWEEN_LINES = 60  # where no bar can be drawn
_SECONDS_BETWEEN_DRAWINGS = 0.5  # in a notebook


def can_draw(console: rich.console.Console) -> bool:
    """Returns whether a bar can be drawn on the console."""
    return console.is_terminal or console.is_jupyter


@contextlib.contextmanager
def drawn(bar: rich.progress.Progress) -> Iterator[Callable[[], None]]:
    """Draws a bar on its console while the context lasts; it stays in its last state.

    Rich itself draws in a notebook only with ipywidgets, and what it draws is lost when the
    notebook is saved. An output that is updated needs no widgets and stays.

    Yields:
      A function to call after each update.
    """
    if not bar.console.is_jupyter:
        with bar:
            yield lambda: None  # a thread of rich redraws it
        return
    from IPython import display  # imported here: it is there in a notebook

    output = display.display(bar, display_id=True)
    assert output is not None
    last = time.monotonic()

    def redraw() -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_DRAWINGS:
            output.update(bar)
            last = time.monotonic()

    try:
        yield redraw
    finally:
        output.update(bar)


class Progress:
    """Shows the progress of one phase; a context manager.

    Example:
      with Progress(console, span, first=0, batch_size=128) as progress:
        seconds = progress.update(step, metrics)

    Args:
      console: where to draw.
      span: the phase.
      first: step that this process starts from, in `span.start..span.stop`.
      batch_size: images per step.

    Attributes:
      steps_per_second: mean since `first`, as of the last update.
    """

    def __init__(
        self, console: rich.console.Console, span: Span, first: int, batch_size: int
    ) -> None:
        """Prepares the bar, if `console` can have one; entering the context draws it."""
        self._span, self._first, self._batch_size = span, first, batch_size
        self._busy_seconds = 0.0  # since `first`
        self.steps_per_second = 0.0
        self._last_update = self._last_line = time.monotonic()
        self._valid = ''
        self._bar: rich.progress.Progress | None = None
        self._drawing = contextlib.ExitStack()
        self._redraw: Callable[[], None] = lambda: None
        self._narrow = console.width < _FULL_WIDTH
        if can_draw(console):
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn('{task.description}'),
                rich.progress.BarColumn(bar_width=10),
                rich.progress.TextColumn('{task.fields[figures]}'),
                console=console,
            )
            total, done = span.stop - span.start, first - span.start
            self._task = self._bar.add_task(span.phase, total=total, completed=done, figures='')

    def __enter__(self) -> 'Progress':
        """Draws the bar, if there is one."""
        if self._bar:
            self._redraw = self._drawing.enter_context(drawn(self._bar))
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar in its last state and gives the terminal back."""
        self._drawing.close()

    @property
    def images_per_second(self) -> float:
        """Returns the mean since this process entered the phase, evaluations and saves included."""
        return self.steps_per_second * self._batch_size

    def update(self, step: int, metrics: Mapping[str, Any]) -> float:
        """Shows that the steps before `step` are done.

        Args:
          step: number of steps of the run that are done.
          metrics: training metrics: `train/loss`, `train/accuracy`, `tau` (or `None`).

        Returns:
          Seconds since the last update or `resume`.
        """
        now = time.monotonic()
        seconds, self._last_update = now - self._last_update, now
        self._busy_seconds += seconds
        self.steps_per_second = (step - self._first) / max(self._busy_seconds, 1e-9)
        figures = self._figures(step, metrics, brief=bool(self._bar) and self._narrow)
        if self._bar:
            done = step - self._span.start
            self._bar.update(self._task, completed=done, figures=figures)
            self._redraw()
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            logger.info('%s %s', self._span.phase, figures)
            self._last_line = now
        return seconds

    def resume(self) -> None:
        """Restarts the clock, so that the time since the last update does not count as training.

        Call it after the host has grown the network or measured the curvature.
        """
        self._last_update = self._last_line = time.monotonic()

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs the result of an evaluation, as a line that stays.

        Args:
          step: number of steps of the run that are done.
          metrics: as in `update`, with `valid/accuracy` (or `None`) and `arch/entropy`.
        """
        valid = metrics['valid/accuracy']
        self._valid = '' if valid is None else f' valid {valid:.1%}'
        entropy = f' entropy {metrics["arch/entropy"]:.3f}' if metrics['arch/entropy'] else ''
        logger.info('%s %s%s', self._span.phase, self._figures(step, metrics), entropy)
        self._last_line = time.monotonic()

    def _figures(self, step: int, metrics: Mapping[str, Any], brief: bool = False) -> str:
        """Formats epoch, metrics, speed and remaining time; `brief` leaves out the loss."""
        loss = '' if brief else f'loss {metrics["train/loss"]:.3f} '
        tau = '' if metrics['tau'] is None else f' tau {metrics["tau"]:.2f}'
        rate = self.images_per_second
        remaining = round((self._span.stop - step) * self._batch_size / max(rate, 1e-9))
        remaining = min(remaining, _MAX_ETA_SECONDS)
        return (
            f'{self._span.epoch_at(step)}/{self._span.epochs} {loss}'
            f'train {metrics["train/accuracy"]:.1%}{self._valid}{tau} {rate:.0f} images/s '
            f'ETA {datetime.timedelta(seconds=remaining)}'
        )
