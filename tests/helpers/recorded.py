"""Workdirs as runs leave them, made by hand: the metrics of networks whose alpha is drawn."""

import json
import math
import pathlib
from typing import Any

import numpy as np

from asose_jax.arch import genotype
from asose_jax.config.consistency import flatten
from asose_jax.metrics import arch_analysis
from asose_jax.pipeline.growth import transforms
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.spaces import chain, registry
from configs.search import get_config

CHAIN = {
    'model.channels': 16,
    'model.depth': 3,
    'model.reductions': (1, 2),
    'warmup.epochs': 5,
    'search.epochs': 16,
    'growth.epochs': 8,
    'optimize.epochs': 8,
}


def write(
    workdir: pathlib.Path, preset: str = 'digits', finished: bool = True, **changes: Any
) -> pathlib.Path:
    """A run of a preset with these fields; unless `finished`, cut off in the middle of its search.

    The `chain` space grows in depth, in width and by a branch.
    """
    config = get_config(preset)
    config.update_from_flattened_dict({**(CHAIN if preset == 'digits' else {}), **changes})
    m = config.model
    spec = registry.SPACES[m.space].build(
        (8, 8, 1) if preset == 'digits' else (32, 32, 3),
        10,
        channels=m.channels,
        depth=m.depth,
        reductions=tuple(m.reductions),
        max_channels=m.max_channels,
        primitives=tuple(m.primitives),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    _dump(workdir / 'config.json', flatten(config))
    around = {
        'images': {'train': 1149, 'valid': 288, 'test': 360},
        'classes': [str(i) for i in range(10)],
        'versions': {'python': '3.11.9', 'jax': '0.10.2'},
        'devices': ['TFRT_CPU_0'],
        'command': f'python main.py --config=configs/search.py:{preset} --workdir={workdir.name}',
    }
    _dump(workdir / 'run.json', around)
    lines = list(_lines(config, spec))
    if not finished:
        lines = lines[: len(lines) // 2]
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    if finished:
        _finish(workdir, lines, around)
    return workdir


def _finish(workdir, lines, around):
    last = lines[-1]
    network = next(line['network'] for line in reversed(lines) if 'network' in line)
    content = {'schema': genotype.SCHEMA, 'genotype': last['genotype'], 'network': network}
    _dump(workdir / 'genotype.json', content)
    ends = {line['phase']: line for line in lines}
    summary = {
        'test_accuracy': last['valid/accuracy'] - 0.004,
        'valid_accuracy': last['valid/accuracy'],
        'params': last['params'],
        'multiply_adds': 1234567,
        'genotype': last['genotype'],
        **around,
        'phases': [
            {'name': name, 'seconds': line['seconds'], 'compile_seconds': 4.5}
            for name, line in ends.items()
        ],
        'growth': [event for line in lines for event in line['growth']],
    }
    _dump(workdir / 'summary.json', summary)


def _lines(config, spec):
    random = np.random.default_rng(0)
    goals = {row[:2]: random.normal(0, 4, len(row.candidates)) for row in spec.rows()}
    done, number, before = 0, 0, None
    names = ('warmup', 'search', 'growth', 'optimize')
    total = sum(config[name].epochs for name in names)
    for phase in names:
        if phase == 'optimize' and not spec.is_derived():
            chosen = genotype.most_likely(spec, _arch(spec, goals, 1.0))
            spec, before = genotype.derive(spec, chosen), None
        for epoch in range(config[phase].epochs):
            done += 1
            share = done / total
            known = {} if phase == 'warmup' else goals
            tau = max(0.1, 0.8 * 0.9**done)
            sampling_temperature = tau if phase in ('search', 'growth') else None
            analysis = arch_analysis.analyze_architecture(
                _arch(spec, known, share), spec, before, sampling_temperature
            )
            before = analysis['genotype']
            accuracy = 0.97 - 0.8 * math.exp(-5 * share) + 0.01 * float(random.normal())
            line = {
                'step': 20 * done,
                'train/loss': 2.3 * math.exp(-3 * share),
                'train/accuracy': accuracy + 0.01,
                'arch/loss': 2 * math.exp(-2 * share) if phase == 'search' else None,
                'tau': tau,
                'guard/arch': 0,
                'guard/grad': 2 if done == 7 else 0,
                'epoch': epoch + 1,
                'phase': phase,
                'valid/loss': 2.3 * math.exp(-2.8 * share) + 0.05,
                'valid/accuracy': accuracy,
                **analysis,
                'params': 10_000 + 500 * number,
                'train_flops': 1e9 * done,
                'alarms': ['collapse: 83 % of the genotype is skip_connect'] * (done in (8, 9, 12)),
                'factors': _factors(spec),
                'images_per_second': 900 + 40 * float(random.normal()),
                'seconds': 1.7 * (epoch + 1),
                'compile_seconds': 4.5,
                'growth': [],
            }
            if epoch == 0:
                line['network'] = spec.to_json()
            kind = {1: 'depth', 2: 'width', 4: 'branch'}.get(epoch)
            if phase == 'growth' and kind and isinstance(spec, chain.ChainSpec):
                spec, event = _grow(spec, kind, goals, random)
                line['growth'], number = [event], number + 1
                grown = arch_analysis.analyze_architecture(_arch(spec, goals, share), spec)
                kept = {key: grown[key] for key in ('genotype', 'arch/probabilities')}
                line['grown'] = {'network': spec.to_json(), 'factors': _factors(spec), **kept}
                before = grown['genotype']
            yield line


def _grow(spec, kind, goals, random):
    what = {
        'depth': Growth('depth', 2, 0, spec.blocks[0].branches[0]),
        'width': Growth('width', 1, 48),
        'branch': Growth('branch', 1, 0, spec.blocks[0].branches[0]),
    }[kind]
    if kind == 'depth':
        for key in sorted(goals, reverse=True):
            if key[0] >= what.where:
                goals[key[0] + 1, key[1]] = goals.pop(key)
    grown = transforms.grown_spec(spec, what)
    for row in grown.rows():
        goals.setdefault(row[:2], random.normal(0, 4, len(row.candidates)))
    event = {
        'step': 1,
        'kind': kind,
        'where': what.where,
        'params_before': 10_000,
        'params_after': 12_345,
        'valid_accuracy_before': 0.91,
        'valid_accuracy_after': 0.91,
        'max_abs_logit_change': 3e-7,
        'stall_seconds': 0.4,
    }
    return grown, event


def _arch(spec, goals, share):
    arch = {}
    for row in spec.rows():
        if len(row.candidates) == 1:
            continue
        node = arch
        for name in spec.alpha_path(row.group, row.member):
            node = node.setdefault(name, {})
        goal = goals.get(row[:2], np.zeros(len(row.candidates)))
        node['alpha'] = np.float32(goal * share)
    return arch


def _factors(spec):
    if not isinstance(spec, chain.ChainSpec):
        return []
    return [
        [[1.0 - 0.25 * m] * len(names) for m, names in enumerate(block.branches)]
        for block in spec.blocks
    ]


def _dump(path, content):
    path.write_text(json.dumps(content, indent=2))
