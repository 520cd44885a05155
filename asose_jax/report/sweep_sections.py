"""Builds the sections of a sweep's page: its searches side by side, and the networks of controls.

They are built from the files of the single runs as they are now; some may not be finished.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from asose_jax.metrics import comparison, run_record
from asose_jax.metrics.run_record import Record, finite_or_none
from asose_jax.nn import operations
from asose_jax.report import charts, formatting, run_sections, strip_chart
from asose_jax.report.charts import Line
from asose_jax.report.formatting import MISSING, percent, plain
from asose_jax.report.strip_chart import Strip
from asose_jax.runtime import workdir

_STYLES = ('first', 'second', 'third', 'first long', 'second mixed', 'third short')
_SEARCHES, _FOUND, _RANDOM = 'searches', 'found', 'random'
_MAX_RUNS = 10_000  # of one group, however many a malformed config asks for

# Raised while missing files and malformed JSON values are read.
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds the searches of a sweep, and the trainings from scratch beside them.

    Attributes:
      config: config of the sweep: field -> value.
      searches: content of the workdir of each search, by its name.
      asked: names of all planned runs by group, as in `comparison.compare`.
      finished: test accuracies of the finished ones, by group and name.
      summary: comparison of the finished runs; empty until a search is finished.
    """

    config: dict[str, Any]
    searches: dict[str, Record]
    asked: dict[str, list[str]]
    finished: dict[str, dict[str, float]]
    summary: dict[str, Any]


def build(directory: pathlib.Path, record: Record, page: str) -> dict[str, Any]:
    """Builds all that the template `several.html.jinja` shows.

    Args:
      directory: workdir of the sweep.
      record: content of its own files.
      page: file name of the page of each run, in the workdir of that run.
    """
    sweep = read(directory, record)
    runs = [search.run for search in sweep.searches.values() if search.run]
    return {
        'head': _head(sweep, record),
        'numbers': _numbers(sweep),
        'accuracy': _accuracy(sweep),
        'searches': _searches(sweep, directory, page),
        'chance': _from_scratch(sweep),
        'statistics': _statistics(sweep),
        'setup': run_sections.setup(dataclasses.replace(record, run=runs[0] if runs else {})),
    }


def read(directory: pathlib.Path, record: Record) -> Sweep:
    """Reads the runs of a sweep, which the config in its own files names."""
    planned = _planned(record.config)
    searches = {name: run_record.read(directory / name) for name in planned[_SEARCHES]}
    skip_share = _skip_share(record.config)
    finished = {
        group: {
            name: accuracy
            for name in names
            if (accuracy := _accuracy_of(directory, name)) is not None
            and (group != _SEARCHES or _is_complete(directory, name, skip_share))
        }
        for group, names in planned.items()
    }
    summary = {}
    if finished[_SEARCHES]:
        names = {group: list(accuracies) for group, accuracies in finished.items()}
        summary = comparison.compare(directory, names, skip_share)
    return Sweep(record.config, searches, planned, finished, summary)


def _planned(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names the runs that a config asks for, by group."""
    seeds = [f'seed_{seed}' for seed in _list_of(config, 'seeds') if type(seed) is int]
    count = config.get('random_cells')
    count = min(count, _MAX_RUNS) if type(count) is int else 0
    planned = {_SEARCHES: seeds}
    if count or config.get('plain_cells'):
        planned[_FOUND] = [f'found/{name}' for name in seeds]
    planned[_RANDOM] = [f'random/{i}' for i in range(count)]
    for name in _list_of(config, 'plain_cells'):
        if name in tuple(operations.PRIMITIVES):
            planned[name] = [f'plain/{name}/{seed}' for seed in seeds]
    return planned


def _list_of(config: Mapping[str, Any], field: str) -> list[Any]:
    value = config.get(field)
    return value if isinstance(value, list) else []


def _skip_share(config: Mapping[str, Any]) -> float:
    return finite_or_none(config.get('alarm.skip_share')) or 1.0


def _accuracy_of(directory: pathlib.Path, name: str) -> float | None:
    """Returns the test accuracy of a run, or `None` if it is not finished."""
    return finite_or_none(
        workdir.read_json_object(directory / name / 'summary.json').get('test_accuracy')
    )


def _is_complete(directory: pathlib.Path, name: str, skip_share: float) -> bool:
    """Returns whether a finished search has left all that its row in the table needs."""
    try:
        row = comparison.search_row(directory / name, name, skip_share)
    except _UNREADABLE:
        return False
    return all(
        finite_or_none(row[key]) is not None for key in ('valid_accuracy', 'params', 'seconds')
    )


def _head(sweep: Sweep, record: Record) -> dict[str, Any]:
    state = f'{len(sweep.finished[_SEARCHES])} of {len(sweep.searches)} searches are finished'
    controls = [group for group in sweep.asked if group != _SEARCHES]
    planned = sum(len(sweep.asked[group]) for group in controls)
    done = sum(len(sweep.finished[group]) for group in controls)
    if planned:
        state += f', {done} of {planned} trainings from scratch'
    return {
        'name': record.name,
        'kind': 'several searches',
        'facts': [
            (key, formatting.config_value(sweep.config[key]))
            for key in ('data.name', 'model.space', 'search.estimator', 'seeds')
            if sweep.config.get(key) is not None
        ],
        'state': f'{state}.',
    }


def _numbers(sweep: Sweep) -> list[dict[str, str]]:
    """Builds the key figures at the top of the page: `name`, `value` and `note` of each."""
    summary, finished = sweep.summary, len(sweep.finished[_SEARCHES])
    collapsed = f'{summary["collapsed"]} of {finished}' if summary else MISSING
    figures = [
        ('Searches', str(len(sweep.searches)), f'{finished} of them finished'),
        ('Test accuracy', *_mean(summary.get('searched'), 'of the searches')),
        ('Collapsed', collapsed, 'of the searches'),
    ]
    if sweep.asked.get(_FOUND):
        figures.append(('From scratch', *_mean(summary.get('found'), 'found cells')))
    if sweep.asked[_RANDOM]:
        random = summary.get('random', {})
        figures.append(('Random cells', percent(random.get('median')), 'median, from scratch'))
        ranked = sum('above_random_median' in row for row in summary.get('searches', ()))
        above = f'{summary["above_random_median"]} of {ranked}' if ranked else MISSING
        figures.append(('Above that median', above, 'of the found cells'))
    return [{'name': name, 'value': value, 'note': note} for name, value, note in figures]


def _mean(statistics: Mapping[str, Any] | None, note: str) -> tuple[str, str]:
    """Formats a mean, and a note with the number of runs and their standard deviation."""
    if not statistics:
        return MISSING, note
    spread = comparison.spread(statistics)
    more = f',{spread}' if spread else ''
    return percent(statistics['mean']), f'{note}, mean of {statistics["count"]}{more}'


def _accuracy(sweep: Sweep) -> dict[str, Any]:
    """Builds the chart with the validation accuracy of all searches.

    Its phases are those of the search with the most evaluations.
    """
    series, columns, alt = [], {}, ''
    longest = max(sweep.searches.values(), key=lambda search: len(search.lines), default=None)
    lines = [{'phase': line['phase']} for line in longest.lines] if longest else []
    base = Record('', {}, lines)
    for i, (name, search) in enumerate(sweep.searches.items()):
        values = search.series('valid/accuracy')
        style = _STYLES[i % len(_STYLES)]
        series.append(Line(name, values, style, label=name.removeprefix('seed_')))
        columns[name] = ([*values, *[None] * (len(lines) - len(values))], percent)
        alt += formatting.describe_series(f'Validation accuracy of {name}', values, percent)
    title = 'Validation accuracy of all searches'
    return {
        'charts': [
            charts.lines(base, title, alt, series, percent=True, **size)
            for size in charts.PAGE_SIZES
        ],
        'lines': [
            (line.style, line.name, percent(sweep.searches[line.name].last('valid/accuracy')))
            for line in series
        ],
        'phases': longest.name if longest else '',
        'table': formatting.table(base, columns),
    }


def _searches(sweep: Sweep, directory: pathlib.Path, page: str) -> dict[str, Any]:
    """Builds the table of searches, and the genotype of each."""
    rows = {row['name']: row for row in sweep.summary.get('searches', ())}
    ranks = len(sweep.finished[_RANDOM]) + 1
    head = ['search', 'state', 'validation', 'test, at the end', 'test, from scratch',
            'rank among random', 'skip_connect', 'none', 'parameter-free', 'parameters',
            'training']  # fmt: skip
    shown = []
    for name, search in sweep.searches.items():
        row = rows.get(name)
        if row is None:
            state = run_sections.head(search)['state']
            cells, genotype = [state, *[MISSING] * (len(head) - 2)], MISSING
        else:
            cells, genotype = _cells(row, ranks), row['genotype']
            if not isinstance(genotype, str):
                genotype = '; '.join(', '.join(map(str, group)) for group in genotype)
        link = f'{name}/{page}' if (directory / name / page).exists() else None
        shown.append({'name': name, 'link': link, 'cells': cells, 'cell': genotype})
    return {'head': head, 'rows': shown, 'share': f'{100 * _skip_share(sweep.config):.0f} %'}


def _cells(row: Mapping[str, Any], ranks: int) -> list[str]:
    """Formats a row of `comparison.compare` for the table of searches, without the name."""
    rank = row.get('rank_among_random')
    return [
        'collapsed' if row['collapsed'] else 'finished',
        percent(row['valid_accuracy']),
        percent(row['test_accuracy']),
        percent(row.get('retrained')),
        MISSING if rank is None else f'{rank} of {ranks}',
        f'{row["skip_connect"]} of {row["operations"]}',
        str(row['none']),
        str(row['parameter_free']),
        plain(row['params']),
        formatting.seconds(row['seconds']),
    ]


def _from_scratch(sweep: Sweep) -> dict[str, Any]:
    """Builds the strip chart with the accuracies of all networks trained from scratch."""
    groups: list[Strip] = []
    for group, accuracies in sweep.finished.items():
        if group == _SEARCHES or not accuracies:
            continue
        values = [
            (accuracy, name.rpartition('seed_')[2] if group == _FOUND else '')
            for name, accuracy in accuracies.items()
        ]
        title = {_FOUND: 'found cells', _RANDOM: 'random cells'}.get(group, f'{group} everywhere')
        shape = {_FOUND: 'diamond', _RANDOM: 'ball'}.get(group, 'square')
        groups.append(Strip(title, values, shape))
    alt = ' '.join(
        f'{strip.name}: {len(strip.values)}, from {percent(min(strip.values)[0])} to '
        f'{percent(max(strip.values)[0])}.'
        for strip in groups
    )
    rows = [
        [name, percent(accuracy)]
        for group, accuracies in sweep.finished.items()
        if group != _SEARCHES
        for name, accuracy in accuracies.items()
    ]
    names = {
        'diamond': 'found cells',
        'ball': 'random cells',
        'square': 'one operation everywhere',
    }
    shapes = {strip.shape for strip in groups}
    widths = [size['width'] for size in charts.PAGE_SIZES] if groups else []
    title = 'Test accuracy from scratch'
    return {
        'charts': [strip_chart.chart(title, alt, groups, width=width) for width in widths],
        'shapes': [(shape, name) for shape, name in names.items() if shape in shapes],
        'marked': 'diamond' in shapes,
        'asked': _FOUND in sweep.asked,
        'table': {'head': ['run', 'test accuracy'], 'rows': rows, 'note': ''},
    }


def _statistics(sweep: Sweep) -> list[list[str]]:
    """Builds the table with mean, spread and extremes of every group."""
    if not sweep.summary:
        return []
    return [
        [
            title,
            str(statistics['count']),
            percent(statistics['mean']) + comparison.spread(statistics),
            *(percent(statistics[name]) for name in ('median', 'best', 'worst')),
        ]
        for title, statistics in comparison.groups(sweep.summary).items()
    ]
