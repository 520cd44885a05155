"""Each operation forward and backward: python -m benchmarks.ops

Against the plain form (flax and lax, as one would write it) and against PyTorch in both layouts,
where torch is installed. FLOPs and bytes are counted by XLA from the forward pass and taken three
times; the limits are a matrix product of 2048 and a sum of two arrays of 64 MB on this machine.
"""

import copy
import importlib.util

from benchmarks import measure

SIDE, BATCH = 32, 128


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--channels', type=int, default=16)
    options = parser.parse_args()
    measure.pin(options.threads)

    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax import lax

    from asose_jax import fast, ops
    from asose_jax.model import Norm

    channels = options.channels
    x = jax.random.normal(jax.random.key(0), (BATCH, SIDE, SIDE, channels))

    def timed(function, params, inner=4):
        """A loop of `inner` gradients in one compiled call, each fed by the one before."""

        def gradient(params, x):
            def loss(params, x):
                y = function(params, x)
                return jnp.vdot(y, x)

            return jax.grad(loss, (0, 1))(params, x)

        def loop(params, x):
            def body(_, carry):
                params, x = carry
                moved = gradient(params, x)
                return jax.tree.map(lambda a, b: a - 1e-6 * b, (params, x), moved)

            return lax.fori_loop(0, inner, body, (params, x))

        call = jax.jit(loop).lower(params, x).compile()
        return lambda: jax.block_until_ready(call(params, x))

    def plain_depthwise(size, dilation):
        layer = nn.Conv(
            channels,
            (size, size),
            feature_group_count=channels,
            kernel_dilation=dilation,
            use_bias=False,
        )
        return lambda kernel, x: layer.apply({'params': {'kernel': kernel}}, x)

    def ours_of(name):
        call = ops.function(name, channels, Norm('float32', None), True, False)
        made = ops.make(name, channels, Norm('float32', None), parent=None)
        variables = made.init(jax.random.key(1), x[:1], False)
        stats = variables.get('batch_stats', {})
        return lambda params, x: call(params, stats, x)[0], variables.get('params', {})

    cases = {}
    for size, dilation in ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2)):
        name = f'depthwise {size}x{size}' + (' dilated' if dilation > 1 else '')
        kernel = jax.random.normal(jax.random.key(2), (size, size, 1, channels))
        fastest = lambda k, x, d=dilation: fast.depthwise_conv(x, k, d)  # noqa: E731
        cases[name] = (fastest, plain_depthwise(size, dilation), kernel)
    pool = lambda _, x: nn.max_pool(x, (3, 3), (1, 1), 'SAME')  # noqa: E731
    mean = lambda _, x: nn.avg_pool(x, (3, 3), (1, 1), 'SAME', False)  # noqa: E731
    cases['max pool'] = (lambda _, x: fast.max_pool(x), pool, {})
    call, params = ours_of('avg_pool_3x3')
    cases['average pool'] = (call, mean, params)
    matrix = jnp.eye(channels)
    cases['1x1'] = (lambda w, x: x @ w, lambda w, x: _conv(x, w.reshape(1, 1, *w.shape)), matrix)
    long = jax.random.normal(jax.random.key(3), (1, 7, channels, channels)) / 10
    cases['1x7'] = (lambda k, x: fast.conv(x, k), lambda k, x: _conv(x, k), long)
    for name in ops.PRIMITIVES:
        if name not in ops.PARAMETER_FREE:
            cases[name] = (*ours_of(name)[:1], None, ours_of(name)[1])

    peak, stream = _limits(options.repeats)
    print(f'limits: {peak:.1f} GFLOP/s, {stream:.1f} GB/s')
    rows, table = [], {}
    for name, (function, plain, params) in cases.items():
        calls = {'ours': timed(function, params)}
        if plain:
            calls['plain'] = timed(plain, params)
        calls |= _torch(name, channels, options.threads)
        taken = measure.interleaved(calls, options.repeats)
        middle = {key: measure.statistics.median(values) / 4 for key, values in taken.items()}
        cost = jax.jit(plain or function).lower(params, x).cost_analysis() or {}
        flops = 3 * cost.get('flops', 0.0)
        least = 3 * 2 * x.nbytes  # an image in, an image out: no operation moves less
        bound = 1000 * max(flops / peak, least / stream) / 1e9
        table[name] = {**middle, 'flops': flops, 'bound': bound}
        cells = [middle.get(key, float('nan')) for key in ('ours', 'plain', 'contiguous', 'last')]
        rows.append([name, *cells, flops / least, bound / middle['ours']])
    header = ['ms', 'ours', 'plain', 'torch contiguous', 'channels_last', 'FLOP/byte', 'of limit']
    measure.show(header, rows)
    measure.write(options.out, 'ops', {'gflops': peak, 'gbytes': stream, 'operations': table})
    keys = ('ours', 'plain', 'contiguous', 'last')
    groups = {
        name: {key: row['ours'] / row[key] for key in keys if key in row}
        for name, row in table.items()
    }
    measure.bars(options.out, 'ops', f'speed, ours = 1, C={channels}', groups, 'relative speed')


def _conv(x, kernel):
    from jax import lax

    return lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def _limits(rounds):
    """GFLOP/s of a matrix product and GB/s of a sum, the best of some rounds."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((2048, 2048))
    v = jnp.ones(2**24)
    product, total = jax.jit(lambda a: a @ a), jax.jit(lambda v, w: 2 * v + w)
    taken = measure.interleaved(
        {
            'product': lambda: jax.block_until_ready(product(a)),
            'sum': lambda: jax.block_until_ready(total(v, v)),
        },
        max(3, rounds),
    )
    return 2 * 2048**3 / min(taken['product']) / 1e6, 3 * v.nbytes / min(taken['sum']) / 1e6


def _torch(name, channels, threads):
    if importlib.util.find_spec('torch') is None:
        return {}
    import torch
    from torch import nn

    from benchmarks import theirs

    torch.set_num_threads(threads)
    if name.startswith('depthwise'):
        module = theirs._depthwise(channels, int(name[10]), 2 if 'dilated' in name else 1)
    elif name in ('1x1', '1x7'):
        columns = int(name[2])
        module = nn.Conv2d(channels, channels, (1, columns), padding=(0, columns // 2), bias=False)
    else:
        names = {'max pool': 'max_pool_3x3', 'average pool': 'avg_pool_3x3'}
        module = theirs._operation(names.get(name, name), channels)
    calls = {}
    for key, layout in (('contiguous', torch.contiguous_format), ('last', torch.channels_last)):
        net = copy.deepcopy(module).to(memory_format=layout)
        x = torch.randn(BATCH, channels, SIDE, SIDE).to(memory_format=layout).requires_grad_()

        def run(net=net, x=x):
            for _ in range(4):
                x.grad = None
                net.zero_grad(set_to_none=True)
                (net(x) * x.detach()).sum().backward()

        calls[key] = run
    return calls


if __name__ == '__main__':
    main()
