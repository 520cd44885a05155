"""Paths name files and decide nothing: runs, pictures and genotypes that were moved are known."""

import json
import os
import pathlib
import shutil

import pytest
from helpers.pictures import config_of, picture
from helpers.runs import CHEAPEST

import asose_jax
from asose_jax.exports import int8
from asose_jax.pipeline import single_run
from asose_jax.runtime.errors import UserError

SMALL = {'model.depth': 1, 'model.reductions': (), 'model.primitives': CHEAPEST}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder of pictures, a run on it with relative paths, and a training of its network."""
    place = tmp_path_factory.mktemp('finished') / 'project'
    for k, name in enumerate(('cat', 'dog')):
        for i in range(12):
            picture(place / 'pics' / name / f'{i}.png', seed=100 * k + i)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        single_run.run(config_of('pics', **SMALL), 'runs/first')
        single_run.run(config_of('pics', **SMALL, network='runs/first'), 'runs/again')
    return place


@pytest.fixture
def project(finished, tmp_path, monkeypatch):
    """A copy of it in another place, which is not where the runs began."""
    shutil.copytree(finished, tmp_path / 'project')
    monkeypatch.chdir(tmp_path / 'project')
    return tmp_path / 'project'


def _accuracy(workdir):
    return json.loads((pathlib.Path(workdir) / 'summary.json').read_text())['test_accuracy']


SPELLINGS = [
    ('.', './runs/first/', 'pics/'),
    ('/', '{project}/runs/first', '{project}/pics'),
    ('.', 'link/first', 'runs/../pics'),
    pytest.param('.', 'runs/first', 'pics', marks=pytest.mark.slow),
    pytest.param('runs', 'first', '../pics', marks=pytest.mark.slow),
]


@pytest.mark.parametrize(('start', 'workdir', 'data'), SPELLINGS)
def test_run_goes_on_wherever_it_is_and_however_it_is_spelled(
    project, monkeypatch, start, workdir, data
):
    (project / 'link').symlink_to('runs')
    monkeypatch.chdir(project / start)
    workdir, data = (text.format(project=project) for text in (workdir, data))
    expected = _accuracy(workdir)
    assert single_run.run(config_of(data, **SMALL), workdir)['test_accuracy'] == expected


def test_run_does_not_go_on_with_other_pictures_in_the_place_of_its_own(project):
    shutil.copytree('pics', 'other')
    picture(project / 'other' / 'cat' / 'new.png', seed=77)
    with pytest.raises(UserError, match=r"1 picture is new: 'cat/new.png'"):
        single_run.run(config_of('other', **SMALL), 'runs/first')


@pytest.mark.parametrize(
    ('use', 'start'),
    [(asose_jax.evaluate, '/'), (asose_jax.evaluate, 'runs/first'), (asose_jax.export, 'runs')],
)
def test_finished_run_is_used_from_any_directory(finished, tmp_path, monkeypatch, use, start):
    """Its pictures are found from where it began."""
    shutil.copytree(finished / 'runs', tmp_path / 'runs')
    monkeypatch.chdir(tmp_path / start)
    use(tmp_path / 'runs' / 'first')


def _away(project):
    """Moves the pictures, and forgets where the run began."""
    for record in (project / 'runs').glob('*/run.json'):
        content = json.loads(record.read_text())
        record.write_text(json.dumps({**content, 'directory': '/gone'}))
    return shutil.move('pics', 'moved')


def test_pictures_that_have_moved_are_named_to_evaluate(project):
    moved = _away(project)
    with pytest.raises(UserError, match=r'no such folder in .* name their place: --data_dir=DIR'):
        asose_jax.evaluate('runs/first')
    for place in (moved, project / moved, os.path.join('runs', '..', moved)):
        assert asose_jax.evaluate('runs/first', place)['accuracy'] == _accuracy('runs/first')


def test_pictures_that_have_moved_are_named_to_export(project, monkeypatch):
    moved, read = _away(project), []
    monkeypatch.setattr(int8, 'write', lambda _, target, data: read.append(data))
    with pytest.raises(UserError, match=r'no such folder in .* name their place: --data_dir=DIR'):
        asose_jax.export('runs/first', 'int8')
    assert not (project / 'runs' / 'first' / 'export').exists()
    asose_jax.export('runs/first', 'int8', data_dir=moved)
    assert len(read[0].train)
    about = project / 'runs' / 'first' / 'export' / 'model.json'
    assert 'platforms' not in json.loads(about.read_text())  # those of model.stablehlo
    for place, message in ((moved, '1 picture is new'), ('gone', 'no such folder')):
        picture(project / moved / 'cat' / 'x.png', seed=500)
        with pytest.raises(UserError, match=message):
            asose_jax.export('runs/first', data_dir=place)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: picture(d / 'cat' / 'x.png', seed=500), "1 picture is new: 'cat/x.png'"),
        (lambda d: (d / 'cat' / '5.png').unlink(), "1 picture is gone: 'cat/5.png'"),
        (lambda d: (d / 'cat').rename(d / 'tac'), "the class 'tac' is new"),
    ],
)
def test_other_pictures_are_refused_where_the_place_is_named(project, change, message):
    moved = _away(project)
    change(project / moved)
    with pytest.raises(UserError, match=message):
        asose_jax.evaluate('runs/first', moved)


def _network(**changes):
    """A training of the network that a file of this name describes."""
    return config_of('pics', **SMALL, **changes)


def test_training_goes_on_with_the_network_in_another_place(project):
    expected = _accuracy('runs/again')
    shutil.move('runs/first', 'runs/renamed')
    for network in ('runs/renamed', 'runs/renamed/genotype.json', str(project / 'runs/renamed')):
        found = single_run.run(_network(network=network), 'runs/again')
        assert found['test_accuracy'] == expected


@pytest.mark.parametrize('place', ['runs/first', 'elsewhere'])
def test_training_does_not_go_on_with_another_network(project, place):
    if place != 'runs/first':
        shutil.copytree('runs/first', place)
    file = project / place / 'genotype.json'
    content = json.loads(file.read_text())
    (branches,) = (block['branches'] for block in content['network']['blocks'])
    branches[0] = [next(name for name in CHEAPEST if [name] != branches[0])]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"network='{place}' is not what the run .* began with"):
        single_run.run(_network(network=place), 'runs/again')


def test_training_goes_on_without_the_file_of_its_network(project):
    expected = _accuracy('runs/again')
    shutil.rmtree('runs/first')
    found = single_run.run(_network(network='runs/first'), 'runs/again')
    assert found['test_accuracy'] == expected
    with pytest.raises(UserError, match="network='runs/gone' cannot be read"):
        single_run.run(_network(network='runs/gone'), 'runs/again')


def test_run_of_an_older_version_is_held_to_its_paths(project):
    """Nothing is recorded by which its data and its network could be known elsewhere."""
    record = project / 'runs' / 'again' / 'run.json'
    content = json.loads(record.read_text())
    for key in ('data', 'origin', 'directory'):
        del content[key]
    record.write_text(json.dumps(content))
    shutil.copytree('pics', 'moved')
    _refuse_other_paths()


def _refuse_other_paths():
    for changed in ({'network': 'runs/again'}, {'data.dir': 'moved', 'network': 'runs/first'}):
        with pytest.raises(UserError, match='holds a run with another config'):
            single_run.run(_network(**changed), 'runs/again')


@pytest.mark.parametrize('content', [None, '{'])
def test_run_whose_record_is_lost_is_held_to_its_paths(project, content):
    """Another network would otherwise pass, since there is nothing to compare it with."""
    record = project / 'runs' / 'again' / 'run.json'
    record.unlink() if content is None else record.write_text(content)
    shutil.copytree('pics', 'moved')
    _refuse_other_paths()
