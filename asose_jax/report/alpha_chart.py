"""Builds the charts of alpha over a run: the probabilities of every choice, as heat maps."""

from typing import Any

import numpy as np

from asose_jax.metrics.run_record import Record, Track
from asose_jax.report import charts, network_drawing
from asose_jax.report.formatting import percent


def heat_maps(record: Record) -> list[dict[str, Any]]:
    """Builds a heat map of probabilities for every row of alpha that was searched.

    Returns:
      `chart` and `table` for each.
    """
    tracks = record.tracks()
    if not tracks:
        return []
    count = 1 + max(max(track.columns) for track in tracks)
    newest = next(n for n in reversed(record.networks[:count]) if n and n.probabilities)
    grown = record.growths[-1].after if record.growths else newest
    names = network_drawing.labels((grown or newest).spec)
    built = []
    for track in tracks:
        values = np.full((len(track.candidates), count), np.nan)
        for i, shares in track.columns.items():
            values[:, i] = shares
        first, last = (track.columns[end(track.columns)] for end in (min, max))
        best_first, best_last = (int(np.argmax(shares)) for shares in (first, last))
        title = names.get((track.group, track.member), f'choice {track.group}.{track.member}')
        alt = (
            f'Probabilities of {len(track.candidates)} operations. Most likely at first: '
            f'{track.candidates[best_first]}, {percent(first[best_first])}; at last: '
            f'{track.candidates[best_last]}, {percent(last[best_last])}.'
        )
        ends = [f'{share:.2f}' for share in last]
        chart = charts.heat_map(
            record, title, alt, track.candidates, values, ends=ends, strong=best_last
        )
        built.append({'chart': chart, 'table': _probability_table(record, track)})
    return built


def _probability_table(record: Record, track: Track) -> dict[str, Any]:
    """Builds a table of the probabilities at the end of every phase and before every growth."""
    moments = {stretch.last: f'end of {stretch.name}' for stretch in record.phase_ranges}
    moments |= {grown.at: f'before G{i + 1}' for i, grown in enumerate(record.growths)}
    moments = {min(track.columns): 'at first', **moments, max(track.columns): 'at last'}
    at = [i for i in sorted(moments) if i in track.columns]
    rows = [
        [name, *(f'{track.columns[i][k]:.4f}' for i in at)]
        for k, name in enumerate(track.candidates)
    ]
    return {'head': ['operation', *(moments[i] for i in at)], 'rows': rows, 'note': ''}
