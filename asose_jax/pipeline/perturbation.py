"""Keeps the operations whose absence costs the supernet most accuracy (DARTS-PT).

Alpha need not say how much an operation matters to the supernet (Wang et al. 2021,
arXiv:2108.04392). Here the accuracy of the supernet is measured with one candidate left out at a
time, whatever alpha says.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NONE, Genotype, NetSpec
from asose_jax.pipeline import evaluation, run_context
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces.supernet import with_softmax_mixture
from asose_jax.train import pmap
from asose_jax.train.phases import Phase

logger = logging.getLogger('asose_jax')

Rows = list[np.ndarray]


def select(
    spec: NetSpec, rows: Rows, accuracy: Callable[[Rows], float], key: jax.Array
) -> Genotype:
    """Selects a genotype by perturbation (arXiv:2108.04392, algorithm 1), without fine-tuning.

    It decides on one row after another, in random order. The candidate without which accuracy is
    lowest is kept, and is alone in its row from then on. Among equals, the more likely one is kept.

    Where the space keeps only some edges of each node, no row keeps `none`. Instead, one node after
    another, in random order, keeps the edges without which accuracy is lowest.

    Rows are probabilities `[K]`; to `accuracy`, only the ratios within a row matter.
    """
    rows = list(rows)
    row_key, node_key = jax.random.split(key)
    for number in _shuffled(range(len(rows)), row_key):
        rows[number] = _keep_operation(spec, rows, number, accuracy)
    if spec.EDGES_KEPT is not None:
        for group in _shuffled(range(len(spec.groups())), node_key):
            rows = _keep_edges(spec, rows, group, spec.EDGES_KEPT, accuracy)
    return genotype.genotype_from_indices(spec, [int(row.argmax()) for row in rows])


def _keep_operation(
    spec: NetSpec, rows: Rows, number: int, accuracy: Callable[[Rows], float]
) -> np.ndarray:
    """Returns row `number` with one candidate left, a one-hot `[K]`."""
    group, member, names = spec.rows()[number]
    eligible = [k for k in range(len(names)) if spec.EDGES_KEPT is None or names[k] != NONE]
    if len(eligible) == 1:
        return _one_hot(eligible[0], names)
    row = rows[number]
    accuracy_without = {
        k: accuracy(_with_row(rows, number, row * (1 - _one_hot(k, names)))) for k in eligible
    }
    best, second, *_ = sorted(eligible, key=lambda k: (accuracy_without[k], -row[k]))
    logger.info(
        'selection: choice %d_%d keeps %s: accuracy is %.1f %% without it (%.1f %% without %s)',
        group,
        member,
        names[best],
        100 * accuracy_without[best],
        100 * accuracy_without[second],
        names[second],
    )
    return _one_hot(best, names)


def _keep_edges(
    spec: NetSpec, rows: Rows, group: int, count: int, accuracy: Callable[[Rows], float]
) -> Rows:
    """Returns all rows, with `none` chosen for all but `count` edges of the node `group`."""
    absent = {
        number: _one_hot(row.candidates.index(NONE), row.candidates)
        for number, row in enumerate(spec.rows())
        if row.group == group
    }
    if len(absent) <= count:
        return rows
    accuracy_without = {
        number: accuracy(_with_row(rows, number, row)) for number, row in absent.items()
    }
    ranked = sorted(accuracy_without, key=accuracy_without.__getitem__)
    for number in ranked[count:]:
        rows = _with_row(rows, number, absent[number])
    edges = [
        f'{spec.rows()[number].member} ({100 * accuracy_without[number]:.1f} % without it)'
        for number in ranked[:count]
    ]
    logger.info('selection: node %d keeps edges %s', group, ', '.join(edges))
    return rows


def _with_row(rows: Rows, number: int, row: np.ndarray) -> Rows:
    return [*rows[:number], row, *rows[number + 1 :]]


def _one_hot(k: int, names: Sequence[str]) -> np.ndarray:
    return np.eye(len(names), dtype=np.float32)[k]


def _shuffled(numbers: Sequence[int], key: jax.Array) -> list[int]:
    return [numbers[i] for i in jax.random.permutation(key, len(numbers)).tolist()]


def select_by_perturbation(context: RunContext, current: RunState) -> Genotype:
    """Selects a genotype of the current supernet by its accuracy on all validation images.

    Candidates are mixed by softmax(alpha), and BatchNorm uses the statistics of each batch, as in
    the authors' program: running statistics are of networks in which nothing is missing. Unlike
    there, the weights of the candidates that are left in a row sum to 1 again. All evaluations are
    calls of one program. A run that is killed during the selection repeats all of it, with the same
    result.
    """
    spec = current.spec
    step_config = dataclasses.replace(
        context.step_config(spec),
        model=with_softmax_mixture(context.model(spec)),
        eval_mixture=True,
    )
    example = next(evaluation.eval_chunks(context, context.data.valid))
    program = pmap.compile_eval(step_config, Phase.SEARCH, current.packed, example, context.shared)
    logger.info(
        'selection by perturbation: %d choices, compiled in %.1f s',
        len(spec.rows()),
        program.compile_seconds,
    )
    arch = current.state.arch

    def accuracy(rows: Rows) -> float:
        packed = pmap.replicated(
            current.packed.put(arch=genotype.with_row_weights(spec, rows, arch))
        )
        chunks = evaluation.eval_chunks(context, context.data.valid)
        return evaluation.mean_loss_and_accuracy(
            [program.call(packed, chunk, context.shared) for chunk in chunks]
        )[1]

    rows = genotype.probabilities(spec, arch)
    return select(spec, rows, accuracy, context.key(run_context.SELECTION))
