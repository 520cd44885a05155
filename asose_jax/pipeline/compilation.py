"""Compiles the programs of a phase, and those of the next one in the background."""

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import evaluation
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.train import pmap, state
from asose_jax.train.phases import Phase, Span
from asose_jax.train.pmap import Programs

T = TypeVar('T')

logger = logging.getLogger('asose_jax')


def compile_programs(
    context: RunContext, current: RunState, phase: Phase, batch: Mapping[str, Any] | None
) -> None:
    """Sets `current.programs` to those of the current network in `phase`.

    Keeps the programs in use if they fit, takes those that were compiled in the background if they
    do, and compiles otherwise. For `phase` and `batch` see `compile_network`.
    """
    wanted, ready = (current.spec, _program_kind(phase)), current.programs
    if ready and (ready.spec, ready.kind) == wanted:
        return
    upcoming, current.upcoming = current.upcoming, None
    if upcoming is not None:
        if not upcoming.done():
            log_wait(phase)
        programs = upcoming.result()
        if (programs.spec, programs.kind) == wanted:
            current.use(programs)
            return
    logger.info('compiling %s%s', _program_kind(phase), _remaining_text(context, phase))
    current.use(compile_network(context, current.spec, phase, batch))


def log_wait(activity: str) -> None:
    """Logs that `activity`, a phase or a growth, waits for programs that are being compiled."""
    logger.info(
        '%s: waiting for the compiler (minutes on a slow machine); the next start finds its '
        'programs in the cache',
        activity,
    )


def _remaining_text(context: RunContext, phase: Phase) -> str:
    """Returns the end of a log line: what a run compiles after the programs of this phase."""
    if context.only_warmup:
        return ''
    phases = [span.phase for span in context.schedule.spans]
    order = list(Phase)
    names = [_program_kind(later) for later in order[order.index(phase) + 1 :] if later in phases]
    names = list(dict.fromkeys(name for name in names if name != _program_kind(phase)))
    if phase is not Phase.OPTIMIZE and Phase.GROWTH in phases and context.config.growth.kinds:
        names.insert('search' in names, 'every grown network')
    return f'; still to come: {", ".join(names)}' if names else ''


def compile_upcoming(
    context: RunContext, current: RunState, span: Span, batch: Mapping[str, Any]
) -> None:
    """Starts to compile the programs of the next phase in the background, where that is possible.

    The next phase must train the network of this one, and with other programs: search and growth
    share theirs, and the derived network is known only at the end of the search. `span` is the
    phase that runs now, for `batch` see `compile_network`.
    """
    later = [other for other in context.schedule.spans if other.start >= span.stop]
    if not later or current.upcoming is not None or context.only_warmup:
        return
    phase, spec = later[0].phase, current.spec
    derives = phase is Phase.OPTIMIZE and not spec.is_derived()
    if not derives and _program_kind(phase) != _program_kind(span.phase):
        logger.info(
            'compiling %s in the background%s',
            _program_kind(phase),
            _remaining_text(context, phase),
        )
        current.upcoming = in_background(lambda: compile_network(context, spec, phase, batch))


def in_background(function: Callable[[], T]) -> concurrent.futures.Future[T]:
    """Calls `function` in a thread of its own, and returns a future of its result.

    Unlike the threads of an executor, this one is a daemon: a program that stops does not wait for
    the compiler.
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def compile_network(
    context: RunContext,
    spec: genotype.NetSpec,
    phase: Phase,
    batch: Mapping[str, Any] | None,
) -> Programs:
    """Compiles the programs of a network in a phase.

    Args:
      context: of the run.
      spec: description of the network.
      phase: how it is used; search and growth use it alike.
      batch: an example of a chunk to train on; `None` if there will be no training.

    Returns:
      The programs. `statistics` is there only if evaluations compute BatchNorm statistics of their
      own, see `evaluation.refresh_statistics`.
    """
    flops.forward_flops(spec)  # cached: counted while nobody waits, and known when it is needed
    step_config = context.step_config(spec)
    averages = bool(step_config.recipe_in(phase).ema)
    sharding = pmap.replicated_sharding()
    like = state.abstract_packed(step_config.model, context.tx, sharding, averages)
    train = None
    if batch is not None:
        train = pmap.compile_train(step_config, phase, like, batch, context.shared)
    # Evaluations of all parts of the data have the same shapes, and valid may be empty.
    example, statistics = next(evaluation.eval_chunks(context, context.data.train)), None
    is_supernet = step_config.eval_mode(phase) is Mode.ARGMAX and not spec.is_derived()
    # Frozen weights are their own average, and their statistics stay as they are.
    moves_average = averages and train and not step_config.is_frozen(phase)
    if (is_supernet or moves_average) and context.config.search.statistics_batches:
        chunk = next(evaluation.statistics_chunks(context))
        statistics = pmap.compile_statistics(step_config, phase, like, chunk, context.shared)
    evaluate = pmap.compile_eval(step_config, phase, like, example, context.shared)
    return Programs(spec, _program_kind(phase), train, statistics, evaluate)


def _program_kind(phase: Phase) -> str:
    """Names the programs of a phase; search and growth share theirs."""
    return 'search' if phase.searches else str(phase)
