"""Every field of the config is checked, alone and against the others, before anything is done."""

import json
import logging
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

import asose_jax
from asose_jax.config import retrain
from asose_jax.config.consistency import (
    as_config,
    differences,
    fields_to_record,
    flatten,
    frozen_epochs,
    has_exact_start,
    ignored_fields,
    require_same_config,
    require_whole,
    unflatten,
    validate,
    with_original_defaults,
)
from asose_jax.config.schema import BEFORE, FIELDS, GROUPS
from asose_jax.runtime.errors import UserError
from configs import search


def _with(**fields):
    """A config as if it came from elsewhere: nothing but the fields' names is checked yet."""
    nested = search.get_config('digits').to_dict()
    for path, value in fields.items():
        *groups, last = path.split('.')
        inner = nested
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return ConfigDict(nested)


@pytest.mark.parametrize('preset', search.PRESETS)
def test_presets_are_right(preset):
    config = search.get_config(preset)
    if preset == 'folder':
        config.data.dir = 'pictures'
    validate(config, devices=1)


def test_every_default_is_allowed_and_every_rule_has_wrong_values():
    assert set(flatten(search.get_config())) == set(FIELDS)
    assert {name.rpartition('.')[0] for name in FIELDS if '.' in name} == set(GROUPS)
    for name, field in FIELDS.items():
        assert field.rule.holds(field.default), name
        assert field.rule.wrong, name


@pytest.mark.parametrize(
    ('field', 'value'), [(name, v) for name, field in FIELDS.items() for v in field.rule.wrong]
)
def test_value_outside_its_range_is_named_with_what_is_allowed(field, value):
    with pytest.raises(UserError) as error:
        validate(_with(**{field: value}), devices=1)
    assert f'{field}={value!r}: must be {FIELDS[field].rule.allowed}' in str(error.value)


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(UserError) as error:
        validate(_with(**{'batch_size': 0, 'search.turn_period': 1, 'nonsense': 3}), devices=1)
    for part in ('batch_size=0', 'search.turn_period=1', 'nonsense: there is no such field'):
        assert part in str(error.value)


def test_missing_field_is_named():
    config = _with().to_dict()
    del config['search']['noise']
    with pytest.raises(UserError, match=r'search.noise: missing'):
        validate(ConfigDict(config), devices=1)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'batch_size': 60}, r'batch_size=60: must be divisible by the 8 devices; try 64'),
        ({'arch.micro_batches': 3}, r'must divide the 8 images of a batch that each device gets'),
        ({'model.reductions': (1, 4)}, r'model.depth=3 the blocks are 0..2'),
        ({'search.tau_floor': 0.9}, r'search.tau_floor=0.9: must not exceed search.tau_start=0.8'),
        ({'weights.lr_end': 1.0}, r'weights.lr_end=1.0: must not exceed weights.lr'),
        ({'arch.lr': 0.1, 'arch.lr_end': 1.0}, r'arch.lr_end=1.0: must not exceed arch.lr'),
        (
            {'growth.kinds': ('auto',), 'growth.where': 'last'},
            r"growth.where='last': growth.kinds=\('auto',\) compares scores",
        ),
        ({'data.name': 'folder'}, r"data.dir=None: data.name='folder' needs the folder"),
        *(
            ({field: value}, f"{field}={value!r}: has no effect on data.name='digits', .*remove it")
            for field, value in (
                ('data.dir', 'pictures'),
                ('data.train_split', 'training'),
                ('data.test_split', 'val'),
            )
        ),
        (
            {'data.test_fraction': 0.1},
            r"data.test_fraction=0.1: is for folders .* 'digits' has its",
        ),
        (
            {
                **{'model.space': 'darts', 'model.primitives': ('none', 'skip_connect')},
                **{'growth.epochs': 0, 'seeds': (0,), 'plain_cells': ('none',)},
            },
            r"plain_cells: cells of the space 'darts' never choose 'none'",
        ),
        ({'network': 'a', 'init_from': 'b'}, r'network, init_from: set one of them'),
        ({'optimize.frozen': True}, r'optimize.frozen=True: .* set init_from to its workdir'),
        (
            {'optimize.frozen': True, 'init_from': 'a', 'optimize.epochs': 0},
            r'optimize.frozen=True: .* and optimize.epochs above 0',
        ),
        *(
            (
                {'optimize.frozen': True, 'init_from': 'a', f'optimize.{field}': 0.2},
                rf'optimize.{field}=0.2: acts on weights that .* set optimize.{field}=0',
            )
            for field in ('drop_path', 'second_head')
        ),
        *(
            (
                {'optimize.frozen': True, 'init_from': 'a', f'{phase}.epochs': 3},
                rf'{phase}.epochs=3: trains weights that optimize.frozen=True .* {phase}.epochs=0',
            )
            for phase in ('warmup', 'search', 'growth')
        ),
        ({'model.space': 'nasbench201'}, r"networks of the space 'nasbench201' do not grow"),
        (
            {'model.space': 'darts', 'model.primitives': ('skip_connect', 'max_pool_3x3')},
            "the space 'darts' needs none",
        ),
        ({'model.space': 'darts', 'model.channels': 7}, r'model.channels=7: .* a multiple of 2'),
        (
            {'search.noise': 'temperature', 'search.estimator': 'softmax'},
            r"search.estimator='softmax' has no such noise",
        ),
        ({'benchmark.table': 'a'}, r"networks with the space 'chain'"),
        (
            {
                'model.space': 'darts',
                'growth.epochs': 0,
                'benchmark.table': 'nats_bench',
                'model.primitives': ('none', 'skip_connect'),
            },
            r"networks with the space 'darts'",
        ),
        (
            {
                'model.space': 'nasbench201',
                'growth.epochs': 0,
                'benchmark.table': 'a',
                'model.primitives': ('skip_connect', 'sep_conv_3x3'),
            },
            r"networks with \['sep_conv_3x3'\] in the space 'nasbench201'",
        ),
        ({'model.space': 'darts', 'model.max_channels': 9}, r'model.max_channels=9: .* of 2'),
        (
            {'search.partial_channels': 3, 'growth.epochs': 0},
            r'model.channels=16: .*partial_channels=3 needs a multiple of 3',
        ),
        (
            {'model.space': 'darts', 'search.partial_channels': 4, 'model.channels': 12},
            r'model.channels=12: .*partial_channels=4 needs a multiple of 8',
        ),
        ({'search.partial_channels': 4}, r'partial channels do not grow; set growth.epochs=0'),
        ({'model.residual': False}, r'model.residual=False: .* do not grow, .* growth.kinds=\(\)'),
        (
            {'model.space': 'darts', 'model.residual': False},
            r"model.residual=False: is for the space 'chain'; the sums of 'darts'",
        ),
        (
            {'search.auxiliary_skip': True, 'search.epochs': 0},
            r'search.auxiliary_skip=True: it fades over search; set search.epochs above 0',
        ),
        ({'search.estimator': 'softmax', 'arch.samples': 2}, r'arch.samples=2: .* draws nothing'),
        ({'cost.kind': 'flops'}, r"cost.kind='flops', cost.target=None: set both or neither"),
        ({'cost.target': 1.0}, r'cost.kind=None, cost.target=1.0: set both or neither'),
        ({'cost.targets': (1e5, 2e5)}, r'cost.targets=\(100000.0, 200000.0\): set cost.kind to'),
        *(
            (
                {'cost.kind': 'flops', 'cost.targets': (1e5, 2e5), **changes},
                message,
            )
            for changes, message in (
                ({'cost.target': 1e5}, r'cost.target=100000: each of cost.targets=.* leave it out'),
                ({'cost.limit.flops': 1e5}, r'cost.limit.flops=100000: each of cost.targets='),
                ({'cost.limit.latency': 1.0}, r'cost.targets=.*: each run .* cost.table'),
                ({'search.epochs': 0, 'growth.epochs': 0}, r"cost.kind='flops': nothing is chosen"),
                (
                    {'plain_cells': ('skip_connect',)},
                    r'plain_cells=.*chosen whatever they cost; with cost.targets=',
                ),
                (
                    {'search.selection': 'perturbation'},
                    r"search.selection='perturbation': .* with cost.targets=.* =?.*argmax",
                ),
                (
                    {
                        **{'cost.kind': 'latency', 'cost.table': 'a', 'random_cells': 1},
                        **{'retrain.depth': 20, 'growth.epochs': 0},
                    },
                    r'retrain.depth=20: cost.table has no latencies of networks of another size',
                ),
            )
        ),
        (
            {'cost.kind': 'params', 'cost.target': 1.0, 'cost.batch_size': 8},
            r"cost.batch_size=8: only cost.kind='latency' and cost.limit.latency measure",
        ),
        (
            {'cost.limit.params': 5e4, 'cost.table': 'table.json'},
            r"cost.table='table.json': only cost.kind='latency' and cost.limit.latency need",
        ),
        (
            {'cost.limit.latency': 1.0, 'cost.table': 'table.json', 'growth.epochs': 9},
            r"cost.table='table.json': has no latencies of networks that have grown; set growth",
        ),
        (
            {
                'cost.kind': 'params',
                'cost.target': 1.0,
                'search.epochs': 0,
                'growth.epochs': 0,
            },
            r"cost.kind='params': nothing is chosen",
        ),
        (
            {'cost.limit.params': 5e4, 'cost.kind': 'params', 'cost.target': 6e4},
            r'cost.target=60000: must not exceed cost.limit.params=50000',
        ),
        (
            {'cost.limit.flops': 1e6, 'search.selection': 'perturbation'},
            r"search.selection='perturbation': .* with cost.limit.flops=1e\+06, set .*=argmax",
        ),
        (
            {'cost.limit.flops': 1e6, 'random_cells': 3, 'seeds': (0,)},
            r'random_cells=3: such networks are chosen whatever they cost; with cost.limit.flops',
        ),
        ({'arch.anchor': 1e-3}, r'arch.anchor=0.001: .* set search.estimator=drnas'),
        ({'search.second_order': True}, r'needs search.estimator=gumbel or softmax or drnas'),
        (
            {
                'search.second_order': True,
                'search.estimator': 'softmax',
                'search.arch_data': 'train',
            },
            r'second_order=True: .* and search.arch_data=valid',
        ),
        *(
            (
                {'optimize.epochs': 0, f'optimize.{field}': value},
                rf'optimize.{field}={value}: nothing is optimized; set optimize.epochs above 0',
            )
            for field, value in (
                *(('lr', 0.1), ('label_smoothing', 0.1), ('mixup', 0.2), ('cutmix', 1.0)),
                *(('randaugment', 2), ('ema', 0.99)),
            )
        ),
        (
            {'optimize.ema': 0.9, 'search.statistics_batches': 0},
            r'optimize.ema=0.9: .* set search.statistics_batches above 0',
        ),
        ({'optimize.lr': 1e-5}, r'weights.lr_end=0.0001: must not exceed optimize.lr=1e-05'),
        (
            {'weights.nesterov': True, 'weights.momentum': 0.0},
            r'weights.nesterov=True: there is no momentum',
        ),
        *(
            ({'data.valid_fraction': 0, **changes}, r'data.valid_fraction=0: a search decides by')
            for changes in (
                {},
                {'search.epochs': 0, 'growth.epochs': 0},
                {
                    **{'warmup.epochs': 0, 'search.epochs': 0, 'growth.epochs': 0},
                    **{'search.selection': 'perturbation', 'init_from': 'a'},
                },
            )
        ),
        ({'search.turns': 'together'}, r'together: one batch .* set search.arch_data=train'),
        (
            {'search.turns': 'together', 'search.arch_data': 'train', 'arch.samples': 2},
            r'together: .* set arch.samples=1',
        ),
        ({'search.freeze_epochs': 30}, r'search.freeze_epochs=30: must be less than'),
        (
            {'search.exact_start': True, 'model.residual': False, 'growth.epochs': 0},
            r'search.exact_start=True: with model.residual=False nothing would go through a block',
        ),
        (
            {'search.exact_start': True, 'warmup.operations': 'uniform'},
            r"search.exact_start=True: warmup.operations='uniform' trains the candidates",
        ),
        (
            {'search.exact_start': True, 'model.space': 'darts', 'growth.epochs': 0},
            r"nothing would go through a cell of 'darts' at the start; set search.auxiliary_skip",
        ),
        ({'search.estimator': 'reinmax'}, r"'reinmax' needs at least 1.0; set search.tau_start"),
        ({'random_cells': 3}, r'random_cells=3: .* set seeds'),
        ({'plain_cells': ('skip_connect',)}, r'plain_cells=.* set seeds'),
        (
            {'plain_cells': ('nor_conv_3x3',), 'seeds': (0,)},
            r'plain_cells: nor_conv_3x3 is not in model.primitives',
        ),
        (
            {'optimize.second_head': 0.4},
            r'optimize.second_head=0.4: only networks that are trained',
        ),
        ({'search.early_stop': True}, r'alpha would go on in growth; set growth.epochs=0'),
        (
            {'search.early_stop': True, 'growth.epochs': 0, 'search.freeze_epochs': 21},
            r'search.stop_window=5: .* alpha moves in 9 epochs of the search',
        ),
        (
            {'search.settle_epochs': 24},
            r'search.settle_epochs=24: must be less than the 24 epochs of search in which',
        ),
        (
            {'search.selection': 'perturbation', 'genotype': 'a'},
            r"search.selection='perturbation': genotype names the operations already",
        ),
        ({'network': 'a'}, r"network='a': a derived network can only be optimized"),
        (
            {f'{p}.epochs': 0 for p in ('warmup', 'search', 'growth', 'optimize')},
            r'at least one needs epochs above 0',
        ),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        validate(_with(**fields), devices=8)


def test_average_of_a_network_whose_statistics_are_frozen_needs_no_others():
    config = search.get_config('digits')
    config.update_from_flattened_dict(
        {'optimize.ema': 0.9, 'search.statistics_batches': 0, 'init_from': 'a'}
    )
    with pytest.raises(UserError, match=r'set search.statistics_batches above 0'):
        validate(config, 1)
    config.optimize.frozen = True
    config.warmup.epochs = config.search.epochs = config.growth.epochs = 0
    validate(config, 1)


@pytest.mark.parametrize(
    ('preset', 'fields', 'exactly', 'frozen'),
    [
        ('cifar10', {}, True, 6),
        ('cifar10', {'search.epochs': 4}, True, 0),
        ('cifar10', {'search.freeze_epochs': 1}, True, 1),
        ('cifar10', {'model.residual': False}, False, 0),
        ('cifar10', {'warmup.operations': 'uniform'}, False, 0),
        ('digits', {'search.exact_start': False}, False, 0),
        ('seed', {}, False, 0),
        ('darts', {}, False, 0),
        ('darts', {'search.exact_start': True}, True, 6),
    ],
)
def test_search_begins_exactly_where_it_can_and_alpha_rests_at_first_then(
    preset, fields, exactly, frozen
):
    config = search.get_config(preset)
    config.update_from_flattened_dict(fields)
    assert has_exact_start(config) == exactly
    assert frozen_epochs(config) == frozen


def test_run_begun_before_a_field_existed_goes_on_without_it(tmp_path, caplog):
    config = search.get_config('darts')
    assert with_original_defaults(config, tmp_path) is config
    begun = flatten(config)
    del begun['search.exact_start'], begun['search.statistics_batches']
    (tmp_path / 'config.json').write_text(json.dumps({**begun, 'search.freeze_epochs': 2}))
    with caplog.at_level(logging.INFO, 'asose_jax'):
        found = with_original_defaults(config, tmp_path)
    assert (found.search.exact_start, found.search.statistics_batches) == (False, 0)
    assert found.search.freeze_epochs == 2
    assert 'goes on with search.exact_start=False, search.statistics_batches=0' in caplog.text
    require_same_config(flatten(found), tmp_path)
    kept = fields_to_record(flatten(found), tmp_path)  # as a run writes it when it goes on
    (tmp_path / 'config.json').write_text(json.dumps(kept))
    assert flatten(with_original_defaults(config, tmp_path)) == flatten(found)
    require_same_config(flatten(with_original_defaults(config, tmp_path)), tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(flatten(config)))
    assert with_original_defaults(config, tmp_path) is config


def test_older_run_goes_on_with_another_value_of_a_newer_field_that_may_change(tmp_path):
    config = search.get_config('digits')
    config.track = 'wandb'
    begun = {name: value for name, value in flatten(config).items() if name != 'track'}
    (tmp_path / 'config.json').write_text(json.dumps(begun))
    assert with_original_defaults(config, tmp_path) is config
    require_same_config(flatten(config), tmp_path)


def test_recorded_config_of_an_older_run_has_what_it_was_run_with():
    config = search.get_config('digits')
    older = {name: v for name, v in flatten(config).items() if name not in BEFORE}
    found = unflatten(json.loads(json.dumps(older)))
    assert (found.optimize.ema, found.weights.nesterov, found.search.exact_start) == (
        0,
        False,
        False,
    )
    assert found.model.reductions == config.model.reductions


def test_differences_name_the_fields():
    ours, theirs = (flatten(search.get_config(p)) for p in ('digits', 'cifar10'))
    theirs = {**theirs, 'model.reductions': list(ours['model.reductions'])}  # as JSON has it
    told = differences(ours, theirs)
    assert "data.name: 'cifar10' -> 'digits'" in told
    assert not any('reductions' in line for line in told)


def test_fields_that_change_nothing_learned_may_change_when_a_run_goes_on(tmp_path, caplog):
    begun = flatten(search.get_config('digits'))
    (tmp_path / 'config.json').write_text(json.dumps(begun))
    changed = {'checkpoint.keep': 5, 'alarm.fall': 0.5, 'chunk_steps': 8}
    with caplog.at_level(logging.INFO, 'asose_jax'):
        require_same_config({**begun, **changed}, tmp_path)
    assert 'alarm.fall: 0.75 -> 0.5; checkpoint.keep: 2 -> 5; chunk_steps: 32 -> 8' in caplog.text
    with pytest.raises(UserError, match=r'another config:\n  weights.lr: 0.025 -> 0.1\nGo on'):
        require_same_config({**begun, **changed, 'weights.lr': 0.1}, tmp_path)


def test_run_on_the_digits_goes_on_without_the_fields_that_they_ignored(tmp_path):
    """Older versions took them; now they are refused, so the same command has to go without."""
    fields = flatten(_with())
    ignored = {'data.dir': 'sets', 'data.train_split': 'a', 'data.test_split': 'b'}
    (tmp_path / 'config.json').write_text(json.dumps({**fields, **ignored}))
    require_same_config(fields, tmp_path)
    with pytest.raises(UserError, match=r'another config:\n  data.valid_fraction: 0.2 -> 0.3\nGo'):
        require_same_config({**fields, 'data.valid_fraction': 0.3}, tmp_path)


# --- Configs of the API


PLAIN = flatten(search.get_config('digits'))


@pytest.mark.parametrize(
    'config',
    [
        search.get_config('digits'),
        search.get_config('digits').to_dict(),
        PLAIN,
        FrozenConfigDict(search.get_config('digits')),
        {**PLAIN, 'seed': np.int64(0), 'weights.lr': np.float64(PLAIN['weights.lr'])},
        {**PLAIN, 'batch_size': np.array(64), 'data.flip': np.bool_(False)},
        {**PLAIN, 'model.reductions': np.array([1, 2])},
        {**PLAIN, 'model.reductions': tuple(np.arange(1, 3))},
    ],
    ids=[
        *('preset', 'nested', 'dotted', 'frozen', 'scalars', 'array of no axis', 'array'),
        'tuple of scalars',
    ],
)
def test_config_is_read_as_python_has_it(config):
    found = as_config(config)
    assert type(found) is ConfigDict
    assert flatten(found) == PLAIN
    types = {name: type(value) for name, value in PLAIN.items()}
    assert {name: type(value) for name, value in flatten(found).items()} == types
    validate(found, devices=1)
    json.dumps(flatten(found))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({**PLAIN, 3: 4}, '3: there is no such field'),
        ({**PLAIN, 'search.bogus': 1}, 'search.bogus: there is no such field'),
        ({**PLAIN, 'weights.lr': np.array([0.1, 0.2])}, r'weights.lr=\(0.1, 0.2\): must be'),
        ({**PLAIN, 'seeds': {1, 2}}, r'seeds=\{1, 2\}: must be a tuple'),
        ({**PLAIN, 'seeds': 3}, r'seeds=3: must be a tuple'),
        ({**PLAIN, 'data.dir': b'pics'}, r"data.dir=b'pics': must be a non-empty string"),
    ],
)
def test_value_that_no_field_can_have_is_refused_with_its_name(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        asose_jax.search(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('field', 'value', 'expected'),
    [
        ('seeds', range(2), (0, 1)),
        ('data.dir', pathlib.Path('a') / 'b', 'a/b'),
        ('genotype', pathlib.Path('g.json'), 'g.json'),
        ('seeds', np.arange(3), (0, 1, 2)),
        ('arch.lr', np.float32(0.5), 0.5),
        ('search.exact_start', np.bool_(True), True),
    ],
)
def test_value_of_another_library_becomes_one_of_python(field, value, expected):
    config = search.get_config('digits')
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    found = flatten(as_config(config))[field]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('digits', "^config='digits' is no config; start from a preset"),
        (None, '^config=None is no config'),
        ({}, r'^the config lacks \d+ of \d+ fields, such as seed and seeds; start from a preset'),
        ({'search': {'epochs': 3}}, 'the config lacks'),
        ({'search.epochs': 3}, 'the config lacks'),
        ([('seed', 1)], r"config=\[\('seed', 1\)\] is no config"),
    ],
)
def test_what_is_no_config_is_one_line(config, message):
    with pytest.raises(UserError, match=message) as told:
        as_config(config)
    assert '\n' not in str(told.value)


# --- Fields that change nothing


@pytest.mark.parametrize(
    ('chosen', 'beside', 'ignored'),
    [
        ({'retrain.lr': 0.5}, {}, True),
        ({'retrain.lr': 0.5}, {'seeds': (0,), 'random_cells': 1}, False),
        ({'cost.weight': 3.0}, {}, True),
        ({'cost.weight': 3.0}, {'cost.kind': 'params', 'cost.target': 9.0}, False),
        ({'cost.limit.params': 9e3}, {}, False),
        ({'cost.limit.latency': 1e-3}, {'cost.batch_size': 8}, False),
        ({'optimize.randaugment_magnitude': 7.0}, {}, True),
        ({'optimize.randaugment_magnitude': 7.0}, {'optimize.randaugment': 2}, False),
        ({'retrain.randaugment_magnitude': 7.0}, {}, True),
        ({'growth.patience': 9}, {'growth.epochs': 0}, True),
        ({'growth.patience': 9}, {}, False),
        ({'growth.epochs': 0}, {}, False),
        ({'growth.score_batches': 2}, {'growth.where': 'last'}, True),
        ({'growth.score_batches': 2}, {}, False),
        ({'growth.width_factor': 1.5}, {'growth.kinds': ('depth',)}, True),
        ({'growth.width_factor': 1.5}, {'growth.kinds': ('depth+width',)}, False),
        ({'growth.max_branches': 3}, {'growth.kinds': ('depth', 'width')}, True),
        ({'growth.max_branches': 3}, {'growth.kinds': ('auto',)}, False),
        ({'search.thresholds': (1, 1, 0, 0, 0)}, {}, True),
        ({'search.thresholds': (1, 1, 0, 0, 0)}, {'search.estimator': 'gumbel'}, False),
        ({'search.tau_start': 2.0}, {'search.estimator': 'softmax'}, True),
        ({'search.tau_start': 2.0}, {}, False),
        ({'search.anneal_every': 2}, {'search.estimator': 'drnas'}, True),
        ({'search.transition_noise': 0.1}, {'warmup.epochs': 0}, True),
        ({'search.transition_noise': 0.1}, {}, False),
        ({'search.stop_window': 2}, {}, True),
        ({'search.stop_window': 2}, {'search.early_stop': True}, False),
        ({'arch.travel': 2.0}, {'arch.lr': 0.1}, True),
        ({'search.epochs': 9}, {}, False),
    ],
)
def test_chosen_field_that_changes_nothing_is_told(chosen, beside, ignored):
    config = _with(**chosen, **beside)
    lines = ignored_fields({**chosen, **beside}, config, retrains=False)
    assert len(lines) == ignored
    assert all(line.startswith(f'{next(iter(chosen))}=') for line in lines)


@pytest.mark.parametrize(
    ('name', 'value', 'told'),
    [
        ('batch_size', 4, r'--mode=retrain sets batch_size=64'),
        ('search.epochs', 9, r'--mode=retrain sets search.epochs=0'),
        ('model.channels', 8, None),
        ('retrain.lr', 0.5, None),
        ('genotype', 'found', None),
        ('seed', 3, None),
    ],
)
def test_chosen_field_that_the_recipe_of_training_sets_is_told(name, value, told):
    config = retrain.retrain_config(_with(**{'genotype': 'found', name: value}))
    lines = ignored_fields({name: value}, config, retrains=True)
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


@pytest.mark.parametrize(
    ('chosen', 'beside', 'ignored'),
    [
        ({'retrain.randaugment_magnitude': 7.0}, {}, True),
        ({'retrain.randaugment_magnitude': 7.0}, {'retrain.randaugment': 2}, False),
        ({'retrain.second_head': 0.3}, {}, True),
        ({'retrain.second_head': 0.0}, {}, False),
        ({'retrain.drop_path': 0.3}, {'optimize.frozen': True}, True),
        ({'retrain.drop_path': 0.3}, {}, False),
    ],
)
def test_chosen_field_of_fine_tuning_that_changes_nothing_is_told(chosen, beside, ignored):
    config = retrain.retrain_config(_with(init_from='trained', **chosen, **beside))
    lines = ignored_fields({**chosen, **beside}, config, retrains=True)
    assert len(lines) == ignored
    assert all(line.startswith(f'{next(iter(chosen))}=') for line in lines)


# --- config.json of a run


@pytest.mark.parametrize(
    ('damage', 'fault'),
    [
        ({'batch_size': None}, 'batch_size=None: must be'),
        ({'model.channels': 'x'}, "model.channels='x': must be"),
        ({'seeds': 3}, 'seeds=3: must be'),
        ({'model.space': 'nowhere'}, "model.space='nowhere': must be"),
        (None, 'it lacks the field seed'),
    ],
)
def test_damaged_config_of_a_run_is_named_as_that(tmp_path, damage, fault):
    fields = {'data.name': 'digits'} if damage is None else {**PLAIN, **damage}
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    for check in (
        lambda: require_whole(tmp_path / 'config.json', fields),
        lambda: require_same_config(PLAIN, tmp_path),
    ):
        with pytest.raises(UserError, match=f'is damaged: {fault}.* Restore it') as told:
            check()
        assert '\n' not in str(told.value)


def test_each_field_that_came_later_says_what_runs_had_before_it():
    """Else `--mode=evaluate` and export take the configs of older runs for damaged."""
    assert len(FIELDS) - len(BEFORE) == 108  # the fields of the first version


def test_config_of_an_older_run_is_whole(tmp_path):
    """Without the fields that came later."""
    old = {name: value for name, value in PLAIN.items() if name not in BEFORE}
    assert len(old) < len(PLAIN)
    require_whole(tmp_path / 'config.json', json.loads(json.dumps(old)))


@pytest.mark.parametrize(
    ('field', 'before', 'now', 'moved'),
    [
        ('data.dir', 'pics', './pics/', set()),
        ('init_from', 'runs/a', 'runs/../runs/a', set()),
        ('benchmark.table', 'table.csv', './table.csv', set()),
        ('data.dir', 'pics', 'other', {'data.dir'}),
        ('genotype', 'g.json', 'other.json', {'genotype'}),
    ],
)
def test_path_is_compared_as_what_it_names(tmp_path, caplog, field, before, now, moved):
    begun = {**PLAIN, 'data.name': 'folder', 'data.dir': 'pics', field: before}
    (tmp_path / 'config.json').write_text(json.dumps(begun))
    ours = {**begun, field: now}
    with caplog.at_level(logging.INFO, 'asose_jax'):
        assert require_same_config(ours, tmp_path, movable=(field,)) == moved
    assert (f'{field}: {before!r} -> {now!r}' in caplog.text) == bool(moved)
    if moved:
        with pytest.raises(UserError, match='another config'):
            require_same_config(ours, tmp_path)
