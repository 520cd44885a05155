"""Small runs of the whole program, and what is compared of them."""

import dataclasses
import json

import chex
import jax
import pytest

from asose_jax import (
    batches,
    checkpoint,
    devices,
    model,
    page,
    pipeline,
    record,
    spaces,
    state,
    steps,
)
from configs.search import get_config

CHEAP = ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3')


EVERY_STEP = {'checkpoint.every_seconds': 0, 'chunk_steps': 1}  # leaves a checkpoint


TIMES = ('images_per_second', 'seconds', 'compile_seconds', 'stall_seconds')


# Four short phases: 4 + 12 + 6 + 4 steps of 64 images over 8 devices, 8 channels, 2 blocks.
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
    told = dataclasses.replace(record.read(workdir), config={})
    told = dataclasses.replace(told, name='', lines=lines_of(workdir), summary=summary_of(workdir))
    return page.render(dataclasses.replace(told, run={**told.run, 'command': ''}))


def final_state(workdir, config):
    """The newest checkpoint, and its description."""
    with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
        step = checkpoints.latest()
        meta = checkpoints.describe(step)
        spec = spaces.spec_from_json(meta['spec'])
        net = model.SuperNet(spec, synced_over=steps.AXIS)
        tx = pipeline.make_optimizer(config, pipeline.make_plan(config, 287))
        like = state.abstract_state(net, tx, devices.everywhere())
        return step, spec, jax.device_get(checkpoints.restore(step, like))


class Killed(BaseException):
    pass


def stop_after(monkeypatch, step):
    """Ends the run as a kill would, once the checkpoint of `step` is written."""
    original = checkpoint.Checkpoints.save

    def save(self, at, *rest):
        original(self, at, *rest)
        if at == step:
            raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)


SKIPS = {
    'nasbench201': tuple(('skip_connect',) * n for n in (1, 2, 3)),
    'darts': tuple(
        ('skip_connect', 'skip_connect', *('none',) * n) for n in (0, 1, 2, 3, 0, 1, 2, 3)
    ),
}


NAMES_OF = {
    'nasbench201': ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3'),
    'darts': ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3'),
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


def assert_resumed_as_the_whole(fields, step, tmp_path, monkeypatch):
    """A run in long calls, and one that was killed between its calls of one step."""
    pipeline.run(tiny(**fields), tmp_path / 'whole')
    config = tiny(**fields, **EVERY_STEP)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Killed):
            pipeline.run(config, tmp_path / 'halves')
    batches._shuffled.cache_clear()
    pipeline.run(config, tmp_path / 'halves')
    assert lines_of(tmp_path / 'halves') == lines_of(tmp_path / 'whole')
    assert summary_of(tmp_path / 'halves') == summary_of(tmp_path / 'whole')
    ours, theirs = (final_state(tmp_path / name, config) for name in ('halves', 'whole'))
    chex.assert_trees_all_equal(ours[2], theirs[2])


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
