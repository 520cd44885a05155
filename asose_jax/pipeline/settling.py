"""Ends the search once its choices have settled, and leaves the rest of its epochs to optimize.

A search often finds its network long before its last epoch; what it trains from then on is a
supernet of which one network is kept. An epoch of optimize costs less and trains that network. The
decision depends on steps and alpha only, so that a run that was stopped and resumed decides alike.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import Genotype, NetSpec
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.train.phases import Phase, Span

logger = logging.getLogger('asose_jax')

# By how much the largest alpha of a row must be ahead of the next one (docs/methods.md).
MARGIN = 0.1


def may_stop(context: RunContext, span: Span) -> bool:
    """Returns whether evaluations of this phase may end it.

    If so, the next step must wait for each evaluation.
    """
    return span.phase is Phase.SEARCH and context.config.search.settle_epochs is not None


def smallest_margin(spec: NetSpec, arch: Mapping[str, Any], chosen: Genotype) -> float:
    """Returns by how much the least certain choice is ahead of the next one.

    Rows whose choice is not their largest alpha do not count: there, the rule by which edges are
    kept decides, or a limit of the cost.

    Args:
      spec: description of the supernet.
      arch: tree of alpha.
      chosen: the genotype that would be derived.

    Returns:
      The smallest difference of the two largest alphas of a row; infinite if no row counts.
    """
    margins = [np.inf]
    rows = zip(spec.rows(), genotype.probabilities(spec, arch), strict=True)
    for (group, member, candidates), shares in rows:
        order = np.argsort(shares)
        if candidates[order[-1]] == chosen.operations[group][member]:
            margins.append(float(np.log(shares[order[-1]]) - np.log(shares[order[-2]])))
    return min(margins)


def update(context: RunContext, current: RunState, span: Span, record: dict[str, Any]) -> bool:
    """Ends the search if its choices have settled; called after every evaluation.

    They have, once `search.settle_epochs` evaluations in a row give the same genotype, in which
    every choice is ahead by `MARGIN`. Evaluations before alpha's first step do not count.

    Args:
      context: of the run.
      current: its state; the history changes.
      span: the phase.
      record: metrics of the evaluation.

    Returns:
      Whether the search has ended.
    """
    step, history = record['step'], current.history
    if not may_stop(context, span) or not context.schedule.alpha_updates(step):
        return False
    wanted = context.config.search.settle_epochs
    chosen = Genotype(genotype.to_tuples(record['genotype']))
    is_sure = smallest_margin(current.spec, current.state.arch, chosen) >= MARGIN
    before = 0 if record['arch/changed'] else history.settled
    history.settled = before + 1 if is_sure else 0
    if history.settled < wanted or step == span.stop:
        return False
    epoch = span.epoch_at(step)
    history.halt(span, step, settled_for=history.settled)
    logger.info(
        'search ends after epoch %d of %d: the network has been the same for %d epochs, every '
        'choice ahead by %g in alpha; optimize, if there is any, gets the %d epochs that are left',
        epoch,
        span.epochs,
        history.settled,
        MARGIN,
        span.epochs - epoch,
    )
    return True
