"""Compiled steps of a small search."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax

from asose_jax.data import augment, batches
from asose_jax.data.dataset import Dataset, ImageSet
from asose_jax.nn.forward import Mode
from asose_jax.spaces import chain
from asose_jax.train import pmap, steps
from asose_jax.train.phases import Phase
from asose_jax.train.state import Packed
from asose_jax.train.step_config import PLAIN, StepConfig
from helpers import networks

NAMES = ('none', 'max_pool_3x3', 'skip_connect', 'dil_conv_3x3')


SPEC = chain.build(
    (6, 6, 1), 3, channels=4, depth=2, reductions=(1,), max_channels=8, primitives=NAMES
)


SCHEDULE = networks.make_schedule({**dict.fromkeys(Phase, 1), Phase.SEARCH: 4}, 2)


TX = networks.make_optimizer(SCHEDULE)


STEP_CONFIG = StepConfig(
    networks.supernet(SPEC, synced_over=steps.AXIS),
    TX,
    SCHEDULE,
    augment.Augmentation(1, True, 0),
    warmup_mode=Mode.SKIP,
    arch_micro_batches=1,
    arch_samples=1,
    class_weights=None,
    penalty=None,
    second_order=False,
    recipe=PLAIN,
    frozen=False,
)


START = SCHEDULE.spans[1].start  # of search: an alpha turn


def data():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 64).astype(np.int32)
    images = (random.integers(0, 60, (64, 6, 6, 1)) + 60 * labels[:, None, None, None]).astype('u1')
    mean, std = np.float32([100]), np.float32([50])
    everything = np.arange(64)
    names = ('a', 'b', 'c')
    source = ImageSet.from_arrays(images, labels)
    return Dataset(source, everything, everything, everything, names, (6, 6, 1), mean, std)


KEY = jax.random.key(0)


SHARED = pmap.shared_arrays(data(), KEY)


@functools.cache
def call(phase, devices, step_config=STEP_CONFIG):
    """A compiled call of trees on the host, `(state, batch, shared) -> (state, metrics)`.

    What it gives is the same on all of its devices, or it fails.
    """
    compiled = jax.pmap(
        functools.partial(steps.train_steps, step_config, phase),
        axis_name=steps.AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, 0),
        devices=jax.devices()[:devices],
    )

    def on_trees(before, batch, shared):
        packed, metrics = compiled(Packed.of(before), batch, shared)
        assert_replicas_equal(packed, devices)
        return jax.tree.map(np.array, packed).unpack(), metrics

    return on_trees


def assert_replicas_equal(tree, devices):
    """Every device has the same numbers, to the bit."""
    for leaf in jax.tree.leaves(tree):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == devices
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replicas[0], replica)


def fresh(step=START):
    """A state on the host, at a step; whoever gets it may change it."""
    return networks.fresh_state(STEP_CONFIG.model, TX, seed=1).replace(step=np.int32(step))


def run(before, count, devices=1, phase=Phase.SEARCH, poison=None, step_config=STEP_CONFIG):
    """`count` steps with a global batch of 16."""
    first = int(before.step)
    chosen = [
        {'index': batches.batch_indices(np.arange(64), 0, 0, first + i, 16).astype(np.int32)}
        for i in range(count)
    ]
    shared = jax.device_get({k: v for k, v in SHARED.items() if k != 'key'})
    shared['key'] = SHARED['key']
    if poison:
        shared.update(poison)
    if devices == 1:
        shared = jax.device_put(shared, jax.devices()[0])
    after, metrics = call(phase, devices, step_config)(
        before, batches.stack_batches(chosen, 8, devices), shared
    )
    return after, metrics


def same(a, b):
    chex.assert_trees_all_equal(jax.device_get(a), jax.device_get(b))


STILL = dataclasses.replace(STEP_CONFIG, augmentation=augment.Augmentation(0, False, 0))


def after_one(step_config, index):
    """The state after the first step of search."""
    chunk = batches.stack_batches([{'index': index}], 8, 1)
    shared = jax.device_put(jax.device_get({**SHARED, 'key': None}), jax.devices()[0])
    before = networks.fresh_state(step_config.model, step_config.tx, seed=1).replace(
        step=np.int32(START)
    )
    after, _ = call(Phase.SEARCH, 1, step_config)(before, chunk, {**shared, 'key': KEY})
    return after


# One block, nothing to learn in it: what is compiled fastest.
ONE_BLOCK = dataclasses.replace(
    STILL,
    model=networks.supernet(
        chain.build(
            *((6, 6, 1), 3),
            channels=4,
            depth=1,
            reductions=(),
            max_channels=4,
            primitives=('none', 'max_pool_3x3', 'skip_connect'),
        ),
        synced_over=steps.AXIS,
    ),
)


def first_moment_of(after):
    """Adam's, after one alpha step from 0: its gradient, times 1 - b1."""
    assert after.totals.arch_steps == 1
    return jax.tree.leaves(optax.tree.get(after.opt_state, 'mu'))


def first_moment(step_config, index):
    """That of a state after its first step."""
    return first_moment_of(after_one(step_config, index))
