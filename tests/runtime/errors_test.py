"""Errors of the file system: one line with the path, what failed and what to do."""

import errno
import os

import pytest

from asose_jax.runtime import errors
from asose_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ('number', 'failed', 'advice'),
    [
        (errno.EACCES, 'may not be', 'permission'),
        (errno.EPERM, 'may not be', 'permission'),
        (errno.EROFS, 'cannot be written', 'a disk that can be written'),
        (errno.ENOSPC, 'cannot be written', 'Free some space'),
        (errno.EDQUOT, 'cannot be written', 'Free some space'),
        (errno.ENAMETOOLONG, 'cannot be used', 'shorter path'),
        (errno.ENOTDIR, 'cannot be used', 'Choose another path'),
        (errno.EISDIR, 'cannot be used', 'Name a file'),
        (errno.ENOENT, 'cannot be used', 'Check the path'),
        (errno.EIO, 'cannot be used', 'Check the disk'),
    ],
)
def test_error_of_the_system_is_one_line_with_path_task_and_advice(number, failed, advice):
    with pytest.raises(UserError) as told, errors.os_errors('evaluating a run'):
        raise OSError(number, os.strerror(number), '/results/run.json')
    text = str(told.value)
    assert text.startswith('evaluating a run: /results/run.json ')
    for part in (failed, os.strerror(number), advice):
        assert part in text
    assert '\n' not in text


def test_what_was_refused_is_said(tmp_path, monkeypatch):
    for name, readable, verb in (('a', True, 'written'), ('b', False, 'read')):
        (tmp_path / name).write_text('')
        monkeypatch.setattr(errors.os, 'access', lambda *_, readable=readable: readable)
        refused = PermissionError(errno.EACCES, 'Permission denied', str(tmp_path / name))
        assert f'may not be {verb}' in errors.describe_os_error(refused)


@pytest.mark.parametrize(
    ('number', 'nouns', 'expected'),
    [
        (0, ('picture',), 'no pictures'),
        (1, ('picture',), '1 picture'),
        (2, ('class', 'classes'), '2 classes'),
        (1, ('class', 'classes'), '1 class'),
    ],
)
def test_number_has_its_noun(number, nouns, expected):
    assert errors.counted(number, *nouns) == expected


def test_long_path_is_shortened_in_the_message():
    text = errors.describe_os_error(OSError(errno.ENAMETOOLONG, 'File name too long', 'x' * 4000))
    assert '4000 characters' in text
    assert len(text) < 400


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_can_be_resumed_says_so(number):
    with (
        pytest.raises(UserError, match='resumes from its last checkpoint'),
        errors.os_errors('running', resumes=True),
    ):
        raise OSError(number, os.strerror(number), '/results')


def test_unknown_home_directory_is_told():
    with (
        pytest.raises(UserError, match=r'running: a path begins with ~.* Set HOME'),
        errors.os_errors('running'),
    ):
        raise RuntimeError('Could not determine home directory.')


@pytest.mark.parametrize('error', [RuntimeError('other'), KeyError('x'), UserError('own')])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as told, errors.os_errors('running'):
        raise error
    assert told.value is error
