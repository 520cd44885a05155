"""Requests to MLflow and W&B, of which small stand-ins keep what they are told."""

import re
import sys
import types

import pytest
from helpers.runs import tiny

from asose_jax.config.consistency import flatten
from asose_jax.report import tracker, tracker_clients
from asose_jax.runtime.errors import UserError
from asose_jax.sweep import runner


class MlflowError(Exception):
    pass


class MlflowServer:
    """MLflow with one experiment at most, and the limits of its server."""

    def __init__(self, monkeypatch):
        self.experiment, self.runs, self.files = None, {}, []
        self.MlflowClient, self.MlflowException = lambda: self, MlflowError
        self.entities = types.SimpleNamespace(
            Param=lambda *values: values, Metric=lambda *values: values
        )
        self.get_tracking_uri = lambda: 'http://someone:secret@host:5000'
        monkeypatch.setattr(tracker_clients, '_package', lambda name: self)

    def get_experiment_by_name(self, name):
        return self.experiment

    def create_experiment(self, name):
        self.experiment = types.SimpleNamespace(name=name, experiment_id='7')
        return '7'

    def search_runs(self, experiments, condition):
        assert experiments == ['7']
        key, value = re.fullmatch(r"tags\.(\w+) = '(\w+)'", condition).groups()
        return [run for run in self.runs.values() if run.tags.get(key) == value]

    def create_run(self, experiment, tags, run_name):
        info = types.SimpleNamespace(
            run_id=f'run{len(self.runs)}', experiment_id=experiment, status='RUNNING'
        )
        run = types.SimpleNamespace(info=info, tags=tags, name=run_name, metrics=[])
        run.data = types.SimpleNamespace(params={})
        self.runs[info.run_id] = run
        return run

    def get_run(self, run_id):
        return self.runs[run_id]

    def update_run(self, run_id, status):
        self.runs[run_id].info.status = status

    set_terminated = update_run

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        assert len(metrics) <= 1000
        known = self.runs[run_id].data.params
        for name, value in params:
            assert known.setdefault(name, value) == value, 'parameters cannot be changed'
            assert len(value) <= 500
        for name, *_ in (*params, *metrics):
            assert re.fullmatch(r'[\w./ -]{1,250}', name)
        self.runs[run_id].metrics += metrics

    def get_metric_history(self, run_id, key):
        rows = [row for row in self.runs[run_id].metrics if row[0] == key]
        return [types.SimpleNamespace(step=step) for *_, step in rows]

    def log_artifact(self, run_id, path, folder):
        self.files.append((path, folder))


def _point(step, scalars=30):
    numbers = {f'number/{i}': float(i) for i in range(scalars - 1)}
    return tracker.Point(step, 1.5, {**numbers, 'seconds': 0.5})


def _client(directory, **changes):
    return tracker_clients.make('mlflow', directory, 'abc', 'digits', flatten(tiny(**changes)))


def test_mlflow_gets_the_config_and_all_numbers_within_its_limits(tmp_path, monkeypatch):
    server = MlflowServer(monkeypatch)
    client = _client(tmp_path, init_from='/' + 'long' * 200)
    assert client.open() == set()
    client.send([_point(step) for step in range(1, 101)])
    (run,) = server.runs.values()
    assert (run.name, server.experiment.name) == ('digits', 'asose_jax')
    fields = flatten(tiny(init_from='/' + 'long' * 200))
    assert run.data.params == {name: str(value)[:500] for name, value in fields.items()}
    assert len(run.metrics) == 3000
    assert run.metrics[-1] == ('seconds', 0.5, 1500, 100)
    assert client.place == 'MLflow at http://host:5000/#/experiments/7/runs/run0'


@pytest.mark.parametrize(
    ('address', 'expected'),
    [
        ('sqlite:////tmp/mlflow.db', 'sqlite:////tmp/mlflow.db'),
        ('https://me:secret@host/path', 'https://host/path'),
        ('http://127.0.0.1:5000', 'http://127.0.0.1:5000'),
    ],
)
def test_log_names_the_address_without_its_password(tmp_path, monkeypatch, address, expected):
    server = MlflowServer(monkeypatch)
    server.get_tracking_uri = lambda: address
    assert _client(tmp_path).place == f'MLflow at {expected}'


def test_mlflow_run_is_found_again_with_the_steps_that_it_has(tmp_path, monkeypatch):
    server = MlflowServer(monkeypatch)
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'mine')
    first = _client(tmp_path)
    first.open()
    first.send([_point(4), _point(8)])
    first.finish(tracker.STOPPED, None)
    (run,) = server.runs.values()
    assert run.info.status == 'KILLED'
    again = _client(tmp_path, **{'chunk_steps': 1})  # a field that may change
    assert again.open() == {4, 8}
    assert len(server.runs) == 1
    assert run.info.status == 'RUNNING'
    assert server.experiment.name == 'mine'
    report = {'report.html': tmp_path / 'report.html'}
    model = {'checkpoints/8/state/d': tmp_path / 'checkpoints/8/state/d'}
    again.finish(tracker.FINISHED, tracker.Files(report, model))
    assert run.info.status == 'FINISHED'
    assert server.files == [
        (str(tmp_path / 'report.html'), None),
        (str(tmp_path / 'checkpoints/8/state/d'), 'model/checkpoints/8/state'),
    ]


def test_experiment_that_another_run_has_just_created_is_taken(tmp_path, monkeypatch):
    server = MlflowServer(monkeypatch)
    create = server.create_experiment

    def is_late(name):
        create(name)
        raise MlflowError('it exists')

    server.create_experiment = is_late
    client = _client(tmp_path)
    client.open()
    assert server.runs['run0'].info.experiment_id == '7'


class WandbServer:
    """W&B, whose server may be away; it begins at step 5 where it knows a run."""

    def __init__(self, monkeypatch, away=False):
        self.begun, self.logged, self.artifacts, self.ended = [], [], {}, []
        self.away, self.in_use, self.Error, self.Settings = away, False, ValueError, dict
        settings = types.SimpleNamespace(finish_timeout=0.0)
        self.setup = lambda: types.SimpleNamespace(settings=settings)
        monkeypatch.setattr(tracker_clients, '_package', lambda name: self)

    def init(self, **arguments):
        mode = arguments.get('mode', 'online')
        if self.in_use:
            raise ValueError('the id is in use')
        if self.away and mode == 'online':
            self.in_use = True
            raise ValueError('no\nserver')
        self.begun.append(arguments)
        return types.SimpleNamespace(
            step=6 if mode == 'online' else 0,
            url='http://wandb/digits',
            dir='/runs/offline/files',
            settings=types.SimpleNamespace(mode=mode),
            log=lambda scalars, step: self.logged.append((step, scalars)),
            log_artifact=lambda one: self.artifacts.update({one.type: one.files}),
            mark_preempting=lambda: self.ended.append('preempted'),
            finish=lambda **how: self.ended.append(how['exit_code']),
        )

    def teardown(self):
        self.in_use = False

    def Artifact(self, name, type):  # noqa: N802
        files = []
        return types.SimpleNamespace(
            type=type, files=files, add_file=lambda path, name: files.append((path, name))
        )


def test_wandb_run_goes_on_under_its_id_after_the_steps_that_it_has(tmp_path, monkeypatch):
    server = WandbServer(monkeypatch)
    monkeypatch.setenv('WANDB_PROJECT', 'mine')
    client = tracker_clients.make('wandb', tmp_path, 'abc', 'digits', flatten(tiny()))
    assert [step in client.open() for step in (4, 5, 6)] == [True, True, False]
    client.send([_point(6)])
    (arguments,) = server.begun
    assert (arguments['id'], arguments['resume'], arguments['name']) == ('abc', 'allow', 'digits')
    assert 'project' not in arguments  # which the variable names
    assert arguments['config'] == flatten(tiny())
    assert server.logged == [(6, _point(6).scalars)]
    client.finish(tracker.STOPPED, None)
    assert server.ended == ['preempted', 1]


def test_wandb_run_is_recorded_in_the_workdir_while_its_server_is_away(
    tmp_path, monkeypatch, caplog
):
    server = WandbServer(monkeypatch, away=True)
    client = tracker_clients.make('wandb', tmp_path, 'abc', 'digits', flatten(tiny()))
    assert 0 not in client.open()
    assert server.begun[0]['mode'] == 'offline'
    assert server.begun[0]['dir'] == str(tmp_path)
    assert caplog.messages == ['W&B cannot be reached: no server']
    assert 'wandb sync /runs/offline' in client.place
    files = tracker.Files({'report.html': tmp_path / 'r'}, {'config.json': tmp_path / 'c'})
    client.finish(tracker.FINISHED, files)
    assert server.artifacts == {
        'report': [(str(tmp_path / 'r'), 'report.html')],
        'model': [(str(tmp_path / 'c'), 'config.json')],
    }
    assert server.ended == [0]


@pytest.mark.parametrize('track', ['mlflow', 'wandb'])
@pytest.mark.parametrize('seeds', [(), (0, 1)])
def test_package_that_a_tracker_needs_is_named_before_anything_is_written(
    tmp_path, monkeypatch, track, seeds
):
    monkeypatch.setitem(sys.modules, track, None)
    expected = f"^track='{track}' needs packages that are not installed: pip install {track}$"
    with pytest.raises(UserError, match=expected):
        runner.search(tiny(track=track, seeds=seeds), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_folder_that_wandb_leaves_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / 'wandb').mkdir()
    monkeypatch.setitem(sys.modules, 'wandb', types.ModuleType('wandb'))
    with pytest.raises(UserError, match='pip install wandb'):
        tracker_clients.require('wandb')
