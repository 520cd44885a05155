"""Whole runs that are sent to a tracker; in the slow ring, to real ones."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from helpers import command
from helpers.runs import Compiled, ask_to_stop, assert_same_end, run_until, tiny

import asose_jax
from asose_jax.metrics import run_record
from asose_jax.pipeline import single_run
from asose_jax.report import tracker, tracker_clients

# 4 + 12 + 4 steps in three phases, of a network of one block.
SMALL = {
    **command.WHOLE,
    'growth.epochs': 0,
    'track': 'mlflow',
}
# Reads a file that W&B has recorded: after 7 bytes, blocks of 32768 bytes with parts of records,
# each after its checksum, length and kind (1: whole, 2: first, 3: middle, 4: last).
READ_WANDB = """
import json, pathlib, sys
from wandb.proto.wandb_internal_pb2 import Record
data, at, record = pathlib.Path(sys.argv[1]).read_bytes(), 7, b''
found = {'points': {}, 'artifacts': {}}
while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    length, kind = int.from_bytes(data[at + 4 : at + 6], 'little'), data[at + 6]
    record += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind not in (1, 4):
        continue
    read, record = Record.FromString(record), b''
    if read.HasField('run'):
        found['name'], found['id'] = read.run.display_name, read.run.run_id
        found['fields'] = [item.key for item in read.run.config.update]
    elif read.HasField('history'):
        items = read.history.item
        items = {'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
        found['points'][read.history.step.num] = items
    elif read.HasField('artifact'):
        names = [entry.path for entry in read.artifact.manifest.contents]
        found['artifacts'][read.artifact.type] = names
    elif read.HasField('exit'):
        found['exit'] = read.exit.exit_code
print(json.dumps(found))
"""


class Memory:
    """A tracker that keeps what it gets."""

    place, finish_seconds = 'Fake at nowhere', 60.0

    def __init__(self):
        self.points, self.ends, self.files = [], [], None

    def open(self):
        return {point.step for point in self.points}

    def send(self, points):
        self.points += points

    def finish(self, status, files):
        self.ends.append(status)
        self.files = files


def _files(workdir):
    """Names of all files of a run, without those that have a number of their own each time."""
    return {
        path.name if path.parent == workdir else path.parent.name
        for path in workdir.rglob('*')
        if path.is_file() and 'checkpoints' not in path.parts
    }


def test_tracked_run_is_the_same_to_the_bit_and_its_tracker_has_all_its_lines(
    tmp_path, monkeypatch
):
    fields = {**command.WHOLE, 'search.epochs': 0, 'growth.epochs': 0, 'optimize.epochs': 0}
    fields |= {'warmup.epochs': 3}
    server, plain, tracked = Memory(), tmp_path / 'plain', tmp_path / 'tracked'
    Compiled().install(monkeypatch)
    single_run.run(tiny(**fields), plain)
    assert 'tracker' not in {thread.name for thread in threading.enumerate()}
    monkeypatch.setattr(tracker_clients, 'require', lambda track: None)
    monkeypatch.setattr(tracker_clients, 'make', lambda *_: server)
    config = tiny(**fields, track='mlflow')
    run_until(6, config, tracked, ask_to_stop)
    single_run.run(config, tracked)
    assert_same_end(tracked, plain, config)
    assert _files(tracked) == _files(plain) | {tracker.FILE}
    lines = run_record.read(tracked).lines
    assert [point.step for point in server.points] == [line['step'] for line in lines]
    names = {name for line in lines for name, value in line.items() if type(value) in (int, float)}
    assert {name for point in server.points for name in point.scalars} == names - {'step'}
    assert server.ends == ['stopped', 'finished']
    assert 'checkpoints/12/meta/metadata' in server.files.model


# --- The real ones


class MlflowServer:
    """MLflow's own server, whose database and files stay when it is killed and started again."""

    def __init__(self, place: pathlib.Path):
        self._place = place
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.address = f'http://127.0.0.1:{free.getsockname()[1]}'

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        """Returns when it answers."""
        arguments = ['server', '--host', '127.0.0.1', '--port', self.address.rpartition(':')[2]]
        arguments += ['--workers', '1', '--backend-store-uri', f'sqlite:///{self._place}/runs.db']
        arguments += ['--artifacts-destination', str(self._place / 'artifacts')]
        with open(self._place / 'server.log', 'a') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'mlflow', *arguments],
                cwd=self._place,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            assert self._process.poll() is None, (self._place / 'server.log').read_text()
            try:
                return urllib.request.urlopen(f'{self.address}/health', timeout=5).close()
            except OSError:
                threading.Event().wait(0.1)

    def kill(self):
        """Ends it with the processes that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask(self, what, **arguments):
        """Returns the answer of its REST API, to a POST request if there is a list."""
        address, data = f'{self.address}/api/2.0/mlflow/{what}', None
        if any(isinstance(value, list) for value in arguments.values()):
            data = json.dumps(arguments).encode()
        else:
            address += f'?{urllib.parse.urlencode(arguments)}'
        request = urllib.request.Request(address, data, {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def history(self, run, name):
        """Returns the steps and values of a metric, in order."""
        asked = self.ask('metrics/get-history', run_id=run, metric_key=name)
        rows = [(int(row['step']), row['value']) for row in asked.get('metrics', [])]
        return sorted(rows)


@pytest.mark.slow
def test_mlflow_has_one_whole_run_though_run_and_server_were_killed(root, tmp_path):
    pytest.importorskip('sqlalchemy', reason='no MLflow with a server here')
    pytest.importorskip('mlflow.version', reason='no MLflow here: tests/requirements-slow.txt')
    workdir = tmp_path / 'run'

    def run():
        environment = {'MLFLOW_TRACKING_URI': server.address, 'MLFLOW_EXPERIMENT_NAME': 'laws'}
        return command.ForkedRun(root, workdir, base=SMALL, environment=environment)

    with MlflowServer(tmp_path) as server:
        first = run()
        assert first.wait_for(command.says('search 1/2')), first.output
        first.kill()
        second = run()
        assert second.wait_for(command.says('optimize: 1 epoch')), second.output
        server.kill()
        assert second.wait() == 0, second.output
        assert f'MLflow at {server.address}' in second.output
        assert 'has not got all of this run' in second.output
        assert (workdir / 'summary.json').exists()
        server.start()
        third = run()
        assert third.wait() == 0, third.output
        assert 'has not got' not in third.output

        experiment = server.ask('experiments/get-by-name', experiment_name='laws')['experiment']
        (found,) = server.ask('runs/search', experiment_ids=[experiment['experiment_id']])['runs']
        assert (found['info']['run_name'], found['info']['status']) == ('run', 'FINISHED')
        config = json.loads((workdir / 'config.json').read_text())
        assert {row['key'] for row in found['data']['params']} == config.keys()
        lines = [run_record.scalars(line) for line in run_record.read(workdir).lines]
        steps = [line['step'] for line in run_record.read(workdir).lines]
        names = {name for line in lines for name in line}
        assert {row['key'] for row in found['data']['metrics']} == names
        for name in names - {'seconds', 'compile_seconds', 'images_per_second'}:
            expected = [
                (s, line[name]) for s, line in zip(steps, lines, strict=True) if name in line
            ]
            assert server.history(found['info']['run_id'], name) == expected, name
        assert [step for step, _ in server.history(found['info']['run_id'], 'seconds')] == steps
    (model,) = (tmp_path / 'artifacts').rglob('model')
    assert (model.parent / 'report.html').read_bytes() == (workdir / 'report.html').read_bytes()
    images = np.arange(3 * 64).reshape(3, 8, 8, 1)
    expected = asose_jax.load(workdir).predict(images)
    np.testing.assert_array_equal(asose_jax.load(model).predict(images), expected)


@pytest.mark.slow
def test_newest_folder_that_wandb_records_has_the_whole_run_though_it_was_stopped(root, tmp_path):
    pytest.importorskip('wandb.proto', reason='no W&B here: tests/requirements-slow.txt')

    def run():
        fields, environment = {'track': 'wandb'}, {'WANDB_MODE': 'offline'}
        return command.ForkedRun(root, tmp_path, fields, base=SMALL, environment=environment)

    first = run()
    assert first.wait_for(command.says('search 1/2')), first.output
    first.signal(signal.SIGTERM)
    assert first.wait() == 0, first.output
    second = run()
    assert second.wait() == 0, second.output
    assert 'has not got' not in second.output
    identity = tracker.identity(tmp_path)
    stopped, whole = sorted(tmp_path.glob('wandb/offline-run-*'))
    assert (stopped / f'run-{identity}.wandb').exists()
    code = [sys.executable, '-c', READ_WANDB, str(whole / f'run-{identity}.wandb')]
    found = json.loads(subprocess.run(code, capture_output=True, check=True).stdout)
    assert (found['id'], found['name'], found['exit']) == (identity, tmp_path.name, 0)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config.keys() <= {*found['fields']}
    lines = run_record.read(tmp_path).lines
    assert [*found['points']] == [str(line['step']) for line in lines]
    for line in lines:
        scalars, got = run_record.scalars(line), found['points'][str(line['step'])]
        assert {name: got[name] for name in scalars} == scalars
    assert {'config.json', 'summary.json', 'run.json'} < {*found['artifacts']['model']}
    assert 'report.html' in found['artifacts']['report']
