"""Run metadata that every checkpoint stores beside its arrays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from asose_jax.train.phases import Span


@dataclasses.dataclass
class GrowthProgress:
    """State of the controller that decides when the network grows, see `growth.controller`.

    Attributes:
      best: validation accuracy that counts as the best so far; `None` before the first evaluation.
      waited: evaluations since then without a better one; counted anew after each plateau.
      turn: attempts to choose a growth so far; says which entry of `growth.kinds` is tried next.
      pending: growths that are decided but have not taken place, as JSON; `None` if there are none.
    """

    best: float | None = None
    waited: int = 0
    turn: int = 0
    pending: dict[str, Any] | None = None


@dataclasses.dataclass
class RunHistory:
    """Record of a run so far, as saved in checkpoints. All of it can be written as JSON.

    Attributes:
      phases: a row for each phase that was entered, as in summary.json.
      genotype: most likely operations at the evaluation before.
      train_flops: floating-point operations spent on training so far, see `costs.flops`.
      growth: an event for each growth that took place, as in summary.json.
      growing: progress towards the next growth.
      settled: evaluations in a row with the same, sure choices, see `settling`.
      curvature: the last evaluations that may still end the search, see `early_stopping`.
      halted: where and why the search ended early; `None` if it did not.
      selection: how the operations of the derived network were chosen; `None` before that.
    """

    phases: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    genotype: list[list[str]] | None = None
    train_flops: float = 0.0
    growth: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    growing: GrowthProgress = dataclasses.field(default_factory=GrowthProgress)
    settled: int = 0
    curvature: list[Any] = dataclasses.field(default_factory=list)
    halted: dict[str, Any] | None = None
    selection: str | None = None

    def halt(self, span: Span, step: int, **why: Any) -> None:
        """Records that the phase that was entered last has ended early, at `step`, and why."""
        epoch = span.epoch_at(step)
        self.halted = {'step': step, 'epoch': epoch, **why}
        self.phases[-1].update(epochs=epoch, steps=step - span.start)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'RunHistory':
        """Reads what `dataclasses.asdict` has made of a history."""
        return cls(**{**content, 'growing': GrowthProgress(**content['growing'])})
