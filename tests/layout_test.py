"""Folders of the package, and which may import which."""

import ast
import subprocess
import sys

import pytest

import asose_jax

# A folder imports itself and those before it; files beside the folders import any of them.
FOLDERS = (
    'runtime',
    'arch',
    'nn',
    'data',
    'spaces',
    'train',
    'costs',
    'config',
    'metrics',
    'report',
    'pipeline',
    'sweep',
    'exports',
)


def _imports(path):
    """Yields the absolute name of every module or attribute that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _folders(path):
    """Returns the folders of the package that a file imports from."""
    names = [name.split('.') for name in _imports(path)]
    return {name[1] for name in names if name[0] == 'asose_jax' and name[1:]} & {*FOLDERS}


def _modules(root):
    """Maps the dotted name of every module of the package to its file."""
    paths = [p for p in (root / 'asose_jax').rglob('*.py') if p.name != '__init__.py']
    return {'.'.join(p.relative_to(root).with_suffix('').parts): p for p in paths}


def test_every_folder_has_its_level(root):
    found = {path.parent.name for path in (root / 'asose_jax').glob('*/__init__.py')}
    assert found == {*FOLDERS}


def test_no_folder_has_the_name_of_a_public_function():
    """Python would put the folder in the place of the function once anything in it is imported."""
    assert not {*FOLDERS} & {*asose_jax.__all__}


@pytest.mark.parametrize('folder', FOLDERS)
def test_no_folder_imports_a_later_one(root, folder):
    allowed = {*FOLDERS[: FOLDERS.index(folder) + 1]}
    for path in (root / 'asose_jax' / folder).rglob('*.py'):
        assert _folders(path) <= allowed, path


def test_modules_do_not_import_each_other_in_a_circle(root):
    modules = _modules(root)
    graph = {
        name: {
            other
            for used in _imports(path)
            for other in modules
            if used == other or used.startswith(f'{other}.')
        }
        for name, path in modules.items()
    }
    done = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert ready, f'a circle among {set(graph) - done}'
        done |= ready


def test_a_config_can_be_read_without_jax(root):
    code = (
        'import sys; from configs import search; search.get_config("digits"); '
        'assert not {"jax", "flax"} & sys.modules.keys()'
    )
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)


def test_package_by_itself_does_not_start_jax(root):
    code = 'import sys, asose_jax; assert not {"jax", "flax"} & sys.modules.keys()'
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)


def test_only_one_module_maps_over_devices(root):
    users = [name for name, path in _modules(root).items() if 'jax.pmap' in path.read_text()]
    assert users == ['asose_jax.train.pmap']


def test_no_module_asks_which_backend_is_the_default(root):
    """A program is made for the platform that it is lowered for, see tests/accelerators_test.py."""
    users = [name for name, path in _modules(root).items() if 'default_backend' in path.read_text()]
    assert users == []
