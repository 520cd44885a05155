"""Computes the coordinates of a strip chart: fractions of several groups on one axis."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from asose_jax.report import charts

_STRIP_HEIGHT, _SIDE_MARGIN, _TOP_MARGIN, _BOTTOM_MARGIN = 58.0, 14.0, 6.0, 22.0
_MARKS_Y, _LABELS_Y = 41, 27  # in a strip


@dataclasses.dataclass(frozen=True)
class Strip:
    """Holds one group of values.

    Attributes:
      name: title of the group.
      values: fractions, each with its label, or '' without one.
      shape: shape of the marks: `diamond`, `square` or `ball`.
    """

    name: str
    values: Sequence[tuple[float, str]]
    shape: str


def chart(title: str, alt: str, strips: Sequence[Strip], *, width: float) -> dict[str, Any]:
    """Lays out a strip for each group below the other, with the median of each.

    Args:
      title: title of the chart.
      alt: description in words, for screen readers.
      strips: the groups, from top to bottom; none is empty. Labelled values are marked by a dotted
        line through all strips.
      width: width of the chart.

    Returns:
      Values for the macro `strip_chart`.
    """
    height = _TOP_MARGIN + _STRIP_HEIGHT * len(strips) + _BOTTOM_MARGIN
    right, bottom = width - _SIDE_MARGIN, height - _BOTTOM_MARGIN
    box = charts.Frame(1, width, height, _SIDE_MARGIN, right, _TOP_MARGIN, bottom)
    values = [value for strip in strips for value, _ in strip.values]
    bounds = charts.ticks_around(values, max(4, int(width / 120)))

    def x(value: float) -> float:
        share = (value - bounds[0]) / (bounds[-1] - bounds[0])
        return round(box.left + share * (box.right - box.left), 1)

    rows, marked = [], []
    for i, strip in enumerate(strips):
        y = _TOP_MARGIN + _STRIP_HEIGHT * i
        labelled = sorted((x(value), label) for value, label in strip.values if label)
        marked += [position for position, _ in labelled]
        positions = [x(value) for value, _ in strip.values]
        marks_y = y + _MARKS_Y
        points = [(at, marks_y) for at in positions] if labelled else _apart(positions, marks_y)
        rows.append(
            {
                'name': strip.name,
                'y': y,
                'shape': strip.shape,
                'points': points,
                'labels': [
                    {'x': at, 'y': y + _LABELS_Y, 'text': text}
                    for at, text in _merged_labels(labelled, width)
                ],
                'median': x(float(np.median([value for value, _ in strip.values]))),
            }
        )
    return {
        'box': box,
        'title': title,
        'alt': alt,
        'high': _STRIP_HEIGHT,
        'strips': rows,
        'marked': marked,
        'columns': [{'x': x(value), 'label': f'{100 * value:.4g} %'} for value in bounds],
    }


def _merged_labels(labels: Sequence[tuple[float, str]], width: float) -> list[tuple[float, str]]:
    """Merges labels that would overlap, as `1, 2`; all stay within the width of the chart."""
    merged: list[tuple[float, float, str]] = []  # left end, right end, text

    def placed(left: float, right: float, text: str) -> tuple[float, float, str]:
        half = charts.LETTER * len(text) / 2
        middle = min(max((left + right) / 2, half), width - half)
        return middle - half, middle + half, text

    for x, label in labels:
        merged.append(placed(x, x, label))
        while len(merged) > 1 and merged[-1][0] < merged[-2][1] + 4:
            (left, _, before), (_, right, after) = merged[-2:]
            merged[-2:] = [placed(left, right, f'{before}, {after}')]
    return [(round((left + right) / 2, 1), text) for left, right, text in merged]


def _apart(xs: Sequence[float], y: float) -> list[tuple[float, float]]:
    """Places a mark at each x, moved up or down by up to 10 where it would cover another."""
    points: list[tuple[float, float]] = []
    for x in sorted(xs):
        near = {other_y for other_x, other_y in points if abs(other_x - x) < 6}
        candidates = (y + step for step in (0, -5, 5, -10, 10))
        points.append((x, next((free for free in candidates if free not in near), y)))
    return points
