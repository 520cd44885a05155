"""Several searches in one command, and control networks trained from scratch next to them.

There is one for each seed, or for each seed and each target of the cost (`sweep.front`).

Every search and every training is a run with its own directory, in its own process, which has one
device or one CPU core to itself. So each can be stopped and resumed like any other run.
"""

import collections
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import ml_collections
import numpy as np
import rich.console
import rich.progress

from asose_jax.arch import genotype
from asose_jax.config import retrain
from asose_jax.config.consistency import (
    RETRAIN_SIZES,
    as_config,
    fields_to_record,
    flatten,
    has_several_runs,
    require_same_config,
    validate,
    with_fields,
    with_original_defaults,
)
from asose_jax.costs import expected_cost, limit
from asose_jax.data import dataset
from asose_jax.data.fingerprint import MissingDataError
from asose_jax.metrics import comparison, front_comparison, progress
from asose_jax.pipeline import single_run
from asose_jax.report import tracker_clients
from asose_jax.report.page import Page
from asose_jax.runtime import interrupt, log, paths, process, workdir
from asose_jax.runtime.errors import Stopped, UserError, os_errors
from asose_jax.spaces import registry
from asose_jax.sweep import front, placement
from asose_jax.train import checkpoint

logger = logging.getLogger('asose_jax')

_POLL_SECONDS = 2.0  # between updates of the progress bar
# Fields that may change while a sweep goes on; targets only where there were some before.
_ADDABLE = ('cost.targets', 'seeds', 'random_cells', 'plain_cells')
_RANDOM = 77  # separates the draws of random cells from other uses of the seed


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
      name: the directory of the run, relative to the workdir of the sweep.
      config: the config of the run.
      only_warmup: whether it stops at the end of warmup.
    """

    name: str
    config: ml_collections.ConfigDict
    only_warmup: bool = False

    def is_finished(self, directory: pathlib.Path) -> bool:
        """Returns whether the run has ended; `directory` contains that of the run."""
        if self.only_warmup:
            return front.end_of_warmup(directory / self.name, self.config.warmup.epochs) is not None
        return (directory / self.name / 'summary.json').exists()


def search(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Runs one search, or several (`config.seeds`, `config.cost.targets`); resumes stopped ones.

    Args:
      config: see `configs/search.py`.
      workdir: directory of checkpoints and results.
      console: where a progress bar may be drawn; `None` means stderr, or the notebook. The log is
        shown there too, unless the caller's program has set up logging, see `log.shown`.

    Returns:
      The content of summary.json, see `run_summary.write_summary`, and `run_sweep` for several.

    Raises:
      UserError: something that the user can fix; nothing is lost.
      Stopped: after SIGTERM or Ctrl-C; all progress is saved.
    """
    _leave_if_imported_again()
    with log.shown(console) as console:
        config = as_config(config)
        if has_several_runs(config):
            return run_sweep(config, workdir, console)
        return single_run.run(config, workdir, console)


@os_errors('running a sweep', resumes=True)
def run_sweep(
    config: ml_collections.ConfigDict,
    directory: str | pathlib.Path,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Searches with each of `config.seeds` and `config.cost.targets`, and compares the results.

    With `config.random_cells` or `config.plain_cells`, the networks that the searches chose, random
    cells and networks of a single operation are then trained from scratch, all in the same way
    (`config.retrain`).

    Args:
      config: see `configs/search.py`.
      directory: contains all runs: `seed_N`, `found/seed_N`, `random/N`, `plain/OPERATION/seed_N`;
        with targets `warmup/seed_N`, and `KIND_TARGET/` before the `seed_N` and N of the others.
        Finished runs are not repeated, so seeds, targets and controls may be added later.
      console: where a progress bar may be drawn.

    Returns:
      The comparison, as in summary.json; see `comparison.compare`, and `front_comparison.compare`.

    Raises:
      UserError: something that the user can fix.
      Stopped: after SIGTERM or Ctrl-C; the progress of all runs is saved.
    """
    if not config.seeds:
        config = with_fields(config, {'seeds': (config.seed,)})
    if jax.distributed.is_initialized():  # `process_count` would claim the devices
        raise UserError(
            f'seeds={tuple(config.seeds)}: several searches share the devices of one machine, but '
            'this process has joined other hosts. Start it on one of them, without --multihost.'
        )
    directory = paths.expand_workdir(directory)
    paths.require_local_fields(flatten(config))
    process.require_32_bits()
    workdir.require_kind(directory, config.seeds)
    config = with_original_defaults(config, directory)
    flat = flatten(config)
    validate(config, 1)
    tracker_clients.require(config.track)
    single = with_fields(config, {'seeds': (), 'random_cells': 0, 'plain_cells': ()})
    parts = front.searches_by_part(single) if config.cost.targets else {'': single}
    has_controls = bool(config.random_cells or config.plain_cells)
    for each in parts.values():
        validate(each, 1)
        if has_controls:
            validate(_retrained(each, 'of a search'), 1)
    begun = _recorded_runs(directory, (front.WARMUP, *parts) if config.cost.targets else ('',))
    if config.data.name == 'folder' and not begun:
        paths.require_outside(directory, config.data.dir)
    machine = placement.available_slots()
    if config.cost.targets and not all((directory / part).exists() for part in parts):
        placement.in_child(front.require_reachable, single)
    with interrupt.Interrupt(), workdir.locked(directory):
        require_same_config(
            flat,
            directory,
            but=_ADDABLE if config.cost.targets else _ADDABLE[1:],
            movable=() if begun and not _with_data(begun) else ('data.dir',),
            base=next((run.get('directory') for run in begun.values()), None),
        )
        _require_same_data(config, _with_data(begun))
        recorded = json.dumps(fields_to_record(flat, directory), indent=2)
        workdir.write_atomically(directory / 'config.json', recorded + '\n')
        groups = {
            part: {
                'searches': [
                    Job(f'{part}seed_{seed}', with_fields(each, {'seed': seed}))
                    for seed in config.seeds
                ]
            }
            for part, each in parts.items()
        }
        searches = [job for part in groups.values() for job in part['searches']]
        warned = _warn_of_two_splits(searches, directory)
        if config.cost.targets and config.warmup.epochs:
            _warm_up(single, searches, machine, directory, console)
        run_jobs(searches, machine, directory, console)
        if has_controls:
            jobs = []
            for part, each in parts.items():
                trainings = _trainings(config, each, part, directory)
                groups[part] |= trainings
                jobs += [job for group in trainings.values() for job in group]
            if not warned:
                _warn_of_two_splits([*searches, *jobs], directory)
            run_jobs(jobs, machine, directory, console)
        return _summarize(groups, directory, config)


def _leave_if_imported_again() -> None:
    """Ends a process of a sweep that imports the script which started it, and searches once more.

    The script then lacks `if __name__ == '__main__':`, which `placement.available_slots` says.
    """
    # The standard library sets it while a process that was spawned imports the main module.
    if getattr(multiprocessing.current_process(), '_inheriting', False):
        process.exit_now(1)


def _recorded_runs(
    directory: pathlib.Path, parts: Sequence[str]
) -> dict[pathlib.Path, dict[str, Any]]:
    """Returns run.json of each search of a sweep that has begun, by the search's directory."""
    files = [file for part in parts for file in sorted(directory.glob(f'{part}seed_*/run.json'))]
    records = {file.parent: workdir.read_json_object(file) for file in files}
    return {run: record for run, record in records.items() if record}


def _with_data(
    begun: Mapping[pathlib.Path, dict[str, Any]],
) -> dict[pathlib.Path, dict[str, Any]]:
    """Returns those of `_recorded_runs` that say which data they were trained on."""
    return {workdir: run for workdir, run in begun.items() if isinstance(run.get('data'), dict)}


def _require_same_data(
    config: ml_collections.ConfigDict, begun: Mapping[pathlib.Path, dict[str, Any]]
) -> None:
    """Refuses data that are not those of the searches before: their results would be compared.

    A run that goes on compares its data itself; those that are finished or new do not. `begun` has
    run.json of the searches that recorded their data.
    """
    for workdir_of_run, recorded in begun.items():
        split_by = dataset.recorded_split(recorded, workdir_of_run)
        try:
            identity = dataset.identify(config.data, split_by)
        except MissingDataError:  # which finished runs do not need, and others report
            return
        dataset.require_same_identity(identity, recorded, workdir_of_run)
        return


def _warn_of_two_splits(jobs: Sequence[Job], directory: pathlib.Path) -> bool:
    """Warns if some runs split a folder of pictures by position, and others will by content.

    Returns whether it warned.
    """
    if jobs[0].config.data.name != 'folder':
        return False
    old = []
    for job in jobs:
        recorded = workdir.read_json_object(directory / job.name / 'run.json')
        if recorded and dataset.recorded_split(recorded, directory / job.name) == 'position':
            old.append(job.name)
    if not old or len(old) == len(jobs):
        return False
    logger.warning(
        '%s: these runs were begun by an older version and have another test split than the '
        'other runs: %s. So their test accuracies cannot be compared, and pictures that they '
        'learned from may be in the test split of the others. Start all in another --workdir.',
        directory,
        ', '.join(old),
    )
    return True


def _warm_up(
    config: ml_collections.ConfigDict,
    searches: Sequence[Job],
    machine: Sequence[placement.Slot],
    directory: pathlib.Path,
    console: rich.console.Console | None,
) -> None:
    """Trains one warmup for each seed, and lets the searches begin with its end."""
    new = [
        job
        for job in searches
        if not job.is_finished(directory)
        and not checkpoint.has_checkpoint(directory / job.name / 'checkpoints')
    ]
    if not new:
        return
    warmup = front.warmup_config(config)
    jobs = {
        seed: Job(f'{front.WARMUP}seed_{seed}', with_fields(warmup, {'seed': seed}), True)
        for seed in dict.fromkeys(job.config.seed for job in new)
    }
    run_jobs([*jobs.values()], machine, directory, console)
    for job in new:
        before = directory / jobs[job.config.seed].name
        front.begin_with(before, config.warmup.epochs, directory / job.name)


def _summarize(
    groups: Mapping[str, Mapping[str, Sequence[Job]]],
    directory: pathlib.Path,
    config: ml_collections.ConfigDict,
) -> dict[str, Any]:
    """Compares the finished runs; writes summary.json, summary.md and report.html."""
    names = {
        part: {group: [job.name for job in jobs] for group, jobs in those.items()}
        for part, those in groups.items()
    }
    skip_share = config.alarm.skip_share
    if config.cost.targets:
        targets = sorted(config.cost.targets)
        by_target = dict(zip(targets, names.values(), strict=True))
        summary = front_comparison.compare(directory, config.cost.kind, by_target, skip_share)
    else:
        summary = comparison.compare(directory, names[''], skip_share)
    text = comparison.table(summary)
    workdir.write_atomically(directory / 'summary.md', text)
    workdir.write_atomically(directory / 'summary.json', json.dumps(summary, indent=2) + '\n')
    Page(directory).draw()
    logger.info('%s', text)
    return summary


def _trainings(
    config: ml_collections.ConfigDict,
    single: ml_collections.ConfigDict,
    part: str,
    directory: pathlib.Path,
) -> dict[str, list[Job]]:
    """Returns the trainings from scratch after the searches, by group of the comparison.

    `single` is the config of one search, without its seed, and `part` what the names of the
    searches begin with.
    """
    seeds, count = config.seeds, config.random_cells
    return {
        'found': [_searched_job(single, directory, f'{part}seed_{seed}', seed) for seed in seeds],
        'random': [_random_job(single, directory, part, seeds, i) for i in range(count)],
        **{
            operation: [_plain_job(single, directory, operation, seed) for seed in seeds]
            for operation in config.plain_cells
        },
    }


def _retrained(
    config: ml_collections.ConfigDict, source: str | pathlib.Path, **fields: Any
) -> ml_collections.ConfigDict:
    """Returns the config that trains the network of a genotype file or workdir from scratch.

    Where it is trained in another size, limits on the network of the search do not hold for it.
    """
    if any(config.retrain[name] is not None for name in RETRAIN_SIZES):
        fields |= {f'cost.limit.{kind}': None for kind in config.cost.limit}
    fields |= {'init_from': None, 'optimize.frozen': False, 'genotype': str(source)}
    return retrain.retrain_config(with_fields(config, fields))


def _searched_job(
    config: ml_collections.ConfigDict, directory: pathlib.Path, name: str, seed: int
) -> Job:
    return Job(f'found/{name}', _retrained(config, directory / name, seed=seed))


def _random_job(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    part: str,
    seeds: Sequence[int],
    number: int,
) -> Job:
    """Trains random cell `number` of a part, in the network that one of its searches ended with.

    It is drawn uniformly, or within the limits of the search.
    """
    name, seed = f'random/{part}{number}', seeds[number % len(seeds)]
    if (started := directory / name / 'config.json').exists():
        # Keeps its seed, though the number of seeds may have changed since.
        seed = json.loads(started.read_text(encoding='utf-8'))['seed']
    search = directory / f'{part}seed_{seed}'
    supernet = _supernet(config, search)
    generator = np.random.default_rng([_RANDOM, config.seed, number, *part.encode()])
    largest = limit.limits_of(config)
    if largest:
        costs = json.loads((search / expected_cost.COSTS_FILE).read_text(encoding='utf-8'))
        cell = limit.random_genotype(supernet, largest, costs, generator)
    else:
        cell = genotype.random(supernet, generator)
    return _control_job(config, directory, name, supernet, cell, seed)


def _plain_job(
    config: ml_collections.ConfigDict, directory: pathlib.Path, operation: str, seed: int
) -> Job:
    """Trains the network of one search with the same operation everywhere."""
    supernet = _supernet(config, directory / f'seed_{seed}')
    cell = genotype.uniform_genotype(supernet, operation)
    return _control_job(config, directory, f'plain/{operation}/seed_{seed}', supernet, cell, seed)


def _supernet(config: ml_collections.ConfigDict, search: pathlib.Path) -> genotype.NetSpec:
    """Returns the network that a search ended with, with all candidates in every place again."""
    text = (search / 'genotype.json').read_text(encoding='utf-8')
    derived = registry.spec_from_json(json.loads(text)['network'])
    names = tuple(config.model.primitives)
    return derived.with_groups(tuple(tuple(names for _ in group) for group in derived.groups()))


def _control_job(
    config: ml_collections.ConfigDict,
    directory: pathlib.Path,
    name: str,
    supernet: genotype.NetSpec,
    cell: genotype.Genotype,
    seed: int,
) -> Job:
    """Writes the genotype to `name`.json and returns the training of its network."""
    file = directory / f'{name}.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_atomically(file, cell.dumps(genotype.derive(supernet, cell)))
    return Job(name, _retrained(config, file, seed=seed))


# --- Processes


@dataclasses.dataclass(frozen=True)
class _Running:
    """A started job, the place that it occupies and its process."""

    job: Job
    place: placement.Slot
    child: multiprocessing.process.BaseProcess


def run_jobs(
    jobs: Sequence[Job],
    machine: Sequence[placement.Slot],
    directory: pathlib.Path,
    console: rich.console.Console | None = None,
) -> None:
    """Runs the unfinished jobs, at any time one on each place of the machine.

    Args:
      jobs: started in this order, as places become free.
      machine: the places, see `placement.available_slots`.
      directory: contains the directory of each job, which has the job's name.
      console: where a progress bar may be drawn.

    Raises:
      UserError: a run failed; the message quotes its log. The other runs were stopped and saved.
    """
    waiting = collections.deque(job for job in jobs if not job.is_finished(directory))
    running: dict[int, _Running] = {}
    free = list(machine)
    with _progress(jobs, waiting, running, directory, console) as update:
        try:
            while waiting or running:
                while waiting and free:
                    active = _started(waiting.popleft(), free.pop(0), directory)
                    running[active.child.sentinel] = active
                for sentinel in multiprocessing.connection.wait(list(running), _POLL_SECONDS):
                    active = running.pop(cast(int, sentinel))
                    active.child.join()
                    free.append(active.place)
                    _require_finished(active, directory)
                update()
        finally:
            for active in running.values():
                active.child.terminate()  # the run saves its state before it ends
            for active in running.values():
                active.child.join()


def _started(job: Job, place: placement.Slot, directory: pathlib.Path) -> _Running:
    (directory / job.name).mkdir(parents=True, exist_ok=True)
    (directory / job.name / 'log.txt').touch()  # fails here, and not in the process of the run
    child = process.SPAWN_CONTEXT.Process(target=_run_job, args=(job, directory / job.name, place))
    child.start()
    logger.info('%s: started; its log is %s', job.name, directory / job.name / 'log.txt')
    return _Running(job, place, child)


def _require_finished(active: _Running, directory: pathlib.Path) -> None:
    """Logs the result of a run whose process has ended; fails if it left none."""
    name, status = active.job.name, active.child.exitcode
    if status or not active.job.is_finished(directory):
        raise UserError(_failure(active.job, directory, status))
    ended = active.job.only_warmup
    logger.info('%s: %s', name, 'done' if ended else comparison.result_line(directory / name))


def _failure(job: Job, directory: pathlib.Path, status: int | None) -> str:
    path = directory / job.name / 'log.txt'
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines() if path.exists() else []
    end = '\n  '.join(lines[-4:])
    return (
        f'{job.name} ended with status {status}. The last lines of its log ({path}):\n  {end}\n'
        'Fix this, then run the same command again: it resumes, and does not repeat finished runs.'
    )


@contextlib.contextmanager
def _progress(
    jobs: Sequence[Job],
    waiting: Collection[Job],
    running: Mapping[int, _Running],
    directory: pathlib.Path,
    console: rich.console.Console | None,
) -> Iterator[Callable[[], None]]:
    """Draws a progress bar: finished runs, and the state of those that are running.

    Elsewhere, it logs a line whenever a run has been evaluated, which is once in an epoch.

    Args:
      jobs: all jobs.
      waiting: those that have not started; changes meanwhile.
      running: those that are running; changes meanwhile.
      directory: contains the directory of each job.
      console: where to draw; nothing is drawn outside of terminals and notebooks.

    Yields:
      A function that redraws the bar, or logs the lines.
    """
    if console is None or not progress.can_draw(console):
        shown: dict[str, str] = {}

        def log_news() -> None:
            for active in running.values():
                name = active.job.name
                line = comparison.progress_line(directory / name)
                if line != shown.setdefault(name, comparison.NOT_EVALUATED):
                    logger.info('%s: %s', name, line)
                    shown[name] = line

        yield log_news
        return
    columns = [
        rich.progress.TextColumn('{task.completed}/{task.total} runs'),
        rich.progress.BarColumn(bar_width=10),
        rich.progress.TextColumn('{task.description}'),
        rich.progress.TimeRemainingColumn(),
    ]
    bar = rich.progress.Progress(*columns, console=console)
    task = bar.add_task('', total=len(jobs))
    with progress.drawn(bar) as redraw:

        def update() -> None:
            states = [
                f'{active.job.name} {comparison.progress_line(directory / active.job.name)}'
                for active in running.values()
            ]
            done = len(jobs) - len(waiting) - len(running)
            bar.update(task, completed=done, description='; '.join(states))
            redraw()

        yield update


def _run_job(job: Job, directory: pathlib.Path, place: placement.Slot) -> None:
    """Executes one run; the main function of its process."""
    os.setsid()  # Ctrl-C then reaches only the parent process, which stops this one by SIGTERM
    os.environ.update(place.environment)
    cache = process.DEFAULT_CACHE_DIR
    if place.core is not None:
        os.sched_setaffinity(0, {place.core})
        cache = cache / 'one_core'  # a program is compiled for the number of cores
    file = open(directory / 'log.txt', 'a', buffering=1, encoding='utf-8')  # noqa: SIM115
    os.dup2(file.fileno(), sys.stdout.fileno())
    os.dup2(file.fileno(), sys.stderr.fileno())
    child_logger = process.set_up(log.plain_handler(file), cache)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        console = rich.console.Console(file=file)
        single_run.run(job.config, directory, console, job.only_warmup)
    except Stopped as stopped:
        child_logger.info('%s', stopped)
        process.exit_now(1)
    except UserError as error:
        child_logger.error('%s', error)
        process.exit_now(2)
    process.exit_now(0)


def _end_with_parent() -> None:
    """Waits until the parent process ends, then sends SIGTERM to this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
