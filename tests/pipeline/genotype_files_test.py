"""Values of `genotype`: files as people have them, one of several in a file, the text itself."""

import pathlib

import numpy as np
import pytest
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.pipeline import genotype_files
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import darts, nasbench201

CELL = '|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|'
OTHER = CELL.replace('avg_pool_3x3', 'none')
SPEC = networks.build('nasbench201', (8, 8, 1), 10)
CASES = pathlib.Path(__file__).parent.parent.parent.parent / 'shared' / 'cases'


def _chosen(value):
    return genotype_files.chosen_network(str(value), SPEC)


EXPECTED = genotype.derive(SPEC, nasbench201.loads(CELL))


@pytest.mark.parametrize(
    'content',
    [
        CELL.encode(),
        b'\xef\xbb\xbf' + CELL.encode(),
        CELL.encode() + b'\r\n',
        CELL.replace('|', '¦').encode(),
        b'\xef\xbb\xbf' + nasbench201.loads(CELL).dumps(EXPECTED).encode(),
        f'{CELL}\r\n'.encode('utf-16'),  # what `>` writes in PowerShell
    ],
    ids=['plain', 'byte order mark', 'CRLF', 'bars of summary.md', 'JSON with a mark', 'UTF-16'],
)
def test_file_is_read_as_people_have_it(tmp_path, content):
    (tmp_path / 'genotype.txt').write_bytes(content)
    assert _chosen(tmp_path / 'genotype.txt') == EXPECTED


@pytest.mark.parametrize(
    'text', [CELL, CELL.replace('|', '¦'), nasbench201.loads(CELL).dumps(EXPECTED), f'  {CELL}\n']
)
def test_value_may_be_the_text_itself(text):
    assert _chosen(text) == EXPECTED


DARTS, OTHER_DARTS = (
    darts.dumps(
        genotype.random(networks.build('darts', (8, 8, 1), 10), np.random.default_rng(seed))
    )
    for seed in (0, 1)
)


@pytest.mark.parametrize(
    ('space', 'text', 'told'),
    [
        ('nasbench201', DARTS, "the space 'darts', but model.space='nasbench201'"),
        ('nasbench201', f'A = {DARTS}\nB = {OTHER_DARTS}\n', "the space 'darts'"),
        ('darts', f'10:00 arch = {CELL}\n', "the space 'nasbench201', but model.space='darts'"),
        ('chain', CELL, "the space 'nasbench201', but model.space='chain'"),
        (None, DARTS, "the space 'darts', not the sizes of a network"),  # as `network`
        (None, CELL, "the space 'nasbench201', not the sizes of a network"),
    ],
)
def test_genotype_of_another_space_is_told_as_that(tmp_path, space, text, told):
    """In one line, without the text, which may be long."""
    file = tmp_path / 'found.txt'
    file.write_text(text)
    sizes = {'channels': 8, 'depth': 2, 'reductions': (), 'max_channels': 8}
    spec = space and networks.build(space, (8, 8, 1), 10, **sizes)
    with pytest.raises(UserError) as error:
        genotype_files.chosen_network(str(file), spec) if spec else _network(file)
    assert told in str(error.value)
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 200 + 2 * len(str(file))


@pytest.mark.parametrize('content', [b'\xff\xfea', b'\x89PNG\r\n', b'caf\xe9'])
def test_file_that_is_no_text_is_told_as_that(tmp_path, content):
    (tmp_path / 'genotype.txt').write_bytes(content)
    for read in (_chosen, _network):
        with pytest.raises(UserError, match=r'it is no text in UTF-8 or UTF-16 \(') as told:
            read(tmp_path / 'genotype.txt')
        assert '\n' not in str(told.value)


def test_one_of_several_in_a_file_is_named(tmp_path):
    file = tmp_path / 'several.txt'
    file.write_text(f'FIRST = {OTHER}\nSECOND = {CELL}\n')
    assert _chosen(f'{file}:SECOND') == EXPECTED
    with pytest.raises(UserError, match=r'several.txt: it holds 2 different .*FIRST.*SECOND'):
        _chosen(file)
    (tmp_path / 'a:b').write_text(CELL)  # a file of this name comes first
    assert _chosen(tmp_path / 'a:b') == EXPECTED


def test_json_has_no_names(tmp_path):
    (tmp_path / 'genotype.json').write_text(nasbench201.loads(CELL).dumps(EXPECTED))
    with pytest.raises(UserError, match="without a name, not 'FIRST'"):
        _chosen(f'{tmp_path / "genotype.json"}:FIRST')


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('nowhere.txt', 'No such file'),
        ('file/genotype.txt', 'Not a directory'),
        ('x' * 300, 'File name too long'),
        ('', 'No such file'),  # the directory, which has no genotype.json
    ],
)
def test_file_that_cannot_be_read_is_one_line(tmp_path, name, reason):
    (tmp_path / 'file').write_text('')
    for field, read in (('genotype', _chosen), ('network', _network)):
        with pytest.raises(UserError, match=f'^{field}=.*cannot be read as a .*{reason}') as told:
            read(tmp_path / name)
        assert '\n' not in str(told.value)


def _network(value):
    return genotype_files.read_network(str(value), None)


@pytest.mark.parametrize(
    ('name', 'space'),
    [
        ('imports_first.py', darts),
        ('logged_genotype.txt', darts),
        ('printed_cell.txt', nasbench201),
        ('two_genotypes.py:SECOND', darts),
    ],
)
def test_inputs_of_users_that_failed_are_read(name, space):
    if not CASES.is_dir():
        pytest.skip('no inputs of users in ../shared/cases')
    spec = networks.build(space.__name__.rpartition('.')[2], (32, 32, 3), 10)
    assert genotype_files.chosen_network(str(CASES / name), spec).is_derived()
