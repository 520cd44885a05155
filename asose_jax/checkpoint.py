"""Orbax checkpoints: the description of a network beside its arrays, and read first."""

import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from asose_jax.errors import UserError
from asose_jax.state import SearchState

SCHEMA = 3


class Checkpoints:
    """The checkpoints of one workdir. Saving goes on in the background; leaving the context waits.

    Args:
      directory: made if it is not there.
      keep: how many of the newest to keep.
      milestones: steps to keep for good, the ends of the phases.
      every_seconds: after so many, another one is due.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = 1,
        milestones: Sequence[int] = (),
        every_seconds: float = 0,
    ):
        self.directory = directory.absolute()
        self._every_seconds, self._saved = every_seconds, time.monotonic()
        policies = checkpoint_managers.preservation_policy
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), policies.CustomSteps(list(milestones))]
                ),
            ),
            item_names=('state', 'meta'),
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint; `None` if there is none."""
        return self._manager.latest_step()

    def due(self) -> bool:
        """Whether the last one was saved long enough ago."""
        return time.monotonic() - self._saved >= self._every_seconds

    def describe(self, step: int) -> dict[str, Any]:
        """What was saved as `meta`: it gives the shapes that `restore` needs.

        Raises:
          UserError: it cannot be read, or was written by another version.
        """
        only_meta = ocp.args.Composite(meta=ocp.args.JsonRestore())
        try:
            meta = self._manager.restore(step, args=only_meta).meta
            schema = meta['schema']
        except Exception as error:
            raise self._unreadable(step, error) from error
        if schema != SCHEMA:
            raise UserError(
                f'checkpoint {self.directory / str(step)} has schema {schema}; this version reads '
                f'{SCHEMA}. Use the version of asose_jax that wrote it.'
            )
        return meta

    def restore(self, step: int, like: SearchState) -> SearchState:
        """The state of `step`, bit for bit.

        Args:
          step: of the checkpoint.
          like: a state of the same shapes, concrete or abstract; says where the arrays go.

        Raises:
          UserError: it cannot be read, or its shapes are not those of `like`.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return self._manager.restore(step, args=args).state
        except Exception as error:
            raise self._unreadable(step, error) from error

    def save(self, step: int, state: SearchState, meta: dict[str, Any]) -> None:
        """Saves in the background; does nothing if `step` is saved already.

        Raises:
          UserError: the disk has no room for it.
        """
        if self.latest() == step:
            return
        require_room(self.directory, state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({'schema': SCHEMA, **meta})
        )
        self._manager.save(step, args=args, force=True)
        self._saved = time.monotonic()

    def _unreadable(self, step, error):
        first_line = (str(error).splitlines() or [''])[0][:300]
        return UserError(
            f'checkpoint {self.directory / str(step)} cannot be read: '
            f'{type(error).__name__}: {first_line}\n'
            f'To go on from the one before, move it out of {self.directory}; to start anew, choose '
            'another --workdir.'
        )


def require_room(directory: pathlib.Path, state: SearchState) -> None:
    """Raises UserError unless the disk has room for two checkpoints of `state`."""
    need = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**24
    free = shutil.disk_usage(directory).free
    if free < need:
        raise UserError(
            f'no room for checkpoints: {directory} has {free / 2**20:.0f} MiB free, '
            f'{need / 2**20:.0f} MiB are needed. Free some, or choose another --workdir.'
        )


def locate(path: str) -> tuple[pathlib.Path, int | None]:
    """Splits the value of `init_from` into a checkpoint directory and a step (`None`: the newest).

    Args:
      path: a workdir, or one checkpoint in it: `WORKDIR/checkpoints/STEP`.

    Raises:
      UserError: there are no checkpoints.
    """
    given = pathlib.Path(os.path.expanduser(path))
    if given.name.isdigit() and given.is_dir():
        return given.parent, int(given.name)
    if (given / 'checkpoints').is_dir():
        return given / 'checkpoints', None
    raise UserError(
        f'init_from={path!r}: no checkpoints there. Name the workdir of another run, or one '
        'checkpoint of it: WORKDIR/checkpoints/STEP.'
    )
