"""The house: who may import whom."""

import ast
import subprocess
import sys

import pytest

# A room imports its own level or lower ones.
LEVELS = {
    'errors': 0,
    'allocator': 0,
    'interrupt': 0,
    'workdir': 0,
    'sums': 0,
    'fast': 0,
    'product': 0,
    'pooling': 0,
    'norm': 0,
    'ops': 0,
    'gumbel': 0,
    'estimators': 0,
    'unrolled': 0,
    'benchmark': 0,
    'nats': 0,
    'genotype': 0,
    'phases': 0,
    'told': 0,
    'images': 0,
    'folder': 1,
    'data': 1,
    'batches': 1,
    'factors': 1,
    'forward': 1,
    'mixed': 1,
    'chain': 1,
    'nasbench201': 1,
    'darts': 1,
    'spaces': 2,
    'model': 2,
    'optim': 1,
    'report': 1,
    'state': 3,
    'checkpoint': 3,
    'cost': 3,
    'growth': 3,
    'candidates': 3,
    'recipe': 3,
    'steps': 3,
    'devices': 4,
    'latency': 4,
    'expected_cost': 4,
    'rules': 4,
    'config': 4,
    'gates': 5,
    'session': 5,
    'growing': 5,
    'curvature': 5,
    'selection': 5,
    'loop': 6,
    'events': 5,
    'start': 6,
    'results': 6,
    'pipeline': 7,
    'compilation_cache': 0,
    'packing': 0,
    'process': 0,
    'retrain': 0,
    'comparison': 3,
    'many': 8,
    'trained': 8,
    'confusion': 0,
    'record': 4,
    'words': 4,
    'charts': 4,
    'figures': 4,
    'drawing': 4,
    'sections': 4,
    'strips': 4,
    'several': 4,
    'page': 4,
}


def _imported(path):
    """Names of our own rooms, and of top-level packages, that a file imports."""
    rooms, packages = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.split('.')[0])
            if node.module == 'asose_jax':
                rooms |= {alias.name for alias in node.names}
            elif node.module.startswith('asose_jax.'):
                rooms.add(node.module.split('.')[1])
    return rooms, packages


def test_every_room_has_its_level_and_its_test(root):
    rooms = {path.stem for path in (root / 'asose_jax').glob('*.py')} - {'__init__'}
    assert rooms == set(LEVELS)
    tested = {path.stem.removesuffix('_test') for path in (root / 'tests').glob('*_test.py')}
    assert rooms - tested == {
        'errors',
        'chain',
        'forward',
        'results',
        'session',
        'loop',
        'start',
        'devices',
        'process',
        'told',
        'recipe',
        'rules',
        'record',
        'words',
        'charts',
        'strips',
        'drawing',
        'figures',
        'sections',
    }  # in other tests


@pytest.mark.parametrize('room', LEVELS)
def test_no_room_imports_a_higher_one(root, room):
    rooms, _ = _imported(root / 'asose_jax' / f'{room}.py')
    assert all(LEVELS[other] <= LEVELS[room] for other in rooms)


def test_rooms_of_a_level_do_not_import_each_other_in_a_circle(root):
    graph = {room: _imported(root / 'asose_jax' / f'{room}.py')[0] for room in LEVELS}
    done = set()
    while len(done) < len(graph):
        ready = {room for room, needs in graph.items() if room not in done and needs <= done}
        assert ready, f'a circle among {set(graph) - done}'
        done |= ready


def test_entrance_and_configs_stay_outside(root):
    rooms, _ = _imported(root / 'main.py')
    assert rooms == {'many', 'page', 'retrain', 'trained', 'process', 'errors'}
    for path in (root / 'configs').glob('*.py'):
        assert _imported(path)[1] <= {'ml_collections', 'configs', 'json', 'pathlib'}


def test_package_by_itself_does_not_start_jax(root):
    code = 'import sys, asose_jax; assert not {"jax", "flax"} & sys.modules.keys()'
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)


def test_only_one_room_maps_over_devices(root):
    for room in LEVELS:
        text = (root / 'asose_jax' / f'{room}.py').read_text()
        assert ('jax.pmap' in text) == (room == 'devices')
