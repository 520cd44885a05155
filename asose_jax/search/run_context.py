"""What a run holds while it runs: its fixed setup, where it is, and its compiled programs."""

import concurrent.futures
import dataclasses
import itertools
import logging
import math
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import rich.console

from asose_jax.arch import estimators, genotype, gumbel
from asose_jax.config.validation import begins_exactly
from asose_jax.costs import expected_cost, flops
from asose_jax.data import batches
from asose_jax.data.dataset import Data
from asose_jax.nn import factors
from asose_jax.nn.forward import Mode, SearchSettings
from asose_jax.runtime import interrupt
from asose_jax.search.run_history import Told
from asose_jax.spaces import natsbench, tabular
from asose_jax.spaces.supernet import SECOND_HEAD, SuperNet
from asose_jax.train import checkpoint, pmap, state
from asose_jax.train.phases import Phase, Plan, Span
from asose_jax.train.state import Packed, SearchState
from asose_jax.train.step_config import AXIS, Recipe

logger = logging.getLogger('asose_jax')

# Uses of the run's key, told apart.
STEPS, INIT, TRANSITION, GROWTH, CURVATURE, SELECTION, DERIVATION = range(7)
_STATISTICS = 3  # a stream of batches of train; `loop` has another
_STREAMED_BYTES = 2**26  # of images in one call, where they are not resident


def key_for(seed: int, use: int) -> jax.Array:
    """The key of a run for one of its uses."""
    return jax.random.fold_in(jax.random.key(seed), use)


def model_of(
    config: ml_collections.ConfigDict,
    spec: genotype.NetSpec,
    start: ml_collections.ConfigDict | None = None,
) -> SuperNet:
    """The network as a run with this config trains it; see `Setup.model`."""
    c, start = config, config.arch if start is None else start
    settings = SearchSettings(
        init_std=c.arch.init_std,
        none_bias=start.none_bias,
        skip_bias=start.skip_bias,
        estimator=c.search.estimator,
        noise=c.search.noise or 'temperature',  # no matter where an estimator has none
        thresholds=gumbel.Thresholds(*c.search.thresholds),
        remat=c.model.remat,
        guard=c.guard.alpha,
        drop_path=c.optimize.drop_path,
        second_head=c.optimize.second_head,
        exact_start=begins_exactly(c),
        auxiliary_skip=c.search.auxiliary_skip,
    )
    return SuperNet(spec, settings, c.model.dtype, synced_over=AXIS)


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What does not change during a run."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    console: rich.console.Console
    data: Data
    plan: Plan
    tx: optax.GradientTransformationExtraArgs
    shared: dict[str, jax.Array]
    checkpoints: checkpoint.Checkpoints
    asked: interrupt.Interrupt
    table: tabular.Table | natsbench.NatsBench | None
    writes: bool  # of the processes on many hosts, one does
    budget: expected_cost.Budget | None = None

    def key(self, use: int) -> jax.Array:
        """The run's key for one of its uses."""
        return key_for(self.config.seed, use)

    def model(
        self, spec: genotype.NetSpec, start: ml_collections.ConfigDict | None = None
    ) -> SuperNet:
        """The network; `start` has alpha's biases at its start, if not `config.arch`."""
        return model_of(self.config, spec, start)

    def recipe(self, spec: genotype.NetSpec) -> Recipe:
        d, a = self.config.data, self.config.arch
        return Recipe(
            model=self.model(spec),
            tx=self.tx,
            plan=self.plan,
            augmentation=batches.Augmentation(d.crop_padding, d.flip, d.cutout),
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

    def settle(self, spec: genotype.NetSpec) -> None:
        """Measures what the budget needs for `spec`; the devices must be idle."""
        if self.budget is not None and not spec.is_derived():
            self.budget.settle(spec, self.workdir, self.writes)

    def slots(self) -> int:
        """Steps that one compiled call has room for."""
        if self.data.images.arrays is not None:
            return self.config.chunk_steps
        batch_bytes = self.config.batch_size * math.prod(self.data.image_shape)
        return max(1, min(self.config.chunk_steps, _STREAMED_BYTES // batch_bytes))


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The compiled calls of one network in one way of using it; search and growth use it alike.

    Attributes:
      spec: of the network.
      way: of using it.
      train: steps; `None` if there will be none.
      statistics: comes before an evaluation, see `refresh_statistics`; `None` if running ones do.
      evaluate: an evaluation.
    """

    spec: genotype.NetSpec
    way: str
    train: pmap.Program | None
    statistics: pmap.Program | None
    evaluate: pmap.Program


def on_devices(held: SearchState) -> Packed:
    """Packs a state, and puts a copy on every device."""
    return pmap.replicated(Packed.of(jax.device_get(held)))


@dataclasses.dataclass
class Current:
    """Where a run is. `phase` is the last phase that was entered; `told` what it has to tell.

    `packed` is the state as the devices hold it, `state` a copy of it on the host.
    """

    spec: genotype.NetSpec
    packed: Packed
    phase: Phase | None
    told: Told = dataclasses.field(default_factory=Told)
    programs: Programs | None = None
    ahead: concurrent.futures.Future | None = None  # what is compiled for a growth to come
    upcoming: concurrent.futures.Future | None = None  # the programs of the next phase

    @property
    def row(self) -> dict[str, Any]:
        """What is told of the phase that was entered last."""
        return self.told.phases[-1]

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
            'told': dataclasses.asdict(self.told),
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
            programs.way,
            ' + '.join(f'{s:.1f}' for s in seconds),
            max(part.peak_bytes for part in parts) / 2**20,
        )


def compile_programs(
    setup: Setup, current: Current, phase: Phase, batch: dict[str, np.ndarray] | None
) -> None:
    """Makes `current.programs` those of (network, phase), unless they are. See `compiled`."""
    wanted, ready = (current.spec, _way(phase)), current.programs
    if ready and (ready.spec, ready.way) == wanted:
        return
    upcoming, current.upcoming = current.upcoming, None
    if upcoming is not None:
        if not upcoming.done():
            logger.info('%s: waiting for the compiler', phase)
        programs = upcoming.result()
        if (programs.spec, programs.way) == wanted:
            current.use(programs)
            return
    logger.info('compiling %s%s', _way(phase), _left(setup, phase))
    current.use(compiled(setup, current.spec, phase, batch))


def _left(setup, phase):
    """Names what a run has to compile after the programs of this phase."""
    phases = [span.phase for span in setup.plan.spans]
    order = list(Phase)
    names = [_way(later) for later in order[order.index(phase) + 1 :] if later in phases]
    names = list(dict.fromkeys(name for name in names if name != _way(phase)))
    if phase is not Phase.OPTIMIZE and Phase.GROWTH in phases and setup.config.growth.kinds:
        names.insert('search' in names, 'every grown network')
    return f'; still to come: {", ".join(names)}' if names else ''


def compile_upcoming(
    setup: Setup, current: Current, span: Span, batch: dict[str, np.ndarray]
) -> None:
    """Compiles the next phase's programs while `span` runs, where the network will be the same."""
    later = [other for other in setup.plan.spans if other.start >= span.stop]
    if not later or current.upcoming is not None:
        return
    phase, spec = later[0].phase, current.spec
    derives = phase is Phase.OPTIMIZE and not spec.is_derived()
    if not derives and _way(phase) != _way(span.phase):
        logger.info('compiling %s meanwhile%s', _way(phase), _left(setup, phase))
        current.upcoming = in_background(lambda: compiled(setup, spec, phase, batch))


def in_background(function: Callable[[], Any]) -> concurrent.futures.Future:
    """Unlike a pool's, this thread does not keep a stopped program waiting for the compiler."""
    future = concurrent.futures.Future()

    def work():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def compiled(
    setup: Setup, spec: genotype.NetSpec, phase: Phase, batch: dict[str, np.ndarray] | None
) -> Programs:
    """The programs of (network, phase).

    Args:
      setup: of the run.
      spec: of the network.
      phase: how it is used.
      batch: an example of a chunk to train on; `None` if there will be no training.
    """
    flops.forward_flops(spec)  # counted once for each network: here nobody waits for it
    recipe = setup.recipe(spec)
    like = state.abstract_packed(recipe.model, setup.tx, pmap.everywhere())
    train = None
    if batch is not None:
        train = pmap.compile_train(recipe, phase, like, batch, setup.shared)
    example, statistics = next(eval_chunks(setup, setup.data.valid)), None
    searched = recipe.eval_mode(phase) is Mode.ARGMAX and not spec.is_derived()
    if searched and setup.config.search.statistics_batches:
        given = next(_statistics_chunks(setup))
        statistics = pmap.compile_statistics(recipe, phase, like, given, setup.shared)
    evaluate = pmap.compile_eval(recipe, phase, like, example, setup.shared)
    return Programs(spec, _way(phase), train, statistics, evaluate)


def _way(phase):
    return 'search' if phase.searches else str(phase)


def eval_chunks(setup: Setup, pool: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """`pool` once, in order, as chunks; the last batch is filled up with images of weight 0."""
    size, slots = setup.config.batch_size, setup.slots()
    count = -(-len(pool) // size)
    padded = np.resize(pool, count * size).reshape(count, size)
    weights = (np.arange(count * size) < len(pool)).reshape(count, size).astype(np.float32)
    own = pmap.own_part
    stream = batches.stream(setup.data.images, lambda number: own(padded[number]), 0, count)
    weighted = ({**batch, 'weight': own(weights[i])} for i, batch in enumerate(stream))
    while taken := list(itertools.islice(weighted, slots)):
        yield pmap.send(batches.chunk(taken, slots, jax.local_device_count()))


def normalised(setup: Setup, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of these indices, as networks see them, and their labels."""
    images, labels = setup.data.images.read(chosen)
    return (images - setup.data.mean) / setup.data.std, labels


def refresh_statistics(setup: Setup, current: Current) -> None:
    """Gives the current network's BatchNorms statistics that are its own, before an evaluation.

    Those of a supernet are means over draws. The network that alpha makes most likely is evaluated
    with means over a few training batches, always the same ones, and goes on with them: training
    does not read them, and a network that alpha derives begins with them.
    """
    if current.programs.statistics is None:
        return
    call = current.programs.statistics.call
    for chunk in _statistics_chunks(setup):
        current.packed = call(current.packed, chunk, setup.shared)


def _statistics_chunks(setup):
    c, train = setup.config, setup.data.train
    numbers = range(c.search.statistics_batches)
    pool = [batches.batch_indices(train, c.seed, _STATISTICS, i, c.batch_size) for i in numbers]
    for i, chunk in enumerate(eval_chunks(setup, np.concatenate(pool))):
        done = np.full(jax.local_device_count(), i * setup.slots(), np.int32)
        yield {**chunk, 'done': pmap.send(done)}


def evaluate(setup: Setup, current: Current, pool: np.ndarray) -> list[dict[str, jax.Array]]:
    """Queues an evaluation of the current network on all images of `pool`; does not wait for it."""
    call = current.programs.evaluate.call
    return [call(current.packed, b, setup.shared) for b in eval_chunks(setup, pool)]


def means(sums: list[dict[str, jax.Array]]) -> tuple[float, float]:
    """Mean loss and accuracy of an evaluation; waits for it."""
    loss, correct, images = (
        math.fsum(number for part in sums for number in pmap.on_host(part[key]))
        for key in ('loss', 'correct', 'images')
    )
    return loss / images, correct / images


def accuracy(setup: Setup, current: Current, pool: np.ndarray) -> float:
    """Accuracy of the current network over all images of `pool`."""
    return means(evaluate(setup, current, pool))[1]


def count_parameters(current: Current) -> int:
    """Numbers in `params` of the current network; see `parameters_in`."""
    return parameters_in(current.packed.layout.like.params)


def parameters_in(params: Mapping[str, Any]) -> int:
    """Counts the numbers in `params`, without factors and a head that only training has."""
    return factors.count({name: tree for name, tree in params.items() if name != SECOND_HEAD})
