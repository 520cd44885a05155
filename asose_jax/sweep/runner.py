"""Several searches in one command, and random cells that are trained beside what they find.

Each search is a run of its own in a directory of its own, in a process of its own that has one
device, or one core of a CPU, for itself. So each can be stopped and goes on like any other run.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console
import rich.progress

from asose_jax.arch import genotype
from asose_jax.config import retrain
from asose_jax.config.validation import (
    flatten,
    require_same_config,
    validate,
    with_original_defaults,
)
from asose_jax.metrics import comparison
from asose_jax.pipeline import run_phases
from asose_jax.report.page import Page
from asose_jax.runtime import interrupt, process, workdir
from asose_jax.runtime.errors import Stopped, UserError
from asose_jax.spaces import registry
from asose_jax.sweep import placement

logger = logging.getLogger('asose_jax')

_LOOK_SECONDS = 2.0  # between looks at what the runs have come to
_RANDOM = 77  # tells this use of the seed apart


@dataclasses.dataclass(frozen=True)
class Job:
    """A run: its name, which is its directory below the workdir of all, and its config."""

    name: str
    config: ml_collections.ConfigDict


def search(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Searches as `config` says, once or with each of `seeds`; goes on where it was stopped.

    Args:
      config: see `configs/search.py`.
      workdir: for checkpoints and results.
      console: where a progress bar may be drawn.

    Returns:
      What summary.json holds: see `run_summary.write`, and `comparison.compare` for many seeds.

    Raises:
      UserError: something the user can put right; nothing was lost.
      Stopped: after SIGTERM or Ctrl-C; what was done is saved.
    """
    if config.seeds:
        return run(config, workdir, console)
    return run_phases.run(config, workdir, console)


def run(
    config: ml_collections.ConfigDict,
    directory: str | pathlib.Path,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Searches with each of `seeds`; if asked to, trains what was found, and controls, alike.

    Args:
      config: see `configs/search.py`.
      directory: of all runs: `seed_N`, `found/seed_N`, `random/N`, `plain/OPERATION/seed_N`.
        Finished ones are not repeated, so that seeds and controls may be added later.
      console: where a progress bar may be drawn.

    Returns:
      The comparison, as in summary.json; see `comparison.compare`.

    Raises:
      UserError: something the user can put right.
      Stopped: after SIGTERM or Ctrl-C; all runs are saved.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'seeds={tuple(config.seeds)}: several searches share the devices of one machine; '
            f'these are {jax.process_count()} hosts. Start it on one of them, without --multihost.'
        )
    directory = pathlib.Path(directory).expanduser()
    config = with_original_defaults(config, directory)
    flat = flatten(config)
    single = copy.deepcopy(config)
    single.seeds, single.random_cells, single.plain_cells = (), 0, ()
    validate(config, 1)
    compares = bool(config.random_cells or config.plain_cells)
    if compares:
        validate(_retrained(single, 'of a search'), 1)
    begun = functools.partial(run_all, directory=directory, console=console)
    with interrupt.Interrupt(), workdir.claimed(directory):
        require_same_config(flat, directory, but=('seeds', 'random_cells', 'plain_cells'))
        workdir.write_atomically(directory / 'config.json', json.dumps(flat, indent=2) + '\n')
        machine = placement.places()
        searches = [Job(f'seed_{seed}', _with(single, seed=seed)) for seed in config.seeds]
        begun(searches, machine)
        found, random, plain = [], [], {}
        if compares:
            found = [_found(single, directory, seed) for seed in config.seeds]
            count = config.random_cells
            random = [_random(single, directory, config.seeds, i) for i in range(count)]
            plain = {
                name: [_plain(single, directory, name, seed) for seed in config.seeds]
                for name in config.plain_cells
            }
            begun(found + random + [job for jobs in plain.values() for job in jobs], machine)
        groups = {'searches': searches, 'found': found, 'random': random, **plain}
        names = {name: [job.name for job in jobs] for name, jobs in groups.items()}
        summary = comparison.compare(directory, names, config.alarm.skip_share)
        text = comparison.table(summary)
        workdir.write_atomically(directory / 'summary.md', text)
        workdir.write_atomically(directory / 'summary.json', json.dumps(summary, indent=2) + '\n')
        Page(directory).draw()
        logger.info('%s', text)
        return summary


def _with(config, **fields):
    made = copy.deepcopy(config)
    made.update_from_flattened_dict(fields)
    return made


def _retrained(config, source, **fields):
    return retrain.config_of(_with(config, init_from=None, genotype=str(source), **fields))


def _found(config, directory, seed):
    return Job(f'found/seed_{seed}', _retrained(config, directory / f'seed_{seed}', seed=seed))


def _random(config, directory, seeds, number):
    """A cell drawn uniformly, in the network that one of the searches ended with."""
    seed, begun = seeds[number % len(seeds)], directory / f'random/{number}' / 'config.json'
    if begun.exists():  # there may have been fewer seeds then
        seed = json.loads(begun.read_text(encoding='utf-8'))['seed']
    supernet = _supernet(config, directory, seed)
    chosen = genotype.random(supernet, np.random.default_rng([_RANDOM, config.seed, number]))
    return _control(config, directory, f'random/{number}', supernet, chosen, seed)


def _plain(config, directory, name, seed):
    """One operation everywhere, in the network that this search ended with."""
    supernet = _supernet(config, directory, seed)
    chosen = genotype.plain(supernet, name)
    return _control(config, directory, f'plain/{name}/seed_{seed}', supernet, chosen, seed)


def _supernet(config, directory, seed):
    """What a search ended with, with all candidates again."""
    text = (directory / f'seed_{seed}' / 'genotype.json').read_text(encoding='utf-8')
    derived = registry.spec_from_json(json.loads(text)['network'])
    names = tuple(config.model.primitives)
    return derived.with_groups(tuple(tuple(names for _ in group) for group in derived.groups()))


def _control(config, directory, name, supernet, chosen, seed):
    file = directory / f'{name}.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_atomically(file, chosen.dumps(genotype.derive(supernet, chosen)))
    return Job(name, _retrained(config, file, seed=seed))


# --- Processes


def run_all(
    jobs: list[Job],
    machine: list[placement.Place],
    directory: pathlib.Path,
    console: rich.console.Console | None = None,
) -> None:
    """Runs what is not finished yet, on each place one after another.

    Args:
      jobs: in this order, as places become free.
      machine: its parts, see `process.places`.
      directory: of all runs, each in a directory called like it.
      console: where a progress bar may be drawn.

    Raises:
      UserError: a run failed; its log is quoted. The others were told to stop, and saved.
    """
    waiting = collections.deque(
        j for j in jobs if not (directory / j.name / 'summary.json').exists()
    )
    running: dict[int, tuple[placement.Place, Job, Any]] = {}
    free = list(machine)
    with _shown(jobs, waiting, running, directory, console) as show:
        try:
            while waiting or running:
                while waiting and free:
                    place, job = free.pop(0), waiting.popleft()
                    (directory / job.name).mkdir(parents=True, exist_ok=True)
                    child = process.SPAWN.Process(
                        target=_work, args=(job, directory / job.name, place)
                    )
                    child.start()
                    running[child.sentinel] = (place, job, child)
                for sentinel in multiprocessing.connection.wait(list(running), _LOOK_SECONDS):
                    place, job, child = running.pop(sentinel)
                    child.join()
                    free.append(place)
                    if child.exitcode or not (directory / job.name / 'summary.json').exists():
                        raise UserError(_failure(job, directory, child.exitcode))
                    logger.info('%s: %s', job.name, comparison.one_line(directory / job.name))
                show()
        finally:
            for _, _, child in running.values():
                child.terminate()  # each saves, and ends
            for _, _, child in running.values():
                child.join()


def _failure(job, directory, status):
    log = directory / job.name / 'log.txt'
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines() if log.exists() else []
    told = '\n  '.join(lines[-4:])
    return (
        f'{job.name} ended with status {status}; its log ({log}) ends with:\n  {told}\nPut that '
        'right; the same command goes on, and repeats nothing that is finished.'
    )


@contextlib.contextmanager
def _shown(jobs, waiting, running, directory, console) -> Iterator[Callable[[], None]]:
    """A bar in a terminal: how many runs are done, and where those are that run."""
    if console is None or not console.is_terminal:
        yield lambda: None
        return
    parts = [
        rich.progress.TextColumn('{task.completed}/{task.total} runs'),
        rich.progress.BarColumn(bar_width=10),
        rich.progress.TextColumn('{task.description}'),
        rich.progress.TimeRemainingColumn(),
    ]
    with rich.progress.Progress(*parts, console=console) as bar:
        task = bar.add_task('', total=len(jobs))

        def show():
            each = [
                f'{job.name} {comparison.latest(directory / job.name)}'
                for _, job, _ in running.values()
            ]
            done = len(jobs) - len(waiting) - len(running)
            bar.update(task, completed=done, description='; '.join(each))

        yield show


def _work(job: Job, directory: pathlib.Path, place: placement.Place) -> None:
    """One run, in a process of its own."""
    os.setsid()  # Ctrl-C reaches the process that started this one, which asks it to stop
    os.environ.update(place.environment)
    cache = process.CACHE
    if place.core is not None:
        os.sched_setaffinity(0, {place.core})
        cache = cache / 'one_core'  # programs are compiled for as many cores as there are
    log = open(directory / 'log.txt', 'a', buffering=1, encoding='utf-8')  # noqa: SIM115
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    child_logger = process.prepare(process.plain_handler(log), cache)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_phases.run(job.config, directory, rich.console.Console(file=log))
    except Stopped as stopped:
        child_logger.info('%s', stopped)
        process.leave(1)
    except UserError as error:
        child_logger.error('%s', error)
        process.leave(2)
    process.leave(0)


def _end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
