"""Formats numbers and series for the report, as text and as tables."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from asose_jax.metrics.run_record import Record

ROWS = 150  # of a table, at most
MISSING = '–'  # in place of a missing value


def percent(value: float | None) -> str:
    """Formats a fraction as a percentage: 97.1 %."""
    return MISSING if value is None else f'{100 * value:.1f} %'


def plain(value: float | None) -> str:
    """Formats a number: four significant digits, but all digits before the decimal point."""
    return MISSING if value is None else f'{value:,.4g}' if value < 1000 else f'{value:,.0f}'


def seconds(value: float | None) -> str:
    """Formats a duration: 1.5 s, or 0:02:30 from a minute on."""
    if value is None:
        return MISSING
    if value < 60:
        return f'{value:.1f} s'
    return str(datetime.timedelta(seconds=round(value)))


def config_value(value: Any) -> str:
    """Formats a value of the config."""
    if isinstance(value, list):
        return ', '.join(map(config_value, value)) or '()'
    return 'default' if value is None else str(value)


def describe_series(name: str, values: Sequence[float | None], show: Callable[[float], str]) -> str:
    """Describes a series in a sentence, for readers who cannot see the chart.

    Args:
      name: name of the series.
      values: one value for each evaluation.
      show: formats a value.

    Returns:
      First, last, least and greatest value; '' of a series without values.
    """
    known = [(v, i + 1) for i, v in enumerate(values) if v is not None]
    if not known:
        return ''
    low, high = min(known), max(known)
    return (
        f'{name}: {show(known[0][0])} at first, {show(known[-1][0])} at last, between '
        f'{show(low[0])} (evaluation {low[1]}) and {show(high[0])} (evaluation {high[1]}). '
    )


def spans(at: Sequence[int]) -> str:
    """Formats evaluations as ranges: [1, 2, 3, 7] as `evaluations 1–3, 7`."""
    ranges: list[list[int]] = []
    for n in at:
        if ranges and ranges[-1][1] == n - 1:
            ranges[-1][1] = n
        else:
            ranges.append([n, n])
    text = ', '.join(f'{a}–{b}' if b > a else str(a) for a, b in ranges)
    return f'evaluation{"s" if len(at) > 1 else ""} {text}'


def table(
    record: Record, columns: Mapping[str, tuple[Sequence[float | None], Callable[..., str]]]
) -> dict[str, Any]:
    """Builds the table of the values in a chart.

    A long run has only some evaluations in it, and the last one of each phase.

    Args:
      record: the run, for its evaluations and phases.
      columns: values for each evaluation, and the function that formats one, by title.

    Returns:
      Values for the macro `data_table`: `head`, `rows` and `note`.
    """
    every = -(-len(record.lines) // ROWS)
    ends = {stretch.last for stretch in record.phase_ranges}
    rows = [
        [str(i + 1), line['phase'], *(show(values[i]) for values, show in columns.values())]
        for i, line in enumerate(record.lines)
        if (i + 1) % every == 0 or i in ends
    ]
    note = f'One in {every} evaluations, and the last one of each phase.' if every > 1 else ''
    return {'head': ['evaluation', 'phase', *columns], 'rows': rows, 'note': note}
