"""Operations are timed elsewhere, and what comes back is what a search reckons with."""

import argparse
import ast
import itertools
import json
import logging
import runpy
import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers.networks import priced
from helpers.runs import CHEAPEST, tiny

from asose_jax.costs import expected_cost, latency
from asose_jax.exports import latency_pieces, measure
from asose_jax.nn import operations
from asose_jax.pipeline import builders, initialization
from asose_jax.runtime.errors import UserError

FIELDS = {'growth.epochs': 0, 'model.primitives': (*CHEAPEST, 'none'), 'cost.batch_size': 2}
PRICE = {'cost.kind': 'latency', 'cost.target': 1.0}


@pytest.fixture
def timed(tmp_path, monkeypatch, capsys):
    """Pieces of a search on the digits, the table that the script writes, and what it prints."""
    target = latency_pieces.write(tiny(**FIELDS, **PRICE), tmp_path)
    arguments = ['--seconds=0', '--threads=1', f'--out={tmp_path / "table.json"}']
    monkeypatch.setattr(sys, 'argv', ['measure.py', *arguments])
    runpy.run_path(str(target / 'measure.py'), run_name='__main__')
    return target, tmp_path / 'table.json', capsys.readouterr().out


def test_table_that_comes_back_gives_the_expected_cost_of_the_search(timed, tmp_path):
    """By hand: the network around two choices, and half of each operation beyond nothing."""
    _, file, told = timed
    assert '7 latencies are in' in told
    known = json.loads(file.read_text())
    assert (known['space'], known['images'], known['dtype']) == ('chain', 2, 'float32')
    config = tiny(**FIELDS, **PRICE, **{'cost.table': str(file)})
    images = builders.load_data(config)
    schedule = builders.make_schedule(config, len(images.train))
    spec = initialization.find_origin(config, images, schedule).spec
    latencies = expected_cost.open_latencies(config, tmp_path, started=False)
    latencies.require(spec)
    budget = expected_cost.make_budget(config, latencies)
    found = budget.expected(spec, [np.array([0.5, 0.5, 0.0])] * 2)
    of = known['milliseconds']
    around = next(value for key, value in of.items() if key.startswith('network '))
    for shape in ('8x8x4', '4x4x8'):
        skip, conv, nothing = (
            of[f'{name} {shape} stride 1'] for name in (*CHEAPEST, latency.NOTHING)
        )
        assert skip == nothing  # one file
        around += 0.5 * max(0, conv - nothing)
    assert found == pytest.approx(around)


def test_script_needs_nothing_but_numpy_and_onnxruntime(timed):
    target, *_ = timed
    nodes = [*ast.walk(ast.parse((target / 'measure.py').read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert names - {*sys.stdlib_module_names} == {'numpy', 'onnxruntime'}


def test_script_takes_the_median_of_calls_that_were_warm(timed, monkeypatch):
    """By a clock of our own: calls that warm up take a minute, others 1, 2, ... 50 seconds."""
    target, *_ = timed
    took = [60] * measure.WARMUP_CALLS + [*range(1, measure.MIN_CALLS + 1)]
    times = itertools.chain.from_iterable((0, seconds) for seconds in took)
    monkeypatch.setattr(measure, 'time', types.SimpleNamespace(perf_counter=lambda: next(times)))
    flags = argparse.Namespace(threads=1, provider='CPUExecutionProvider', seconds=0)
    found = measure.milliseconds(next(target.glob('skip_connect*')), 2, flags)
    assert found == 1000 * (1 + measure.MIN_CALLS) / 2
    assert next(times, None) is None


def test_script_times_any_network_and_names_what_it_cannot_do(timed, monkeypatch, capsys):
    target, *_ = timed
    network = next(target.glob('network_*.onnx'))
    monkeypatch.setattr(sys, 'argv', ['measure.py', '--seconds=0', '--images=3', str(network)])
    measure.main()
    assert f'{network}: ' in capsys.readouterr().out
    monkeypatch.setattr(sys, 'argv', ['measure.py', '--provider=Abacus'])
    with pytest.raises(SystemExit):
        measure.main()
    assert '--provider=Abacus: this onnxruntime has' in capsys.readouterr().err


@pytest.mark.parametrize('space', ['darts', 'nasbench201'])
def test_piece_of_every_operation_runs_and_has_its_shape(space):
    names = ('none', 'skip_connect', 'avg_pool_3x3', 'sep_conv_3x3')
    spec = priced(space, tuple(name for name in names if name in operations.PRIMITIVES))
    parts = latency.required(spec)
    strides = {part.stride for part in parts.values() if isinstance(part, latency.Operation)}
    assert strides == ({1, 2} if space == 'darts' else {1})
    for part in parts.values():
        file = latency_pieces._piece(part)
        onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
        session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
        (given,) = session.get_inputs()
        dtype = np.uint8 if given.type == 'tensor(uint8)' else np.float32
        x = np.ones((2, *given.shape[1:]), dtype)
        found = session.run(None, {given.name: x})[-1]
        assert np.isfinite(found).all()
        if isinstance(part, latency.Operation):
            height, width, channels = part.shape
            assert x.shape[1:] == (channels, height, width)
            small = (-(-size // part.stride) for size in (height, width))
            assert found.shape == (2, channels, *small)
        else:
            assert found.shape == (2, spec.num_classes)


def test_pieces_of_a_network_that_grows_are_warned_of(tmp_path, caplog):
    config = tiny(**{**FIELDS, 'growth.epochs': 1, 'cost.batch_size': None})
    with caplog.at_level(logging.INFO, 'asose_jax'):
        latency_pieces.write(config, tmp_path)
    assert 'a search that uses their latencies needs growth.epochs=0' in caplog.text


def test_package_that_pieces_need_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(UserError, match=r'--mode=latency needs packages .* pip install onnx$'):
        latency_pieces.write(tiny(**FIELDS), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
