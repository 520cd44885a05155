"""The whole program against its bare compiled calls: python -m benchmarks.loop

A search on the digits, as they are or enlarged. `bare calls` are the calls that the program makes,
chunks of steps and an evaluation after each epoch, one after another, with a wait at the end and
nothing in between. `in the program` is what its own log says: all that stands between two steps
included, but not the first epochs, since all contestants have been running before. What it is
slower is the share of time in which the devices had nothing to do. `steps alone` leaves the
evaluations out as well. With torch installed, the same steps as an eager PyTorch loop, also without
evaluations. Alpha stays at zero everywhere, so that all draw alike.
"""

import functools
import importlib.util
import json
import pathlib
import tempfile
import time

from benchmarks import measure

FIRST = 2  # epochs that do not count: memory is touched, code is linked
BARE, PROGRAM, ALONE = 'bare calls', 'in the program', 'steps alone'


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--epochs', type=int, default=240, help='of search in a round')
    parser.add_argument('--depth', type=int, default=4)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--side', type=int, default=8, help='of the images, in pixels')
    parser.add_argument('--name', default='loop', help='of the files written')
    parser.add_argument('--turns', type=int, default=15, help="of PyTorch's loop in a round")
    options = measure.parse(parser, depth=2, epochs=4, turns=1)
    options.threads = measure.pin(options.threads)

    import jax

    from asose_jax.pipeline import builders, single_run
    from asose_jax.train import pmap
    from asose_jax.train.phases import Phase
    from benchmarks import ours
    from configs import search as presets

    primitives = ours.Size().primitives
    reductions = tuple(r for r in (1, 3) if r < options.depth)
    image = (options.side, options.side, 1)
    size = ours.Size(16, options.depth, options.batch, image, reductions, primitives)
    config = presets.get_config('digits')
    config.batch_size, config.data.image_size = options.batch, options.side
    config.model.depth, config.model.reductions = size.depth, size.reductions
    config.model.primitives = primitives
    config.data.crop_padding, config.data.flip = 4, True  # as the others do
    config.weights.clip = 0.0  # likewise
    config.search.epochs = options.epochs
    config.warmup.epochs = config.growth.epochs = config.optimize.epochs = 0

    config.arch.init_std = config.arch.none_bias = config.arch.skip_bias = 0.0
    config.search.transition_noise = 0.0
    config.arch.lr = config.arch.lr_end = 1e-12

    slots = config.chunk_steps
    bare = ours.Network(size, Phase.SEARCH, slots=slots)
    zeros = jax.tree.map(jax.numpy.zeros_like, bare.packed.unpack().arch)
    bare.packed = pmap.replicated(bare.packed.put(arch=zeros))
    images = builders.load_data(config)
    epoch = builders.make_schedule(config, len(images.train)).spans[0].epoch_steps
    full, rest = bare.chunk(slots), bare.chunk(epoch % slots)
    evaluation = bare.evaluation(len(images.valid))

    def calls(evaluates):
        vectors = bare.packed.vectors.replace(step=pmap.replicated(jax.numpy.int32(0)))
        bare.packed = bare.packed.replace(vectors=vectors)
        start = time.perf_counter()
        for _ in range(options.epochs):
            for chunk in [full] * (epoch // slots) + [rest] * (epoch % slots > 0):
                bare.packed, _ = bare.program.call(bare.packed, chunk, bare.shared)
            if evaluates:
                evaluation()
        jax.block_until_ready(bare.packed)
        return options.epochs * epoch / (time.perf_counter() - start)

    def whole_program():
        with tempfile.TemporaryDirectory() as workdir:
            single_run.run(config, workdir)
            lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
        ends = [json.loads(lines[number]) for number in (FIRST - 1, -1)]
        seconds = [line['step'] * options.batch / line['images_per_second'] for line in ends]
        return (ends[1]['step'] - ends[0]['step']) / (seconds[1] - seconds[0])

    contestants = {
        BARE: functools.partial(calls, True),
        PROGRAM: whole_program,
        ALONE: functools.partial(calls, False),
    }
    if importlib.util.find_spec('torch'):
        contestants |= _torch(size, options)
    calls(True)
    figures = {name: [] for name in contestants}
    for _ in range(options.repeats):
        for name, contestant in contestants.items():
            figures[name].append(contestant())
    # Steps per second are compared, so that the faster one comes first.
    ratios = {
        name: measure.ratio(figures[PROGRAM], values)
        for name, values in figures.items()
        if name != PROGRAM
    }
    idle = measure.ratio(figures[PROGRAM], figures[BARE])
    rows = [
        [name, measure.statistics.median(values), ratios.get(name, '')]
        for name, values in figures.items()
    ]
    measure.show(['', 'steps/s', 'the program is x times as fast'], rows)
    print(f'idle between chunks: {1 - idle.median:.1%} ({1 - idle.high:.1%} to {1 - idle.low:.1%})')
    content = {'steps_per_second': figures, 'ratios': ratios, 'idle_share': 1 - idle.median}
    measure.write(options, options.name, content)
    groups = {name: {'steps/s': measure.statistics.median(v)} for name, v in figures.items()}
    title = f'digits, search, {options.side}x{options.side}'
    measure.bars(options, options.name, title, groups, 'steps/s')


def _torch(size, options):
    """Eager loops, steps per second: random draws, one alpha step and two weight steps."""
    import torch

    from benchmarks import theirs

    torch.set_num_threads(options.threads)

    def loop(net, turns):
        start = time.perf_counter()
        for _ in range(turns):
            for step in net.alpha_step, net.weight_step, net.weight_step:
                step(torch.randint(0, len(size.primitives), (size.depth,)).tolist())
        return 3 * turns / (time.perf_counter() - start)

    contestants = {}
    for name in 'contiguous', 'channels_last':
        layout = {'contiguous': torch.contiguous_format}.get(name, torch.channels_last)
        net = theirs.Net(size, layout)
        loop(net, 3)
        contestants[f'torch {name}'] = functools.partial(loop, net, options.turns)
    return contestants


if __name__ == '__main__':
    main()
