"""Fine-tuning: a network that another run has trained goes on with other classes."""

import dataclasses
import json
import logging

import chex
import jax
import numpy as np
import optax
import pytest
from helpers import networks
from helpers.pictures import config_of, picture
from helpers.runs import run_until
from PIL import Image

from asose_jax import inference
from asose_jax.arch import genotype
from asose_jax.config import retrain
from asose_jax.pipeline import builders, initialization, single_run
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import registry
from asose_jax.spaces.supernet import HEAD, SECOND_HEAD
from asose_jax.train import checkpoint, optimizer, pmap, state
from asose_jax.train.phases import Phase

SPEC = genotype.derive(
    networks.build('chain', (8, 8, 3), 4, channels=4, depth=2, reductions=(1,), max_channels=8),
    genotype.Genotype((('nor_conv_1x1',), ('skip_connect',))),
)
TX = networks.make_optimizer(networks.make_schedule(dict.fromkeys(Phase, 1), 4))


def _random_state(averages=False):
    """Weights, momentum and statistics of a network with a second head; nothing is zero."""
    fresh = networks.fresh_state(networks.supernet(SPEC, second_head=0.4), TX)
    trace = {'params': networks.random_like(fresh.params, seed=1), 'arch': {}}
    fresh = fresh.replace(opt_state=optax.tree.set(fresh.opt_state, trace=trace))
    average = networks.random_like(fresh.params, seed=2)
    return fresh.with_average().replace(average=average) if averages else fresh


def _pictures(place, classes):
    for kind in classes:
        for i in range(20):
            picture(place / kind / f'{i}.png', seed=100 * ord(kind[0]) + i)
    return place


def _write_source(workdir, reached, spec=SPEC):
    """Writes what a run has left that has trained four classes."""
    meta = {'spec': spec.to_json(), 'phase': 'optimize', 'told': {}}
    with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
        checkpoints.save(7, reached, meta)
    (workdir / 'run.json').write_text(json.dumps({'classes': [*'abcd']}))
    return workdir


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return _write_source(tmp_path_factory.mktemp('source'), _random_state())


def _tuned(source, pictures, **changes):
    """The config of --mode=retrain that goes on with `source`."""
    changes = {'init_from': str(source), 'retrain.batch_size': 8, 'retrain.epochs': 1, **changes}
    return retrain.retrain_config(config_of(pictures, **changes))


def _last(workdir, config):
    """The newest state of a run, on the host."""
    with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
        step = checkpoints.latest()
        meta = checkpoints.describe(step)
        spec = registry.spec_from_json(meta['spec'])
        tx = optimizer.make_optimizer(config, builders.make_schedule(config, 287))
        model = builders.make_supernet(config, spec)
        averages = checkpoint.has_average(meta['checksums'])
        like = state.abstract_state(model, tx, pmap.replicated_sharding(), averages)
        return jax.device_get(checkpoints.restore(step, like))


def _weights_and_momentum(reached):
    return reached.evaluated['params'], optax.tree.get(reached.opt_state, 'trace')['params']


def _but_heads(tree):
    return {name: arrays for name, arrays in tree.items() if name not in (HEAD, SECOND_HEAD)}


@pytest.mark.parametrize('averages', [pytest.param(False, marks=pytest.mark.slow), True])
def test_frozen_network_gets_a_new_head_and_keeps_all_else_to_the_bit(
    averages, tmp_path, caplog, monkeypatch
):
    """Though weight decay and the momentum of before would move every weight.

    With averages, in the checkpoint and in this run, what is kept is the average, and the disk must
    have room for it from the start.
    """
    checked = []
    monkeypatch.setattr(checkpoint, 'require_disk_space', lambda _, state: checked.append(state))
    pictures = _pictures(tmp_path / 'pictures', ('left', 'right', 'up'))
    before = _random_state(averages)
    source = _write_source(tmp_path / 'source', before)
    recipe = {'retrain.ema': 0.9, 'retrain.mixup': 0.2, 'retrain.label_smoothing': 0.1}
    config = _tuned(source, pictures, **{'optimize.frozen': True, **(recipe if averages else {})})
    assert config.weights.weight_decay > 0
    with caplog.at_level(logging.INFO, 'asose_jax'):
        summary = single_run.run(config, tmp_path / 'run')
    assert 'fresh weights: this run has 3 classes (left, right, up), that one had 4' in caplog.text
    assert 'the second head of that run is left out' in caplog.text
    assert f'only the head is trained, {3 * 8 + 3} of {summary["params"]} param' in caplog.text
    assert hasattr(checked[0], 'average') == averages
    after = _last(tmp_path / 'run', config)
    pairs = zip(_weights_and_momentum(before), _weights_and_momentum(after), strict=True)
    for old, new in [*pairs, (before.batch_stats, after.batch_stats)]:
        chex.assert_trees_all_equal(_but_heads(old), _but_heads(new))
    assert after.params[HEAD]['kernel'].shape == (8, 3)
    assert np.abs(_weights_and_momentum(after)[1][HEAD]['bias']).max() > 0
    assert inference.load(tmp_path / 'run').class_names == ('left', 'right', 'up')


def test_disk_must_have_room_for_the_average_of_the_weights(source, tmp_path, monkeypatch):
    def refuse(_, largest):
        assert isinstance(largest, state.AveragingState)
        raise UserError('no room')

    monkeypatch.setattr(checkpoint, 'require_disk_space', refuse)
    config = _tuned(source, _pictures(tmp_path / 'pictures', [*'abcd']), **{'retrain.ema': 0.9})
    with pytest.raises(UserError, match='no room'):
        single_run.run(config, tmp_path / 'run')


@pytest.mark.slow
def test_whole_network_goes_on_and_stops_and_resumes_bit_for_bit(source, tmp_path):
    pictures = _pictures(tmp_path / 'pictures', ('left', 'right', 'up'))
    for frozen in (False, True):
        changes = {'optimize.frozen': frozen, 'checkpoint.every_seconds': 0, 'retrain.epochs': 2}
        config = _tuned(source, pictures, **changes)
        whole, parts = tmp_path / f'whole {frozen}', tmp_path / f'parts {frozen}'
        single_run.run(config, whole)
        run_until(2, config, parts)
        single_run.run(config, parts)
        chex.assert_trees_all_equal(_last(parts, config), _last(whole, config))
    before, after = _random_state(), _last(tmp_path / 'whole False', config)
    for pair in ((before.params, after.params), (before.batch_stats, after.batch_stats)):
        leaves = [jax.tree.leaves(_but_heads(tree)) for tree in pair]
        assert all((old != new).any() for old, new in zip(*leaves, strict=True))


def _origin(config):
    images = builders.load_data(config)
    return initialization.find_origin(
        config, images, builders.make_schedule(config, len(images.train))
    )


@pytest.mark.parametrize(
    ('classes', 'with_head'),
    [('abcd', True), ('abce', False), ('abc', False), ('abcde', False)],
)
def test_head_is_kept_for_the_same_classes_and_no_others(source, tmp_path, classes, with_head):
    pictures = _pictures(tmp_path, classes)
    origin = _origin(_tuned(source, pictures))
    assert (origin.with_head, origin.spec.num_classes) == (with_head, len(classes))


def test_head_of_a_run_without_a_record_is_kept_if_the_number_of_classes_is_the_same(
    source, tmp_path
):
    pictures = _pictures(tmp_path / 'pictures', 'wxyz')
    alone = tmp_path / 'alone'
    alone.mkdir()
    (alone / 'checkpoints').symlink_to(source / 'checkpoints')
    assert not _origin(_tuned(source, pictures)).with_head
    assert _origin(_tuned(alone, pictures)).with_head


def test_operations_that_would_begin_afresh_are_not_frozen(tmp_path):
    size = {'channels': 8, 'depth': 2, 'reductions': (1,), 'max_channels': 8}
    names = ('skip_connect', 'nor_conv_1x1')
    plain = networks.build('chain', (8, 8, 3), 4, primitives=names, **size)
    spec = dataclasses.replace(plain, partial=2)
    reached = networks.fresh_state(networks.supernet(spec), TX)
    source = _write_source(tmp_path / 'source', reached, spec)
    pictures = _pictures(tmp_path / 'pictures', 'abcd')
    free, frozen = (
        _tuned(source, pictures, **{'search.partial_channels': 2, 'optimize.frozen': each})
        for each in (False, True)
    )
    assert _origin(free).spec.partial == 2
    with pytest.raises(UserError, match=r'partial_channels=2: .* set optimize.frozen=False'):
        _origin(frozen)


def _grey(place):
    for kind in 'ab':
        for i in range(20):
            picture(file := place / kind / f'{i}.png', (9, 9), seed=i)
            Image.open(file).convert('L').save(file)


@pytest.mark.parametrize(
    ('changes', 'advice'),
    [
        ({}, r'are \(9, 9, 1\): set data.image_size=8 and save the images with 3 channels'),
        ({'data.image_size': 8}, r'are \(8, 8, 1\): save the images with 3 channels instead of 1'),
    ],
)
def test_images_of_another_shape_are_one_clear_line(source, tmp_path, changes, advice):
    _grey(tmp_path / 'grey')
    config = _tuned(source, tmp_path / 'grey', **changes)
    with pytest.raises(UserError, match=rf'was trained on images \(8, 8, 3\) .*{advice}') as error:
        single_run.run(config, tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run').exists()
