"""What a run tells: the analysis of alpha, metrics.jsonl, and the progress of a phase."""

import collections
import datetime
import io
import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
from scipy import stats

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NetSpec
from asose_jax.nn import operations
from asose_jax.runtime import workdir
from asose_jax.train.phases import Span

logger = logging.getLogger('asose_jax')

_WIDE = 100  # columns that the bar takes with all that it can show
_LONGEST = 99 * 24 * 3600  # seconds that are left, at most
_SECONDS_BETWEEN_LINES = 60  # of progress, where no bar can be drawn


def architecture_analysis(
    arch: Mapping[str, Any],
    spec: NetSpec,
    before: list[list[str]] | None = None,
    law: float | None = None,
) -> dict[str, Any]:
    """What alpha says at this moment (spec section 7).

    Args:
      arch: alpha tree; empty for a derived network, which is sure of every choice.
      spec: of the network.
      before: the genotype of the evaluation before, to compare with.
      law: the t of softmax(alpha / t), which draws follow; `None` where nothing is drawn.

    Returns:
      JSON values: `arch/entropy` (mean, nats) and `arch/entropies` (per row of alpha),
      `arch/draw_entropy` (that of the draws, mean, nats; `None` without them),
      `arch/confidence` (mean of the largest probabilities), `arch/skip_fraction`,
      `arch/none_fraction` and `arch/param_free_fraction` (of the operations that are used),
      `arch/counts` (per operation), `arch/probabilities` (the rows, to four digits),
      `arch/changed` (numbers of the blocks, or nodes of cells, whose choice changed), `genotype`.
    """
    rows = genotype.probabilities(spec, arch)
    chosen = genotype.most_likely(spec, arch)
    used = spec.used(chosen)

    def share(names):
        return sum(name in names for name in used) / max(1, len(used))

    entropies = _entropies(rows)
    drawn = None if law is None else _entropies(genotype.probabilities(spec, arch, law))
    pairs = [] if before is None else zip(chosen.to_json(), before, strict=True)
    return {
        'arch/entropy': float(np.mean(entropies)),
        'arch/entropies': entropies,
        'arch/draw_entropy': None if drawn is None else float(np.mean(drawn)),
        'arch/confidence': float(np.mean([row.max() for row in rows])),
        'arch/skip_fraction': share({'skip_connect'}),
        'arch/none_fraction': share({'none'}),
        'arch/param_free_fraction': share(operations.PARAMETER_FREE),
        'arch/counts': dict(collections.Counter(used)),
        'arch/probabilities': [np.round(row.astype(float), 4).tolist() for row in rows],
        'arch/changed': [i for i, (now, then) in enumerate(pairs) if now != then],
        'genotype': chosen.to_json(),
    }


def _entropies(rows):
    return [float(stats.entropy(row)) for row in rows]


def rounded(factors: list[list[list[Any]]]) -> list[list[list[float | None]]]:
    """Factors as JSON, to four digits; `None` where there is none, or one is not finite."""

    def digits(factor):
        return None if factor is None or not math.isfinite(factor) else round(float(factor), 4)

    return [[[digits(factor) for factor in row] for row in group] for group in factors]


class MetricsLog:
    """metrics.jsonl: one line per evaluation, in the order of steps.

    Args:
      path: of the file.
      step: of the checkpoint that the run goes on from. Later lines, and a half-written last one,
        are of work that will be done again, and are dropped.
      writes: whether this process is the one, of those on many hosts, that writes.
    """

    def __init__(self, path: pathlib.Path, step: int, writes: bool = True):
        self._path, self._writes = path, writes
        if writes and path.exists():
            lines = path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line, path) <= step]
            workdir.write_atomically(path, ''.join(kept))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line, and waits until the disk has it. NaN and Inf become null."""
        if not self._writes:
            return
        legal = {key: None if _is_odd(value) else value for key, value in metrics.items()}
        workdir.append(self._path, json.dumps(legal, allow_nan=False) + '\n')


def _step_of(line, path):
    """Of a line of metrics; that of a broken line is beyond all others."""
    try:
        return json.loads(line)['step'] if line.endswith('\n') else math.inf
    except (ValueError, KeyError, TypeError):
        logger.warning('%s: a line that cannot be read is left out: %.80s', path, line.strip())
        return math.inf


def _is_odd(value):
    return isinstance(value, float) and not math.isfinite(value)


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


def final_table(summary: Mapping[str, Any]) -> str:
    """What a run came to, as a table of at most 80 columns."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_footer=True)
    seconds = sum(row['seconds'] for row in summary['phases'])
    compiled = sum(row['compile_seconds'] for row in summary['phases'])
    table.add_column('phase', 'test')
    table.add_column('epochs', '', justify='right')
    table.add_column('first valid', '', justify='right')
    table.add_column('last valid', f'{summary["test_accuracy"]:.2%}', justify='right')
    table.add_column('seconds', f'{seconds:.1f}', justify='right')
    table.add_column('compiling', f'{compiled:.1f}', justify='right')
    for row in summary['phases']:
        accuracies = (row['valid_accuracy_first'], row['valid_accuracy_last'])
        shown = ['' if share is None else f'{share:.2%}' for share in accuracies]
        times = (f'{row["seconds"]:.1f}', f'{row["compile_seconds"]:.1f}')
        table.add_row(row['name'], str(row['epochs']), *shown, *times)
    page = io.StringIO()
    rich.console.Console(file=page, width=80, force_terminal=False).print(table)
    return '\n'.join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())
