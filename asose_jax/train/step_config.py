"""Defines the static settings of the steps of a network, and how phases use its candidates."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from asose_jax.data.augment import Augmentation
from asose_jax.data.mixing import Mixing
from asose_jax.data.randaugment import RandAugment
from asose_jax.nn.forward import Mode
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train.phases import Phase, Schedule

# Name of the mapped axis over devices.
AXIS = 'batch'


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Says how the phase optimize trains, beyond what all phases do (docs/recipes.md).

    Attributes:
      label_smoothing: share of each label that is spread over all classes; 0 for none.
      mixing: mixup and CutMix.
      randaugment: number and strength of its operations.
      ema: decay of the moving average of the weights; 0 for none.
    """

    label_smoothing: float
    mixing: Mixing
    randaugment: RandAugment
    ema: float


PLAIN = Recipe(0.0, Mixing(0.0, 0.0), RandAugment(0, 0.0), 0.0)  # of the phases before optimize


@dataclasses.dataclass(frozen=True, eq=False)
class StepConfig:
    """Holds what is compiled into the steps of one network.

    Attributes:
      model: the network, with `synced_over=AXIS`.
      tx: its optimizer, see `optimizer.make_optimizer`.
      schedule: phases, turns and temperature.
      augmentation: augmentation of training images.
      warmup_mode: `Mode.SKIP` or `Mode.UNIFORM`.
      arch_micro_batches: number of parts into which an alpha step splits its images, to save
        memory. They are computed one after another and their gradients averaged; BatchNorm
        normalises each part by itself.
      arch_samples: number of draws in an alpha step, whose gradients are averaged.
      class_weights: weight in the training loss of an image of each class, float32
        `[num_classes]`, see `gradients.mean_cross_entropy`; `None`: all alike.
      penalty: a term of the loss that depends on alpha alone. Alpha steps add its gradient, and
        report the loss without it.
      second_order: whether alpha steps look one weight step ahead, see `second_order.gradient`.
        Chunks then hold one batch more than they have steps, and each micro-batch is paired with
        one of the next batch.
      recipe: of the phase optimize.
      frozen: whether only the head is trained in optimize.
      eval_mixture: whether evaluations use `Mode.DENSE` with the statistics of each batch instead
        of `eval_mode`; the model is then a `supernet.with_softmax_mixture`.
    """

    model: SuperNet
    tx: optax.GradientTransformationExtraArgs
    schedule: Schedule
    augmentation: Augmentation
    warmup_mode: Mode
    arch_micro_batches: int
    arch_samples: int
    class_weights: np.ndarray | None
    penalty: Callable[[Any], jax.Array] | None
    second_order: bool
    recipe: Recipe
    frozen: bool
    eval_mixture: bool = False

    def recipe_in(self, phase: Phase) -> Recipe:
        """Returns the recipe of a phase; before optimize, everything in it is off."""
        return self.recipe if phase is Phase.OPTIMIZE else PLAIN

    def is_frozen(self, phase: Phase) -> bool:
        """Returns whether weight steps of a phase train the head only.

        The network in front of it then computes what it computes in an evaluation.
        """
        return self.frozen and phase is Phase.OPTIMIZE

    def weight_mode(self, phase: Phase) -> Mode:
        """Returns how weight steps of a phase use the candidates."""
        if phase is Phase.WARMUP:
            return self.warmup_mode
        return Mode.DRAW if phase.searches else Mode.ARGMAX

    def eval_mode(self, phase: Phase) -> Mode:
        """Returns how evaluations in a phase use the candidates.

        `Mode.ARGMAX`, or `Mode.SKIP` in a warmup that does not train the candidates.
        """
        skips = phase is Phase.WARMUP and self.warmup_mode is Mode.SKIP
        return Mode.SKIP if skips else Mode.ARGMAX
