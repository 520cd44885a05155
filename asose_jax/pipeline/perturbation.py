"""Which operations are kept: those that the supernet misses most, whatever alpha says (DARTS-PT).

Alpha need not say how much an operation matters to the supernet (Wang et al. 2021,
arXiv:2108.04392). Here the supernet is asked: what is its accuracy without one of the candidates?
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NONE, Genotype, NetSpec
from asose_jax.pipeline import evaluation, run_context
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces.supernet import mixture_of
from asose_jax.train import pmap
from asose_jax.train.phases import Phase

logger = logging.getLogger('asose_jax')

_NEVER = -1e9  # a logit that softmax makes exactly 0; the guards take infinity for a fault

Rows = list[np.ndarray]


def select(
    spec: NetSpec, rows: Rows, accuracy: Callable[[Rows], float], key: jax.Array
) -> Genotype:
    """The genotype by perturbation (arXiv:2108.04392, algorithm 1), without training in between.

    One row after another, in random order: the candidate without which accuracy is lowest is kept,
    and from then on it is alone in its row. Of equals, the more likely one is kept.

    Where the space keeps some edges of a node only, no row keeps `none`; then one node after
    another, in random order, keeps the edges without which accuracy is lowest.

    Args:
      spec: of the supernet.
      rows: how much there is of each candidate, `[K]` for each of `spec.rows()`: probabilities.
      accuracy: of the supernet with such rows; what matters of a row are its ratios.
      key: of the orders.

    Returns:
      The choice of every row.
    """
    rows = list(rows)
    row_key, node_key = jax.random.split(key)
    for number in _shuffled(range(len(rows)), row_key):
        rows[number] = _keep_operation(spec, rows, number, accuracy)
    if spec.EDGES_KEPT is not None:
        for group in _shuffled(range(len(spec.groups())), node_key):
            rows = _keep_edges(spec, rows, group, accuracy)
    return genotype.of_rows(spec, [int(row.argmax()) for row in rows])


def _keep_operation(spec, rows, number, accuracy):
    """The row `number`, with one candidate left."""
    group, member, names = spec.rows()[number]
    asked = [k for k in range(len(names)) if spec.EDGES_KEPT is None or names[k] != NONE]
    if len(asked) == 1:
        return _only(asked[0], names)
    row = rows[number]
    found = {k: accuracy(_with(rows, number, row * (1 - _only(k, names)))) for k in asked}
    best, second, *_ = sorted(asked, key=lambda k: (found[k], -row[k]))
    logger.info(
        'selection: choice %d_%d keeps %s, %.1f %% without it (%.1f %% without %s)',
        group,
        member,
        names[best],
        100 * found[best],
        100 * found[second],
        names[second],
    )
    return _only(best, names)


def _keep_edges(spec, rows, group, accuracy):
    """All rows; those of edges of the node `group` that it does not keep choose `none`."""
    absent = {
        number: _only(row.candidates.index(NONE), row.candidates)
        for number, row in enumerate(spec.rows())
        if row.group == group
    }
    if len(absent) <= spec.EDGES_KEPT:
        return rows
    found = {number: accuracy(_with(rows, number, row)) for number, row in absent.items()}
    ranked = sorted(found, key=found.get)
    for number in ranked[spec.EDGES_KEPT :]:
        rows = _with(rows, number, absent[number])
    kept = [
        f'{spec.rows()[number].member} ({100 * found[number]:.1f} % without it)'
        for number in ranked[: spec.EDGES_KEPT]
    ]
    logger.info('selection: node %d keeps edges %s', group, ', '.join(kept))
    return rows


def _with(rows, number, row):
    return [*rows[:number], row, *rows[number + 1 :]]


def _only(k: int, names: Sequence[str]) -> np.ndarray:
    return np.eye(len(names), dtype=np.float32)[k]


def _shuffled(numbers: Sequence[int], key: jax.Array) -> list[int]:
    return [numbers[i] for i in jax.random.permutation(key, len(numbers)).tolist()]


def by_perturbation(context: RunContext, current: RunState) -> Genotype:
    """What `select` finds with the weights of the supernet, on all validation images.

    Candidates are mixed by softmax(alpha), and BatchNorm uses the statistics of each batch, as in
    the authors' program: running statistics are of networks in which nothing is missing. Unlike
    there, the weights of those that are left in a row sum to 1 again. All evaluations are calls of
    one program. A run that is killed in between does all of it again, and finds the same.
    """
    spec = current.spec
    step_config = dataclasses.replace(
        context.step_config(spec), model=mixture_of(context.model(spec)), eval_mixture=True
    )
    example = next(evaluation.eval_chunks(context, context.data.valid))
    program = pmap.compile_eval(step_config, Phase.SEARCH, current.packed, example, context.shared)
    logger.info(
        'selection by perturbation: %d choices, compiled in %.1f s',
        len(spec.rows()),
        program.compile_seconds,
    )

    def accuracy(rows):
        packed = pmap.replicated(current.packed.put(arch=logits_of(spec, rows, held)))
        chunks = evaluation.eval_chunks(context, context.data.valid)
        return evaluation.mean_loss_and_accuracy(
            [program.call(packed, chunk, context.shared) for chunk in chunks]
        )[1]

    held = current.state.arch
    rows = genotype.probabilities(spec, held)
    return select(spec, rows, accuracy, context.key(run_context.SELECTION))


def logits_of(spec: NetSpec, rows: Rows, arch: Mapping[str, Any]) -> dict[str, dict]:
    """`arch` with alphas whose softmax has these ratios, exactly 0 where a row has 0."""
    found = flax.traverse_util.flatten_dict(arch)
    for (group, member, names), row in zip(spec.rows(), rows, strict=True):
        if len(names) > 1:
            logits = np.where(row > 0, np.log(np.maximum(row, np.finfo(row.dtype).tiny)), _NEVER)
            found[*spec.alpha_path(group, member), 'alpha'] = logits.astype(np.float32)
    return flax.traverse_util.unflatten_dict(found)
