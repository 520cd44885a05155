"""The recipe by which found networks are trained from scratch."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import pytest
from helpers import networks
from helpers.runs import CHEAP, lines_of, summary_of, tiny

from asose_jax.arch import genotype
from asose_jax.config import retrain
from asose_jax.config.consistency import flatten, validate
from asose_jax.data.mixing import Mixing
from asose_jax.data.randaugment import RandAugment
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import builders, single_run
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import chain
from asose_jax.spaces.chain import BlockSpec
from asose_jax.spaces.supernet import SECOND_HEAD
from asose_jax.train.step_config import PLAIN, Recipe
from configs import scratch
from configs.search import get_config

CELL = '|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|'


def _tiny(file):
    config = get_config('nasbench201')
    config.update_from_flattened_dict(
        {
            'genotype': str(file),
            'data.name': 'digits',
            'data.valid_fraction': 0.8,
            'model.channels': 4,
            'model.depth': 3,
            'model.reductions': (1,),
            'retrain.epochs': 2,
            'retrain.batch_size': 64,
            'retrain.drop_path': 0.3,
            'retrain.second_head': 0.4,
        }
    )
    return retrain.retrain_config(config)


def test_darts_networks_are_trained_as_their_authors_do():
    config = get_config('darts')
    config.genotype = 'genotype.txt'
    made = retrain.retrain_config(config)
    validate(made, 1)
    assert [made[phase].epochs for phase in ('warmup', 'search', 'growth', 'optimize')] == [
        *(0, 0, 0),
        600,
    ]
    assert (made.batch_size, made.data.cutout, made.weights.clip) == (96, 16, 5.0)
    assert (made.weights.lr, made.weights.lr_end) == (0.025, 0.0)
    assert (made.model.channels, made.model.depth, made.model.reductions) == (36, 20, (6, 13))
    assert (made.optimize.drop_path, made.optimize.second_head) == (0.2, 0.4)
    assert builders.make_recipe(made) == dataclasses.replace(
        PLAIN, randaugment=RandAugment(0, 5.0)
    )  # nothing that they do not have
    assert (made.weights.nesterov, made.weights.lr_warmup_steps) == (False, 0)
    assert config.optimize.epochs == 20  # the other one is a copy
    config.data.class_weights = 'balanced'
    assert retrain.retrain_config(config).data.class_weights == 'balanced'


def test_a_grown_network_is_taken_as_it_is_and_unset_sizes_are_those_of_model():
    config = get_config('digits')
    config.genotype = 'found'
    made = retrain.retrain_config(config)
    assert (made.network, made.genotype) == ('found', None)
    assert made.model == config.model


def test_a_grown_network_may_be_wider_and_nothing_else():
    config = get_config('digits')
    config.genotype, config.retrain.channels = 'found', 64
    made = retrain.retrain_config(config)
    validate(made, 1)
    assert (made.network, made.network_channels) == ('found', 64)
    config.network, config.genotype = 'found', None
    assert retrain.retrain_config(config).network_channels == 64
    for field, value in (('depth', 8), ('reductions', (1,))):
        config = get_config('digits')
        config.genotype, config.retrain[field] = 'found', value
        told = rf'retrain.{field}=.*network in found; set it to None; retrain.channels scales'
        with pytest.raises(UserError, match=told):
            retrain.retrain_config(config)


@pytest.mark.parametrize(('channels', 'near'), [(36, '32 or 40'), (5, '8')])
def test_a_grown_network_has_widths_in_multiples_of_eight(channels, near):
    config = get_config('digits')
    config.genotype, config.retrain.channels = 'found', channels
    with pytest.raises(UserError, match=rf'retrain.channels={channels}: .* take {near}$'):
        retrain.retrain_config(config)


def test_sizes_of_a_cell_network_that_is_described_are_not_asked_for_again():
    config = get_config('darts')
    config.network = 'found'
    with pytest.raises(
        UserError, match=r'retrain.channels=36, .* network in found; set them to None$'
    ):
        retrain.retrain_config(config)


def test_widths_of_cell_networks_are_not_those_of_network_channels():
    config = get_config('darts')
    config.network_channels = 64
    with pytest.raises(UserError, match=r'network_channels=64: makes .* set model.channels'):
        validate(config, 1)


def test_a_wider_chain_has_the_same_blocks_and_all_widths_in_proportion():
    blocks = (
        BlockSpec(16, 1, (('sep_conv_3x3',),)),
        BlockSpec(40, 2, (('max_pool_3x3',), ('sep_conv_3x3',))),
        BlockSpec(64, 2, (('skip_connect',),)),
    )
    spec = chain.ChainSpec((32, 32, 3), 10, 16, blocks)
    wider = chain.with_stem_channels(spec, 24)
    assert (wider.stem_channels, [block.channels for block in wider.blocks]) == (24, [24, 64, 96])
    assert wider.groups() == spec.groups()
    assert [block.stride for block in wider.blocks] == [1, 2, 2]
    assert chain.with_stem_channels(chain.with_stem_channels(spec, 32), 16) == spec
    assert chain.with_stem_channels(spec, 8).blocks[2].channels == 32


def test_transitions_do_not_vanish_in_a_narrower_chain():
    blocks = (BlockSpec(16, 1, (('sep_conv_3x3',),)), BlockSpec(24, 1, (('sep_conv_3x3',),)))
    spec = chain.ChainSpec((32, 32, 3), 10, 16, blocks)
    with pytest.raises(ValueError, match='two stages would be equally wide'):
        chain.with_stem_channels(dataclasses.replace(spec, stem_channels=32), 8)


def test_what_a_search_was_like_does_not_stand_in_the_way():
    config = get_config('nasbench201')
    config.genotype = 'found'
    config.update_from_flattened_dict(
        {
            'search.freeze_epochs': 3,
            'search.early_stop': True,
            'search.settle_epochs': 3,
            'search.selection': 'perturbation',
            'search.auxiliary_skip': True,
            'search.estimator': 'drnas',
            'search.second_order': True,
            'arch.anchor': 1e-3,
            'cost.kind': 'flops',
            'cost.target': 1e6,
        }
    )
    validate(retrain.retrain_config(config), 1)


def test_recipe_of_retrain_is_that_of_optimize_and_no_other():
    config = get_config('digits')
    config.genotype = 'found'
    wanted = {
        **{'label_smoothing': 0.1, 'mixup': 0.2, 'cutmix': 1.0, 'ema': 0.99},
        **{'randaugment': 2, 'randaugment_magnitude': 7.0},
    }
    for name, value in wanted.items():
        config.retrain[name] = value
    config.retrain.nesterov, config.retrain.lr_warmup_steps = True, 20
    config.optimize.lr = 0.1  # of the search: here, the run begins with optimize
    made = retrain.retrain_config(config)
    validate(made, 1)
    assert {name: made.optimize[name] for name in wanted} == wanted
    assert (made.weights.nesterov, made.weights.lr_warmup_steps) == (True, 20)
    assert made.optimize.lr is None
    assert builders.make_recipe(made) == Recipe(
        0.1, Mixing(mixup=0.2, cutmix=1.0), RandAugment(2, 7.0), 0.99
    )


@pytest.mark.parametrize(
    ('fields', 'updates'),
    [
        ({'weights.lr_warmup_steps': 4 + 8 + 4 + 4}, 20),  # of all phases
        ({'weights.lr_warmup_steps': 4, 'optimize.lr': 0.1}, 4),
    ],
)
def test_learning_rate_cannot_rise_through_all_of_its_updates(fields, updates):
    config = tiny(**fields)
    with pytest.raises(
        UserError, match=rf'lr_warmup_steps=.* {updates} weight updates; take fewer'
    ):
        builders.make_schedule(config, 287)
    config.weights.lr_warmup_steps = updates - 1
    builders.make_schedule(config, 287)


def _found(workdir, preset='digits', **fields):
    """A finished run whose FLOPs are those of 7.3 epochs of its network."""
    config = get_config(preset)
    config.update_from_flattened_dict(fields)
    summary = {'images': {'train': 1150, 'valid': 287}, 'flops_per_image': 1e4}
    summary['train_flops'] = 3 * 1e4 * 17 * 64 * 7.3  # 17 whole batches of 64 images
    (workdir / 'config.json').write_text(json.dumps(flatten(config)))
    (workdir / 'summary.json').write_text(json.dumps(summary))
    config.genotype, config.retrain.epochs = str(workdir), 'same_flops'
    return config


@pytest.mark.parametrize(('valid', 'batch', 'epochs'), [(0.2, 64, 7), (0.0, 64, 6), (0.2, 900, 9)])
def test_a_network_is_trained_for_the_flops_of_the_run_that_found_it(
    tmp_path, valid, batch, epochs
):
    config = _found(tmp_path)
    config.data.valid_fraction, config.retrain.batch_size = valid, batch
    made = retrain.retrain_config(config)
    assert made.optimize.epochs == epochs
    validate(made, 1)


@pytest.mark.parametrize(
    ('preset', 'fields', 'told'),
    [
        ('digits', {'genotype': 'nowhere'}, 'name its workdir by --config.genotype=WORKDIR'),
        ('digits', {'init_from': '.'}, 'name its workdir by --config.genotype=WORKDIR'),
        ('digits', {'genotype': '.'}, r'\. holds no finished run'),
        ('digits', {'retrain.channels': 32}, 'with retrain.channels: None -> 32, an epoch would'),
        ('digits', {'data.image_size': 12}, 'with data.image_size: None -> 12, an epoch would'),
        ('nasbench201', {'model.channels': 8}, 'with model.channels: 16 -> 8, an epoch would'),
    ],
)
def test_flops_of_no_run_and_of_another_network_are_refused(tmp_path, preset, fields, told):
    config = _found(tmp_path, preset)
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=rf"^retrain.epochs='same_flops': .*{told}"):
        retrain.retrain_config(config)


def test_controls_of_a_sweep_have_no_run_whose_flops_count():
    config = get_config('nasbench201')
    config.seeds, config.random_cells, config.retrain.epochs = (0, 1), 2, 'same_flops'
    with pytest.raises(UserError, match=r"retrain.epochs='same_flops': random and plain cells"):
        validate(config, 1)


def test_the_config_of_before_names_the_command():
    with pytest.raises(ValueError, match=r'--mode=retrain .* --config.genotype=/tmp/run --config'):
        scratch.get_config('/tmp/run')


def test_a_recipe_of_impossible_values_is_refused_before_it_is_used():
    config = get_config('digits')
    config.genotype, config.retrain.channels, config.retrain.epochs = 'found', 'abc', 'x'
    with pytest.raises(UserError, match=r"retrain.channels='abc': must .*\n.*retrain.epochs='x': "):
        retrain.retrain_config(config)


def test_without_a_network_it_says_what_to_name():
    with pytest.raises(UserError, match=r'--config.genotype=FILE.*--config.init_from=WORKDIR'):
        retrain.retrain_config(get_config('darts'))


@pytest.mark.parametrize(('frozen', 'drop_path'), [(False, 0.2), (True, 0.0)])
def test_a_trained_network_goes_on_by_the_recipe_without_second_head(frozen, drop_path):
    config = get_config('folder')
    config.init_from, config.optimize.frozen, config.data.dir = 'trained', frozen, 'pictures'
    made = retrain.retrain_config(config)
    validate(made, 1)
    assert (made.init_from, made.network, made.genotype) == ('trained', None, None)
    assert [made[phase].epochs for phase in ('warmup', 'search', 'growth', 'optimize')] == [
        *(0, 0, 0),
        100,
    ]
    assert (made.optimize.second_head, made.optimize.drop_path) == (0.0, drop_path)
    assert made.weights.lr == config.retrain.lr


def test_a_trained_network_keeps_its_sizes():
    config = get_config('darts')
    config.init_from = 'trained'
    sizes = r'retrain.channels=36, retrain.depth=20, retrain.reductions=\(6, 13\)'
    with pytest.raises(UserError, match=rf'{sizes}: .* network in trained; set them to None'):
        retrain.retrain_config(config)
    for name in ('channels', 'depth', 'reductions'):
        config.retrain[name] = None
    assert retrain.retrain_config(config).model == config.model


def test_what_describes_a_supernet_goes_on_with_it():
    config = get_config('darts')
    config.init_from = 'searched'
    fields = {'search.partial_channels': 4, 'search.auxiliary_skip': True}
    sizes = {f'retrain.{name}': None for name in ('channels', 'depth', 'reductions')}
    config.update_from_flattened_dict({**fields, **sizes})
    made = retrain.retrain_config(config)
    assert (made.search.partial_channels, made.search.auxiliary_skip) == (4, True)


@pytest.mark.slow
def test_second_head_belongs_to_training_only():
    node = [('skip_connect', 'max_pool_3x3') + ('none',) * i for i in range(4)]
    chosen = genotype.Genotype(tuple(node + node))
    spec = networks.build(
        'darts', (8, 8, 3), 10, channels=4, depth=3, reductions=(1,), max_channels=8
    )
    spec = genotype.derive(spec, chosen)
    images = jnp.ones((2, 8, 8, 3))

    def made(weight):
        net = networks.supernet(spec, second_head=weight)
        return net, net.init(jax.random.key(0), images, mode=Mode.ARGMAX, train=False)

    (plain, without), (both, variables) = (
        made(0),
        made(1),
    )
    assert set(variables['params']) == {*without['params'], SECOND_HEAD}
    kept = {name: tree for name, tree in variables['params'].items() if name != SECOND_HEAD}
    use = {'mode': Mode.ARGMAX, 'train': False}
    logits = both.apply(variables, images, **use)
    assert (logits == plain.apply({**variables, 'params': kept}, images, **use)).all()
    _, changed = both.apply(
        variables, images, mode=Mode.ARGMAX, train=True, mutable=['second_head', 'batch_stats']
    )
    (others,) = jax.tree.leaves(changed['second_head'])
    assert others.shape == (2, 10)
    assert math.isfinite(float(others.sum()))


def _wider(tmp_path):
    """A config that trains, with twice the channels, what a search is said to have found."""
    spec = chain.build(
        (8, 8, 1), 10, channels=4, depth=2, reductions=(1,), max_channels=8, primitives=CHEAP
    )
    chosen = genotype.Genotype((('skip_connect',), ('max_pool_3x3',)))
    file = tmp_path / 'genotype.json'
    file.write_text(chosen.dumps(genotype.derive(spec, chosen)))
    return retrain.retrain_config(
        tiny(**{'genotype': str(file), 'retrain.channels': 8, 'retrain.epochs': 1})
    )


def test_what_was_found_is_built_with_all_its_widths_scaled(tmp_path):
    config = _wider(tmp_path)
    images = builders.load_data(config)
    schedule = builders.make_schedule(config, len(images.train))
    spec = single_run.initialization.find_origin(config, images, schedule).spec
    assert (spec.stem_channels, [block.channels for block in spec.blocks]) == (8, [8, 16])
    assert spec.groups() == ((('skip_connect',),), (('max_pool_3x3',),))


@pytest.mark.slow
def test_a_wider_network_is_described_as_it_is_and_goes_on_where_it_stopped(tmp_path):
    config = _wider(tmp_path)
    config.optimize.epochs = 2
    config.checkpoint.every_seconds = 0
    whole = single_run.run(config, tmp_path / 'whole')
    described = json.loads((tmp_path / 'whole' / 'genotype.json').read_text())
    assert described['genotype'] == whole['genotype'] == [['skip_connect'], ['max_pool_3x3']]
    network = described['network']
    assert (network['stem_channels'], [b['channels'] for b in network['blocks']]) == (8, [8, 16])
    # Stem, transition, head; BatchNorm after the first two.
    assert whole['params'] == 9 * 8 + 2 * 8 + 8 * 16 + 2 * 16 + 16 * 10 + 10
    _resumed(config, tmp_path)


def _resumed(config, tmp_path):
    """The workdir of a run that lost its last checkpoint and went on; it ends as `whole` did."""
    stopped = tmp_path / 'stopped'
    single_run.run(config, stopped)
    last = max((stopped / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(last)
    (stopped / 'summary.json').unlink()
    single_run.run(config, stopped)
    assert lines_of(stopped) == lines_of(tmp_path / 'whole')
    assert summary_of(stopped) == summary_of(tmp_path / 'whole')
    return stopped


@pytest.mark.slow
def test_retraining_starts_from_scratch_and_resumes_bit_for_bit(tmp_path):
    file = tmp_path / 'cell.txt'
    file.write_text(CELL)
    config = _tiny(file)
    whole = single_run.run(config, tmp_path / 'whole')
    assert [phase['name'] for phase in whole['phases']] == ['optimize']
    assert (tmp_path / 'whole' / 'genotype.txt').read_text().strip() == CELL
    spec = single_run.initialization.find_origin(
        config, builders.load_data(config), builders.make_schedule(config, 287)
    ).spec
    fresh = jax.eval_shape(
        lambda key: networks.supernet(spec).init(
            key, jnp.ones((1, 8, 8, 1)), mode=Mode.ARGMAX, train=False
        ),
        jax.random.key(0),
    )
    assert whole['params'] == sum(leaf.size for leaf in jax.tree.leaves(fresh['params']))

    stopped = _resumed(config, tmp_path)
    assert json.loads((stopped / 'config.json').read_text())['optimize.drop_path'] == 0.3


@pytest.mark.slow
def test_a_network_with_a_second_head_goes_on_with_it_or_without_and_gets_none(tmp_path):
    file = tmp_path / 'genotype.json'
    file.write_text('{"genotype": [["sep_conv_3x3"], ["skip_connect"]]}')
    alone = {'warmup.epochs': 0, 'search.epochs': 0, 'growth.epochs': 0}
    headed = {**alone, 'optimize.second_head': 0.4}
    single_run.run(tiny(genotype=str(file), **headed), tmp_path / 'first')
    again = single_run.run(tiny(init_from=str(tmp_path / 'first'), **headed), tmp_path / 'again')
    assert [row['name'] for row in again['phases']] == ['optimize']
    without = tiny(init_from=str(tmp_path / 'first'), **alone)
    assert single_run.run(without, tmp_path / 'without')['params'] == again['params']
    message = r'lacks the weights .*second_head.*: set optimize.second_head as in the other run'
    with pytest.raises(UserError, match=message):
        single_run.run(tiny(init_from=str(tmp_path / 'without'), **headed), tmp_path / 'third')
