"""What a run came to: its summary, and the files with what it found."""

import importlib.metadata
import json
import logging
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import jax

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.data.dataset import Data
from asose_jax.metrics import arch_analysis
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError
from asose_jax.search import run_context
from asose_jax.search.run_context import Current, Setup
from asose_jax.spaces import registry
from asose_jax.train.phases import Phase

logger = logging.getLogger('asose_jax')

_NAMED = 5  # changes in a message


def surroundings(setup: Setup) -> dict[str, Any]:
    """What a run is made of and with, as in run.json."""
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
    return {
        'images': _counts(setup.data),
        'image_shape': list(setup.data.image_shape),  # height, width, channels
        'classes': list(setup.data.class_names),  # in the order of the network's outputs
        'mean': setup.data.mean.tolist(),  # of pixels, per channel: what images are normalised by
        'std': setup.data.std.tolist(),
        'versions': {
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        'devices': [str(device) for device in jax.devices()],
        'command': shlex.join(['python', *sys.argv]),
    }


def require_same_data(images: Data, known: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Refuses data that changed: split anew, what was learned from would come into the test.

    Args:
      images: as they are now.
      known: what was written of them, as in run.json; what is not there is not compared.
      directory: the workdir.

    Raises:
      UserError: other classes, another number of images, or images of another shape.
    """
    now, counts = list(images.class_names), _counts(images)
    then, counted = list(known.get('classes', now)), known.get('images', counts)
    changes = [
        *(f'the class {name!r} is new' for name in now if name not in then),
        *(f'the class {name!r} is gone' for name in then if name not in now),
    ]
    if now != then and not changes:
        changes.append('the classes are in another order')
    if counts != counted:
        changes.append(f'there were {_told(counted)} images, there are {_told(counts)}')
    shape, shaped = list(images.image_shape), known.get('image_shape')
    if shaped not in (None, shape):
        changes.append(f'images were {shaped} (height, width, channels), they are {shape}')
    if changes:
        more = [f'and {len(changes) - _NAMED} more'] if len(changes) > _NAMED else []
        raise UserError(
            f'the data are not those of the run in {directory}: '
            f'{"; ".join(changes[:_NAMED] + more)}. They are split anew when they change, and what '
            'was learned from may come into the test. Put them back as they were, or start a run '
            'in another --workdir.'
        )


def _counts(images):
    return {name: len(getattr(images, name)) for name in ('train', 'valid', 'test')}


def _told(counts):
    return ', '.join(f'{count} {name}' for name, count in counts.items())


def write(setup: Setup, current: Current) -> dict[str, Any]:
    """Evaluates the derived network, and writes genotype and summary.

    The test split is looked at here for the first time.

    Args:
      setup: of the run.
      current: at its end; the network is derived.

    Returns:
      The summary, as in summary.json.
    """
    run_context.compile_programs(setup, current, Phase.OPTIMIZE, batch=None)
    test_accuracy = run_context.accuracy(setup, current, setup.data.test)
    valid_accuracy = run_context.accuracy(setup, current, setup.data.valid)
    chosen = genotype.most_likely(current.spec, {})
    summary = {
        'test_accuracy': test_accuracy,
        'valid_accuracy': valid_accuracy,
        'params': run_context.count_parameters(current),
        'flops_per_image': flops.forward_flops(current.spec),
        'multiply_adds': flops.multiply_adds(current.spec),
        'train_flops': current.told.train_flops,
        'genotype': chosen.to_json(),
        'seed': setup.config.seed,
        **surroundings(setup),
        'phases': current.told.phases,
        'growth': current.told.growth,
        'halted': current.told.halted,
        'selection': current.told.selection,
    }
    if setup.budget is not None:
        summary['cost'] = setup.budget.summary(current.spec, setup.writes)
    files = {'genotype.json': chosen.dumps(current.spec)}
    text = registry.text_of(current.spec, chosen)
    if text is not None and setup.table is not None:
        summary['benchmark'] = setup.table.lookup(text)
        logger.info('benchmark: %s', summary['benchmark'] or f'does not know {text}')
    if text is not None:
        files['genotype.txt'] = text + '\n'
    files['summary.json'] = json.dumps(summary, indent=2) + '\n'  # the last: then all is done
    for name, content in files.items():
        if setup.writes:
            workdir.write_atomically(setup.workdir / name, content)
    logger.info('\n%s', arch_analysis.final_table(summary))
    logger.info(
        'test accuracy %.2f %%, validation %.2f %%, %d parameters',
        100 * test_accuracy,
        100 * valid_accuracy,
        summary['params'],
    )
    for i, group in enumerate(chosen.operations):
        logger.info('%d: %s', i, ', '.join(group))
    return summary
