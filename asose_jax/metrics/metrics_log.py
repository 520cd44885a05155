"""Writes metrics.jsonl: one line for each evaluation of a run."""

import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from asose_jax.runtime import workdir

logger = logging.getLogger('asose_jax')


class MetricsLog:
    """Appends to metrics.jsonl: one line for each evaluation, in the order of steps.

    Args:
      path: path of the file.
      step: step of the checkpoint that the run continues from. Lines of later steps, and a
        half-written last line, are removed: their work is done again.
      is_primary_host: whether this is the one process, of those on several hosts, that writes.
    """

    def __init__(self, path: pathlib.Path, step: int, is_primary_host: bool = True) -> None:
        """Opens the log and removes the lines after `step`."""
        self._path, self._is_primary_host = path, is_primary_host
        if is_primary_host and path.exists():
            lines = path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)
            valid_lines = [line for line in lines if _step_of(line, path) <= step]
            workdir.write_atomically(path, ''.join(valid_lines))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends a line of JSON values and waits until it is on the disk.

        NaN and infinity, which JSON does not have, are written as null.
        """
        if not self._is_primary_host:
            return
        finite = {key: None if _is_non_finite(value) else value for key, value in metrics.items()}
        workdir.append_durably(self._path, json.dumps(finite, allow_nan=False) + '\n')


def _step_of(line: str, path: pathlib.Path) -> float:
    """Returns the step of a metrics line, or infinity if it cannot be parsed."""
    try:
        return json.loads(line)['step'] if line.endswith('\n') else math.inf
    except (ValueError, KeyError, TypeError):
        logger.warning('%s: removed a line that cannot be parsed: %.80s', path, line.strip())
        return math.inf


def _is_non_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
