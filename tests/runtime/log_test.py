"""The log is shown once: by the program that set up logging, else by the package."""

import io
import logging

import pytest
import rich.console

from asose_jax.runtime import log

LINE = 'a line of the log'


class _Root(logging.RootLogger):
    """A root logger without the handlers that pytest adds when a test begins."""

    def addHandler(self, hdlr):  # noqa: N802
        if not type(hdlr).__module__.startswith('_pytest'):
            super().addHandler(hdlr)


@pytest.fixture
def lines(monkeypatch, capsys):
    """The logging of a process that has set up nothing; gives what is shown of a line."""
    root = _Root(logging.WARNING)
    monkeypatch.setattr(logging, 'root', root)
    monkeypatch.setattr(log.logger, 'parent', root)
    monkeypatch.setattr(log.logger, 'propagate', True)
    monkeypatch.setattr(log.logger, 'handlers', [])
    log.logger.setLevel(logging.NOTSET)  # clears what is known of levels, too

    def shown(console=None):
        before = log.logger.level, log.logger.propagate, [*log.logger.handlers]
        with log.shown(console):
            log.logger.info(LINE)
        assert (log.logger.level, log.logger.propagate, log.logger.handlers) == before
        log.logger.info('a line after it')
        found = capsys.readouterr()
        return found.out, found.err

    yield shown
    log.logger.setLevel(logging.NOTSET)


def _notebook():
    return rich.console.Console(force_jupyter=True)


def _handler(target):
    handler = logging.StreamHandler(target)
    handler.setFormatter(logging.Formatter('theirs: %(message)s'))
    return handler


def test_program_without_logging_is_shown_each_line_once(lines):
    out, err = lines()
    assert out == ''
    assert err.endswith(f' {LINE}\n')
    assert err.count('\n') == 1
    assert lines()[1].count('\n') == 1  # also the second time


def test_notebook_without_logging_is_shown_each_line_once(lines):
    out, err = lines(_notebook())
    assert out.endswith(f' {LINE}\n')
    assert out.count('\n') == 1
    assert err == ''


@pytest.mark.parametrize('console', [None, _notebook()], ids=['script', 'notebook'])
def test_program_that_set_up_logging_shows_its_lines_itself(lines, console):
    target = io.StringIO()
    logging.root.addHandler(_handler(target))
    logging.root.setLevel(logging.INFO)
    assert lines(console) == ('', '')
    assert target.getvalue() == f'theirs: {LINE}\ntheirs: a line after it\n'


def test_program_that_wants_warnings_only_gets_no_more(lines):
    target = io.StringIO()
    logging.root.addHandler(_handler(target))
    assert lines() == ('', '')
    assert target.getvalue() == ''


def test_notebook_whose_host_set_up_logging_for_warnings_is_shown_each_line_once(lines):
    """As in Colab."""
    target = io.StringIO()
    logging.root.addHandler(_handler(target))
    assert lines(_notebook())[0].endswith(f' {LINE}\n')
    assert target.getvalue() == ''


@pytest.mark.parametrize('console', [None, _notebook()], ids=['script', 'notebook'])
def test_level_of_the_package_is_heeded(lines, console):
    log.logger.setLevel(logging.ERROR)
    assert lines(console) == ('', '')


def test_contexts_in_each_other_show_a_line_once(lines):
    with log.shown():
        _, err = lines()
    assert err.count(LINE) == 1


def test_handlers_of_libraries_do_not_stay_at_the_root_logger(lines):
    ours = _handler(io.StringIO())
    logging.root.addHandler(ours)
    with log.root_unchanged():
        logging.root.addHandler(_handler(io.StringIO()))
    assert logging.root.handlers == [ours]
    logging.root.removeHandler(ours)
    with log.shown():
        logging.basicConfig()  # as absl does at its first message
    assert logging.root.handlers == []


def test_in_a_terminal_lines_go_through_the_console_of_the_bar(lines):
    console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=80)
    assert lines(console) == ('', '')
    assert LINE in console.file.getvalue()
