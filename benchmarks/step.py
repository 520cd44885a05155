"""What a step costs, against PyTorch doing the same: python -m benchmarks.step

Needs torch (any build with CPU kernels). Every round measures each row with each contestant in
turn; both sides augment, update and wait. PyTorch's SGD passes over operations that were not drawn;
ours decays their weights too. The search on the digits is in `benchmarks.loop`. Weight and alpha
steps go through as many draws as there are primitives, so that every block meets every primitive
once. `cycle` is one alpha step and two weight steps; `ancestor` the cycle of the PyTorch ancestor,
whose alpha step is a weight step that moves nothing.
"""

import functools

from benchmarks import measure

DERIVED = (
    'sep_conv_3x3',
    'dil_conv_3x3',
    'sep_conv_5x5',
    'dil_conv_5x5',
    'sep_conv_7x7',
    'sep_conv_3x3',
)
OURS, CONTIGUOUS, LAST = 'ours', 'torch contiguous', 'torch channels_last'


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--depth', type=int, default=6)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--side', '--size', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--name', default='step', help='of the files written')
    options = measure.parse(parser, channels=4, depth=2, batch=8, side=8)
    options.threads = measure.pin(options.threads)

    import torch

    from asose_jax.phases import Phase
    from benchmarks import ours, theirs

    torch.set_num_threads(options.threads)
    size = ours.Size(
        options.channels, options.depth, options.batch, (options.side, options.side, 3)
    )
    chosen = tuple(DERIVED[i % len(DERIVED)] for i in range(options.depth))
    layouts = {CONTIGUOUS: torch.contiguous_format, LAST: torch.channels_last}
    skip = [size.primitives.index('skip_connect')] * options.depth
    drawn = ours.draws(size.primitives, options.depth)
    numbers = [[size.primitives.index(name) for name in draw] for draw in drawn]

    count = len(drawn)
    searching = ours.Network(size, Phase.SEARCH)
    warming = ours.Network(size, Phase.WARMUP, slots=count)
    fixed = ours.Network(size, Phase.OPTIMIZE, chosen, slots=count)
    nets = {name: theirs.Net(size, layout) for name, layout in layouts.items()}
    derived = {name: theirs.Net(size, layout, chosen) for name, layout in layouts.items()}
    compiled = {
        'search': searching.program.compile_seconds,
        'warmup': warming.program.compile_seconds,
        'optimize': fixed.program.compile_seconds,
    }

    def repeated(times, call, *arguments):
        for _ in range(times):
            call(*arguments)

    samples: dict[str, dict[str, list[float]]] = {}
    single: dict[str, list[dict[str, list[float]]]] = {}  # of each draw

    def row(name, calls):
        taken = measure.interleaved(calls, options.repeats)
        single.setdefault(name, []).append(taken)
        into = samples.setdefault(name, {})
        for contestant, values in taken.items():  # draws add up, round by round
            before = into.get(contestant, [0.0] * len(values))
            into[contestant] = [a + b / len(drawn) for a, b in zip(before, values, strict=True)]

    for name, network, torches, index in (
        ('warmup step', warming, nets, skip),
        ('optimize step', fixed, derived, [0] * options.depth),
    ):
        calls = {OURS: functools.partial(network.run, count)}
        calls |= {
            k: functools.partial(repeated, count, t.weight_step, index) for k, t in torches.items()
        }
        row(name, calls)
    for draw, index in zip(drawn, numbers, strict=True):
        searching.draw(draw)
        calls = {OURS: searching.weights}
        calls |= {k: functools.partial(repeated, 2, t.weight_step, index) for k, t in nets.items()}
        row('two weight steps', calls)
        calls = {OURS: searching.alpha}
        calls |= {k: functools.partial(t.alpha_step, index) for k, t in nets.items()}
        row('alpha step', calls)
        idle = {k: functools.partial(t.weight_step, index, False) for k, t in nets.items()}
        row('ancestor alpha step', idle)

    weights, alpha = samples.pop('two weight steps'), samples['alpha step']
    idle = samples['ancestor alpha step']
    samples['search weight step'] = {k: [v / 2 for v in vs] for k, vs in weights.items()}

    def added(a, b):
        return [x + y for x, y in zip(a, b, strict=True)]

    samples['cycle'] = {name: added(weights[name], alpha[name]) for name in weights}
    samples['ancestor cycle'] = {name: added(weights[name], idle[name]) for name in idle}
    samples['ancestor cycle'][OURS] = samples['cycle'][OURS]

    rows, ratios = [], {}
    for name, contestants in samples.items():
        if OURS not in contestants:
            continue
        mine = contestants[OURS]
        ratios[name] = {k: measure.ratio(contestants[k], mine) for k in (CONTIGUOUS, LAST)}
        middle = measure.statistics.median(mine)
        rows.append([name, middle, ratios[name][CONTIGUOUS], ratios[name][LAST]])
    print(f'C={options.channels} depth={options.depth} batch={options.batch} {options.side} px')
    print('compile seconds:', {key: round(value, 1) for key, value in compiled.items()})
    measure.show(['', 'ours, ms', 'x torch contiguous', 'x torch channels_last'], rows)
    content = {
        'samples_ms': samples,
        'samples_of_draws_ms': single,
        'medians_ms': measure.medians(samples),
        'ratios': ratios,
        'compile_seconds': compiled,
    }
    measure.write(options, options.name, content)
    groups = {name: {k: ratio.median for k, ratio in pair.items()} for name, pair in ratios.items()}
    title = f'times as fast as PyTorch, C={options.channels}, batch {options.batch}'
    measure.bars(options, options.name, title, groups, 'ratio of medians')


if __name__ == '__main__':
    main()
