"""Computes the coordinates of a scatter chart: accuracy against cost, with lines through means."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from asose_jax.report import charts

_INSET = 18.0  # between a side of the frame and the first label below it, which is centred


@dataclasses.dataclass(frozen=True)
class Series:
    """Holds one group of networks.

    Attributes:
      name: title of the group.
      shape: shape of the marks: `diamond`, `square` or `ball`.
      points: cost and accuracy (a fraction) of each network.
      means: cost, accuracy and standard deviation (`None` of a single network) of each mean that
        the line joins, by rising target; empty for no line.
      style: CSS classes of the line.
    """

    name: str
    shape: str
    points: Sequence[tuple[float, float]]
    means: Sequence[tuple[float, float, float | None]] = ()
    style: str = ''


def chart(
    title: str,
    alt: str,
    series: Sequence[Series],
    targets: Sequence[float],
    *,
    width: float,
    height: float,
) -> dict[str, Any]:
    """Lays out the networks of all groups in one frame.

    Args:
      title: title of the chart.
      alt: description in words, for screen readers.
      series: the groups; at least one has a network.
      targets: costs that are marked by vertical lines.
      width: width of the chart.
      height: height of the chart.

    Returns:
      Values for the macro `front_chart`.
    """
    box = charts.Frame(1, width, height, 44.0, width - 8.0, 8.0, height - 22.0)
    costs = [*targets, *(cost for group in series for cost, _ in group.points)]
    accuracies = [accuracy for group in series for _, accuracy in group.points]
    columns = charts.ticks_around(costs, max(3, int(width / 110)))
    spans = [(mean, std or 0.0) for group in series for _, mean, std in group.means]
    ends = [end for mean, std in spans for end in (mean - std, mean + std)]
    rows = charts.ticks_around([*accuracies, *ends], 5)

    def x(cost: float) -> float:
        share = (cost - columns[0]) / (columns[-1] - columns[0])
        left, right = box.left + _INSET, box.right - _INSET
        return round(left + share * (right - left), 1)

    def y(accuracy: float) -> float:
        share = (accuracy - rows[0]) / (rows[-1] - rows[0])
        return round(box.bottom - share * (box.bottom - box.top), 1)

    return {
        'box': box,
        'title': title,
        'alt': alt,
        'rows': [{'y': y(value), 'label': f'{100 * value:.3g} %'} for value in rows],
        'columns': [{'x': x(value), 'label': charts.short(value)} for value in columns],
        'marked': [x(target) for target in targets],
        'groups': [
            {
                'shape': group.shape,
                'points': [(x(cost), y(accuracy)) for cost, accuracy in group.points],
                'path': 'M' + 'L'.join(f'{x(cost)},{y(mean)}' for cost, mean, _ in group.means)
                if group.means
                else '',
                'bars': [
                    (x(cost), y(mean + std), y(mean - std))
                    for cost, mean, std in group.means
                    if std is not None
                ],
                'style': group.style,
            }
            for group in series
        ],
    }
