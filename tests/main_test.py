"""The command line: what a person sees when something is wrong."""

import json
import logging
import os
import re
import signal
import subprocess
import sys

import jax
import pytest
from absl import app, flags
from absl.testing import flagsaver
from helpers import networks, recorded

from asose_jax import inference
from asose_jax.nn import batch_norm, operations
from asose_jax.pipeline import single_run
from asose_jax.report import page
from asose_jax.spaces import chain, registry
from configs.search import get_config


def _main(root, *arguments):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    del environment['XLA_FLAGS']  # those of the tests
    return subprocess.run(
        [sys.executable, 'main.py', *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def command(root, monkeypatch, caplog):
    """The program, but for its process: a function of its arguments, which gives what is told."""
    from asose_jax import cli
    from asose_jax.runtime import process

    def leave(status):
        raise SystemExit(status)

    def run(*arguments):
        argv = ['main.py', *arguments]
        monkeypatch.setattr(sys, 'argv', argv)
        cli.main(cli._parse(argv))
        return '\n'.join(caplog.messages)

    monkeypatch.chdir(root)
    monkeypatch.setattr(process, 'exit_now', leave)
    monkeypatch.setattr(process, 'set_up', lambda *_: logging.getLogger('asose_jax'))
    with flagsaver.flagsaver(), caplog.at_level(logging.INFO, 'asose_jax'):
        yield run


# ml_collections loads configs by a method that is to go.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
DIGITS = '--config=configs/search.py:digits'
WRONG = [
    (['--config.serach.epochs=2'], ['serach', 'Did you mean', 'search']),
    (['--config.search.epochs=two'], ['search.epochs', 'two']),
    (['--config.search.turn_period=1'], ['search.turn_period=1: must be an integer']),
    (['--config.data.name=cifar11'], ["data.name='cifar11'", 'Did you mean']),
    (['--config=nowhere.py'], ['nowhere.py', 'No such file']),
    (['extra'], ["unexpected argument 'extra'"]),
    (['--config=configs/search.py:mnist'], ["'mnist'; there are cifar10, digits"]),
]


@pytest.mark.parametrize(('arguments', 'messages'), WRONG)
def test_wrong_command_is_one_message(command, caplog, tmp_path, arguments, messages):
    workdir = tmp_path / 'run'
    with pytest.raises((SystemExit, app.UsageError)) as stopped:
        command(DIGITS, f'--workdir={workdir}', *arguments)
    assert stopped.value.args[0] != 0
    told = '\n'.join([str(stopped.value), *caplog.messages])
    for message in messages:
        assert message in told
    assert 'Traceback' not in told
    assert not workdir.exists()


def test_wrong_command_ends_its_process_without_a_stack(root, tmp_path):
    workdir, (arguments, messages) = tmp_path / 'run', WRONG[2]  # the one that gets furthest
    done = _main(root, DIGITS, f'--workdir={workdir}', *arguments)
    told = done.stdout + done.stderr
    assert done.returncode not in (0, -11)
    for message in messages:
        assert message in told
    assert 'Traceback' not in told
    assert not workdir.exists()


TYPING_ERRORS = [
    ('--help', 'one of cifar10, digits'),
    ('--confg=x', "Unknown command line flag 'confg'. Did you mean: config ?"),
    ('--config.serach.epochs=2', 'Did you mean "search"'),
    ('--config.seed=x', 'flag --config.seed=x'),
    ('--mode=serch', 'value should be one of'),
    ('--config=mnist', 'No such file, and no preset; there are cifar10, digits'),
    ('extra', "unexpected argument 'extra'"),
    ('--flagfile=nowhere', 'Unable to open flagfile: [Errno 2] No such file or directory'),
]


def test_typing_errors_are_told_before_anything_heavy_is_imported(root):
    """Each in a fork of one process, since the program can be started once in a process."""
    code = f"""
import contextlib, io, os, sys

def tell(argument, message):
    sys.argv, told = ['main.py', argument, '--workdir=nowhere'], io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            from asose_jax import cli
            cli.run()
        except SystemExit as end:
            print(end)
    assert message in " ".join(told.getvalue().split()), (argument, told.getvalue())
    heavy = {{'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets', 'sklearn', 'numpy'}}
    assert not heavy & sys.modules.keys(), (argument, heavy & sys.modules.keys())

for argument, message in {TYPING_ERRORS!r}:
    child = os.fork()
    if not child:
        tell(argument, message)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, argument
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CONFIG_FILES = [
    ('def get_config(:', r': line 1: SyntaxError: '),
    (
        'x = 1\ndef get_config(_=None):\n    raise RuntimeError("mine")',
        r': line 3: RuntimeError: mine',
    ),
    ('import nowhere_at_all', r": line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ('def get_config():\n    return {"seed": 1}', 'get_config returns dict, not a ConfigDict'),
    ('def get_config():\n    return None', 'get_config returns NoneType, not a ConfigDict'),
    ('x = 1', 'the file has no function get_config'),
    ('x = "\0"', r': (SyntaxError|ValueError): source code .* null bytes'),
    ('def get_config(): return 1 / 0', r': line 1: ZeroDivisionError: division by zero'),
]


@pytest.mark.parametrize(('text', 'message'), CONFIG_FILES)
@pytest.mark.filterwarnings('ignore:invalid escape')
def test_config_file_that_cannot_be_used_is_told_with_its_line(
    command, tmp_path, monkeypatch, text, message
):
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)  # of the file before
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(SystemExit, match=message) as told:
        command(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path / "run"}')
    assert told.value.args[0].startswith('--config')
    assert 'Traceback' not in told.value.args[0]


@pytest.mark.parametrize('mode', ['evaluate', 'export', 'report'])
@pytest.mark.parametrize('arguments', [['--config=darts'], ['--config', 'darts'], []])
def test_config_that_changes_nothing_is_told(command, caplog, monkeypatch, mode, arguments):
    for module, name in ((inference, 'evaluate'), (inference, 'export'), (page, 'rebuild')):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    told = command(f'--mode={mode}', '--workdir=run', *arguments)
    expected = f'--config changes nothing here: --mode={mode} takes the config of the run'
    assert told == (expected if arguments else '')


def test_flags_that_xla_refuses_are_told_before_it_ends_the_process(root):
    code = """
import os
from asose_jax import cli
for flags, known in (
    ('--bogus', 0), ('--xla_dump_to', 0), ('--xla_force_host_platform_device_count=abc', 0),
    ('/nowhere', 0), ('--xla_force_host_platform_device_count=2', 1), ('', 1)
):
    os.environ['XLA_FLAGS'] = flags
    try:
        cli._require_xla_flags()
        assert known, flags
    except SystemExit as told:
        assert not known and told.args[0].startswith(f'XLA_FLAGS={flags!r} cannot be used: '), told
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize('mode', ['search', 'retrain', 'predict', 'report'])
def test_place_of_the_data_is_refused_where_it_would_be_ignored(command, caplog, tmp_path, mode):
    needed = ['--images=a'] if mode == 'predict' else []
    with pytest.raises(SystemExit) as stopped:
        command(DIGITS, f'--mode={mode}', f'--workdir={tmp_path / "run"}', '--data_dir=x', *needed)
    assert stopped.value.args[0] == 2
    assert f'--mode={mode} would ignore --data_dir=' in caplog.messages[-1]
    assert 'for --mode=evaluate and --mode=export.' in caplog.messages[-1]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('mode', ['evaluate', 'export', 'report'])
def test_several_hosts_are_refused_where_they_would_be_ignored(command, caplog, tmp_path, mode):
    with pytest.raises(SystemExit) as stopped:
        command(f'--mode={mode}', f'--workdir={tmp_path}', '--multihost')
    assert stopped.value.args[0] == 2
    assert caplog.messages[-1].startswith(f'--multihost: --mode={mode} runs on one host')


def test_field_that_changes_nothing_is_told_and_stops_nothing(command, caplog, tmp_path):
    arguments = (DIGITS, f'--workdir={tmp_path / "run"}', '--config.retrain.lr=0.5')
    with pytest.raises(SystemExit):
        command(*arguments, '--config.batch_size=0')  # so that nothing is trained
    assert any('these fields change nothing here: retrain.lr=0.5' in m for m in caplog.messages)


def test_missing_workdir_is_asked_for(command):
    flags.mark_flag_as_required('workdir')  # as the program does when it is started
    with pytest.raises(SystemExit, match='--workdir'):
        command(DIGITS)


def test_page_of_a_run_is_drawn_again_by_one_command_without_a_config(command, tmp_path):
    recorded.write(tmp_path / 'run', **{'search.epochs': 2})
    told = command('--mode=report', f'--workdir={tmp_path / "run"}')
    assert str(tmp_path / 'run' / 'report.html') in told
    assert (tmp_path / 'run' / 'report.html').read_text().startswith('<!DOCTYPE html>')


def test_pictures_and_table_are_those_of_the_command(command, monkeypatch):

    asked = []
    monkeypatch.setattr(inference, 'predict', lambda *arguments: asked.append(arguments))
    command('--mode=predict', '--workdir=run', '--images=a,b')
    command('--mode=predict', '--workdir=run', '--images=a', '--out=c.csv')
    assert asked == [('run', 'a,b', None), ('run', 'a', 'c.csv')]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--mode=predict'], '--mode=predict needs --images: a folder'),
        (['--mode=evaluate', '--images=a'], "--mode=evaluate would ignore --images='a'"),
        (['--out=a'], "--mode=search would ignore --out='a', which is for --mode=predict. Leave"),
        (['--mode=evaluate', '--export=onnx'], "ignore --export=['onnx'], which is for --mode=ex"),
        (['--export=onnx'], "--mode=search would ignore --export=['onnx']"),
        (['--mode=latency', '--multihost'], '--multihost: --mode=latency runs on one host'),
    ],
)
def test_flag_that_is_missing_or_ignored_is_refused(command, caplog, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        command(DIGITS, f'--workdir={tmp_path / "run"}', *arguments)
    assert stopped.value.args[0] == 2
    assert message in caplog.messages[-1]
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('mode', ['evaluate', 'export', 'report'])
@pytest.mark.parametrize('field', ['seed=3', 'search.epochs=4', 'genotype=x'])
def test_field_that_would_be_ignored_is_refused(command, caplog, tmp_path, mode, field):
    recorded.write(tmp_path / 'run', **{'search.epochs': 2})
    with pytest.raises(SystemExit) as stopped:
        command(DIGITS, f'--mode={mode}', f'--workdir={tmp_path / "run"}', f'--config.{field}')
    assert stopped.value.args[0] == 2
    assert f'--mode={mode} takes the config of the run' in caplog.messages[-1]
    assert f'Leave out --config.{field.split("=")[0]}.' in caplog.messages[-1]


@pytest.mark.parametrize('mode', ['evaluate', 'export', 'report'])
def test_finished_run_is_used_from_any_directory(command, tmp_path, monkeypatch, mode):
    asked = []
    for module, name in ((inference, 'evaluate'), (inference, 'export'), (page, 'rebuild')):
        monkeypatch.setattr(module, name, lambda workdir, *_, **__: asked.append(workdir))
    monkeypatch.chdir(tmp_path)  # without configs/search.py
    command(f'--mode={mode}', '--workdir=run')
    assert asked == ['run']


def test_exports_are_named_with_commas_and_by_several_flags(command, monkeypatch):
    asked = []
    monkeypatch.setattr(
        inference, 'export', lambda *names, data_dir: asked.append((*names, data_dir))
    )
    command('--mode=export', '--workdir=run')
    several = ('--export=onnx,stablehlo', '--export=torch')
    command('--mode=export', '--workdir=run', *several, '--data_dir=x')
    assert asked == [('run', 'stablehlo', None), ('run', 'onnx', 'stablehlo', 'torch', 'x')]


def test_interrupted_use_of_a_run_cleans_up_and_ends_as_shells_expect(command, monkeypatch):
    def interrupted(*_):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, 'predict', interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `cli.run` sets it
    try:
        with pytest.raises(SystemExit) as stopped:
            command('--mode=predict', '--workdir=run', '--images=a')
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.args[0] == 130


@pytest.mark.parametrize('mode', ['search', 'retrain', 'evaluate', 'export', 'report'])
@pytest.mark.parametrize('workdir', ['', 'gs://bucket/run', 'configs/search.py/run'])
def test_unusable_workdir_is_one_line_in_every_mode(command, caplog, mode, workdir):
    with pytest.raises(SystemExit) as stopped:
        command(f'--mode={mode}', f'--workdir={workdir}')
    assert stopped.value.args[0] == 2
    (told,) = caplog.messages
    assert '\n' not in told


@pytest.mark.parametrize(
    'variables',
    [
        {'JAX_PROCESS_ID': 'x'},
        {'JAX_NUM_PROCESSES': '2.5'},
        {'JAX_PROCESS_ID': '0'},
        {'JAX_NUM_PROCESSES': ''},
    ],
)
def test_hosts_that_cannot_be_joined_are_told_with_the_variables(
    command, tmp_path, monkeypatch, variables
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=r'--multihost: .*\n.*JAX_COORDINATOR_ADDRESS'):
        command(DIGITS, f'--workdir={tmp_path / "run"}', '--multihost')


@pytest.mark.parametrize('fields', [(), ('--config.seeds=(0,)',)])
@pytest.mark.parametrize('error', [RuntimeError('Unable to initialize'), AssertionError()])
def test_platform_that_is_missing_is_one_line(
    command, caplog, tmp_path, monkeypatch, fields, error
):
    def missing():
        raise error

    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr(jax, 'devices', missing)
    with pytest.raises(SystemExit) as stopped:
        command(DIGITS, f'--workdir={tmp_path / "run"}', *fields)
    assert stopped.value.args[0] == 2
    assert "JAX_PLATFORMS='cuda': JAX cannot use this platform here" in caplog.messages[-1]
    assert not (tmp_path / 'run').exists()


@pytest.mark.soak
def test_digits_are_searched_to_95_percent_by_the_command_of_the_readme(root, tmp_path):
    done = _main(root, '--config=configs/search.py:digits', f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['test_accuracy'] >= 0.95
    assert [block[0] for block in summary['genotype']] != ['skip_connect'] * 4
    assert {event['kind'] for event in summary['growth']} == {'depth', 'width'}
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    searched = [line for line in lines if line['phase'] == 'search']
    assert searched[-1]['arch/entropy'] < searched[0]['arch/entropy'] - 0.1
    assert searched[-1]['arch/draw_entropy'] < searched[0]['arch/draw_entropy'] - 0.3
    for part in ('compiled search', 'warmup 1/5', 'growth: ', 'a new block', 'optimize 20/20'):
        assert part in done.stderr


def _code(root, part):
    """The Python on the page of the search spaces that has `part` in it."""
    text = (root / 'docs' / 'spaces.md').read_text(encoding='utf-8')
    return next(c for c in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if part in c)


def test_docs_show_a_primitive_that_works(root, monkeypatch):
    """The code in docs/spaces.md, as it stands there, gives an operation to search."""
    import jax.numpy as jnp

    from asose_jax.nn.forward import Mode

    code = _code(root, 'class Pointwise')
    monkeypatch.setattr(operations, 'PRIMITIVES', dict(operations.PRIMITIVES))
    exec(code, vars(operations) | {'PRIMITIVES': operations.PRIMITIVES})
    names = ('skip_connect', 'conv_1x1')
    spec = chain.build(
        (4, 4, 1), 2, channels=4, depth=1, reductions=(), max_channels=4, primitives=names
    )
    keys = {'params': jax.random.key(0), 'arch': jax.random.key(1)}
    net = networks.supernet(spec)
    made = jax.jit(lambda: net.init(keys, jnp.ones((1, 4, 4, 1)), mode=Mode.SKIP, train=False))
    variables = made()
    assert 'conv_1x1' in variables['params']['block_0']['branch_0']
    halves = operations.make('conv_1x1', 4, batch_norm.Norm('float32', None), 2)
    y, _ = halves.init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 4)), False)
    assert y.shape == (1, 2, 2, 4)


@pytest.mark.slow
def test_docs_show_a_space_that_works(root, monkeypatch, tmp_path):
    """The code in docs/spaces.md, as it stands there, is searched and derived."""
    code = _code(root, 'class LadderSpec')
    monkeypatch.setattr(registry, 'SPACES', dict(registry.SPACES))
    exec(code, {'__name__': 'ladder'})
    config = get_config('digits')
    config.update_from_flattened_dict(
        {
            'model.space': 'ladder',
            'model.channels': 4,
            'model.primitives': ('skip_connect', 'sep_conv_3x3'),
            'batch_size': 64,
            'data.valid_fraction': 0.8,
            'warmup.epochs': 1,
            'search.epochs': 1,
            'growth.epochs': 0,
            'optimize.epochs': 1,
        }
    )
    summary = single_run.run(config, tmp_path)
    assert summary['genotype'] in ([['skip_connect']], [['sep_conv_3x3']])
    assert json.loads((tmp_path / 'genotype.json').read_text())['network']['rungs'] == 3
    assert 'choice 0.0' in (tmp_path / 'report.html').read_text()  # it is drawn as a list


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config=digits', '--workdir=a'], ['--config=FILE:digits', '--workdir=a']),
        (['--config', 'darts', '--mode', 'search'], ['--config=FILE:darts', '--mode', 'search']),
        (['--config', 'mine.py'], ['--config=mine.py']),
        (
            ['--config=mine.py:digits', '--config.seed=1'],
            ['--config=mine.py:digits', '--config.seed=1'],
        ),
    ],
)
def test_presets_are_known_by_name(arguments, expected):
    from asose_jax import cli
    from asose_jax.config import presets

    found = cli._with_preset_files(arguments)
    assert found == [word.replace('FILE', presets.__file__) for word in expected]
