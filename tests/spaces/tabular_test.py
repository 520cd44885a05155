"""Tables of measured cells: what they tell, and what they do not take."""

import pytest

from asose_jax.runtime.errors import UserError
from asose_jax.spaces.tabular import Table

ROWS = 'arch,cifar10,cifar100\n|a~0|,90.5,70\n|b~0|,93,71.5\n|c~0|,93,60\n'


@pytest.fixture
def table(tmp_path):
    def write(text):
        file = tmp_path / 'table.csv'
        file.write_text(text)
        return str(file)

    return write


def test_lookup_tells_accuracy_and_rank_in_every_column(table):
    found = Table.read(table(ROWS), str).lookup('|a~0|')
    assert found == {
        'cifar10': {'accuracy': 90.5, 'rank': 3, 'of': 3},
        'cifar100': {'accuracy': 70.0, 'rank': 2, 'of': 3},
    }


def test_equals_share_the_better_rank_and_strangers_have_none(table):
    known = Table.read(table(ROWS), str)
    assert known.lookup('|c~0|')['cifar10']['rank'] == 1
    assert known.lookup('|d~0|') == {}


def test_a_table_is_written_as_it_is_read(table):
    known = Table.read(table(ROWS), str)
    assert Table.read(table(known.dumps()), str) == known


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'columns are None'),
        ('cell,cifar10\na,1\n', r"columns are \['cell', 'cifar10'\]"),
        ('arch\na\n', 'columns are'),
        ('arch,cifar10\na,good\n', "line 2: cifar10 is 'good', not a number"),
        ('arch,cifar10\na,1\nb,\n', "line 3: cifar10 is '', not a number"),
        ('arch,cifar10\na\n', 'line 2: it has more or fewer fields'),
        ('arch,cifar10\na,1,2\n', 'line 2: it has more or fewer fields'),
        ('arch,cifar10\na,1\na,2\n', 'line 3: it repeats the cell a'),
        ('arch,cifar10\na,nan\n', 'line 2: cifar10 is nan, not a finite number'),
    ],
)
def test_a_table_of_another_kind_is_one_clear_error(table, text, message):
    with pytest.raises(UserError, match=message):
        Table.read(table(text), str)


def test_cell_that_cannot_be_read_is_named_with_its_line(table):
    def refuse(text):
        raise ValueError(f'{text} is no cell')

    with pytest.raises(UserError, match='line 2: a is no cell'):
        Table.read(table('arch,cifar10\na,1\n'), refuse)


@pytest.mark.parametrize('accuracy', ['88.1%', ' 88.1 ', '88.1 %', '8.81e1'])
def test_accuracy_is_read_as_people_write_it(table, accuracy):
    known = Table.read(table(f'arch,cifar10\na,{accuracy}\n'), str)
    assert known.lookup('a')['cifar10']['accuracy'] == 88.1


@pytest.mark.parametrize(
    ('text', 'encoding'),
    [
        ('arch;cifar10\n|a~0|;88,1\n', 'utf-8'),  # Excel in Europe
        ('arch\tcifar10\r\n|a~0|\t88.1 %\r\n', 'utf-16'),  # Excel's "Unicode text"
        ('arch,cifar10\r\n|a~0|,88.1\r\n', 'utf-8-sig'),
        ('arch,cifar10\n|a~0|,"88,1"\n', 'utf-8'),
    ],
)
def test_table_is_read_as_programs_write_it(tmp_path, text, encoding):
    (tmp_path / 'table.csv').write_bytes(text.encode(encoding))
    known = Table.read(str(tmp_path / 'table.csv'), str)
    assert known.columns == {'cifar10': {'|a~0|': 88.1}}


def test_a_missing_table_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match='No such file'):
        Table.read(str(tmp_path / 'none.csv'), str)


def test_cells_are_found_in_any_dialect_of_their_text(table):
    known = Table.read(table('arch,top\n" |a~0| ",1\n'), str.strip)
    assert known.lookup('|a~0|')['top']['rank'] == 1
