"""Clients of MLflow and Weights & Biases, for `tracker.Tracker`.

Where a run is sent, and under which experiment or project, is said by the environment variables of
these tools. Both packages are optional, and are imported for the runs that use them only.
"""

import importlib
import logging
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from asose_jax.report.tracker import FAILED, FINISHED, STOPPED, Client, Files, Point
from asose_jax.runtime import packages
from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')

_PROJECT = 'asose_jax'  # the experiment or project, unless the environment names another
_FINISH_SECONDS = 30.0


def require(track: str | None) -> None:
    """Fails unless runs can be sent to the tracker of this name; asks no server.

    Raises:
      UserError: its package is missing, or does not know where to send.
    """
    if track is not None:
        packages.require(f'track={track!r}', track)
        _CHECKS[track]()


def make(
    track: str, directory: pathlib.Path, identity: str, name: str, fields: Mapping[str, Any]
) -> Client:
    """Returns the client for a run.

    Args:
      track: the field `track`.
      directory: workdir of the run.
      identity: the id of the run, see `tracker.identity`.
      name: of the run.
      fields: of the config, by name.
    """
    return _CLIENTS[track](directory, identity, name, fields)


def _package(name: str) -> Any:
    """Imports a package of which nothing is known where it is not installed."""
    return importlib.import_module(name)


# --- MLflow

_MLFLOW_STATUS = {FINISHED: 'FINISHED', STOPPED: 'KILLED', FAILED: 'FAILED'}
_TAG = 'asose_jax_id'
_MARK = 'seconds'  # a metric of each evaluation, which tells what steps the server has
_MAX_PARAMS = 100  # in one request
_MAX_METRICS = 1000  # likewise
_MAX_VALUE = 500  # characters of a parameter; newer servers take more


def _require_mlflow() -> None:
    """Fails if the package cannot use the address, as a part of it does without a server."""
    mlflow = _package('mlflow')
    try:
        mlflow.MlflowClient()
    except (mlflow.MlflowException, ImportError) as error:
        raise UserError(
            f"track='mlflow': {_place_of(mlflow.get_tracking_uri())} cannot be used "
            f'({type(error).__name__}). Set MLFLOW_TRACKING_URI to that of a server, such as '
            'http://127.0.0.1:5000, or install all of MLflow: pip install mlflow.'
        ) from error


def _place_of(address: str) -> str:
    """Returns an address without the password that it may hold."""
    user, at, _ = urllib.parse.urlsplit(address).netloc.rpartition('@')
    return address.replace(user + at, '', 1)


class Mlflow:
    """Sends a run to MLflow. The run there has a tag with our id, by which it is found again."""

    def __init__(
        self, directory: pathlib.Path, identity: str, name: str, fields: Mapping[str, Any]
    ) -> None:
        """Asks no server yet; see `make` for the arguments."""
        # Its own defaults wait for minutes. `Tracker` tries again, and keeps what was not sent.
        os.environ.setdefault('MLFLOW_HTTP_REQUEST_MAX_RETRIES', '1')
        os.environ.setdefault('MLFLOW_HTTP_REQUEST_TIMEOUT', '15')
        # It would print addresses with their passwords.
        os.environ.setdefault('MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT', 'true')
        self._mlflow = mlflow = _package('mlflow')
        self.place = self._address = f'MLflow at {_place_of(mlflow.get_tracking_uri())}'
        self.finish_seconds = _FINISH_SECONDS
        self._client = mlflow.MlflowClient()
        self._identity, self._name, self._fields = identity, name, fields
        self._run_id: str | None = None

    def open(self) -> Collection[int]:
        """Finds the run by its tag, or creates it, with the config as parameters.

        Parameters cannot be changed in MLflow: they are those that the run began with.
        """
        if self._run_id is None:
            self._run_id = self._find()
        run = self._client.get_run(self._run_id)
        if self._address.startswith('MLflow at http'):
            page = f'#/experiments/{run.info.experiment_id}/runs/{self._run_id}'
            self.place = f'{self._address}/{page}'
        if run.info.status != 'RUNNING':
            self._client.update_run(self._run_id, status='RUNNING')
        params = [
            self._mlflow.entities.Param(name, str(value)[:_MAX_VALUE])
            for name, value in self._fields.items()
            if name not in run.data.params
        ]
        for first in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + _MAX_PARAMS])
        return {metric.step for metric in self._client.get_metric_history(self._run_id, _MARK)}

    def _find(self) -> str:
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.{_TAG} = '{self._identity}'")
        if found:
            return found[0].info.run_id
        tags = {_TAG: self._identity}
        return self._client.create_run(experiment, tags=tags, run_name=self._name).info.run_id

    def _experiment(self) -> str:
        """Returns the id of the experiment, which may be new."""
        chosen = os.environ.get('MLFLOW_EXPERIMENT_ID')
        if chosen:
            return chosen
        name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or _PROJECT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        try:
            return self._client.create_experiment(name)
        except self._mlflow.MlflowException:  # another run of a sweep may have created it meanwhile
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return experiment.experiment_id

    def send(self, points: Sequence[Point]) -> None:
        """Sends whole evaluations in each request, so that `open` can tell which are missing."""
        assert self._run_id is not None
        at_once = _MAX_METRICS // max(1, *(len(point.scalars) for point in points))
        for first in range(0, len(points), at_once):
            metrics = [
                self._mlflow.entities.Metric(name, value, int(1000 * point.seconds), point.step)
                for point in points[first : first + at_once]
                for name, value in point.scalars.items()
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, status: str, files: Files | None) -> None:
        """Sends the files as artifacts, those of the model in the folder `model`."""
        assert self._run_id is not None
        if files is not None:
            named = [*files.report.items()]
            named += [(f'model/{name}', path) for name, path in files.model.items()]
            for name, path in named:
                folder = name.rpartition('/')[0] or None
                self._client.log_artifact(self._run_id, str(path), folder)
        self._client.set_terminated(self._run_id, _MLFLOW_STATUS[status])


# --- Weights & Biases


def _require_wandb() -> None:
    """Fails without an API key, unless nothing is sent; on a terminal, W&B asks for one."""
    wandb = _package('wandb')
    try:
        if wandb.setup().settings.mode == 'online':
            wandb.login(verify=False)
    except wandb.Error as error:
        raise UserError(
            f"track='wandb': {error} Or record without a server: WANDB_MODE=offline."
        ) from error


class Wandb:
    """Sends a run to Weights & Biases, whose own process does the waiting for the server."""

    def __init__(
        self, directory: pathlib.Path, identity: str, name: str, fields: Mapping[str, Any]
    ) -> None:
        """Asks no server yet; see `make` for the arguments."""
        wandb = _package('wandb')
        self.place = 'W&B'
        self._run: Any = None
        self._identity = identity
        self._settings = {
            'console': 'off',  # the log and the progress bar stay as they are
            'silent': True,
            **_unless_set(init_timeout=15.0, finish_timeout=_FINISH_SECONDS),
        }
        shared = wandb.setup().settings
        self.finish_seconds = 10 + self._settings.get('finish_timeout', shared.finish_timeout)
        self._arguments = {
            'config': dict(fields),
            **_unless_set(project=_PROJECT, name=name, dir=str(directory)),
        }

    def open(self) -> Collection[int]:
        """Begins or resumes the run. Without a server, W&B records it in the workdir."""
        if self._run is None:
            try:
                self._run = self._begin()
            except Exception as error:  # it has many, and the next attempt raises if it matters
                logger.warning('W&B cannot be reached: %s', ' '.join(str(error).split())[:200])
                _package('wandb').teardown()  # its process still holds the id of this run
                self._run = self._begin(mode='offline')
            if self._run.settings.mode == 'online':
                self.place = f'W&B at {self._run.url}'
            else:
                self.place = f'W&B, to be sent by wandb sync {pathlib.Path(self._run.dir).parent},'
        return range(self._run.step)

    def _begin(self, **mode: Any) -> Any:
        wandb = _package('wandb')
        return wandb.init(
            id=self._identity,
            resume='allow',
            allow_val_change=True,
            reinit='create_new',  # a run of the caller's program stays its own
            settings=wandb.Settings(**self._settings),
            **self._arguments,
            **mode,
        )

    def send(self, points: Sequence[Point]) -> None:
        """Hands the evaluations to the process of W&B."""
        for point in points:
            self._run.log(point.scalars, step=point.step)

    def finish(self, status: str, files: Files | None) -> None:
        """Sends two artifacts, of the types `report` and `model`."""
        wandb = _package('wandb')
        if files is not None:
            for kind, named in files._asdict().items():
                artifact = wandb.Artifact(f'{kind}-{self._identity}', type=kind)
                for name, path in named.items():
                    artifact.add_file(str(path), name)
                self._run.log_artifact(artifact)
        if status == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == FINISHED else 1)


def _unless_set(**values: Any) -> dict[str, Any]:
    """Returns the settings of W&B that its environment variables do not set."""
    return {
        name: value for name, value in values.items() if f'WANDB_{name.upper()}' not in os.environ
    }


_CHECKS: dict[str, Callable[[], None]] = {'mlflow': _require_mlflow, 'wandb': _require_wandb}
_CLIENTS: dict[str, Callable[..., Client]] = {'mlflow': Mlflow, 'wandb': Wandb}
