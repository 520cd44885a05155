"""Compiled programs on disk: entries are whole, and nothing about them ever fails a run."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from asose_jax.runtime import compilation_cache
from asose_jax.runtime.compilation_cache import _Entries

PROGRAM = """
import logging, pathlib, sys
import jax
from asose_jax.runtime import compilation_cache
logging.basicConfig(format='%(message)s')
read = []
jax.monitoring.register_event_listener(
    lambda event, **_: read.append(event) if event.endswith('cache_hits') else None
)
compilation_cache.install(pathlib.Path(sys.argv[1]))
print(float(jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((8, 8)))), len(read))
"""


def _started(base: pathlib.Path, **environment: str) -> subprocess.Popen:
    """A process that compiles one program, and tells its result and how many entries it read."""
    known = {**os.environ, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **environment}
    return subprocess.Popen(
        [sys.executable, '-W', 'error::RuntimeWarning', '-c', PROGRAM, str(base)],
        env=known,
        cwd=pathlib.Path(__file__).parent.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(process: subprocess.Popen) -> tuple[float, int, str]:
    told, said = process.communicate()
    assert process.returncode == 0, said
    value, read = told.split()
    return float(value), int(read), said


def _entries(base: pathlib.Path) -> list[pathlib.Path]:
    return sorted(base.glob(f'*/*{_Entries.SUFFIX}'))


@pytest.fixture
def entries(tmp_path):
    return _Entries(tmp_path)


def test_entry_comes_back_as_it_was_put(entries):
    assert entries.get('a') is None
    entries.put('a', b'program')
    assert entries.get('a') == b'program'


@pytest.mark.parametrize(
    'damage', [lambda c: c[:-1], lambda c: b'', lambda c: c[:3] + b'?' + c[4:], lambda c: c + b'.']
)
def test_damaged_entry_is_none_and_makes_room_for_a_new_one(entries, tmp_path, damage):
    entries.put('a', b'program')
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert entries.get('a') is None
    entries.put('a', b'again')
    assert entries.get('a') == b'again'


def test_writer_that_is_cut_off_leaves_no_part_of_an_entry(entries, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(pathlib.Path, 'replace', full)
    entries.put('a', b'program')
    assert not [*tmp_path.iterdir()]


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    place = compilation_cache.directory(tmp_path)
    place.mkdir()
    entries = _Entries(place)
    for age, key in enumerate('abc'):
        entries.put(key, bytes(100))
        os.utime(place / f'{key}{_Entries.SUFFIX}', (1000 - age, 1000 - age))
    entries.get('c')  # uses it
    compilation_cache.prune(tmp_path, place, max_bytes=250)
    assert [path.stem for path in _entries(tmp_path)] == ['a', 'c']


def test_forgotten_versions_and_unfinished_files_are_removed(tmp_path):
    place, old, other = (tmp_path / f'jax-{name}' for name in ('now', 'old', 'other'))
    for each in (place, old, other):
        each.mkdir()
        (each / 'x.program').touch()
    (place / 'tmp1').touch()
    (place / 'tmp2').touch()
    for path in (old / 'x.program', old, place / 'tmp1'):
        os.utime(path, (1000, 1000))
    compilation_cache.prune(tmp_path, place, max_bytes=10**6)
    assert {path.name for path in tmp_path.iterdir()} == {'jax-now', 'jax-other'}
    assert {path.name for path in place.iterdir()} == {'x.program', 'tmp2'}
    assert time.time() - (place / 'tmp2').stat().st_mtime < 3600


def test_versions_and_processor_have_directories_of_their_own(tmp_path, monkeypatch):
    here = compilation_cache.directory(tmp_path)
    monkeypatch.setattr(compilation_cache.jaxlib, '__version__', '9.9.9')
    assert compilation_cache.directory(tmp_path) != here
    monkeypatch.undo()
    assert compilation_cache.directory(tmp_path) == here
    monkeypatch.setattr(compilation_cache, '_FEATURES', ())
    assert compilation_cache.directory(tmp_path) != here


def test_two_processes_at_once_keep_whole_entries_which_the_next_one_reads(tmp_path):
    both = [_started(tmp_path) for _ in range(2)]
    assert [_ended(process)[::2] for process in both] == [(512.0, '')] * 2
    files = _entries(tmp_path)
    assert len(files) > 1
    damaged = files[0].read_bytes()[:-20]
    files[0].write_bytes(damaged)
    assert _ended(_started(tmp_path)) == (512.0, len(files) - 1, '')
    assert _entries(tmp_path) == files
    assert files[0].read_bytes() != damaged


def test_directory_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / 'file').touch()  # stands where a directory should be
    value, read, said = _ended(_started(tmp_path / 'file'))
    assert (value, read) == (512.0, 0)
    assert len(said.splitlines()) == 1
    assert 'compiled programs are not kept' in said
    assert 'Set JAX_COMPILATION_CACHE_DIR to a directory that can be written' in said
