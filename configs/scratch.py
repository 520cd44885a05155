"""The control: what a run has found, trained from scratch with as much compute as the run took.

    python main.py --config=configs/scratch.py:WORKDIR --workdir=DIR

WORKDIR is that of a finished run. Only the phases differ: the network that it ended with starts
from fresh weights and is optimized for as many epochs as the whole run, with warmup, search and
growth, would have paid for (in floating-point operations, see asose_jax/costs/flops.py).
"""

import json
import pathlib

import ml_collections

from configs import search

_TRAINING = 3  # forward, and the gradients of inputs and of weights


def get_config(workdir: str | None = None) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`, with its network and nothing but optimize."""
    if workdir is None:
        raise ValueError('name the workdir of a finished run: --config=configs/scratch.py:WORKDIR')
    run = pathlib.Path(workdir).expanduser()
    if not (run / 'summary.json').is_file():
        raise ValueError(f'{workdir} does not hold a finished run: there is no summary.json in it')
    fields = json.loads((run / 'config.json').read_text(encoding='utf-8'))
    if fields.get('seeds'):
        raise ValueError(f'{workdir} holds several searches; name one of them: {workdir}/seed_N')
    summary = json.loads((run / 'summary.json').read_text(encoding='utf-8'))
    config = search.get_config()
    config.update_from_flattened_dict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    images = max(1, summary['images']['train'] // config.batch_size) * config.batch_size
    epoch = _TRAINING * summary['flops_per_image'] * images
    if config.data.name == 'digits':  # earlier versions ignored these fields
        for field in ('dir', 'train_split', 'test_split'):
            config.data[field] = search.get_config().data[field]
    config.init_from = config.genotype = config.network_channels = None
    config.network = workdir
    config.cost = search.get_config().cost  # there is no choice left that could cost less
    config.warmup.epochs = config.search.epochs = config.growth.epochs = 0
    config.search.freeze_epochs, config.search.early_stop = 0, False
    config.search.selection = 'argmax'
    config.optimize.lr = None  # nothing comes before optimize here
    config.optimize.epochs = max(1, round(summary['train_flops'] / epoch))
    return config
