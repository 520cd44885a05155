"""Texts with genotypes, as people have them."""

import pytest

from asose_jax.spaces import darts, nasbench201

CELL = (
    "[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 1), "
    "('dil_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)]"
)
OTHER_CELL = CELL.replace("'dil_conv_3x3', 2", "'sep_conv_5x5', 2")
ARGUMENTS = f'normal={CELL}, normal_concat=[2, 3, 4, 5], reduce={CELL}, reduce_concat=[2, 3, 4, 5]'
ONE = f'Genotype({ARGUMENTS})'
OTHER = ONE.replace(CELL, OTHER_CELL)
FIRST = '|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|'
SECOND = FIRST.replace('avg_pool_3x3', 'none')
DEFINITION = (
    'from collections import namedtuple\n\n'
    "Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')\n"
    "PRIMITIVES = ['none', 'skip_connect']\n\n"
)


@pytest.mark.parametrize(
    'text',
    [
        f'{DEFINITION}NET = {ONE}\n',
        f'import genotypes as gt\nNET: object = gt.{ONE}\n',
        f'2026-01-02 03:04:05,678 genotype = {ONE}\n',
        f'epoch 3\n{ONE} (best so far)\n',
        f'Genotype({CELL}, [2, 3, 4, 5], {CELL}, [2, 3, 4, 5])',
        f'Genotype({CELL}, range(2, 6), reduce_concat=range(2, 6), reduce={CELL})',
        f'A = {ONE}\nB = A\nC = {ONE}\n',
        f'# OLD = {OTHER}\nNEW = {ONE}\n',
        f"NETS = {{'one': {ONE}}}\n",
        f'| seed_0 | 91.20 % | `{ONE}` |\n',
        ONE.replace(', ', ',\r\n    '),
    ],
)
def test_darts_genotype_is_found_in_what_is_around_it(text):
    assert darts.loads(text) == darts.loads(ONE)


@pytest.mark.parametrize(
    'text',
    [
        FIRST.replace('|', '¦'),
        f"2026-01-02 arch = '{FIRST}'\n",
        f'Structure(4 nodes with {FIRST})',
        f'| seed_0 | 91.20 % | `{FIRST.replace("|", "¦")}` |\n',
        FIRST.replace('+', ' + ') + '\r\n',
        f'{FIRST}\n{FIRST}\n',
    ],
)
def test_nasbench201_cell_is_found_in_what_is_around_it(text):
    assert nasbench201.loads(text) == nasbench201.loads(FIRST)


SEVERAL = [
    (darts, f'{DEFINITION}FIRST = {ONE}\nSECOND = {OTHER}\n', ONE, OTHER),
    (darts, f"NETS = {{'FIRST': {ONE}, 'SECOND': {OTHER}}}\n", ONE, OTHER),
    (darts, f'10:00 FIRST = {ONE}\n10:01 SECOND = {OTHER}\n', ONE, OTHER),
    (nasbench201, f'FIRST = {FIRST}\nSECOND: {SECOND}\n', FIRST, SECOND),
    (nasbench201, f'| FIRST | `{FIRST}` |\n| SECOND (collapsed) | `{SECOND}` |\n', FIRST, SECOND),
]


@pytest.mark.parametrize(('space', 'text', 'first', 'second'), SEVERAL)
def test_several_genotypes_need_a_name(space, text, first, second):
    with pytest.raises(ValueError, match=r'2 different genotypes: FIRST .*SECOND .*FILE:NAME'):
        space.loads(text)
    assert space.loads(text, 'FIRST') == space.loads(first)
    assert space.loads(text, 'SECOND') == space.loads(second)
    with pytest.raises(ValueError, match=r"no genotype of the name 'THIRD', but FIRST"):
        space.loads(text, 'THIRD')


def test_second_name_of_a_genotype_names_it_too():
    text = f'FIRST = {ONE}\nLAST = {OTHER}\nBEST = LAST\n'
    assert darts.loads(text, 'BEST') == darts.loads(text, 'LAST') == darts.loads(OTHER)


@pytest.mark.parametrize('text', [FIRST, FIRST.replace('|', '¦')])
def test_part_of_a_longer_cell_is_no_cell(text):
    bar = text[0]
    longer = f'{text}+{bar}' + bar.join(f'none~{i}' for i in range(4)) + bar
    for wrong in (longer, text + 'none~0', text + '+', longer.replace('+', ' + ')):
        with pytest.raises(ValueError, match='NAS-Bench-201'):
            nasbench201.loads(wrong)
