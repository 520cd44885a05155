"""The comparison of networks along accuracy against cost, of workdirs written by hand."""

import json

import pytest
from helpers import fronts

from asose_jax.metrics import comparison, front_comparison


def _compare(directory, random=True):
    runs = {}
    for target in sorted(fronts.TARGETS):
        part = front_comparison.part('flops', target)
        searches = [f'{part}seed_{seed}' for seed in (0, 1)]
        runs[target] = {'searches': searches, 'found': [f'found/{name}' for name in searches]}
        if random:
            runs[target]['random'] = [f'random/{part}{i}' for i in range(2)]
    return front_comparison.compare(directory, 'flops', runs, 0.8)


def test_each_target_has_costs_and_accuracies_of_its_own_runs(tmp_path):
    fronts.write(tmp_path)
    summary = _compare(tmp_path)
    assert json.loads(json.dumps(summary)) == summary
    entries = summary['front']['targets']
    assert [entry['target'] for entry in entries] == sorted(fronts.TARGETS)
    for i, entry in enumerate(entries):
        assert entry['searched']['mean'] == pytest.approx(0.705 + 0.05 * i)
        assert entry['random']['mean'] == pytest.approx(0.61 + 0.03 * i)
        assert entry['found']['count'] == entry['random']['count'] == 2
        assert entry['searched']['cost'] == pytest.approx(0.85 * entry['target'])
        part = front_comparison.part('flops', entry['target'])
        for group, before in (('searched', ''), ('found', 'found/'), ('random', 'random/')):
            for run in entry[group]['runs']:
                assert run['name'].startswith(before + part)
                told = json.loads((tmp_path / run['name'] / 'summary.json').read_text())
                assert (run['cost'], run['test_accuracy']) == (
                    told['flops_per_image'],
                    told['test_accuracy'],
                )
    rows = summary['searches']
    assert [row['target'] for row in rows] == [t for t in sorted(fronts.TARGETS) for _ in range(2)]
    assert all(row['rank_among_random'] == 1 for row in rows)
    assert summary['above_random_median'] == 6


def test_table_has_a_row_for_each_target_and_group(tmp_path):
    fronts.write(tmp_path)
    text = comparison.table(_compare(tmp_path))
    head = (
        '| test accuracy | flops, at most | flops, mean | runs | mean ± std | median | best | '
        'worst |'
    )
    lines = text.splitlines()
    rows = lines[lines.index(head) + 2 :][:9]
    assert rows[0] == (
        '| searches, at the end | 1,000,000 | 850,000 | 2 | 70.50 % ± 0.71 | 70.50 % | 71.00 % | '
        '70.00 % |'
    )
    assert rows[-1].startswith('| random cells, from scratch | 2,200,000 | 1,540,000 | 2 | 67.00')
    assert all(row.count('|') == head.count('|') for row in rows)
    assert text.endswith('Collapsed: 0 of 6. Above the median of random cells: 6 of 6.\n')
    assert 'random' not in comparison.table(_compare(tmp_path, random=False)).splitlines()[-1]


def test_part_of_a_target_names_it_in_full():
    names = {front_comparison.part('flops', t) for t in (2e5, 200001, 1.5, 1e15)}
    assert names == {'flops_200000/', 'flops_200001/', 'flops_1.5/', 'flops_1e+15/'}
