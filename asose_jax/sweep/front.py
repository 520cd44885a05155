"""A front of networks: a search for each of several targets, all from the end of one warmup.

Price and limit act on alpha and on what is chosen, so warmup is the same for every target. Its end
is copied into the workdir of each search, which goes on from there as a run that was stopped does.
So each search ends as it would alone, with its own warmup.
"""

import pathlib
import shutil

import ml_collections

from asose_jax.config.consistency import with_fields
from asose_jax.costs import expected_cost, limit
from asose_jax.data import dataset
from asose_jax.metrics import front_comparison, run_record
from asose_jax.pipeline import builders, initialization
from asose_jax.report import tensorboard
from asose_jax.runtime.errors import UserError
from asose_jax.train.phases import Phase

WARMUP = 'warmup/'  # contains the warmups that the searches share


def searches_by_part(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Returns the config of the searches for each target, by the directory that contains them."""
    kind, targets = config.cost.kind, sorted(config.cost.targets)
    return {
        front_comparison.part(kind, target): with_fields(
            config,
            {'cost.targets': (), 'cost.target': target, f'cost.limit.{kind}': target},
        )
        for target in targets
    }


def warmup_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the config of the warmup that the searches of all targets share."""
    fields = {'cost.kind': None, 'cost.targets': ()}
    if config.cost.limit.latency is None:
        fields |= {'cost.batch_size': None, 'cost.table': None}
    return with_fields(config, fields)


def require_reachable(config: ml_collections.ConfigDict) -> None:
    """Checks that networks of the space can meet each target; uses a device and the data.

    Raises:
      UserError: one of them is out of reach; the message names the range.
    """
    runs = [*searches_by_part(config).values()]
    images = builders.load_data(runs[0])
    schedule = builders.make_schedule(runs[0], len(images.train))
    spec = initialization.find_origin(runs[0], images, schedule).spec
    # Nothing is written: with targets, latencies are those of a table.
    latencies = expected_cost.open_latencies(runs[0], pathlib.Path(), started=False)
    if latencies is not None:
        latencies.require(spec)
    budget = expected_cost.make_budget(runs[0], latencies)
    assert budget is not None, 'each target is a price'
    low, high = budget.reach(spec)
    grows = expected_cost.grows(config)
    outside = [run.cost.target for run in runs]
    outside = [target for target in outside if target < low or (target > high and not grows)]
    if outside:
        numbers = ', '.join(f'{target:.10g}' for target in outside)
        raise UserError(
            f'cost.targets: out of reach: {numbers}. Networks of this space cost from {low:.6g} to '
            f'{high:.6g} ({expected_cost.UNITS[config.cost.kind]}). Take targets in between.'
        )
    for run in runs:
        cost_limit = limit.make_limit(run, latencies)
        assert cost_limit is not None, 'each target is a limit'
        cost_limit.require_reachable(spec)


def end_of_warmup(directory: pathlib.Path, epochs: int) -> pathlib.Path | None:
    """Returns the checkpoint at the end of a warmup; `None` before.

    Args:
      directory: workdir of the warmup.
      epochs: its length.
    """
    last = next(reversed(run_record.read(directory).lines), {})
    if (last.get('phase'), last.get('epoch')) != (Phase.WARMUP, epochs):
        return None
    checkpoint = directory / 'checkpoints' / str(last['step'])
    return checkpoint if checkpoint.is_dir() else None


def begin_with(warmup: pathlib.Path, epochs: int, directory: pathlib.Path) -> None:
    """Copies the end of a warmup into the workdir of a search that has not begun.

    The checkpoint comes last and at once: before, the search has not begun.

    Args:
      warmup: workdir of the warmup.
      epochs: its length.
      directory: workdir of the search.
    """
    end = end_of_warmup(warmup, epochs)
    assert end is not None, 'the warmup has ended'
    (directory / 'checkpoints').mkdir(parents=True, exist_ok=True)
    for name in ('metrics.jsonl', 'run.json', dataset.FILES):
        if (warmup / name).exists():
            shutil.copyfile(warmup / name, directory / name)
    events = tensorboard.FOLDER
    shutil.copytree(warmup / events, directory / events, dirs_exist_ok=True)
    copy = directory / 'warmup.tmp'
    shutil.rmtree(copy, ignore_errors=True)  # of a process that was killed meanwhile
    shutil.copytree(end, copy)
    copy.rename(directory / 'checkpoints' / end.name)
