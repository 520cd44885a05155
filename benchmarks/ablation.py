"""What makes accuracy fall when the search begins, and which of the choices matter.

    python -m benchmarks.ablation --workdir=DIR [--data-dir=TFDS] [--rows ...] [--seeds 0 1 2]
        [--from-scratch]

Each row is a config that the program itself runs, `--config=...` with a few fields; every seed of
it is a run with a core, or a device, of its own. Finished runs are not repeated. Writes the table
(ablation.md), the numbers of every run (ablation.json), and the picture of the fall (fall.png): of
all that are in --workdir, and of those with the same config that ablation.json told already. With
--from-scratch, what each run has found is trained from scratch too, all alike.
"""

import argparse
import copy
import itertools
import json
import logging
import pathlib
import re
import statistics
import tempfile
from collections.abc import Iterable
from typing import Any

import ml_collections

from asose_jax.config import retrain
from asose_jax.config.consistency import flatten
from asose_jax.config.schema import FIELDS
from asose_jax.metrics import run_record
from asose_jax.runtime import process
from asose_jax.sweep import placement, runner
from benchmarks import measure
from configs import crisis, search

# Sizes of a run that takes a minute or two on one core.
SIZE = {
    'data.train_split': 'train[:12800]',
    'data.image_size': 16,
    'data.crop_padding': 2,
    'batch_size': 64,
    'model.channels': 16,
    'warmup.epochs': 4,
    'search.epochs': 10,
    'growth.epochs': 0,
    'optimize.epochs': 4,
    'checkpoint.every_seconds': 600,
}
# How what was found is trained from scratch.
RECIPE = {
    'retrain.epochs': 12,
    'retrain.batch_size': 64,
    'retrain.cutout': 0,
    'retrain.drop_path': 0.0,
    'retrain.second_head': 0.0,
}
QUICK = {
    'data.name': 'digits',
    'data.train_split': 'train',
    'data.image_size': None,
    'data.flip': False,
    'model.channels': 4,
    'model.depth': 2,
    'model.reductions': (1,),
    'model.primitives': ('none', 'skip_connect', 'max_pool_3x3'),
    'warmup.epochs': 1,
    'search.epochs': 2,
    'optimize.epochs': 1,
}
_RUNS = pathlib.Path(tempfile.gettempdir()) / 'ablation'
_DEFAULT, _SEED = 'configs/search.py:cifar10', 'configs/search.py:seed'
_CRISIS = 'configs/crisis.py'
_GROWS = {'search.epochs': 6, 'growth.epochs': 4, 'growth.threshold': 1.0, 'growth.patience': 1}
_GROWS |= {'growth.last_epochs': 2, 'growth.lead_epochs': 0}
_CUT = {'model.residual': False}
_CURED = [f'{how}_{cure}' for how in ('only', 'without') for cure in crisis.CURES]
_MIXED = {'search.estimator': 'gumbel'}
_FEWER_ALPHA = {'search.turn_period': 5, 'search.epochs': 8, 'optimize.epochs': 8}
_BIASED = {'arch.none_bias': -2.0, 'arch.skip_bias': 1.0}

# Config, and what is changed in it.
_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    'broken': (_CRISIS, {}),
    'seed': (_SEED, {}),
    'defaults': (_DEFAULT, {}),
    **{name: (f'{_CRISIS}:{name}', {}) for name in ('ancestor', 'cured_ancestor')},
    'broken_at_rest': (_CRISIS, crisis.AT_REST),
    'seed_at_rest': (_SEED, crisis.AT_REST),
    'broken_no_residual': (_CRISIS, _CUT),
    'seed_no_residual': (_SEED, _CUT),
    'seed_no_residual_no_none': (
        _SEED,
        {**_CUT, 'model.primitives': FIELDS['model.primitives'].default[1:]},
    ),
    'seed_no_residual_warmup_uniform': (_SEED, {**_CUT, 'warmup.operations': 'uniform'}),
    'defaults_no_residual': (_DEFAULT, _CUT),
    **{name: (f'{_CRISIS}:{name}', {}) for name in _CURED},
    'gates_at_one': (_DEFAULT, {'search.exact_start': False, 'search.statistics_batches': 0}),
    'never_frozen': (_DEFAULT, {'search.freeze_epochs': 0}),
    'no_clip': (_DEFAULT, {'weights.clip': 0.0}),
    'biased': (_DEFAULT, _BIASED),
    'noisy_biased': (_DEFAULT, {**_BIASED, 'arch.init_std': 0.5}),
    'unit': (_DEFAULT, {'search.noise': 'unit'}),
    'anneal_every_1': (_DEFAULT, {'search.anneal_every': 1}),
    'alpha_on_train': (_DEFAULT, {'search.arch_data': 'train'}),
    'warmup_uniform': (_DEFAULT, {'warmup.operations': 'uniform'}),
    'draws_4': (_DEFAULT, {'arch.samples': 4}),
    'mixture': (_DEFAULT, _MIXED),
    'mixture_whole': (_DEFAULT, {**_MIXED, 'search.thresholds': (1.0, 1.0, 0.0, 0.0, 0.0)}),
    'longer': (_DEFAULT, {'search.epochs': 30}),
    'fewer_alpha': (_DEFAULT, _FEWER_ALPHA),
    'fewer_alpha_short': (_DEFAULT, {**_FEWER_ALPHA, 'search.epochs': 6}),
    'growth': (_DEFAULT, _GROWS),
    'growth_last': (_DEFAULT, {**_GROWS, 'growth.where': 'last'}),
}
# The rows were measured when every third step moved alpha; `fewer_alpha` has the default of today.
ROWS = {
    row: (source, {'search.turn_period': 3, **changes} if source == _DEFAULT else changes)
    for row, (source, changes) in _ROWS.items()
}

# The rows in the picture: without residuals and with; alpha at rest in the first two columns.
FALL = (
    (
        'ancestor',
        'cured_ancestor',
        'broken_no_residual',
        'seed_no_residual',
        'defaults_no_residual',
    ),
    ('broken_at_rest', 'seed_at_rest', 'broken', 'seed', 'defaults'),
)
_GAINS = {'gain': 'test', 'scratch_gain': 'scratch'}
COLUMNS = {
    'warmup': 'end of warmup',
    'drawn': 'first epoch of search, as drawn',
    'argmax': 'after it, argmax',
    'lowest': 'lowest of search',
    'ratio': 'lowest / warmup',
    'search': 'end of search',
    'test': 'test, at the end',
    'gain': 'test, against defaults',
    'scratch': 'test, from scratch',
    'scratch_gain': 'from scratch, against defaults',
    'params': 'thousand parameters',
    'entropy': 'entropy',
    'explored': 'genotypes',
    'settled': 'settled for',
}


def config_of(
    row: str, size: dict[str, Any], data_dir: str | None = None
) -> ml_collections.ConfigDict:
    """The config of one row, at this size."""
    source, changes = ROWS[row]
    file, _, preset = source.partition(':')
    config = (crisis if file == _CRISIS else search).get_config(*filter(None, [preset]))
    config.update_from_flattened_dict({**size, **changes})
    config.data.dir = data_dir
    return config


def command_of(row: str, size: dict[str, Any], seeds: Iterable[str]) -> str:
    """One command that runs this row."""
    source, changes = ROWS[row]
    fields = ' '.join(f'--config.{k}={_quoted(v)}' for k, v in {**size, **changes}.items())
    several = f'--config.seeds="({", ".join(seeds)},)"'
    return f'python main.py --config={source} {fields} {several} --workdir=DIR'


def _quoted(value):
    text = str(value)
    return text if re.fullmatch(r'[\w.\-]+', text) else f'"{text}"'


def figures(directory: pathlib.Path) -> dict[str, Any]:
    """What one finished run came to: accuracies in shares, entropy in nats."""
    run = run_record.read(directory)
    told = run.lines
    warmup = [line for line in told if line['phase'] == 'warmup']
    searched = [line for line in told if line['phase'] in ('search', 'growth')]
    valid = [line['valid/accuracy'] for line in searched]
    genotypes = [json.dumps(line['genotype']) for line in searched]
    last = genotypes[::-1]
    return {
        'warmup': warmup[-1]['valid/accuracy'],
        'drawn': searched[0]['train/accuracy'],
        'argmax': valid[0],
        'lowest': min(valid),
        'ratio': min(valid) / warmup[-1]['valid/accuracy'],
        'search': valid[-1],
        'test': run.summary['test_accuracy'],
        'params': run.summary['params'],
        'entropy': searched[-1]['arch/entropy'],
        'explored': len(set(genotypes)),
        'settled': next((i for i, text in enumerate(last) if text != last[0]), len(last)),
        'skips': searched[-1]['arch/skip_fraction'],
        'guarded': sum(line['guard/arch'] + line['guard/grad'] for line in told),
        'genotype': run.summary['genotype'],
        'curves': {
            key: [line[key] for line in told]
            for key in ('phase', 'valid/accuracy', 'train/accuracy')
        },
    }


def finished(
    directory: pathlib.Path, told: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The figures of every run that has ended, by row and seed: no choice.

    Args:
      directory: the runs are below it.
      told: figures of runs that are not there any more; those that are there come first.
    """
    cpu, found = measure.machine()['cpu'], {}
    for row in ROWS:
        runs = dict(told.get(row, {}))
        for file in (directory / row).glob('seed_*/summary.json'):
            seed = file.parent.name.removeprefix('seed_')
            runs[seed] = {**figures(file.parent), 'cpu': cpu}
            if again := run_record.read(directory / row / f'scratch_{seed}').summary:
                runs[seed]['scratch'] = again['test_accuracy']
        if runs:
            found[row] = {seed: runs[seed] for seed in sorted(runs, key=int)}
    return found


def fields_of(row: str, size: dict[str, Any]) -> dict[str, Any]:
    """Every field of the row's config, as JSON has it, but for the place of the data."""
    fields = flatten(config_of(row, size))
    return json.loads(json.dumps({name: v for name, v in fields.items() if name != 'data.dir'}))


def differing(size: dict[str, Any]) -> dict[str, Any]:
    """The fields of the row `defaults`, and by row those in which others differ from it."""
    defaults = fields_of('defaults', size)
    others = {
        row: {name: v for name, v in fields_of(row, size).items() if v != defaults[name]}
        for row in ROWS
    }
    return {'defaults': defaults, 'fields': others}


def earlier(path: pathlib.Path, size: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """What an ablation.json tells of runs whose configs are those of today.

    A row counts if all fields that were known then, and are still known, are what they were.
    """
    if not path.exists():
        return {}
    told, found = json.loads(path.read_text(encoding='utf-8')), {}
    for row in told['rows'].keys() & ROWS.keys():
        then, now = told['defaults'] | told['fields'][row], fields_of(row, size)
        if all(then[name] == now[name] for name in then.keys() & now.keys()):
            found[row] = told['rows'][row]
    return found


def table(found: dict[str, dict[str, dict[str, Any]]], size: dict[str, Any]) -> str:
    """All rows as Markdown: mean ± standard deviation over seeds; and the command of each."""
    lines = [
        'Written by `python -m benchmarks.ablation`. Accuracies in %, of the validation part',
        'unless it says test or drawn; mean ± standard deviation over seeds; against defaults: in',
        'points, of the same seed; entropy in nats; how many genotypes the evaluations of search',
        'saw, and how many of them, at the end, the last.',
        '',
        '| row | seeds | ' + ' | '.join(COLUMNS.values()) + ' |',
        '|---' * (len(COLUMNS) + 2) + '|',
    ]
    for row, runs in found.items():
        cells = [_cell(key, runs, found.get('defaults', {})) for key in COLUMNS]
        lines.append(f'| {row} | {len(runs)} | ' + ' | '.join(cells) + ' |')
    lines += ['', 'Guards that tripped, over all runs: ' + str(_guarded(found)) + '.', '']
    lines += ['Commands, with `--config.data.dir` where the data is elsewhere:', '', '```bash']
    lines += [f'{command_of(row, size, runs)}   # {row}' for row, runs in found.items()]
    return '\n'.join([*lines, '```', ''])


def _cell(key, runs, defaults):
    if key in _GAINS:
        of = _GAINS[key]
        shared = [seed for seed in runs if of in runs[seed] and of in defaults.get(seed, {})]
        gains = [100 * (runs[seed][of] - defaults[seed][of]) for seed in shared]
        return _spread(gains, '+.1f') if gains and runs is not defaults else '–'
    factor = {'entropy': 1, 'ratio': 1, 'explored': 1, 'settled': 1, 'params': 1e-3}.get(key, 100)
    values = [factor * run[key] for run in runs.values() if key in run]
    return _spread(values, '.2f' if key in ('entropy', 'ratio') else '.1f') if values else '–'


def _guarded(found):
    return sum(run['guarded'] for runs in found.values() for run in runs.values())


def _spread(values, form):
    text = format(statistics.mean(values), form)
    return f'{text} ± {statistics.stdev(values):{form[-3:]}}' if len(values) > 1 else text


def draw(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Accuracy over the epochs, of each seed, as drawn and as the most likely network."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    lines = [line for line in ([row for row in told if row in found] for told in FALL) if line]
    lines = lines or [list(found)]
    columns = max(map(len, lines))
    figure, panels = plt.subplots(
        len(lines),
        columns,
        figsize=(2.6 * columns, 2.9 * len(lines)),
        sharex=True,
        sharey=True,
        layout='constrained',
        squeeze=False,
    )
    styles = {
        'valid/accuracy': ('-', 'C0', 'argmax, validation'),
        'train/accuracy': ('--', 'C1', 'as drawn, training'),
    }
    for line, places in zip(lines, panels, strict=True):
        for row, panel in itertools.zip_longest(line, places):
            if row is None:
                panel.set_axis_off()
                continue
            _course(panel, found[row].values(), styles)
            panel.set_title(row.replace('_', ' '))
        places[0].set_ylabel('accuracy, %')
    for panel in panels[-1]:
        panel.set_xlabel('epoch')
    panels[0][0].legend(fontsize='small')
    measure.save(options, 'fall', figure)


def _course(panel, runs, styles):
    for number, run in enumerate(runs):
        phases = run['curves']['phase']
        epochs = range(1, len(phases) + 1)
        for key, (style, color, label) in styles.items():
            percent = [100 * share for share in run['curves'][key]]
            panel.plot(epochs, percent, style, color=color, label='' if number else label)
    for i in range(1, len(phases)):
        if phases[i] != phases[i - 1]:
            panel.axvline(i + 0.5, color='0.6', linewidth=0.8)
    panel.axhline(10, color='0.8', linewidth=0.8)


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--workdir', type=pathlib.Path, default=_RUNS, help='of all runs')
    parser.add_argument('--data-dir', help="of TFDS; default: TFDS's own")
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--from-scratch', action='store_true', help='train what was found, too')
    parser.set_defaults(out=measure.DOCS.parent / 'evidence')
    quick = {'rows': ['broken', 'defaults'], 'seeds': [0], 'workdir': _RUNS / 'quick'}
    options = measure.parse(parser, **quick)
    size = SIZE | (QUICK if options.quick else {})
    recipe = RECIPE | ({'retrain.epochs': 1} if options.quick else {})
    process.set_up(logging.StreamHandler())
    searches, trainings = [], []
    for seed in options.seeds:  # a first seed of every row, then a second
        for row in options.rows:
            config = config_of(row, size, options.data_dir)
            config.seed = seed
            searches.append(runner.Job(f'{row}/seed_{seed}', copy.deepcopy(config)))
            config.update_from_flattened_dict(recipe)
            config.genotype = str(options.workdir / row / f'seed_{seed}')
            trainings.append(runner.Job(f'{row}/scratch_{seed}', retrain.retrain_config(config)))
    for jobs in (searches, trainings) if options.from_scratch else (searches,):
        runner.run_jobs(jobs, placement.available_slots(), options.workdir)
    found = finished(options.workdir, earlier(options.out / 'ablation.json', size))
    measure.write(options, 'ablation', {**differing(size), 'rows': found})
    text = table(found, size)
    (options.out / 'ablation.md').write_text(text, encoding='utf-8')
    print(text)
    draw(options, found)


if __name__ == '__main__':
    main()
