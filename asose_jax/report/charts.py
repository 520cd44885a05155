"""Charts as numbers: lines and heat maps over the evaluations of a run, in the units of an SVG.

All share one frame: the phases as bands, the growths as marks, and one column for each evaluation.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from asose_jax.metrics.run_record import Record

# Ten steps of viridis, which can be told apart without colour vision, and in grey.
_VIRIDIS = (
    (0x44, 0x01, 0x54), (0x48, 0x28, 0x78), (0x3E, 0x49, 0x89), (0x31, 0x68, 0x8E),
    (0x26, 0x82, 0x8E), (0x1F, 0x9E, 0x89), (0x35, 0xB7, 0x79), (0x6E, 0xCE, 0x58),
    (0xB5, 0xDE, 0x2B), (0xFD, 0xE7, 0x25),
)  # fmt: skip
_EMPTY = 255  # the colour that is none
LETTER, _GAP = 6.4, 22.0  # widths: of a letter in a label, of a label of a growth
_HIGH = 12.0  # of a label


@dataclasses.dataclass(frozen=True)
class Line:
    """A series of a chart: its name, a number or None for each evaluation, its style.

    `label` stands beside its end.
    """

    name: str
    values: Sequence[float | None]
    style: str
    label: str = ''

    @property
    def last(self) -> float | None:
        """The newest number, if there is any."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where things are: the field from (`left`, `top`) to (`right`, `bottom`), and its columns."""

    count: int
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, column: float) -> float:
        """The middle of a column."""
        return round(self.left + (column + 0.5) / self.count * (self.right - self.left), 1)


def frame(record: Record, count: int, width: float, height: float, **margins: float) -> dict:
    """The frame of a chart of the first `count` evaluations: bands, marks and numbers below."""
    at = {'left': 40.0, 'right': 8.0, 'top': 30.0, 'bottom': 22.0, **margins}
    made = Frame(
        max(1, count), width, height, at['left'], width - at['right'], at['top'],
        height - at['bottom'],
    )  # fmt: skip
    bands = []
    for i, stretch in enumerate(record.stretches):
        if stretch.first < count:
            first = made.x(stretch.first - 0.5)
            wide = made.x(min(stretch.last, count - 1) + 0.5) - first
            fits = [t for t in (stretch.name, stretch.name[:1]) if len(t) * LETTER + 5 < wide]
            bands.append(
                {
                    'x': first,
                    'w': round(wide, 1),
                    'label': fits[0] if fits else '',
                    'odd': i % 2 == 1,
                }
            )
    marks, free = [], 0.0
    for i, grown in enumerate(record.growths):
        if grown.at < count:
            x = made.x(grown.at + 0.5)
            marks.append({'x': x, 'label': f'G{i + 1}' if x >= free else ''})
            free = x + _GAP if x >= free else free
    steps = [n for n in ticks(1, count, max(2, int(width / 60))) if n == int(n) and n >= 1]
    numbers = sorted({1, *map(int, steps)}) if count else []
    return {
        'box': made,
        'bands': bands,
        'marks': marks,
        'columns': [{'x': made.x(n - 1), 'label': str(n)} for n in numbers if n <= count],
    }


def lines(
    record: Record,
    title: str,
    alt: str,
    given: Sequence[Line],
    *,
    width: float = 360.0,
    height: float = 200.0,
    low: float | None = None,
    high: float | None = None,
    percent: bool = False,
    point: float | None = None,
) -> dict[str, Any]:
    """A chart of lines, for the template.

    Args:
      record: of the run.
      title: of the chart.
      alt: the same in words.
      given: the series.
      width: of the chart.
      height: of the chart.
      low: where the axis begins; where the numbers do, if not given.
      high: where it ends.
      percent: whether the numbers are shares.
      point: a value that belongs to the end of the run.
    """
    widest = max((len(line.label) for line in given), default=0)
    right = 10 + LETTER * widest if widest else 8.0
    made = frame(record, len(record.lines), width, height, right=right)
    box, known = made['box'], [v for line in given for v in line.values if v is not None]
    known += [v for v in (low, high, point) if v is not None]
    bounds = ticks(min(known), max(known), 5) if known else []
    low, high = (bounds[0], bounds[-1]) if bounds else (0.0, 1.0)

    def y(value):
        share = (value - low) / ((high - low) or 1.0)
        return round(box.bottom - share * (box.bottom - box.top), 1)

    def label(value):
        return f'{100 * value:.3g} %' if percent else short(value)

    return {
        **made,
        'title': title,
        'alt': alt,
        'rows': [{'y': y(value), 'label': label(value)} for value in bounds],
        'lines': [{'path': _path(line.values, box, y), 'style': line.style} for line in given],
        'ends': _ends(given, box, y),
        'point': None if point is None else {'x': box.right, 'y': y(point)},
        'empty': not any(v is not None for line in given for v in line.values),
    }


def _ends(given, box, y):
    """Labels beside the ends of lines, moved apart; none where there is no room for all."""
    lasts = [(line.last, line.label) for line in given if line.label]
    wanted = sorted((y(value), label) for value, label in lasts if value is not None)
    if len(wanted) * _HIGH > box.bottom - box.top + _HIGH:
        return []
    places, free = [], box.top
    for i, (at, _) in enumerate(wanted):
        lowest = box.bottom - _HIGH * (len(wanted) - 1 - i)
        places.append(min(max(at, free), lowest))
        free = places[-1] + _HIGH
    return [
        {'x': box.right + 5, 'y': round(at + 4, 1), 'text': label}
        for at, (_, label) in zip(places, wanted, strict=True)
    ]


def short(value: float) -> str:
    """A number for an axis, as 250, 12k, 3.4M."""
    for size, sign in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (1e3 if sign == "k" else size):.4g}{sign}'
    return f'{value:.4g}'


def _path(values, box, y):
    """A break where there is no number; a point where it stands alone."""
    parts, pen = [], 'M'
    for i, value in enumerate(values):
        if value is None:
            pen = 'M'
            continue
        alone = pen == 'M' and (i + 1 == len(values) or values[i + 1] is None)
        parts.append(f'{pen}{box.x(i)},{y(value)}' + 'h0' * alone)
        pen = 'L'
    return ''.join(parts)


def heat_map(
    record: Record,
    title: str,
    alt: str,
    names: Sequence[str],
    values: np.ndarray,
    *,
    ends: Sequence[str],
    strong: int | None = None,
) -> dict[str, Any]:
    """A heat map, for the template.

    Args:
      record: of the run.
      title: of the chart.
      alt: the same in words.
      names: of the K rows.
      values: `[K, T]` in 0..1; NaN where there is nothing.
      ends: what is written behind the rows.
      strong: the row that is marked.
    """
    high = 15.0
    made = frame(record, values.shape[1], 360.0, 46 + high * len(names), left=98.0, right=40.0,
                 top=26.0, bottom=20.0)  # fmt: skip
    box = made['box']
    rows = [
        {'y': box.top + high * i, 'name': name, 'end': end, 'strong': i == strong}
        for i, (name, end) in enumerate(zip(names, ends, strict=True))
    ]
    return {**made, 'title': title, 'alt': alt, 'rows': rows, 'high': high, 'image': _png(values)}


def _png(values):
    """One pixel for each value, as a data URI."""
    odd = np.isnan(values)
    levels = np.where(odd, 0, np.clip(values, 0, 1)) * (_EMPTY - 1)
    pixels = np.where(odd, _EMPTY, np.round(levels)).astype(np.uint8)
    image = Image.frombytes('P', pixels.shape[::-1], pixels.tobytes())
    image.putpalette([*viridis(np.linspace(0, 1, _EMPTY)).ravel().tolist(), 0, 0, 0])
    file = io.BytesIO()
    image.save(file, 'PNG', transparency=_EMPTY)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode('ascii')


def viridis(shares: np.ndarray) -> np.ndarray:
    """Colours `[N, 3]` uint8 of numbers `[N]` in 0..1."""
    stops = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(shares, stops, channel) for channel in zip(*_VIRIDIS, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers, of which the first is at most `low`, the last at least `high`.

    >>> ticks(0.31, 0.66, 5)
    [0.3, 0.4, 0.5, 0.6, 0.7]
    """
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = (0.0, 2 * low) if low > 0 else (low - 0.5, low + 0.5)
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)) + 1)
    return [round(step * n, digits) for n in range(first, last + 1)]
