"""The recipe of `--mode=retrain`: a found network from scratch, or a trained one fine-tuned."""

import copy
import os
import pathlib

import ml_collections

from asose_jax.config import consistency
from asose_jax.config.schema import SAME_FLOPS
from asose_jax.costs import flops
from asose_jax.runtime.errors import UserError
from asose_jax.runtime.workdir import read_json_object

# Where the fields of the config's `retrain` go.
_TARGETS = {
    'epochs': 'optimize.epochs',
    'batch_size': 'batch_size',
    'channels': 'model.channels',
    'depth': 'model.depth',
    'reductions': 'model.reductions',
    'lr': 'weights.lr',
    'lr_end': 'weights.lr_end',
    'lr_warmup_steps': 'weights.lr_warmup_steps',
    'nesterov': 'weights.nesterov',
    'clip': 'weights.clip',
    'cutout': 'data.cutout',
    'drop_path': 'optimize.drop_path',
    'second_head': 'optimize.second_head',
    'label_smoothing': 'optimize.label_smoothing',
    'mixup': 'optimize.mixup',
    'cutmix': 'optimize.cutmix',
    'randaugment': 'optimize.randaugment',
    'randaugment_magnitude': 'optimize.randaugment_magnitude',
    'ema': 'optimize.ema',
}
# Fields of a run that fix how many images an epoch has, and of which size.
_SAME_DATA = ('data.name', 'data.train_split', 'data.test_fraction', 'data.image_size')


def retrain_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy of `config` that trains one network by the recipe and does nothing else.

    Args:
      config: as for a search; `genotype`, or `network`, says what was found, `retrain` how it is
        trained. In the space `chain` the network is that of genotype.json, since it has grown:
        `retrain.channels` makes all of it wider, and its blocks are what they are. With
        `init_from`, the network of another run is trained further (docs/fine_tuning.md): its
        sizes are fixed, and it gets no second head.

    Raises:
      UserError: nothing is named that could be trained, or values that cannot be.
    """
    consistency.require_values(config, 'retrain')
    goes_on = config.init_from is not None
    if not goes_on and config.genotype is None and config.network is None:
        raise UserError(
            '--mode=retrain trains a network that was found: name it by --config.genotype=FILE, a '
            'genotype.json, the text of the space, or the workdir of a finished run; or, to keep '
            'its weights, by --config.init_from=WORKDIR'
        )
    grown = config.model.space == 'chain' and not goes_on
    if grown or goes_on or config.network is not None:
        _require_sizes(config, free=('channels',) if grown else ())
    training = copy.deepcopy(config)
    changes = {
        'warmup.epochs': 0,
        'search.epochs': 0,
        'search.freeze_epochs': 0,
        'search.early_stop': False,
        'search.settle_epochs': None,
        'search.selection': 'argmax',
        'search.second_order': False,
        'arch.anchor': 0.0,
        'cost.kind': None,
        'cost.target': None,
        'cost.targets': (),
        'growth.epochs': 0,
        'optimize.lr': None,
    }
    if config.cost.limit.latency is None:  # a limit holds for the network that is trained, too
        changes |= {'cost.batch_size': None, 'cost.table': None}
    if not goes_on:  # otherwise they describe the network that goes on
        changes |= {
            'search.auxiliary_skip': False,
            'search.exact_start': None,
            'search.partial_channels': 1,
        }
    targets = {**_TARGETS, 'channels': 'network_channels'} if grown else _TARGETS
    for name, target in targets.items():
        if config.retrain[name] is not None:
            changes[target] = config.retrain[name]
    if goes_on:
        changes['optimize.second_head'] = 0.0
    if config.optimize.frozen:
        changes['optimize.drop_path'] = 0.0
    if grown and config.network is None:
        changes.update(network=config.genotype, genotype=None)
    same_flops = config.retrain.epochs == SAME_FLOPS
    if same_flops:
        del changes['optimize.epochs']  # known once the other fields are
    training.update_from_flattened_dict(changes)
    if same_flops:
        training.optimize.epochs = _epochs_of_same_flops(config, training)
    return training


def _epochs_of_same_flops(
    config: ml_collections.ConfigDict, training: ml_collections.ConfigDict
) -> int:
    """Returns the epochs of training that take the FLOPs of the whole run that found the network.

    `training` is the config of the training, but for these epochs.

    Raises:
      UserError: no finished run is named, or the network would have another cost than there.
    """
    named = f'retrain.epochs={SAME_FLOPS!r}'
    workdir = pathlib.Path(os.path.expanduser(config.network or config.genotype or ''))
    if config.init_from is not None or not os.path.isdir(workdir):
        raise UserError(
            f'{named}: counts the FLOPs of the run that found the network; name its workdir by '
            '--config.genotype=WORKDIR, or set a number'
        )
    run, summary = (read_json_object(workdir / f'{name}.json') for name in ('config', 'summary'))
    if 'train_flops' not in summary:
        raise UserError(
            f'{named}: {workdir} holds no finished run; finish it, name one of several searches '
            '(WORKDIR/seed_N), or set a number'
        )
    fields = {*_SAME_DATA}
    if training.network is None:  # a cell, of a network that `model` describes
        fields |= {f'model.{name}' for name in (*consistency.RETRAIN_SIZES, 'max_channels')}
    ours = {name: value for name, value in consistency.flatten(training).items() if name in fields}
    ours['retrain.channels'] = training.network_channels
    if changed := consistency.differences(ours, {name: run.get(name) for name in fields}):
        raise UserError(
            f'{named}: with {"; ".join(changed)}, an epoch would not cost what it cost in '
            f'{workdir}; take the values of that run, or set a number'
        )
    size = summary['images']['train'] + summary['images']['valid']
    train = size - round(size * training.data.valid_fraction)
    images = max(1, train // training.batch_size) * training.batch_size
    epoch = flops.TRAINING * summary['flops_per_image'] * images
    return max(1, round(summary['train_flops'] / epoch))


def _require_sizes(config: ml_collections.ConfigDict, free: tuple[str, ...]) -> None:
    """Refuses sizes of a network that is described, but for those in `free`."""
    file, given = config.init_from or config.network or config.genotype, config.retrain
    fixed = [
        name for name in consistency.RETRAIN_SIZES if given[name] is not None and name not in free
    ]
    if fixed:
        named = ', '.join(f'retrain.{name}={given[name]!r}' for name in fixed)
        pronoun = 'it' if len(fixed) == 1 else 'them'
        instead = '; retrain.channels scales all of them' if free else ''
        raise UserError(
            f'{named}: the sizes are those of the network in {file}; set {pronoun} to None{instead}'
        )
    if given.channels is not None and given.channels % 8:
        down = given.channels // 8 * 8
        near = f'{down} or {down + 8}' if down else '8'
        raise UserError(
            f'retrain.channels={given.channels}: the network in {file} is scaled to multiples '
            f'of 8; take {near}'
        )
