"""Reads NATS-Bench: accuracies of all 15,625 cells of the space `nasbench201` (arXiv:2009.00437).

They are read with the authors' package `nats_bench` from the archive that they publish.
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

# Column of the table -> data set and metric in the package's terms.
_COLUMNS = {
    'cifar10-valid': ('cifar10-valid', 'valid-accuracy'),
    'cifar10-test': ('cifar10', 'test-accuracy'),
    'cifar100-valid': ('cifar100', 'valid-accuracy'),
    'cifar100-test': ('cifar100', 'test-accuracy'),
    'ImageNet16-120-valid': ('ImageNet16-120', 'valid-accuracy'),
    'ImageNet16-120-test': ('ImageNet16-120', 'test-accuracy'),
}
# What the package and `pickle` raise on a missing or damaged archive.
_ARCHIVE_ERRORS = (OSError, EOFError, ValueError, KeyError, AssertionError, pickle.UnpicklingError)


def is_named(table: str | None) -> bool:
    """Returns whether `benchmark.table` names NATS-Bench, as `nats_bench[:DIRECTORY]` does."""
    return table is not None and table.partition(':')[0] == _PACKAGE


class NatsBench:
    """Gives access to the benchmark. Cells are read from the archive when they are looked up."""

    def __init__(self, name: str) -> None:
        """Opens the archive and reads one cell, so that a missing file is reported at once.

        Args:
          name: `nats_bench:DIRECTORY`, or `nats_bench`: then the package looks for the archive in
            $TORCH_HOME or ~/.torch.

        Raises:
          UserError: The package or the archive is missing or unusable.
        """
        self._name, path = name, name.partition(':')[2]
        directory = str(pathlib.Path(path).expanduser()) if path else None
        try:
            create = importlib.import_module(_PACKAGE).create
            self._api = create(directory, 'tss', fast_mode=True, verbose=False)
            self._accuracies(0)
        except (ImportError, *_ARCHIVE_ERRORS) as error:
            raise self._user_error(error) from error

    def table(self) -> Table:
        """Reads all cells: accuracy in percent after 200 epochs, mean over the trained seeds.

        The archive has one file for each cell; unpacking all of them takes about six minutes.

        Returns:
          The table of all cells.

        Raises:
          UserError: A file of the archive is missing or damaged.
        """
        count, start = len(self._api), time.monotonic()
        logger.info('benchmark: reading all %d cells of NATS-Bench, to rank the result', count)
        columns = {name: {} for name in _COLUMNS}
        try:
            for index in range(count):
                for name, accuracy in self._accuracies(index).items():
                    columns[name][self._api.arch(index)] = accuracy
        except _ARCHIVE_ERRORS as error:
            raise self._user_error(error) from error
        logger.info('benchmark: read all cells in %.0f s', time.monotonic() - start)
        return Table(columns)

    def lookup(self, arch: str) -> dict[str, Any]:
        """Returns accuracy and rank of a cell among all cells, as `Table.lookup` does."""
        return self.table().lookup(arch)

    def _accuracies(self, index: int) -> dict[str, float]:
        datasets = {dataset for dataset, _ in _COLUMNS.values()}
        metrics = {
            dataset: self._api.get_more_info(index, dataset, hp='200', is_random=False)
            for dataset in datasets
        }
        # The package keeps every cell that it has read; all of them would not fit into memory.
        self._api.arch2infos_dict.clear()
        return {
            column: float(metrics[dataset][metric])
            for column, (dataset, metric) in _COLUMNS.items()
        }

    def _user_error(self, error: Exception) -> UserError:
        return UserError(
            f'benchmark.table={self._name!r}: {error} ({type(error).__name__})\nNATS-Bench needs '
            f'its package (pip install {_PACKAGE}) and its archive: unpack {_ARCHIVE}.tar, linked '
            'from https://github.com/D-X-Y/NATS-Bench, in $TORCH_HOME or ~/.torch, or name the '
            f'directory: benchmark.table={_PACKAGE}:DIRECTORY/{_ARCHIVE}'
        )
