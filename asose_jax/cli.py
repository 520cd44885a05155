"""The command line: python main.py --config=configs/search.py[:PRESET] --workdir=DIR.

Where the package is installed: asose --config=PRESET --workdir=DIR, from any folder.

--mode=retrain --config.genotype=FILE trains a chosen network from scratch, with
--config.init_from=RUN it fine-tunes a trained one; --config.seeds="(0, 1)" runs several searches,
--config.cost.targets="(1e5, 2e5)" one for each cost.
--mode=evaluate, predict, export and report, with --workdir=DIR, need a finished run.
--mode=latency writes the operations of a search, to be timed on another machine.

The same command resumes a run that was stopped.

What needs JAX is imported once the flags are read, so that a typing error is answered at once.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import ml_collections
import rich.console
from absl import app, flags
from ml_collections import config_flags

from asose_jax.config import presets
from asose_jax.runtime import log, paths
from asose_jax.runtime.errors import Stopped, UserError, os_errors

# `_parse` adds the default: one that is given here is read at once, with mistakes of its fields.
try:
    _CONFIG = config_flags.DEFINE_config_file(
        'config',
        None,
        'Config file, with an optional preset: FILE[:PRESET]; or one of '
        f'{", ".join(presets.PRESETS)}. Without it: cifar10.',
    )
except flags.Error as error:  # it reads `sys.argv`, and the file that --flagfile names
    sys.exit(str(error).removeprefix('ERROR:: '))
_MODE = flags.DEFINE_enum(
    'mode',
    'search',
    ['search', 'retrain', 'latency', 'evaluate', 'predict', 'export', 'report'],
    'search: runs all phases. retrain: trains the network of --config.genotype from scratch, or '
    'fine-tunes that of --config.init_from, with the settings of config.retrain. latency: writes '
    'the operations of the search as ONNX files, with a script that times them on any machine '
    'with onnxruntime, for --config.cost.table. For a finished run, which --workdir alone names: '
    'evaluate: reports accuracy, and recall, precision and F1 by class, and writes '
    'evaluation.json and confusion.png. predict: writes the classes of the pictures in --images '
    'to predictions.csv. export: writes a file that runs without this package, see --export. '
    'report: writes report.html again.',
)
_EXPORT = flags.DEFINE_multi_string(
    'export',
    ['stablehlo'],
    'What --mode=export writes, separated by commas, or given several times. stablehlo: a file '
    'that needs jax and flatbuffers. onnx: model.onnx. int8: that, and model_int8.onnx, quantised '
    'to 8-bit integers. torch: model_torch.py, a PyTorch module, and its weights.',
)
_MULTIHOST = flags.DEFINE_bool(
    'multihost',
    None,
    'Run on all hosts of a cluster together; TPU pods do so by default. Without SLURM or Open MPI, '
    'set JAX_COORDINATOR_ADDRESS (HOST:PORT), JAX_NUM_PROCESSES and JAX_PROCESS_ID on each host.',
)
# A string, never `None`: the flag is required.
_WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string(
    'workdir', None, 'Directory of checkpoints and results.'
)
_IMAGES: flags.FlagHolder[Any] = flags.DEFINE_string(
    'images',
    None,
    'For --mode=predict: a folder, of which the .png, .jpg and .jpeg files at any depth are taken; '
    'a picture; a glob; or several of these, with commas between them.',
)
_OUT = flags.DEFINE_string(
    'out', None, 'For --mode=predict: the table to write, in the place of WORKDIR/predictions.csv.'
)
_DATA_DIR = flags.DEFINE_string(
    'data_dir',
    None,
    'For --mode=evaluate and --mode=export: where the data of the run are now, if they have moved '
    'since.',
)
# Modes for the workdir of a finished run, without a config.
_FINISHED = ('evaluate', 'predict', 'export', 'report')
_CONFIG_FLAGS = ('-config', '--config')
_HEARTBEAT_SECONDS = 30  # a host that is silent for longer counts as lost


def main(argv: list[str]) -> None:
    """Runs the command; errors of the user end the process with one message and no traceback."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}; options begin with --')
    _require_xla_flags()
    try:
        import jax
    except ValueError as error:  # of a variable such as JAX_NUM_CPU_DEVICES
        sys.exit(f'JAX cannot be imported: {error}. Correct or unset this environment variable.')

    from asose_jax.runtime import process

    if _MODE.value not in (*_FINISHED, 'latency'):
        _join_hosts()
    console = rich.console.Console(stderr=True)
    logger = process.set_up(log.handler_for(console))
    try:
        # The public functions translate errors of the system; this is for what is around them.
        with os_errors(f'--mode={_MODE.value}'):
            paths.expand_workdir(_WORKDIR.value)
            _require_flags_of(_MODE.value)
            if _MODE.value in _FINISHED:
                _run_on_finished(_MODE.value, _WORKDIR.value)
            elif _MODE.value == 'latency':
                _write_operations()
            else:
                _train(logger, console)
    except Stopped as stopped:
        logger.info('%s; to resume: %s', stopped, process.command())
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
        process.exit_now(0)
    except UserError as error:
        logger.error('%s', error)
        process.exit_now(2)
    except KeyboardInterrupt:
        process.exit_now(128 + signal.SIGINT)


def _require_xla_flags() -> None:
    """Exits with a message if XLA would abort the process because of the variable XLA_FLAGS."""
    chosen = os.environ.get('XLA_FLAGS')
    if not chosen or 'jax' in sys.modules:  # a process with threads should not fork
        return
    from jaxlib import xla_client

    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        xla_client.CompileOptions()  # reads the variable
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(
            f'XLA_FLAGS={chosen!r} cannot be used: XLA does not know a flag, a value or a file in '
            'it. Correct or unset this environment variable.'
        )


def _run_on_finished(mode: str, workdir: str) -> None:
    """Uses the finished run in a workdir, whose config is that of the run."""
    if overrides := config_flags.get_override_values(flags.FLAGS['config']):
        name = next(iter(overrides))
        raise UserError(
            f'--mode={mode} takes the config of the run in --workdir and would ignore '
            f'--config.{name}={overrides[name]!r}. Leave out --config.{name}.'
        )
    if any(argument.split('=')[0] in _CONFIG_FLAGS for argument in sys.argv):
        logging.getLogger('asose_jax').warning(
            '--config changes nothing here: --mode=%s takes the config of the run', mode
        )
    from asose_jax import inference
    from asose_jax.report import page

    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by `run`
        # Files that are half written are removed while the exception passes.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    match mode:
        case 'predict':
            inference.predict(workdir, _IMAGES.value, _OUT.value)
        case 'evaluate':
            inference.evaluate(workdir, _DATA_DIR.value)
        case 'export':
            formats = ','.join(_EXPORT.value).split(',')
            inference.export(workdir, *formats, data_dir=_DATA_DIR.value)
        case 'report':
            page.rebuild(workdir)


def _write_operations() -> None:
    from asose_jax.exports import latency_pieces

    latency_pieces.write(_CONFIG.value, _WORKDIR.value)


def _require_flags_of(mode: str) -> None:
    """Fails unless the flags that only some modes have are there in these, and in no other."""
    if mode == 'predict' and _IMAGES.value is None:
        raise UserError(
            '--mode=predict needs --images: a folder, a picture, a glob, or several of these with '
            'commas between them.'
        )
    modes_of: tuple[tuple[flags.FlagHolder[Any], tuple[str, ...]], ...] = (
        (_IMAGES, ('predict',)),
        (_OUT, ('predict',)),
        (_DATA_DIR, ('evaluate', 'export')),
        (_EXPORT, ('export',)),
    )
    for flag, modes in modes_of:
        if flag.present and mode not in modes:
            its_modes = ' and '.join(f'--mode={name}' for name in modes)
            raise UserError(
                f'--mode={mode} would ignore --{flag.name}={flag.value!r}, which is for '
                f'{its_modes}. Leave out --{flag.name}.'
            )
    if _MULTIHOST.value and mode in (*_FINISHED, 'latency'):
        raise UserError(f'--multihost: --mode={mode} runs on one host and would ignore it')


def _train(logger: logging.Logger, console: rich.console.Console) -> None:
    """Runs the search, the searches or the training that the config describes."""
    from asose_jax.config import retrain
    from asose_jax.config.consistency import flatten, has_several_runs, ignored_fields
    from asose_jax.sweep import runner

    config, retrains = _CONFIG.value, _MODE.value == 'retrain'
    paths.require_local_fields(flatten(config))
    if retrains:
        config = retrain.retrain_config(config)
    chosen = config_flags.get_override_values(flags.FLAGS['config'])
    if ignored := ignored_fields(chosen, config, retrains):
        logger.warning('these fields change nothing here: %s', '; '.join(ignored))
    # Several searches leave the devices to processes of their own.
    if not has_several_runs(config):
        _log_devices(logger)
    runner.search(config, _WORKDIR.value, console)


def _log_devices(logger: logging.Logger) -> None:
    import jax

    from asose_jax.runtime import process

    process.require_platform()
    if jax.process_index():
        logger.setLevel(logging.WARNING)  # only the first host logs the progress of the run
    logger.info(
        'jax %s on %d x %s', jax.__version__, jax.device_count(), jax.devices()[0].device_kind
    )


def _join_hosts() -> None:
    """Joins the hosts of a cluster, if there are several; must precede any use of a device."""
    import jax

    pod = len(os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')) > 1
    if not (pod if _MULTIHOST.value is None else _MULTIHOST.value):
        return
    variables = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
    try:
        options: dict[str, Any] = {
            key: int(os.environ[name]) for key, name in variables.items() if name in os.environ
        }
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (ValueError, TypeError, RuntimeError) as error:
        sys.exit(
            f'--multihost: {error}\nOn TPU pods and under SLURM or Open MPI the hosts find each '
            'other. Elsewhere, set on every host JAX_COORDINATOR_ADDRESS (HOST:PORT of the first '
            'host), JAX_NUM_PROCESSES, and JAX_PROCESS_ID (counted from 0).'
        )


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags, and returns the rest; exits with a short message if they are wrong."""
    files = [argument for argument in argv if argument.split('=')[0] in _CONFIG_FLAGS]
    if not files:
        argv = [argv[0], f'--config={presets.__file__}', *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
        if _MODE.value not in _FINISHED:  # in these modes no config is used
            _require_config()
        return rest
    except Exception as error:  # a config file is a program, which may raise anything
        _require_config_files(files)
        if place := _line_of_config(error, files):
            sys.exit(f'{place}: {type(error).__name__}: {error}')
        if "no attribute 'get_config'" in str(error):
            sys.exit(
                f'{" ".join(files)}: the file has no function get_config, see configs/search.py'
            )
        lines = str(error.args[0]).strip().splitlines()
        message = lines[-1] if any('Traceback' in line for line in lines) else ' '.join(lines)
        if 'Non-boolean argument' in message:  # absl shows a tuple here
            message = f'{message.partition(": ")[0]}: must be true or false'
        sys.exit(f'{message}\ndocs/config.md lists all fields.')


def _require_config() -> None:
    """Exits with a message unless the config is one; raises if its file could not be loaded."""
    config = _CONFIG.value
    if config is not None:
        config.keys()  # raises for a file that could not be loaded
    if not isinstance(config, ml_collections.ConfigDict):
        sys.exit(
            f'--config: get_config returns {type(config).__name__}, not a ConfigDict. Begin it '
            'with config = asose_jax.config.presets.get_config(), and return that.'
        )


def _line_of_config(error: Exception, arguments: Sequence[str]) -> str | None:
    """Returns the argument `--config`, and the line of its file that raised an error if known.

    Args:
      error: while the flags were read.
      arguments: those that name config files.
    """
    frames = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or '', error.lineno))
        if error.filename is None and arguments:  # of a file that is no text
            return arguments[-1]
    for argument in arguments:
        file = argument.partition('=')[2].partition(':')[0]
        lines = [line for name, line in frames if name == file]
        if lines:
            return f'{argument}: line {lines[-1]}'
    return None


def _require_config_files(arguments: Sequence[str]) -> None:
    """Exits with a message if `--config=FILE[:PRESET]` names no file."""
    for argument in arguments:
        value = argument.partition('=')[2]
        if value and not os.path.exists(value.partition(':')[0]):
            sys.exit(
                f'{argument}: No such file, and no preset; there are {", ".join(presets.PRESETS)}.'
            )


def _with_preset_files(arguments: list[str]) -> list[str]:
    """Returns `--config=PRESET` and `--config PRESET` with the file of the presets before it."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _CONFIG_FLAGS:
            joined[-1] += f'={argument}'
        else:
            joined.append(argument)
    names = {
        f'{flag}={name}': f'{flag}={presets.__file__}:{name}'
        for flag in _CONFIG_FLAGS
        for name in presets.PRESETS
    }
    return [names.get(argument, argument) for argument in joined]


def run() -> None:
    """Runs the command that `sys.argv` holds, and ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a run holds something to save, Ctrl-C ends the process, and shows no stack.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    flags.mark_flag_as_required('workdir')
    shown = (_CONFIG, _MODE, _MULTIHOST, _WORKDIR, _IMAGES, _OUT, _DATA_DIR, _EXPORT)
    for flag in shown:  # by --help
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    app.run(main, argv=[sys.argv[0], *_with_preset_files(sys.argv[1:])], flags_parser=_parse)
