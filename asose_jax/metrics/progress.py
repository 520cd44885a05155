"""The progress of one phase: a bar in a terminal, a line now and then elsewhere."""

import datetime
import logging
import time
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table

from asose_jax.train.phases import Span

logger = logging.getLogger('asose_jax')


_WIDE = 100  # columns that the bar takes with all that it can show


_LONGEST = 99 * 24 * 3600  # seconds that are left, at most


_SECONDS_BETWEEN_LINES = 60  # of progress, where no bar can be drawn


class Progress:
    """One phase on the screen: a bar in a terminal, a line now and then elsewhere.

    Args:
      console: where to draw.
      span: the phase.
      first: step to begin from.
      batch_size: images per step.
    """

    def __init__(self, console: rich.console.Console, span: Span, first: int, batch_size: int):
        self._span, self._first, self._batch_size = span, first, batch_size
        self._busy = 0.0  # seconds since `first`
        self.steps_per_second = 0.0  # since `first`, as of the last update
        self._clock = self._last_line = time.monotonic()
        self._valid = ''
        self._bar = None
        self._narrow = console.width < _WIDE
        if console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn('{task.description}'),
                rich.progress.BarColumn(bar_width=10),
                rich.progress.TextColumn('{task.fields[figures]}'),
                console=console,
            )
            total, done = span.stop - span.start, first - span.start
            self._task = self._bar.add_task(span.phase, total=total, completed=done, figures='')

    def __enter__(self) -> 'Progress':
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def images_per_second(self) -> float:
        """Since this process entered the phase, evaluations and checkpoints included."""
        return self.steps_per_second * self._batch_size

    def update(self, step: int, metrics: Mapping[str, Any]) -> float:
        """Shows that the steps up to `step` are done; returns the seconds since the last update."""
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self._busy += seconds
        self.steps_per_second = (step - self._first) / max(self._busy, 1e-9)
        figures = self._figures(step, metrics, brief=bool(self._bar) and self._narrow)
        if self._bar:
            done = step - self._span.start
            self._bar.update(self._task, completed=done, figures=figures)
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            logger.info('%s %s', self._span.phase, figures)
            self._last_line = now
        return seconds

    def resume(self) -> None:
        """What happened since the last update does not count: the host had something to decide."""
        self._clock = time.monotonic()

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the result of an evaluation, as a line that stays."""
        self._valid = f' valid {metrics["valid/accuracy"]:.1%}'
        entropy = f' entropy {metrics["arch/entropy"]:.3f}' if metrics['arch/entropy'] else ''
        logger.info('%s %s%s', self._span.phase, self._figures(step, metrics), entropy)
        self._last_line = time.monotonic()

    def _figures(self, step, metrics, brief=False):
        loss = '' if brief else f'loss {metrics["train/loss"]:.3f} '
        tau = '' if metrics['tau'] is None else f' tau {metrics["tau"]:.2f}'
        rate = self.images_per_second
        left = min(round((self._span.stop - step) * self._batch_size / max(rate, 1e-9)), _LONGEST)
        return (
            f'{self._span.epoch_at(step)}/{self._span.epochs} {loss}'
            f'train {metrics["train/accuracy"]:.1%}{self._valid}{tau} {rate:.0f} images/s '
            f'ETA {datetime.timedelta(seconds=left)}'
        )
