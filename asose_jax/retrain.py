"""The recipe by which a network that was found is trained from scratch: `--mode=retrain`."""

import copy

import ml_collections

from asose_jax.errors import UserError

# Where the fields of the config's `retrain` go.
_TARGETS = {
    'epochs': 'optimize.epochs',
    'batch_size': 'batch_size',
    'channels': 'model.channels',
    'depth': 'model.depth',
    'reductions': 'model.reductions',
    'lr': 'weights.lr',
    'lr_end': 'weights.lr_end',
    'clip': 'weights.clip',
    'cutout': 'data.cutout',
    'drop_path': 'optimize.drop_path',
    'second_head': 'optimize.second_head',
}
_SIZES = ('channels', 'depth', 'reductions')
_MAY_BE_NONE = ('clip',)  # elsewhere, None leaves the field as it is


def config_of(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of `config` that trains the network of `genotype` from scratch and does nothing else.

    Args:
      config: as for a search; `genotype`, or `network`, says what was found, `retrain` how it is
        trained. In the space `chain` the network is that of genotype.json, since it has grown.

    Raises:
      UserError: nothing is named that could be trained.
    """
    if config.genotype is None and config.network is None:
        raise UserError(
            '--mode=retrain trains a network that was found: name it by --config.genotype=FILE, a '
            'genotype.json, the text of the space, or the workdir of a finished run'
        )
    fixed = config.model.space == 'chain' or config.network is not None
    sizes = [name for name in _SIZES if config.retrain[name] is not None]
    if fixed and sizes:
        raise UserError(
            f'retrain.{sizes[0]}={config.retrain[sizes[0]]!r}: the sizes are those of the network '
            f'in {config.network or config.genotype}; leave it out'
        )
    made = copy.deepcopy(config)
    changes = {
        'warmup.epochs': 0,
        'search.epochs': 0,
        'search.freeze_epochs': 0,
        'search.early_stop': False,
        'search.selection': 'argmax',
        'search.auxiliary_skip': False,
        'search.partial_channels': 1,
        'search.second_order': False,
        'arch.anchor': 0.0,
        'cost.kind': None,
        'cost.target': None,
        'cost.batch_size': None,
        'growth.epochs': 0,
    }
    for name, target in _TARGETS.items():
        if config.retrain[name] is not None or name in _MAY_BE_NONE:
            changes[target] = config.retrain[name]
    if config.model.space == 'chain' and config.network is None:
        changes.update(network=config.genotype, genotype=None)
    made.update_from_flattened_dict(changes)
    return made
