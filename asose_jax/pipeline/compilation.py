"""Compiles the programs of a phase, those of the next one in the background."""

import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import evaluation
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.train import pmap, state
from asose_jax.train.phases import Phase, Span
from asose_jax.train.pmap import Programs

logger = logging.getLogger('asose_jax')


def compile_programs(
    context: RunContext, current: RunState, phase: Phase, batch: dict[str, np.ndarray] | None
) -> None:
    """Makes `current.programs` those of (network, phase), unless they are. See `compiled`."""
    wanted, ready = (current.spec, _program_kind(phase)), current.programs
    if ready and (ready.spec, ready.kind) == wanted:
        return
    upcoming, current.upcoming = current.upcoming, None
    if upcoming is not None:
        if not upcoming.done():
            logger.info('%s: waiting for the compiler', phase)
        programs = upcoming.result()
        if (programs.spec, programs.kind) == wanted:
            current.use(programs)
            return
    logger.info('compiling %s%s', _program_kind(phase), _remaining_text(context, phase))
    current.use(compile_network(context, current.spec, phase, batch))


def _remaining_text(context, phase):
    """Names what a run has to compile after the programs of this phase."""
    phases = [span.phase for span in context.schedule.spans]
    order = list(Phase)
    names = [_program_kind(later) for later in order[order.index(phase) + 1 :] if later in phases]
    names = list(dict.fromkeys(name for name in names if name != _program_kind(phase)))
    if phase is not Phase.OPTIMIZE and Phase.GROWTH in phases and context.config.growth.kinds:
        names.insert('search' in names, 'every grown network')
    return f'; still to come: {", ".join(names)}' if names else ''


def compile_upcoming(
    context: RunContext, current: RunState, span: Span, batch: dict[str, np.ndarray]
) -> None:
    """Compiles the next phase's programs while `span` runs, where the network will be the same."""
    later = [other for other in context.schedule.spans if other.start >= span.stop]
    if not later or current.upcoming is not None:
        return
    phase, spec = later[0].phase, current.spec
    derives = phase is Phase.OPTIMIZE and not spec.is_derived()
    if not derives and _program_kind(phase) != _program_kind(span.phase):
        logger.info(
            'compiling %s meanwhile%s', _program_kind(phase), _remaining_text(context, phase)
        )
        current.upcoming = in_background(lambda: compile_network(context, spec, phase, batch))


def in_background(function: Callable[[], Any]) -> concurrent.futures.Future:
    """Unlike a pool's, this thread does not keep a stopped program waiting for the compiler."""
    future = concurrent.futures.Future()

    def work():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def compile_network(
    context: RunContext, spec: genotype.NetSpec, phase: Phase, batch: dict[str, np.ndarray] | None
) -> Programs:
    """The programs of (network, phase).

    Args:
      context: of the run.
      spec: of the network.
      phase: how it is used.
      batch: an example of a chunk to train on; `None` if there will be no training.
    """
    flops.forward_flops(spec)  # counted once for each network: here nobody waits for it
    step_config = context.step_config(spec)
    like = state.abstract_packed(step_config.model, context.tx, pmap.replicated_sharding())
    train = None
    if batch is not None:
        train = pmap.compile_train(step_config, phase, like, batch, context.shared)
    example, statistics = next(evaluation.eval_chunks(context, context.data.valid)), None
    searched = step_config.eval_mode(phase) is Mode.ARGMAX and not spec.is_derived()
    if searched and context.config.search.statistics_batches:
        given = next(evaluation._statistics_chunks(context))
        statistics = pmap.compile_statistics(step_config, phase, like, given, context.shared)
    evaluate = pmap.compile_eval(step_config, phase, like, example, context.shared)
    return Programs(spec, _program_kind(phase), train, statistics, evaluate)


def _program_kind(phase):
    return 'search' if phase.searches else str(phase)
