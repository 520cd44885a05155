"""Compiles the programs of a run; the only module that maps over devices.

    train(packed, batch, shared)      -> packed, metrics
    evaluate(packed, batch, shared)   -> sums
    statistics(packed, batch, shared) -> packed

`batch` holds arrays `[D, ...]`, one row per device; every device gets all of `packed`, the state,
and of `shared`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from asose_jax.arch import genotype
from asose_jax.data.dataset import Dataset
from asose_jax.train import steps
from asose_jax.train.phases import Phase
from asose_jax.train.step_config import AXIS, StepConfig

# Wide vectors have more registers: a step takes 15 % less. No effect on a CPU without them.
_WIDE_VECTORS = {'xla_cpu_prefer_vector_width': 512}
# Keeps convolutions away from the library that jax 0.10 uses for them. It runs most of them on one
# core, which costs 12 % of a step.
_NO_LIBRARY_CONVOLUTIONS = {
    'xla_cpu_experimental_ynn_fusion_type': (
        'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE'
    )
}
_OPTIONS: dict[str, dict[str, Any]] = {
    'cpu': _WIDE_VECTORS | (_NO_LIBRARY_CONVOLUTIONS if jax.__version_info__ < (0, 11) else {})
}


def platform() -> str:
    """Returns the platform of the devices that run the programs: 'cpu', 'gpu' or 'tpu'."""
    return jax.devices()[0].platform


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Holds a compiled program and its costs.

    Attributes:
      call: the program; its arguments must have the shapes and dtypes that it was compiled for.
      compile_seconds: seconds of lowering and compilation.
      peak_bytes: bytes of a device's memory that a call needs; 0 if the platform does not tell.
    """

    call: Callable[..., Any]
    compile_seconds: float
    peak_bytes: int


def shared_arrays(images: Dataset, key: jax.Array) -> dict[str, jax.Array]:
    """Copies to every device what all steps read and none changes.

    Args:
      images: the data set.
      key: random key of the run.

    Returns:
      `key`; `mean` and `std` of the channels, `[C]` float32; and, if the images are resident,
      `images` `[N, H, W, C]` and `labels` `[N]`.
    """
    shared = {'key': key, 'mean': images.mean, 'std': images.std}
    if images.images.arrays is not None:
        shared['images'], shared['labels'] = images.images.arrays
    return replicated(shared)


def replicated(tree: Any) -> Any:
    """Copies a tree to every device, so that calls need not send it again."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated_sharding())
    return jax.tree.map(_replicate_from_every_host, tree)


def _replicate_from_every_host(leaf: Any) -> jax.Array:
    is_a = jax.dtypes.issubdtype  # pyright: ignore[reportPrivateImportUsage]  # is public
    if is_a(getattr(leaf, 'dtype', None), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_replicate_from_every_host(jax.random.key_data(leaf)))
    return jax.make_array_from_process_local_data(replicated_sharding(), np.asarray(leaf))


def replicated_sharding() -> jax.sharding.Sharding:
    """Returns the placement of the state and `shared`: a full copy on every device."""
    return _sharding(jax.sharding.PartitionSpec())


def host_shard(batch: np.ndarray) -> np.ndarray:
    """Returns the rows of a batch `[B, ...]` that belong to this host's devices."""
    if jax.process_count() == 1:
        return batch
    is_local = [d.process_index == jax.process_index() for d in jax.devices()]
    per_device = batch.reshape(len(is_local), -1, *batch.shape[1:])
    return per_device[is_local].reshape(-1, *batch.shape[1:])


def shard_to_devices(chunk: Any) -> Any:
    """Sends a tree of this host's arrays `[D, ...]` to its D devices, a row each; does not wait."""
    sharding = _sharding(jax.sharding.PartitionSpec(AXIS))
    if jax.process_count() == 1:
        return jax.device_put(chunk, sharding)
    make_array = functools.partial(jax.make_array_from_process_local_data, sharding)
    return jax.tree.map(make_array, chunk)


def _sharding(spec: jax.sharding.PartitionSpec) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    return jax.sharding.NamedSharding(mesh, spec)


class HostConsensus:
    """Agrees on numbers between hosts: all see the maximum over hosts of each.

    On one host, a call returns its own numbers. On many, the maximum is computed on the devices,
    behind the work that is queued there, and a call returns the answer to the call before, so that
    no host has to wait; the first call returns zeros.

    Example:
      agree = HostConsensus(2)
      stops, due = agree(interrupt.requested, checkpoints.due())

    Args:
      count: how many numbers each call takes.
    """

    def __init__(self, count: int) -> None:
        """Starts with zeros as the previous numbers."""
        self._previous = np.zeros((1, count), np.int32)

    def __call__(self, *numbers: int) -> list[int]:
        """Returns `count` integers that are the same on all hosts, from those of this one.

        All hosts must call this at the same point of the run.
        """
        if jax.process_count() == 1:
            return list(numbers)
        agreed = np.asarray(self._previous)[0].tolist()
        per_device = np.tile(np.array(numbers, np.int32), (jax.local_device_count(), 1))
        self._previous = _largest(shard_to_devices(per_device))
        return agreed


@jax.jit
def _largest(numbers: jax.Array) -> jax.Array:
    return numbers.max(0, keepdims=True)


def fetch_replicated(per_device: Any) -> Any:
    """Copies arrays that are the same on all devices to the host, `[D, ...]` to `[...]`.

    Reads the copy of one local device and runs no program.
    """
    return jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data)[0], per_device)


def local_shards(per_device: jax.Array) -> np.ndarray:
    """Copies the rows of this host's devices to the host, `[D, ...]`."""
    return np.concatenate([shard.data for shard in per_device.addressable_shards])


def sum_over_hosts(numbers: np.ndarray) -> np.ndarray:
    """Adds up an array of integers over all hosts, which must all call this."""
    if jax.process_count() == 1:
        return numbers
    return multihost_utils.process_allgather(numbers).sum(0)


def compile_train(step_config: StepConfig, phase: Phase, *example: Any) -> Program:
    """Compiles `steps.train_steps`.

    Args:
      step_config: settings of the network's steps.
      phase: phase of the run.
      *example: packed state, batch and `shared`, as arrays or as shapes with a sharding.

    Returns:
      The program; a call donates the buffers of its state.
    """
    function = functools.partial(steps.train_steps, step_config, phase)
    return _compile(function, example, out_axes=(None, 0), donate_argnums=0)


def compile_statistics(step_config: StepConfig, phase: Phase, *example: Any) -> Program:
    """Compiles `steps.recompute_batch_stats`, for before an evaluation; see `compile_train`."""
    del phase  # the program is the same in all phases
    function = functools.partial(steps.recompute_batch_stats, step_config)
    return _compile(function, example, out_axes=None, donate_argnums=0)


def compile_eval(step_config: StepConfig, phase: Phase, *example: Any) -> Program:
    """Compiles `steps.eval_steps`, which donates nothing; see `compile_train`."""
    return _compile(functools.partial(steps.eval_steps, step_config, phase), example, out_axes=0)


def mapped(function: Callable[..., Any], **pmap_options: Any) -> Any:
    """Maps `function(packed, batch, shared)` over all devices."""
    return jax.pmap(function, axis_name=AXIS, in_axes=(None, 0, None), **pmap_options)


def _compile(
    function: Callable[..., Any], example: tuple[Any, ...], **pmap_options: Any
) -> Program:
    """Compiles `function(packed, batch, shared)` over all devices."""
    call = mapped(function, **pmap_options)
    start = time.perf_counter()
    if jax.process_count() > 1:
        example = jax.tree.map(_concrete, example)
    compiled = compile_lowered(call.lower(*example))
    return Program(compiled, time.perf_counter() - start, _peak_bytes(compiled))


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a lowered program with the options of long-running programs on this platform."""
    return lowered.compile(compiler_options=_OPTIONS.get(platform()))


def _concrete(leaf: Any) -> Any:
    """Returns zeros in place of a shape: on many hosts, pmap cannot be lowered for shapes."""
    return np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes of arguments, outputs in new buffers, and temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:  # not every platform has the analysis
        return 0
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """Holds the compiled programs of one network; search and growth share them.

    Attributes:
      spec: description of the network.
      kind: which phases the programs serve, such as `'search'` for search and growth.
      train: training steps; `None` if there will be none.
      statistics: computes the statistics of an evaluation, see `evaluation.refresh_statistics`;
        `None` if evaluations use the running statistics.
      evaluate: an evaluation.
    """

    spec: genotype.NetSpec
    kind: str
    train: Program | None
    statistics: Program | None
    evaluate: Program
