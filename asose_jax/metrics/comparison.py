"""What several searches came to, side by side: mean and spread, collapse, and random cells."""

import json
import pathlib
from typing import Any

import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NONE, SAFE, Genotype
from asose_jax.nn import operations
from asose_jax.spaces import registry


def compare(
    directory: pathlib.Path, runs: dict[str, list[str]], skip_share: float
) -> dict[str, Any]:
    """Reads what finished runs have left, and compares.

    Args:
      directory: of all runs.
      runs: names of runs, directories below it: `searches`; `found/NAME` in `found`, which trained
        from scratch what the search NAME found; and what was trained likewise: `random` cells, and
        networks of one operation by its name. All but `searches` may be missing or empty.
      skip_share: a search has collapsed if more of its operations are `skip_connect` or `none`.

    Returns:
      JSON: `searches` (a row each: genotype, accuracies, operations without weights, collapse),
      `searched`, `found`, `random`, `plain` by operation (statistics of test accuracies),
      `collapsed` (how many searches), `above_random_median` (how many of what they found).
    """
    trained = {
        group: [_summary(directory / name)['test_accuracy'] for name in names]
        for group, names in runs.items()
        if group != 'searches' and names
    }
    rows = [row_of(directory / name, name, skip_share) for name in runs['searches']]
    found, random = trained.pop('found', []), trained.pop('random', [])
    names = [name.removeprefix('found/') for name in runs.get('found', ())]
    retrained = dict(zip(names, found, strict=True))
    for row in rows:
        if row['name'] not in retrained:
            continue
        accuracy = retrained[row['name']]
        row['retrained'] = accuracy
        if random:
            row['rank_among_random'] = 1 + sum(other > accuracy for other in random)
            row['above_random_median'] = bool(accuracy > np.median(random))
    made = {
        'searches': rows,
        'collapsed': sum(row['collapsed'] for row in rows),
        'searched': _statistics([row['test_accuracy'] for row in rows]),
    }
    if found:
        made['found'] = _statistics(found)
    if random:
        made['random'] = _statistics(random)
        made['above_random_median'] = sum(row.get('above_random_median', 0) for row in rows)
    if trained:
        made['plain'] = {name: _statistics(accuracies) for name, accuracies in trained.items()}
    return made


def _summary(directory):
    return json.loads((directory / 'summary.json').read_text(encoding='utf-8'))


def row_of(directory: pathlib.Path, name: str, skip_share: float) -> dict[str, Any]:
    """What a finished search came to: its row in `compare`, of which see the arguments."""
    summary = _summary(directory)
    text = (directory / 'genotype.json').read_text(encoding='utf-8')
    spec = registry.spec_from_json(json.loads(text)['network'])
    chosen = Genotype(genotype.frozen(summary['genotype']))
    used = spec.used(chosen)
    skips, nothing = used.count(SAFE), used.count(NONE)
    return {
        'name': name,
        'genotype': registry.text_of(spec, chosen) or summary['genotype'],
        'test_accuracy': summary['test_accuracy'],
        'valid_accuracy': summary['valid_accuracy'],
        'params': summary['params'],
        'operations': len(used),
        'skip_connect': skips,
        'none': nothing,
        'parameter_free': sum(op in operations.PARAMETER_FREE for op in used),
        'collapsed': skips + nothing > skip_share * len(used),
        'seconds': sum(phase['seconds'] for phase in summary['phases']),
    }


def _statistics(numbers):
    return {
        'count': len(numbers),
        'mean': float(np.mean(numbers)),
        'std': float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
        'median': float(np.median(numbers)),
        'quartiles': np.quantile(numbers, (0.25, 0.75)).tolist(),
        'best': max(numbers),
        'worst': min(numbers),
    }


def table(summary: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        '| search | as searched | from scratch | its rank | skip | none | no weights | cell |',
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
    lines += [
        '',
        '| test accuracy | runs | mean ± std | median | best | worst |',
        '|---|---|---|---|---|---|',
    ]
    for title, found in groups(summary).items():
        rest = ' | '.join(_percent(found[name]) for name in ('median', 'best', 'worst'))
        lines.append(
            f'| {title} | {found["count"]} | {_percent(found["mean"])}{spread(found)} | {rest} |'
        )
    count = len(summary['searches'])
    lines += ['', f'Collapsed: {summary["collapsed"]} of {count}.']
    if 'random' in summary:
        lines[-1] += (
            f' Above the median of random cells: {summary["above_random_median"]} of {count}.'
        )
    return '\n'.join(lines) + '\n'


def groups(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The statistics of a comparison, by what they are of."""
    titles = {'searched': 'as searched', 'found': 'found, from scratch', 'random': 'random cells'}
    found = {title: summary[key] for key, title in titles.items() if key in summary}
    plain = summary.get('plain', {})
    return found | {f'{name} everywhere': told for name, told in plain.items()}


def spread(statistics: dict[str, Any]) -> str:
    """The standard deviation behind a mean, ` ± 0.62`, in percent; '' of a single run."""
    std = statistics['std']
    return '' if std is None else f' ± {100 * std:.2f}'


def _percent(share):
    return f'{100 * share:.2f} %'


def one_line(directory: pathlib.Path) -> str:
    """What a finished run came to."""
    summary = _summary(directory)
    chosen = directory / 'genotype.txt'
    text = chosen.read_text(encoding='utf-8').strip() if chosen.exists() else ''
    return f'test accuracy {_percent(summary["test_accuracy"])} {text}'.strip()


def latest(directory: pathlib.Path) -> str:
    """Where a run is that runs."""
    try:
        line = (directory / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()[-1]
        told = json.loads(line)
        return f'{told["phase"]} {told["epoch"]}, valid {told["valid/accuracy"]:.1%}'
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return 'begins'
