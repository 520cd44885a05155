"""metrics.jsonl: one line for each evaluation of a run."""

import json
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from asose_jax.runtime import workdir

logger = logging.getLogger('asose_jax')


class MetricsLog:
    """metrics.jsonl: one line per evaluation, in the order of steps.

    Args:
      path: of the file.
      step: of the checkpoint that the run goes on from. Later lines, and a half-written last one,
        are of work that will be done again, and are dropped.
      is_primary_host: whether this process is the one, of those on many hosts, that writes.
    """

    def __init__(self, path: pathlib.Path, step: int, is_primary_host: bool = True):
        self._path, self._is_primary_host = path, is_primary_host
        if is_primary_host and path.exists():
            lines = path.read_text(encoding='utf-8', errors='replace').splitlines(keepends=True)
            kept = [line for line in lines if _step_of(line, path) <= step]
            workdir.write_atomically(path, ''.join(kept))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line, and waits until the disk has it. NaN and Inf become null."""
        if not self._is_primary_host:
            return
        legal = {key: None if _is_odd(value) else value for key, value in metrics.items()}
        workdir.append(self._path, json.dumps(legal, allow_nan=False) + '\n')


def _step_of(line, path):
    """Of a line of metrics; that of a broken line is beyond all others."""
    try:
        return json.loads(line)['step'] if line.endswith('\n') else math.inf
    except (ValueError, KeyError, TypeError):
        logger.warning('%s: a line that cannot be read is left out: %.80s', path, line.strip())
        return math.inf


def _is_odd(value):
    return isinstance(value, float) and not math.isfinite(value)
