"""Schedules the four phases: phase, turn and temperature as pure functions of the step.

Steps are counted from 0 over the whole run. Functions of `Step` use arithmetic only, so they accept
Python integers and traced arrays: the host and the compiled step read the same schedule.
See docs/algorithm.md, "Four phases".
"""

import dataclasses
import enum
import math
from typing import overload

import jax
import ml_collections

from asose_jax.arch import gumbel

# Temperature that logs show in optimize, where nothing is drawn: the derived network is the limit
# tau -> 0.
OPTIMIZE_TAU = 0.01

Step = int | jax.Array


class Phase(enum.StrEnum):
    """Names the phases of a run, in order."""

    WARMUP = 'warmup'  # weights only; mixed operations skip, or draw uniformly
    SEARCH = 'search'  # weights and alpha in turn; operations are drawn
    GROWTH = 'growth'  # like search, while the network grows
    OPTIMIZE = 'optimize'  # weights of the derived network

    @property
    def searches(self) -> bool:
        """Whether alpha is trained in this phase."""
        return self in (Phase.SEARCH, Phase.GROWTH)


@dataclasses.dataclass(frozen=True)
class Span:
    """Holds the steps of one phase, `start <= step < stop`, divided into equal epochs.

    Attributes:
      phase: the phase.
      start: first step.
      stop: step after the last one.
      epochs: number of epochs, at least 1.
    """

    phase: Phase
    start: int
    stop: int
    epochs: int

    @property
    def epoch_steps(self) -> int:
        """Number of steps in an epoch."""
        return (self.stop - self.start) // self.epochs

    def epoch_at(self, step: int) -> int:
        """Returns the epoch, from 1, of the last step before `step`."""
        return max(0, step - 1 - self.start) // self.epoch_steps + 1

    def epoch_end(self, step: int) -> int:
        """Returns the end of the epoch that `step` belongs to: the first boundary after it."""
        return self.start + ((step - self.start) // self.epoch_steps + 1) * self.epoch_steps


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Holds how tau falls: `max(floor, start * rate**decays)` (docs/algorithm.md, "Temperature").

    Attributes:
      start: tau of the first draw.
      rate: factor of one decay.
      floor: lowest tau.
      decays_per_update: decays per update of alpha, as a fraction (numerator, denominator), so
        that the host and devices count decays exactly.
    """

    start: float
    rate: float
    floor: float
    decays_per_update: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Holds the schedule of a whole run; see `make_schedule`.

    Attributes:
      spans: the phases with at least one epoch, in order.
      turn_period: every how many steps alpha has its turn.
      temperature: how tau falls.
      frozen_steps: steps at the start of search in which alpha rests.
      together: whether alpha's turns move the weights as well.
    """

    spans: tuple[Span, ...]
    turn_period: int
    temperature: Temperature
    frozen_steps: int
    together: bool

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self.spans[-1].stop

    @property
    def steps_before_optimize(self) -> int:
        """Number of steps before optimize; all of them if there is no such phase."""
        spans = [span for span in self.spans if span.phase is Phase.OPTIMIZE]
        return spans[0].start if spans else self.steps

    def span_at(self, step: int) -> Span:
        """Returns the span of `step`; at the end of the run, the last span."""
        for span in self.spans:
            if step < span.stop:
                return span
        return self.spans[-1]

    def is_alpha_turn(self, step: Step) -> bool | jax.Array:
        """Returns whether `step` updates alpha: the first of every `turn_period` steps.

        Only in search and growth, and not while alpha rests (docs/algorithm.md, "Turns").
        """
        is_turn = False
        for start, stop in self._alpha_ranges():
            inside = (start <= step) & (step < stop)
            is_turn = is_turn | (inside & ((step - start) % self.turn_period == 0))
        return is_turn

    def is_weight_turn(self, step: Step) -> bool | jax.Array:
        """Returns whether `step` updates the weights."""
        return (self.is_alpha_turn(step) ^ True) | self.together

    @overload
    def alpha_updates(self, step: int) -> int: ...
    @overload
    def alpha_updates(self, step: Step) -> Step: ...
    def alpha_updates(self, step: Step) -> Step:
        """Counts the updates of alpha before `step`."""
        total = 0
        for start, stop in self._alpha_ranges():
            steps = _clip(step - start, stop - start)
            total = total + (steps + self.turn_period - 1) // self.turn_period
        return total

    @overload
    def weight_updates(self, step: int) -> int: ...
    @overload
    def weight_updates(self, step: Step) -> Step: ...
    def weight_updates(self, step: Step) -> Step:
        """Counts the updates of the weights before `step`."""
        return step if self.together else step - self.alpha_updates(step)

    @overload
    def tau(self, step: int) -> float: ...
    @overload
    def tau(self, step: Step) -> float | jax.Array: ...
    def tau(self, step: Step) -> float | jax.Array:
        """Returns tau at `step` of search or growth (docs/algorithm.md, "Temperature")."""
        numerator, denominator = self.temperature.decays_per_update
        # Split, so that all products fit in int32.
        rounds, rest = divmod(self.alpha_updates(step), denominator)
        decays = rounds * numerator + rest * numerator // denominator
        t = self.temperature
        return gumbel.anneal_tau(decays, t.start, t.rate, t.floor)

    def steps_of_optimize(self, step: Step) -> Step:
        """Counts the steps of optimize before `step`."""
        start = self.steps_before_optimize
        return _clip(step - start, self.steps - start)

    def optimized(self, step: Step) -> float | jax.Array:
        """Returns the fraction of optimize before the epoch of `step`, 0 to 1."""
        fraction = 0.0
        for span in self.spans:
            if span.phase is Phase.OPTIMIZE:
                epochs = _clip(step - span.start, span.stop - span.start) // span.epoch_steps
                fraction = epochs / span.epochs
        return fraction

    def beta(self, step: Step) -> float | jax.Array:
        """Returns the weight of the auxiliary skips: 1, then falling to 0 over search.

        Linear as in DARTS- (Chu et al. 2021, arXiv:2009.01027); 0 throughout without search.
        """
        for span in self.spans:
            if span.phase is Phase.SEARCH:
                length = span.stop - span.start
                return _clip(span.stop - step, length) / length
        return 0.0

    def reported_tau(self, step: int) -> float | None:
        """Returns the temperature for logs: `None` in warmup, `OPTIMIZE_TAU` in optimize."""
        phase = self.span_at(step).phase
        if phase is Phase.WARMUP:
            return None
        return OPTIMIZE_TAU if phase is Phase.OPTIMIZE else self.tau(step)

    def with_search_until(self, step: int, hands_over: bool = False) -> 'Schedule':
        """Returns the schedule in which search ends early, at the end of an epoch.

        Args:
          step: where it ends.
          hands_over: whether optimize gets the epochs that search does not have, if there is one.
        """
        spans, saved, left = [], 0, 0
        for span in self.spans:
            start, stop, epochs = span.start - saved, span.stop - saved, span.epochs
            if span.phase is Phase.SEARCH:
                saved, stop, epochs = stop - step, step, span.epoch_at(step)
                left = span.epochs - epochs if hands_over else 0
            if span.phase is Phase.OPTIMIZE:
                stop, epochs = stop + left * span.epoch_steps, epochs + left
            spans.append(Span(span.phase, start, stop, epochs))
        return dataclasses.replace(self, spans=tuple(spans))

    def _alpha_ranges(self) -> list[tuple[int, int]]:
        """Returns the steps (start, stop) within which alpha has its turns."""
        return [
            (span.start + self.frozen_steps * (span.phase is Phase.SEARCH), span.stop)
            for span in self.spans
            if span.phase.searches
        ]


def make_schedule(
    epochs: dict[Phase, int],
    train_steps: int,
    search: ml_collections.ConfigDict,
    freeze_epochs: int,
) -> Schedule:
    """Builds the schedule of a run from the lengths of its phases.

    An epoch is one pass of the weights over the training part: `train_steps` weight updates. Search
    and growth have the updates of alpha in addition; in frozen epochs, these steps update the
    weights too. With `search.turns='together'`, alpha needs no steps of its own.

    Where `search.anneal_every` is `None`, the decays that lead the temperature from its start to
    its floor are spread over the search phase, or over growth if there is no search.

    Args:
      epochs: number of epochs of each phase; 0 omits a phase.
      train_steps: weight updates per epoch.
      search: the group `search` of the config.
      freeze_epochs: number of epochs at the start of search in which alpha rests.

    Returns:
      The schedule.
    """
    period, together = search.turn_period, search.turns == 'together'
    spans, start, frozen_steps = [], 0, 0
    for phase in Phase:
        if not epochs[phase]:
            continue
        steps = train_steps
        if phase.searches and not together:
            steps = math.ceil(train_steps * period / (period - 1))
        if phase is Phase.SEARCH:
            frozen_steps = steps * freeze_epochs
        stop = start + steps * epochs[phase]
        spans.append(Span(phase, start, stop, epochs[phase]))
        start = stop
    decays = 0
    if search.tau_start > search.tau_floor:
        decays = math.ceil(
            math.log(search.tau_floor / search.tau_start) / math.log(search.tau_rate)
        )
    decays_per_update = (1, search.anneal_every or 1)
    searching = [span for span in spans if span.phase.searches]
    if search.anneal_every is None and searching:
        first = searching[0]
        updates = math.ceil((first.stop - first.start - frozen_steps) / period)
        decays_per_update = _int32_fraction(decays, updates)
    temperature = Temperature(
        search.tau_start, search.tau_rate, search.tau_floor, decays_per_update
    )
    return Schedule(tuple(spans), period, temperature, frozen_steps, together)


def _int32_fraction(decays: int, updates: int) -> tuple[int, int]:
    """Returns `decays / updates` as two integers whose product fits in int32, rounded up."""
    halvings = max(0, math.ceil(((decays * updates).bit_length() - 30) / 2))
    return -(-decays >> halvings), max(1, updates >> halvings)


def _clip(value: Step, high: int) -> Step:
    """Limits `value` to 0..high, for integers and traced arrays alike, in integer arithmetic."""
    if isinstance(value, int):
        return min(max(value, 0), high)
    return value.clip(0, high)
