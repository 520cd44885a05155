"""What the page of several searches shows: these side by side, and what was trained beside them.

It is made of the files of the single runs, as they are at this moment: some may not be finished.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from asose_jax.metrics import comparison, run_record
from asose_jax.metrics.run_record import Record, number
from asose_jax.nn import operations
from asose_jax.report import charts, formatting, run_sections, strips
from asose_jax.report.charts import Line
from asose_jax.report.formatting import NOTHING, percent, plain
from asose_jax.report.strips import Strip

_STYLES = ('first', 'second', 'third', 'first long', 'second mixed', 'third short')
_SEARCHES, _FOUND, _RANDOM = 'searches', 'found', 'random'
_MOST = 10_000  # runs of one kind that are looked for
_ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)


@dataclasses.dataclass(frozen=True)
class Several:
    """Several searches, and what was trained beside them.

    Attributes:
      config: of all, field -> value.
      searches: what the workdir of each holds, by its name.
      asked: names of all runs by group, as in `comparison.compare`.
      finished: those of them that are.
      summary: their comparison; empty until a search is finished.
    """

    config: dict[str, Any]
    searches: dict[str, Record]
    asked: dict[str, list[str]]
    finished: dict[str, dict[str, float]]
    summary: dict[str, Any]


def content(directory: pathlib.Path, told: Record, page: str) -> dict[str, Any]:
    """All that the template shows.

    Args:
      directory: of all runs.
      record: what is in itself.
      page: the name of the page of each run, in its own directory.
    """
    made = read(directory, told)
    known = [each.run for each in made.searches.values() if each.run]
    return {
        'head': _head(made, told),
        'numbers': _numbers(made),
        'accuracy': _accuracy(made),
        'searches': _searches(made, directory, page),
        'chance': _chance(made),
        'statistics': _statistics(made),
        'setup': run_sections.setup(dataclasses.replace(told, run=known[0] if known else {})),
    }


def read(directory: pathlib.Path, told: Record) -> Several:
    """The runs in `directory`, of which config.json names the seeds; `told` is what it holds."""
    config = told.config
    seeds = [f'seed_{seed}' for seed in _listed(config, 'seeds') if type(seed) is int]
    count = config.get('random_cells')
    count = min(count, _MOST) if type(count) is int else 0
    asked = {_SEARCHES: seeds}
    if count or config.get('plain_cells'):
        asked[_FOUND] = [f'found/{name}' for name in seeds]
    asked[_RANDOM] = [f'random/{i}' for i in range(count)]
    for name in _listed(config, 'plain_cells'):
        if name in tuple(operations.PRIMITIVES):
            asked[name] = [f'plain/{name}/{seed}' for seed in seeds]
    searches = {name: run_record.read(directory / name) for name in seeds}
    share = _share(config)
    finished = {
        group: {
            name: accuracy
            for name in names
            if (accuracy := _accuracy_of(directory, name)) is not None
            and (group != _SEARCHES or _is_whole(directory, name, share))
        }
        for group, names in asked.items()
    }
    summary = {}
    if finished[_SEARCHES]:
        whole = {group: list(names) for group, names in finished.items()}
        summary = comparison.compare(directory, whole, share)
    return Several(config, searches, asked, finished, summary)


def _listed(config, field):
    value = config.get(field)
    return value if isinstance(value, list) else []


def _share(config: Mapping[str, Any]) -> float:
    return number(config.get('alarm.skip_share')) or 1.0


def _accuracy_of(directory, name):
    return number(run_record.contents(directory / name / 'summary.json').get('test_accuracy'))


def _is_whole(directory, name, share):
    """Whether a search that is finished has left what it should."""
    try:
        row = comparison.row_of(directory / name, name, share)
    except _ODD:
        return False
    return all(number(row[key]) is not None for key in ('valid_accuracy', 'params', 'seconds'))


def _head(made, told):
    searched = f'{len(made.finished[_SEARCHES])} of {len(made.searches)} searches are finished'
    others = [group for group in made.asked if group != _SEARCHES]
    asked = sum(len(made.asked[group]) for group in others)
    done = sum(len(made.finished[group]) for group in others)
    state = f'{searched}.' if not asked else f'{searched}, {done} of {asked} trainings beside them.'
    return {
        'name': told.name,
        'kind': 'several searches',
        'facts': [
            (key, formatting.shown(made.config[key]))
            for key in ('data.name', 'model.space', 'search.estimator', 'seeds')
            if made.config.get(key) is not None
        ],
        'state': state,
    }


def _numbers(made):
    s, searches = made.summary, len(made.finished[_SEARCHES])
    given = [
        ('Searches', str(len(made.searches)), f'{searches} of them finished'),
        ('Test accuracy', *_mean(s.get('searched'), 'as searched')),
        ('Collapsed', f'{s["collapsed"]} of {searches}' if s else NOTHING, 'of the searches'),
    ]
    if made.asked.get(_FOUND):
        given.append(('From scratch', *_mean(s.get('found'), 'what was found')))
    if made.asked[_RANDOM]:
        random = s.get('random', {})
        given.append(('Random cells', percent(random.get('median')), 'median, from scratch'))
        ranked = sum('above_random_median' in row for row in s.get('searches', ()))
        above = f'{s["above_random_median"]} of {ranked}' if ranked else NOTHING
        given.append(('Above that median', above, 'of what was found'))
    return [{'name': name, 'value': value, 'note': note} for name, value, note in given]


def _mean(statistics, note):
    if not statistics:
        return NOTHING, note
    spread = comparison.spread(statistics)
    more = f',{spread}' if spread else ''
    return percent(statistics['mean']), f'{note}, mean of {statistics["count"]}{more}'


def _accuracy(made):
    """Validation accuracy of all searches in one chart."""
    given, columns, told = [], {}, ''
    longest = max(made.searches.values(), key=lambda each: len(each.lines), default=None)
    lines = [{'phase': line['phase']} for line in longest.lines] if longest else []
    base = Record('', {}, lines)
    for i, (name, each) in enumerate(made.searches.items()):
        values = each.series('valid/accuracy')
        style = _STYLES[i % len(_STYLES)]
        given.append(Line(name, values, style, label=name.removeprefix('seed_')))
        columns[name] = ([*values, *[None] * (len(lines) - len(values))], percent)
        told += formatting.course(f'Validation accuracy of {name}', values, percent)
    title = 'Validation accuracy of all searches'
    return {
        'charts': [
            charts.lines(base, title, told, given, percent=True, **size)
            for size in ({'width': 1000.0, 'height': 340.0}, {'width': 360.0, 'height': 250.0})
        ],
        'lines': [
            (line.style, line.name, percent(made.searches[line.name].last('valid/accuracy')))
            for line in given
        ],
        'phases': longest.name if longest else '',
        'table': formatting.table(base, columns),
    }


def _searches(made, directory, page):
    """A row for each search."""
    rows = {row['name']: row for row in made.summary.get('searches', ())}
    ranks = len(made.finished[_RANDOM])
    head = ['search', 'state', 'validation', 'test, as searched', 'test, from scratch',
            'rank among random', 'skip_connect', 'none', 'no weights', 'parameters',
            'training']  # fmt: skip
    found = []
    for name, each in made.searches.items():
        row = rows.get(name)
        cells, cell = [run_sections.head(each)['state'], *[NOTHING] * (len(head) - 2)], NOTHING
        if row is not None:
            rank = row.get('rank_among_random')
            cells = [
                'collapsed' if row['collapsed'] else 'finished',
                percent(row['valid_accuracy']),
                percent(row['test_accuracy']),
                percent(row.get('retrained')),
                NOTHING if rank is None else f'{rank} of {ranks + 1}',
                f'{row["skip_connect"]} of {row["operations"]}',
                str(row['none']),
                str(row['parameter_free']),
                plain(row['params']),
                formatting.seconds(row['seconds']),
            ]
            cell = row['genotype']
            if not isinstance(cell, str):
                cell = '; '.join(', '.join(map(str, group)) for group in cell)
        link = f'{name}/{page}' if (directory / name / page).exists() else None
        found.append({'name': name, 'link': link, 'cells': cells, 'cell': cell})
    return {'head': head, 'rows': found, 'share': f'{100 * _share(made.config):.0f} %'}


def _chance(made):
    """The accuracies of all that was trained from scratch, strip by strip."""
    found = []
    for group, runs in made.finished.items():
        if group == _SEARCHES or not runs:
            continue
        label = group == _FOUND
        values = [
            (accuracy, name.rpartition('seed_')[2] if label else '')
            for name, accuracy in runs.items()
        ]
        title = {_FOUND: 'found', _RANDOM: 'random cells'}.get(group, f'{group} everywhere')
        shape = {_FOUND: 'diamond', _RANDOM: 'ball'}.get(group, 'square')
        found.append(Strip(title, values, shape))
    told = ' '.join(
        f'{strip.name}: {len(strip.values)}, from {percent(min(strip.values)[0])} to '
        f'{percent(max(strip.values)[0])}.'
        for strip in found
    )
    rows = [
        [name, percent(accuracy)]
        for group, runs in made.finished.items()
        if group != _SEARCHES
        for name, accuracy in runs.items()
    ]
    names = {'diamond': 'found', 'ball': 'random cells', 'square': 'one operation everywhere'}
    shapes = {strip.shape for strip in found}
    title = 'Test accuracy from scratch'
    return {
        'charts': [strips.chart(title, told, found, width=w) for w in (1000.0, 360.0) if found],
        'shapes': [(shape, name) for shape, name in names.items() if shape in shapes],
        'marked': 'diamond' in shapes,
        'asked': _FOUND in made.asked,
        'table': {'head': ['run', 'test accuracy'], 'rows': rows, 'note': ''},
    }


def _statistics(made):
    """Mean and spread of every group."""
    if not made.summary:
        return []
    return [
        [
            title,
            str(found['count']),
            percent(found['mean']) + comparison.spread(found),
            *(percent(found[name]) for name in ('median', 'best', 'worst')),
        ]
        for title, found in comparison.groups(made.summary).items()
    ]
