"""Builds the charts, drawings and their tables for the page of a run."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from asose_jax.metrics.run_record import Record, finite_or_none
from asose_jax.report import charts, formatting, network_drawing
from asose_jax.report.charts import Line
from asose_jax.report.formatting import percent, plain
from asose_jax.report.run_sections import describe_growth

_LOSSES = {'valid/loss': 'validation', 'train/loss': 'training', 'arch/loss': 'α steps'}
_ENTROPIES = {'arch/entropy': 'softmax(α)', 'arch/draw_entropy': 'sampling distribution'}
_STYLES = ('first', 'second', 'third')

# Title, legend by metric, and keyword arguments of `charts.lines` for every chart of `curves`.
_CURVES: list[tuple[str, Mapping[str, str], Mapping[str, Any]]] = [
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
    ('Cost', {'cost/expected': 'expected cost of the network'}, {'low': 0.0}),
    (
        'Share of the cost limit',
        {'cost/limit_share': 'what the genotype takes of the tightest limit'},
        {'low': 0.0, 'high': 1.0, 'percent': True},
    ),
]


def accuracy(record: Record) -> dict[str, Any]:
    """Builds the section of accuracy and loss over the phases.

    Returns:
      `charts` (for a wide and a narrow screen), `lines` (style, name and last value for the
      legend), `test` (accuracy), `growths` (in words) and `table`.
    """
    valid, train = record.series('valid/accuracy'), record.series('train/accuracy')
    test = finite_or_none(record.summary.get('test_accuracy'))
    alt = formatting.describe_series('Validation accuracy', valid, percent)
    alt += formatting.describe_series('Training accuracy', train, percent)
    alt += '' if test is None else f' Test accuracy at the end: {percent(test)}.'
    title = 'Accuracy over the phases'
    series = [Line('training', train, 'second'), Line('validation', valid, 'first')]
    columns = {
        'training accuracy': (train, percent),
        'validation accuracy': (valid, percent),
        **{f'loss, {name}': (record.series(key), plain) for key, name in _LOSSES.items()},
    }
    return {
        'charts': [
            charts.lines(record, title, alt, series, percent=True, point=test, **size)
            for size in charts.PAGE_SIZES
        ],
        'lines': [(line.style, line.name, percent(line.last)) for line in series[::-1]],
        'test': percent(test),
        'growths': [
            f'G{i + 1}: {describe_growth(grown)}' for i, grown in enumerate(record.growths)
        ],
        'table': formatting.table(record, columns),
    }


def curves(record: Record) -> dict[str, Any]:
    """Builds the charts of the other metrics.

    Returns:
      `charts`, each with a `legend` of styles and names, and one `table` of all.
    """
    layouts, columns = [], {}
    for title, names, options in _CURVES:
        show = percent if options.get('percent') else plain
        series = [
            Line(name, _searched(record, key), style)
            for (key, name), style in zip(names.items(), _STYLES, strict=False)
            if record.last(key) is not None
        ]
        alt = ''.join(formatting.describe_series(line.name, line.values, show) for line in series)
        chart = charts.lines(record, title, f'{title}. {alt}', series, **options)
        chart['legend'] = [(line.style, line.name) for line in series]
        layouts.append(chart)
        if names is not _LOSSES:  # these are in the table of accuracies
            for line in series:
                name = title if len(series) == 1 else f'{title}: {line.name}'
                columns[name] = (line.values, show)
    return {'charts': layouts, 'table': formatting.table(record, columns)}


def _searched(record: Record, key: str) -> list[float | None]:
    """Returns a series, without the entropy and confidence of networks with no choice left."""
    if key not in ('arch/entropy', 'arch/confidence'):
        return record.series(key)
    pairs = zip(record.series(key), record.series('arch/entropy'), strict=True)
    return [value if entropy else None for value, entropy in pairs]


def counts(record: Record) -> dict[str, Any] | None:
    """Builds the heat map of how often each operation is chosen.

    Returns:
      `chart`, `most` (the count of the lightest colour) and `table`; `None` without counts.
    """
    logged = [line.get('arch/counts') for line in record.lines]
    by_evaluation = [entry if isinstance(entry, dict) else {} for entry in logged]
    total: collections.Counter[str] = collections.Counter()
    for entry in by_evaluation:
        total.update({name: n for name, n in entry.items() if finite_or_none(n)})
    if not total:
        return None
    configured = record.config.get('model.primitives')
    order = [*configured] if isinstance(configured, list) else []
    names = sorted(total, key=lambda n: (order.index(n) if n in order else len(order), n))
    values = np.array(
        [[finite_or_none(e.get(name)) or 0 for e in by_evaluation] for name in names], float
    )
    ends = [f'{n:.0f}' for n in values[:, -1]]
    last = ', '.join(f'{end} {name}' for end, name in zip(ends, names, strict=True) if end != '0')
    most = values.max()
    chart = charts.heat_map(
        record, 'Operations of the genotype', f'Last: {last}.', names, values / most, ends=ends
    )
    columns = {name: (row.tolist(), plain) for name, row in zip(names, values, strict=True)}
    return {'chart': chart, 'most': f'{most:.0f}', 'table': formatting.table(record, columns)}


def networks(record: Record) -> dict[str, Any] | None:
    """Draws the newest network.

    Returns:
      `drawings`, `modules` (in words) and `derived` (whether nothing is left to choose); `None`
      without a readable network.
    """
    newest = record.newest_network()
    if newest is None:
        return None
    return {
        'drawings': network_drawing.draw(newest),
        'modules': network_drawing.modules(newest.spec),
        'derived': newest.spec.is_derived(),
    }


def legend() -> list[str]:
    """Returns the colours of heat maps from 0 to 1, as `#rrggbb`."""
    return ['#{:02x}{:02x}{:02x}'.format(*c) for c in charts.viridis(np.linspace(0, 1, 12))]
