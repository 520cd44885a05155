"""Latencies: measured once, kept in a file, and never taken from a wrong one."""

import itertools
import json
import logging
import pathlib
import types

import jax
import numpy as np
import pytest

from asose_jax.costs import flops, latency
from asose_jax.costs.latency import Latencies
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain

SPEC = chain.build((4, 4, 1), 3, channels=4, depth=1, reductions=(), max_channels=4, primitives=())
SPEC = SPEC.with_groups(((('sep_conv_3x3',),),))


@pytest.fixture
def clock(monkeypatch):
    """Counts what is measured; each takes a millisecond more than the one before."""
    taken = []

    def measured(part):
        taken.append(part)
        return (float(len(taken)),) * 3

    monkeypatch.setattr(latency, 'measure_milliseconds', measured)
    return taken


def test_measurement_is_the_quartiles_of_calls_that_were_warm(monkeypatch):
    """By a clock of our own: two calls take a minute, the others 1, 2, ... 10 seconds."""
    took = [60, 60, *range(1, 11)]
    times = itertools.chain.from_iterable((0, seconds) for seconds in took)
    monkeypatch.setattr(latency, 'time', types.SimpleNamespace(perf_counter=lambda: next(times)))
    found = latency.measure_milliseconds(
        flops.operation_program('conv_7x1_1x7', (4, 4, 4), 1, 2, 'float32')
    )
    of_a_pass = 1000 * np.arange(1, 11) / latency._PASSES_PER_CALL
    np.testing.assert_allclose(found, np.quantile(of_a_pass, (0.25, 0.5, 0.75)))
    assert next(times, None) is None


def test_more_work_takes_longer_and_nothing_takes_nothing(monkeypatch):
    """Where a pass takes as long as its operations are many, whatever the machine."""

    def measured(part):
        variables = jax.eval_shape(part.start, jax.random.key(0), part.x)
        flops = jax.jit(part.call).lower(variables, part.x).cost_analysis().get('flops', 0.0)
        return (1e-6 * flops + 1.0,) * 3

    monkeypatch.setattr(latency, 'measure_milliseconds', measured)
    held = Latencies(pathlib.Path('none'), 8, 'float32')
    whole = held.network(SPEC)
    assert 0 < whole < held.operation('conv_7x1_1x7', (32, 32, 64), 1)
    assert held.operation('skip_connect', (8, 8, 4), 1) == 0


def test_each_name_shape_and_stride_is_measured_once(clock, tmp_path):
    held = Latencies(tmp_path / 'file', 1, 'float32')
    for _ in range(2):
        assert held.operation('max_pool_3x3', (8, 8, 4), 1) == 0  # 1 ms; an idle pass takes 2
        assert held.operation('max_pool_3x3', (8, 8, 4), 2) == 0
        assert held.operation('sep_conv_3x3', (8, 8, 4), 1) == 5 - 2
        assert held.network(SPEC) == 6
    assert len(clock) == 6
    assert [part.x.shape for part in clock][-1] == (1, 4, 4, 1)


def test_what_is_in_the_file_is_not_measured_again(clock, tmp_path):
    held = Latencies(tmp_path / 'file', 2, 'float32')
    held.network(SPEC)
    held.save()
    again = Latencies(tmp_path / 'file', 2, 'float32')
    assert again.network(SPEC) == 1.0
    assert len(clock) == 1
    again.operation('sep_conv_3x3', (8, 8, 4), 1)  # as when a network grows
    again.save()
    third = Latencies(tmp_path / 'file', 2, 'float32')
    assert third.operation('sep_conv_3x3', (8, 8, 4), 1) == again.operation(
        'sep_conv_3x3', (8, 8, 4), 1
    )
    assert len(clock) == 3


def test_a_busy_machine_is_told(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(latency, 'measure_milliseconds', lambda part: (1.0, 1.5, 2.5))
    with caplog.at_level(logging.WARNING, 'asose_jax'):
        assert Latencies(tmp_path / 'file', 1, 'float32').network(SPEC) == 1.5
    assert '1.000 to 2.500 ms, which is too wide a range' in caplog.text


def _other_number(text):
    return text.replace('1.0', '1.5')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda text: text[: len(text) // 2], 'cannot be read'),
        (lambda text: '', 'cannot be read'),
        (lambda text: '[]', 'cannot be read'),
        (lambda text: json.dumps({**json.loads(text), 'milliseconds': {'a': 'b'}}), 'cannot be'),
        (_other_number, 'is damaged: its checksum does not match'),
    ],
)
def test_damaged_file_is_one_clear_error_and_stays(clock, tmp_path, change, message):
    file = tmp_path / 'latency.json'
    held = Latencies(file, 1, 'float32')
    held.network(SPEC)
    held.save()
    file.write_text(change(file.read_text()))
    before = file.read_text()
    with pytest.raises(UserError, match=rf'(?s){message}.*delete the file to measure again'):
        Latencies(file, 1, 'float32')
    assert file.read_text() == before


@pytest.mark.parametrize(
    ('images', 'dtype', 'device'),
    [(8, 'float32', None), (1, 'bfloat16', None), (1, 'float32', 'tpu v9')],
)
def test_file_of_another_device_or_setting_is_one_clear_error(
    clock, tmp_path, images, dtype, device
):
    file = tmp_path / 'latency.json'
    held = Latencies(file, 1, 'float32')
    held.network(SPEC)
    held.save()
    if device:
        content = {**json.loads(file.read_text()), 'device': device}
        del content['checksum']
        content['checksum'] = workdir.checksum(content)
        workdir.write_atomically(file, json.dumps(content))
    with pytest.raises(UserError, match=r'was measured with .*, but this run measures with'):
        Latencies(file, images, dtype)
