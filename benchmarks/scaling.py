"""How time and memory grow: python -m benchmarks.scaling

Against depth, channels, number of primitives (the same one drawn), batch and simulated devices:
milliseconds of a weight step and of a cycle (one alpha step, two weight steps), seconds to compile,
and peak memory. The fitted power says how: 1 is proportional, 0 flat. Devices are simulated on the
same cores; their batch is shared among them, so that flat is the best there is. Base: depth 4,
C=16, batch 64, 32x32.
"""

import argparse
import functools
import json
import math
import subprocess
import sys
from typing import Any

from benchmarks import measure

DRAWN = 'sep_conv_3x3'
AXES = {
    'depth': [2, 4, 6, 8, 12],
    'channels': [8, 16, 32, 64],
    'primitives': [2, 4, 6, 8, 10],
    'batch': [32, 64, 128, 256],
    'devices': [1, 2, 4, 8],
}
CALL = 12  # steps in a call, a multiple of the turn period
BASE = {'depth': 4, 'batch': 64}
QUICK_AXES = {
    'depth': [1, 2],
    'channels': [4, 8],
    'primitives': [2, 3],
    'batch': [8, 16],
    'devices': [1, 2],
}
QUICK_BASE = {'depth': 1, 'channels': 4, 'batch': 8, 'image': (8, 8, 3)}
COLUMNS = ['weight step, ms', 'cycle, ms', 'compile, s', 'memory, MiB']


def point(axis: str, value: int, options: argparse.Namespace) -> dict[str, Any]:
    """One network, in a process of its own: its row of `COLUMNS`, and what that comes from."""
    measure.pin(options.threads)
    import jax

    if axis == 'devices':
        jax.config.update('jax_num_cpu_devices', value)

    from asose_jax.train.phases import Phase
    from benchmarks import ours

    # The drawn one first, and skip_connect, which every mixed operation has.
    names = [DRAWN, 'skip_connect', *ours.Size().primitives]
    count = value if axis == 'primitives' else 2 if options.quick else None
    names = tuple(dict.fromkeys(names))[:count]
    changes = {axis: value} if axis in ('depth', 'channels', 'batch') else {}
    base = QUICK_BASE if options.quick else BASE
    size = ours.Size(**{**base, 'primitives': names, **changes})
    net = ours.Network(size, Phase.SEARCH, slots=CALL)
    weighing = ours.Network(size, Phase.SEARCH, slots=CALL, turn_period=10**6)
    for each in (net, weighing):
        each.draw([DRAWN] * size.depth)
    calls = {
        'weight step': functools.partial(weighing.run, CALL, 1),
        'cycle': functools.partial(net.run, CALL),
    }
    taken = measure.interleaved(calls, options.repeats)
    weights, cycle = (measure.statistics.median(taken[key]) / CALL for key in calls)  # of a step
    memory = net.program.call.memory_analysis()
    kinds = ('argument', 'output', 'alias', 'temp')
    return {
        'row': [
            weights,
            ours.TURN_PERIOD * cycle,
            net.program.compile_seconds,
            net.program.peak_bytes / 2**20,
        ],
        'samples_ms': taken,
        'bytes': {kind: getattr(memory, f'{kind}_size_in_bytes', None) for kind in kinds},
    }


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--axes', nargs='+', choices=AXES, default=list(AXES))
    parser.add_argument('--point', nargs=2, metavar=('AXIS', 'VALUE'), help='of one process')
    options = measure.parse(parser)
    if options.point:
        axis, value = options.point
        print(json.dumps(point(axis, int(value), options)))
        return
    found, details = {}, {}
    for axis in options.axes:
        values = (QUICK_AXES if options.quick else AXES)[axis]
        details[axis] = {value: _in_process(axis, value, options) for value in values}
        found[axis] = rows = [[value, *made['row']] for value, made in details[axis].items()]
        powers = [_power(rows, column) for column in range(1, 5)]
        measure.show([axis, *COLUMNS], [*rows, ['power', *powers]])
    powers = {
        axis: [_power(rows, column) for column in range(1, 5)] for axis, rows in found.items()
    }
    content = {'columns': COLUMNS, 'axes': found, 'powers': powers, 'details': details}
    measure.write(options, 'scaling', content)
    _draw(options, found)


def _in_process(axis, value, options):
    command = [sys.executable, '-m', 'benchmarks.scaling', '--point', axis, str(value)]
    command += ['--threads', str(options.threads), '--repeats', str(options.repeats)]
    command += ['--quick'] if options.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _power(rows, column):
    """Slope of log(column) over log(value), least squares."""
    xs = [math.log(row[0]) for row in rows]
    ys = [math.log(row[column]) for row in rows]
    middle = sum(xs) / len(xs)
    slopes = sum((x - middle) * y for x, y in zip(xs, ys, strict=True))
    return slopes / sum((x - middle) ** 2 for x in xs)


def _draw(options, found):
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(found), figsize=(3.2 * len(found), 3.4), layout='constrained', squeeze=False
    )
    for panel, (axis, rows) in zip(panels[0], found.items(), strict=True):
        for column, name in enumerate(COLUMNS, start=1):
            panel.plot(
                [row[0] for row in rows],
                [row[column] / rows[0][column] for row in rows],
                marker='o',
                label=name.split(',')[0],
            )
        panel.set_xscale('log', base=2)
        panel.set_yscale('log', base=2)
        panel.set_xlabel(axis)
    panels[0][0].set_ylabel('times the first')
    panels[0][0].legend(fontsize='small')
    measure.save(options, 'scaling', figure)


if __name__ == '__main__':
    main()
