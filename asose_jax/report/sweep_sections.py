"""Builds the sections of a sweep's page: its searches side by side, and the networks of controls.

They are built from the files of the single runs as they are now; some may not be finished.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from asose_jax.costs.expected_cost import UNITS
from asose_jax.metrics import comparison, front_comparison, run_record
from asose_jax.metrics.run_record import Record, finite_or_none
from asose_jax.nn import operations
from asose_jax.report import charts, formatting, front_figure, run_sections, strip_chart
from asose_jax.report.charts import Line
from asose_jax.report.formatting import MISSING, percent, plain
from asose_jax.report.strip_chart import Strip
from asose_jax.runtime import workdir

_STYLES = ('first', 'second', 'third', 'first long', 'second mixed', 'third short')
_SEARCHES, _FOUND, _RANDOM = 'searches', 'found', 'random'
_FACTS = ('data.name', 'model.space', 'search.estimator', 'seeds')
_MAX_RUNS = 10_000  # of one group, however many a malformed config asks for

# Raised while missing files and malformed JSON values are read.
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds the searches of a sweep, and the trainings from scratch beside them.

    Attributes:
      config: config of the sweep: field -> value.
      targets: targets of the cost, rising, by what the names of their runs begin with; empty if the
        searches differ by their seeds only.
      searches: content of the workdir of each search, by its name.
      asked: names of all planned runs by group, as in `comparison.compare`.
      finished: test accuracies of the finished ones, by group and name.
      summary: comparison of the finished runs; empty until a search is finished.
    """

    config: dict[str, Any]
    targets: dict[str, float]
    searches: dict[str, Record]
    asked: dict[str, list[str]]
    finished: dict[str, dict[str, float]]
    summary: dict[str, Any]

    def target(self, name: str) -> float | None:
        """Returns the target of a run, or `None` if there are no targets."""
        parts = (target for part, target in self.targets.items() if part in name)
        return next(parts, None)

    def label(self, name: str) -> str:
        """Returns the seed of a search; with targets its target, and the seed of several."""
        seed, target = name.rpartition('seed_')[2], self.target(name)
        if target is None:
            return seed
        several = len(self.searches) > len(self.targets)
        return f'{charts.short(target)}, {seed}' if several else charts.short(target)


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
        'front': _front(sweep),
        'statistics': _statistics(sweep),
        'setup': run_sections.setup(dataclasses.replace(record, run=runs[0] if runs else {})),
    }


def read(directory: pathlib.Path, record: Record) -> Sweep:
    """Reads the runs of a sweep, which the config in its own files names."""
    targets, kind = _targets(record.config), str(record.config.get('cost.kind'))
    planned = _planned(record.config, targets)
    searches = {name: run_record.read(directory / name) for name in planned[_SEARCHES]}
    skip_share = _skip_share(record.config)
    finished = {
        group: {
            name: accuracy
            for name in names
            if (accuracy := _accuracy_of(directory, name)) is not None
            and (group != _SEARCHES or _is_complete(directory, name, skip_share))
            and (not targets or _has_cost(directory, name, kind))
        }
        for group, names in planned.items()
    }
    summary = {}
    if finished[_SEARCHES]:
        names = {group: list(accuracies) for group, accuracies in finished.items()}
        if targets:
            by_target = {
                target: {
                    group: [name for name in those if part in name]
                    for group, those in names.items()
                }
                for part, target in targets.items()
            }
            summary = front_comparison.compare(directory, kind, by_target, skip_share)
        else:
            summary = comparison.compare(directory, names, skip_share)
    return Sweep(record.config, targets, searches, planned, finished, summary)


def _targets(config: Mapping[str, Any]) -> dict[str, float]:
    """Returns `Sweep.targets`."""
    kind, targets = config.get('cost.kind'), map(finite_or_none, _list_of(config, 'cost.targets'))
    if not isinstance(kind, str) or kind not in UNITS:
        return {}
    return {
        front_comparison.part(kind, target): target
        for target in sorted(target for target in targets if target is not None)
    }


def _planned(config: Mapping[str, Any], targets: Mapping[str, float]) -> dict[str, list[str]]:
    """Names the runs that a config asks for, by group."""
    parts = [*targets] or ['']
    numbers = [seed for seed in _list_of(config, 'seeds') if type(seed) is int]
    seeds = [f'{part}seed_{seed}' for part in parts for seed in numbers]
    count = config.get('random_cells')
    count = min(count, _MAX_RUNS) if type(count) is int else 0
    planned = {_SEARCHES: seeds}
    if count or config.get('plain_cells'):
        planned[_FOUND] = [f'found/{name}' for name in seeds]
    planned[_RANDOM] = [f'random/{part}{i}' for part in parts for i in range(count)]
    for name in [] if targets else _list_of(config, 'plain_cells'):
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


def _has_cost(directory: pathlib.Path, name: str, kind: str) -> bool:
    """Returns whether the cost of the network of a finished run is known."""
    try:
        return finite_or_none(front_comparison.point(directory, name, kind)['cost']) is not None
    except _UNREADABLE:
        return False


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
        'kind': 'accuracy against cost' if sweep.targets else 'several searches',
        'facts': [
            (key, formatting.config_value(sweep.config[key]))
            for key in _FACTS + ('cost.kind',) * bool(sweep.targets)
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
        *(_ends(sweep) if sweep.targets else [_searched(summary)]),
        ('Collapsed', collapsed, 'of the searches'),
    ]
    if sweep.asked.get(_FOUND) and not sweep.targets:
        figures.append(('From scratch', *_mean(summary.get('found'), 'found cells')))
    if sweep.asked[_RANDOM]:
        if not sweep.targets:
            random = summary.get('random', {})
            figures.append(('Random cells', percent(random.get('median')), 'median, from scratch'))
        ranked = sum('above_random_median' in row for row in summary.get('searches', ()))
        above = f'{summary["above_random_median"]} of {ranked}' if ranked else MISSING
        median = 'random median' if sweep.targets else 'that median'
        figures.append((f'Above {median}', above, 'of the found cells'))
    return [{'name': name, 'value': value, 'note': note} for name, value, note in figures]


def _searched(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    return ('Test accuracy', *_mean(summary.get('searched'), 'of the searches'))


def _ends(sweep: Sweep) -> list[tuple[str, str, str]]:
    """Returns the figures of the smallest and the largest target."""
    entries = {entry['target']: entry for entry in _entries(sweep)}
    ends = {'Smallest': min(sweep.targets.values()), 'Largest': max(sweep.targets.values())}
    return [
        (f'{name} target', *_mean(entries.get(target, {}).get('searched'), charts.short(target)))
        for name, target in ends.items()
    ]


def _entries(sweep: Sweep) -> list[dict[str, Any]]:
    """Returns the entries of the targets that have a finished search."""
    return sweep.summary['front']['targets'] if sweep.summary else []


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
    longest = max(sweep.searches, key=lambda name: len(sweep.searches[name].lines), default='')
    lines = [{'phase': line['phase']} for line in sweep.searches[longest].lines] if longest else []
    base = Record('', {}, lines)
    for i, (name, search) in enumerate(sweep.searches.items()):
        values = search.series('valid/accuracy')
        style = _STYLES[i % len(_STYLES)]
        series.append(Line(name, values, style, label=sweep.label(name)))
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
        'phases': longest,
        'table': formatting.table(base, columns),
    }


def _searches(sweep: Sweep, directory: pathlib.Path, page: str) -> dict[str, Any]:
    """Builds the table of searches, and the genotype of each."""
    rows = {row['name']: row for row in sweep.summary.get('searches', ())}
    ranks = len(sweep.finished[_RANDOM]) // max(1, len(sweep.targets)) + 1
    head = ['search', 'state', 'validation', 'test, at the end', 'test, from scratch',
            'rank among random', 'skip_connect', 'none', 'parameter-free', 'parameters',
            'training']  # fmt: skip
    head += ['cost'] * bool(sweep.targets)
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
        *([plain(row['cost'])] if 'cost' in row else []),
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


def _front(sweep: Sweep) -> dict[str, Any] | None:
    """Builds the chart with accuracy against cost; `None` if there are no targets."""
    if not sweep.targets:
        return None
    entries, unit = _entries(sweep), UNITS[sweep.config['cost.kind']]
    series = [
        _series(entries, *row)
        for row in (
            ('searched', 'found, at the end of the search', 'diamond', 'third long'),
            ('found', 'found, trained from scratch', 'square', 'second'),
            ('random', 'random, trained from scratch', 'ball', ''),
        )
        if any(row[0] in entry for entry in entries)
    ]
    alt = ' '.join(
        f'{group.name}: {formatting.plain(cost)}, {percent(mean)}.'
        for group in series
        for cost, mean, _ in group.means
    )
    rows = [
        [run['name'], plain(entry['target']), plain(run['cost']), percent(run['test_accuracy'])]
        for entry in entries
        for group in ('searched', 'found', 'random')
        if group in entry
        for run in entry[group]['runs']
    ]
    title, targets = 'Test accuracy against cost', [*sweep.targets.values()]
    head = ['run', 'target', 'cost', 'test accuracy']
    return {
        'charts': [
            front_figure.chart(title, alt, series, targets, **size)
            for size in (charts.PAGE_SIZES if series else ())
        ],
        'series': series,
        'unit': unit,
        'table': {'head': head, 'rows': rows, 'note': ''},
    }


def _series(
    entries: Sequence[Mapping[str, Any]], group: str, title: str, shape: str, style: str
) -> front_figure.Series:
    """Collects the networks of one group; without a style, no line joins them."""
    those = [entry[group] for entry in entries if group in entry]
    runs = [run for statistics in those for run in statistics['runs']]
    return front_figure.Series(
        title,
        shape,
        [(run['cost'], run['test_accuracy']) for run in runs],
        [(s['cost'], s['mean'], s['std']) for s in those] if style else [],
        style,
    )


def _statistics(sweep: Sweep) -> list[list[str]]:
    """Builds the table with mean, spread and extremes of every group; its head comes first."""
    if not sweep.summary:
        return []
    head, *rows = comparison.statistics_table(sweep.summary, percent)
    return [['group', *head[1:]], *rows]
