"""The compiled programs. The only room that maps over devices.

    train(packed, batch, shared) -> (packed, metrics)       evaluate(packed, batch, shared) -> sums
    statistics(packed, batch, shared) -> packed

`batch` is cut along its first axis, one piece per device; `packed`, the state, and `shared` go in
whole.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.data.dataset import Dataset
from asose_jax.train import steps
from asose_jax.train.phases import Phase
from asose_jax.train.step_config import AXIS, StepConfig

# Wide vectors have more registers: a step takes 15 % less. Where a CPU has none, this says nothing.
_WIDE = {'xla_cpu_prefer_vector_width': 512}
# The library that jax 0.10 gives convolutions to runs most of them on one core: 12 % of a step.
_OWN_CONV = {
    'xla_cpu_experimental_ynn_fusion_type': (
        'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
    )
}
_OPTIONS = {'cpu': _WIDE | (_OWN_CONV if jax.__version_info__ < (0, 11) else {})}


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A compiled call, what compiling it cost, and what it will take of a device's memory."""

    call: Callable[..., Any]
    compile_seconds: float
    peak_bytes: int


def shared_arrays(images: Dataset, key: jax.Array) -> dict[str, jax.Array]:
    """What every step reads and none changes, on every device: key, statistics, resident images."""
    shared = {'key': key, 'mean': images.mean, 'std': images.std}
    if images.images.arrays is not None:
        shared['images'], shared['labels'] = images.images.arrays
    return replicated(shared)


def replicated(tree: Any) -> Any:
    """`tree` with a whole copy on every device, so that calls need not send it again."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated_sharding())
    return jax.tree.map(_copied_by_every_host, tree)


def _copied_by_every_host(leaf):
    if jax.dtypes.issubdtype(getattr(leaf, 'dtype', None), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_copied_by_every_host(jax.random.key_data(leaf)))
    return jax.make_array_from_process_local_data(replicated_sharding(), np.asarray(leaf))


def replicated_sharding() -> jax.sharding.Sharding:
    """The placement of `state` and `shared`: a whole copy on every device."""
    return _placed(jax.sharding.PartitionSpec())


def host_shard(batch: np.ndarray) -> np.ndarray:
    """The rows of a batch `[B, ...]` that belong to this host's devices."""
    if jax.process_count() == 1:
        return batch
    own = [d.process_index == jax.process_index() for d in jax.devices()]
    each = batch.reshape(len(own), -1, *batch.shape[1:])
    return each[own].reshape(-1, *batch.shape[1:])


def shard_to_devices(chunk: Any) -> Any:
    """This host's arrays `[D, ...]` on their way to its devices, a piece to each; does not wait."""
    placed = _placed(jax.sharding.PartitionSpec(AXIS))
    if jax.process_count() == 1:
        return jax.device_put(chunk, placed)
    join = functools.partial(jax.make_array_from_process_local_data, placed)
    return jax.tree.map(join, chunk)


def _placed(how):
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), (AXIS,)), how)


class HostConsensus:
    """Numbers that all hosts see alike: of each, the largest that any of them gave.

    On one host it is known at once. On many, the hosts' numbers meet on the devices, behind what is
    queued there, and the answer is to the call before: nobody has to wait for it.
    """

    def __init__(self, count: int):
        self._before = np.zeros((1, count), np.int32)

    def __call__(self, *numbers: int) -> list[int]:
        """`count` numbers; all hosts must call this at the same place of the run."""
        if jax.process_count() == 1:
            return list(numbers)
        answer = np.asarray(self._before)[0].tolist()
        mine = np.tile(np.int32(numbers), (jax.local_device_count(), 1))
        self._before = _largest(shard_to_devices(mine))
        return answer


@jax.jit
def _largest(numbers):
    return numbers.max(0, keepdims=True)


def fetch_replicated(per_device: Any) -> Any:
    """The host's copy of what is the same on all devices, `[D, ...]` to `[...]`; asks no device."""
    return jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data)[0], per_device)


def local_shards(per_device: jax.Array) -> np.ndarray:
    """The host's copy of what its own devices have, `[D, ...]`, each another piece."""
    return np.concatenate([shard.data for shard in per_device.addressable_shards])


def compile_train(step_config: StepConfig, phase: Phase, *example: Any) -> Program:
    """Compiles the training call of (network, phase). `example`: packed, batch, shared."""
    function = functools.partial(steps.train_steps, step_config, phase)
    return _compile(function, example, out_axes=(None, 0), donate_argnums=0)


def compile_statistics(step_config: StepConfig, phase: Phase, *example: Any) -> Program:
    """Compiles what gives an evaluation its statistics. `example`: packed, batch, shared."""
    del phase  # the same in all
    function = functools.partial(steps.own_statistics, step_config)
    return _compile(function, example, out_axes=None, donate_argnums=0)


def compile_eval(step_config: StepConfig, phase: Phase, *example: Any) -> Program:
    """Compiles the evaluating call of (network, phase). `example`: packed, batch, shared."""
    return _compile(functools.partial(steps.eval_steps, step_config, phase), example, out_axes=0)


def _compile(function, example, **how):
    call = jax.pmap(function, axis_name=AXIS, in_axes=(None, 0, None), **how)
    start = time.perf_counter()
    if jax.process_count() > 1:
        example = jax.tree.map(_concrete, example)
    compiled = optimized(call.lower(*example))
    return Program(compiled, time.perf_counter() - start, _peak_bytes(compiled))


def optimized(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The program, compiled as all of them are that run for long."""
    return lowered.compile(compiler_options=_OPTIONS.get(jax.default_backend()))


def _concrete(leaf):
    """On many hosts, pmap is not lowered for what is only a shape."""
    return np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _peak_bytes(compiled):
    """What comes in, what goes out elsewhere, and what is held in between."""
    memory = compiled.memory_analysis()
    if memory is None:  # not every platform tells
        return 0
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The compiled calls of one network in one way of using it; search and growth use it alike.

    Attributes:
      spec: of the network.
      kind: of using it.
      train: steps; `None` if there will be none.
      statistics: comes before an evaluation, see `refresh_statistics`; `None` if running ones do.
      evaluate: an evaluation.
    """

    spec: genotype.NetSpec
    kind: str
    train: Program | None
    statistics: Program | None
    evaluate: Program
