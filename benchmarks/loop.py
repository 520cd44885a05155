"""The whole program against the bare compiled step: python -m benchmarks.loop

A search on the digits is timed by the program's own log: training with all that stands between two
steps, without evaluation. The bare step is the same compiled call on one chunk, again and again,
waiting only at the end. With torch installed, the same as an eager PyTorch loop. Alpha stays at
zero everywhere, so that all draw alike.
"""

import importlib.util
import itertools
import tempfile
import time

from benchmarks import measure


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=int, default=20, help='of search in the whole run')
    parser.add_argument('--depth', type=int, default=4)
    options = parser.parse_args()
    measure.pin(options.threads)

    import jax

    from asose_jax import search, steps
    from asose_jax.phases import Phase
    from benchmarks import ours
    from configs import search as presets

    primitives = ours.Size().primitives
    size = ours.Size(16, options.depth, 64, (8, 8, 1), (1, 3), primitives)
    config = presets.get_config('digits')
    config.model.depth, config.model.reductions = size.depth, size.reductions
    config.model.primitives = primitives
    config.search.epochs = options.epochs
    config.warmup.epochs = config.growth.epochs = config.optimize.epochs = 0

    config.arch.init_std = config.arch.none_bias = config.arch.skip_bias = 0.0
    config.search.transition_noise = 0.0
    config.arch.lr = config.arch.lr_end = 1e-12

    figures = {'bare step': [], 'in the program': []}
    slots = config.chunk_steps
    bare = ours.Network(size, Phase.SEARCH, slots=slots)
    zeros = jax.tree.map(jax.numpy.zeros_like, bare.state.arch)
    bare.state = bare.state.replace(arch=steps.replicated(zeros))
    chunk = bare.chunk(slots)

    def steps_alone(calls=20):
        start = time.perf_counter()
        for _ in range(calls):
            bare.state, _ = bare.program.call(bare.state, chunk, bare.shared)
        jax.block_until_ready(bare.state)
        return calls * slots / (time.perf_counter() - start)

    torch_loop = None
    if importlib.util.find_spec('torch'):
        torch_loop = _torch(size, options.threads)
        figures['torch, eager'] = []
    steps_alone()
    for _ in range(options.repeats):
        figures['bare step'].append(steps_alone())
        with tempfile.TemporaryDirectory() as workdir:
            summary = search.run(config, workdir)
        row = next(phase for phase in summary['phases'] if phase['name'] == Phase.SEARCH)
        figures['in the program'].append(row['steps'] / row['seconds'])
        if torch_loop:
            figures['torch, eager'].append(torch_loop())
    base = measure.statistics.median(figures['bare step'])
    rows = []
    for name, values in figures.items():
        middle = measure.statistics.median(values)
        rows.append([name, middle, middle / base])
    measure.show(['', 'steps/s', 'of the bare step'], rows)
    measure.write(options.out, 'loop', {'steps_per_second': figures})
    groups = {name: {'steps/s': measure.statistics.median(v)} for name, v in figures.items()}
    measure.bars(options.out, 'loop', 'digits, search', groups, 'steps/s')


def _torch(size, threads):
    """Steps per second of an eager loop: random draws, one alpha step and two weight steps."""
    import torch

    from benchmarks import theirs

    torch.set_num_threads(threads)
    net = theirs.Net(size, torch.contiguous_format)
    random = itertools.count()

    def loop(turns=15):
        start = time.perf_counter()
        for _ in range(turns):
            for step in net.alpha_step, net.weight_step, net.weight_step:
                torch.manual_seed(next(random))
                step(torch.randint(0, len(size.primitives), (size.depth,)).tolist())
        return 3 * turns / (time.perf_counter() - start)

    loop(3)
    return loop


if __name__ == '__main__':
    main()
