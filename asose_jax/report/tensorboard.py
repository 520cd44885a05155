"""Writes TensorBoard event files: scalar metrics, and alpha as histograms."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from asose_jax.arch.genotype import NetSpec
from asose_jax.metrics import run_record

FOLDER = 'events'


class Events:
    """Writes the event files of a workdir; when `write` returns, its events are on the disk.

    Args:
      workdir: workdir of the run.
      step: step of the checkpoint that the run continues from. TensorBoard discards the events of
        later steps, which will be written again.
      is_primary_host: whether this is the one process, of those on several hosts, that writes.
    """

    def __init__(self, workdir: pathlib.Path, step: int, is_primary_host: bool = True) -> None:
        """Opens a new event file and marks in it where the run continues."""
        self._writer: EventsWriter | None = None
        if is_primary_host:
            (workdir / FOLDER).mkdir(exist_ok=True)
            # Not `SummaryWriter`: the events in the queue of its thread are lost in a kill.
            self._writer = EventsWriter(str(workdir / FOLDER / 'events'), f'.{step}')
            session_start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step + 1, session_log=session_start))

    def write(self, record: Mapping[str, Any], spec: NetSpec) -> None:
        """Writes the events of one evaluation.

        Args:
          record: the line of metrics.jsonl. Its finite numbers become scalars, its probabilities
            histograms `alpha/GROUP_MEMBER`.
          spec: description of the network.
        """
        if self._writer is None:
            return
        summaries = [
            summary.scalar(name, value) for name, value in run_record.scalars(record).items()
        ]
        rows = [np.array(row) for row in record['arch/probabilities']]
        summaries += [
            summary.histogram(f'alpha/{group}_{member}', row, 'auto')
            for (group, member, _), row in zip(spec.rows(), rows, strict=True)
            if len(row) > 1
        ]
        for value in summaries:
            event = Event(wall_time=time.time(), step=record['step'], summary=value)
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
