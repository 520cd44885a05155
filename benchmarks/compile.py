"""Seconds of tracing and compiling the search program: python -m benchmarks.compile

Against depth, and of each primitive: the program of {skip_connect, primitive} less that of
{skip_connect, none}, at depth 3. Nothing is taken from a compilation cache. `trace` is all that
Python does until XLA has the program, `compile` is XLA.
"""

from benchmarks import measure

PARTS = ['trace', 'compile']


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.set_defaults(repeats=1)
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--depths', type=int, nargs='+', default=[2, 4, 6, 8, 12])
    parser.add_argument('--primitives', nargs='+', help='those measured singly; all, if not given')
    few = {'depths': [1, 2], 'primitives': ['max_pool_3x3'], 'channels': 4, 'repeats': 1}
    options = measure.parse(parser, **few)
    options.threads = measure.pin(options.threads)

    import jax

    from asose_jax.config.schema import FIELDS
    from asose_jax.train.phases import Phase
    from benchmarks import ours

    jax.config.update('jax_enable_compilation_cache', False)
    of_xla = []

    def heard(event, duration, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            of_xla.append(duration)

    jax.monitoring.register_event_duration_secs_listener(heard)

    def seconds(**changes):
        jax.clear_caches()
        made = ours.Network(ours.Size(channels=options.channels, **changes), Phase.SEARCH)
        # The network's other small programs are compiled before and after; its own is the longest.
        compiling = max(of_xla)
        of_xla.clear()
        return [made.program.compile_seconds - compiling, compiling]

    every = FIELDS['model.primitives'].default
    names = options.primitives or [p for p in every if p not in ('skip_connect', 'none')]
    seconds(depth=1, primitives=('skip_connect', 'none'))  # starts the compiler
    cases = {f'depth {depth}': {'depth': depth} for depth in options.depths}
    for name in ('none', *names):
        cases[name] = {'depth': 3, 'primitives': ('skip_connect', name)}
    samples = {case: [] for case in cases}
    for _ in range(options.repeats):
        for case, changes in cases.items():
            samples[case].append(seconds(**changes))

    middle = {
        case: [measure.statistics.median(part) for part in zip(*taken, strict=True)]
        for case, taken in samples.items()
    }
    first = sum(middle[f'depth {options.depths[0]}'])
    depths = {case: middle[case] for case in cases if case.startswith('depth')}
    measure.show(
        ['', *PARTS, f'x depth {options.depths[0]}'],
        [[case, *parts, sum(parts) / first] for case, parts in depths.items()],
    )
    each = {
        name: [part - base for part, base in zip(middle[name], middle['none'], strict=True)]
        for name in names
    }
    measure.show(['seconds more', *PARTS], [[name, *parts] for name, parts in each.items()])
    content = {
        'parts': PARTS,
        'samples_s': samples,
        'medians_s': middle,
        'seconds_more_of_primitive': each,
    }
    measure.write(options, 'compile', content)
    groups = {
        case: dict(zip(PARTS, parts, strict=True)) for case, parts in {**depths, **each}.items()
    }
    title = f'search program, ten primitives; one primitive more; C={options.channels}'
    measure.bars(options, 'compile', title, groups, 'seconds')


if __name__ == '__main__':
    main()
