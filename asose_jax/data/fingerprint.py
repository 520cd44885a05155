"""Recognizes a data set, so that a run never meets other data unnoticed."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from asose_jax.runtime.errors import UserError, counted

MAX_LISTED = 5  # files or folders that one message lists


class MissingDataError(UserError):
    """The data set is not where it should be, so nothing can be said about it."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Identifies a data set.

    Attributes:
      record: what run.json says about it under `data`. For a folder: `name`, `split_by` ('content',
        or 'position' in runs begun by older versions), `files` (how many) and `digest`. For a TFDS
        set: `name`, `version`, and split and number of images to train and to test on.
      files: hash of the bytes of each picture of a folder, by its path below the folder, as in
        data.json; `None` for other sets.
    """

    record: dict[str, Any]
    files: dict[str, str] | None = None

    def changes(self, record: Mapping[str, Any], files: Mapping[str, str]) -> list[str]:
        """Describes how this data set differs from the one that a run recorded.

        A renamed picture is no change where the split depends on content alone.

        Args:
          record: of the run, see `record`; entries it lacks are not compared.
          files: of the run, see `files`; empty if they are not known.
        """
        if self.files is None:
            return [
                f'{key} was {record[key]!r}, now {value!r}'
                for key, value in self.record.items()
                if record.get(key, value) != value
            ]
        if record.get('digest') in (None, self.record['digest']):
            return []
        if not files:
            return ['the pictures differ (data.json, which lists them, cannot be read)']
        return _file_changes(files, self.files, self.record['split_by'] == 'content')


def _file_changes(
    before: Mapping[str, str], now: Mapping[str, str], renames_allowed: bool
) -> list[str]:
    """Describes new, missing and changed files; at least one change is described.

    `renames_allowed` says whether a file may have another name in the same folder.
    """

    def key(path: str, content: str) -> tuple[str, str]:
        return (str(pathlib.PurePath(path).parent) if renames_allowed else path, content)

    def surplus(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
        left = collections.Counter(key(*item) for item in ours.items())
        left -= collections.Counter(key(*item) for item in theirs.items())
        found = []
        for path in sorted(ours):
            if ours[path] != theirs.get(path) and left[key(path, ours[path])] > 0:
                left[key(path, ours[path])] -= 1
                found.append(path)
        return found

    added, removed = surplus(now, before), surplus(before, now)
    groups = {
        'new': [path for path in added if path not in before],
        'gone': [path for path in removed if path not in now],
        'changed': [path for path in added if path in before],
    }
    changes = [
        f'{counted(len(paths), "picture is", "pictures are")} {what}: {several(paths)}'
        for what, paths in groups.items()
        if paths
    ]
    return changes or ['the pictures are in other folders']


def digest_of_bytes(content: bytes) -> str:
    """Returns the hash that stands for the bytes of one file, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_of_lines(lines: Sequence[str]) -> str:
    """Returns the hash of a collection of lines; their order does not matter."""
    joined = '\n'.join(sorted(lines))
    return digest_of_bytes(joined.encode(errors='surrogateescape'))


def several(names: Sequence[str]) -> str:
    """Returns the first few names, quoted, and how many more there are."""
    shown = ', '.join(repr(name) for name in names[:MAX_LISTED])
    return shown + (f' and {len(names) - MAX_LISTED} more' if len(names) > MAX_LISTED else '')
