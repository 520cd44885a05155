"""SIGTERM, SIGHUP and Ctrl-C are heard, held back while needed, and never swallowed."""

import gc
import os
import signal
import subprocess
import sys
import time

import pytest

from asose_jax.runtime import interrupt
from asose_jax.runtime.errors import Stopped


@pytest.fixture(autouse=True)
def _terminal_is_heard():
    """Also where the tests themselves were started under nohup; children inherit it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_stops_at_once_where_there_is_nothing_to_save(number):
    with interrupt.Interrupt(), pytest.raises(Stopped, match=signal.Signals(number).name):
        os.kill(os.getpid(), number)


def test_signal_only_asks_while_something_is_held():
    with interrupt.Interrupt() as asked:
        with asked.held():
            assert not asked.requested
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.requested
        assert asked.requested


def test_closed_terminal_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt.Interrupt() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_run_whose_terminal_is_closed_saves_although_it_writes_there(root, tmp_path, stream):
    code = (
        'import fcntl, pathlib, sys, termios, time\n'
        'from asose_jax.runtime.interrupt import Interrupt\n'
        'fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n'
        'with Interrupt() as asked, asked.held():\n'
        '    print("held", flush=True)\n'
        '    while not asked.requested:\n'
        '        time.sleep(0.01)\n'
        f'    print("stopping", file=sys.{stream}, flush=True)\n'
        '    pathlib.Path(sys.argv[1]).write_text("saved")\n'
    )
    ours, theirs = os.openpty()
    command = [sys.executable, '-c', code, str(tmp_path / 'state')]
    started = subprocess.Popen(
        command, cwd=root, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert b'held' in os.read(ours, 100)
    os.close(ours)
    assert started.wait() == 0
    assert (tmp_path / 'state').read_text() == 'saved'


def test_where_hosts_have_to_agree_a_signal_only_asks():
    with interrupt.Interrupt(at_once=False) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.requested


def test_handlers_of_before_are_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with interrupt.Interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_stop_is_not_swallowed_as_a_common_error():
    assert not issubclass(Stopped, Exception)


def test_stop_that_a_callback_drops_is_raised_all_the_same():
    def ask(*_):
        gc.callbacks.remove(ask)
        os.kill(os.getpid(), signal.SIGTERM)

    def collect():
        gc.callbacks.append(ask)
        gc.collect()
        while True:  # until it is raised anew
            time.sleep(0.01)

    before = sys.unraisablehook
    with interrupt.Interrupt(), pytest.raises(Stopped, match='SIGTERM'):
        collect()
    assert sys.unraisablehook is before


def test_second_signal_ends_the_process_as_if_nothing_were_held(root):
    code = (
        'import os, signal\n'
        'from asose_jax.runtime.interrupt import Interrupt\n'
        'asked = Interrupt()\n'
        'with asked, asked.held():\n'
        '    os.kill(os.getpid(), signal.SIGTERM)\n'
        '    print("held", flush=True)\n'
        '    os.kill(os.getpid(), signal.SIGTERM)\n'
        '    print("never")\n'
    )
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == 'held\n'
    assert done.returncode == -signal.SIGTERM
