"""The four phases as data. Which phase, whose turn, which tau: pure functions of the step.

Steps are counted from 0 over the whole run. What only needs arithmetic works on Python integers and
on traced arrays alike, so that the host and the compiled step read the same plan.
"""

import dataclasses
import enum
import math

import jax

from asose_jax.arch import gumbel

# What logs show in optimize. Nothing is drawn there: the derived network is the tau -> 0 limit.
OPTIMIZE_TAU = 0.01

Step = int | jax.Array


class Phase(enum.StrEnum):
    WARMUP = 'warmup'  # weights only, skip_connect everywhere or any operation
    SEARCH = 'search'  # weights and alpha in turn, drawn operations
    GROWTH = 'growth'  # as search, while the network grows
    OPTIMIZE = 'optimize'  # weights of the derived network

    @property
    def searches(self) -> bool:
        """Whether alpha is trained in this phase."""
        return self in (Phase.SEARCH, Phase.GROWTH)


@dataclasses.dataclass(frozen=True)
class Span:
    """One phase on the axis of steps: `start <= step < stop`, cut into equal epochs."""

    phase: Phase
    start: int
    stop: int
    epochs: int

    @property
    def epoch_steps(self) -> int:
        return (self.stop - self.start) // self.epochs

    def epoch_at(self, step: int) -> int:
        """The epoch, from 1, that the step before `step` belongs to."""
        return max(0, step - 1 - self.start) // self.epoch_steps + 1

    def epoch_end(self, step: int) -> int:
        """The first epoch boundary after `step`."""
        return self.start + ((step - self.start) // self.epoch_steps + 1) * self.epoch_steps


@dataclasses.dataclass(frozen=True)
class Temperature:
    """tau: `max(floor, start * rate**decays)`, with `decays` growing with the alpha updates.

    Attributes:
      start: tau of the first draw.
      rate: factor of one decay.
      floor: never below.
      decays_per_update: a fraction (numerator, denominator), exact in integers.
    """

    start: float
    rate: float
    floor: float
    decays_per_update: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The whole run. `spans` holds the phases with at least one epoch, in order."""

    spans: tuple[Span, ...]
    turn_period: int
    temperature: Temperature
    frozen_steps: int = 0  # at the start of search, in which alpha rests
    together: bool = False  # steps of alpha move the weights as well

    @property
    def steps(self) -> int:
        return self.spans[-1].stop

    def span_at(self, step: int) -> Span:
        """The span that `step` belongs to; the last one for the end of the run."""
        for span in self.spans:
            if step < span.stop:
                return span
        return self.spans[-1]

    def is_alpha_turn(self, step: Step) -> bool | jax.Array:
        """Whether `step` updates alpha: the first of every `turn_period` steps of a search span."""
        turn = False
        for start, stop in self._searching():
            inside = (start <= step) & (step < stop)
            turn = turn | (inside & ((step - start) % self.turn_period == 0))
        return turn

    def is_weight_turn(self, step: Step) -> bool | jax.Array:
        """Whether `step` updates the weights."""
        return (self.is_alpha_turn(step) ^ True) | self.together

    def alpha_updates(self, step: Step) -> Step:
        """How many of the steps before `step` update alpha."""
        total = 0
        for start, stop in self._searching():
            done = _clip(step - start, stop - start)
            total = total + (done + self.turn_period - 1) // self.turn_period
        return total

    def weight_updates(self, step: Step) -> Step:
        """How many of the steps before `step` update the weights."""
        return step if self.together else step - self.alpha_updates(step)

    def tau(self, step: Step) -> float | jax.Array:
        """Temperature at `step` of a search span (spec section 3)."""
        numerator, denominator = self.temperature.decays_per_update
        rounds, rest = divmod(self.alpha_updates(step), denominator)  # whose products fit in int32
        decays = rounds * numerator + rest * numerator // denominator
        t = self.temperature
        return gumbel.anneal_tau(decays, t.start, t.rate, t.floor)

    def optimized(self, step: Step) -> float | jax.Array:
        """The share of optimize that is done before the epoch of `step`."""
        done = 0.0
        for span in self.spans:
            if span.phase is Phase.OPTIMIZE:
                done = _clip(step - span.start, span.stop - span.start) // span.epoch_steps
                done = done / span.epochs
        return done

    def beta(self, step: Step) -> float | jax.Array:
        """Weight of the auxiliary skips at `step`: 1, falls to 0 over search, and stays there.

        Linear, as DARTS- has it (Chu et al. 2021, arXiv:2009.01027); 0 throughout without search.
        """
        for span in self.spans:
            if span.phase is Phase.SEARCH:
                length = span.stop - span.start
                return _clip(span.stop - step, length) / length
        return 0.0

    def reported_tau(self, step: int) -> float | None:
        """What logs show: no tau in warmup, the limit in optimize."""
        phase = self.span_at(step).phase
        if phase is Phase.WARMUP:
            return None
        return OPTIMIZE_TAU if phase is Phase.OPTIMIZE else self.tau(step)

    def with_search_until(self, step: int) -> 'Schedule':
        """The plan in which search ends at `step`, the end of an epoch, and what follows begins."""
        spans, saved = [], 0
        for span in self.spans:
            start, stop, epochs = span.start - saved, span.stop - saved, span.epochs
            if span.phase is Phase.SEARCH:
                saved, stop, epochs = stop - step, step, span.epoch_at(step)
            spans.append(Span(span.phase, start, stop, epochs))
        return dataclasses.replace(self, spans=tuple(spans))

    def _searching(self):
        """Where alpha has its turns, as (start, stop)."""
        return [
            (span.start + self.frozen_steps * (span.phase is Phase.SEARCH), span.stop)
            for span in self.spans
            if span.phase.searches
        ]


def make_schedule(
    epochs: dict[Phase, int],
    train_steps: int,
    *,
    turn_period: int = 3,
    tau_start: float = 0.8,
    tau_rate: float = 0.98,
    tau_floor: float = 0.1,
    anneal_every: int | None = None,
    freeze_epochs: int = 0,
    together: bool = False,
) -> Schedule:
    """Lays the phases out.

    An epoch is one pass of the weights over the training part: `train_steps` weight updates. Search
    and growth have the steps that move alpha in addition, which go to the weights in frozen epochs;
    none where both move together.

    Args:
      epochs: of each phase; 0 leaves a phase out.
      train_steps: weight updates per epoch.
      turn_period: every how many steps alpha is updated instead of the weights.
      tau_start: first temperature.
      tau_rate: factor of one decay.
      tau_floor: lowest temperature.
      anneal_every: alpha updates per decay; `None` spreads the decays that lead from start to floor
        over the search phase, or over growth if there is no search.
      freeze_epochs: of search, its first ones, in which all steps move the weights.
      together: steps of alpha move the weights as well.

    Returns:
      The plan.
    """
    spans, start, frozen = [], 0, 0
    for phase in Phase:
        if not epochs[phase]:
            continue
        steps = train_steps
        if phase.searches and not together:
            steps = math.ceil(train_steps * turn_period / (turn_period - 1))
        if phase is Phase.SEARCH:
            frozen = steps * freeze_epochs
        stop = start + steps * epochs[phase]
        spans.append(Span(phase, start, stop, epochs[phase]))
        start = stop
    needed = 0
    if tau_start > tau_floor:
        needed = math.ceil(math.log(tau_floor / tau_start) / math.log(tau_rate))
    pace = (1, anneal_every or 1)
    searching = [span for span in spans if span.phase.searches]
    if anneal_every is None and searching:
        first = searching[0]
        pace = _pace(needed, math.ceil((first.stop - first.start - frozen) / turn_period))
    temperature = Temperature(tau_start, tau_rate, tau_floor, pace)
    return Schedule(tuple(spans), turn_period, temperature, frozen, together)


def _pace(decays, updates):
    """`decays / updates` as two integers whose product fits in int32; rather faster than slower."""
    halvings = max(0, math.ceil(((decays * updates).bit_length() - 30) / 2))
    return -(-decays >> halvings), max(1, updates >> halvings)


def _clip(value, high):
    """`value` limited to 0..high, for integers and traced arrays alike, in integer arithmetic."""
    if isinstance(value, int):
        return min(max(value, 0), high)
    return value.clip(0, high)
