"""One run at a time in a workdir; whole files or none; no disk trouble without a clear word."""

import errno
import os

import pytest

from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError


def test_second_run_is_refused_until_the_first_one_ends(tmp_path):
    with workdir.locked(tmp_path / 'run'):
        with (
            pytest.raises(UserError, match=r'another process is at work in .*run'),
            workdir.locked(tmp_path / 'run'),
        ):
            pass
        with workdir.locked(tmp_path / 'other'):
            pass
    with workdir.locked(tmp_path / 'run'):
        assert list((tmp_path / 'run').iterdir()) == []


def test_other_hosts_of_a_run_are_let_in(tmp_path):
    with workdir.locked(tmp_path), workdir.locked(tmp_path, is_primary_host=False):
        pass


def test_workdir_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with (
        pytest.raises(UserError, match=r'run cannot be used: Not a directory. Choose another path'),
        workdir.locked(tmp_path / 'file' / 'run'),
    ):
        pass


def test_read_only_workdir_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.os, 'access', lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match='is read-only'), workdir.locked(tmp_path):
        pass


def test_full_disk_is_told_with_the_file_and_what_to_do(tmp_path):
    def fill():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / 'metrics.jsonl'))

    with (
        pytest.raises(UserError, match=r'metrics.jsonl cannot be written: No space.* resumes from'),
        workdir.locked(tmp_path),
    ):
        fill()


def test_file_that_is_written_in_pieces_appears_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / 'table.csv'
    with workdir.written_atomically(path) as file:
        file.write('one,')
        assert not path.exists()
        file.write('two\n')
    assert path.read_text() == 'one,two\n'

    def stop(file):
        file.write('other')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), workdir.written_atomically(path) as file:
        stop(file)
    assert path.read_text() == 'one,two\n'
    assert [each.name for each in tmp_path.iterdir()] == ['table.csv']


@pytest.mark.parametrize('kind', ['link to a file', 'pipe', 'link to a pipe'])
def test_links_and_pipes_are_written_to_and_stay_what_they_are(tmp_path, kind):
    target, path = tmp_path / 'target', tmp_path / ('target' if kind == 'pipe' else 'link')
    if 'pipe' in kind:
        os.mkfifo(target)
        reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    else:
        target.write_text('old')
        reader = None
    if path != target:
        path.symlink_to(target)
    workdir.write_atomically(path, 'new')
    if reader is None:
        assert target.read_text() == 'new'
    else:
        assert os.read(reader, 10) == b'new'
        os.close(reader)
        assert target.is_fifo()
    assert path.is_symlink() == (path != target)
    assert {each.name for each in tmp_path.iterdir()} == {target.name, path.name}


def test_link_to_itself_makes_way_for_the_file(tmp_path):
    (tmp_path / 'loop').symlink_to('loop')
    workdir.write_atomically(tmp_path / 'loop', 'new')
    assert (tmp_path / 'loop').read_text() == 'new'


def test_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'summary.json'
    workdir.write_atomically(path, 'old')

    def die(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workdir.os, 'fsync', die)
    with pytest.raises(KeyboardInterrupt):
        workdir.write_atomically(path, 'new')
    assert path.read_text() == 'old'


_KINDS = [
    ('single', (), {'config.json': '{"seeds": []}'}),
    ('single', (), {'config.json': '{}'}),  # of a version before sweeps
    ('single', (), {'metrics.jsonl': ''}),
    ('sweep', (0, 1), {'config.json': '{"seeds": [0, 1]}'}),
    ('sweep', (0, 1), {'config.json': '{"seeds": [0]}', 'metrics.jsonl': ''}),
    ('sweep', (0, 1), {'seed_0/config.json': '{}'}),
]


@pytest.mark.parametrize(('kind', 'seeds', 'files'), _KINDS)
def test_workdir_is_of_one_kind(tmp_path, kind, seeds, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    before = sorted(tmp_path.rglob('*'))
    workdir.require_kind(tmp_path, seeds)
    held = {'single': 'holds a single run, not a sweep', 'sweep': 'sweep.*, not a single run'}
    with pytest.raises(UserError, match=held[kind]) as told:
        workdir.require_kind(tmp_path, () if seeds else (0, 1))
    assert '\n' not in str(told.value)
    assert sorted(tmp_path.rglob('*')) == before


def test_new_workdir_may_become_either(tmp_path):
    for seeds in ((), (0, 1)):
        workdir.require_kind(tmp_path, seeds)
        workdir.require_kind(tmp_path / 'new', seeds)


@pytest.mark.parametrize('content', ['{"seeds": [0', '', '[]', '7', 'null'])
def test_damaged_config_is_named(tmp_path, content):
    (tmp_path / 'config.json').write_text(content)
    for seeds in ((), (0,)):
        with pytest.raises(UserError, match=r'config.json cannot be read .*: it is damaged'):
            workdir.require_kind(tmp_path, seeds)
