"""Each operation forward and backward: python -m benchmarks.ops

In a compiled loop, as in the program, where each round feeds the next. Against the plain form (flax
and lax, as one would write it; outside of a loop, in which XLA's CPU backend takes seconds for some
of its gradients) and against PyTorch in both layouts, where torch is installed. The
limits are a matrix product of 2048 and a sum of two arrays of 64 MB on this machine. FLOPs and
bytes are those that the operation needs, whatever form computes them: a convolution's forward pass
three times; an image read and one written in the forward pass, two read and one written in the
backward pass, for every member of an operation that cannot be merged with the one before. A share
of the limit above 1 means that images stayed in the cache. `compiled` is FLOP/byte by XLA's own
count of its program, in which every read and write counts, also those that stay in the cache.
"""

import copy
import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks import measure

INNER = 4  # gradients in one call
OURS, PLAIN, CONTIGUOUS, LAST = 'ours', 'plain', 'torch contiguous', 'torch channels_last'


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation: `ours` and `plain` are `f(params, x)`; `needs` its members, see `_needs`."""

    ours: Callable[..., Any]
    plain: Callable[..., Any] | None
    params: Any
    needs: tuple[str, ...]
    torch: str


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--channels', type=int, default=16)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--side', type=int, default=32, help='of the images, in pixels')
    parser.add_argument('--only', nargs='+', help='names of operations')
    options = measure.parse(parser, channels=4, batch=8, side=8)
    options.threads = measure.pin(options.threads)

    import jax

    shape = (options.batch, options.side, options.side, options.channels)
    x = jax.random.normal(jax.random.key(0), shape)
    side, length = (256, 2**20) if options.quick else (2048, 2**24)
    gflops, gbytes = limits(side, length, options.repeats)
    print(f'limits: {gflops:.1f} GFLOP/s, {gbytes:.1f} GB/s')
    rows, table = [], {}
    for name, case in _cases(options.channels, x).items():
        if options.only and name not in options.only:
            continue
        calls = {OURS: _timed(case.ours, case.params, x)}
        if case.plain:
            calls[PLAIN] = _timed(case.plain, case.params, x, loop=False)
        calls |= _torch(case.torch, shape, options.threads)
        taken = measure.interleaved(calls, options.repeats)
        taken = {key: [value / INNER for value in values] for key, values in taken.items()}
        middle = measure.medians({name: taken})[name]
        flops, moved = _needs(case.needs, shape)
        compiled = _compiled_cost(case.ours, case.params, x)
        rates = [flops / middle[OURS] / 1e6, moved / middle[OURS] / 1e6]
        share = max(rates[0] / gflops, rates[1] / gbytes)
        ratios = {key: measure.ratio(taken[key], taken[OURS]) for key in calls if key != OURS}
        table[name] = {
            'samples_ms': taken,
            'medians_ms': middle,
            'ratios': ratios,
            'flops': flops,
            'bytes': moved,
            'compiled': compiled,
            'gflops_per_s': rates[0],
            'gbytes_per_s': rates[1],
            'share_of_limit': share,
        }
        against = [ratios.get(key, '-') for key in (PLAIN, CONTIGUOUS, LAST)]
        intensity = compiled['flops'] / compiled['bytes']
        rows.append([name, middle[OURS], *against, *rates, flops / moved, intensity, share])
    header = ['', 'ours, ms', f'x {PLAIN}', f'x {CONTIGUOUS}', f'x {LAST}']
    measure.show([*header, 'GFLOP/s', 'GB/s', 'FLOP/byte', 'compiled', 'of limit'], rows)
    content = {'limits': {'gflops': gflops, 'gbytes': gbytes}, 'operations': table}
    measure.write(options, 'ops', content)
    groups = {
        name: {key: row['medians_ms'][OURS] / value for key, value in row['medians_ms'].items()}
        for name, row in table.items()
    }
    title = f'speed, ours = 1, C={options.channels}'
    measure.bars(options, 'ops', title, groups, 'relative speed')


def reference(kernel, x, dilation=1, groups=1):
    """Convolves as Flax does, with images `[B, H, W, C]` and stride 1."""
    from jax import lax

    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        'SAME',
        rhs_dilation=(dilation, dilation),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )


def _cases(channels, x):
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from asose_jax.config.schema import FIELDS
    from asose_jax.nn import operations
    from asose_jax.nn.batch_norm import Norm
    from asose_jax.nn.cpu import conv, conv_1x1

    def kernel(*size):
        return jax.random.normal(jax.random.key(sum(size)), size) / 10

    norm = Norm('float32', None)
    cases = {}
    for size, dilation in ((3, 1), (5, 1), (7, 1), (3, 2), (5, 2)):
        name = f'depthwise {size}' + (' dilated' if dilation > 1 else '')
        cases[name] = Case(
            lambda k, x, d=dilation: conv.relu_depthwise_conv(x, k, d),
            lambda k, x, d=dilation: reference(k, x, d, channels),
            kernel(size, size, 1, channels),
            (f'taps {size**2}',),
            name,
        )
    cases['1x1'] = Case(
        lambda k, x: conv_1x1.dot_general(x, k),
        lambda k, x: reference(k[None, None], x),
        kernel(channels, channels),
        (f'taps {channels}',),
        '1x1',
    )
    cases['1x7, 7x1'] = Case(
        lambda ks, x: conv.conv(conv.conv(x, ks[0]), ks[1]),
        lambda ks, x: reference(ks[1], reference(ks[0], x)),
        [kernel(1, 7, channels, channels), kernel(7, 1, channels, channels)],
        (f'taps {7 * channels}',) * 2,
        '1x7, 7x1',
    )
    batch_norm = norm(use_running_average=False, name='norm').clone(name=None, parent=None)
    variables = batch_norm.init(jax.random.key(0), x)
    stats = variables['batch_stats']
    normed = lambda p, x: batch_norm.apply(  # noqa: E731
        {'params': p, 'batch_stats': stats}, x, mutable=['batch_stats']
    )[0]
    cases['batch norm'] = Case(normed, None, variables['params'], ('norm',), 'norm')

    pools = {
        'avg_pool_3x3': lambda _, x: nn.avg_pool(x, (3, 3), (1, 1), 'SAME', False),
        'max_pool_3x3': lambda _, x: nn.max_pool(x, (3, 3), (1, 1), 'SAME'),
    }
    for name in FIELDS['model.primitives'].default:
        if name in ('none', 'skip_connect'):
            continue
        made = operations.make(name, channels, norm, parent=None)
        variables = made.init(jax.random.key(1), jnp.zeros_like(x[:1]), False)
        stats, call = (
            variables.get('batch_stats', {}),
            operations.pure_function(name, channels, norm, 1, True, False),
        )
        size = int(name[-1])
        separable = (f'taps {size**2}', f'taps {channels}', 'norm')
        needs = {
            'avg_pool': ('pool',),
            'max_pool': ('pool',),
            'sep_conv': 2 * separable,
            'dil_conv': separable,
            'conv_7x1': (f'taps {7 * channels}',) * 2 + ('norm',),
        }[name[:8]]
        cases[name] = Case(
            lambda p, x, call=call, stats=stats: call(p, stats, x)[0],
            pools.get(name),
            variables.get('params', {}),
            needs,
            name,
        )
    return cases


def _needs(members: tuple[str, ...], shape: tuple[int, ...]) -> tuple[float, float]:
    """(FLOPs, bytes) of one forward and backward pass.

    `taps N`: N products and sums for a number of the output, and the same for both gradients.
    `pool`: nine comparisons or sums, and the same back. `norm`: about 6 forward, 9 backward.
    """
    numbers = 1
    for extent in shape:
        numbers *= extent
    flops = 0.0
    for member in members:
        each = {'pool': 18, 'norm': 15}.get(member) or 6 * int(member.split()[1])
        flops += each * numbers
    return flops, 5.0 * 4 * numbers * len(members)


def _loss(function):
    import jax.numpy as jnp

    def loss(params, x):
        return jnp.vdot(function(params, x), x)  # its gradient by x needs the forward pass as well

    return loss


def _compiled_cost(function, params, x):
    """FLOPs and bytes of one forward and backward pass, as XLA counts those of its program."""
    import jax

    call = jax.jit(jax.grad(_loss(function), (0, 1))).lower(params, x).compile()
    counted = call.cost_analysis()
    return {'flops': counted['flops'], 'bytes': counted['bytes accessed']}


def _timed(function, params, x, loop=True):
    """Some gradients, each fed by the one before: in one compiled call, or in a call each."""
    import jax
    from jax import lax

    loss = _loss(function)

    def body(_, carry):
        moved = jax.grad(loss, (0, 1))(*carry)
        return jax.tree.map(lambda a, b: a - 1e-6 * b, carry, moved)

    def once(count, carry):
        return lax.fori_loop(0, count, body, carry) if loop else body(0, carry)

    times, inside = (1, INNER) if loop else (INNER, 1)
    call = jax.jit(once, static_argnums=0).lower(inside, (params, x)).compile()

    def run():
        carry = (params, x)
        for _ in range(times):
            carry = call(carry)
        jax.block_until_ready(carry)

    return run


def limits(side: int, length: int, rounds: int) -> tuple[float, float]:
    """GFLOP/s of a matrix product and GB/s of a sum, the best of some rounds."""
    import jax
    import jax.numpy as jnp

    a, v, w = jnp.ones((side, side)), jnp.ones(length), jnp.zeros(length)
    product, total = jax.jit(lambda a: a @ a), jax.jit(lambda v, w: 2 * v + w)
    taken = measure.interleaved(
        {
            'product': lambda: jax.block_until_ready(product(a)),
            'sum': lambda: jax.block_until_ready(total(v, w)),
        },
        max(3, rounds),
    )
    return 2 * side**3 / min(taken['product']) / 1e6, 3 * v.nbytes / min(taken['sum']) / 1e6


def _torch(name, shape, threads):
    """Calls of the same operation, eager: forward, then backward from a fixed gradient."""
    if importlib.util.find_spec('torch') is None:
        return {}
    import torch
    from torch import nn

    from benchmarks import theirs

    torch.set_num_threads(threads)
    batch, height, width, channels = shape

    def thin(rows, columns):
        padding = (rows // 2, columns // 2)
        return nn.Conv2d(channels, channels, (rows, columns), padding=padding, bias=False)

    if name.startswith('depthwise'):
        dilation = 2 if name.endswith('dilated') else 1
        module = theirs.depthwise(channels, int(name.split()[1]), dilation)
    elif name == '1x1':
        module = thin(1, 1)
    elif name == '1x7, 7x1':
        module = nn.Sequential(thin(1, 7), thin(7, 1))
    elif name == 'norm':
        module = nn.BatchNorm2d(channels)
    else:
        module = theirs.operation(name, channels)
    calls = {}
    for key, layout in ((CONTIGUOUS, torch.contiguous_format), (LAST, torch.channels_last)):
        net = copy.deepcopy(module).to(memory_format=layout)
        x, g = (
            torch.randn(batch, channels, height, width).to(memory_format=layout) for _ in range(2)
        )
        x.requires_grad_()

        def run(net=net, x=x, g=g):
            for _ in range(INNER):
                x.grad = None
                net.zero_grad(set_to_none=True)
                net(x).backward(g)

        calls[key] = run
    return calls


if __name__ == '__main__':
    main()
