"""Several processes as hosts of one run, over loopback: two with two devices each."""

import json
import re
import shutil
import signal
import socket
import types

import jax
import numpy as np
import pytest
from helpers.command import ForkedRun, says
from helpers.runs import lines_of, streamed

from asose_jax.train import pmap

pytestmark = pytest.mark.xdist_group('hosts')  # they share the undisturbed runs
FIELDS = {'growth.kinds': ('depth',), 'growth.epochs': 4, 'chunk_steps': 4}


def _port():
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def _hosts(root, workdir, hosts=2, devices=2, fields=None):
    address = f'localhost:{_port()}'
    common = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(hosts)}
    return [
        ForkedRun(
            root,
            workdir,
            {**FIELDS, **(fields or {})},
            ('--multihost',),
            {**common, 'JAX_PROCESS_ID': str(i), 'JAX_NUM_CPU_DEVICES': str(devices)},
        )
        for i in range(hosts)
    ]


@pytest.fixture(scope='module')
def alone(root, tmp_path_factory):
    """One process with four devices."""
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    run = ForkedRun(root, workdir, FIELDS, environment={'JAX_NUM_CPU_DEVICES': '4'})
    assert run.wait() == 0, run.output
    return workdir


def _assert_alike(ours, theirs):
    ours, theirs = lines_of(ours), lines_of(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a['step'], a['phase'], a['genotype']) == (b['step'], b['phase'], b['genotype'])
        for key in ('train/loss', 'valid/loss'):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, err_msg=f'{key} at {a["step"]}')


@pytest.fixture(scope='module')
def together(root, tmp_path_factory):
    """Two hosts of two devices each, undisturbed."""
    workdir = tmp_path_factory.mktemp('together') / 'run'
    for run in _hosts(root, workdir):
        assert run.wait() == 0, run.output
    return workdir


@pytest.mark.slow
def test_two_hosts_of_two_devices_do_what_one_of_four_does(alone, together):
    _assert_alike(together, alone)
    assert [event['kind'] for line in lines_of(together) for event in line['growth']] == ['depth']
    genotypes = [json.loads((w / 'genotype.json').read_text()) for w in (together, alone)]
    assert genotypes[0] == genotypes[1]
    both = [json.loads((w / 'summary.json').read_text()) for w in (together, alone)]
    for key in ('test_accuracy', 'test_balanced_accuracy'):
        assert both[0][key] == both[1][key], key


@pytest.mark.soak
def test_hosts_stop_together_and_go_on_also_when_one_is_lost_and_with_any_number_of_hosts(
    root, tmp_path, alone, together
):
    first, second = _hosts(root, tmp_path / 'run')  # it is the signal that saves
    assert first.wait_for(says('search 1/2')), first.output
    second.signal(signal.SIGTERM)
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    stopped = re.search(r'stopped and saved at step (\d+) of', first.output)
    assert int(stopped[1]) in first.steps()

    first, second = _hosts(root, tmp_path / 'run')
    assert first.wait_for(says('growth 2/4')), first.output
    second.kill()
    assert first.wait() != 0
    # The other words are of JAX, and of its collectives on CPUs, where they notice it first.
    words = ('another host', 'another task died', 'gloo')
    assert any(word in first.output for word in words), first.output
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    for run in _hosts(root, tmp_path / 'run'):
        assert run.wait() == 0, run.output
    assert lines_of(tmp_path / 'run') == lines_of(together)
    single = ForkedRun(root, tmp_path / 'copy', FIELDS, environment={'JAX_NUM_CPU_DEVICES': '2'})
    assert single.wait() == 0, single.output
    _assert_alike(tmp_path / 'copy', alone)


@pytest.mark.soak
def test_hosts_read_their_parts_of_streamed_batches(root, tmp_path, cifar_dir):
    fields = streamed(cifar_dir)
    one = ForkedRun(root, tmp_path / 'one', fields, environment={'JAX_NUM_CPU_DEVICES': '4'})
    assert one.wait() == 0, one.output
    assert 'streamed' in one.output
    for run in _hosts(root, tmp_path / 'two', fields=fields):
        assert run.wait() == 0, run.output
    _assert_alike(tmp_path / 'two', tmp_path / 'one')


def test_parts_of_all_hosts_are_the_batch(monkeypatch):
    hosts = [0, 0, 1, 1]
    owners = [types.SimpleNamespace(process_index=host) for host in hosts]
    monkeypatch.setattr(pmap.jax, 'devices', lambda: owners)
    monkeypatch.setattr(pmap.jax, 'process_count', lambda: 2)
    parts = []
    for host in (0, 1):
        monkeypatch.setattr(pmap.jax, 'process_index', lambda host=host: host)
        parts.append(pmap.host_shard(np.arange(16)))
    np.testing.assert_array_equal(parts[0], np.arange(8))
    np.testing.assert_array_equal(parts[1], np.arange(8, 16))


# ml_collections loads the default config, when main is imported, by a method that is to go.
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize(
    ('flag', 'workers', 'joins'),
    [
        (None, '', False),
        (None, 'localhost', False),
        (None, 'host-0,host-1', True),
        (False, 'host-0,host-1', False),
        (True, '', True),
    ],
)
def test_hosts_of_a_pod_join_by_themselves(monkeypatch, flag, workers, joins):
    from asose_jax import cli

    calls = []
    monkeypatch.setattr(cli, '_MULTIHOST', types.SimpleNamespace(value=flag))
    monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: calls.append(given))
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', workers)
    monkeypatch.setenv('JAX_PROCESS_ID', '1')
    cli._join_hosts()
    assert len(calls) == joins
    if joins:
        assert calls[0]['process_id'] == 1
        assert calls[0]['heartbeat_timeout_seconds'] <= 60


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_hosts_that_cannot_find_each_other_are_told_what_to_set(monkeypatch):
    from asose_jax import cli

    def lost(**_):
        raise ValueError('coordinator_address should be defined.')

    monkeypatch.setattr(cli, '_MULTIHOST', types.SimpleNamespace(value=True))
    monkeypatch.setattr(jax.distributed, 'initialize', lost)
    with pytest.raises(SystemExit, match=r'(?s)coordinator_address.*JAX_COORDINATOR_ADDRESS'):
        cli._join_hosts()


@pytest.mark.slow
def test_hosts_that_cannot_find_each_other_end_their_processes(root, tmp_path):
    run = ForkedRun(root, tmp_path / 'run', options=('--multihost',))
    assert run.wait() == 1
    assert 'JAX_COORDINATOR_ADDRESS' in run.output
    assert 'Traceback' not in run.output
    assert not (tmp_path / 'run').exists()
