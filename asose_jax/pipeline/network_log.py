"""Logs the size of a network, and writes the table of all its modules."""

import logging
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from asose_jax.arch.genotype import NetSpec
from asose_jax.nn.forward import Mode
from asose_jax.pipeline.run_context import INIT, RunContext
from asose_jax.runtime.workdir import write_atomically
from asose_jax.train import pmap, state

logger = logging.getLogger('asose_jax')

_MAX_MODULES = 10  # of a network that the log lists; network.txt has them all


def _module_order(module: str) -> tuple[int, int, str]:
    """Returns where a module of a network stands among the others, by its name."""
    number = module.rpartition('_')[2]
    if number.isdigit():
        return 1, int(number), module
    return 0 if module.startswith('stem') else 3 if module.endswith('head') else 2, 0, module


def log_network(context: RunContext, spec: NetSpec) -> None:
    """Logs the parameters of each module of a network; writes the table of all to network.txt."""
    image = jnp.zeros((1, *spec.image_shape), jnp.float32)
    keys: dict[str, jax.Array] = dict.fromkeys(('params', 'arch'), context.key(INIT))
    table = nn.summary.tabulate(
        context.model(spec),
        keys,
        depth=1,
        console_kwargs={'width': 90, 'force_terminal': False},
        column_kwargs={'justify': 'left'},
    )
    path = context.workdir / 'network.txt'
    if context.is_primary_host:
        write_atomically(path, table(image, mode=Mode.SKIP, train=False).strip('\n') + '\n')
    like = state.abstract_state(context.model(spec), context.tx, pmap.replicated_sharding())
    sizes = {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like.params[name]))
        for name in sorted(like.params, key=_module_order)
    }
    lines = [f'{name:12} {size:>12,}' for name, size in sizes.items()]
    if len(lines) > _MAX_MODULES:
        half = _MAX_MODULES // 2
        left = sum([*sizes.values()][half:-half])
        lines[half:-half] = [f'{f"{len(lines) - 2 * half} more":12} {left:>12,}']
    logger.info(
        'network of %s parameters (%s has all modules):\n  %s',
        *(f'{sum(sizes.values()):,}', path, '\n  '.join(lines)),
    )
