"""Folders of pictures made up."""

import numpy as np
from PIL import Image

from configs.search import get_config
from helpers.runs import TINY


def picture(path, size=(8, 8), seed=0):
    """Saves noise in colour."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def config_of(directory, **changes):
    config = get_config('folder')
    fields = {**TINY, 'batch_size': 8, **{f'{p}.epochs': 0 for p in ('warmup', 'search', 'growth')}}
    fields |= {'data.valid_fraction': 0.4, 'data.dir': str(directory), **changes}
    config.update_from_flattened_dict(fields)
    return config
