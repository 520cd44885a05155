"""The recipe of optimize in the compiled steps: smoothed and mixed labels, averaged weights."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from helpers import networks
from helpers.search_steps import KEY, ONE_BLOCK, SHARED, data, run, same

from asose_jax.arch.genotype import Genotype, derive
from asose_jax.data import batches, mixing
from asose_jax.data.mixing import Mixing
from asose_jax.data.randaugment import RandAugment
from asose_jax.nn.forward import Mode
from asose_jax.spaces.supernet import SECOND_HEAD
from asose_jax.train import steps
from asose_jax.train.phases import Phase
from asose_jax.train.state import AveragingState, restart
from asose_jax.train.step_config import PLAIN, Recipe

MANY = jax.device_count()
SMOOTHING, DECAY = 0.1, 0.2
SPEC = derive(ONE_BLOCK.model.spec, Genotype((('max_pool_3x3',),)))
MODEL = networks.supernet(SPEC, second_head=0.4, synced_over=steps.AXIS)
SCHEDULE = networks.make_schedule({**dict.fromkeys(Phase, 0), Phase.OPTIMIZE: 4}, 4)
RECIPE = Recipe(SMOOTHING, Mixing(mixup=0.5, cutmix=1.0), RandAugment(0, 0.0), DECAY)
STEP_CONFIG = dataclasses.replace(
    ONE_BLOCK,
    model=MODEL,
    schedule=SCHEDULE,
    tx=networks.make_optimizer(SCHEDULE),
    recipe=RECIPE,
)


def _start():
    return networks.fresh_state(MODEL, STEP_CONFIG.tx, seed=1).with_average()


def _run(before, count, devices=1, step_config=STEP_CONFIG):
    return run(before, count, devices, Phase.OPTIMIZE, step_config=step_config)[0]


@functools.cache
def _after_three():
    """The states after each of three steps on one device."""
    return [first := _run(_start(), 1), second := _run(first, 1), _run(second, 1)]


def _index(step):
    return batches.batch_indices(np.arange(64), 0, 0, step, 16)


@jax.jit
def _loss_by_hand(state, images, labels, shares):
    """With whole label distributions, of the batch mixed with itself from its other end."""
    labels = jax.nn.one_hot(labels, 3)
    share = shares.mean()
    labels = share * labels + (1 - share) * labels[::-1]
    labels = (1 - SMOOTHING) * labels + SMOOTHING / 3
    logits, changed = networks.supernet(SPEC, MODEL.settings).apply(
        {'params': state.params, 'batch_stats': state.batch_stats},
        shares[None] * images + (1 - shares[None]) * images[::-1],
        mode=Mode.ARGMAX,
        train=True,
        mutable=['batch_stats', 'second_head'],
    )
    (other,) = jax.tree.leaves(changed['second_head'])
    losses = [-(labels * jax.nn.log_softmax(x)).sum(-1).mean() for x in (logits, other)]
    return losses[0] + 0.4 * losses[1], (logits.argmax(-1) == labels.argmax(-1)).sum()


def test_loss_is_that_of_smoothed_and_mixed_labels_by_hand():
    kinds, before = set(), _start()
    for step, after in enumerate(_after_three()):
        shares = mixing.draw_shares(
            jax.random.fold_in(jax.random.fold_in(KEY, step), 3), 6, 6, RECIPE.mixing
        )
        kinds.add(float(shares.min()) == 0)
        pixels, labels = data().images.read(_index(step))
        images = np.float32((pixels - 100.0) / 50)
        loss, correct = _loss_by_hand(before, images, labels, shares)
        done = after.totals.loss - before.totals.loss
        np.testing.assert_allclose(done, loss, rtol=1e-5)
        assert after.totals.correct - before.totals.correct == correct
        before = after
    assert kinds == {False, True}  # mixup and CutMix


def test_average_of_the_weights_follows_its_decay_by_hand():
    average = _start().params
    for step, after in enumerate(_after_three()):
        decay = (0.1, 2 / 11, DECAY)[step]  # (1 + n) / (10 + n) at first
        average = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, average, after.params
        )
        chex.assert_trees_all_close(after.average, average, rtol=1e-5, atol=1e-7)
        assert (after.average['head']['kernel'] != after.params['head']['kernel']).any()


def test_skipped_step_leaves_the_average_as_it_is():
    before = _after_three()[0]
    poison = {'std': np.float32([np.nan])}
    after, _ = run(before, 1, 1, Phase.OPTIMIZE, poison, STEP_CONFIG)
    assert after.totals.skipped_steps == 1
    same(before.average, after.average)


def test_evaluation_takes_the_average_and_restart_makes_it_the_weights():
    held = _after_three()[2]
    assert isinstance(held, AveragingState)
    assert held.evaluated == {'params': held.average, 'arch': {}}
    again = restart(held)
    assert not isinstance(again, AveragingState)
    same(again.params, held.average)
    assert SECOND_HEAD in again.params


def test_recipe_is_the_same_on_many_devices_and_in_any_calls():
    """Partners come from other devices then."""
    one, many = _after_three()[2], _run(_start(), 3, MANY)
    chex.assert_trees_all_close(one, many, rtol=1e-4, atol=1e-6)
    same(one, _run(_start(), 3))


@pytest.mark.slow
def test_randaugment_is_the_same_on_many_devices_and_changes_what_is_learned():
    recipe = dataclasses.replace(PLAIN, randaugment=RandAugment(2, 9.0))
    step_config = dataclasses.replace(STEP_CONFIG, recipe=recipe)
    before = networks.fresh_state(MODEL, step_config.tx, seed=1)
    one, many = (_run(before, 2, n, step_config) for n in (1, MANY))
    chex.assert_trees_all_close(one.params, many.params, rtol=1e-4, atol=1e-6)
    plain = _run(before, 2, 1, dataclasses.replace(STEP_CONFIG, recipe=PLAIN))
    assert (plain.params['head']['kernel'] != one.params['head']['kernel']).any()


@pytest.mark.parametrize('phase', [Phase.WARMUP, Phase.SEARCH, Phase.GROWTH])
def test_recipe_is_of_optimize_only(phase):
    """So alpha's loss, and that of weights beside it, is the plain cross-entropy."""
    assert STEP_CONFIG.recipe_in(phase) == PLAIN
    assert STEP_CONFIG.recipe_in(Phase.OPTIMIZE) == RECIPE


def test_a_label_out_of_range_is_not_smoothed_away():
    labels = np.array(data().images.arrays[1])
    labels[_index(0)[5]] = 99
    after, _ = run(_start(), 1, 1, Phase.OPTIMIZE, {'labels': labels}, STEP_CONFIG)
    assert after.totals.skipped_steps == 1


@pytest.mark.slow
def test_nothing_of_a_recipe_that_is_off_is_computed():
    """Without it, the program has no permutation over devices and no draw of a share."""
    chunk = batches.stack_batches([{'index': _index(0).astype(np.int32)}], 8, MANY)
    compiled = {}
    for name, recipe in (('off', PLAIN), ('on', RECIPE)):
        step_config = dataclasses.replace(STEP_CONFIG, recipe=recipe)
        start = _start() if recipe.ema else networks.fresh_state(MODEL, step_config.tx)
        traced = jax.pmap(
            functools.partial(steps.train_steps, step_config, Phase.OPTIMIZE),
            axis_name=steps.AXIS,
            in_axes=(None, 0, None),
        ).lower(steps.Packed.of(start), chunk, SHARED)
        compiled[name] = traced.as_text()
    assert 'collective_permute' in compiled['on']
    assert 'collective_permute' not in compiled['off']
