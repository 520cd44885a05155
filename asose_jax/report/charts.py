"""Computes the coordinates of line charts and heat maps over evaluations, in SVG units.

All share one frame: the phases as bands, the growths as marks, and one column for each evaluation.
`templates/shapes.jinja` turns the numbers into SVG.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from asose_jax.metrics.run_record import Record

# Sizes of a chart that spans the page: on a wide screen, and on a phone.
PAGE_SIZES = ({'width': 1000.0, 'height': 340.0}, {'width': 360.0, 'height': 250.0})
LETTER = 6.4  # width of a letter of a label

# Ten stops of viridis, whose colours differ in lightness: legible without colour vision.
_VIRIDIS = (
    (0x44, 0x01, 0x54), (0x48, 0x28, 0x78), (0x3E, 0x49, 0x89), (0x31, 0x68, 0x8E),
    (0x26, 0x82, 0x8E), (0x1F, 0x9E, 0x89), (0x35, 0xB7, 0x79), (0x6E, 0xCE, 0x58),
    (0xB5, 0xDE, 0x2B), (0xFD, 0xE7, 0x25),
)  # fmt: skip
_TRANSPARENT = 255  # index in the palette of a heat map
_MARK_LABEL_WIDTH = 22.0
_LABEL_HEIGHT = 12.0
_ROW_HEIGHT = 15.0  # of a heat map


@dataclasses.dataclass(frozen=True)
class Line:
    """Holds one series of a line chart.

    Attributes:
      name: name of the series.
      values: one value for each evaluation; `None` where there is none.
      style: CSS classes of the line.
      label: text beside the end of the line; '' for none.
    """

    name: str
    values: Sequence[float | None]
    style: str
    label: str = ''

    @property
    def last(self) -> float | None:
        """Returns the newest value, or `None` if there is none."""
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclasses.dataclass(frozen=True)
class Frame:
    """Places the plot area, from (`left`, `top`) to (`right`, `bottom`), and its `count` columns.

    Attributes:
      count: number of columns.
      width: width of the whole chart.
      height: height of the whole chart.
      left: left edge of the plot area, in units from the left edge of the chart.
      right: right edge, likewise.
      top: upper edge, in units from the upper edge of the chart.
      bottom: lower edge, likewise.
    """

    count: int
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, column: float) -> float:
        """Returns the x coordinate of the middle of a column, counted from 0."""
        return round(self.left + (column + 0.5) / self.count * (self.right - self.left), 1)


def frame(
    record: Record, count: int, width: float, height: float, **margins: float
) -> dict[str, Any]:
    """Lays out what all charts of a run share.

    Args:
      record: the run.
      count: number of evaluations to show, from the first.
      width: width of the chart.
      height: height of the chart.
      **margins: `left`, `right`, `top`, `bottom`, where they differ from the defaults.

    Returns:
      `box` (the `Frame`), `bands` (phases), `marks` (growths) and `columns` (labels of the x axis).
    """
    margins = {'left': 40.0, 'right': 8.0, 'top': 30.0, 'bottom': 22.0, **margins}
    box = Frame(
        max(1, count), width, height, margins['left'], width - margins['right'], margins['top'],
        height - margins['bottom'],
    )  # fmt: skip
    steps = [n for n in ticks(1, count, max(2, int(width / 60))) if n == int(n) and n >= 1]
    numbers = sorted({1, *map(int, steps)}) if count else []
    return {
        'box': box,
        'bands': _bands(record, box, count),
        'marks': _marks(record, box, count),
        'columns': [{'x': box.x(n - 1), 'label': str(n)} for n in numbers if n <= count],
    }


def _bands(record: Record, box: Frame, count: int) -> list[dict[str, Any]]:
    """Places the phases, each labelled by its name, or its first letter where the name is wider."""
    bands = []
    for i, stretch in enumerate(record.phase_ranges):
        if stretch.first < count:
            left = box.x(stretch.first - 0.5)
            width = box.x(min(stretch.last, count - 1) + 0.5) - left
            names = (stretch.name, stretch.name[:1])
            labels = [name for name in names if len(name) * LETTER + 5 < width]
            bands.append(
                {
                    'x': left,
                    'w': round(width, 1),
                    'label': labels[0] if labels else '',
                    'odd': i % 2 == 1,
                }
            )
    return bands


def _marks(record: Record, box: Frame, count: int) -> list[dict[str, Any]]:
    """Places the growths; one whose label would overlap that of the mark before it has none."""
    marks, next_free = [], 0.0
    for i, grown in enumerate(record.growths):
        if grown.at < count:
            x = box.x(grown.at + 0.5)
            marks.append({'x': x, 'label': f'G{i + 1}' if x >= next_free else ''})
            next_free = x + _MARK_LABEL_WIDTH if x >= next_free else next_free
    return marks


def lines(
    record: Record,
    title: str,
    alt: str,
    series: Sequence[Line],
    *,
    width: float = 360.0,
    height: float = 200.0,
    low: float | None = None,
    high: float | None = None,
    percent: bool = False,
    point: float | None = None,
) -> dict[str, Any]:
    """Lays out a line chart.

    Args:
      record: the run, for phases, growths and the number of evaluations.
      title: title of the chart.
      alt: description in words, for screen readers.
      series: the lines.
      width: width of the chart.
      height: height of the chart.
      low: a value that the y axis reaches down to; `None`: the least of the series.
      high: a value that it reaches up to; `None`: the greatest.
      percent: whether the values are fractions, and the labels of the y axis percentages.
      point: a value to mark at the right edge, such as the test accuracy.

    Returns:
      Values for the macro `line_chart`; `empty` says that no series has a value.
    """
    widest = max((len(line.label) for line in series), default=0)
    right = 10 + LETTER * widest if widest else 8.0
    layout = frame(record, len(record.lines), width, height, right=right)
    box, values = layout['box'], [v for line in series for v in line.values if v is not None]
    bounds = ticks_around([*values, *(v for v in (low, high, point) if v is not None)], 5)
    bottom, top = (bounds[0], bounds[-1]) if bounds else (0.0, 1.0)

    def y(value: float) -> float:
        share = (value - bottom) / ((top - bottom) or 1.0)
        return round(box.bottom - share * (box.bottom - box.top), 1)

    def label(value: float) -> str:
        return f'{100 * value:.3g} %' if percent else short(value)

    return {
        **layout,
        'title': title,
        'alt': alt,
        'rows': [{'y': y(value), 'label': label(value)} for value in bounds],
        'lines': [{'path': _path(line.values, box, y), 'style': line.style} for line in series],
        'ends': _end_labels(series, box, y),
        'point': None if point is None else {'x': box.right, 'y': y(point)},
        'empty': not values,
    }


def _end_labels(
    series: Sequence[Line], box: Frame, y: Callable[[float], float]
) -> list[dict[str, Any]]:
    """Places labels beside the ends of lines, moved apart; none if there is no room for all."""
    ends = [(line.last, line.label) for line in series if line.label]
    wanted = sorted((y(value), label) for value, label in ends if value is not None)
    if len(wanted) * _LABEL_HEIGHT > box.bottom - box.top + _LABEL_HEIGHT:
        return []
    heights, next_free = [], box.top
    for i, (height, _) in enumerate(wanted):
        lowest = box.bottom - _LABEL_HEIGHT * (len(wanted) - 1 - i)  # leaves room for the others
        heights.append(min(max(height, next_free), lowest))
        next_free = heights[-1] + _LABEL_HEIGHT
    return [
        {'x': box.right + 5, 'y': round(height + 4, 1), 'text': label}
        for height, (_, label) in zip(heights, wanted, strict=True)
    ]


def short(value: float) -> str:
    """Formats a number for an axis: 250, 12k, 3.4M."""
    for size, suffix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if abs(value) >= size:
            return f'{value / (1e3 if suffix == "k" else size):.4g}{suffix}'
    return f'{value:.4g}'


def _path(values: Sequence[float | None], box: Frame, y: Callable[[float], float]) -> str:
    """Builds the SVG path of a series, broken where there is no value; a lone value is a dot."""
    parts, command = [], 'M'
    for i, value in enumerate(values):
        if value is None:
            command = 'M'
            continue
        alone = command == 'M' and (i + 1 == len(values) or values[i + 1] is None)
        parts.append(f'{command}{box.x(i)},{y(value)}' + 'h0' * alone)
        command = 'L'
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
    """Lays out a heat map.

    Args:
      record: the run, for phases and growths.
      title: title of the chart.
      alt: description in words, for screen readers.
      names: labels of the K rows.
      values: `[K, T]` in 0..1 for T evaluations; NaN where there is no value.
      ends: texts behind the K rows.
      strong: index of the row whose labels are bold.

    Returns:
      Values for the macro `heat_chart`.
    """
    layout = frame(record, values.shape[1], 360.0, 46 + _ROW_HEIGHT * len(names), left=98.0,
                   right=40.0, top=26.0, bottom=20.0)  # fmt: skip
    rows = [
        {'y': layout['box'].top + _ROW_HEIGHT * i, 'name': name, 'end': end, 'strong': i == strong}
        for i, (name, end) in enumerate(zip(names, ends, strict=True))
    ]
    return {
        **layout,
        'title': title,
        'alt': alt,
        'rows': rows,
        'high': _ROW_HEIGHT,
        'image': _png_uri(values),
    }


def _png_uri(values: np.ndarray) -> str:
    """Encodes `[K, T]` values in 0..1 as a PNG with a pixel for each, in a data URI."""
    missing = np.isnan(values)
    levels = np.where(missing, 0, np.clip(values, 0, 1)) * (_TRANSPARENT - 1)
    pixels = np.where(missing, _TRANSPARENT, np.round(levels)).astype(np.uint8)
    image = Image.frombytes('P', pixels.shape[::-1], pixels.tobytes())
    image.putpalette([*viridis(np.linspace(0, 1, _TRANSPARENT)).ravel().tolist(), 0, 0, 0])
    file = io.BytesIO()
    image.save(file, 'PNG', transparency=_TRANSPARENT)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode('ascii')


def viridis(shares: np.ndarray) -> np.ndarray:
    """Maps numbers `[N]` in 0..1 to colours `[N, 3]`, uint8."""
    stops = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(shares, stops, channel) for channel in zip(*_VIRIDIS, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def ticks_around(values: Sequence[float], count: int) -> list[float]:
    """Returns about `count` round numbers around all values; none without values."""
    return ticks(min(values), max(values), count) if values else []


def ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about `count` equidistant round numbers around `low` and `high`, for an axis.

    If `low` and `high` are equal, the numbers go around that value, and down to 0 from a positive
    one.

    Returns:
      The numbers, ascending; at least two.

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
