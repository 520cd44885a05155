"""How time and memory grow: python -m benchmarks.scaling

Against depth, channels, number of primitives (the same one drawn), batch and simulated devices:
milliseconds of a weight step and of an alpha step, seconds to compile, and peak memory. The fitted
power says how: 1 is proportional, 0 flat. Devices are simulated on the same cores; their batch is
shared among them, so that flat is the best there is.
"""

import json
import math
import subprocess
import sys

from benchmarks import measure

DRAWN = 'sep_conv_3x3'
AXES = {
    'depth': [2, 4, 6, 8, 12],
    'channels': [8, 16, 32, 64],
    'primitives': [2, 4, 6, 8, 10],
    'batch': [32, 64, 128, 256],
    'devices': [1, 2, 4, 8],
}
COLUMNS = ['weight step, ms', 'alpha step, ms', 'compile, s', 'memory, MiB']


def point(axis: str, value: int, threads: int, repeats: int) -> list[float]:
    """One network of its own process: the four columns. Base: depth 4, C=16, batch 64, 32x32."""
    measure.pin(threads)
    import jax

    if axis == 'devices':
        jax.config.update('jax_num_cpu_devices', value)

    from asose_jax.phases import Phase
    from benchmarks import ours

    # The drawn one first, and skip_connect, which every mixed operation has.
    names = [DRAWN, 'skip_connect', *ours.Size().primitives]
    names = tuple(dict.fromkeys(names))[: value if axis == 'primitives' else None]
    changes = {axis: value} if axis in ('depth', 'channels', 'batch') else {}
    size = ours.Size(**{'depth': 4, 'batch': 64, 'primitives': names, **changes})
    net = ours.Network(size, Phase.SEARCH)
    net.draw([DRAWN] * size.depth)
    taken = measure.interleaved({'weights': net.weights, 'alpha': net.alpha}, repeats)
    middle = {key: measure.statistics.median(values) for key, values in taken.items()}
    memory = net.program.peak_bytes / 2**20
    return [middle['weights'] / 2, middle['alpha'], net.program.compile_seconds, memory]


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--axes', nargs='+', choices=AXES, default=list(AXES))
    parser.add_argument('--point', nargs=2, metavar=('AXIS', 'VALUE'), help='of one process')
    options = parser.parse_args()
    if options.point:
        axis, value = options.point
        print(json.dumps(point(axis, int(value), options.threads, options.repeats)))
        return
    found = {}
    for axis in options.axes:
        rows = []
        for value in AXES[axis]:
            command = [sys.executable, '-m', 'benchmarks.scaling', '--point', axis, str(value)]
            command += ['--threads', str(options.threads), '--repeats', str(options.repeats)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([value, *json.loads(done.stdout.splitlines()[-1])])
        found[axis] = rows
        powers = [_power(rows, column) for column in range(1, 5)]
        measure.show([axis, *COLUMNS], [*rows, ['power', *powers]])
    measure.write(options.out, 'scaling', {'columns': COLUMNS, 'axes': found})
    _draw(options.out, found)


def _power(rows, column):
    """Slope of log(column) over log(value), least squares."""
    xs = [math.log(row[0]) for row in rows]
    ys = [math.log(row[column]) for row in rows]
    middle = sum(xs) / len(xs)
    slopes = sum((x - middle) * y for x, y in zip(xs, ys, strict=True))
    return slopes / sum((x - middle) ** 2 for x in xs)


def _draw(out, found):
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
    figure.savefig(out / 'scaling.png', dpi=110)


if __name__ == '__main__':
    main()
