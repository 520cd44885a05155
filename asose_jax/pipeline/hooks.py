"""Reactions to an evaluation: one visible list of hooks, which the phase loop runs in order.

    hooks = (GrowNetwork(), StopEarly(), StopWhenSettled(), WriteMetrics(log), DrawPage(page), ...)

The first three decide: while they may, the next step waits for them. The others write.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from asose_jax.arch.genotype import NetSpec
from asose_jax.metrics import arch_analysis, metrics_log
from asose_jax.nn import factors
from asose_jax.pipeline import early_stopping, settling
from asose_jax.pipeline.growth import controller
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.report.page import Page
from asose_jax.report.tensorboard import Events
from asose_jax.report.tracker import Tracker
from asose_jax.train.phases import Span


class Decision(NamedTuple):
    """Says what happens after an evaluation, as a hook or several decide.

    Attributes:
      saves: the state is saved before the next step.
      ends_phase: the phase is over.
      stalled: the hook took time of its own, which does not count as training.
    """

    saves: bool = False
    ends_phase: bool = False
    stalled: bool = False

    def also(self, other: 'Decision') -> 'Decision':
        """Joins two decisions: what any of them asks for happens."""
        return Decision(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
      span: the phase.
      spec: description of the network that was evaluated.
      record: the line of metrics.jsonl; hooks that decide add to it.
      batch: an example of a chunk to train on.
      decided: what the hooks before have decided.
    """

    span: Span
    spec: NetSpec
    record: dict[str, Any]
    batch: dict[str, np.ndarray]
    decided: Decision = Decision()


class Hook(abc.ABC):
    """A reaction to evaluations."""

    def may_decide(self, context: RunContext, span: Span) -> bool:
        """Returns whether evaluations of this phase can change what the next step does."""
        return False

    @abc.abstractmethod
    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Reacts to an evaluation.

        Args:
          context: of the run.
          current: state of the run, which the hook may change.
          evaluation: of the network before any hook has changed it.

        Returns:
          What this hook decides.
        """

    def on_stop(self) -> None:  # noqa: B027 (most hooks need not react)
        """Reacts to the end of a process that was asked to stop, before the state is on disk."""


class GrowNetwork(Hook):
    """Grows the network when its accuracy has come to a plateau (docs/algorithm.md, "Growth")."""

    def may_decide(self, context: RunContext, span: Span) -> bool:
        """Returns whether the network can grow in this phase."""
        return controller.may_grow(context, span)

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Grows the network, or prepares for it; saves the state after a growth."""
        record, pending = evaluation.record, current.history.growing.pending
        record['growth'] = controller.update(
            context, current, evaluation.span, record, evaluation.batch
        )
        grew = bool(record['growth'])
        if grew:
            record['grown'] = _grown_network(context, current)
        decided = current.history.growing.pending is not pending
        return Decision(saves=grew, stalled=grew or decided)


def _grown_network(context: RunContext, current: RunState) -> dict[str, Any]:
    """Describes the network after a growth, for the line of metrics."""
    state = current.state
    chosen = context.most_likely(current.spec, state.arch)
    analysis = arch_analysis.analyze_architecture(state.arch, current.spec, chosen=chosen)
    return {
        'network': current.spec.to_json(),
        'factors': arch_analysis.rounded_factors(
            factors.factors_by_row(current.spec, state.params)
        ),
        **{key: analysis[key] for key in ('genotype', 'arch/probabilities')},
    }


class StopEarly(Hook):
    """Ends the search when the curvature of alpha's loss rises (R-DARTS, arXiv:1909.09656)."""

    def may_decide(self, context: RunContext, span: Span) -> bool:
        """Returns whether the search can end early in this phase."""
        return early_stopping.may_stop(context, span)

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Measures the curvature, and ends the phase when it has risen."""
        halts = early_stopping.update(context, current, evaluation.span, evaluation.record)
        measured = 'arch/eigenvalue' in evaluation.record
        return Decision(saves=halts, ends_phase=halts, stalled=measured)


class StopWhenSettled(Hook):
    """Ends the search when its choices have not changed for some epochs."""

    def may_decide(self, context: RunContext, span: Span) -> bool:
        """Returns whether the search can end early in this phase."""
        return settling.may_stop(context, span)

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Counts the evaluations with the same choices, and ends the phase after enough of them."""
        if evaluation.decided.ends_phase:
            return Decision()
        ends = settling.update(context, current, evaluation.span, evaluation.record)
        return Decision(saves=ends, ends_phase=ends)


class WriteMetrics(Hook):
    """Appends the evaluation to metrics.jsonl."""

    def __init__(self, log: metrics_log.MetricsLog) -> None:
        """Takes the open metrics.jsonl."""
        self._log = log

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Writes the line; decides nothing."""
        self._log.write(evaluation.record)
        return Decision()


class DrawPage(Hook):
    """Draws report.html: at the ends of phases and growths at once, else if time allows."""

    def __init__(self, page: Page) -> None:
        """Takes the page of the run."""
        self._page = page

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Draws the page if it is due; decides nothing."""
        self._page.draw(at_once=evaluation.decided.saves or _is_last(evaluation))
        return Decision()

    def on_stop(self) -> None:
        """Draws the page with the last evaluation."""
        self._page.draw()


class WriteTensorBoard(Hook):
    """Writes the evaluation as TensorBoard events."""

    def __init__(self, events: Events) -> None:
        """Takes the open event file."""
        self._events = events

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Writes the events; decides nothing."""
        self._events.write(evaluation.record, evaluation.spec)
        return Decision()


class SendToTracker(Hook):
    """Has the evaluation sent to a tracker, by a thread that the run does not wait for."""

    def __init__(self, sender: Tracker) -> None:
        """Takes the tracker of the run."""
        self._sender = sender

    def on_evaluation(
        self, context: RunContext, current: RunState, evaluation: Evaluation
    ) -> Decision:
        """Hands over the numbers; decides nothing."""
        self._sender.write(evaluation.record)
        return Decision()


def _is_last(evaluation: Evaluation) -> bool:
    return evaluation.record['step'] == evaluation.span.stop
