"""Workdirs of fronts, written by hand: searches for several targets, and trainings beside them."""

import json

from asose_jax.costs import expected_cost, flops
from asose_jax.metrics import run_record
from asose_jax.report import page
from asose_jax.spaces import registry
from configs.search import get_config
from helpers import recorded
from helpers.pages import SHORT

PRESET = 'nasbench201'
TARGETS = (2.2e6, 1e6, 1.6e6)  # in no order; networks have from 0.7 to 2.5 MFLOPs
SMALL = {'model.channels': 4, 'model.depth': 2, 'model.reductions': (1,)}


def write(directory, seeds=(0, 1), targets=TARGETS, random_cells=2):
    """A front whose networks cost less than their targets by some; all is finished."""
    for i, target in enumerate(sorted(targets)):
        part = f'flops_{target:.0f}'
        for j, seed in enumerate(seeds):
            share = 0.8 + 0.1 * j
            run = recorded.write(directory / part / f'seed_{seed}', PRESET, **SHORT, **SMALL)
            ends_with(run, share * target, 0.7 + 0.05 * i + 0.01 * j)
            ends_with(directory / 'found' / part / f'seed_{seed}', share * target, 0.72 + 0.05 * i)
            _write_costs(run)
        for k in range(random_cells):
            ends_with(directory / 'random' / part / str(k), 0.7 * target, 0.6 + 0.03 * i + 0.02 * k)
    told = {
        **run_record.read(directory / part / f'seed_{seeds[0]}').config,
        'seeds': seeds,
        'random_cells': random_cells,
        'cost.kind': 'flops',
        'cost.targets': targets,
        'alarm.skip_share': get_config(PRESET).alarm.skip_share,
    }
    (directory / 'config.json').write_text(json.dumps(told))
    page.write(directory)
    return directory


def ends_with(workdir, cost, accuracy):
    """The summary of a run says so."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / 'summary.json'
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, 'flops_per_image': cost, 'test_accuracy': accuracy}))


def _write_costs(run):
    derived = registry.spec_from_json(json.loads((run / 'genotype.json').read_text())['network'])
    names = tuple(get_config(PRESET).model.primitives)
    spec = derived.with_groups(tuple(tuple(names for _ in group) for group in derived.groups()))
    expected_cost.write_costs(spec, flops.COUNTED, run)
