"""Evaluates the current network: accuracy, loss, and the BatchNorm statistics that it takes."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from asose_jax.data import batches
from asose_jax.nn import factors
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces.supernet import SECOND_HEAD
from asose_jax.train import pmap

_STATISTICS = 3  # a stream of batches of train; `loop` has another


def eval_chunks(context: RunContext, pool: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """`pool` once, in order, as chunks; the last batch is filled up with images of weight 0."""
    size, slots = context.config.batch_size, context.slots()
    count = -(-len(pool) // size)
    padded = np.resize(pool, count * size).reshape(count, size)
    weights = (np.arange(count * size) < len(pool)).reshape(count, size).astype(np.float32)
    own = pmap.host_shard
    stream = batches.stream(context.data.images, lambda number: own(padded[number]), 0, count)
    weighted = ({**batch, 'weight': own(weights[i])} for i, batch in enumerate(stream))
    while taken := list(itertools.islice(weighted, slots)):
        yield pmap.shard_to_devices(batches.chunk(taken, slots, jax.local_device_count()))


def normalized_images(context: RunContext, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images of these indices, as networks see them, and their labels."""
    images, labels = context.data.images.read(chosen)
    return (images - context.data.mean) / context.data.std, labels


def refresh_statistics(context: RunContext, current: RunState) -> None:
    """Gives the current network's BatchNorms statistics that are its own, before an evaluation.

    Those of a supernet are means over draws. The network that alpha makes most likely is evaluated
    with means over a few training batches, always the same ones, and goes on with them: training
    does not read them, and a network that alpha derives begins with them.
    """
    if current.programs.statistics is None:
        return
    call = current.programs.statistics.call
    for chunk in _statistics_chunks(context):
        current.packed = call(current.packed, chunk, context.shared)


def _statistics_chunks(context):
    c, train = context.config, context.data.train
    numbers = range(c.search.statistics_batches)
    pool = [batches.batch_indices(train, c.seed, _STATISTICS, i, c.batch_size) for i in numbers]
    for i, chunk in enumerate(eval_chunks(context, np.concatenate(pool))):
        done = np.full(jax.local_device_count(), i * context.slots(), np.int32)
        yield {**chunk, 'done': pmap.shard_to_devices(done)}


def evaluate(
    context: RunContext, current: RunState, pool: np.ndarray
) -> list[dict[str, jax.Array]]:
    """Queues an evaluation of the current network on all images of `pool`; does not wait for it."""
    call = current.programs.evaluate.call
    return [call(current.packed, b, context.shared) for b in eval_chunks(context, pool)]


def mean_loss_and_accuracy(sums: list[dict[str, jax.Array]]) -> tuple[float, float]:
    """Mean loss and accuracy of an evaluation; waits for it."""
    loss, correct, images = (
        math.fsum(number for part in sums for number in pmap.fetch_replicated(part[key]))
        for key in ('loss', 'correct', 'images')
    )
    return loss / images, correct / images


def accuracy(context: RunContext, current: RunState, pool: np.ndarray) -> float:
    """Accuracy of the current network over all images of `pool`."""
    return mean_loss_and_accuracy(evaluate(context, current, pool))[1]


def count_parameters(current: RunState) -> int:
    """Numbers in `params` of the current network; see `parameters_in`."""
    return count_parameters_in(current.packed.layout.like.params)


def count_parameters_in(params: Mapping[str, Any]) -> int:
    """Counts the numbers in `params`, without factors and a head that only training has."""
    return factors.count({name: tree for name, tree in params.items() if name != SECOND_HEAD})
