"""What is static in the steps of one network, and how each phase uses its candidates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from asose_jax.data.augment import Augmentation
from asose_jax.nn.forward import Mode
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train.phases import Phase, Schedule

AXIS = 'batch'


@dataclasses.dataclass(frozen=True, eq=False)
class StepConfig:
    """What is compiled into the steps of one network.

    Attributes:
      model: with `synced_over=AXIS`.
      tx: see `optimizer.make_optimizer`.
      schedule: phases, turns, tau.
      augmentation: of training images.
      warmup_mode: SKIP or UNIFORM.
      arch_micro_batches: parts that an alpha step's images are cut into, one after another, to save
        memory; its gradient is their mean, and BatchNorm normalises each part by itself.
      arch_samples: draws in an alpha step; its gradient is their mean.
      eval_mixture: evaluations do not use `eval_mode` but Mode.DENSE, with the statistics of each
        batch; the model is a `supernet.mixture_of`.
      penalty: of alpha alone; alpha steps add its gradient, and log the loss without it.
      second_order: whether alpha steps look one weight step ahead, see `second_order.gradient`;
        then chunks hold one batch more than steps, and each part of images a part of the next.
    """

    model: SuperNet
    tx: optax.GradientTransformationExtraArgs
    schedule: Schedule
    augmentation: Augmentation
    warmup_mode: Mode = Mode.SKIP
    arch_micro_batches: int = 1
    arch_samples: int = 1
    eval_mixture: bool = False
    penalty: Callable[[Any], jax.Array] | None = None
    second_order: bool = False

    def weight_mode(self, phase: Phase) -> Mode:
        """How weight steps of a phase use the candidates."""
        if phase is Phase.WARMUP:
            return self.warmup_mode
        return Mode.DRAW if phase.searches else Mode.ARGMAX

    def eval_mode(self, phase: Phase) -> Mode:
        """How evaluations do: as warmup trained them all alike, or without noise."""
        alike = phase is Phase.WARMUP and self.warmup_mode is Mode.SKIP
        return Mode.SKIP if alike else Mode.ARGMAX
