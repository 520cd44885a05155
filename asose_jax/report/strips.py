"""A strip chart as numbers: shares of several groups on one axis, in the units of an SVG."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from asose_jax.report import charts


@dataclasses.dataclass(frozen=True)
class Strip:
    """Numbers on an axis: what they are of, each with a label or '', the shape of their marks."""

    name: str
    values: Sequence[tuple[float, str]]
    shape: str


def chart(title: str, alt: str, given: Sequence[Strip], *, width: float) -> dict[str, Any]:
    """Shares on one axis, a strip for each group, its median marked.

    Args:
      title: of the chart.
      alt: the same in words.
      given: the groups, from top to bottom; none is empty. The values of those that have labels
        are marked through all strips.
      width: of the chart.
    """
    high, side, top = 58.0, 14.0, 6.0
    height = top + high * len(given) + 22
    box = charts.Frame(1, width, height, side, width - side, top, height - 22)
    known = [value for strip in given for value, _ in strip.values]
    bounds = charts.ticks(min(known), max(known), max(4, int(width / 120)))

    def x(value):
        share = (value - bounds[0]) / (bounds[-1] - bounds[0])
        return round(box.left + share * (box.right - box.left), 1)

    rows, marked = [], []
    for i, strip in enumerate(given):
        y = top + high * i
        named = sorted((x(value), label) for value, label in strip.values if label)
        marked += [at for at, _ in named]
        places = [x(value) for value, _ in strip.values]
        rows.append(
            {
                'name': strip.name,
                'y': y,
                'shape': strip.shape,
                'points': [(at, y + 41) for at in places] if named else _apart(places, y + 41),
                'labels': [
                    {'x': at, 'y': y + 27, 'text': text} for at, text in _joined(named, width)
                ],
                'median': x(float(np.median([value for value, _ in strip.values]))),
            }
        )
    return {
        'box': box,
        'title': title,
        'alt': alt,
        'high': high,
        'strips': rows,
        'marked': marked,
        'columns': [{'x': x(value), 'label': f'{100 * value:.4g} %'} for value in bounds],
    }


def _joined(named, width):
    """Labels at their places; those that would overlap are one, as `1, 2`."""
    made: list[tuple[float, float, str]] = []  # left end, right end, text

    def placed(left, right, text):
        half = charts.LETTER * len(text) / 2
        middle = min(max((left + right) / 2, half), width - half)
        return middle - half, middle + half, text

    for x, label in named:
        made.append(placed(x, x, label))
        while len(made) > 1 and made[-1][0] < made[-2][1] + 4:
            (left, _, before), (_, right, after) = made[-2:]
            made[-2:] = [placed(left, right, f'{before}, {after}')]
    return [(round((left + right) / 2, 1), text) for left, right, text in made]


def _apart(xs, y):
    """Places of marks; those that would lie on each other go up and down in turn."""
    made: list[tuple[float, float]] = []
    for x in sorted(xs):
        near = {at for other, at in made if abs(other - x) < 6}
        steps = (y + step for step in (0, -5, 5, -10, 10))
        made.append((x, next((step for step in steps if step not in near), y)))
    return made
