"""The charts and drawings of the report, made of a `run_record.Record`."""

import collections
from typing import Any

import numpy as np

from asose_jax.metrics.run_record import Record, number
from asose_jax.report import charts, formatting, network_drawing
from asose_jax.report.charts import Line
from asose_jax.report.formatting import percent, plain
from asose_jax.report.run_sections import what

_LOSSES = {'valid/loss': 'validation', 'train/loss': 'training', 'arch/loss': 'α steps'}
_ENTROPIES = {'arch/entropy': 'softmax(α)', 'arch/draw_entropy': 'the draws'}
_STYLES = ('first', 'second', 'third')


def accuracy(record: Record) -> dict[str, Any]:
    """Accuracy and loss over the phases."""
    valid, train = record.series('valid/accuracy'), record.series('train/accuracy')
    test = number(record.summary.get('test_accuracy'))
    told = formatting.course('Validation accuracy', valid, percent)
    told += formatting.course('Training accuracy', train, percent)
    told += '' if test is None else f' Test accuracy at the end: {percent(test)}.'
    given = [Line('training', train, 'second'), Line('validation', valid, 'first')]
    each = [
        charts.lines(
            record, 'Accuracy over the phases', told, given, percent=True, point=test, **size
        )
        for size in ({'width': 1000.0, 'height': 340.0}, {'width': 360.0, 'height': 250.0})
    ]
    columns = {
        'training accuracy': (train, percent),
        'validation accuracy': (valid, percent),
        **{f'loss, {name}': (record.series(key), plain) for key, name in _LOSSES.items()},
    }
    return {
        'charts': each,
        'lines': [(line.style, line.name, percent(line.last)) for line in given[::-1]],
        'test': percent(test),
        'growths': [f'G{i + 1}: {what(grown)}' for i, grown in enumerate(record.growths)],
        'table': formatting.table(record, columns),
    }


def curves(record: Record) -> dict[str, Any]:
    """Everything else that is one number for each evaluation."""
    given: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ('Loss', _LOSSES, {}),
        ('Mean entropy, nats', _ENTROPIES, {'low': 0.0}),
        (
            'Confidence',
            {'arch/confidence': 'mean of the largest probabilities'},
            {'low': 0.0, 'high': 1.0, 'percent': True},
        ),
        ('Temperature τ', {'tau': 'of the draws'}, {'low': 0.0}),
        ('Images per second', {'images_per_second': 'in training'}, {'low': 0.0}),
        ('Parameters', {'params': 'of the network'}, {'low': 0.0}),
        ('Curvature in α', {'arch/eigenvalue': 'largest eigenvalue of the Hessian'}, {'low': 0.0}),
        ('Cost', {'cost/expected': 'expected, of the network'}, {'low': 0.0}),
    ]
    made, columns = [], {}
    for title, names, how in given:
        show = percent if how.get('percent') else plain
        series = [
            Line(name, _searched(record, key), style)
            for (key, name), style in zip(names.items(), _STYLES, strict=False)
            if record.last(key) is not None
        ]
        told = ''.join(formatting.course(line.name, line.values, show) for line in series)
        chart = charts.lines(record, title, f'{title}. {told}', series, **how)
        chart['legend'] = [(line.style, line.name) for line in series]
        made.append(chart)
        if names is not _LOSSES:  # which are beside the accuracies
            for line in series:
                name = title if len(series) == 1 else f'{title}: {line.name}'
                columns[name] = (line.values, show)
    return {'charts': made, 'table': formatting.table(record, columns)}


def _searched(record, key):
    """A series; without what a network says of alpha when it has nothing left to choose."""
    if key not in ('arch/entropy', 'arch/confidence'):
        return record.series(key)
    pairs = zip(record.series(key), record.series('arch/entropy'), strict=True)
    return [value if entropy else None for value, entropy in pairs]


def choices(record: Record) -> list[dict[str, Any]]:
    """A heat map for every mixed operation that was searched."""
    tracks = record.tracks()
    if not tracks:
        return []
    count = 1 + max(max(track.columns) for track in tracks)
    newest = next(n for n in reversed(record.networks[:count]) if n and n.probabilities)
    spec = record.growths[-1].after if record.growths else newest
    names = network_drawing.labels((spec or newest).spec)
    made = []
    for track in tracks:
        values = np.full((len(track.candidates), count), np.nan)
        for i, shares in track.columns.items():
            values[:, i] = shares
        first, last = (track.columns[end(track.columns)] for end in (min, max))
        then, now = (int(np.argmax(shares)) for shares in (first, last))
        title = names.get((track.group, track.member), f'choice {track.group}.{track.member}')
        told = (
            f'Probabilities of {len(track.candidates)} operations. Most likely at first: '
            f'{track.candidates[then]}, {percent(first[then])}; at last: '
            f'{track.candidates[now]}, {percent(last[now])}.'
        )
        ends = [f'{share:.2f}' for share in last]
        chart = charts.heat_map(
            record, title, told, track.candidates, values, ends=ends, strong=now
        )
        made.append({'chart': chart, 'table': _shares(record, track)})
    return made


def _shares(record, track):
    """Probabilities at the end of every phase and before every growth."""
    ends = {s.last: f'end of {s.name}' for s in record.stretches}
    ends |= {grown.at: f'before G{i + 1}' for i, grown in enumerate(record.growths)}
    known = {min(track.columns): 'at first', **ends, max(track.columns): 'at last'}
    at = [i for i in sorted(known) if i in track.columns]
    rows = [
        [name, *(f'{track.columns[i][k]:.4f}' for i in at)]
        for k, name in enumerate(track.candidates)
    ]
    return {'head': ['operation', *(known[i] for i in at)], 'rows': rows, 'note': ''}


def counts(record: Record) -> dict[str, Any] | None:
    """How often each operation is chosen."""
    told = [line.get('arch/counts') for line in record.lines]
    each = [counted if isinstance(counted, dict) else {} for counted in told]
    total: collections.Counter[str] = collections.Counter()
    for counted in each:
        total.update({name: n for name, n in counted.items() if number(n)})
    if not total:
        return None
    configured = record.config.get('model.primitives')
    order = [*configured] if isinstance(configured, list) else []
    names = sorted(total, key=lambda n: (order.index(n) if n in order else len(order), n))
    values = np.array([[number(c.get(name)) or 0 for c in each] for name in names], float)
    ends = [f'{n:.0f}' for n in values[:, -1]]
    now = ', '.join(f'{end} {name}' for end, name in zip(ends, names, strict=True) if end != '0')
    most = values.max()
    chart = charts.heat_map(
        record, 'Operations of the genotype', f'Last: {now}.', names, values / most, ends=ends
    )
    columns = {name: (row.tolist(), plain) for name, row in zip(names, values, strict=True)}
    return {'chart': chart, 'most': f'{most:.0f}', 'table': formatting.table(record, columns)}


def networks(record: Record) -> dict[str, Any] | None:
    """The newest network, drawn."""
    newest = record.newest_network()
    if newest is None:
        return None
    return {
        'drawings': network_drawing.draw(newest),
        'modules': network_drawing.modules(newest.spec),
        'derived': newest.spec.is_derived(),
    }


def legend() -> list[str]:
    """The colours of heat maps, from 0 to 1."""
    return ['#{:02x}{:02x}{:02x}'.format(*c) for c in charts.viridis(np.linspace(0, 1, 12))]
