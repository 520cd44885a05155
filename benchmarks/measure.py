"""Interleaved timing, and what is done with it: a table, a JSON file, a picture.

Machines are shared and noisy, so nothing here is to be read as seconds: contestants take turns, and
what is told is the ratio of their medians, with the quartiles of the ratios of single rounds.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

DOCS = pathlib.Path(__file__).parent.parent / 'docs' / 'performance'


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast as another: of the medians, and quartiles over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.median:.2f} ({self.low:.2f}-{self.high:.2f})'


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all benchmarks share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument('--repeats', type=int, default=5, help='rounds')
    made.add_argument('--threads', type=int, default=2, help='cores for every contestant')
    made.add_argument('--out', type=pathlib.Path, default=DOCS, help='for JSON and PNG')
    return made


def pin(threads: int) -> None:
    """Leaves this process as many cores. Call it before jax or torch is imported."""
    if 'jax' in sys.modules or 'torch' in sys.modules:
        raise RuntimeError('threads are started already: call pin() before jax is imported')
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])


def interleaved(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call in every round, after one round that does not count."""
    taken = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                taken[name].append(1000 * (time.perf_counter() - start))
    return taken


def ratio(theirs: list[float], ours: list[float]) -> Ratio:
    """How many times as fast ours is as theirs, round by round."""
    single = sorted(t / o for t, o in zip(theirs, ours, strict=True))
    low, _, high = statistics.quantiles(single, n=4) if len(single) > 1 else single * 3
    return Ratio(statistics.median(theirs) / statistics.median(ours), low, high)


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    info = pathlib.Path('/proc/cpuinfo')
    text = info.read_text() if info.exists() else ''
    models = [line.split(':')[1].strip() for line in text.splitlines() if 'model name' in line]
    versions = {}
    for package in ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch'):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    allocator = {
        k: v for k, v in os.environ.items() if k.startswith('MALLOC_') or k == 'LD_PRELOAD'
    }
    return {
        'command': shlex.join(['python', '-m', f'benchmarks.{_name()}', *sys.argv[1:]]),
        'date': datetime.date.today().isoformat(),
        'cpu': models[0] if models else platform.processor(),
        'cores': len(os.sched_getaffinity(0)),
        'python': platform.python_version(),
        'versions': versions,
        'allocator': allocator,
    }


def _name():
    return pathlib.Path(sys.argv[0]).stem


def show(header: list[str], rows: list[list[Any]]) -> None:
    """Prints an aligned table; numbers with three digits."""

    def text(cell):
        return f'{cell:.3g}' if isinstance(cell, float) else str(cell)

    table = [header, *[[text(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print('  '.join(cells), flush=True)


def write(out: pathlib.Path, name: str, content: dict[str, Any]) -> None:
    """Writes `name`.json with the machine beside the content."""
    out.mkdir(parents=True, exist_ok=True)
    plain = json.dumps({**machine(), **content}, indent=1, default=dataclasses.asdict)
    (out / f'{name}.json').write_text(plain + '\n')


def bars(
    out: pathlib.Path, name: str, title: str, groups: dict[str, dict[str, float]], unit: str
) -> None:
    """Draws `name`.png: one group of bars for each row, one bar for each contestant."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    contestants = list(dict.fromkeys(key for group in groups.values() for key in group))
    figure, axes = plt.subplots(figsize=(1.5 + 1.3 * len(groups), 4), layout='constrained')
    width = 0.8 / len(contestants)
    for i, contestant in enumerate(contestants):
        places = [n + i * width for n in range(len(groups))]
        axes.bar(places, [g.get(contestant, 0) for g in groups.values()], width, label=contestant)
    axes.set_xticks([n + 0.4 - width / 2 for n in range(len(groups))], list(groups))
    axes.tick_params(axis='x', rotation=20)
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.legend()
    figure.savefig(out / f'{name}.png', dpi=110)
