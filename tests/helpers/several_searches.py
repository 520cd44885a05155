"""Workdirs of several searches, written by hand."""

import json

from asose_jax.metrics import run_record
from asose_jax.report import page
from configs.search import get_config
from helpers import recorded
from helpers.pages import SHORT

FOUND = (0.812, 0.741, 0.746, 0.655)


RANDOM = tuple(0.6 + 0.004 * ((7 * i) % 40) for i in range(50))


PLAIN = (0.611, 0.622, 0.633, 0.64)


def write(directory, preset='nasbench201', seeds=(0, 1, 2, 30), controls=True, **changes):
    """Searches with these seeds; 50 random cells and plain networks, unless told otherwise."""
    for i, seed in enumerate(seeds):
        workdir = recorded.write(directory / f'seed_{seed}', preset, **{**SHORT, **changes})
        path = workdir / 'metrics.jsonl'
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line['valid/accuracy'] -= 0.01 * i
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        page.write(workdir)
    config = get_config(preset)
    told = {
        **run_record.read(directory / f'seed_{seeds[0]}').config,
        'seeds': seeds,
        'random_cells': len(RANDOM) if controls else 0,
        'plain_cells': ['skip_connect'] if controls else [],
        'alarm.skip_share': config.alarm.skip_share,
    }
    (directory / 'config.json').write_text(json.dumps(told))
    if controls:
        for seed, accuracy, other in zip(seeds, FOUND, PLAIN, strict=False):
            _came_to(directory / 'found' / f'seed_{seed}', accuracy)
            _came_to(directory / 'plain' / 'skip_connect' / f'seed_{seed}', other)
        for i, accuracy in enumerate(RANDOM):
            _came_to(directory / 'random' / str(i), accuracy)
    page.write(directory)
    return directory


def _came_to(workdir, accuracy):
    workdir.mkdir(parents=True)
    (workdir / 'summary.json').write_text(json.dumps({'test_accuracy': accuracy}))
