"""What a run has to tell of itself beside its arrays: a part of every checkpoint."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class GrowthProgress:
    """Where a run is on its way to the next growth, see `controller`; what is pending as JSON."""

    best: float | None = None
    waited: int = 0
    turn: int = 0
    pending: dict[str, Any] | None = None


@dataclasses.dataclass
class RunHistory:
    """What a run has to tell; rows and events as JSON.

    Attributes:
      phases: a row for each that was entered.
      genotype: of the evaluation before.
      train_flops: of the run so far, see `flops`.
      growth: the growths that took place.
      growing: the way to the next one.
      curvature: the evaluations that may still end the search, see `early_stopping`.
      halted: where search ended early.
      selection: how the operations were chosen.
    """

    phases: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    genotype: list[list[str]] | None = None
    train_flops: float = 0.0
    growth: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    growing: GrowthProgress = dataclasses.field(default_factory=GrowthProgress)
    curvature: list[Any] = dataclasses.field(default_factory=list)
    halted: dict[str, Any] | None = None
    selection: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> 'RunHistory':
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**content, 'growing': GrowthProgress(**content['growing'])})
