"""Builds the texts, figures and tables for the sections of a run's page."""

from collections.abc import Mapping
from typing import Any

from asose_jax.metrics.run_record import GrowthEvent, Record, finite_or_none
from asose_jax.report import charts, formatting, network_drawing
from asose_jax.report.formatting import MISSING, percent, plain, seconds
from asose_jax.spaces import chain


def head(record: Record) -> dict[str, Any]:
    """Builds the head of the page.

    Returns:
      `name`, `kind` (search or training from scratch), `facts` (main fields of the config) and
      `state` (how far the run is).
    """
    config, lines = record.config, record.lines
    state = 'Finished.' if record.summary else 'Not finished: no evaluation yet.'
    if lines and not record.summary:
        last = lines[-1]
        planned = config.get(f'{last["phase"]}.epochs', '?')
        state = f'Not finished: {last["phase"]}, epoch {last.get("epoch", "?")} of {planned}.'
    if record.unread:
        state += f' {record.unread} lines of metrics.jsonl cannot be read and are left out.'
    searches = not lines or any(stretch.name != 'optimize' for stretch in record.phase_ranges)
    keys = ('data.name', 'model.space', 'search.estimator' if searches else 'genotype', 'seed')
    facts = [
        (key, formatting.config_value(config[key])) for key in keys if config.get(key) is not None
    ]
    kind = 'architecture search' if searches else 'training from scratch'
    return {'name': record.name, 'state': state, 'facts': facts, 'kind': kind}


def numbers(record: Record) -> list[dict[str, str]]:
    """Builds the key figures at the top of the page: `name`, `value` and `note` of each."""
    summary, valid = record.summary, record.series('valid/accuracy')
    best = max((v for v in valid if v is not None), default=None)
    now = (
        finite_or_none(summary.get('valid_accuracy')) if summary else record.last('valid/accuracy')
    )
    rows = phases(record)
    training = sum(row['seconds'] or 0 for row in rows)
    compilation = sum(row['compile_seconds'] or 0 for row in rows)
    params = finite_or_none(summary.get('params')) or record.last('params')
    entropy = next((v for v in reversed(record.series('arch/entropy')) if v), None)
    flops = record.last('train_flops')
    has_valid = record.config.get('data.valid_fraction') != 0
    figures = [
        (
            'Test accuracy',
            percent(finite_or_none(summary.get('test_accuracy'))),
            'evaluated once, at the end',
        ),
        (
            'Validation accuracy',
            percent(now),
            f'best {percent(best)}' if has_valid else 'none: all images are trained on',
        ),
        ('Parameters', plain(params), 'of the network'),
        (
            'Multiply-adds',
            plain(finite_or_none(summary.get('multiply_adds'))),
            'per image' if summary else 'known at the end',
        ),
        (
            'Training',
            seconds(training) if rows else MISSING,
            f'compilation: {seconds(compilation)}',
        ),
        (
            'Training cost',
            MISSING if flops is None else charts.short(flops),
            'floating-point operations',
        ),
    ]
    if entropy is not None:
        drawn = record.last('arch/draw_entropy')
        note = 'nats' if drawn is None else f'nats; sampling distribution: {plain(drawn)}'
        figures.append(('Entropy of α', plain(entropy), note))
    limits = summary.get('cost_limit')
    for kind, entry in limits.items() if isinstance(limits, dict) else ():
        value, largest = (finite_or_none(entry.get(key)) for key in ('value', 'limit'))
        figures.append((f'Cost limit, {kind}', plain(value), f'of at most {plain(largest)}'))
    halted = summary.get('halted')
    if isinstance(halted, dict) and 'settled_for' in halted:
        count = plain(finite_or_none(halted['settled_for']))
        note = f'the network had been the same for {count} of them'
        figures.append(('Epochs of search', plain(finite_or_none(halted.get('epoch'))), note))
    if record.growths:
        figures.append(('Growths', str(len(record.growths)), 'in depth, width or branches'))
    return [{'name': name, 'value': value, 'note': note} for name, value, note in figures]


def growths(record: Record) -> list[dict[str, Any]]:
    """Builds the section of growths.

    Returns:
      `name`, `description`, `facts` (parameters, accuracies, pause in training) and `drawings` (the
      network before and after) of each.
    """
    sections = []
    for i, grown in enumerate(record.growths):
        event = {key: finite_or_none(value) for key, value in grown.event.items()}
        params = [plain(event.get(f'params_{when}')) for when in ('before', 'after')]
        accuracies = [percent(event.get(f'valid_accuracy_{when}')) for when in ('before', 'after')]
        facts = [
            ('parameters', ' → '.join(params)),
            ('validation accuracy', ' → '.join(accuracies)),
            ('largest change of a logit', f'{event.get("max_abs_logit_change") or 0:.1g}'),
            ('pause in training', seconds(event.get('stall_seconds'))),
        ]
        drawings = []
        if grown.before and grown.after:  # of a chain: nothing else grows
            changed, new = _changes(grown.event, grown.before.spec, grown.after.spec)
            drawings += network_drawing.draw(grown.before, role='before')
            drawings += network_drawing.draw(grown.after, changed, new, role='after')
        sections.append(
            {
                'name': f'G{i + 1}',
                'description': describe_growth(grown),
                'facts': facts,
                'drawings': drawings,
            }
        )
    return sections


def describe_growth(grown: GrowthEvent) -> str:
    """Describes a growth in words: `a new block 2, after evaluation 23`."""
    kind, where = grown.event.get('kind'), grown.event.get('where')
    texts = {
        chain.DEPTH: f'a new block {where}',
        chain.WIDTH: f'stage {where} is wider',
        chain.BRANCH: f'block {where} has a new branch',
    }
    return f'{texts.get(str(kind), f"{kind} at {where}")}, after evaluation {grown.at + 1}'


def _changes(
    event: Mapping[str, Any], before: Any, after: Any
) -> tuple[list[int], tuple[int, int] | None]:
    """Returns the blocks that a growth has changed, and the new block and branch, if any."""
    kind, where = event.get('kind'), event['where']
    if kind == chain.DEPTH:
        return [where], (where, 0)
    pairs = zip(before.blocks, after.blocks, strict=False)
    changed = [i for i, (old, new) in enumerate(pairs) if old != new]
    branches = [(i, len(before.blocks[i].branches)) for i in changed]
    return changed, branches[0] if kind == chain.BRANCH and branches else None


def alarms(record: Record) -> list[str]:
    """Lists the warnings of a run, each once, with the evaluations that it was raised at."""
    evaluations: dict[str, list[int]] = {}
    for i, line in enumerate(record.lines):
        logged = line.get('alarms')
        for alarm in logged if isinstance(logged, list) else ():
            evaluations.setdefault(str(alarm), []).append(i + 1)
    count = len(record.lines)
    texts = [f'{alarm} ({formatting.spans(at)} of {count})' for alarm, at in evaluations.items()]
    halted = record.summary.get('halted')
    if isinstance(halted, dict) and 'settled_for' not in halted:
        texts.append(
            f'search stopped early after epoch {halted.get("epoch")}, because the curvature in α '
            f'had risen; α was set back to that of epoch {halted.get("alpha_of_epoch")}'
        )
    return texts


def guards(record: Record) -> dict[str, Any]:
    """Builds the section of the guards against NaN and infinity.

    Returns:
      `totals` (name and number of caught cases) and `table` (of evaluations with any).
    """
    keys = {
        'guard/grad': 'steps skipped: gradient not finite',
        'guard/arch': 'rows of α replaced: not finite',
    }
    series = {name: record.series(key) for key, name in keys.items()}
    totals = {name: sum(v or 0 for v in values) for name, values in series.items()}
    rows = []
    for i, line in enumerate(record.lines):
        caught = [values[i] for values in series.values()]
        if any(caught):
            rows.append([str(i + 1), line['phase'], *(plain(n) for n in caught)])
    return {
        'totals': [(name, plain(total)) for name, total in totals.items()],
        'table': {
            'head': ['evaluation', 'phase', *series],
            'rows': rows[-formatting.ROWS :],
            'note': '',
        },
    }


def phases(record: Record) -> list[dict[str, Any]]:
    """Builds the table of phases: epochs, time, speed, and first and last validation accuracy.

    Times are those of summary.json in a finished run, and of the last evaluation otherwise.

    Returns:
      A row for each: texts, `seconds` and `compile_seconds` as numbers, and `share`, the percentage
      of the longest phase.
    """
    summary = record.summary.get('phases')
    finished = [r for r in summary if isinstance(r, dict)] if isinstance(summary, list) else []
    rows, valid = [], record.series('valid/accuracy')
    for i, stretch in enumerate(record.phase_ranges):
        line = record.lines[stretch.last]
        last = {**line, **(finished[i] if i < len(finished) else {})}
        known = [v for v in valid[stretch.first : stretch.last + 1] if v is not None]
        planned = record.config.get(f'{stretch.name}.epochs', MISSING)
        rows.append(
            {
                'name': stretch.name,
                'epochs': f'{stretch.last - stretch.first + 1} of {planned}',
                'seconds': finite_or_none(last.get('seconds')),
                'compile_seconds': finite_or_none(last.get('compile_seconds')),
                'rate': plain(finite_or_none(line.get('images_per_second'))),
                'first': percent(known[0] if known else None),
                'last': percent(known[-1] if known else None),
            }
        )
    longest = max((row['seconds'] or 0 for row in rows), default=0) or 1
    for row in rows:
        row['share'] = round(100 * (row['seconds'] or 0) / longest, 1)
        row['durations'] = seconds(row['seconds']), seconds(row['compile_seconds'])
    return rows


def setup(record: Record) -> dict[str, Any]:
    """Builds the section of config, data, versions, devices and command.

    Returns:
      `groups` (fields of the config by group), `images`, `classes`, `versions`, `devices` and
      `command`.
    """
    groups: dict[str, list[tuple[str, str]]] = {'': []}
    for key, value in record.config.items():
        group, _, field = key.rpartition('.')
        groups.setdefault(group, []).append((field, formatting.config_value(value)))
    environment = {**record.summary, **record.run}
    classes = environment.get('classes')
    classes = [str(name) for name in classes] if isinstance(classes, list) else []
    more = f' and {len(classes) - 30} more' if len(classes) > 30 else ''
    images, versions = (_object(environment.get(key)) for key in ('images', 'versions'))
    return {
        'groups': groups,
        'images': [(name, plain(finite_or_none(count))) for name, count in images.items()],
        'classes': ', '.join(classes[:30]) + more,
        'versions': [(str(name), str(version)) for name, version in versions.items()],
        'devices': formatting.config_value(environment.get('devices')),
        'command': str(environment.get('command', '')),
    }


def _object(value: object) -> dict[str, Any]:
    """Returns a JSON object; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}
