"""What a step costs, against PyTorch doing the same: python -m benchmarks.step

Needs torch (any build with CPU kernels). Every round measures each row with each contestant in
turn; both sides augment, update and wait. Ours run as in a search: many steps in one compiled call.
PyTorch's SGD passes over operations that were not drawn; ours decays their weights too. The search
on the digits is in `benchmarks.loop`. The search goes through as many draws as there are
primitives, so that every block meets every primitive once. `cycle` is one alpha step and two weight
steps, `alpha step` what it takes beyond its weight steps; `ancestor` the cycle of the PyTorch
ancestor, whose alpha step is a weight step that moves nothing.
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
_NEVER = 10**6
OURS, CONTIGUOUS, LAST = 'ours', 'torch contiguous', 'torch channels_last'


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--depth', type=int, default=6)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--side', '--size', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--name', default='step', help='of the files written')
    parser.add_argument('--call', type=int, default=24, help='steps in a call of ours')
    parser.add_argument('--fixed', action='store_true', help='warmup and optimize, no search')
    options = measure.parse(parser, channels=4, depth=2, batch=8, side=8)
    options.threads = measure.pin(options.threads)

    import torch

    from asose_jax.train.phases import Phase
    from benchmarks import ours, theirs

    steps, cycles = options.call, max(1, options.call // 12)  # in a call of ours, of PyTorch's
    if steps % ours.TURN_PERIOD:
        parser.error(f'--call {steps}: must be a multiple of {ours.TURN_PERIOD}')
    torch.set_num_threads(options.threads)
    size = ours.Size(
        options.channels, options.depth, options.batch, (options.side, options.side, 3)
    )
    chosen = tuple(DERIVED[i % len(DERIVED)] for i in range(options.depth))
    layouts = {CONTIGUOUS: torch.contiguous_format, LAST: torch.channels_last}
    skip = [size.primitives.index('skip_connect')] * options.depth
    drawn = ours.draws(size.primitives, options.depth)
    numbers = [[size.primitives.index(name) for name in draw] for draw in drawn]

    warming = ours.Network(size, Phase.WARMUP, slots=steps)
    fixed = ours.Network(size, Phase.OPTIMIZE, chosen, slots=steps)
    nets = {name: theirs.Net(size, layout) for name, layout in layouts.items()}
    derived = {name: theirs.Net(size, layout, chosen) for name, layout in layouts.items()}
    compiled = {
        'warmup': warming.program.compile_seconds,
        'optimize': fixed.program.compile_seconds,
    }

    def torch_weights(net, index, update=True):
        for _ in range(2 * cycles):
            net.weight_step(index, update)

    def torch_cycles(net, index):
        for _ in range(cycles):
            net.alpha_step(index)
            net.weight_step(index)
            net.weight_step(index)

    samples: dict[str, dict[str, list[float]]] = {}
    single: dict[str, list[dict[str, list[float]]]] = {}  # of each draw

    def row(name, run, units, torch_call, torch_nets, torch_units, parts):
        """One draw of `parts`: what a step or a cycle takes, in ms, `units` of them in a call."""
        calls = {OURS: run} | {k: functools.partial(torch_call, t) for k, t in torch_nets.items()}
        taken = measure.interleaved(calls, options.repeats)
        into = samples.setdefault(name, {})
        for contestant, values in taken.items():  # draws add up, round by round
            share = parts * (units if contestant == OURS else torch_units)
            before = into.get(contestant, [0.0] * len(values))
            into[contestant] = [a + b / share for a, b in zip(before, values, strict=True)]
        single.setdefault(name, []).append(taken)

    def combined(factor, a, b):
        return [factor * x + y for x, y in zip(a, b, strict=True)]

    for name, network, torches, index in (
        ('warmup step', warming, nets, skip),
        ('optimize step', fixed, derived, [0] * options.depth),
    ):
        call = functools.partial(torch_weights, index=index)
        row(name, functools.partial(network.run, steps), steps, call, torches, 2 * cycles, 1)
    if not options.fixed:
        cycling = ours.Network(size, Phase.SEARCH, slots=steps)
        weighing = ours.Network(size, Phase.SEARCH, slots=steps, turn_period=_NEVER)
        compiled['search'] = cycling.program.compile_seconds
        for draw, index in zip(drawn, numbers, strict=True):
            cycling.draw(draw)
            weighing.draw(draw)
            parts = len(drawn)
            run = functools.partial(weighing.run, steps, 1)
            call = functools.partial(torch_weights, index=index)
            row('search weight step', run, steps, call, nets, 2 * cycles, parts)
            run = functools.partial(cycling.run, steps)
            call = functools.partial(torch_cycles, index=index)
            row('cycle', run, steps / ours.TURN_PERIOD, call, nets, cycles, parts)
            call = functools.partial(torch_weights, index=index, update=False)
            row('idle', lambda: None, 1, call, nets, 2 * cycles, parts)

        weights, cycle, idle = samples['search weight step'], samples['cycle'], samples.pop('idle')

        samples['alpha step'] = {name: combined(-2, weights[name], cycle[name]) for name in cycle}
        samples['ancestor cycle'] = {name: combined(2, weights[name], idle[name]) for name in idle}
        samples['ancestor cycle'][OURS] = cycle[OURS]

    rows, ratios = [], {}
    for name, contestants in samples.items():
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
