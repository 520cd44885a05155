"""TensorBoard event files: the scalars of metrics.jsonl, alpha as histograms, pictures of it."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from asose_jax.arch.genotype import NetSpec
from asose_jax.metrics.run_record import number
from asose_jax.report import charts

FOLDER = 'events'
_CELL, _LABEL, _LINE = (96, 22), 110, 16  # pixels: of a probability, of a row's name, of the head


class Events:
    """The event files of a workdir. What is told is on the disk when the call is over.

    Args:
      workdir: of the run.
      step: of the checkpoint that the run goes on from; TensorBoard forgets what was told of later
        steps, which will be told again.
      is_primary_host: whether this process is the one, of those on many hosts, that writes.
    """

    def __init__(self, workdir: pathlib.Path, step: int, is_primary_host: bool = True):
        self._writer = None
        if is_primary_host:
            (workdir / FOLDER).mkdir(exist_ok=True)
            # No thread, as `SummaryWriter` has: what it holds at a kill would be missing for good.
            self._writer = EventsWriter(str(workdir / FOLDER / 'events'), f'.{step}')
            begins = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step + 1, session_log=begins))

    def write(self, record: Mapping[str, Any], spec: NetSpec, picture: bool) -> None:
        """Tells an evaluation.

        Args:
          record: a line of metrics.
          spec: of the network.
          picture: whether to draw the choices, too.
        """
        if self._writer is None:
            return
        told = [
            summary.scalar(name, value)
            for name, value in record.items()
            if name != 'step' and number(value) is not None
        ]
        rows = [np.array(row) for row in record['arch/probabilities']]
        told += [
            summary.histogram(f'alpha/{group}_{member}', row, 'auto')
            for (group, member, _), row in zip(spec.rows(), rows, strict=True)
            if len(row) > 1
        ]
        if picture:
            drawn = choices(spec, rows, record['genotype'])
            told.append(summary.image('choices', drawn, dataformats='HWC'))
        for each in told:
            event = Event(wall_time=time.time(), step=record['step'], summary=each)
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def choices(spec: NetSpec, rows: list[np.ndarray], chosen: list[list[str]]) -> np.ndarray:
    """A picture of every choice: the probabilities of its candidates, what is chosen framed.

    Args:
      spec: of the network.
      rows: probabilities `[K]` for each of `spec.rows()`.
      chosen: the genotype, as in JSON.

    Returns:
      `[H, W, 3]` uint8.
    """
    names = list(dict.fromkeys(name for row in spec.rows() for name in row.candidates))
    wide, high = _CELL
    size = (_LABEL + wide * len(names), _LINE + high * len(rows))
    image = Image.new('RGB', size, 'white')
    pen = ImageDraw.Draw(image)
    for k, name in enumerate(names):
        pen.text((_LABEL + wide * k + 3, 2), name, fill='black')
    for i, (row, shares) in enumerate(zip(spec.rows(), rows, strict=True)):
        top = _LINE + high * i
        pen.text((3, top + 5), f'{row.group}, {row.member}', fill='black')
        for name, share in zip(row.candidates, shares, strict=True):
            left = _LABEL + wide * names.index(name)
            box = (left, top, left + wide - 2, top + high - 2)
            colour = tuple(charts.viridis(np.array([share]))[0].tolist())
            mine = chosen[row.group][row.member] == name
            pen.rectangle(box, fill=colour, outline='red' if mine else colour, width=2)
            pen.text((left + 4, top + 4), f'{share:.2f}', fill='black' if share > 0.6 else 'white')
    return np.asarray(image)
