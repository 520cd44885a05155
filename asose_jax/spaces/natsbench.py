"""NATS-Bench: the accuracies of all 15,625 cells of the space `nasbench201` (arXiv:2009.00437).

They are read through its authors' package `nats_bench`, from the archive that they give away.
"""

import importlib
import logging
import pathlib
import pickle
import time
from typing import Any

from asose_jax.runtime.errors import UserError
from asose_jax.spaces.tabular import Table

logger = logging.getLogger('asose_jax')

SPACE = 'nasbench201'

_PACKAGE = 'nats_bench'
_ARCHIVE = 'NATS-tss-v1_0-3ffb9-simple'

# What it is called here: the data set, and the number that the package gives for it.
_COLUMNS = {
    'cifar10-valid': ('cifar10-valid', 'valid-accuracy'),
    'cifar10-test': ('cifar10', 'test-accuracy'),
    'cifar100-valid': ('cifar100', 'valid-accuracy'),
    'cifar100-test': ('cifar100', 'test-accuracy'),
    'ImageNet16-120-valid': ('ImageNet16-120', 'valid-accuracy'),
    'ImageNet16-120-test': ('ImageNet16-120', 'test-accuracy'),
}
_BROKEN = (OSError, EOFError, ValueError, KeyError, AssertionError, pickle.UnpicklingError)


def is_named(table: str | None) -> bool:
    """Whether `benchmark.table` means NATS-Bench: `nats_bench`, or `nats_bench:DIRECTORY`."""
    return table is not None and table.partition(':')[0] == _PACKAGE


class NatsBench:
    """The benchmark, opened. Cells are read when they are asked for."""

    def __init__(self, name: str):
        """Opens the archive, and reads one cell, so that what is missing is missed at once.

        Args:
          name: as in `is_named`; without a directory the package looks for the archive in
            $TORCH_HOME, or in ~/.torch.

        Raises:
          UserError: package or archive are missing or unfit.
        """
        self._name, place = name, name.partition(':')[2]
        directory = str(pathlib.Path(place).expanduser()) if place else None
        try:
            create = importlib.import_module(_PACKAGE).create
            self._api = create(directory, 'tss', fast_mode=True, verbose=False)
            self._measured(0)
        except (ImportError, *_BROKEN) as error:
            raise self._unfit(error) from error

    def table(self) -> Table:
        """All cells: the accuracy in percent after 200 epochs, the mean over the trained seeds.

        The archive has a file for each; to unpack them all takes some six minutes.

        Raises:
          UserError: a file is missing or damaged.
        """
        count, start = len(self._api), time.monotonic()
        logger.info('benchmark: reads all %d cells of NATS-Bench, for the rank', count)
        columns = {name: {} for name in _COLUMNS}
        try:
            for index in range(count):
                for name, accuracy in self._measured(index).items():
                    columns[name][self._api.arch(index)] = accuracy
        except _BROKEN as error:
            raise self._unfit(error) from error
        logger.info('benchmark: has read them in %.0f s', time.monotonic() - start)
        return Table(columns)

    def lookup(self, arch: str) -> dict[str, Any]:
        """As `Table.lookup`, of all cells."""
        return self.table().lookup(arch)

    def _measured(self, index):
        sets = {dataset for dataset, _ in _COLUMNS.values()}
        told = {
            each: self._api.get_more_info(index, each, hp='200', is_random=False) for each in sets
        }
        self._api.arch2infos_dict.clear()  # it keeps what it has read, and all would be too much
        return {name: float(told[dataset][what]) for name, (dataset, what) in _COLUMNS.items()}

    def _unfit(self, error):
        return UserError(
            f'benchmark.table={self._name!r}: {error} ({type(error).__name__})\nIt needs a package '
            f'(pip install {_PACKAGE}) and its archive: unpack {_ARCHIVE}.tar, which '
            'https://github.com/D-X-Y/NATS-Bench links to, in $TORCH_HOME or ~/.torch, or name the '
            f'directory: benchmark.table={_PACKAGE}:DIRECTORY/{_ARCHIVE}'
        )
