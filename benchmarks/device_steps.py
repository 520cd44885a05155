"""Times steps and their compilation on the device; parts of `benchmarks.accelerator`.

The limit of a step is the time in which the device could move the bytes that XLA counts in the
compiled program. Of a conditional XLA counts the branch with most, so there is none for a step of
the weights, which computes only what was drawn, and that of an alpha step is one for its forward
pass of all candidates.
"""

import concurrent.futures
import functools
import importlib.util
import pathlib
import statistics
import tempfile
import time

import jax

from asose_jax.train.phases import Phase
from benchmarks import measure, ops, ours
from benchmarks.step import DERIVED

WARMUP, WEIGHTS, ALPHA, OPTIMIZE = 'warmup', 'search, weights', 'search, alpha', 'optimize'
_CYCLE = 'cycle, each step'
# Channels, batch, precision: first what says most.
CELLS = [
    (16, 128, 'bfloat16'),
    (16, 128, 'float32'),
    (64, 1024, 'bfloat16'),
    (64, 128, 'bfloat16'),
    (64, 128, 'float32'),
    (16, 1024, 'bfloat16'),
    (64, 1024, 'tf32'),
    (16, 1024, 'float32'),
    (64, 128, 'tf32'),
    (16, 128, 'tf32'),
    (16, 1024, 'tf32'),
    (64, 1024, 'float32'),
]
_QUICK_CELLS = [(4, 8, 'bfloat16'), (4, 8, 'float32')]


class Programs:
    """The three programs of one size, compiled at the same time, and what is timed of them.

    Args:
      size: of network and batch.
      precision: key of `ours.PRECISIONS`.
      steps: in a call, a multiple of a cycle.
    """

    def __init__(self, size: ours.Size, precision: str, steps: int):
        self.size, self.steps = size, steps
        self.chosen = tuple(DERIVED[i % len(DERIVED)] for i in range(size.depth))
        self.draws = ours.draws(size.primitives, size.depth)

        def compiled(phase, chosen=None):
            with jax.default_matmul_precision(ours.PRECISIONS[precision][1]):
                return ours.Network(size, phase, chosen, slots=steps, frozen=phase is Phase.SEARCH)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            makers = {
                WARMUP: pool.submit(compiled, Phase.WARMUP),
                'search': pool.submit(compiled, Phase.SEARCH),
                OPTIMIZE: pool.submit(compiled, Phase.OPTIMIZE, self.chosen),
            }
            self.networks = {name: maker.result() for name, maker in makers.items()}

    def calls(self) -> dict[str, functools.partial]:
        """Returns the calls to time, each with as many steps as fit."""
        search = self.networks['search']
        return {
            WARMUP: functools.partial(self.networks[WARMUP].run, self.steps),
            OPTIMIZE: functools.partial(self.networks[OPTIMIZE].run, self.steps),
            WEIGHTS: functools.partial(search.run, self.steps, 0),
            _CYCLE: functools.partial(search.run, self.steps, search.first_alpha),
        }

    def compile_seconds(self) -> dict[str, float]:
        """Of each program."""
        return {name: net.program.compile_seconds for name, net in self.networks.items()}


def _size(channels, batch, precision, quick):
    dtype = ours.PRECISIONS[precision][0]
    if quick:
        few = ('none', 'skip_connect', 'max_pool_3x3')
        return ours.Size(channels, 1, batch, (8, 8, 3), (), few, dtype)
    return ours.Size(channels, 6, batch, dtype=dtype)


def run(report, quick: bool) -> None:
    """A row for each cell, as long as there is time; the first one is profiled as well."""
    alone = jax.devices()[0].platform == 'cpu'
    side, length = (256, 2**20) if quick else (2048, 2**24) if alone else (8192, 2**28)
    gflops, gbytes = ops.limits(side, length, 3)
    report.add('limits', gflops_per_s=gflops, gbytes_per_s=gbytes)
    longest = 0.0
    for number, cell in enumerate(_QUICK_CELLS if quick else CELLS):
        name = 'C={} batch={} {}'.format(*cell)
        if not report.has_time(name, 1.2 * longest):
            continue
        start = time.perf_counter()
        with report.attempt(name):
            programs = Programs(_size(*cell, quick), cell[2], 6 if quick else 24)
            report.add(f'{name}: compilation', seconds=programs.compile_seconds(), at_once=3)
            report.add(name, **_times(programs, 2 if quick else 3, gbytes))
            if not number:
                report.add(f'{name}: profile', **_profile(programs.calls()[_CYCLE]))
        longest = max(longest, time.perf_counter() - start)


def _times(programs, rounds, gbytes):
    """Milliseconds of each kind of step, the medians over rounds; means over the draws."""
    calls, steps = programs.calls(), programs.steps
    fixed = {name: calls.pop(name) for name in (WARMUP, OPTIMIZE)}
    samples = measure.interleaved(fixed, rounds)
    drawn = {name: [0.0] * rounds for name in calls}
    for draw in programs.draws:
        programs.networks['search'].draw(draw)
        for name, taken in measure.interleaved(calls, rounds).items():
            parts = [sum(pair) for pair in zip(drawn[name], taken, strict=True)]
            drawn[name] = parts
    samples |= {name: [ms / len(programs.draws) for ms in drawn[name]] for name in calls}
    samples = {name: [ms / steps for ms in taken] for name, taken in samples.items()}
    # A third of the steps of a cycle are of alpha.
    cycles = samples.pop(_CYCLE)
    samples[ALPHA] = [3 * c - 2 * w for c, w in zip(cycles, samples[WEIGHTS], strict=True)]
    of_program = {WARMUP: WARMUP, OPTIMIZE: OPTIMIZE, ALPHA: 'search'}
    limits = {
        name: _bytes(programs.networks[program].program.call) / gbytes / 1e6
        for name, program in of_program.items()
    }
    middle = {name: statistics.median(taken) for name, taken in samples.items()}
    shares = {name: limit / middle[name] for name, limit in limits.items()}
    return {'ms': middle, 'limit_ms': limits, 'share_of_limit': shares, 'samples_ms': samples}


def _bytes(compiled):
    """Bytes that a step moves, as XLA counts them: the body of a loop counts once."""
    counted = compiled.cost_analysis()
    counted = counted[0] if isinstance(counted, list) else counted
    return (counted or {}).get('bytes accessed', 0.0)


def _profile(call):
    """Kernels, waits of the host and the idle share of the device during one call.

    By the trace of `jax.profiler`, which jax itself can read. A CPU has no plane of its own in it.
    """
    call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
        planes = [*jax.profiler.ProfileData.from_file(str(file)).planes]
        device = [plane for plane in planes if plane.name.startswith('/device:')]
        streams = [line for plane in device for line in plane.lines if _holds_kernels(line.name)]
        spans = sorted(
            (event.start_ns, event.start_ns + event.duration_ns)
            for line in streams
            for event in line.events
        )
        waits = [
            event.duration_ns
            for plane in planes
            if plane.name.startswith('/host:')
            for line in plane.lines
            for event in line.events
            if any(word in event.name for word in ('Synchronize', 'BlockUntilReady', 'Await'))
        ]
    found = {'host_waits': len(waits), 'host_waits_ms': sum(waits) / 1e6}
    if not spans:
        names = ', '.join(plane.name for plane in planes)
        return {**found, 'kernels': None, 'left_out': f'no kernels in the trace; it has {names}'}
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - spans[0][0]
    return {**found, 'kernels': len(spans), 'ms': whole / 1e6, 'idle_share': 1 - busy / whole}


def _holds_kernels(line):
    """Of a GPU each stream has a line, of a TPU its operations have one."""
    return line.startswith('Stream') or line == 'XLA Ops'


def against_torch(report, quick: bool) -> None:
    """The same networks in PyTorch on the same device, in turn with ours."""
    if importlib.util.find_spec('torch') is None:
        report.leave_out('all of it', 'PyTorch is not installed')
        return
    import torch

    on_gpu = jax.devices()[0].platform == 'gpu'
    if not (on_gpu and torch.cuda.is_available()) and not quick:
        report.leave_out('all of it', 'jax and PyTorch see no GPU that both can use')
        return
    longest, device = 0.0, 'cuda' if on_gpu else 'cpu'
    cells = _QUICK_CELLS if quick else [cell for cell in CELLS if cell[1] == 128]
    for cell in cells:
        name = 'C={} batch={} {}'.format(*cell)
        if not report.has_time(name, 1.2 * longest):
            continue
        start = time.perf_counter()
        with report.attempt(name):
            for row, values in _rows_against_torch(torch, cell, device, quick):
                report.add(f'{name}: {row}', **values)
        longest = max(longest, time.perf_counter() - start)


def _rows_against_torch(torch, cell, device, quick):
    from benchmarks import theirs

    channels, batch, precision = cell
    size = _size(channels, batch, precision, quick)
    programs, rounds = Programs(size, precision, 6 if quick else 24), 2 if quick else 3
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
    torch.backends.cudnn.benchmark = True  # as its users set it where all images have one size
    options = {'device': device, 'autocast': torch.bfloat16 if precision == 'bfloat16' else None}
    layouts = {'eager': torch.contiguous_format, 'channels_last': torch.channels_last}
    eager = {name: theirs.Net(size, layout, **options) for name, layout in layouts.items()}
    derived = {
        name: theirs.Net(size, layout, programs.chosen, **options)
        for name, layout in layouts.items()
    }
    more = {}
    if not quick:
        for row, chosen in ((WARMUP, None), (OPTIMIZE, programs.chosen)):
            net = theirs.Net(size, torch.channels_last, chosen, **options, compiled=True)
            more[row] = {'torch.compile': net}
    skip, first = [size.primitives.index('skip_connect')] * size.depth, [0] * size.depth

    def weights(net, index):
        for _ in range(programs.steps):
            net.weight_step(index)
        net.wait()

    def cycles(net, index):
        for _ in range(programs.steps // 3):
            for step in net.alpha_step, net.weight_step, net.weight_step:
                step(index)
        net.wait()

    calls = programs.calls()
    draw = programs.draws[0]
    programs.networks['search'].draw(draw)
    drawn = [size.primitives.index(name) for name in draw]
    rows = [  # all in milliseconds for each step; a cycle has one of alpha and two of the weights
        (WARMUP, weights, eager, skip),
        (OPTIMIZE, weights, derived, first),
        (WEIGHTS, weights, eager, drawn),
        (_CYCLE, cycles, eager, drawn),
    ]
    for row, torch_call, nets, index in rows:
        contestants = nets | more.get(row, {})
        turns = {
            name: functools.partial(torch_call, net, index) for name, net in contestants.items()
        }
        taken = measure.interleaved({'ours': calls[row], **turns}, rounds)
        taken = {name: [ms / programs.steps for ms in values] for name, values in taken.items()}
        yield (
            row,
            {
                'ms': {name: statistics.median(values) for name, values in taken.items()},
                'times_as_fast': {
                    name: measure.ratio(values, taken['ours'])
                    for name, values in taken.items()
                    if name != 'ours'
                },
                'samples_ms': taken,
            },
        )
