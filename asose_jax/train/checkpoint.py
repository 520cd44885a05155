"""Saves and restores checkpoints with Orbax, and passes over damaged ones.

A checkpoint has two items: `state`, the arrays, and `meta`, a JSON description of the network that
is read first, since it gives the shapes. `meta` holds a checksum of itself and of every array: the
format does not detect every flipped bit. A damaged checkpoint is moved aside, never deleted, and
the one before it is used.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

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
DAMAGED = 'damaged'  # name of the directory for damaged checkpoints, beside `checkpoints`

T = TypeVar('T')


class DamagedError(Exception):
    """Raised for a checkpoint that cannot be read, or differs from what was saved.

    The message names the file.
    """


class Checkpoints:
    """Saves and restores the checkpoints of one workdir.

    Saving continues in the background; leaving the context waits for it. A reader, which saves
    nothing, names the directory only.

    Example:
      with Checkpoints(directory) as checkpoints:
        checkpoints.save(step, state, meta)

    Args:
      directory: directory of the checkpoints; created if it does not exist.
      keep: number of the newest checkpoints to keep.
      milestones: steps whose checkpoints are kept for good, the ends of the phases.
      every_seconds: seconds from one checkpoint until the next is due.

    Attributes:
      directory: the absolute directory of the checkpoints.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        keep: int = 1,
        milestones: Sequence[int] = (),
        every_seconds: float = 0,
    ) -> None:
        """Opens the directory; see the class for the arguments."""
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
        """Returns itself."""
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Waits until everything is saved.

        Raises:
          UserError: the last checkpoint could not be written, and the body raised nothing.
        """
        if kind is None:
            with self._writing():
                self._manager.close()
            return
        with contextlib.suppress(Exception):  # must not hide the error of the body
            self._manager.close()

    def keep_for_good(self, steps: Sequence[int]) -> None:
        """Adds milestones; takes effect with the next save."""
        policies = checkpoint_managers.preservation_policy
        self._preserved.append(policies.CustomSteps(list(steps)))

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or `None` if there is none."""
        return self._manager.latest_step()

    def due(self) -> bool:
        """Returns whether the last save was at least `every_seconds` ago."""
        return time.monotonic() - self._saved >= self._every_seconds

    def restore_latest_valid(self, read: Callable[[int], T]) -> T:
        """Reads the newest checkpoint that is not damaged.

        Newer, damaged ones are moved to the directory `DAMAGED`: their steps will be saved again.

        Args:
          read: takes a step, calls `describe` and `restore`, and returns what it made of them.

        Returns:
          The result of `read`.

        Raises:
          UserError: all checkpoints are damaged (none is moved then), or one was written by another
            version.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                result = read(step)
            except DamagedError as error:
                damaged.append((step, error))
                continue
            for damaged_step, error in damaged:
                target = self._quarantine(damaged_step)
                logger.warning('%s\nMoved it to %s; resuming from step %d', error, target, step)
            return result
        raise UserError(
            'no checkpoint can be read:\n  '
            + '\n  '.join(str(error) for _, error in damaged)
            + f'\nNothing was deleted. Restore a backup of {self.directory}, or start again with '
            'another --workdir.'
        )

    def _quarantine(self, step: int) -> pathlib.Path:
        """Moves the checkpoint of `step` to the directory `DAMAGED`, and returns its new path."""
        directory = self.directory.parent / DAMAGED
        directory.mkdir(exist_ok=True)
        earlier = len(list(directory.glob(f'{step}*')))
        target = directory / (f'{step}.{earlier}' if earlier else str(step))
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(target)
        multihost_utils.sync_global_devices('quarantine')
        self._manager.reload()
        return target

    def describe(self, step: int) -> dict[str, Any]:
        """Reads the `meta` of a checkpoint, which gives the shapes that `restore` needs.

        It is what `save` got, with `schema` and `checksums`.

        Raises:
          DamagedError: it cannot be read.
          UserError: it was written by another version.
        """
        only_meta = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with self._reading(step, 'meta'):
            meta = cast(Any, self._manager.restore(step, args=only_meta)).meta
            schema = meta['schema']
        if schema != SCHEMA:
            raise UserError(
                f'checkpoint {self.directory / str(step)} has schema {schema}; this version reads '
                f'schema {SCHEMA}. Use the version of asose_jax that wrote it.'
            )
        with self._reading(step, 'meta'):
            if meta.pop('checksum') != checksum(meta):
                raise ValueError('checksum mismatch')
        return meta

    def restore(self, step: int, like: SearchState) -> SearchState:
        """Restores a state, bit for bit.

        Args:
          step: step of the checkpoint.
          like: a state of the same shapes, concrete or abstract; its sharding says where to place
            the arrays.

        Returns:
          The state.

        Raises:
          DamagedError: it cannot be read, has other shapes than `like`, or a wrong checksum.
        """
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        expected = self.describe(step)['checksums']
        with self._reading(step, 'state'):
            state = cast(Any, self._manager.restore(step, args=args)).state
            actual = _checksums(state)
            differing = [name for name in expected if actual.get(name) != expected[name]]
            if differing:
                raise ValueError(f'checksum mismatch in {", ".join(differing[:3])}')
        return state

    def save(self, step: int, state: SearchState, meta: dict[str, Any]) -> None:
        """Saves a checkpoint in the background; does nothing if `step` is the newest one.

        Args:
          step: step of the run.
          state: the state; its buffers may be donated after the call.
          meta: description of the network and the run, JSON-compatible. It is copied.

        Raises:
          UserError: the disk is too full, or this or the previous checkpoint could not be written.
        """
        if self.latest() == step:
            return
        require_disk_space(self.directory, state)
        content = {'schema': SCHEMA, **meta, 'checksums': _checksums(state)}
        # A copy: the run changes its history while this is written in the background.
        content = json.loads(json.dumps(content))
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
          UserError: the last checkpoint could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of the disk into a `UserError` that names the last complete checkpoint."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of devices and other hosts, not of the disk
            raise
        except Exception as error:  # tensorstore, Orbax and the system each have their own kinds
            self._manager.reload()
            complete = self._manager.all_steps()
            last = self.directory / str(max(complete)) if complete else 'none yet'
            raise UserError(
                f'a checkpoint could not be written to {self.directory}: {_first_line(error)}\n'
                f'Last complete checkpoint: {last}. Fix the disk, then run the same command again: '
                'it resumes from there.'
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int, item: str) -> Iterator[None]:
        """Turns errors of the disk and the format into a `DamagedError` that names the file."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # of a device without memory, or a host that is lost
            raise
        except Exception as error:
            file = self.directory / str(step) / item
            raise DamagedError(f'checkpoint {file} cannot be read: {_first_line(error)}') from error


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:300]}'


def array_paths(tree: Any) -> list[str]:
    """Returns the paths of the arrays of a tree, in order; the keys of `meta['checksums']`.

    Example:
      ".params['head']['kernel']"
    """
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _checksums(tree: Any) -> dict[str, int]:
    """Returns the CRC-32 of every array, by its path."""

    def crc32(array: np.ndarray) -> int:
        return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    return dict(
        zip(array_paths(tree), map(crc32, jax.tree.leaves(jax.device_get(tree))), strict=True)
    )


def has_average(names: Iterable[str]) -> bool:
    """Returns whether a checkpoint whose arrays have these names has an average of the weights."""
    return any(name.startswith('.average') for name in names)


def has_checkpoint(directory: pathlib.Path) -> bool:
    """Returns whether the directory has a finished checkpoint, damaged or not.

    Raises:
      NotADirectoryError: it is a file, so that no checkpoint could be written there.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def require_disk_space(directory: pathlib.Path, state: SearchState) -> None:
    """Checks that the disk has room for two checkpoints of `state`.

    Raises:
      UserError: it has not.
    """
    needed = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 2**24
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f'no room for checkpoints: {directory} has {free / 2**20:.0f} MiB free, '
            f'{needed / 2**20:.0f} MiB are needed. Free some space, or choose another --workdir.'
        )


def parse_init_from(path: str) -> tuple[pathlib.Path, int | None]:
    """Splits the value of `init_from` into a checkpoint directory and a step.

    Args:
      path: a workdir, or one checkpoint in it: `WORKDIR/checkpoints/STEP`.

    Returns:
      The directory of the checkpoints, and the step; `None` stands for the newest.

    Raises:
      UserError: there are no checkpoints.
    """
    place = pathlib.Path(os.path.expanduser(path))
    if (place / 'checkpoints').is_dir():
        return place / 'checkpoints', None
    if place.name.isdigit() and place.is_dir():
        return place.parent, int(place.name)
    raise UserError(
        f'init_from={path!r}: no checkpoints there. Give the workdir of another run, or one '
        'checkpoint of it: WORKDIR/checkpoints/STEP.'
    )
