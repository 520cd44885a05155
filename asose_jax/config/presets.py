"""The presets: named configs, each the defaults of `schema` with some fields changed."""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from asose_jax.arch import published
from asose_jax.config.schema import FIELDS

_DIGITS: dict[str, Any] = {
    'batch_size': 64,
    'chunk_steps': 32,  # an epoch has 17 steps, or 26 with those of alpha
    'data.name': 'digits',
    'data.crop_padding': 1,
    'data.flip': False,  # a mirrored digit is another sign, or none
    'model.channels': 16,
    'model.depth': 3,  # it grows
    'model.reductions': (1, 2),
    'model.primitives': (  # larger kernels would see more border than image
        'none',
        'avg_pool_3x3',
        'max_pool_3x3',
        'skip_connect',
        'sep_conv_3x3',
        'dil_conv_3x3',
        'conv_7x1_1x7',
    ),
    'warmup.epochs': 5,
    'search.epochs': 30,
    'search.turn_period': 3,  # with 5, one of ten seeds falls for an epoch (docs/results.md)
    'growth.epochs': 8,
    'growth.kinds': ('depth+width',),  # the compiler takes most of the time of such a run
    'growth.threshold': 1.0,  # no gain is so large: the network grows after epoch 2
    'growth.patience': 1,
    'growth.last_epochs': 6,  # it grows once
    'growth.lead_epochs': 0,  # an epoch takes less than a second
    'optimize.epochs': 20,
    'retrain.epochs': 40,
    'retrain.batch_size': 64,
    'retrain.cutout': 0,  # it would cover a digit
    'retrain.drop_path': 0.0,
    'retrain.second_head': 0.0,
}

# From hundreds of pictures to some ten thousand, of 32 to 96 pixels a side.
_FOLDER: dict[str, Any] = {
    'batch_size': 64,  # small sets need steps more than wide batches
    'data.name': 'folder',
    'model.channels': 32,
    'model.depth': 4,
    'model.reductions': (1, 2, 3),  # global pooling begins at an eighth of the side
    'warmup.epochs': 15,  # many short epochs: a thousand pictures make 12 steps
    'search.epochs': 45,
    'growth.epochs': 20,
    'growth.patience': 3,
    'optimize.epochs': 40,
    'retrain.epochs': 100,
    'retrain.batch_size': 64,
    'retrain.cutout': 0,  # the right side depends on the pictures
}

_CELLS: dict[str, Any] = {
    'model.channels': 16,
    'search.noise': 'unit',  # as in docs/chance.md
    'search.turn_period': 3,
    'growth.epochs': 0,  # cells do not grow
    'growth.kinds': (),
    # Without these three, searches ended in skips and poolings (docs/chance.md).
    'warmup.operations': 'uniform',  # else skips alone are trained when alpha begins to choose
    'search.auxiliary_skip': True,  # else skip_connect wins because it carries the gradients
    'arch.none_bias': -4.0,  # beside the auxiliary skip, none is as good as a skip
}

# Five cells in each stage (arXiv:2001.00326).
_NASBENCH201: dict[str, Any] = {
    **_CELLS,
    'model.space': 'nasbench201',
    'model.depth': 17,
    'model.reductions': (5, 11),
    'model.max_channels': 64,
    'model.primitives': published.NASBENCH201,
    'retrain.epochs': 200,
    'retrain.batch_size': 256,
    'retrain.lr': 0.1,
    'retrain.clip': 0.0,
    'retrain.cutout': 0,
    'retrain.drop_path': 0.0,
    'retrain.second_head': 0.0,
}

# One cell in each stage, small images, a quarter of them: minutes on a CPU.
_NASBENCH201_SMALL: dict[str, Any] = {
    **_NASBENCH201,
    'batch_size': 32,  # small batches: weights need steps
    'data.train_split': 'train[:12800]',
    'data.image_size': 16,
    'data.crop_padding': 2,
    'model.channels': 8,
    'model.depth': 5,
    'model.reductions': (1, 3),
    'weights.lr': 0.05,
    'weights.clip': 0.0,  # docs/chance.md was measured so
    'warmup.epochs': 5,
    'search.epochs': 12,
    'optimize.epochs': 0,  # the found network is trained from scratch
    'retrain.epochs': 8,
    'retrain.batch_size': 64,
    'checkpoint.every_seconds': 600,
}

# The search network of arXiv:1806.09055.
_DARTS: dict[str, Any] = {
    **_CELLS,
    'batch_size': 64,
    'model.space': 'darts',
    'model.depth': 8,
    'model.reductions': (2, 5),
    'model.primitives': published.DARTS,
    'retrain.channels': 36,
    'retrain.depth': 20,
    'retrain.reductions': (6, 13),
}

# The settings of ASO-SE as it was first described, where the defaults differ from them.
_SEED: dict[str, Any] = {
    'weights.clip': 0.0,
    'arch.init_std': 0.5,
    'arch.none_bias': -2.0,
    'arch.skip_bias': 1.0,
    'arch.lr': 3e-4,
    'search.arch_data': 'train',
    'search.turn_period': 3,
    'search.noise': 'unit',
    'search.exact_start': False,
    'search.statistics_batches': 0,
    'search.anneal_every': 1,
    'growth.where': 'last',
    'growth.lead_epochs': 0,
    'growth.skip_bias': 1.0,
}

PRESETS: dict[str, Mapping[str, Any]] = {
    'cifar10': {},
    'digits': _DIGITS,
    'folder': _FOLDER,
    'nasbench201': _NASBENCH201,
    'nasbench201_small': _NASBENCH201_SMALL,
    'darts': _DARTS,
    'seed': _SEED,
}


def get_config(preset: str = 'cifar10') -> ml_collections.ConfigDict:
    """Builds the config of a preset, with every field of `schema.FIELDS`.

    Raises:
      ValueError: there is no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f'unknown preset {preset!r}; there are {", ".join(PRESETS)}')
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        *group, last = name.split('.')
        parent = config
        for part in group:
            if part not in parent:
                parent[part] = ml_collections.ConfigDict()
            parent = parent[part]
        if field.has_several_types:
            parent[last] = config_dict.placeholder(object)  # the command line takes any type
        parent[last] = field.default
    config.update_from_flattened_dict(PRESETS[preset])
    return config
