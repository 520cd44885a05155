"""Runs a search: python main.py --config=configs/search.py[:digits] --workdir=DIR.

--mode=retrain --config.genotype=FILE trains from scratch what was found; --config.seeds="(0, 1)"
runs several searches. --mode=evaluate, export or report, with --workdir=DIR, is for finished runs.

The same command again goes on where a stopped run was.
"""

import logging
import os
import shlex
import sys

import jax
import rich.console
import rich.logging
from absl import app, flags
from ml_collections import config_flags

from asose_jax import inference
from asose_jax.config import retrain
from asose_jax.report import page
from asose_jax.runtime import process
from asose_jax.runtime.errors import Stopped, UserError
from asose_jax.sweep import runner

_CONFIG = config_flags.DEFINE_config_file(
    'config', 'configs/search.py', 'Config file, with an optional preset: FILE[:PRESET].'
)
_MODE = flags.DEFINE_enum(
    'mode',
    'search',
    ['search', 'retrain', 'evaluate', 'export', 'report'],
    'search: all phases. retrain: the network of --config.genotype from scratch, by the recipe in '
    'config.retrain. Of a finished run, by its --workdir alone: evaluate: test accuracy, by class, '
    'and confusion.png. export: a StableHLO file that needs jax and flatbuffers only. report: '
    'report.html again.',
)
_MULTIHOST = flags.DEFINE_bool(
    'multihost',
    None,
    'Run on all hosts of a cluster together; TPU pods need not say so. Without SLURM or Open MPI, '
    'set JAX_COORDINATOR_ADDRESS (HOST:PORT), JAX_NUM_PROCESSES and JAX_PROCESS_ID.',
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of checkpoints and results.')
_SILENT_SECONDS = 30  # after which a host counts as lost


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected argument {argv[1]!r}; options begin with --')
    finished = {'report': page.rebuild, 'evaluate': inference.evaluate, 'export': inference.export}
    if _MODE.value not in finished:
        _join_hosts()
    console = rich.console.Console(stderr=True)
    logger = process.prepare(_handler(console))
    try:
        if _MODE.value in finished:
            finished[_MODE.value](_WORKDIR.value)
            return
        config = _CONFIG.value
        if _MODE.value == 'retrain':
            config = retrain.config_of(config)
        if not config.seeds:  # many searches leave the devices to their own processes
            _tell_devices(logger)
        runner.search(config, _WORKDIR.value, console)
    except Stopped as stopped:
        logger.info('%s; to go on: %s', stopped, shlex.join(['python', *sys.argv]))
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()
        process.leave(0)
    except UserError as error:
        logger.error('%s', error)
        process.leave(2)


def _tell_devices(logger: logging.Logger) -> None:
    if jax.process_index():
        logger.setLevel(logging.WARNING)  # the first host speaks for all
    logger.info(
        'jax %s on %d x %s', jax.__version__, jax.device_count(), jax.devices()[0].device_kind
    )


def _join_hosts() -> None:
    """Before anything asks for a device."""
    pod = len(os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')) > 1
    if not (pod if _MULTIHOST.value is None else _MULTIHOST.value):
        return
    given = {'num_processes': 'JAX_NUM_PROCESSES', 'process_id': 'JAX_PROCESS_ID'}
    given = {key: int(os.environ[name]) for key, name in given.items() if name in os.environ}
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=_SILENT_SECONDS)
    except (ValueError, TypeError, RuntimeError) as error:
        sys.exit(
            f'--multihost: {error}\nOn TPU pods, SLURM and Open MPI the hosts find each other; '
            'elsewhere set, on every host, JAX_COORDINATOR_ADDRESS=HOST:PORT of the first one, '
            'JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0.'
        )


def _handler(console: rich.console.Console) -> logging.Handler:
    """Lines through the console in a terminal, lest they tear the bar; plain lines elsewhere."""
    if console.is_terminal:
        return rich.logging.RichHandler(
            console=console, show_path=False, show_level=False, log_time_format='%H:%M:%S'
        )
    return process.plain_handler()


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; what is wrong with them becomes one line instead of a stack."""
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.keys()  # a file that could not be loaded raises here
        return rest
    except (flags.Error, KeyError, AttributeError, OSError) as error:
        lines = str(error.args[0]).strip().splitlines()
        told = lines[-1] if any('Traceback' in line for line in lines) else ' '.join(lines)
        sys.exit(f'{told}\nAll fields, with their meaning: configs/search.py')


if __name__ == '__main__':
    flags.mark_flag_as_required('workdir')
    app.run(main, flags_parser=_parse)
