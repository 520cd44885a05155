"""Turns, devices, guards and retraces of the compiled steps."""

import dataclasses
import functools
import os
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest
from helpers import networks
from helpers.search_steps import (
    KEY,
    NAMES,
    ONE_BLOCK,
    SCHEDULE,
    SHARED,
    SPEC,
    START,
    STEP_CONFIG,
    STILL,
    TX,
    after_one,
    call,
    data,
    first_moment,
    fresh,
    run,
    same,
)

from asose_jax.arch import estimators
from asose_jax.arch.genotype import Genotype, derive
from asose_jax.data import batches
from asose_jax.nn.forward import Mode
from asose_jax.train import gradients, pmap, steps
from asose_jax.train.phases import Phase
from asose_jax.train.state import Packed

MANY = jax.device_count()


def _optimizer_of(s, group):
    return s.opt_state.inner_states[group].inner_state


# --- Turns


def test_alpha_step_leaves_weights_momentum_and_statistics_bit_identical():
    before = fresh()
    after, _ = run(before, 1)
    same(before.params, after.params)
    same(before.batch_stats, after.batch_stats)
    same(_optimizer_of(before, 'weights'), _optimizer_of(after, 'weights'))
    old, new = jax.tree.leaves(before.arch), jax.tree.leaves(after.arch)
    assert all((a != b).all() for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ('phase', 'step'),
    [(Phase.SEARCH, START + 1), (Phase.SEARCH, START + 2), (Phase.WARMUP, 0)],
)
def test_weight_step_leaves_alpha_and_its_moments_bit_identical(phase, step):
    before = fresh(step)
    after, _ = run(before, 1, phase=phase)
    same(before.arch, after.arch)
    same(_optimizer_of(before, 'arch'), _optimizer_of(after, 'arch'))
    assert (before.params['head']['kernel'] != after.params['head']['kernel']).all()
    assert (before.batch_stats['stem_norm']['mean'] != after.batch_stats['stem_norm']['mean']).all()


def test_totals_tell_weight_steps_from_alpha_steps():
    after, metrics = run(fresh(), 6)
    totals = jax.device_get(after.totals)
    assert (totals.weight_steps, totals.arch_steps, totals.images) == (4, 2, 64)
    assert 0 <= totals.correct <= 64
    assert totals.loss > 0
    assert totals.arch_loss > 0
    assert metrics['totals'].loss[0] == totals.loss


@pytest.mark.slow
def test_alpha_step_in_micro_batches_takes_the_mean_of_their_gradients():
    index = np.arange(16, dtype=np.int32)
    whole = first_moment(dataclasses.replace(STILL, arch_micro_batches=2), index)
    halves = [first_moment(STILL, half) for half in (index[:8], index[8:])]
    for mean, one, other in zip(whole, *halves, strict=True):
        assert (mean != 0).any()
        np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_alpha_step_of_many_draws_takes_the_mean_of_their_gradients():
    index, start = np.arange(16, dtype=np.int32), fresh()
    found = first_moment(dataclasses.replace(STILL, arch_samples=3), index)
    given = data()
    images, labels = given.images.read(index)

    @jax.jit
    def gradient(key):
        def loss(arch):
            logits, _ = networks.supernet(SPEC).apply(
                {'params': start.params, 'arch': arch, 'batch_stats': start.batch_stats},
                (images - given.mean) / given.std,
                SCHEDULE.tau(START),
                mode=Mode.ALPHA,
                train=True,
                mutable=['batch_stats', 'guard'],
                rngs={'gumbel': key},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.grad(loss)(start.arch)

    draw_key = jax.random.split(jax.random.fold_in(KEY, START))[0]
    each = [gradient(key) for key in jax.random.split(draw_key, 3)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *each)
    for ours, expected in zip(found, jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(ours, (1 - 0.5) * expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_step_of_both_moves_alpha_and_the_weights_by_one_batch_and_one_draw():
    """As the plan at rest would move the weights, and the plan in turns alpha."""
    index = np.arange(16, dtype=np.int32)
    schedules = {
        'together': dataclasses.replace(SCHEDULE, together=True),
        'in turn': SCHEDULE,
        'at rest': dataclasses.replace(SCHEDULE, frozen_steps=1),
    }
    found = {}
    for name, schedule in schedules.items():
        step_config = dataclasses.replace(
            STILL, schedule=schedule, tx=networks.make_optimizer(schedule)
        )
        found[name] = after_one(step_config, index)
    totals = jax.device_get(found['together'].totals)
    assert (totals.weight_steps, totals.arch_steps, totals.images) == (1, 1, 16)
    assert totals.arch_loss == totals.loss > 0
    for group, alike, other in (('params', 'at rest', 'in turn'), ('arch', 'in turn', 'at rest')):
        both, expected, still = (getattr(found[name], group) for name in ('together', alike, other))
        chex.assert_trees_all_close(both, expected, rtol=1e-3, atol=1e-6)
        same(still, getattr(fresh(), group))
    chex.assert_trees_all_close(
        found['together'].batch_stats, found['at rest'].batch_stats, rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_penalty_adds_its_gradient_to_that_of_alpha():
    index, start = np.arange(16, dtype=np.int32), fresh()

    def half(arch):
        return 0.5 * sum(map(estimators.anchor_distance, jax.tree.leaves(arch)))

    free = first_moment(STILL, index)
    held = first_moment(dataclasses.replace(STILL, penalty=half), index)
    for before, after, alpha in zip(free, held, jax.tree.leaves(start.arch), strict=True):
        pull = jax.grad(estimators.anchor_distance)(alpha)
        np.testing.assert_allclose(after - before, (1 - 0.5) * 0.5 * pull, rtol=1e-3, atol=1e-6)


def test_training_and_evaluation_use_the_auxiliary_skip_with_the_weight_of_their_step():
    net = networks.supernet(SPEC, auxiliary_skip=True, synced_over=steps.AXIS)
    step_config, index = dataclasses.replace(STILL, model=net), np.arange(16, dtype=np.int32)
    shared = jax.device_put(jax.device_get({**SHARED, 'key': None}), jax.devices()[0])
    shared['key'] = KEY
    images, labels = data().images.read(index)
    held = fresh(0)
    counted = batches.stack_batches([{'index': index, 'weight': np.ones(16, np.float32)}], 1, 1)
    evaluate = jax.pmap(
        functools.partial(steps.eval_steps, step_config, Phase.WARMUP),
        axis_name=steps.AXIS,
        in_axes=(None, 0, None),
        devices=jax.devices()[:1],
    )

    @functools.partial(jax.jit, static_argnums=1)
    def loss(beta, train):
        alone = networks.supernet(SPEC, auxiliary_skip=True)
        logits, _ = alone.apply(
            {**held.trainable, 'batch_stats': held.batch_stats},
            (images - np.float32(100)) / np.float32(50),
            beta=beta,
            mode=Mode.SKIP,
            train=train,
            mutable=['batch_stats'],
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    middle = (SCHEDULE.spans[1].start + SCHEDULE.spans[1].stop) // 2
    for step, beta in ((0, 1.0), (middle, 0.5), (SCHEDULE.spans[1].stop, 0.0)):
        found = evaluate(Packed.of(fresh(step)), counted, shared)['loss'][0, 0] / 16
        np.testing.assert_allclose(found, loss(beta, False), rtol=1e-5)
    chunk = batches.stack_batches([{'index': index}], 8, 1)
    after, _ = call(Phase.WARMUP, 1, step_config)(held, chunk, shared)
    np.testing.assert_allclose(after.totals.loss, loss(1.0, True), rtol=1e-5)
    assert abs(loss(1.0, True) - loss(0.0, True)) > 1e-3


# --- Weights of classes

WEIGHTS = np.float32([4, 0.5, 0.25])
WEIGHTED = dataclasses.replace(ONE_BLOCK, class_weights=WEIGHTS)


def test_mean_with_class_weights_is_that_by_hand():
    """Cross-entropies ln 3 and ln 4 of weights 4 and 0.5: their sum is divided by 2, not by 4.5."""
    logits = np.log(np.float32([[1, 1, 1], [1, 1, 2]]))
    found = gradients.mean_cross_entropy(logits, np.array([0, 1]), WEIGHTS)
    np.testing.assert_allclose(found, (4 * np.log(3) + 0.5 * np.log(4)) / 2, rtol=1e-6)


def test_without_class_weights_nothing_is_multiplied():
    def plain(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    example = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    ours, theirs = (
        str(jax.make_jaxpr(each)(*example)) for each in (gradients.mean_cross_entropy, plain)
    )
    assert ours == theirs


def test_balanced_weights_raise_the_recall_of_a_rare_class():
    """Two overlapping classes, 400 and 20 images, and a logistic regression."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [400, 20])
    x = np.stack([random.normal(labels), np.ones(420)], 1).astype(np.float32)

    def recall_of_the_rare_class(class_weights):
        def loss(slopes):
            return gradients.mean_cross_entropy(x @ slopes, labels, class_weights)

        step = jax.jit(lambda slopes: slopes - jax.grad(loss)(slopes))
        slopes = np.zeros((2, 2), np.float32)
        for _ in range(200):
            slopes = step(slopes)
        return (x @ slopes).argmax(1)[labels == 1].mean()

    balanced = np.float32([420 / (2 * 400), 420 / (2 * 20)])
    assert recall_of_the_rare_class(None) < 0.1 < 0.6 < recall_of_the_rare_class(balanced)


@pytest.mark.parametrize(('step', 'mode'), [(START, Mode.ALPHA), (START + 1, Mode.DRAW)])
def test_class_weights_enter_the_loss_of_alpha_and_of_weights_on_any_number_of_devices(step, mode):
    """As one mean of weight times cross-entropy, though devices hold different classes."""
    before = networks.fresh_state(ONE_BLOCK.model, TX, seed=1).replace(step=np.int32(step))
    one, many = (run(before, 1, n, step_config=WEIGHTED)[0] for n in (1, MANY))
    chex.assert_trees_all_close(one, many, atol=1e-5, rtol=1e-4)
    given = data()
    images, labels = given.images.read(batches.batch_indices(np.arange(64), 0, 0, step, 16))

    @jax.jit
    def logits_of(images):
        return networks.supernet(ONE_BLOCK.model.spec).apply(
            {'params': before.params, 'arch': before.arch, 'batch_stats': before.batch_stats},
            images,
            SCHEDULE.tau(step),
            mode=mode,
            train=True,
            mutable=['batch_stats', 'guard'],
            rngs={'gumbel': jax.random.split(jax.random.fold_in(KEY, step))[0]},
        )[0]

    logits = logits_of((images - given.mean) / given.std)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    expected = np.mean([WEIGHTS[label] * loss for label, loss in zip(labels, losses, strict=True)])
    found = one.totals.arch_loss if mode is Mode.ALPHA else one.totals.loss
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert abs(losses.mean() - expected) > 0.01


# --- Many devices


@pytest.mark.soak
def test_laws_of_the_steps_hold_on_eight_devices(root):
    """This file anew, in a process that has so many."""
    command = [sys.executable, '-m', 'pytest', 'tests/train/steps_test.py', '-n', '0', '-q']
    environment = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST_')}
    ran = subprocess.run(
        [*command, '-m', 'not slow and not soak'],
        cwd=root,
        env={**environment, 'TEST_DEVICES': '8'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert ' passed' in ran.stdout


def test_many_devices_are_one_device_and_all_replicas_are_equal():
    assert MANY > 1
    one, _ = run(fresh(), 7)
    many, metrics = run(fresh(), 7, devices=MANY)
    chex.assert_trees_all_close(jax.device_get(one), jax.device_get(many), atol=1e-5, rtol=1e-5)
    for leaf in jax.tree.leaves(metrics):
        assert (np.asarray(leaf) == np.asarray(leaf)[0]).all()


@pytest.mark.slow
def test_many_devices_drop_the_paths_that_one_device_drops():
    chosen = Genotype(tuple(('dil_conv_3x3',) for _ in SPEC.groups()))
    net = networks.supernet(derive(SPEC, chosen), drop_path=0.5, synced_over=steps.AXIS)
    schedule = networks.make_schedule({**dict.fromkeys(Phase, 0), Phase.OPTIMIZE: 4}, 2)
    step_config = dataclasses.replace(
        STEP_CONFIG, model=net, schedule=schedule, tx=networks.make_optimizer(schedule)
    )
    before = networks.fresh_state(net, step_config.tx).replace(
        step=np.int32(6)
    )  # in the last epoch
    one, many = (run(before, 1, n, Phase.OPTIMIZE, step_config=step_config)[0] for n in (1, MANY))
    chex.assert_trees_all_close(*jax.device_get((one.params, many.params)), rtol=1e-4, atol=1e-6)
    whole = dataclasses.replace(net, settings=networks.settings())
    other = dataclasses.replace(step_config, model=whole)
    kept = run(before, 1, 1, Phase.OPTIMIZE, step_config=other)[0]
    assert (one.params['head']['kernel'] != kept.params['head']['kernel']).any()


def test_how_steps_are_cut_into_calls_changes_nothing():
    whole, _ = run(fresh(), 7)
    part, _ = run(fresh(), 3)
    parts, _ = run(jax.device_get(part), 4)
    same(whole, parts)


# --- The gradient guard


@pytest.mark.parametrize('step', [START, START + 1])
def test_step_with_a_gradient_that_is_not_finite_changes_only_counters(step):
    before = fresh(step)
    after, metrics = run(before, 1, poison={'std': np.float32([np.nan])})
    for name in ('params', 'arch', 'batch_stats', 'opt_state'):
        same(getattr(before, name), getattr(after, name))
    assert after.step == step + 1
    assert (after.streak, after.longest_streak) == (1, 1)
    assert after.totals.skipped_steps == 1
    assert after.totals.weight_steps == after.totals.arch_steps == 0
    assert metrics['longest_streak'][0] == 1


def test_streak_ends_with_a_healthy_step_and_its_length_is_remembered():
    sick, _ = run(fresh(), 4, poison={'std': np.float32([np.nan])})
    well, _ = run(jax.device_get(sick), 2)
    assert (well.streak, well.longest_streak) == (0, 4)
    healthy, _ = run(fresh(START + 4), 2)
    # Turns follow the step, not the number of updates that were made.
    assert well.totals.arch_steps == healthy.totals.arch_steps == 0


def test_trouble_on_one_device_of_many_is_skipped_on_all():
    images = np.array(data().images.arrays[0])
    before = fresh(START + 1)
    labels = np.array(data().images.arrays[1])
    # A label out of range makes the loss of one image, so of one device, NaN.
    chosen = batches.batch_indices(np.arange(64), 0, 0, START + 1, 16)
    labels[chosen[5]] = 99
    after, _ = run(before, 1, devices=MANY, poison={'images': images, 'labels': labels})
    same(before.params, after.params)
    assert after.totals.skipped_steps == 1


def _poison(tree, value):
    """One number of one array replaced."""
    leaves, structure = jax.tree.flatten(tree)
    leaves[-1] = np.array(leaves[-1])
    leaves[-1].reshape(-1)[0] = value
    return structure.unflatten(leaves)


@pytest.mark.parametrize('step', [START, START + 1], ids=['alpha step', 'weight step'])
@pytest.mark.parametrize('devices', [1, MANY])
@pytest.mark.parametrize(
    ('where', 'value'),
    [
        ('mean', np.inf),
        ('std', 0.0),
        ('label', 3),
        ('label', 2**31 - 1),
        ('params', np.nan),
        ('params', np.inf),
        ('params', -np.inf),
        ('params', 3e38),
        ('arch', np.nan),
        ('arch', np.inf),
        ('arch', -np.inf),
    ],
)
def test_bad_numbers_never_spread_and_replicas_stay_equal(where, value, devices, step):
    """A bad row of alpha acts as skip_connect, a bad gradient moves nothing."""
    before, poison = fresh(step), {}
    if where in ('mean', 'std'):
        poison[where] = np.float32([value])
    elif where == 'label':
        labels = np.array(data().images.arrays[1])
        labels[batches.batch_indices(np.arange(64), 0, 0, step, 16)[5]] = value
        poison['labels'] = labels  # one image: on one device of many
    else:
        before = before.replace(**{where: _poison(getattr(before, where), value)})
    after, _ = run(before, 1, devices=devices, poison=poison)
    totals = after.totals
    assert after.step == step + 1
    assert totals.skipped_steps + totals.weight_steps + totals.arch_steps == 1
    if where == 'arch':
        assert totals.guarded_rows == (value != -np.inf)  # which is a logit: that is never drawn
        assert totals.skipped_steps == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))
    else:
        assert totals.skipped_steps == 1
        for name in ('params', 'arch', 'batch_stats', 'opt_state'):
            same(getattr(before, name), getattr(after, name))


def test_guarded_row_is_counted_and_training_goes_on():
    before = fresh(START + 1)
    before.arch['block_0']['choice_0']['alpha'] = np.full(len(NAMES), np.nan, np.float32)
    after, _ = run(before, 1)
    assert after.totals.guarded_rows == 1
    assert after.totals.skipped_steps == 0
    assert np.isfinite(after.totals.loss)


# --- One trace per program


def test_each_program_is_traced_once_and_refuses_to_be_retraced(monkeypatch):
    traces = []
    original = steps.train_step
    monkeypatch.setattr(steps, 'train_step', lambda *a: (traces.append(a[1]), original(*a))[1])
    chunk = batches.stack_batches([{'index': np.arange(16, dtype=np.int32)}], 8, MANY)
    now = Packed.of(fresh(0))
    program = pmap.compile_train(STEP_CONFIG, Phase.WARMUP, now, chunk, SHARED)
    for count in (1, 5, 8):
        batch = batches.stack_batches([{'index': np.arange(16, dtype=np.int32)}] * count, 8, MANY)
        now, _ = program.call(now, batch, SHARED)
    assert now.vectors.step == 14
    assert traces == [Phase.WARMUP]
    with pytest.raises(TypeError):
        program.call(
            now, batches.stack_batches([{'index': np.arange(8, dtype=np.int32)}], 8, MANY), SHARED
        )
