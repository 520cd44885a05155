"""Summarizes a finished run, and writes the files with its genotype and its results."""

import importlib.metadata
import io
import json
import logging
import os
import platform
from collections.abc import Mapping
from typing import Any

import jax
import rich.box
import rich.console
import rich.progress
import rich.table

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.data import dataset
from asose_jax.pipeline import compilation, evaluation
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.report import page
from asose_jax.runtime import process, workdir
from asose_jax.spaces import registry
from asose_jax.train.phases import Phase

logger = logging.getLogger('asose_jax')


def environment(context: RunContext) -> dict[str, Any]:
    """Returns the data, package versions, devices and command of a run, as in run.json."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'images': dataset.split_sizes(context.data),
        **({} if context.data.identity is None else {'data': context.data.identity.record}),
        'image_shape': list(context.data.image_shape),  # height, width, channels
        'classes': list(context.data.class_names),  # in the order of the network's outputs
        'mean': context.data.mean.tolist(),  # of pixel values, by channel; normalizes the images
        'std': context.data.std.tolist(),
        'versions': {
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        'devices': [str(device) for device in jax.devices()],
        'command': process.command(),
    }


def write_environment(context: RunContext, origin_digest: int | None = None) -> None:
    """Writes run.json and, for a folder of pictures, data.json with the hash of each file."""
    identity = context.data.identity
    if identity is not None and identity.files is not None:
        files = json.dumps(identity.files, indent=0)
        workdir.write_atomically(context.workdir / dataset.FILES, files + '\n')
    # Relative paths of the config count from the directory.
    content = {**environment(context), 'directory': os.getcwd()}
    if origin_digest is not None:
        content['origin'] = origin_digest
    text = json.dumps(content, indent=2) + '\n'
    workdir.write_atomically(context.workdir / 'run.json', text)


def write_summary(context: RunContext, current: RunState) -> dict[str, Any]:
    """Evaluates the derived network, and writes the genotype and the summary.

    No part of a run uses the test split before.

    Returns:
      The summary, as in summary.json.
    """
    compilation.compile_programs(context, current, Phase.OPTIMIZE, batch=None)
    test_accuracies = evaluation.accuracies(context, current, context.data.test)
    valid = context.data.valid
    valid_accuracy = evaluation.accuracy(context, current, valid) if len(valid) else None
    chosen = genotype.most_likely(current.spec, {})
    summary = _summary(context, current, chosen, test_accuracies, valid_accuracy)
    files = {'genotype.json': chosen.dumps(current.spec)}
    text = registry.genotype_text(current.spec, chosen)
    if text is not None and context.table is not None:
        summary['benchmark'] = context.table.lookup(text)
        logger.info('benchmark: %s', summary['benchmark'] or f'the table has no entry for {text}')
    if text is not None:
        files['genotype.txt'] = text + '\n'
    # Written last: a workdir with a summary holds a finished run.
    files['summary.json'] = json.dumps(summary, indent=2) + '\n'
    for name, content in files.items():
        if context.is_primary_host:
            workdir.write_atomically(context.workdir / name, content)
    _log_summary(summary, chosen)
    logger.info('report: %s', context.workdir / page.NAME)
    return summary


def _summary(
    context: RunContext,
    current: RunState,
    chosen: genotype.Genotype,
    test_accuracies: tuple[float, float],
    valid_accuracy: float | None,
) -> dict[str, Any]:
    """Returns the content of summary.json, without the entry of a benchmark table."""
    summary = {
        'test_accuracy': test_accuracies[0],
        'test_balanced_accuracy': test_accuracies[1],
        'valid_accuracy': valid_accuracy,
        'params': evaluation.count_parameters(current),
        'flops_per_image': flops.forward_flops(current.spec),
        'multiply_adds': flops.multiply_adds(current.spec),
        'train_flops': current.history.train_flops,
        'genotype': chosen.to_json(),
        'seed': context.config.seed,
        **environment(context),
        'phases': current.history.phases,
        'growth': current.history.growth,
        'halted': current.history.halted,
        'selection': current.history.selection,
    }
    if context.budget is not None:
        summary['cost'] = context.budget.summary(current.spec)
    if context.limit is not None:
        summary['cost_limit'] = context.limit.summary(current.spec)
    context.save_latencies()
    return summary


def _log_summary(summary: Mapping[str, Any], chosen: genotype.Genotype) -> None:
    logger.info('\n%s', final_table(summary))
    valid = summary['valid_accuracy']
    logger.info(
        'test accuracy %.2f %% (balanced %.2f %%), %s, %s parameters',
        100 * summary['test_accuracy'],
        100 * summary['test_balanced_accuracy'],
        'no validation' if valid is None else f'validation {100 * valid:.2f} %',
        f'{summary["params"]:,}',
    )
    for i, group in enumerate(chosen.operations):
        logger.info('genotype %d: %s', i, ', '.join(group))


def final_table(summary: Mapping[str, Any]) -> str:
    """Formats the phases of a run as a table of at most 80 characters a line."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_footer=True)
    seconds = sum(row['seconds'] for row in summary['phases'])
    compiled = sum(row['compile_seconds'] for row in summary['phases'])
    table.add_column('phase', 'test')
    table.add_column('epochs', '', justify='right')
    table.add_column('first valid', '', justify='right')
    table.add_column('last valid', f'{summary["test_accuracy"]:.2%}', justify='right')
    table.add_column('seconds', f'{seconds:.1f}', justify='right')
    table.add_column('compiling', f'{compiled:.1f}', justify='right')
    for row in summary['phases']:
        accuracies = (row['valid_accuracy_first'], row['valid_accuracy_last'])
        cells = ['' if accuracy is None else f'{accuracy:.2%}' for accuracy in accuracies]
        times = (f'{row["seconds"]:.1f}', f'{row["compile_seconds"]:.1f}')
        table.add_row(row['name'], str(row['epochs']), *cells, *times)
    page = io.StringIO()
    console = rich.console.Console(file=page, width=80, force_terminal=False, force_jupyter=False)
    console.print(table)
    return '\n'.join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())
