"""NATS-Bench through its package. Package and archive are not here: a module of the same shape is.

Its functions take and give what those of nats_bench 1.8 do (`create`, `get_more_info`, `arch`,
`len`, `arch2infos_dict`); the cells and numbers are made up.
"""

import sys
import types

import pytest

from asose_jax.runtime.errors import UserError
from asose_jax.spaces import natsbench
from asose_jax.spaces.tabular import Table

CELLS = ('|none~0|', '|skip_connect~0|', '|nor_conv_3x3~0|')


class FakeApi:
    """`NATStopology` in fast mode: what was read is kept."""

    def __init__(self, damaged):
        self.arch2infos_dict, self.damaged, self.most_kept = {}, damaged, 0

    def __len__(self):
        return len(CELLS)

    def arch(self, index):
        return CELLS[index]

    def get_more_info(self, index, dataset, iepoch=None, hp='12', is_random=True):
        assert (iepoch, hp, is_random) == (None, '200', False)  # the mean after the whole training
        assert index not in self.damaged, f'invalid data path : {index:06d}.pickle.pbz2'
        self.arch2infos_dict[index] = dataset
        self.most_kept = max(self.most_kept, len(self.arch2infos_dict))
        base = {'cifar10-valid': 50, 'cifar10': 60, 'cifar100': 30, 'ImageNet16-120': 20}[dataset]
        told = {'train-accuracy': 99.0, 'test-accuracy': base + index}
        return told if dataset == 'cifar10' else {**told, 'valid-accuracy': base - index}


@pytest.fixture
def package(monkeypatch, tmp_path):
    """An installed package, its archive in `tmp_path`; gives what it has opened."""
    opened = []

    def create(file_path_or_dict, search_space, fast_mode=False, verbose=True):
        assert (search_space, fast_mode, verbose) == ('tss', True, False)
        if file_path_or_dict not in (None, str(tmp_path)):
            raise ValueError(f'{file_path_or_dict} is neither a file or a dir.')
        opened.append(FakeApi(damaged=()))
        return opened[-1]

    monkeypatch.setitem(sys.modules, 'nats_bench', types.SimpleNamespace(create=create))
    return opened


@pytest.mark.parametrize('place', ['', ':{}'])
def test_lookup_tells_accuracy_and_rank_among_all_cells(package, tmp_path, place):
    found = natsbench.NatsBench('nats_bench' + place.format(tmp_path)).lookup(CELLS[1])
    assert found['cifar10-test'] == {'accuracy': 61.0, 'rank': 2, 'of': 3}
    assert found['cifar10-valid'] == {'accuracy': 49.0, 'rank': 2, 'of': 3}
    assert found['ImageNet16-120-test'] == {'accuracy': 21.0, 'rank': 2, 'of': 3}
    assert len(found) == 6
    assert package[0].most_kept == 1  # all cells would not fit into memory


def test_what_was_read_can_be_kept_as_a_table(package, tmp_path):
    everything = natsbench.NatsBench('nats_bench').table()
    file = tmp_path / 'nats.csv'
    file.write_text(everything.dumps())
    assert Table.read(str(file), str) == everything


def test_missing_package_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'nats_bench', None)
    with pytest.raises(UserError, match=r'pip install nats_bench.* NATS-tss-v1_0-3ffb9-simple'):
        natsbench.NatsBench('nats_bench')


def test_missing_archive_is_one_clear_error(package):
    with pytest.raises(UserError, match=r'(?s)nowhere is neither a file or a dir.*or name the'):
        natsbench.NatsBench('nats_bench:nowhere')


def test_damaged_archive_is_one_clear_error(package):
    opened = natsbench.NatsBench('nats_bench')
    package[0].damaged = (2,)
    with pytest.raises(UserError, match=r'invalid data path : 000002'):
        opened.lookup(CELLS[0])


@pytest.mark.parametrize(
    ('table', 'named'),
    [(None, False), ('nats_bench', True), ('nats_bench:a/b', True), ('nats_bench.csv', False)],
)
def test_package_is_told_from_a_file(table, named):
    assert natsbench.is_named(table) == named
