"""The context of a run, which stays the same, and its state, which changes from step to step."""

import concurrent.futures
import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import ml_collections
import numpy as np
import optax
import rich.console

from asose_jax.arch import estimators, genotype
from asose_jax.costs import expected_cost
from asose_jax.costs.latency import Latencies
from asose_jax.costs.limit import CostLimit
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

# Uses of the run's random key. Each number is folded into it, so that no two share their noise.
STEPS, INIT, TRANSITION, GROWTH, CURVATURE, SELECTION, DERIVATION = range(7)
# Bytes of images in one call, where images are streamed from disk.
_STREAMED_BYTES = 2**26


def key_for(seed: int, use: int) -> jax.Array:
    """Returns the random key of a run for one of its uses.

    Args:
      seed: `config.seed`.
      use: one of the constants above, such as `STEPS`.
    """
    return jax.random.fold_in(jax.random.key(seed), use)


@dataclasses.dataclass(frozen=True, eq=False)
class RunContext:
    """Everything that stays the same during a run.

    The one exception: where a search ends early, the run goes on with a copy that has another
    `schedule` and `tx`.

    Attributes:
      config: see `configs/search.py`.
      workdir: where checkpoints and results are written.
      console: where the progress bar is drawn.
      data: the images, their split and their statistics.
      schedule: phases, turns and temperatures by step.
      tx: optimizer of weights and alpha.
      shared: arrays that every compiled call reads, on all devices, see `pmap.shared_arrays`.
      checkpoints: those in the workdir.
      interrupt: says whether a signal has asked the run to stop.
      table: published accuracies of architectures, if the config names such a table.
      is_primary_host: whether this process writes files; of the processes on many hosts, one does.
      platform: of the devices that run the programs, see `pmap.platform`.
      budget: price on the cost of the derived network, if there is one.
      limit: limits on that cost, if there are any.
      latencies: measured latencies, if the budget or a limit needs them.
      class_weights: weights of the classes in the training loss, see `builders.make_class_weights`.
      only_warmup: whether this process stops at the end of warmup, from which others go on.
    """

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
    is_primary_host: bool
    platform: str
    budget: expected_cost.Budget | None = None
    limit: CostLimit | None = None
    latencies: Latencies | None = None
    class_weights: np.ndarray | None = None
    only_warmup: bool = False

    def key(self, use: int) -> jax.Array:
        """Returns the run's random key for one of its uses, see `key_for`."""
        return key_for(self.config.seed, use)

    def model(
        self, spec: genotype.NetSpec, start: ml_collections.ConfigDict | None = None
    ) -> SuperNet:
        """Returns the network of a description, as this run trains it.

        Args:
          spec: description of the network.
          start: has the initial biases of alpha, `none_bias` and `skip_bias`; `None` means
            `config.arch`.
        """
        return builders.make_supernet(self.config, spec, start, self.platform)

    def step_config(self, spec: genotype.NetSpec) -> StepConfig:
        """Returns what is compiled into the training and evaluation steps of a network."""
        d, a = self.config.data, self.config.arch
        return StepConfig(
            model=self.model(spec),
            tx=self.tx,
            schedule=self.schedule,
            augmentation=augment.Augmentation(d.crop_padding, d.flip, d.cutout),
            warmup_mode=Mode(self.config.warmup.operations),
            arch_micro_batches=a.micro_batches,
            arch_samples=a.samples,
            class_weights=self.class_weights,
            penalty=self._penalty(spec),
            second_order=self.config.search.second_order,
            recipe=builders.make_recipe(self.config),
            frozen=self.config.optimize.frozen,
        )

    def _penalty(self, spec: genotype.NetSpec) -> Callable[[Any], jax.Array] | None:
        """Returns the terms that alpha's loss adds to that of the images, or `None` without any."""
        terms = []
        if spec.is_derived():
            return None
        if self.budget is not None:
            terms.append(self.budget.penalty(spec))
        if self.config.arch.anchor:
            terms.append(self._anchor_penalty(spec))
        if not terms:
            return None
        return lambda arch: cast(jax.Array, sum(term(arch) for term in terms))

    def _anchor_penalty(self, spec: genotype.NetSpec) -> Callable[[Any], jax.Array]:
        anchor = self.config.arch.anchor
        paths = [spec.alpha_path(row.group, row.member) for row in spec.rows()]
        return lambda arch: (
            anchor
            * sum(estimators.anchor_distance(genotype.subtree(arch, p)['alpha']) for p in paths)
        )

    def most_likely(self, spec: genotype.NetSpec, arch: Mapping[str, Any]) -> genotype.Genotype:
        """Returns the genotype that would be derived: the most likely one within `limit`."""
        if self.limit is None:
            return genotype.most_likely(spec, arch)
        return self.limit.most_likely(spec, arch)

    def measure_costs(self, spec: genotype.NetSpec) -> None:
        """Determines the costs that budget and limit need for `spec`, and writes costs.json.

        The devices must be idle, since latencies may be among the costs.
        """
        kinds = {} if self.limit is None else dict(self.limit.largest)
        if self.budget is not None:
            kinds[self.budget.kind] = self.budget.target
        for part in (self.budget, self.limit):
            if part is not None and not spec.is_derived():
                part.log_reach(spec)
        self.save_latencies()
        if kinds and not spec.is_derived() and self.is_primary_host:
            meters = expected_cost.meters_by_kind(self.latencies)
            names = dict.fromkeys(['flops', 'params', *kinds])
            expected_cost.write_costs(spec, {name: meters[name] for name in names}, self.workdir)

    def save_latencies(self) -> None:
        """Writes new latencies to the workdir, on the primary host."""
        if self.is_primary_host and self.latencies is not None:
            self.latencies.save()

    def slots(self) -> int:
        """Returns the number of steps that one compiled call has room for."""
        if self.data.images.arrays is not None:
            return self.config.chunk_steps
        batch_bytes = self.config.batch_size * math.prod(self.data.image_shape)
        return max(1, min(self.config.chunk_steps, _STREAMED_BYTES // batch_bytes))


def pack_to_devices(state: SearchState) -> Packed:
    """Packs a state and puts a copy of it on every device."""
    return pmap.replicated(Packed.of(jax.device_get(state)))


@dataclasses.dataclass
class RunState:
    """Where a run is.

    Attributes:
      spec: description of the current network.
      packed: state of the training, as the devices hold it.
      phase: the phase that was entered last; before the first one, that which the checkpoint of
        `init_from` was saved in, or `None`.
      history: metadata of the run so far, a part of every checkpoint.
      programs: compiled programs in use; `None` before the first.
      ahead: for a growth that is decided, a future of its programs and of a fresh state of the
        grown network, see `growth.controller.prepare`.
      upcoming: a future of the programs of the next phase, see `compilation.compile_upcoming`.
    """

    spec: genotype.NetSpec
    packed: Packed
    phase: Phase | None
    history: RunHistory = dataclasses.field(default_factory=RunHistory)
    programs: Programs | None = None
    ahead: concurrent.futures.Future[tuple[Programs, SearchState]] | None = None
    upcoming: concurrent.futures.Future[Programs] | None = None

    @property
    def programs_in_use(self) -> Programs:
        """The compiled programs in use, once there are any."""
        assert self.programs is not None, 'compile_programs comes before steps and evaluations'
        return self.programs

    @property
    def row(self) -> dict[str, Any]:
        """The row of `history.phases` for the phase that was entered last."""
        return self.history.phases[-1]

    @property
    def state(self) -> SearchState:
        """A copy of the state on the host. Setting it puts a state on the devices."""
        return jax.tree.map(np.array, self.packed).unpack()

    @state.setter
    def state(self, state: SearchState) -> None:
        self.packed = pack_to_devices(state)

    @property
    def step(self) -> int:
        """The number of steps that are done, over the whole run."""
        return int(self.packed.vectors.step)

    def adopt_average(self) -> None:
        """Puts the averaged weights in the place of the weights, if there is an average."""
        vectors = self.packed.vectors
        self.packed = self.packed.replace(
            vectors=vectors.replace(params=vectors.evaluated['params'])
        )

    def meta(self) -> dict[str, Any]:
        """Returns the description that a checkpoint stores beside the arrays, as JSON."""
        return {
            'spec': self.spec.to_json(),
            'phase': self.phase,
            'told': dataclasses.asdict(self.history),
        }

    def use(self, programs: Programs) -> None:
        """Switches to newly compiled programs; logs and counts how long they took to compile."""
        self.programs = programs
        parts = {
            'training': programs.train,
            'statistics': programs.statistics,
            'evaluation': programs.evaluate,
        }
        compiled = {name: program for name, program in parts.items() if program}
        seconds = {name: program.compile_seconds for name, program in compiled.items()}
        self.row['compile_seconds'] += sum(seconds.values())
        logger.info(
            'compiled %s in %.1f s (%s); peak memory %.0f MiB per device',
            programs.kind,
            sum(seconds.values()),
            ', '.join(f'{name} {s:.1f}' for name, s in seconds.items()),
            max(program.peak_bytes for program in compiled.values()) / 2**20,
        )
