"""Benchmarks run, at tiny sizes; what they measure is read by people."""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.benchmarks import NAMES
from jax import lax

import asose_jax
from benchmarks import ablation, accelerator, floors, measure, ours
from configs.search import get_config


@pytest.mark.soak
@pytest.mark.parametrize('name', NAMES)
def test_benchmark_leaves_its_numbers_and_its_picture(name, root, tmp_path):
    if name == 'step':
        pytest.importorskip('torch', reason='the step is compared with PyTorch')
    command = [sys.executable, '-m', f'benchmarks.{name}', '--quick', '--out', str(tmp_path)]
    subprocess.run(command, cwd=root, check=True)
    assert json.loads((tmp_path / f'{name}.json').read_text())['options']['quick']
    assert (tmp_path / f'{name}.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.soak
def test_floors_are_computed_of_both_turns(root, tmp_path):
    command = [sys.executable, '-m', 'benchmarks.floors', '--quick', '--out', str(tmp_path)]
    subprocess.run(command, cwd=root, check=True)
    rows = json.loads((tmp_path / 'floors.json').read_text())['steps']
    assert [*rows] == [f'digits, {turn}' for turn in floors.TURNS]
    for row in rows.values():
        assert row['now']['bytes'] > 0
        low, high = row['floors_ms']['launches']
        assert 0 < low < high


def test_conditionals_kernels_and_bytes_are_those_of_a_count_by_hand():
    x, kernel = np.ones((2, 8, 8, 4), 'f'), np.ones((3, 3, 4, 4), 'f')
    images, taps = 4 * 2 * 8 * 8 * 4, 4 * 3 * 3 * 4 * 4  # bytes

    def convolved(x):
        y = lax.conv_general_dilated(jnp.maximum(x, 0), kernel, (1, 1), 'SAME', **layout)
        return y + (y * y).sum() + y.sum()

    layout = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
    step = jax.jit(lambda k, x: lax.switch(k, [convolved, jnp.tanh, jnp.tanh, jnp.tanh], x))
    lowered = step.trace(np.int32(0), x).lower(lowering_platforms=('cuda',))
    # The ReLU is written, the convolution reads it, and both sums take one kernel.
    moved = 2 * images + (2 * images + taps) + images
    assert floors.Reader(lowered, 0).count() == floors.Count(1, 0, 3, moved)
    assert floors.Reader(lowered).count() == floors.Count(1, 0, 3 / 4, moved / 4)
    least = floors.Count(conditionals=100, kernels=1000, bytes=3.35e9).floors_ms()
    np.testing.assert_allclose(least['H100 SXM'], 1)
    np.testing.assert_allclose(least['launches'], [3.8, 5.0])


def test_no_place_of_the_machine_is_told(monkeypatch):
    given = ['x', '--out', '/home/me', '--repeats', '2', '--workdir=/home/me', '--data-dir', '/me']
    monkeypatch.setattr(sys, 'argv', given)
    command = measure.machine()['command']
    assert command.endswith('--out DIR --repeats 2 --workdir=DIR --data-dir DIR')


def test_the_table_takes_over_runs_with_the_configs_of_today_only(tmp_path):
    file, runs = tmp_path / 'ablation.json', {'0': {'test': 0.5}}
    told = {**ablation.differing(ablation.SIZE), 'rows': {'defaults': runs, 'seed': runs}}
    file.write_text(json.dumps(told))
    assert ablation.earlier(file, ablation.SIZE) == told['rows']
    assert ablation.earlier(file, ablation.SIZE | {'batch_size': 32}) == {}
    told['defaults']['weights.clip'] = 1.0  # of the row `seed` it is its own, and another
    del told['defaults']['data.cutout']  # was not there yet
    told['defaults']['data.noise'] = 0.1  # is not there any more
    file.write_text(json.dumps(told))
    assert ablation.earlier(file, ablation.SIZE) == {'seed': runs}


@pytest.mark.soak
def test_growth_position_compares_the_places_of_a_new_block(root, tmp_path):
    small = {'model.channels': 4, 'model.depth': 2, 'model.reductions': (1,)}
    small |= {'model.primitives': ('skip_connect', 'max_pool_3x3'), 'warmup.epochs': 0}
    small |= {'search.epochs': 1, 'growth.epochs': 0, 'optimize.epochs': 1}
    config = get_config('digits')
    config.update_from_flattened_dict(small)
    asose_jax.search(config, tmp_path / 'run')
    place = min((tmp_path / 'run' / 'checkpoints').glob('[0-9]*'), key=lambda path: int(path.name))
    command = [sys.executable, '-m', 'benchmarks.growth_position', str(place), '--epochs=1']
    told = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert re.findall(r'block at (\d): score', told) == ['0', '1', '2']
    assert re.search(r'mean advantage over 1 networks: [+-]\d', told)


@pytest.mark.soak
def test_ablation_writes_its_table_with_every_run_and_repeats_none(root, tmp_path):
    command = [sys.executable, '-m', 'benchmarks.ablation', '--quick', '--out', str(tmp_path)]
    command += ['--workdir', str(tmp_path / 'runs'), '--seeds', '0', '1', '--from-scratch']
    subprocess.run(command, cwd=root, check=True)
    told = json.loads((tmp_path / 'ablation.json').read_text())
    assert {row: [*runs] for row, runs in told['rows'].items()} == {
        'broken': ['0', '1'],
        'defaults': ['0', '1'],
    }
    for run in told['rows']['broken'].values():
        assert run['guarded'] == 0
        assert run['lowest'] <= run['argmax']
        assert 0 < run['scratch'] < 1
        assert len(run['curves']['phase']) == 4
    table = (tmp_path / 'ablation.md').read_text()
    assert re.search(r'^\| broken \| 2 \| [\d.]+ ± ', table, re.MULTILINE)
    assert (tmp_path / 'fall.png').read_bytes().startswith(b'\x89PNG')
    written = (tmp_path / 'runs' / 'broken' / 'seed_0' / 'summary.json').stat().st_mtime_ns
    subprocess.run(command, cwd=root, check=True)
    again = (tmp_path / 'runs' / 'broken' / 'seed_0' / 'summary.json').stat().st_mtime_ns
    assert again == written
    shutil.rmtree(tmp_path / 'runs' / 'broken')  # what was told of it stays
    size = ablation.SIZE | ablation.QUICK
    known = ablation.earlier(tmp_path / 'ablation.json', size)
    assert ablation.finished(tmp_path / 'runs', known) == told['rows'] == known
    assert not ablation.earlier(tmp_path / 'ablation.json', ablation.SIZE)


def _accelerator(root, tmp_path, *options):
    command = [sys.executable, '-m', 'benchmarks.accelerator', '--quick', '--out', str(tmp_path)]
    subprocess.run([*command, *options], cwd=root, check=True, stdout=subprocess.DEVNULL)
    return json.loads((tmp_path / 'accelerator.json').read_text())['parts']


def test_parts_for_which_there_is_no_time_are_listed_as_left_out(root, tmp_path):
    parts = _accelerator(root, tmp_path, '--minutes', '0.05')
    assert list(parts) == list(accelerator.PARTS)
    for name, part in parts.items():
        assert (part['ended'], part['rows'], list(part['left_out'])) == ('left out', {}, [name])


def test_a_row_for_which_there_is_no_time_is_listed_and_the_rest_is_kept(tmp_path):
    report = accelerator.Report(tmp_path / 'part.json', seconds=60)
    report.add('fast', ratio=measure.Ratio(1.5, 1.0, 2.0))
    with report.attempt('large'):
        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')
    assert report.has_time('short', 30)
    assert not report.has_time('long', 90)
    content = json.loads(report.path.read_text())
    assert content['rows'] == {'fast': {'ratio': {'median': 1.5, 'low': 1.0, 'high': 2.0}}}
    assert list(content['left_out']) == ['large', 'long']


def test_a_part_that_takes_too_long_is_ended_and_its_rows_are_kept(tmp_path, monkeypatch):
    content = {'rows': {'row': {'number': 1}}, 'left_out': {}}
    begun = []

    class Slow(subprocess.Popen):
        """A part that writes a row, and then does not come to its end."""

        def __init__(self, command, **options):
            path = command[command.index('--json') + 1]
            pathlib.Path(path).write_text(json.dumps(content))
            code = 'import time; time.sleep(600)'
            super().__init__([sys.executable, '-c', code], **options)
            begun.append(self)

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            raise subprocess.TimeoutExpired('part', timeout)

    monkeypatch.setattr(accelerator.subprocess, 'Popen', Slow)
    options = argparse.Namespace(quick=True, data_dir=None)
    part = accelerator.one_part(options, 'steps', 600, 60, tmp_path, {**os.environ})
    assert part | content == part
    assert part['ended'] == 'ended, since it took too long'
    assert begun[0].returncode == -signal.SIGKILL


@pytest.mark.soak
def test_accelerator_tries_all_of_its_parts_on_the_cpu(root, tmp_path):
    parts = _accelerator(root, tmp_path, '--minutes', '60')
    assert {part['ended'] for part in parts.values()} == {'done'}
    left_out = {name: part['left_out'] for name, part in parts.items() if part['left_out']}
    assert left_out.keys() <= {'torch'}
    numbers = parts['numbers']['rows']
    assert [numbers[f'primitives in {name}']['passes'] for name in ours.PRECISIONS] == 3 * [True]
    assert numbers['20 steps against the CPU']['weights_after_20'] < 1e-5
    assert parts['digits']['rows']['digits']['finished']
    for row in ('two runs', 'stopped and resumed'):
        assert parts['resume']['rows'][row]['same_bits']
    assert parts['resume']['rows']['stopped and resumed']['was_at_its_end'] is False
    for row in ('cifar10', 'nasbench201'):
        assert parts['presets']['rows'][row]['hours_extrapolated'] > 0
    steps = parts['steps']['rows']['C=4 batch=8 bfloat16']
    assert steps['limit_ms'].keys() < steps['ms'].keys()
