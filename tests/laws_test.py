"""Every law of the table is held in the default ring, by tests that are there."""

import runpy

import pytest
from helpers import laws


def test_every_law_has_a_test_in_the_default_ring(request):
    if not request.config.option.markexpr.startswith('not slow'):
        pytest.skip('of the default ring')
    if request.config.args_source.name != 'TESTPATHS':
        pytest.skip('only some of the tests were collected')
    found = laws.held_by(request.session.items)
    assert not [law for law, tests in found.items() if not tests]


def test_every_test_of_the_table_is_there(root):
    for names in laws.LAWS.values():
        for name in names:
            file, _, function = name.partition('::')
            (path,) = (root / 'tests').rglob(f'{file}.py')
            text = path.read_text(encoding='utf-8')
            assert f'def {function}(' in text or not function, name


def test_every_soak_test_guards_paths_that_are_there(root):
    """`.ci/soak --changed` runs a file where a path that it guards has changed."""
    guards = runpy.run_path(str(root / '.ci' / 'soak'))['GUARDS']
    marked = {
        str(path.relative_to(root))
        for path in (root / 'tests').rglob('*_test.py')
        if 'pytest.mark.soak' in path.read_text(encoding='utf-8') and path.name != 'laws_test.py'
    }
    assert marked == {*guards}
    for file, patterns in guards.items():
        assert not [pattern for pattern in patterns if not any(root.glob(pattern))], file
