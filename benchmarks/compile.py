"""Seconds of tracing and compiling the search program: python -m benchmarks.compile

Against depth, and of each primitive: the program of {skip_connect, primitive} less that of
{skip_connect, none}, at depth 3. Nothing is taken from a compilation cache.
"""

from benchmarks import measure


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--depths', type=int, nargs='+', default=[2, 4, 6, 8, 12])
    options = parser.parse_args()
    measure.pin(options.threads)

    import jax

    from asose_jax.phases import Phase
    from benchmarks import ours

    jax.config.update('jax_enable_compilation_cache', False)

    def seconds(**changes):
        jax.clear_caches()
        made = ours.Network(ours.Size(channels=options.channels, **changes), Phase.SEARCH)
        return made.program.compile_seconds

    seconds(depth=1, primitives=('skip_connect', 'none'))  # starts the compiler
    depths = {str(depth): seconds(depth=depth) for depth in options.depths}
    first = depths[str(options.depths[0])]
    measure.show(
        ['depth', 'seconds', f'x depth {options.depths[0]}'],
        [[depth, value, value / first] for depth, value in depths.items()],
    )
    base = seconds(depth=3, primitives=('skip_connect', 'none'))
    each = {}
    for name in ours.Size().primitives:
        if name not in ('skip_connect', 'none'):
            each[name] = seconds(depth=3, primitives=('skip_connect', name)) - base
    measure.show(['primitive', 'seconds more'], [[k, v] for k, v in each.items()])
    content = {'by_depth': depths, 'by_primitive': each, 'without': base}
    measure.write(options.out, 'compile', content)
    groups = {f'depth {depth}': {'trace and compile': value} for depth, value in depths.items()}
    title = f'search program, ten primitives, C={options.channels}'
    measure.bars(options.out, 'compile', title, groups, 'seconds')


if __name__ == '__main__':
    main()
