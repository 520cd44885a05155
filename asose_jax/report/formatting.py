"""Numbers and series as the report writes them: in words, and in tables."""

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from asose_jax.metrics.run_record import Record

ROWS = 150  # of a table, at most
NOTHING = '–'


def percent(value: float | None) -> str:
    """A share."""
    return NOTHING if value is None else f'{100 * value:.1f} %'


def plain(value: float | None) -> str:
    """Four digits, or all of a number that has more."""
    return NOTHING if value is None else f'{value:,.4g}' if value < 1000 else f'{value:,.0f}'


def seconds(value: float | None) -> str:
    """1.5 s, or 0:02:30."""
    if value is None:
        return NOTHING
    if value < 60:
        return f'{value:.1f} s'
    return str(datetime.timedelta(seconds=round(value)))


def shown(value: Any) -> str:
    """A value of the config."""
    if isinstance(value, list):
        return ', '.join(map(shown, value)) or '()'
    return 'default' if value is None else str(value)


def course(name: str, values: Sequence[float | None], show: Callable[[float], str]) -> str:
    """A series in a sentence; nothing of one without numbers."""
    known = [(v, i + 1) for i, v in enumerate(values) if v is not None]
    if not known:
        return ''
    low, high = min(known), max(known)
    return (
        f'{name}: {show(known[0][0])} at first, {show(known[-1][0])} at last, between '
        f'{show(low[0])} (evaluation {low[1]}) and {show(high[0])} (evaluation {high[1]}). '
    )


def spans(at: Sequence[int]) -> str:
    """[1, 2, 3, 7] as `evaluations 1–3, 7`."""
    parts: list[list[int]] = []
    for n in at:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    told = ', '.join(f'{a}–{b}' if b > a else str(a) for a, b in parts)
    return f'evaluation{"s" if len(at) > 1 else ""} {told}'


def table(
    record: Record, columns: dict[str, tuple[Sequence[float | None], Callable[..., str]]]
) -> dict[str, Any]:
    """The numbers of charts; of a long run, some evaluations and the last one of each phase."""
    every = -(-len(record.lines) // ROWS)
    ends = {stretch.last for stretch in record.stretches}
    rows = [
        [str(i + 1), line['phase'], *(show(values[i]) for values, show in columns.values())]
        for i, line in enumerate(record.lines)
        if (i + 1) % every == 0 or i in ends
    ]
    note = f'One of {every} evaluations, and the last one of each phase.' if every > 1 else ''
    return {'head': ['evaluation', 'phase', *columns], 'rows': rows, 'note': note}
