"""Evaluates the current network: accuracy, loss, and BatchNorm statistics for the evaluation."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.arch.genotype import Genotype
from asose_jax.data import batches
from asose_jax.nn import factors
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces.supernet import SECOND_HEAD
from asose_jax.train import pmap
from asose_jax.train.state import Packed

# Tag of a stream of training batches; `training_loop` draws from the same images under another tag.
_STATISTICS_STREAM = 3


def eval_chunks(context: RunContext, pool: np.ndarray) -> Iterator[dict[str, jax.Array]]:
    """Yields all images of a part of the data once, in order, as chunks on the devices.

    A chunk has `context.slots()` batches. The last batch is filled up with images of weight 0.
    """
    size, slots = context.config.batch_size, context.slots()
    count = -(-len(pool) // size)
    padded = np.resize(pool, count * size).reshape(count, size)
    weights = (np.arange(count * size) < len(pool)).reshape(count, size).astype(np.float32)
    own = pmap.host_shard
    stream = batches.batch_stream(context.data.images, lambda number: own(padded[number]), 0, count)
    weighted = ({**batch, 'weight': own(weights[i])} for i, batch in enumerate(stream))
    while taken := list(itertools.islice(weighted, slots)):
        yield pmap.shard_to_devices(batches.stack_batches(taken, slots, jax.local_device_count()))


def normalized_images(context: RunContext, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads images `[N, H, W, C]`, normalised float32 and not augmented, and their labels `[N]`."""
    images, labels = context.data.images.read(indices)
    return (images - context.data.mean) / context.data.std, labels


def refresh_statistics(context: RunContext, current: RunState) -> None:
    """Gives the BatchNorms of the network that is evaluated statistics of its own beforehand.

    The running statistics of a supernet are means over the networks that were drawn. The network
    that alpha makes most likely is evaluated with means over `search.statistics_batches` training
    batches instead, the same ones each time. The state keeps them: training does not read them,
    and a network that is derived from alpha starts with them. A network whose weights are averaged
    (`optimize.ema`) gets them as well, since running statistics are those of the trained weights.
    """
    statistics = current.programs_in_use.statistics
    if statistics is None:
        return
    before, packed = current.packed, _evaluated(context, current)
    is_same = packed is before
    for chunk in statistics_chunks(context):
        packed = statistics.call(packed, chunk, context.shared)
    if not is_same:
        packed = packed.replace(vectors=packed.vectors.replace(arch=before.vectors.arch))
    current.packed = packed


def statistics_chunks(context: RunContext) -> Iterator[dict[str, jax.Array]]:
    """Yields the training batches of `refresh_statistics`, as chunks on the devices.

    Each has, beside the images, `done`: the number of batches in the chunks before.
    """
    c, train = context.config, context.data.train
    pool = [
        batches.batch_indices(train, c.seed, _STATISTICS_STREAM, number, c.batch_size)
        for number in range(c.search.statistics_batches)
    ]
    for i, chunk in enumerate(eval_chunks(context, np.concatenate(pool))):
        done = np.full(jax.local_device_count(), i * context.slots(), np.int32)
        yield {**chunk, 'done': pmap.shard_to_devices(done)}


def evaluate(
    context: RunContext, current: RunState, pool: np.ndarray, chosen: Genotype | None = None
) -> list[dict[str, jax.Array]]:
    """Queues an evaluation of the current network, and does not wait for it.

    With a limit on the cost it waits for alpha, whose most likely network within the limit it finds
    on the host. It evaluates `chosen` instead of the genotype that would be derived, if given. The
    sums of each chunk, on the devices, are for `mean_loss_and_accuracy`.
    """
    call, packed = current.programs_in_use.evaluate.call, _evaluated(context, current, chosen)
    return [call(packed, chunk, context.shared) for chunk in eval_chunks(context, pool)]


def _evaluated(context: RunContext, current: RunState, chosen: Genotype | None = None) -> Packed:
    """Returns the state to evaluate.

    One-hot rows replace alpha where a genotype is `chosen` or, under a limit on the cost, those of
    the network that would be derived.
    """
    packed, spec = current.packed, current.spec
    if spec.is_derived() or (chosen is None and context.limit is None):
        return packed
    packing = packed.layout.arch
    arch = packing.unpack(jax.tree.map(np.asarray, packed.vectors.arch))
    chosen = context.most_likely(spec, arch) if chosen is None else chosen
    one_hot_arch = genotype.with_row_weights(spec, genotype.one_hot_rows(spec, chosen), arch)
    vectors = packed.vectors.replace(arch=pmap.replicated(packing.pack(one_hot_arch)))
    return packed.replace(vectors=vectors)


def mean_loss_and_accuracy(sums: Sequence[Mapping[str, jax.Array]]) -> tuple[float, float]:
    """Waits for an evaluation, and returns its mean loss and its accuracy (0 to 1)."""
    loss, correct, images = (
        math.fsum(number for part in sums for number in pmap.fetch_replicated(part[key]))
        for key in ('loss', 'correct', 'images')
    )
    return loss / images, correct / images


def accuracy(context: RunContext, current: RunState, pool: np.ndarray) -> float:
    """Returns the accuracy (0 to 1) of the current network on the images of `pool`."""
    return mean_loss_and_accuracy(evaluate(context, current, pool))[1]


def accuracies(context: RunContext, current: RunState, pool: np.ndarray) -> tuple[float, float]:
    """Returns accuracy and balanced accuracy of the current network, from one evaluation.

    They are the share of images, and the mean over the classes among them of the share of each,
    that are classified right; both from 0 to 1.
    """
    call, sums, answers = current.programs_in_use.evaluate.call, [], []
    for chunk in eval_chunks(context, pool):
        sums.append(call(current.packed, chunk, context.shared))
        answers.append((_labels(context, chunk), pmap.local_shards(chunk['weight']).astype(int)))
    images, correct = np.zeros((2, len(context.data.class_names)), np.int32)
    for part, (labels, counted) in zip(sums, answers, strict=True):
        right = pmap.local_shards(part['logits']).argmax(-1) == labels
        np.add.at(images, labels, counted)
        np.add.at(correct, labels, counted * right)
    images, correct = pmap.sum_over_hosts(np.stack((images, correct)))
    tested = images > 0
    return mean_loss_and_accuracy(sums)[1], float((correct[tested] / images[tested]).mean())


def _labels(context: RunContext, chunk: Mapping[str, jax.Array]) -> np.ndarray:
    """Returns the labels of this host's images in a chunk, `[D, slots, B/D]`."""
    if 'label' in chunk:
        return pmap.local_shards(chunk['label'])
    return context.data.images.labels_at(pmap.local_shards(chunk['index']))


def count_parameters(current: RunState) -> int:
    """Counts the numbers in `params` of the current network, see `count_parameters_in`."""
    return count_parameters_in(current.packed.layout.like.params)


def count_parameters_in(params: Mapping[str, Any]) -> int:
    """Counts the numbers in `params`, without factors and the head that only training has."""
    return factors.count_parameters(
        {name: tree for name, tree in params.items() if name != SECOND_HEAD}
    )
