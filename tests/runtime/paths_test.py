"""Paths that are not of this machine are refused before a folder is made for them."""

import pathlib
import pwd

import pytest
from helpers.runs import CELLS, tiny

import asose_jax
from asose_jax.report import page
from asose_jax.runtime import paths
from asose_jax.runtime.errors import UserError

URLS = ('gs://bucket/run', 's3://bucket/run', 'https://host/run', 'file:///run')
ON_FINISHED = (asose_jax.load, asose_jax.evaluate, asose_jax.export, page.rebuild)


@pytest.mark.parametrize('url', URLS)
@pytest.mark.parametrize('name', paths.FIELDS)
def test_field_with_a_url_is_refused_before_anything_is_written(tmp_path, monkeypatch, name, url):
    monkeypatch.chdir(tmp_path)
    for seeds in ((), (0, 1)):
        with pytest.raises(UserError, match=f'^{url[:2]}.*paths are not supported yet: {name}='):
            asose_jax.search(tiny(**{name: url, 'seeds': seeds}), tmp_path / 'run')
    assert list(tmp_path.iterdir()) == []


def test_archive_of_a_benchmark_at_a_url_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'gs:// paths are not supported yet: benchmark.table='):
        asose_jax.search(tiny(**{'benchmark.table': 'nats_bench:gs://b/x'}), tmp_path / 'run')


@pytest.mark.parametrize('url', URLS)
def test_workdir_at_a_url_is_refused_by_every_function(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    calls = [(function, ()) for function in ON_FINISHED]
    for function, before in [*calls, (asose_jax.search, (tiny(),))]:
        for given in (url, pathlib.Path(url)):
            with pytest.raises(UserError, match='paths are not supported yet: workdir='):
                function(*before, given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('workdir', [None, 3, b'run'])
def test_workdir_that_is_no_path_is_refused_by_every_function(workdir):
    calls = [(function, ()) for function in ON_FINISHED]
    for function, before in [*calls, (asose_jax.search, (tiny(),))]:
        with pytest.raises(UserError, match=r'is no path: it is \w+\. Name a path'):
            function(*before, workdir)


@pytest.mark.parametrize('workdir', ['', ' ', '\t'])
def test_empty_workdir_is_refused_by_every_function(tmp_path, monkeypatch, workdir):
    monkeypatch.chdir(tmp_path)
    calls = [(function, ()) for function in ON_FINISHED]
    for function, before in [*calls, (asose_jax.search, (tiny(),))]:
        with pytest.raises(UserError, match=r'is empty. Name a path'):
            function(*before, workdir)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('value', ['', ' ', 5, b'x', ['x'], 'a\0b'])
@pytest.mark.parametrize('name', ['workdir', '--data_dir', 'images', 'out'])
def test_what_is_no_path_is_one_line_with_the_name_of_the_setting(name, value):
    with pytest.raises(UserError, match=rf'^{name}=.*Name a path\.$') as told:
        paths.require_local(value, name)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize('name', ['file', 'file/run', 'x' * 300])
def test_workdir_that_cannot_be_one_is_one_line_of_every_function(tmp_path, name):
    (tmp_path / 'file').write_text('')
    calls = [(function, ()) for function in ON_FINISHED]
    for function, before in [*calls, (asose_jax.search, (tiny(),))]:
        with pytest.raises(UserError, match=r'cannot be used: (Not a directory|File name)') as told:
            function(*before, tmp_path / name)
        assert '\n' not in str(told.value)


_DERIVED = {'warmup.epochs': 0, 'search.epochs': 0, 'growth.epochs': 0}


@pytest.mark.parametrize('name', ['nowhere', 'file/x', 'loop', 'x' * 300])
@pytest.mark.parametrize(
    ('field', 'others'),
    [
        ('data.dir', {'data.name': 'folder'}),
        ('data.dir', {'data.name': 'cifar10'}),
        ('genotype', _DERIVED),
        ('network', _DERIVED),
        ('init_from', {}),
        ('benchmark.table', CELLS),
    ],
)
def test_field_whose_path_leads_nowhere_is_one_line_that_names_it(tmp_path, field, others, name):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'loop').symlink_to('loop')
    path = tmp_path / name
    with pytest.raises(UserError) as told:
        asose_jax.search(tiny(**others, **{field: str(path)}), tmp_path / 'run')
    message = str(told.value)
    assert '\n' not in message
    assert field in message or name[:50] in message
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('workdir', 'fields', 'told'),
    [
        ('~/run', {}, 'a path begins with ~, but the home directory is unknown'),
        ('{here}/run', {'data.name': 'folder', 'data.dir': '~/pics'}, 'a path begins with ~'),
        ('{here}/run', {'data.name': 'cifar10'}, 'Set data.dir, $TFDS_DATA_DIR or $HOME'),
    ],
)
def test_unknown_home_is_one_line_wherever_it_is_needed(
    tmp_path, monkeypatch, workdir, fields, told
):
    def unknown(_):
        raise KeyError('uid not found')

    for name in ('HOME', 'TFDS_DATA_DIR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', unknown)
    with pytest.raises(UserError) as error:
        asose_jax.search(tiny(**fields), workdir.format(here=tmp_path))
    assert told in str(error.value)
    assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['run', 'gs:', 'a:b', 'gs:run'])
def test_other_names_are_paths(name):
    assert paths.expand_workdir(name) == pathlib.Path(name)


@pytest.mark.parametrize(
    ('one', 'other', 'base', 'same'),
    [
        ('runs/m', './runs/m/', None, True),
        ('{here}/runs/m', 'runs/m', None, True),
        ('link/m', 'runs/m', None, True),
        ('runs/m', 'm', '{here}/runs', True),
        ('runs/m', 'm', None, False),
        ('pics', 'pics2', None, False),
        ('|a~0|', '|a~0|', None, True),  # the text of a genotype
        ('pics', None, None, False),
        (None, None, None, False),
    ],
)
def test_paths_are_compared_as_the_files_that_they_name(
    tmp_path, monkeypatch, one, other, base, same
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs' / 'm').mkdir(parents=True)
    (tmp_path / 'link').symlink_to('runs')
    one, other, base = (text and text.format(here=tmp_path) for text in (one, other, base))
    assert paths.name_same(one, other, base) == same


@pytest.mark.parametrize(
    ('workdir', 'refused'),
    [
        ('pics', True),
        ('pics/run', True),
        ('pics/cat/deep/run', True),
        ('link/run', True),
        ('pics/.runs/a', False),  # hidden folders are not read
        ('pics2', False),
        ('run', False),
        ('.', False),
    ],
)
@pytest.mark.parametrize('seeds', [(), (0, 1)])
def test_workdir_among_the_pictures_is_refused(tmp_path, monkeypatch, workdir, refused, seeds):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'pics').mkdir()
    (tmp_path / 'link').symlink_to('pics')
    config = tiny(**{'data.name': 'folder', 'data.dir': './pics/', 'seeds': seeds})
    message = 'is inside data.dir=' if refused else 'has no class folders'
    if refused or not seeds:
        with pytest.raises(UserError, match=message):
            asose_jax.search(config, workdir)
    assert list((tmp_path / 'pics').rglob('*')) == []
