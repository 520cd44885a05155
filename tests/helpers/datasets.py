"""Data sets as runs load them."""

from asose_jax.config import presets
from asose_jax.data import dataset


def load(name, seed=0, split_by='content', begun=False, **fields):
    """A data set, by the fields of the group `data` in the preset `cifar10` and these changes."""
    data = presets.get_config().data
    data.update(name=name, **fields)
    return dataset.load(data, seed, split_by=split_by, begun=begun)
