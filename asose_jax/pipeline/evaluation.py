"""Evaluates the current network: accuracy, loss, and the BatchNorm statistics that it takes."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from asose_jax.data import batches
from asose_jax.nn import factors
from asose_jax.pipeline.run_context import Current, Setup
from asose_jax.spaces.supernet import SECOND_HEAD
from asose_jax.train import pmap

_STATISTICS = 3  # a stream of batches of train; `loop` has another


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
