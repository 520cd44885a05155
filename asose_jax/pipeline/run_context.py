"""What a run holds while it runs: its fixed setup, where it is, and its compiled programs."""

import concurrent.futures
import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import rich.console

from asose_jax.arch import estimators, genotype
from asose_jax.costs import expected_cost
from asose_jax.data import augment
from asose_jax.data.dataset import Dataset
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import builders
from asose_jax.pipeline.run_history import RunHistory
from asose_jax.runtime import interrupt
from asose_jax.spaces import natsbench, tabular
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import checkpoint, pmap
from asose_jax.train.phases import Phase, Schedule
from asose_jax.train.pmap import Programs
from asose_jax.train.state import Packed, SearchState
from asose_jax.train.step_config import StepConfig

logger = logging.getLogger('asose_jax')

# Uses of the run's key, told apart.
STEPS, INIT, TRANSITION, GROWTH, CURVATURE, SELECTION, DERIVATION = range(7)
_STREAMED_BYTES = 2**26  # of images in one call, where they are not resident


def key_for(seed: int, use: int) -> jax.Array:
    """The key of a run for one of its uses."""
    return jax.random.fold_in(jax.random.key(seed), use)


@dataclasses.dataclass(frozen=True, eq=False)
class RunContext:
    """What does not change during a run."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    console: rich.console.Console
    data: Dataset
    schedule: Schedule
    tx: optax.GradientTransformationExtraArgs
    shared: dict[str, jax.Array]
    checkpoints: checkpoint.Checkpoints
    interrupt: interrupt.Interrupt
    table: tabular.Table | natsbench.NatsBench | None
    is_primary_host: bool  # of the processes on many hosts, one does
    budget: expected_cost.Budget | None = None

    def key(self, use: int) -> jax.Array:
        """The run's key for one of its uses."""
        return key_for(self.config.seed, use)

    def model(
        self, spec: genotype.NetSpec, start: ml_collections.ConfigDict | None = None
    ) -> SuperNet:
        """The network; `start` has alpha's biases at its start, if not `config.arch`."""
        return builders.make_supernet(self.config, spec, start)

    def step_config(self, spec: genotype.NetSpec) -> StepConfig:
        d, a = self.config.data, self.config.arch
        return StepConfig(
            model=self.model(spec),
            tx=self.tx,
            schedule=self.schedule,
            augmentation=augment.Augmentation(d.crop_padding, d.flip, d.cutout),
            warmup_mode=Mode(self.config.warmup.operations),
            arch_micro_batches=a.micro_batches,
            arch_samples=a.samples,
            penalty=self._penalty(spec),
            second_order=self.config.search.second_order,
        )

    def _penalty(self, spec):
        """What alpha pays besides its loss, a function of its tree; `None` if nothing."""
        anchor, terms = self.config.arch.anchor, []
        if spec.is_derived():
            return None
        if self.budget is not None:
            terms.append(self.budget.penalty(spec))
        if anchor:
            paths = [spec.alpha_path(row.group, row.member) for row in spec.rows()]
            terms.append(
                lambda arch: (
                    anchor
                    * sum(estimators.anchor_distance(genotype.at(arch, p)['alpha']) for p in paths)
                )
            )
        return (lambda arch: sum(term(arch) for term in terms)) if terms else None

    def measure_costs(self, spec: genotype.NetSpec) -> None:
        """Measures what the budget needs for `spec`; the devices must be idle."""
        if self.budget is not None and not spec.is_derived():
            self.budget.measure_costs(spec, self.workdir, self.is_primary_host)

    def slots(self) -> int:
        """Steps that one compiled call has room for."""
        if self.data.images.arrays is not None:
            return self.config.chunk_steps
        batch_bytes = self.config.batch_size * math.prod(self.data.image_shape)
        return max(1, min(self.config.chunk_steps, _STREAMED_BYTES // batch_bytes))


def on_devices(held: SearchState) -> Packed:
    """Packs a state, and puts a copy on every device."""
    return pmap.replicated(Packed.of(jax.device_get(held)))


@dataclasses.dataclass
class RunState:
    """Where a run is. `phase` is the last phase that was entered; `history` what it has to tell.

    `packed` is the state as the devices hold it, `state` a copy of it on the host.
    """

    spec: genotype.NetSpec
    packed: Packed
    phase: Phase | None
    history: RunHistory = dataclasses.field(default_factory=RunHistory)
    programs: Programs | None = None
    ahead: concurrent.futures.Future | None = None  # what is compiled for a growth to come
    upcoming: concurrent.futures.Future | None = None  # the programs of the next phase

    @property
    def row(self) -> dict[str, Any]:
        """What is told of the phase that was entered last."""
        return self.history.phases[-1]

    @property
    def state(self) -> SearchState:
        """A copy on the host."""
        return jax.tree.map(np.array, self.packed).unpack()

    @state.setter
    def state(self, held: SearchState) -> None:
        self.packed = on_devices(held)

    @property
    def step(self) -> int:
        return int(self.packed.vectors.step)

    def meta(self) -> dict[str, Any]:
        """The description that a checkpoint holds beside the arrays."""
        return {
            'spec': self.spec.to_json(),
            'phase': self.phase,
            'told': dataclasses.asdict(self.history),
        }

    def use(self, programs: Programs) -> None:
        """Goes on with these programs."""
        self.programs = programs
        parts = [programs.train, programs.statistics, programs.evaluate]
        parts = [part for part in parts if part]
        seconds = [part.compile_seconds for part in parts]
        self.row['compile_seconds'] += sum(seconds)
        logger.info(
            'compiled %s: %s s; %.0f MiB of memory at the peak',
            programs.kind,
            ' + '.join(f'{s:.1f}' for s in seconds),
            max(part.peak_bytes for part in parts) / 2**20,
        )
