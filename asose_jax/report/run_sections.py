"""What the report says in words and numbers, section by section, made of a `run_record.Record`."""

from typing import Any

from asose_jax.metrics.run_record import Grown, Record, number
from asose_jax.report import charts, formatting, network_drawing
from asose_jax.report.formatting import NOTHING, percent, plain, seconds
from asose_jax.spaces import chain


def head(record: Record) -> dict[str, Any]:
    """Which run this is, and how far it is."""
    c, lines = record.config, record.lines
    state = 'Finished.' if record.summary else 'Not finished: no evaluation yet.'
    if lines and not record.summary:
        last = lines[-1]
        planned = c.get(f'{last["phase"]}.epochs', '?')
        state = f'Not finished: {last["phase"]}, epoch {last.get("epoch", "?")} of {planned}.'
    if record.unread:
        state += f' {record.unread} lines of metrics.jsonl cannot be read and are left out.'
    searches = not lines or any(stretch.name != 'optimize' for stretch in record.stretches)
    known = ('data.name', 'model.space', 'search.estimator' if searches else 'genotype', 'seed')
    facts = [(key, formatting.shown(c[key])) for key in known if c.get(key) is not None]
    kind = 'architecture search' if searches else 'training from scratch'
    return {'name': record.name, 'state': state, 'facts': facts, 'kind': kind}


def numbers(record: Record) -> list[dict[str, str]]:
    """The figures to see first."""
    s, valid = record.summary, record.series('valid/accuracy')
    best = max((v for v in valid if v is not None), default=None)
    now = number(s.get('valid_accuracy')) if s else record.last('valid/accuracy')
    rows = phases(record)
    spent = sum(row['seconds'] or 0 for row in rows)
    compiled = sum(row['compile_seconds'] or 0 for row in rows)
    sure = next((v for v in reversed(record.series('arch/entropy')) if v), None)
    test = number(s.get('test_accuracy'))
    adds, cost = number(s.get('multiply_adds')), record.last('train_flops')
    given = [
        ('Test accuracy', percent(test), 'looked at once' if s else 'at the end'),
        ('Validation accuracy', percent(now), f'best {percent(best)}'),
        (
            'Parameters',
            plain(number(s.get('params')) or record.last('params')),
            'of the network',
        ),
        ('Multiply-adds', plain(adds), 'for one image' if s else 'at the end'),
        (
            'Training',
            seconds(spent) if rows else NOTHING,
            f'{seconds(compiled)} of compilation',
        ),
        (
            'Cost',
            NOTHING if cost is None else charts.short(cost),
            'floating-point operations',
        ),
    ]
    if sure is not None:
        drawn = record.last('arch/draw_entropy')
        note = 'nats, while it was searched' if drawn is None else f'nats; draws: {plain(drawn)}'
        given.append(('Entropy of α', plain(sure), note))
    if record.growths:
        given.append(('Growths', str(len(record.growths)), 'in depth, width or branches'))
    return [{'name': name, 'value': value, 'note': note} for name, value, note in given]


def growths(record: Record) -> list[dict[str, Any]]:
    """Every growth: what it was, what it cost, and the network before and after."""
    made = []
    for i, grown in enumerate(record.growths):
        e = {key: number(value) for key, value in grown.event.items()}
        facts = [
            (
                'parameters',
                f'{plain(e.get("params_before"))} → {plain(e.get("params_after"))}',
            ),
            (
                'validation accuracy',
                f'{percent(e.get("valid_accuracy_before"))} → '
                f'{percent(e.get("valid_accuracy_after"))}',
            ),
            ('largest change of a logit', f'{e.get("max_abs_logit_change") or 0:.1g}'),
            ('training waited', seconds(e.get('stall_seconds'))),
        ]
        drawings = []
        if grown.before and grown.after:  # a chain: nothing else grows
            drawings += network_drawing.draw(grown.before, role='before')
            drawings += network_drawing.draw(grown.after, *_changed(grown), role='after')
        made.append(
            {'name': f'G{i + 1}', 'what': what(grown), 'facts': facts, 'drawings': drawings}
        )
    return made


def what(grown: Grown) -> str:
    """A growth in words."""
    kind, where = grown.event.get('kind'), grown.event.get('where')
    told = {
        chain.DEPTH: f'a new block {where}',
        chain.WIDTH: f'stage {where} is wider',
        chain.BRANCH: f'block {where} has a branch more',
    }.get(kind, f'{kind} at {where}')
    return f'{told}, after evaluation {grown.at + 1}'


def _changed(grown):
    """The blocks that are not as they were, and the new branch, if there is one."""
    kind, where = grown.event.get('kind'), grown.event.get('where')
    if kind == chain.DEPTH:
        return [where], (where, 0)
    pairs = zip(grown.before.spec.blocks, grown.after.spec.blocks, strict=False)
    changed = [i for i, (before, after) in enumerate(pairs) if before != after]
    branches = [(i, len(grown.before.spec.blocks[i].branches)) for i in changed]
    return changed, branches[0] if kind == chain.BRANCH and branches else None


def alarms(record: Record) -> list[str]:
    """What the run has warned of, each once, with the evaluations."""
    found: dict[str, list[int]] = {}
    for i, line in enumerate(record.lines):
        told = line.get('alarms')
        for alarm in told if isinstance(told, list) else ():
            found.setdefault(str(alarm), []).append(i + 1)
    count = len(record.lines)
    made = [f'{alarm} ({formatting.spans(at)} of {count})' for alarm, at in found.items()]
    halted = record.summary.get('halted')
    if isinstance(halted, dict):
        made.append(
            f'search ended after epoch {halted.get("epoch")}, as its curvature in α had risen; α '
            f'is that of epoch {halted.get("alpha_of_epoch")} again'
        )
    return made


def guards(record: Record) -> dict[str, Any]:
    """What the guards have caught, in all and evaluation by evaluation."""
    keys = {'guard/grad': 'steps skipped', 'guard/arch': 'rows of α replaced'}
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
    """What every phase took; a finished run's summary knows it best."""
    told = record.summary.get('phases')
    told = [row for row in told if isinstance(row, dict)] if isinstance(told, list) else []
    made, valid = [], record.series('valid/accuracy')
    for i, stretch in enumerate(record.stretches):
        span = slice(stretch.first, stretch.last + 1)
        last = {**record.lines[stretch.last], **(told[i] if i < len(told) else {})}
        known = [v for v in valid[span] if v is not None]
        planned = record.config.get(f'{stretch.name}.epochs', NOTHING)
        made.append(
            {
                'name': stretch.name,
                'epochs': f'{stretch.last - stretch.first + 1} of {planned}',
                'seconds': number(last.get('seconds')),
                'compile_seconds': number(last.get('compile_seconds')),
                'rate': plain(number(record.lines[stretch.last].get('images_per_second'))),
                'first': percent(known[0] if known else None),
                'last': percent(known[-1] if known else None),
            }
        )
    longest = max((row['seconds'] or 0 for row in made), default=0) or 1
    for row in made:
        row['share'] = round(100 * (row['seconds'] or 0) / longest, 1)
        row['durations'] = seconds(row['seconds']), seconds(row['compile_seconds'])
    return made


def setup(record: Record) -> dict[str, Any]:
    """Config, data, versions, devices and command."""
    groups: dict[str, list[tuple[str, str]]] = {'': []}
    for key, value in record.config.items():
        group, _, field = key.rpartition('.')
        groups.setdefault(group, []).append((field, formatting.shown(value)))
    known = {**record.summary, **record.run}
    classes = known.get('classes')
    classes = [str(name) for name in classes] if isinstance(classes, list) else []
    more = f' and {len(classes) - 30} more' if len(classes) > 30 else ''
    images = known.get('images') if isinstance(known.get('images'), dict) else {}
    versions = known.get('versions') if isinstance(known.get('versions'), dict) else {}
    return {
        'groups': groups,
        'images': [(name, plain(number(count))) for name, count in images.items()],
        'classes': ', '.join(classes[:30]) + more,
        'versions': [(str(name), str(version)) for name, version in versions.items()],
        'devices': formatting.shown(known.get('devices')),
        'command': str(known.get('command', '')),
    }
