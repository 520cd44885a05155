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
import tempfile
import time
from collections.abc import Callable
from typing import Any

from asose_jax.runtime import malloc

_PLACES = ('out', 'json', 'png', 'workdir', 'data_dir')  # options that say where, not what
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
    made.add_argument('--out', type=pathlib.Path, default=DOCS, help='folder for JSON and PNG')
    made.add_argument('--json', type=pathlib.Path, help='of another name than in --out')
    made.add_argument('--png', type=pathlib.Path, help='of another name than in --out')
    made.add_argument('--quick', action='store_true', help='tiny sizes, only to see that it runs')
    return made


def parse(made: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The options; with `--quick` those in `quick` are the defaults."""
    if '--quick' in sys.argv:
        made.set_defaults(repeats=2, out=pathlib.Path(tempfile.gettempdir()) / 'benchmarks')
        made.set_defaults(**quick)
    return made.parse_args()


def pin(threads: int) -> int:
    """Leaves this process as many cores, or as many as there are, and tells how many those are.

    Call it before jax or torch is imported. More threads than cores would slow torch down.
    """
    if 'jax' in sys.modules or 'torch' in sys.modules:
        raise RuntimeError('threads are started already: call pin() before jax is imported')
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:threads])
    malloc.keep_freed_memory()  # for every contestant
    return len(cores[:threads])


def interleaved(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call in every round, after one round that does not count.

    Each round begins with another contestant, so that none always finds the caches of the same one.
    """
    taken = {name: [] for name in calls}
    for number in range(rounds + 1):
        first = number % len(calls)
        for name in [*calls][first:] + [*calls][:first]:
            start = time.perf_counter()
            calls[name]()
            if number:
                taken[name].append(1000 * (time.perf_counter() - start))
    return taken


def ratio(theirs: list[float], ours: list[float]) -> Ratio:
    """How many times as fast ours is as theirs, with the quartiles over rounds."""
    single = sorted(t / o for t, o in zip(theirs, ours, strict=True))
    low, _, high = (
        statistics.quantiles(single, n=4, method='inclusive') if len(single) > 1 else single * 3
    )
    return Ratio(statistics.median(theirs) / statistics.median(ours), low, high)


def medians(samples: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Of each row and each contestant."""
    return {
        row: {name: statistics.median(values) for name, values in contestants.items()}
        for row, contestants in samples.items()
    }


def _without_places():
    """The arguments; no place of this machine is told."""
    told, places = [], tuple(f'--{name.replace("_", "-")}' for name in _PLACES)
    for argument in sys.argv[1:]:
        name, equals, _ = argument.partition('=')
        if told and told[-1] in places:
            told.append('DIR')
        else:
            told.append(f'{name}=DIR' if equals and name in places else argument)
    return told


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
    told = ('MALLOC_', 'LD_PRELOAD', 'XLA_FLAGS', 'OMP_')
    environment = {k: v for k, v in os.environ.items() if k.startswith(told)}
    return {
        'command': shlex.join(['python', '-m', f'benchmarks.{_name()}', *_without_places()]),
        'date': datetime.date.today().isoformat(),
        'cpu': models[0] if models else platform.processor(),
        'cores': os.cpu_count(),
        'cores_used': len(os.sched_getaffinity(0)),
        'python': platform.python_version(),
        'versions': versions,
        'environment': environment,
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


def write(options: argparse.Namespace, name: str, content: dict[str, Any]) -> None:
    """Writes `name`.json with the machine and the options beside the content."""
    path = options.json or options.out / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    ran = {key: value for key, value in vars(options).items() if key not in _PLACES}
    whole = {**machine(), 'options': ran, **content}
    whole = json.loads(json.dumps(whole, default=dataclasses.asdict))
    path.write_text(compact(whole) + '\n')


def compact(content: Any, levels: int = 3, indent: str = '') -> str:
    """Formats JSON with a line for each entry down to `levels`, and one line for all below it."""
    if not levels or not isinstance(content, dict | list) or not content:
        return json.dumps(content)
    inner = indent + ' '
    if isinstance(content, dict):
        entries = [f'{json.dumps(k)}: {compact(v, levels - 1, inner)}' for k, v in content.items()]
        ends = '{}'
    else:
        entries, ends = [compact(value, levels - 1, inner) for value in content], '[]'
    lines = (',\n' + inner).join(entries)
    return f'{ends[0]}\n{inner}{lines}\n{indent}{ends[1]}'


def save(options: argparse.Namespace, name: str, figure: Any) -> None:
    """Writes a figure of matplotlib as `name`.png."""
    path = options.png or options.out / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def bars(
    options: argparse.Namespace,
    name: str,
    title: str,
    groups: dict[str, dict[str, float]],
    unit: str,
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
    save(options, name, figure)
