"""Several searches side by side, on workdirs written by hand."""

import json

import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.metrics import comparison
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import nasbench201

CONVS = '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|'
SKIPS = '|skip_connect~0|+|skip_connect~0|none~1|+|skip_connect~0|skip_connect~1|avg_pool_3x3~2|'


def _finished(directory, accuracy, text=CONVS):
    directory.mkdir(parents=True)
    chosen = nasbench201.loads(text)
    spec = genotype.derive(networks.build('nasbench201', (8, 8, 1), 10), chosen)
    (directory / 'genotype.json').write_text(chosen.dumps(spec))
    (directory / 'genotype.txt').write_text(text + '\n')
    summary = {
        'test_accuracy': accuracy,
        'valid_accuracy': accuracy,
        'params': 7,
        'genotype': chosen.to_json(),
        'phases': [{'seconds': 2.0}, {'seconds': 3.0}],
    }
    (directory / 'summary.json').write_text(json.dumps(summary))


@pytest.mark.parametrize('content', ['{', '', '[]', '{"params": 7}', '3'])
@pytest.mark.parametrize('name', ['seed_0', 'found/seed_0'])
def test_damaged_summary_of_a_run_is_named(tmp_path, name, content):
    for each in ('seed_0', 'found/seed_0'):
        _finished(tmp_path / each, 0.5)
    (tmp_path / name / 'summary.json').write_text(content)
    with pytest.raises(UserError, match=f'{name}/summary.json cannot be read .* damaged') as told:
        comparison.compare(tmp_path, {'searches': ['seed_0'], 'found': ['found/seed_0']}, 0.8)
    assert '\n' not in str(told.value)


def test_searches_are_ranked_among_random_cells_and_collapse_is_counted(tmp_path):
    _finished(tmp_path / 'seed_0', 0.5)
    _finished(tmp_path / 'seed_1', 0.4, SKIPS)
    _finished(tmp_path / 'found' / 'seed_0', 0.8)
    _finished(tmp_path / 'found' / 'seed_1', 0.6, SKIPS)
    for i, accuracy in enumerate((0.1, 0.65, 0.7, 0.9)):
        _finished(tmp_path / 'random' / str(i), accuracy)
    made = comparison.compare(
        tmp_path,
        {
            'searches': ['seed_0', 'seed_1'],
            'found': ['found/seed_0', 'found/seed_1'],
            'random': [f'random/{i}' for i in range(4)],
        },
        skip_share=0.8,
    )
    assert [row['rank_among_random'] for row in made['searches']] == [2, 4]
    assert [row['above_random_median'] for row in made['searches']] == [True, False]
    assert [row['collapsed'] for row in made['searches']] == [False, True]
    assert [row['skip_connect'] for row in made['searches']] == [1, 4]
    assert [row['parameter_free'] for row in made['searches']] == [2, 6]
    assert (made['collapsed'], made['above_random_median']) == (1, 1)
    assert made['found']['mean'] == pytest.approx(0.7)
    assert made['found']['std'] == pytest.approx(0.2 / 2**0.5)
    assert made['random']['median'] == pytest.approx(0.675)
    assert (made['random']['best'], made['random']['worst']) == (0.9, 0.1)
    assert made['searches'][0]['seconds'] == 5.0
    text = comparison.table(made)
    assert 'Collapsed: 1 of 2. Above the median of random cells: 1 of 2.' in text
    rows = [line for line in text.splitlines() if line.startswith('| seed')]
    assert [row.count('|') for row in rows] == [9, 9]  # those of the cell would break the table


def test_one_search_has_no_spread_and_without_random_cells_nothing_is_ranked(tmp_path):
    _finished(tmp_path / 'seed_3', 0.5)
    made = comparison.compare(tmp_path, {'searches': ['seed_3'], 'found': []}, skip_share=0.8)
    assert made['searched']['std'] is None
    assert 'random' not in made
    assert 'retrained' not in made['searches'][0]
    assert '50.00 %' in comparison.table(made)
    assert comparison.result_line(tmp_path / 'seed_3') == f'test accuracy 50.00 % {CONVS}'


def test_networks_of_one_operation_stand_beside_what_was_found(tmp_path):
    runs = {'searches': ['seed_0'], 'found': ['found/seed_0'], 'nor_conv_3x3': []}
    for name, accuracy in (('seed_0', 0.5), ('found/seed_0', 0.75)):
        _finished(tmp_path / name, accuracy)
    for seed, accuracy in enumerate((0.6, 0.7)):
        runs['nor_conv_3x3'].append(f'plain/nor_conv_3x3/seed_{seed}')
        _finished(tmp_path / runs['nor_conv_3x3'][-1], accuracy)
    made = comparison.compare(tmp_path, runs, skip_share=0.8)
    assert made['plain']['nor_conv_3x3']['mean'] == pytest.approx(0.65)
    assert 'rank_among_random' not in made['searches'][0]
    text = comparison.table(made)
    assert '| nor_conv_3x3 everywhere | 2 | 65.00 %' in text
    assert '| 75.00 % |  |' in text


def test_where_a_run_is_comes_from_its_last_line(tmp_path):
    assert comparison.progress_line(tmp_path) == 'starting'
    line = {'phase': 'search', 'epoch': 3, 'valid/accuracy': 0.417}
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    assert comparison.progress_line(tmp_path) == 'search 3, valid 41.7%'
    with open(tmp_path / 'metrics.jsonl', 'a') as file:  # of a run without a validation part
        file.write('{"phase": "a", "epoch": 1, "valid/accuracy": null, "train/accuracy": 0.5}\n')
    assert comparison.progress_line(tmp_path) == 'a 1, train 50.0%'
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"phase": "sea')
    assert comparison.progress_line(tmp_path) == 'starting'
