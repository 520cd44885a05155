"""Compares the searches of a sweep: mean and spread of accuracies, collapse, random networks."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import FALLBACK, NONE, Genotype
from asose_jax.nn import operations
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import registry

NOT_EVALUATED = 'starting'  # the progress of a run without an evaluation


def compare(
    directory: pathlib.Path, runs: Mapping[str, Sequence[str]], skip_share: float
) -> dict[str, Any]:
    """Compares finished runs by what they wrote.

    Args:
      directory: workdir of the sweep.
      runs: names of finished runs, which are directories below `directory`, by group: `searches`;
        `found`, where `found/NAME` retrained from scratch the genotype of the search NAME; and the
        controls that were trained in the same way: `random` genotypes, and networks of a single
        operation under the name of that operation. All but `searches` may be missing or empty.
      skip_share: a search counts as collapsed if a larger fraction of its operations is
        `skip_connect` or `none`.

    Returns:
      JSON: `searches` (the rows, see `search_row`, with `retrained`, `rank_among_random` and
      `above_random_median` where these are known); `searched`, `found`, `random`, and `plain` by
      operation (statistics of test accuracies, see `_statistics`); `collapsed` (number of
      collapsed searches); `above_random_median` (number of searches whose retrained genotype is
      better than the median of the random ones).
    """
    accuracies = {
        group: [read_summary(directory / name)['test_accuracy'] for name in names]
        for group, names in runs.items()
        if group != 'searches' and names
    }
    rows = [search_row(directory / name, name, skip_share) for name in runs['searches']]
    found, random = accuracies.pop('found', []), accuracies.pop('random', [])
    names = [name.removeprefix('found/') for name in runs.get('found', ())]
    _add_retrained(rows, dict(zip(names, found, strict=True)), random)
    comparison = {
        'searches': rows,
        'collapsed': sum(row['collapsed'] for row in rows),
        'searched': _statistics([row['test_accuracy'] for row in rows]),
    }
    if found:
        comparison['found'] = _statistics(found)
    if random:
        comparison['random'] = _statistics(random)
        comparison['above_random_median'] = sum(row.get('above_random_median', 0) for row in rows)
    if accuracies:  # of networks of a single operation
        comparison['plain'] = {name: _statistics(values) for name, values in accuracies.items()}
    return comparison


def _add_retrained(
    rows: Sequence[dict[str, Any]], retrained: Mapping[str, float], random: Sequence[float]
) -> None:
    """Adds to each row the test accuracy from scratch, and its rank among random genotypes.

    Args:
      rows: rows of the searches, changed in place.
      retrained: test accuracy of the retrained genotype, by name of the search.
      random: test accuracies of random genotypes; may be empty.
    """
    for row in rows:
        if row['name'] not in retrained:
            continue
        accuracy = retrained[row['name']]
        row['retrained'] = accuracy
        if random:
            row['rank_among_random'] = 1 + sum(other > accuracy for other in random)
            row['above_random_median'] = bool(accuracy > np.median(random))


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
    """Reads summary.json of a finished run, which has a test accuracy.

    Raises:
      UserError: it cannot be read.
    """
    path = directory / 'summary.json'
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        content['test_accuracy']
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}: {error}): it is damaged. Restore it '
            'from a copy, or delete it and run the same command again: the run goes on from its '
            'last checkpoint.'
        ) from error
    return content


def search_row(directory: pathlib.Path, name: str, skip_share: float) -> dict[str, Any]:
    """Builds the row of one finished search in the table of searches.

    Args:
      directory: workdir of the search.
      name: name of the search in the table.
      skip_share: see `compare`.

    Returns:
      JSON: `name`, `genotype` (the text that others exchange, or nested lists where the space has
      none), `test_accuracy` and `valid_accuracy` (fractions, with the weights of the search),
      `params`, `operations` (their number) and how many of them are `skip_connect`, `none` and
      `parameter_free`, `collapsed`, `seconds` of training.
    """
    summary = read_summary(directory)
    text = (directory / 'genotype.json').read_text(encoding='utf-8')
    spec = registry.spec_from_json(json.loads(text)['network'])
    chosen = Genotype(genotype.to_tuples(summary['genotype']))
    used = spec.used(chosen)
    skips, nones = used.count(FALLBACK), used.count(NONE)
    return {
        'name': name,
        'genotype': registry.genotype_text(spec, chosen) or summary['genotype'],
        'test_accuracy': summary['test_accuracy'],
        'valid_accuracy': summary['valid_accuracy'],
        'params': summary['params'],
        'operations': len(used),
        'skip_connect': skips,
        'none': nones,
        'parameter_free': sum(op in operations.PARAMETER_FREE for op in used),
        'collapsed': skips + nones > skip_share * len(used),
        'seconds': sum(phase['seconds'] for phase in summary['phases']),
    }


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    """Computes count, mean, sample standard deviation (`None` of one value), median, extremes."""
    return {
        'count': len(values),
        'mean': float(np.mean(values)),
        'std': float(np.std(values, ddof=1)) if len(values) > 1 else None,
        'median': float(np.median(values)),
        'quartiles': np.quantile(values, (0.25, 0.75)).tolist(),
        'best': max(values),
        'worst': min(values),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Formats a comparison as Markdown, as in summary.md."""
    lines = [
        '| search | test, at the end | test, from scratch | rank | skip | none '
        '| parameter-free | genotype |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for row in summary['searches']:
        scratch = _percent(row['retrained']) if 'retrained' in row else ''
        rank = row.get('rank_among_random', '')
        collapsed = ' (collapsed)' if row['collapsed'] else ''
        cell = row['genotype'] if isinstance(row['genotype'], str) else json.dumps(row['genotype'])
        lines.append(
            f'| {row["name"]}{collapsed} | {_percent(row["test_accuracy"])} | {scratch} | {rank} | '
            f'{row["skip_connect"]} of {row["operations"]} | {row["none"]} | '
            f'{row["parameter_free"]} | `{cell.replace("|", "¦")}` |'
        )
    head, *rows = statistics_table(summary, _percent)
    lines += ['', f'| {" | ".join(head)} |', f'|{"---|" * len(head)}']
    lines += [f'| {" | ".join(row)} |' for row in rows]
    count = len(summary['searches'])
    lines += ['', f'Collapsed: {summary["collapsed"]} of {count}.']
    if 'above_random_median' in summary:
        lines[-1] += (
            f' Above the median of random cells: {summary["above_random_median"]} of {count}.'
        )
    return '\n'.join(lines) + '\n'


def statistics_table(
    summary: Mapping[str, Any], percent: Callable[[float], str]
) -> list[list[str]]:
    """Builds the table with count, mean, spread and extremes of every group; its head comes first.

    Args:
      summary: a comparison; one of networks for several targets has their target and cost as well.
      percent: formats an accuracy.
    """
    front = summary.get('front')
    head = ['test accuracy', 'runs', 'mean ± std', 'median', 'best', 'worst']
    if front:
        head[1:1] = [f'{front["kind"]}, at most', f'{front["kind"]}, mean']
    table = [head]
    for part in front['targets'] if front else [summary]:
        for title, stats in _groups(part).items():
            costs = [f'{cost:,.10g}' for cost in (part['target'], stats['cost'])] if front else []
            accuracies = [percent(stats[name]) for name in ('mean', 'median', 'best', 'worst')]
            accuracies[0] += spread(stats)
            table.append([title, *costs, str(stats['count']), *accuracies])
    return table


def _groups(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the statistics of a comparison by the title of each group."""
    titles = {
        'searched': 'searches, at the end',
        'found': 'found cells, from scratch',
        'random': 'random cells, from scratch',
    }
    named = {title: summary[key] for key, title in titles.items() if key in summary}
    plain = summary.get('plain', {})
    return named | {f'{name} everywhere': stats for name, stats in plain.items()}


def spread(statistics: Mapping[str, Any]) -> str:
    """Formats the standard deviation behind a mean, ` ± 0.62` in percent; '' of a single run."""
    std = statistics['std']
    return '' if std is None else f' ± {100 * std:.2f}'


def _percent(fraction: float) -> str:
    return f'{100 * fraction:.2f} %'


def result_line(directory: pathlib.Path) -> str:
    """Describes the result of a finished run in one line: test accuracy, and genotype if known."""
    summary = read_summary(directory)
    chosen = directory / 'genotype.txt'
    text = chosen.read_text(encoding='utf-8').strip() if chosen.exists() else ''
    return f'test accuracy {_percent(summary["test_accuracy"])} {text}'.strip()


def progress_line(directory: pathlib.Path) -> str:
    """Describes a run by its last evaluation; returns `NOT_EVALUATED` if there is none yet."""
    try:
        line = (directory / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()[-1]
        metrics = json.loads(line)
        part = 'train' if metrics['valid/accuracy'] is None else 'valid'
        return f'{metrics["phase"]} {metrics["epoch"]}, {part} {metrics[f"{part}/accuracy"]:.1%}'
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return NOT_EVALUATED
