"""Small runs of the whole program, and what is compared of them."""

import dataclasses
import gc
import json
import os
import pathlib
import signal
import weakref
from collections.abc import Callable

import chex
import jax
import ml_collections
import pytest

from asose_jax.data import batches
from asose_jax.metrics import run_record
from asose_jax.pipeline import builders, run_summary, single_run, training_loop
from asose_jax.pipeline.growth import controller
from asose_jax.report import page
from asose_jax.runtime.errors import Stopped
from asose_jax.spaces import registry
from asose_jax.train import checkpoint, optimizer, pmap, state, steps
from configs.search import get_config
from helpers import networks

CHEAP = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3')


CHEAPEST = ('skip_connect', 'nor_conv_1x1')  # to compile


EVERY_STEP = {'checkpoint.every_seconds': 0, 'chunk_steps': 1}  # leaves a checkpoint


TIMES = ('images_per_second', 'seconds', 'compile_seconds', 'stall_seconds')


# Four short phases: 4 + 12 + 6 + 4 steps of 64 images over 2 devices, 8 channels, 2 blocks.
TINY = {
    'batch_size': 64,
    'data.valid_fraction': 0.8,
    'model.channels': 4,
    'model.depth': 2,
    'model.reductions': (1,),
    'model.primitives': CHEAP,
    'warmup.epochs': 1,
    'search.epochs': 2,
    'growth.epochs': 1,
    'optimize.epochs': 1,
}


def tiny(**changes):
    """The digits' config with the fields of `TINY`, and these on top."""
    config = get_config('digits')
    config.update_from_flattened_dict({**TINY, **changes})
    return config


def streamed(cifar_dir):
    """Fields for a part of CIFAR-10, read from disk as it is needed."""
    return {
        'data.name': 'cifar10',
        'data.dir': str(cifar_dir),
        'data.train_split': 'train[:640]',
        'data.test_split': 'test[:100]',
        'data.valid_fraction': 0.4,
        'data.resident_megabytes': 0,
        'growth.epochs': 0,
    }


def lines_of(workdir):
    """metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for line in lines:
        line['growth'] = [_without_times(event) for event in line['growth']]
    return [_without_times(line) for line in lines]


def _without_times(row):
    return {k: v for k, v in row.items() if k not in TIMES}


def summary_of(workdir):
    """summary.json without timings and what names the process."""
    summary = json.loads((workdir / 'summary.json').read_text())
    del summary['command']
    for name in ('phases', 'growth'):
        summary[name] = [_without_times(row) for row in summary[name]]
    return summary


def page_of(workdir):
    """The page of a run if nothing took time, whatever its command, directory and config are."""
    told = dataclasses.replace(run_record.read(workdir), config={})
    told = dataclasses.replace(told, name='', lines=lines_of(workdir), summary=summary_of(workdir))
    return page.render(dataclasses.replace(told, run={**told.run, 'command': ''}))


def final_state(workdir, config, step=None):
    """The newest checkpoint, or that of `step`, and its description."""
    with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
        step = checkpoints.latest() if step is None else step
        meta = checkpoints.describe(step)
        spec = registry.spec_from_json(meta['spec'])
        net = networks.supernet(spec, synced_over=steps.AXIS)
        tx = optimizer.make_optimizer(config, builders.make_schedule(config, 287))
        averages = checkpoint.has_average(meta['checksums'])
        like = state.abstract_state(net, tx, pmap.replicated_sharding(), averages)
        return step, spec, jax.device_get(checkpoints.restore(step, like))


class Killed(BaseException):
    pass


def stop_after(monkeypatch, step):
    """Ends the run as a kill would, once the checkpoint of `step` is written.

    Each call is a step, by the same programs as longer calls; that step's is due.
    """
    save, first = checkpoint.Checkpoints.save, []

    def due(self):
        first.append(self.latest() or 0)
        return first[0] + len(first) == step

    def stopped(self, at, *rest):
        save(self, at, *rest)
        if at == step:
            raise Killed(f'at step {at}')

    monkeypatch.setattr(training_loop, '_chunk_length', lambda *_: 1)
    monkeypatch.setattr(checkpoint.Checkpoints, 'due', due)
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', stopped)


def ask_to_stop(monkeypatch, step):
    """Sends SIGTERM one step before: the run stops in good order, saved at `step`."""
    seen = []

    def due(self):
        seen.append(self.latest() or 0)
        if seen[0] + len(seen) == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(training_loop, '_chunk_length', lambda *_: 1)
    monkeypatch.setattr(checkpoint.Checkpoints, 'due', due)


SKIPS = {
    'nasbench201': tuple(('skip_connect',) * n for n in (1, 2, 3)),
    'darts': tuple(
        ('skip_connect', 'skip_connect', *('none',) * n) for n in (0, 1, 2, 3, 0, 1, 2, 3)
    ),
}


NAMES_OF = {
    'nasbench201': ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3'),
    'darts': ('none', 'max_pool_3x3', 'skip_connect'),
}


def csv_text(text):
    """A field that may hold commas."""
    return '"' + text.replace('"', '""') + '"'


CELLS = {
    'model.space': 'nasbench201',
    'model.depth': 2,
    'model.primitives': ('none', 'skip_connect', 'nor_conv_1x1'),
    'growth.epochs': 0,
}


AHEAD = {
    'search.estimator': 'drnas',
    'search.second_order': True,
    'arch.anchor': 1e-3,
    'arch.samples': 2,
    'arch.micro_batches': 2,
}


def assert_resumed_as_the_whole(fields, step, tmp_path):
    """A run in long calls, and one that was killed between its calls of one step."""
    config = tiny(**fields)
    with pytest.MonkeyPatch.context() as patch:
        Compiled().install(patch)
        single_run.run(config, tmp_path / 'whole')
        run_with_stops(config, tmp_path / 'halves', [(stop_after, step)])
    assert_same_end(tmp_path / 'halves', tmp_path / 'whole', config)


# Growth is decided after epochs 2 and 4, and takes place one epoch later, at steps 34 and 46.
GROWING = {
    'model.primitives': ('skip_connect', 'sep_conv_3x3'),
    'growth.epochs': 6,
    'growth.kinds': ('depth', 'width'),
    'growth.threshold': 1.0,  # nothing counts as better
    'growth.patience': 1,
    'growth.last_epochs': 1,
    'growth.lead_epochs': 1,
    'growth.score_batches': 1,
}


def growing_config(**changes):
    return tiny(**{**GROWING, **changes})


# --- One run that most tests read

NEVER = 10**9  # seconds between checkpoints: only the ends of phases and growths save


# All phases and two growths: 4 + 12 + 36 + 4 steps. The network grows at steps 34 and 46.
WHOLE = {
    **TINY,
    **GROWING,
    'model.depth': 1,
    'model.reductions': (0,),
    'model.primitives': ('none', *CHEAPEST),
    'checkpoint.every_seconds': NEVER,
}


class Compiled:
    """Programs of runs with one config, in this process: each is compiled for the first of them.

    What they are compiled anew for is the law of kill_test.py, whose processes share nothing.
    """

    def __init__(self):
        # Of the programs of training, weak references, and each request with what it was for.
        self.calls, self.train, self.asked = {}, [], []

    def _made(self, original, step_config, phase, example):
        key = original.__name__, step_config.model.spec, phase.searches or phase
        if original.__name__ == 'compile_train':
            self.asked.append((step_config.model.spec.to_json(), str(phase)))
        if key in self.calls:
            return pmap.Program(self.calls[key], 0.0, 0)
        made = original(step_config, phase, *example)
        self.calls[key] = made.call
        if original.__name__ == 'compile_train':
            self.train.append(weakref.ref(made))
        return made

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on, runs share what they compile."""
        for name in ('compile_train', 'compile_statistics', 'compile_eval'):
            original = getattr(pmap, name)
            monkeypatch.setattr(
                pmap,
                name,
                lambda step_config, phase, *example, original=original: self._made(
                    original, step_config, phase, example
                ),
            )


def make_whole(place: pathlib.Path) -> None:
    """Makes in `place` one run twice, and `programs.json` with what it compiled.

    `run` was never stopped; `stopped` was: in each phase, asked to or not, and around a growth.
    """
    compiled, alive, write = Compiled(), [], run_summary.write_summary

    def at_the_end(context, current):
        gc.collect()
        alive.extend(i for i, made in enumerate(compiled.train) if made() is not None)
        return write(context, current)

    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        compiled.install(patch)
        with pytest.MonkeyPatch.context() as ending:
            ending.setattr(run_summary, 'write_summary', at_the_end)
            single_run.run(tiny(**WHOLE), place / 'run')
        programs = list(compiled.asked)
        stops = [(stop_after, 2), (ask_to_stop, 9), (stop_after, 31)]
        stops += [(stop_before_saving, 34), (stop_after, 47), (stop_after, 54)]
        run_with_stops(tiny(**WHOLE), place / 'stopped', stops)
    (place / 'programs.json').write_text(json.dumps({'compiled': programs, 'alive': alive}))


def run_until(
    step: int,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stop: Callable[[pytest.MonkeyPatch, int], None] = stop_after,
) -> None:
    """Runs it, or goes on with it, until `stop` ends it at `step`, saved if that is said of it."""
    with pytest.MonkeyPatch.context() as patch:
        stop(patch, step)
        with pytest.raises((Killed, Stopped), match=rf'at step {step}\b'):
            single_run.run(config, workdir)
    saved = (workdir / 'checkpoints' / str(step)).is_dir()
    assert saved == (stop is not stop_before_saving)


def run_with_stops(config: ml_collections.ConfigDict, workdir: pathlib.Path, stops: list) -> None:
    """Runs it, ended by each of `stops` in turn, which are functions and their steps."""
    for stop, step in stops:
        run_until(step, config, workdir, stop)
        assert not (workdir / 'summary.json').exists()
        batches._shuffled.cache_clear()  # as in a new process
    single_run.run(config, workdir)


def stop_before_saving(monkeypatch, step):
    """Ends the run between the growth at `step` and its checkpoint."""
    original = controller.update

    def consider(context, current, span, record, batch):
        events = original(context, current, span, record, batch)
        if record['step'] == step:
            assert events
            raise Killed(f'at step {step}')
        return events

    monkeypatch.setattr(controller, 'update', consider)


def end_of(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> tuple:
    """All that must not depend on how often a run was stopped: what it wrote, and its state."""
    texts = [(workdir / 'genotype.json').read_text(), page_of(workdir)]
    return lines_of(workdir), summary_of(workdir), texts, final_state(workdir, config)


def assert_same_end(
    ours: pathlib.Path, theirs: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
    """Two runs ended alike, bit for bit."""
    (*told, ours), (*expected, theirs) = (end_of(workdir, config) for workdir in (ours, theirs))
    for ours_told, theirs_told in zip(told, expected, strict=True):
        assert ours_told == theirs_told
    assert ours[:2] == theirs[:2]
    chex.assert_trees_all_equal(ours[2], theirs[2])
