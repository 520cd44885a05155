"""Compares networks along accuracy against cost: found ones for each target, and random ones."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asose_jax.costs.expected_cost import UNITS
from asose_jax.metrics import comparison

# Entries of summary.json with the cost of a network, where it is counted.
_COUNTED = {'params': 'params', 'flops': 'flops_per_image', 'multiply_adds': 'multiply_adds'}
# Group of runs -> name of its statistics.
_GROUPS = {'searches': 'searched', 'found': 'found', 'random': 'random'}


def part(kind: str, target: float) -> str:
    """Returns what the names of the runs for a target begin with, such as `flops_200000/`."""
    return f'{kind}_{target:.15g}/'


def compare(
    directory: pathlib.Path,
    kind: str,
    runs: Mapping[float, Mapping[str, Sequence[str]]],
    skip_share: float,
) -> dict[str, Any]:
    """Compares finished runs, those for each target with each other.

    Args:
      directory: workdir of the sweep.
      kind: of the cost, a key of `UNITS`.
      runs: names of finished runs by target and group, as in `comparison.compare`, without
        networks of a single operation.
      skip_share: see `comparison.compare`.

    Returns:
      JSON: `searches` (the rows of `comparison.compare`, each with `target` and `cost`);
      `collapsed`; `above_random_median`, if there are random genotypes; and `front`: `kind`,
      `unit`, and `targets`, with an entry for each target that has a finished search. An entry has
      the statistics of test accuracies `searched`, `found` and `random`, as far as there are such
      runs, each with the mean `cost` and the `runs`: `name`, `cost` and `test_accuracy` of each.
    """
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    totals = {'collapsed': 0, 'above_random_median': 0}
    for target, groups in runs.items():
        if not groups['searches']:
            continue
        compared = comparison.compare(directory, groups, skip_share)
        points = {
            _GROUPS[group]: [point(directory, name, kind) for name in names]
            for group, names in groups.items()
            if names
        }
        for row, run in zip(compared['searches'], points['searched'], strict=True):
            rows.append(row | {'target': target, 'cost': run['cost']})
        statistics = {
            group: {
                **compared[group],
                'cost': float(np.mean([run['cost'] for run in those])),
                'runs': those,
            }
            for group, those in points.items()
        }
        entries.append({'target': target, **statistics})
        totals = {name: count + compared.get(name, 0) for name, count in totals.items()}
    if not any('random' in entry for entry in entries):
        del totals['above_random_median']
    return {
        'searches': rows,
        **totals,
        'front': {'kind': kind, 'unit': UNITS[kind], 'targets': entries},
    }


def point(directory: pathlib.Path, name: str, kind: str) -> dict[str, Any]:
    """Returns name, cost and test accuracy of a finished run."""
    summary = comparison.read_summary(directory / name)
    cost = summary[_COUNTED[kind]] if kind in _COUNTED else summary['cost_limit'][kind]['value']
    return {'name': name, 'cost': cost, 'test_accuracy': summary['test_accuracy']}
