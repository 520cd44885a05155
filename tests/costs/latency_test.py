"""Latencies: measured once, kept in a file, and never taken from a wrong one."""

import itertools
import json
import logging
import pathlib
import types

import jax
import numpy as np
import pytest
from helpers import networks

from asose_jax.costs import expected_cost, flops, latency
from asose_jax.costs.latency import Latencies, LatencyTable, required
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain
from configs.search import get_config

PRICED = chain.build(
    (4, 4, 1),
    3,
    channels=4,
    depth=2,
    reductions=(1,),
    max_channels=8,
    primitives=('none', 'skip_connect', 'max_pool_3x3'),
)
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


# --- Tables of another machine


def _table(path, keys, **changes):
    """A table with another number for each key, as `measure.py` writes it but for the checksum."""
    content = {
        'space': 'chain',
        'device': 'a telephone',
        'images': 1,
        'milliseconds': {key: float((i + 3) * 7 % 11) for i, key in enumerate(keys)},
        **changes,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_table_has_what_the_costs_of_a_network_are_made_of(tmp_path):
    """By hand: the network around the operations, and each beyond nothing of its shape."""
    table = _table(tmp_path / 'table', required(PRICED))
    held, known = (
        LatencyTable(tmp_path / 'x', 1, table),
        json.loads((tmp_path / 'table').read_text()),
    )
    held.require(PRICED)
    (name, *_), known = known['milliseconds'], known['milliseconds']
    assert name.startswith('network ')
    costs = flops.cost_table(PRICED, flops.Meter(held.operation, held.network))
    beyond = [
        [
            max(0, known[f'{name} {shape} stride 1'] - known[f'nothing {shape} stride 1'])
            for name in row
        ]
        for shape, row in zip(
            ('4x4x4', '2x2x8'), [PRICED.rows()[0].candidates[1:]] * 2, strict=True
        )
    ]
    np.testing.assert_allclose(costs.rows, [[0, *row] for row in beyond])
    assert costs.constant == max(0, known[name] - sum(row[0] for row in beyond))
    assert held.network(SPEC) is None


def test_table_of_another_space_is_refused(tmp_path):
    held = LatencyTable(tmp_path / 'x', 1, _table(tmp_path / 'table', required(PRICED)))
    with pytest.raises(
        UserError, match=r"table' is of the space 'chain', .* 'darts'. Write the"
    ) as e:
        held.require(networks.build('darts', (8, 8, 1), 3, channels=4, depth=3))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize(('kept', 'more'), [(-2, ''), (0, ' and 3 more')])
def test_table_with_latencies_missing_is_refused_with_the_list(tmp_path, kept, more, monkeypatch):
    monkeypatch.setattr(latency, '_LISTED', 4)
    keys = [*required(PRICED)]
    assert len(keys) == 1 + 2 * 3
    held = LatencyTable(tmp_path / 'x', 1, _table(tmp_path / 'table', keys[:kept]))
    missing = keys[kept:]
    text = f'lacks {len(missing)} latencies of this search: {", ".join(missing[:4])}{more}. Write'
    with pytest.raises(UserError) as raised:
        held.require(PRICED)
    assert text in str(raised.value)
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'images': 8}, r'was measured with images=8, but this run has cost.batch_size=1'),
        ({'checksum': 3}, r'is damaged: its checksum does not match'),
        (
            {'milliseconds': {'a': float('nan')}},
            r'is damaged: it has latencies that are no numbers',
        ),
        ({'milliseconds': {'a': -1.0}}, r'is damaged: it has latencies that are no numbers'),
        ({'milliseconds': None}, r'cannot be read .*It must be what measure.py wrote'),
    ],
)
def test_table_that_is_none_or_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"cost.table='.*table' {message}"):
        LatencyTable(tmp_path / 'x', 1, _table(tmp_path / 'table', (), **changes))


def test_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cost.table='nowhere' cannot be read .*No such file"):
        LatencyTable(tmp_path / 'x', 1, 'nowhere')


def test_run_that_is_resumed_goes_on_with_its_copy_of_the_table(tmp_path):
    table = _table(tmp_path / 'table', required(PRICED))
    config = get_config('digits')
    config.update_from_flattened_dict({'cost.limit.latency': 9.0, 'cost.table': table})
    begun = expected_cost.open_latencies(config, tmp_path, started=False)
    begun.save()
    (tmp_path / 'table').write_text('another')
    resumed = expected_cost.open_latencies(config, tmp_path, started=True)
    place = ('max_pool_3x3', (2, 2, 8), 1)
    assert begun.operation(*place) == resumed.operation(*place) > 0
    before = (tmp_path / 'latency.json').read_text()
    resumed.save()
    assert (tmp_path / 'latency.json').read_text() == before
    assert json.loads(before)['device'] == 'a telephone'
    with pytest.raises(UserError, match='cannot be read'):  # a run that has not begun reads anew
        expected_cost.open_latencies(config, tmp_path, started=False)
