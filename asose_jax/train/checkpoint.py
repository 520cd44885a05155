"""Orbax checkpoints: the description of a network beside its arrays, and read first.

The description holds a checksum of itself and of every array, since not every flipped bit shows by
itself. What is damaged is passed over in favour of the checkpoint before it, and never deleted.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from asose_jax.runtime.errors import UserError
from asose_jax.runtime.workdir import checksum
from asose_jax.train.state import SearchState

logger = logging.getLogger('asose_jax')

SCHEMA = 6
DAMAGED = 'damaged'  # where checkpoints go that cannot be read, beside the others

T = TypeVar('T')


class DamagedError(Exception):
    """A checkpoint that cannot be read, or is not what was saved; names the file."""


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
        self._preserved = [policies.LatestN(keep), policies.CustomSteps(list(milestones))]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(self._preserved),
            ),
            item_names=('state', 'meta'),
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            with self._writing():
                self._manager.close()
            return
        with contextlib.suppress(Exception):  # of what is wrong, the first thing is told
            self._manager.close()

    def keep_for_good(self, steps: Sequence[int]) -> None:
        """More milestones; from the next save on."""
        policies = checkpoint_managers.preservation_policy
        self._preserved.append(policies.CustomSteps(list(steps)))

    def latest(self) -> int | None:
        """The step of the newest checkpoint; `None` if there is none."""
        return self._manager.latest_step()

    def due(self) -> bool:
        """Whether the last one was saved long enough ago."""
        return time.monotonic() - self._saved >= self._every_seconds

    def restore_latest_valid(self, read: Callable[[int], T]) -> T:
        """What `read` makes of the newest checkpoint that is not damaged.

        Newer ones, if there are any, are moved to `DAMAGED`: their steps will be saved again.

        Args:
          read: takes a step; calls `describe` and `restore`.

        Raises:
          UserError: all are damaged (nothing is moved then), or by another version.
        """
        told = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = read(step)
            except DamagedError as error:
                told.append((step, error))
                continue
            for bad, error in told:
                place = self._quarantine(bad)
                logger.warning('%s\nIt is in %s now; going on from step %d', error, place, step)
            return found
        raise UserError(
            'no checkpoint can be read:\n  '
            + '\n  '.join(str(error) for _, error in told)
            + f'\nNothing was deleted. Put a copy back into {self.directory}, or start anew in '
            'another --workdir.'
        )

    def _quarantine(self, step):
        place = self.directory.parent / DAMAGED
        place.mkdir(exist_ok=True)
        taken = len(list(place.glob(f'{step}*')))
        target = place / (f'{step}.{taken}' if taken else str(step))
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(target)
        multihost_utils.sync_global_devices('put aside')
        self._manager.reload()
        return target

    def describe(self, step: int) -> dict[str, Any]:
        """What was saved as `meta`: it gives the shapes that `restore` needs.

        Raises:
          DamagedError: it cannot be read.
          UserError: it was written by another version.
        """
        only_meta = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with self._reading(step, 'meta'):
            meta = self._manager.restore(step, args=only_meta).meta
            schema = meta['schema']
        if schema != SCHEMA:
            raise UserError(
                f'checkpoint {self.directory / str(step)} has schema {schema}; this version reads '
                f'{SCHEMA}. Use the version of asose_jax that wrote it.'
            )
        with self._reading(step, 'meta'):
            if meta.pop('checksum') != checksum(meta):
                raise ValueError('the checksum is another one')
        return meta

    def restore(self, step: int, like: SearchState) -> SearchState:
        """The state of `step`, bit for bit.

        Args:
          step: of the checkpoint.
          like: a state of the same shapes, concrete or abstract; says where the arrays go.

        Raises:
          DamagedError: it cannot be read, has other shapes than `like`, or a wrong checksum.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        expected = self.describe(step)['checksums']
        with self._reading(step, 'state'):
            state = self._manager.restore(step, args=args).state
            found = _checksums(state)
            differing = [name for name in expected if found.get(name) != expected[name]]
            if differing:
                raise ValueError(f'the checksum of {", ".join(differing[:3])} is another one')
        return state

    def save(self, step: int, state: SearchState, meta: dict[str, Any]) -> None:
        """Saves in the background; does nothing if `step` is saved already.

        Raises:
          UserError: the disk has no room, or this one or the one before could not be written.
        """
        if self.latest() == step:
            return
        require_room(self.directory, state)
        content = {'schema': SCHEMA, **meta, 'checksums': _checksums(state)}
        content = json.loads(json.dumps(content))  # a copy: the run goes on while it is written
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**content, 'checksum': checksum(content)}),
        )
        with self._writing():
            self._manager.save(step, args=args, force=True)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Waits until everything is saved.

        Raises:
          UserError: the last one could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of devices and other hosts, not of the disk
            raise
        except Exception as error:  # tensorstore, Orbax and the system each have their own kinds
            self._manager.reload()
            whole = self._manager.all_steps()
            before = (
                f'{self.directory / str(max(whole))} is whole' if whole else 'there is none yet'
            )
            raise UserError(
                f'a checkpoint could not be written to {self.directory}: {_first_line(error)}\n'
                f'The one before: {before}. Put right what is wrong with the disk; then the same '
                'command goes on from there.'
            ) from error

    @contextlib.contextmanager
    def _reading(self, step, item):
        try:
            yield
        except jax.errors.JaxRuntimeError:  # a device without room, or a host that is lost
            raise
        except Exception as error:
            file = self.directory / str(step) / item
            raise DamagedError(f'checkpoint {file} cannot be read: {_first_line(error)}') from error


def _first_line(error):
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:300]}'


def names(tree: Any) -> list[str]:
    """Of the arrays of a tree, in its order, as `meta['checksums']` has them."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _checksums(tree):
    """A checksum of every array, by its path."""

    def of(array):
        return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    return dict(zip(names(tree), map(of, jax.tree.leaves(jax.device_get(tree))), strict=True))


def has_any(directory: pathlib.Path) -> bool:
    """Whether there is a finished checkpoint, damaged or not."""
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


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
    if (given / 'checkpoints').is_dir():
        return given / 'checkpoints', None
    if given.name.isdigit() and given.is_dir():
        return given.parent, int(given.name)
    raise UserError(
        f'init_from={path!r}: no checkpoints there. Name the workdir of another run, or one '
        'checkpoint of it: WORKDIR/checkpoints/STEP.'
    )
