"""The whole program on digits: the workdir, stop and resume, alarms, errors."""

import json
import logging
import pathlib
import re
import shutil

import chex
import jax
import numpy as np
import pytest
from helpers import networks
from helpers.runs import (
    AHEAD,
    CELLS,
    CHEAPEST,
    NAMES_OF,
    SKIPS,
    WHOLE,
    Compiled,
    assert_resumed_as_the_whole,
    assert_same_end,
    csv_text,
    final_state,
    lines_of,
    make_whole,
    run_until,
    streamed,
    tiny,
)

from asose_jax import inference
from asose_jax.arch import genotype
from asose_jax.data import batches
from asose_jax.metrics import run_record
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import builders, evaluation, single_run
from asose_jax.report import page
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import registry, supernet
from asose_jax.train import checkpoint, pmap
from asose_jax.train.phases import Phase
from configs.search import get_config

CELL_SPACES = [
    pytest.param('nasbench201', marks=pytest.mark.slow),
    pytest.param('darts', marks=pytest.mark.soak),  # compiles for longer
]


@pytest.fixture(scope='session')
def whole(shared):
    """A run that was never stopped."""
    workdir = shared('whole', make_whole) / 'run'
    return workdir, json.loads((workdir / 'summary.json').read_text())


@pytest.fixture(scope='module')
def programs():
    """Of runs of this module whose steps are those of `WHOLE`."""
    return Compiled()


def test_workdir_holds_what_was_promised(whole):
    workdir, summary = whole
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        'checkpoints',
        *('config.json', 'events', 'genotype.json', 'metrics.jsonl', 'network.txt', 'report.html'),
        *('run.json', 'summary.json'),
    }
    promised = {'test_accuracy', 'valid_accuracy', 'params', 'genotype', 'seed', 'versions'}
    assert promised | {'command', 'phases'} <= set(summary)
    assert [row['name'] for row in summary['phases']] == list(Phase)
    for row in summary['phases']:
        assert row['valid_accuracy_first'] is not None
        assert row['seconds'] > 0
    written = json.loads((workdir / 'genotype.json').read_text())
    assert written['genotype'] == summary['genotype']
    assert json.loads((workdir / 'config.json').read_text())['search.epochs'] == 2


def test_every_evaluation_writes_one_line(whole):
    workdir, _ = whole
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    phases = [(line['phase'], line['epoch'], line['step']) for line in lines]
    assert phases == [
        ('warmup', 1, 4),
        ('search', 1, 10),
        ('search', 2, 16),
        *(('growth', i, 16 + 6 * i) for i in range(1, 7)),
        ('optimize', 1, 56),
    ]
    promised = (
        'step epoch phase train/loss train/accuracy valid/loss valid/accuracy tau arch/entropy '
        'arch/confidence arch/skip_fraction arch/param_free_fraction guard/arch guard/grad '
        'images_per_second params genotype'
    )
    for line in lines:
        assert set(promised.split()) <= set(line)
        assert line['guard/arch'] == line['guard/grad'] == 0
    assert [line['tau'] is None for line in lines] == [True, *[False] * 9]
    drawn = [line['arch/draw_entropy'] for line in lines]
    assert [entropy is None for entropy in drawn] == [True, *[False] * 8, True]
    assert all(0 <= line['arch/draw_entropy'] < line['arch/entropy'] for line in lines[1:9])
    assert lines[-1]['params'] <= lines[-2]['params']
    assert lines[-1]['arch/entropy'] == 0


def test_page_is_that_of_the_files_that_the_run_has_left(whole):
    workdir, summary = whole
    text = (workdir / page.NAME).read_text(encoding='utf-8')
    assert text == page.render(run_record.read(workdir))
    assert 'Finished.' in text
    assert f'{100 * summary["test_accuracy"]:.1f} %' in text
    told = run_record.read(workdir)
    assert [network.spec.is_derived() for network in told.networks] == [False] * 9 + [True]
    assert [(track.group, sorted(track.columns)) for track in told.tracks()] == [
        (0, [*range(9)]),
        (1, [6, 7, 8]),
    ]
    assert all(len(block) == 1 for network in told.networks for block in network.factors)
    json.loads((workdir / 'run.json').read_text())['classes'].index('7')


def test_run_stopped_in_each_phase_and_resumed_ends_bit_for_bit_as_the_whole_one(whole):
    assert_same_end(whole[0].parent / 'stopped', whole[0], tiny(**WHOLE))


def test_finished_run_started_again_changes_nothing(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    again = single_run.run(tiny(**WHOLE), workdir)
    assert json.loads((workdir / 'summary.json').read_text()) == again
    assert (workdir / 'metrics.jsonl').read_text() == (whole[0] / 'metrics.jsonl').read_text()
    assert_same_end(workdir, whole[0], tiny(**WHOLE))


@pytest.mark.slow
def test_soft_draws_bfloat16_and_train_data_for_alpha_run_through(tmp_path):
    changes = {
        'search.estimator': 'gumbel',
        'search.arch_data': 'train',
        'model.dtype': 'bfloat16',
        'model.primitives': ('none', *CHEAPEST),
    }
    config = tiny(**changes, **{'search.noise': 'unit', 'growth.epochs': 0})
    summary = single_run.run(config, tmp_path / 'run')
    assert [row['name'] for row in summary['phases']] == ['warmup', 'search', 'optimize']
    for line in lines_of(tmp_path / 'run'):
        assert line['guard/grad'] == 0


@pytest.mark.parametrize('space', CELL_SPACES)
def test_cell_is_found_in_every_phase_and_trains_from_scratch(space, tmp_path):
    fields = {
        'model.space': space,
        'model.depth': {'nasbench201': 3, 'darts': 2}[space],
        'model.primitives': NAMES_OF[space],
        'growth.epochs': 0,
    }
    table = tmp_path / 'table.csv'
    skips = registry.SPACES[space].dumps(genotype.Genotype(SKIPS[space]))
    table.write_text(f'arch,cifar10\n{csv_text(skips)},90\n')
    search_it = tiny(**fields, **{'benchmark.table': str(table)})
    found = single_run.run(search_it, tmp_path / 'found')
    assert [row['name'] for row in found['phases']] == ['warmup', 'search', 'optimize']
    assert found['benchmark'] == {}
    text = (tmp_path / 'found' / 'genotype.txt').read_text()
    table.write_text(f'arch,cifar10\n{csv_text(text.strip())},91.5\n{csv_text(skips)},90\n')
    told = single_run.run(search_it, tmp_path / 'found')['benchmark']  # finished: only looks it up
    assert told == {'cifar10': {'accuracy': 91.5, 'rank': 1, 'of': 2}}
    assert registry.SPACES[space].loads(text).to_json() == found['genotype']
    alone = {**fields, 'warmup.epochs': 0, 'search.epochs': 0}
    name = {'nasbench201': 'genotype.txt', 'darts': 'genotype.json'}[space]
    trained = single_run.run(
        tiny(**alone, genotype=str(tmp_path / 'found' / name)), tmp_path / 'alone'
    )
    assert (trained['genotype'], trained['params']) == (found['genotype'], found['params'])


@pytest.mark.parametrize('space', CELL_SPACES)
def test_remedies_against_collapse_run_through_and_what_was_chosen_begins_anew(
    space, tmp_path, caplog
):
    fields = {
        'model.space': space,
        'model.depth': 2,
        'model.primitives': NAMES_OF[space],
        'search.auxiliary_skip': True,
        'search.exact_start': space == 'nasbench201',
        'search.partial_channels': 2,
        'growth.epochs': 0,
    }
    with caplog.at_level(logging.INFO, 'asose_jax'):
        summary = single_run.run(tiny(**fields), tmp_path / 'run')
    assert 'the chosen operations start from fresh weights' in caplog.text
    assert [row['name'] for row in summary['phases']] == ['warmup', 'search', 'optimize']
    lines = lines_of(tmp_path / 'run')
    assert all(line['guard/arch'] == line['guard/grad'] == 0 for line in lines)
    written = json.loads((tmp_path / 'run' / 'genotype.json').read_text())
    assert written['network']['partial'] == 1
    source = str(tmp_path / 'run' / 'checkpoints' / '4')
    with pytest.raises(UserError, match=r'search.partial_channels=2, this run has 1'):
        single_run.run(
            tiny(**{**fields, 'search.partial_channels': 1, 'init_from': source}), tmp_path / 'two'
        )
    if space == 'darts':  # elsewhere such a skip has no weights
        plain = {**fields, 'search.auxiliary_skip': False, 'init_from': source}
        with pytest.raises(UserError, match=r"has the weights .*\['auxiliary'\].*this run lacks"):
            single_run.run(tiny(**plain), tmp_path / 'two')
        assert not (tmp_path / 'two').exists()


# One block that is trained from scratch, on all images.
_ALONE = {
    'genotype': '{"genotype": [["nor_conv_1x1"]]}',
    'data.valid_fraction': 0,
    'model.depth': 1,
    'model.reductions': (),
    'model.primitives': CHEAPEST,
    **{'warmup.epochs': 0, 'search.epochs': 0, 'growth.epochs': 0, 'optimize.epochs': 2},
}


def _statistics_by_hand(spec, variables, data, config):
    """BatchNorm's, as means over the training batches that evaluations take them from.

    Of the most likely network; those of all other candidates are 0.
    """
    net, zeros = networks.supernet(spec), jax.tree.map(np.zeros_like, variables['batch_stats'])

    @jax.jit
    def of_batch(images):
        _, changed = net.apply(
            {**variables, 'batch_stats': zeros},
            images,
            mode=Mode.ARGMAX,
            train=True,
            mutable=['batch_stats', 'guard'],
        )
        return jax.tree.map(lambda leaf: leaf / 0.1, changed['batch_stats'])  # momentum of 0.9

    found = []
    for number in range(config.search.statistics_batches):
        picks = batches.batch_indices(data.train, config.seed, 3, number, config.batch_size)
        found.append(of_batch(np.float32((data.images.read(picks)[0] - data.mean) / data.std)))
    return jax.tree.map(lambda *leaves: np.mean(leaves, 0), *found)


def test_averaged_network_is_evaluated_with_its_own_statistics_kept_and_resumed(tmp_path, caplog):
    """And no image is held out, which log, lines, summary and page say."""
    fields = {**_ALONE, 'optimize.ema': 0.9, 'weights.nesterov': True}
    with caplog.at_level(logging.INFO, 'asose_jax'):
        assert_resumed_as_the_whole(fields, 25, tmp_path)
    whole, config = tmp_path / 'whole', tiny(**fields)
    assert 'no validation (data.valid_fraction=0): all 1437 images are trained on' in caplog.text
    assert [(row['valid/accuracy'], row['valid/loss']) for row in lines_of(whole)] == [
        (None,) * 2
    ] * 2
    summary = json.loads((whole / 'summary.json').read_text())
    assert summary['valid_accuracy'] is None
    assert 'none: all images are trained on' in (whole / page.NAME).read_text(encoding='utf-8')
    _, _, held = final_state(whole, config)
    chex.assert_trees_all_equal(held.params, held.average)
    model, data = inference.load(whole), builders.load_data(config)
    chex.assert_trees_all_equal(model.variables['params'], held.average)
    chex.assert_trees_all_close(
        model.variables['batch_stats'],
        _statistics_by_hand(model.spec, model.variables, data, config),
        rtol=1e-3,
        atol=1e-4,
    )
    pixels, labels = data.images.read(data.test)
    right = (model.predict(pixels).argmax(-1) == labels).mean()
    assert summary['test_accuracy'] == pytest.approx(right, abs=1e-6)


def test_supernet_is_evaluated_with_the_statistics_of_its_most_likely_network(whole):
    """The state at the end of search has kept them."""
    config = tiny(**WHOLE)
    _, spec, held = final_state(whole[0], config, step=16)  # the end of search
    assert not spec.is_derived()
    variables = {**held.trainable, 'batch_stats': held.batch_stats}
    expected = _statistics_by_hand(spec, variables, builders.load_data(config), config)
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(held.batch_stats), strict=True)
    used = [(by_hand, kept) for by_hand, kept in pairs if by_hand.any()]
    assert len(used) >= 4  # of the stem, and of the transition behind it
    for by_hand, kept in used:
        np.testing.assert_allclose(kept, by_hand, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_average_begins_with_the_derived_network_and_another_run_begins_with_it(tmp_path):
    fields = {
        'model.depth': 1,
        'model.reductions': (),
        'model.primitives': ('none', *CHEAPEST),
        **{'growth.epochs': 0, 'optimize.epochs': 2, 'optimize.ema': 0.9, 'optimize.lr': 0.1},
        **{'optimize.mixup': 0.2, 'optimize.label_smoothing': 0.1, 'optimize.randaugment': 1},
        **{'checkpoint.every_seconds': 0, 'checkpoint.keep': 100},
    }
    assert_resumed_as_the_whole(fields, 21, tmp_path)
    whole = tmp_path / 'halves'
    held = whole / 'checkpoints' / '21'
    with checkpoint.Checkpoints(held.parent) as checkpoints:
        assert checkpoint.has_average(checkpoints.describe(21)['checksums'])
        assert not checkpoint.has_average(checkpoints.describe(16)['checksums'])
    alone = {'warmup.epochs': 0, 'search.epochs': 0, 'optimize.epochs': 1}
    plain = {**fields, **alone, 'optimize.ema': 0.0, 'optimize.lr': None, 'init_from': str(held)}
    summary = single_run.run(tiny(**plain), tmp_path / 'on')
    assert [row['name'] for row in summary['phases']] == ['optimize']


@pytest.mark.soak
def test_search_that_looks_ahead_is_resumed_bit_for_bit(tmp_path):
    assert_resumed_as_the_whole({**CELLS, **AHEAD}, 10, tmp_path)  # a step of alpha is next
    assert all(line['guard/grad'] == 0 for line in lines_of(tmp_path / 'whole'))


@pytest.mark.slow
def test_cells_are_resumed_bit_for_bit_and_do_not_start_a_run_of_another_space(tmp_path):
    fields = {**CELLS, 'warmup.operations': 'uniform'}
    assert_resumed_as_the_whole(fields, 9, tmp_path)
    source = str(tmp_path / 'whole' / 'checkpoints' / '16')
    with pytest.raises(UserError, match=r"space 'nasbench201'; model\.space='chain'"):
        single_run.run(tiny(init_from=source), tmp_path / 'other')


def test_choices_that_decide_on_nothing_are_one_clear_error(tmp_path):
    darts = {'model.space': 'darts', 'growth.epochs': 0, 'model.reductions': ()}
    with pytest.raises(UserError, match='some rows of alpha would control no operation'):
        single_run.run(tiny(**darts), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            '{"genotype": [["none"], ["none"]], "network": {"space": "darts"}}',
            "it is for the space 'darts'",
        ),
        ('|none~0|', "the space 'chain' has no text format"),
        (
            '{"genotype": [["skip_connect"]]}',
            r'groups have \[1\] operations, those of the network need \[1, 1\]',
        ),
        ('{"genotype": [["skip"], ["sep_conv_3x3"]]}', r"unknown operations \['skip'\]"),
        ('{"genotype": 3}', 'holds no genotype'),
        ('{', 'holds no genotype'),
        (None, 'No such file'),
    ],
)
def test_genotype_that_does_not_fit_is_one_clear_error(text, message, tmp_path):
    file = tmp_path / 'found.txt'
    if text is not None:
        file.write_text(text)
    alone = {'warmup.epochs': 0, 'search.epochs': 0, 'growth.epochs': 0}
    with pytest.raises(UserError, match=message):
        single_run.run(tiny(genotype=str(file), **alone), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('preset', 'law'),
    [('cifar10', 'temperature'), ('digits', 'temperature'), ('seed', 'unit'), ('darts', 'unit')],
)
def test_draws_follow_the_law_of_the_preset(preset, law):
    spec = networks.build('chain', (8, 8, 1), 2, channels=4, depth=1, reductions=(), max_channels=4)
    assert builders.make_supernet(get_config(preset), spec).settings.noise == law


def test_new_mixed_operations_lean_against_what_a_residual_does_already():
    candidates = ('none', 'skip_connect', 'max_pool_3x3')
    spec = networks.build('chain', (8, 8, 1), 2, channels=4, depth=1, reductions=(), max_channels=4)
    for preset, skip in (('cifar10', -2.0), ('seed', 1.0)):
        config = get_config(preset)
        settings = builders.make_supernet(config, spec, config.growth).settings
        alpha = settings.initial_alpha(jax.random.key(0), candidates)
        assert alpha[:2].tolist() == [-2.0, skip]


@pytest.mark.parametrize(
    'seed', [3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (4, 5))]
)
def test_six_blocks_learn_in_warmup_with_any_seed(seed, tmp_path):
    """With factors at 1, these seeds need gradients that are clipped."""
    config = get_config('digits')
    config.seed = seed
    config.search.exact_start = False
    config.model.depth, config.model.reductions = 6, (1, 3)
    config.model.primitives = ('skip_connect', 'max_pool_3x3')
    config.warmup.epochs = 3
    config.search.epochs = config.growth.epochs = config.optimize.epochs = 0
    single_run.run(config, tmp_path / 'run')
    last = lines_of(tmp_path / 'run')[-1]
    assert last['valid/accuracy'] > 0.33
    assert min(skip for block in last['factors'] for skip, _ in block) > -0.4


@pytest.mark.slow
def test_streamed_images_run_through(cifar_dir, tmp_path):
    summary = single_run.run(tiny(**streamed(cifar_dir)), tmp_path / 'run')
    assert [row['name'] for row in summary['phases']] == ['warmup', 'search', 'optimize']
    assert all(line['guard/grad'] == 0 for line in lines_of(tmp_path / 'run'))


def test_search_starts_from_the_end_of_another_runs_warmup(whole, tmp_path):
    epochs = {'warmup.epochs': 0, 'search.epochs': 1, 'growth.epochs': 0, 'optimize.epochs': 0}
    config = tiny(**{**WHOLE, **epochs, 'init_from': str(whole[0] / 'checkpoints' / '4')})
    run_until(6, config, tmp_path / 'run')
    (only,) = lines_of(tmp_path / 'run')
    assert (only['step'], only['phase']) == (6, 'search')


def test_a_supernet_with_residuals_does_not_go_on_without(whole, tmp_path):
    source = str(whole[0] / 'checkpoints' / '4')
    config = tiny(**{'init_from': source, 'model.residual': False, 'growth.epochs': 0})
    with pytest.raises(UserError, match=r'with model.residual=True, this run has False'):
        single_run.run(config, tmp_path / 'run')


def test_derived_network_cannot_be_searched(whole, tmp_path):
    with pytest.raises(UserError, match='holds a derived network'):
        single_run.run(tiny(init_from=str(whole[0])), tmp_path / 'run')


def test_source_of_other_images_is_an_error(whole, tmp_path):
    config = tiny(**{'init_from': str(whole[0]), 'data.image_size': 12})
    with pytest.raises(UserError, match=r'was trained on images \(8, 8, 1\)'):
        single_run.run(config, tmp_path / 'run')


def test_workdir_of_another_config_is_an_error_that_names_the_fields(whole):
    workdir, _ = whole
    with pytest.raises(UserError) as error:
        single_run.run(tiny(**{**WHOLE, 'seed': 5, 'weights.lr': 0.1}), workdir)
    message = str(error.value)
    assert 'holds a run with another config' in message
    assert 'seed: 0 -> 5' in message
    assert 'weights.lr: 0.025 -> 0.1' in message


def test_unreadable_checkpoint_is_an_error(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / 'run')
    (workdir / 'summary.json').unlink()
    for path in (workdir / 'checkpoints').rglob('*'):
        if path.is_file() and path.parent.name == 'd':
            path.write_bytes(b'broken')
    with pytest.raises(UserError, match=r'(?s)no checkpoint can be read:.*checkpoints/4/state'):
        single_run.run(tiny(**WHOLE), workdir)
    assert (workdir / 'checkpoints' / '4').is_dir()  # nothing was deleted or moved


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'batch_size': 61}, 'batch_size=61: must be divisible by the 2 devices'),
        ({'search.turn_period': 1}, 'search.turn_period=1: must be an integer of at least 2'),
        ({'data.valid_fraction': 0.999}, 'data.valid_fraction=0.999 splits 1437'),
        ({'model.depth': 5, 'model.reductions': (0, 1, 2, 3)}, 'images of 8x8 are too small'),
        ({'warmup.epochs': 2**31}, 'steps, but at most 2147483647 can be counted'),
        ({**CELLS, 'benchmark.table': 'nats_bench:nowhere'}, 'pip install nats_bench'),
        ({'data.name': 'digitz'}, "neither 'digits' nor 'folder' nor a TFDS image set"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_no_workdir(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        single_run.run(tiny(**changes), tmp_path / 'run')
    assert message in str(error.value)
    assert not (tmp_path / 'run').exists()


def _without(content, key):
    return {k: v for k, v in content.items() if k != key}


def _with_operation(content, names):
    content = json.loads(json.dumps(content))
    content['network']['blocks'][0]['branches'][0] = names
    return content


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda _: None, 'cannot be read as a network'),
        (lambda _: '{"schema": 1', 'cannot be read as a network'),
        (lambda _: [], 'cannot be read as a network'),
        (lambda c: _without(c, 'network'), 'cannot be read as a network'),
        (lambda c: _without(c, 'schema'), 'cannot be read as a network'),
        (
            lambda c: {
                **c,
                'schema': 1,
                'space': 'chain',
                'network': _without(c['network'], 'space'),
            },
            "is of space 'chain', schema 1; this version reads",
        ),
        (
            lambda c: {**c, 'network': {**c['network'], 'space': 'hyper'}},
            "is of space 'hyper', schema 2; this version reads",
        ),
        (lambda c: {**c, 'schema': 9}, "is of space 'chain', schema 9; this version reads"),
        (lambda c: _with_operation(c, ['conv_9x9']), r"unknown operations \['conv_9x9'\]"),
        (
            lambda c: _with_operation(c, ['none', 'skip_connect']),
            'has choices of several candidates',
        ),
        (
            lambda c: {**c, 'network': {**c['network'], 'num_classes': 7}},
            r'is for images \(8, 8, 1\) of 7 classes',
        ),
    ],
)
def test_network_that_does_not_fit_is_one_clear_error(whole, tmp_path, change, message):
    content = change(json.loads((whole[0] / 'genotype.json').read_text()))
    file = tmp_path / 'genotype.json'
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    epochs = {'warmup.epochs': 0, 'search.epochs': 0, 'growth.epochs': 0}
    with pytest.raises(UserError, match=message):
        single_run.run(tiny(network=str(file), **epochs), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_broken_config_of_a_run_is_an_error(tmp_path):
    (tmp_path / 'config.json').write_text('{"seed": 0')
    with pytest.raises(UserError, match=r'config.json cannot be read .*delete the file'):
        single_run.run(tiny(), tmp_path)


@pytest.mark.parametrize(
    ('field', 'value'),
    [('seed', 1.5), ('data.valid_fraction', float('nan')), ('growth.kinds', ('length',))],
)
def test_bad_field_is_an_error_before_anything_is_written(tmp_path, field, value):
    """All the others are in config_test."""
    config = tiny()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(f'{field}=')):
        single_run.run(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_no_disk_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoint.shutil, 'disk_usage', lambda _: type('Usage', (), {'free': 1000})
    )
    with pytest.raises(UserError, match='no room for checkpoints'):
        single_run.run(tiny(**WHOLE), tmp_path / 'run')


def test_persistent_trouble_stops_the_run_and_names_the_checkpoint(tmp_path, monkeypatch, programs):
    programs.install(monkeypatch)
    original = pmap.shared_arrays

    def poisoned(images, key):
        return {**original(images, key), 'std': pmap.replicated(np.float32([np.nan]))}

    monkeypatch.setattr(pmap, 'shared_arrays', poisoned)
    fields = {**WHOLE, 'guard.max_consecutive': 2, 'checkpoint.every_seconds': 0}
    with pytest.raises(UserError) as error:
        single_run.run(tiny(**fields), tmp_path)
    message = str(error.value)
    # How many steps a call has, and so when it is noticed, depends on the speed of the machine.
    step = re.search(r'warmup: before step ([34]), more than 2 steps in a row', message)
    good = re.search(r'the last good checkpoint is (\S+)\.', message)
    assert pathlib.Path(good[1]).parent == tmp_path / 'checkpoints'
    assert pathlib.Path(good[1]).is_dir()
    assert int(pathlib.Path(good[1]).name) < int(step[1])


def test_collapse_and_fall_are_told(tmp_path, monkeypatch, caplog, programs):
    programs.install(monkeypatch)

    def only_skip(self, key, candidates):
        return jax.numpy.zeros(len(candidates)).at[candidates.index('skip_connect')].set(9.0)

    monkeypatch.setattr(supernet.NetSettings, 'initial_alpha', only_skip)
    accuracies = iter([0.9, 0.6, 0.6, 0.6, 0.6])
    honest = evaluation.mean_loss_and_accuracy
    monkeypatch.setattr(
        evaluation, 'mean_loss_and_accuracy', lambda sums: (honest(sums)[0], next(accuracies, 0.6))
    )
    with caplog.at_level(logging.WARNING, 'asose_jax'):
        run_until(16, tiny(**WHOLE), tmp_path)
    told = [record.getMessage() for record in caplog.records]
    assert sum('collapse: 100 % of the genotype' in line for line in told) == 2
    falls = [line for line in told if line.startswith('fall:')]
    assert len(falls) == 1
    assert '90.0 % at the end of warmup to 60.0 %' in falls[0]
