"""This program's compiled steps on random images, ready to be timed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asose_jax.arch import genotype
from asose_jax.config import presets
from asose_jax.config.schema import FIELDS
from asose_jax.data import augment, batches
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import builders
from asose_jax.spaces import chain
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import optimizer, phases, pmap, state, steps
from asose_jax.train.phases import Phase
from asose_jax.train.step_config import PLAIN, StepConfig

TURN_PERIOD = 3  # the cycle of the ancestor: one alpha step, two weight steps
# Of activations the dtype, of products JAX's default precision: on GPUs, JAX without any setting
# takes TF32 for float32.
PRECISIONS = {
    'float32': ('float32', 'float32'),
    'tf32': ('float32', 'tensorfloat32'),
    'bfloat16': ('bfloat16', None),
}
_IMAGES = 2048


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a network and its batches; `(32, 32, 3)` and depth 6 are CIFAR's."""

    channels: int = 16
    depth: int = 6
    batch: int = 128
    image: tuple[int, int, int] = (32, 32, 3)
    reductions: tuple[int, ...] = (1, 3)
    primitives: tuple[str, ...] = FIELDS['model.primitives'].default
    dtype: str = 'float32'

    def spec(self) -> genotype.NetSpec:
        return chain.build(
            self.image,
            10,
            channels=self.channels,
            depth=self.depth,
            reductions=tuple(r for r in self.reductions if r < self.depth),
            max_channels=16 * self.channels,
            primitives=self.primitives,
        )


class Network:
    """One network in one phase, compiled; each call runs real steps and waits for them.

    Args:
      size: of network and batch.
      phase: whose program.
      chosen: one operation a block: the derived network.
      slots: steps in a call, at most.
      turn_period: see `phases.make_schedule`; the first step of a period is the one of alpha.
      frozen: whether alpha rests in the first half of the ten epochs, up to step `first_alpha`, so
        that one program has steps of the weights alone and cycles.
    """

    def __init__(
        self,
        size: Size,
        phase: Phase,
        chosen: tuple[str, ...] | None = None,
        slots: int = 6,
        turn_period: int = TURN_PERIOD,
        frozen: bool = False,
    ):
        self.spec, self.slots, self.size, self.phase = size.spec(), slots, size, phase
        if chosen:
            picked = genotype.Genotype(tuple((name,) for name in chosen))
            self.spec = genotype.derive(self.spec, picked)
        epochs = dict.fromkeys(Phase, 0) | {phase: 10}
        config = presets.get_config('seed')
        config.search.turn_period, config.search.anneal_every = turn_period, None
        schedule = phases.make_schedule(epochs, 600, config.search, 5 * frozen)
        self.first_alpha = schedule.frozen_steps
        tx = optimizer.make_optimizer(config, schedule)
        for_cpu = pmap.platform() == 'cpu'
        settings = builders.make_settings(config, config.arch)
        model = SuperNet(self.spec, settings, size.dtype, steps.AXIS, for_cpu)
        self.step_config = step_config = StepConfig(
            model,
            tx,
            schedule,
            augment.Augmentation(4, True, 0),
            warmup_mode=Mode.SKIP,
            arch_micro_batches=1,
            arch_samples=1,
            class_weights=None,
            penalty=None,
            second_order=False,
            recipe=PLAIN,
            frozen=False,
        )
        random = np.random.default_rng(0)
        self.random = random
        self.shared = pmap.replicated(
            {
                'key': jax.random.key(0),
                'mean': jnp.full(size.image[-1], 128.0),
                'std': jnp.full(size.image[-1], 64.0),
                'images': random.integers(0, 256, (_IMAGES, *size.image), dtype=np.uint8),
                'labels': random.integers(0, 10, _IMAGES, dtype=np.int32),
            }
        )
        begun = jax.device_get(state.init_state(model, tx, jax.random.key(1)))
        self.packed = pmap.replicated(state.Packed.of(begun))
        self.program = pmap.compile_train(
            step_config, phase, self.packed, self.chunk(1), self.shared
        )

    def chunk(self, count: int) -> dict[str, np.ndarray]:
        """Random indices for `count` steps."""
        each = [{'index': row} for row in self._rows(count * self.size.batch)]
        return batches.stack_batches(each, self.slots, jax.device_count())

    def _rows(self, count):
        shape = (-(-count // self.size.batch), self.size.batch)
        return self.random.integers(0, _IMAGES, shape, dtype=np.int32)

    def evaluation(self, count: int) -> Callable[[], dict[str, jax.Array]]:
        """A compiled evaluation of `count` random images, ready to be called; does not wait."""
        batch = self.size.batch
        each = [{'index': row, 'weight': np.ones(batch, np.float32)} for row in self._rows(count)]
        chunk = batches.stack_batches(each, self.slots, jax.device_count())
        example = (self.packed, chunk, self.shared)
        call = pmap.compile_eval(self.step_config, self.phase, *example).call
        return lambda: call(self.packed, chunk, self.shared)

    def draw(self, operations: list[str]) -> None:
        """From now on every draw gives these, one a block."""
        rows = [list(self.size.primitives).index(name) for name in operations]
        arch = {
            f'block_{block}': {
                'choice_0': {'alpha': 100 * jax.nn.one_hot(row, len(self.size.primitives)) - 50}
            }
            for block, row in enumerate(rows)
        }
        self.packed = pmap.replicated(self.packed.put(arch=arch))

    def run(self, count: int = 1, start: int = 0) -> dict[str, Any]:
        """`count` steps of the run, the first of them with number `start`; their metrics."""
        vectors = self.packed.vectors.replace(step=pmap.replicated(jnp.int32(start)))
        packed = self.packed.replace(vectors=vectors)
        self.packed, metrics = self.program.call(packed, self.chunk(count), self.shared)
        jax.block_until_ready(self.packed)
        return metrics


def draws(primitives: tuple[str, ...], depth: int) -> list[list[str]]:
    """As many draws as there are primitives; each block meets each of them once."""
    count = len(primitives)
    return [[primitives[(k + 3 * b) % count] for b in range(depth)] for k in range(count)]
