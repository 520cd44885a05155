"""Benchmarks run, at tiny sizes; what they measure is read by people."""

import json
import subprocess
import sys

import pytest

NAMES = ['compile', 'loop', 'ops', 'scaling', 'step']


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_benchmark_leaves_its_numbers_and_its_picture(name, root, tmp_path):
    if name == 'step':
        pytest.importorskip('torch', reason='the step is compared with PyTorch')
    command = [sys.executable, '-m', f'benchmarks.{name}', '--quick', '--out', str(tmp_path)]
    subprocess.run(command, cwd=root, check=True)
    assert json.loads((tmp_path / f'{name}.json').read_text())['options']['quick']
    assert (tmp_path / f'{name}.png').read_bytes().startswith(b'\x89PNG')
