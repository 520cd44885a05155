"""Measures a GPU or TPU in one command: python -m benchmarks.accelerator --data-dir DIR

It says what it will do, does what says most first, and writes OUT/accelerator.json after each part:
the file to send back. It never takes longer than its minutes: each part gets its share of what is
left, and is ended where it needs more; what it had measured by then is kept. Parts and rows that do
not fit are listed as left out.

Each part is a process of its own, so that one that fails takes no other with it, and none holds the
device while another needs it. All share one new compilation cache, so seconds of compilation are
those of the first program of its kind.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import measure

ROOT = pathlib.Path(__file__).parent.parent
LEAST = 5.0  # seconds; with less, a part does not begin
_LAST = 3.0  # seconds at the end for what is written and printed
_TIMES = ('images_per_second', 'seconds', 'compile_seconds', 'stall_seconds')  # of a line of a log


@dataclasses.dataclass(frozen=True)
class Part:
    """Describes a part and its share of the time."""

    what: str
    share: float


PARTS = {
    'numbers': Part(
        'every primitive against float64, in each precision; twenty steps against the CPU', 0.16
    ),
    'digits': Part('the search on the digits, as a user runs it', 0.27),
    'steps': Part('milliseconds of each step, beside the limit by memory; compilation', 0.27),
    'torch': Part('the same steps in PyTorch, in turn with ours', 0.1),
    'presets': Part('cifar10 and nasbench201 at full size, for a few epochs', 0.13),
    'resume': Part('a run that is stopped and resumed, against one that is not', 0.07),
}


class Report:
    """The rows of one part, in a file that is whole after every row.

    Args:
      path: of the file.
      seconds: that the part has.
    """

    def __init__(self, path: pathlib.Path, seconds: float):
        self.path, self._end = path, time.monotonic() + seconds
        self._content = {'rows': {}, 'left_out': {}}
        self._write()

    def left(self) -> float:
        """Seconds that are left to the part."""
        return self._end - time.monotonic()

    def add(self, name: str, **values: Any) -> None:
        """Keeps and prints a row."""
        self._content['rows'][name] = values
        self._write()
        shown = {key: value for key, value in values.items() if key not in ('samples_ms', 'errors')}
        print(f'  {name}: {_brief(shown)}', flush=True)

    def leave_out(self, name: str, why: str) -> None:
        """Keeps and prints that something is missing, and why."""
        self._content['left_out'][name] = why
        self._write()
        print(f'  left out: {name}: {why}', flush=True)

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether as many seconds are left; leaves `name` out otherwise."""
        if self.left() >= max(seconds, 1.0):
            return True
        left = max(0.0, self.left())
        self.leave_out(name, f'no time: it takes about {seconds:.0f} s, and {left:.0f} s are left')
        return False

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Leaves out what fails on the device, such as what its memory cannot hold."""
        try:
            yield
        except RuntimeError as error:  # those of jax and of PyTorch
            self.leave_out(name, f'{type(error).__name__}: {str(error)[:300]}')

    def device(self) -> None:
        """Keeps what the device is; jax claims it."""
        import jax

        found = jax.devices()
        self._content['device'] = {'kind': found[0].device_kind, 'count': len(found)}
        self._content['device'] |= {'platform': found[0].platform, 'jax': jax.__version__}
        self._write()

    def _write(self) -> None:
        text = json.dumps(self._content, default=_plain)
        beside = self.path.with_suffix('.new')
        beside.write_text(text)
        beside.replace(self.path)


def _plain(value):
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value.item()


def _brief(value):
    if isinstance(value, dict):
        return ', '.join(f'{key} {_brief(each)}' for key, each in value.items())
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=8.0, help='that it may take, at most')
    parser.add_argument('--data-dir', help="TFDS's directory with cifar10; without, no presets")
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument('--seconds', type=float, help=argparse.SUPPRESS)
    parser.set_defaults(out=pathlib.Path('accelerator'))
    options = measure.parse(parser)
    if options.part:
        _run_part(options)
    else:
        _run_all(options)


def _run_all(options):
    end = time.monotonic() + 60 * options.minutes - _LAST
    print(f'at most {options.minutes:g} minutes; {options.out / "accelerator.json"} is written')
    for name, part in PARTS.items():
        print(f'{name:8} about {60 * part.share * options.minutes:4.0f} s  {part.what}')
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': f'{folder}/programs'}
        # PyTorch needs memory beside jax, and what is compared with is computed on the CPU.
        environment['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
        platforms = environment.get('JAX_PLATFORMS', 'cpu')
        if 'cpu' not in platforms:
            environment['JAX_PLATFORMS'] = f'{platforms},cpu'
        names = [*PARTS]
        for number, name in enumerate(names):
            left = end - time.monotonic()
            share = PARTS[name].share / sum(PARTS[other].share for other in names[number:])
            parts[name] = one_part(options, name, left, left * share, folder, environment)
            measure.write(options, 'accelerator', {'parts': parts})
    for name, part in parts.items():
        print(f'{name}: {part["ended"]}; {len(part["rows"])} rows in {part["seconds"]:.0f} s')
        for what, why in part['left_out'].items():
            print(f'  left out: {what}: {why}')


def one_part(
    options: argparse.Namespace,
    name: str,
    left: float,
    seconds: float,
    folder: str | pathlib.Path,
    environment: dict[str, str],
) -> dict[str, Any]:
    """Runs a part in a process; its rows, and how it ended.

    Args:
      options: of the whole.
      name: of the part.
      left: seconds that are left to all parts.
      seconds: that this one should take; a quarter more, and it is ended.
      folder: for its files.
      environment: of its process.
    """
    if seconds < LEAST:
        why = {name: f'no time: {max(0, left):.0f} s left'}
        return {'ended': 'left out', 'seconds': 0.0, 'rows': {}, 'left_out': why}
    print(f'\n{name}, {seconds:.0f} s: {PARTS[name].what}', flush=True)
    path = pathlib.Path(folder) / f'{name}.json'
    command = [sys.executable, '-m', 'benchmarks.accelerator', '--part', name, '--json', str(path)]
    command += ['--seconds', str(seconds)] + ['--quick'] * options.quick
    command += ['--data-dir', options.data_dir] if options.data_dir else []
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        status = process.wait(min(1.25 * seconds, left))
        ended = 'done' if status == 0 else f'failed with status {status}'
    except subprocess.TimeoutExpired:
        ended = 'ended, since it took too long'
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it has started, if any is left
        process.wait()
    content = json.loads(path.read_text()) if path.exists() else {'rows': {}, 'left_out': {}}
    return {'ended': ended, 'seconds': time.monotonic() - start, **content}


def _run_part(options):
    report = Report(options.json, options.seconds)
    alone: dict[str, Callable[[Report, argparse.Namespace], None]] = {
        'digits': _digits,
        'presets': _presets,
        'resume': _resume,
    }
    if options.part in alone:  # these start the program, which then claims the device
        alone[options.part](report, options)
        return
    from asose_jax.runtime import compilation_cache

    compilation_cache.install(pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR']))
    report.device()
    from benchmarks import device_numbers, device_steps

    run = {
        'numbers': device_numbers.run,
        'steps': device_steps.run,
        'torch': device_steps.against_torch,
    }[options.part]
    run(report, options.quick)


class _Program:
    """`main.py` in a process; its log goes to a file.

    Args:
      preset: of `configs/search.py`.
      fields: of the config, on top.
      workdir: of the run.
    """

    def __init__(self, preset: str, fields: dict[str, Any], workdir: pathlib.Path):
        flags = [f'--config.{name}={value}' for name, value in fields.items()]
        command = [sys.executable, 'main.py', f'--config=configs/search.py:{preset}']
        self._log = workdir.with_suffix('.log')
        with self._log.open('a') as log:
            self._process = subprocess.Popen(
                [*command, f'--workdir={workdir}', *flags], cwd=ROOT, stdout=log, stderr=log
            )
        self._lines = workdir / 'metrics.jsonl'

    def lines(self) -> list[dict[str, Any]]:
        """Evaluations so far."""
        text = self._lines.read_text() if self._lines.exists() else ''
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]

    def wait(self, seconds: float, evaluations: int | None = None) -> bool:
        """Waits for the end or for a number of evaluations; whether the run came to its end."""
        end = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < end:
            if evaluations is not None and len(self.lines()) >= evaluations:
                break
            time.sleep(0.05)
        return self._process.poll() == 0

    def stop(self) -> None:
        """Asks the run to stop, which saves it, and ends it where it does not."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def failure(self) -> str | None:
        """The end of the log, if the run failed."""
        if self._process.poll() in (0, None, -signal.SIGKILL):
            return None
        return self._log.read_text(errors='replace')[-2000:]


def _small(**changes):
    """A run of seconds on a CPU."""
    small = {'model.channels': 4, 'model.depth': 2, 'model.reductions': '(1,)'}
    small |= {'model.primitives': "('none','skip_connect','max_pool_3x3')", 'growth.epochs': 0}
    return {**small, 'warmup.epochs': 1, 'search.epochs': 2, 'optimize.epochs': 1, **changes}


def _digits(report, options):
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / 'run'
        start = time.monotonic()
        run = _Program('digits', _small() if options.quick else {}, workdir)
        finished = run.wait(report.left())
        run.stop()
        row = {'finished': finished, 'wall_seconds': time.monotonic() - start}
        if failure := run.failure():
            row['log'] = failure
        if finished:
            summary = json.loads((workdir / 'summary.json').read_text())
            row |= {key: summary[key] for key in ('test_accuracy', 'valid_accuracy', 'devices')}
            keys = ('name', 'epochs', 'seconds', 'compile_seconds')
            row['phases'] = [{key: each[key] for key in keys} for each in summary['phases']]
        else:
            row['phases'] = _rates(run.lines())
        report.add('digits', **row)


def _rates(lines):
    """By phase, of the last evaluation: images a second, accuracy, seconds of compilation."""
    keys = {'images_per_second', 'valid/accuracy', 'epoch', 'compile_seconds'}
    return {line['phase']: {k: line[k] for k in keys} for line in lines}


def _presets(report, options):
    """A few epochs of each phase, and what the whole run would take at that speed."""
    from asose_jax.config import presets
    from asose_jax.pipeline import builders
    from asose_jax.train.phases import Phase

    if not options.data_dir and not options.quick:
        report.leave_out('all of it', 'needs CIFAR-10, prepared by TFDS: --data-dir DIR')
        return
    names = ('cifar10', 'nasbench201')
    for number, name in enumerate(names):
        fields = {'warmup.epochs': 1, 'search.epochs': 2, 'growth.epochs': 0, 'optimize.epochs': 1}
        fields |= {'model.dtype': 'bfloat16', 'data.dir': options.data_dir}
        if options.quick:  # the digits in the place of CIFAR-10
            reductions = {'model.reductions': '()', 'model.depth': 1}
            primitives = "('skip_connect','nor_conv_1x1')"
            fields = _small(**{'data.name': 'digits', 'model.primitives': primitives, **reductions})
        with tempfile.TemporaryDirectory() as folder:
            run = _Program(name, fields, pathlib.Path(folder) / 'run')
            finished = run.wait(report.left() / (len(names) - number))
            run.stop()
            rates, row = _rates(run.lines()), {'finished': finished}
            if failure := run.failure():
                row['log'] = failure
            file = pathlib.Path(folder) / 'run' / 'run.json'
            images = json.loads(file.read_text())['images'] if file.exists() else None
        config = presets.get_config(name)
        for rate in rates.values():
            rate['steps_per_second'] = rate['images_per_second'] / config.batch_size
        row['phases'] = rates
        missing = {Phase.WARMUP, Phase.SEARCH, Phase.OPTIMIZE} - rates.keys()
        if images is None or missing:
            row['left_out'] = f'hours of the whole run: no epoch of {", ".join(sorted(missing))}'
        else:
            spans = builders.make_schedule(config, images['train']).spans
            # Growth is counted at the speed of search, though its networks are larger.
            speed = {phase: rates[phase]['steps_per_second'] for phase in rates}
            speed[Phase.GROWTH] = speed[Phase.SEARCH]
            seconds = sum((span.stop - span.start) / speed[span.phase] for span in spans)
            row['hours_extrapolated'] = seconds / 3600
        report.add(name, **row)


def _resume(report, options):
    """Two runs from end to end, and one that is stopped and resumed."""
    fields = _small(**{'search.epochs': 40})
    if not options.quick:
        fields['model.primitives'] = "('none','skip_connect','max_pool_3x3','sep_conv_3x3')"
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        whole, again, stopped = (place / name for name in ('whole', 'again', 'stopped'))
        first = _Program('digits', fields, whole)
        if not first.wait(report.left()):
            first.stop()
            report.add('a run from end to end', finished=False, log=first.failure())
            return
        _Program('digits', fields, again).wait(report.left())
        broken = _Program('digits', fields, stopped)
        broken.wait(report.left(), evaluations=3)
        broken.stop()
        at = {'stopped_after_step': broken.lines()[-1]['step']} if broken.lines() else {}
        at['was_at_its_end'] = (stopped / 'summary.json').exists()
        _Program('digits', fields, stopped).wait(report.left())
        os.environ['JAX_PLATFORMS'] = 'cpu'  # for what is compared
        report.add('two runs', **_difference(whole, again))
        report.add('stopped and resumed', **at, **_difference(whole, stopped))


def _difference(one, other):
    """Whether two runs logged the same and ended with the same weights, to the bit."""
    import jax
    import numpy as np

    import asose_jax

    if not (other / 'summary.json').exists():
        return {'finished': False}
    lines, weights = [], []
    for workdir in (one, other):
        each = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
        lines.append([{k: v for k, v in line.items() if k not in _TIMES} for line in each])
        weights.append(jax.tree.leaves(asose_jax.load(workdir).variables))
    if [a.shape for a in weights[0]] != [a.shape for a in weights[1]]:
        return {'finished': True, 'same_bits': False, 'same_network': False}
    most = max(float(np.abs(a - b).max()) for a, b in zip(*weights, strict=True))
    same = lines[0] == lines[1] and most == 0
    return {'finished': True, 'same_bits': same, 'same_log': lines[0] == lines[1], 'largest': most}


if __name__ == '__main__':
    main()
