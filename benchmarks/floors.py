"""Counts what a step asks of a GPU or TPU, and its least time: python -m benchmarks.floors

It needs neither: the search program of each preset is lowered for CUDA on the CPU and read. No step
is run and nothing is measured. Of a draw, it counts the mean over the branches, as if all
candidates were equally likely.

A kernel is what XLA's GPU backend cannot merge with its neighbours: a convolution, a product, a
window, a gather or scatter, and reductions of one shape in one computation together; also the
elementwise computation that writes an input of a convolution. It moves its inputs and outputs once.
All other elementwise work counts as merged into these, so kernels and bytes are too few rather than
too many. The state is read and written once.
"""

import dataclasses
import functools
import math
from typing import Any

from benchmarks import measure

PRESETS = ('digits', 'cifar10', 'nasbench201', 'nasbench201_small', 'darts')
TURNS = ('weight step', 'alpha step')  # the branches of a search step, in their order
# Bytes a second: NVIDIA's data sheet of the H100 SXM, Google's page on v5e.
BANDWIDTH = {'H100 SXM': 3.35e12, 'TPU v5e': 8.19e11}
# Seconds on a GPU, assumed: of a kernel's launch, and of a conditional, for which the host waits.
LAUNCH, CONDITIONAL = 3e-6, (8e-6, 20e-6)
_ALONE = {'convolution', 'dot_general', 'reduce_window', 'select_and_scatter'}
_ALONE |= {'gather', 'scatter', 'sort'}
# Values that no kernel has to write for those that read them.
_FREE = {'constant', 'iota', 'broadcast_in_dim', 'reshape', 'case', 'while', 'call', 'all_reduce'}


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts what one step executes: conditionals, loops, kernels, and the bytes that it moves."""

    conditionals: float = 0.0
    loops: float = 0.0
    kernels: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: 'Count') -> 'Count':
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Count(*(a + b for a, b in pairs))

    def times(self, factor: float) -> 'Count':
        return Count(*(factor * number for number in dataclasses.astuple(self)))

    def floors_ms(self) -> dict[str, Any]:
        """Milliseconds that the step needs at least: for its bytes, and for launches on a GPU."""
        by_bytes = {name: 1e3 * self.bytes / speed for name, speed in BANDWIDTH.items()}
        launches = [
            1e3 * (LAUNCH * self.kernels + each * self.conditionals) for each in CONDITIONAL
        ]
        return {**by_bytes, 'launches': launches}


class Reader:
    """Reads a lowered program.

    Args:
      lowered: the program, for one platform.
      turn: number of the branch to count of the outermost conditional; `None`: the mean of all.
    """

    def __init__(self, lowered: Any, turn: int | None = None):
        self._module = lowered.compiler_ir('stablehlo')  # holds what is read
        operations = self._module.body.operations
        functions = [op for op in operations if op.operation.name == 'func.func']
        self._functions = {_name_of(op): op for op in functions}
        self._known: dict[str, Count] = {}
        self._turn = turn

    def count(self) -> Count:
        """Counts what one call executes; the body of a loop counts once."""
        return self._block(self._functions['main'])

    def _block(self, holder: Any, region: int = 0) -> Count:
        total, written, reduced = Count(), set(), set()
        for op in holder.regions[region].blocks[0].operations:
            total += self._operation(op, written, reduced)
        return total

    def _operation(self, op: Any, written: set[Any], reduced: set[Any]) -> Count:
        kind = op.operation.name.split('.')[-1]
        if kind == 'call':
            callee = str(op.attributes['callee']).strip('@"')
            if callee not in self._known:
                self._known[callee] = self._block(self._functions[callee])
            return self._known[callee]
        if kind == 'case':
            return self._case(op)
        if kind == 'while':
            return Count(loops=1) + self._block(op, 1)
        if kind == 'reduce':  # those of one shape are one kernel
            shape = str(op.operands[0].type)
            is_new = shape not in reduced
            reduced.add(shape)
            return Count(kernels=1, bytes=_bytes(op.operands[0])) if is_new else Count()
        if kind not in _ALONE:
            inner = range(len(op.regions))
            return sum((self._block(op, region) for region in inner), Count())
        moved = sum(map(_bytes, [*op.operands, *op.results]))
        total = Count(kernels=1, bytes=moved)
        if kind == 'convolution':
            for value in op.operands:
                if value not in written and _needs_writing(value):
                    written.add(value)
                    total += Count(kernels=1, bytes=2 * _bytes(value))
        return total

    def _case(self, op: Any) -> Count:
        branches = range(len(op.regions))
        if len(branches) == 1:  # the platform was chosen when the program was lowered
            return self._block(op)
        if all(map(_holds_constants, op.regions)):  # XLA makes a selection of it
            return Count()
        if self._turn is not None:
            chosen, self._turn = self._turn, None
            return Count(conditionals=1) + self._block(op, chosen)
        parts = sum((self._block(op, branch) for branch in branches), Count())
        return Count(conditionals=1) + parts.times(1 / len(branches))


def _name_of(function):
    return str(function.attributes['sym_name']).strip('"')


def _holds_constants(region):
    kinds = {op.operation.name.split('.')[-1] for op in region.blocks[0].operations}
    return kinds <= {'constant', 'return'}


def _producer(value):
    """The kind of operation that computes a value; `None` for an argument."""
    operation = getattr(value.owner, 'name', None)
    return operation and operation.split('.')[-1]


def _needs_writing(value):
    producer = _producer(value)
    return producer is not None and producer not in _ALONE | _FREE


def _bytes(value):
    """Bytes of an array, 0 of anything else."""
    shape = getattr(value.type, 'shape', ())
    if not shape:
        return 0
    bits = ''.join(filter(str.isdigit, str(value.type.element_type).split('.')[-1]))
    return math.prod(shape) * max(8, int(bits or 8)) // 8


def lowered_search(preset: str, branching: bool = False, **fields: Any) -> tuple[Any, int]:
    """Lowers the search program of a preset for CUDA, without its data.

    Args:
      preset: its name.
      branching: whether alpha steps have the form for CPUs, which branches at each candidate.
      **fields: of the config, on top.

    Returns:
      The program, and the bytes of its state.
    """
    import jax
    import numpy as np

    from asose_jax.config import presets
    from asose_jax.data import batches
    from asose_jax.data.dataset import Dataset, ImageSet
    from asose_jax.pipeline import builders, initialization, run_context
    from asose_jax.train import optimizer, pmap, state, steps
    from asose_jax.train.phases import Phase

    config = presets.get_config(preset)
    config.update_from_flattened_dict(fields)
    count, side = config.batch_size, config.data.image_size or 32
    shape = (8, 8, 1) if config.data.name == 'digits' else (side, side, 3)
    images = ImageSet.from_arrays(np.zeros((count, *shape), 'u1'), np.zeros(count, 'i4'))
    every, classes = np.arange(count), tuple('0123456789')
    channels = np.ones(shape[-1], 'f4')
    data = Dataset(images, every, every, every, classes, shape, channels, channels)
    schedule = builders.make_schedule(config, 45_000)
    context = run_context.RunContext(
        config=config,
        data=data,
        schedule=schedule,
        tx=optimizer.make_optimizer(config, schedule),
        shared=pmap.shared_arrays(data, jax.random.key(0)),
        platform='cpu' if branching else 'gpu',
        is_primary_host=True,
        **dict.fromkeys(('workdir', 'console', 'checkpoints', 'interrupt', 'table')),
    )
    step_config = context.step_config(initialization.find_origin(config, data, schedule).spec)
    like = state.abstract_packed(step_config.model, context.tx, pmap.replicated_sharding())
    chunk = batches.stack_batches([{'index': np.zeros(count, 'i4')}], 1, jax.device_count())
    function = functools.partial(steps.train_steps, step_config, Phase.SEARCH)
    mapped = jax.jit(pmap.mapped(function, out_axes=(None, 0)))
    lowered = mapped.trace(like, chunk, context.shared).lower(lowering_platforms=('cuda',))
    return lowered, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


def counts(preset: str, branching: bool = False, **fields: Any) -> dict[str, Count]:
    """Counts a step of each turn, see `lowered_search`; its conditional of the turn counts too."""
    lowered, state_bytes = lowered_search(preset, branching, **fields)
    state = Count(bytes=2 * state_bytes)
    return {name: Reader(lowered, turn).count() + state for turn, name in enumerate(TURNS)}


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument('--presets', nargs='+', default=PRESETS)
    options = measure.parse(parser, presets=['digits'])
    fields = {}
    if options.quick:
        fields = {'model.primitives': ('none', 'skip_connect', 'max_pool_3x3')}
        fields |= {'model.channels': 8, 'model.depth': 1, 'model.reductions': ()}
    header = ['', 'conditionals, branching', 'conditionals', 'loops', 'kernels', 'MB']
    header += [*(f'{name}, ms' for name in BANDWIDTH), 'launches, ms']
    content = {}
    for preset in options.presets:
        now, before = (counts(preset, branching, **fields) for branching in (False, True))
        rows = []
        for turn, count in now.items():
            earlier, floors = before[turn].conditionals, count.floors_ms()
            row = {'now': count, 'conditionals_branching': earlier, 'floors_ms': floors}
            content[f'{preset}, {turn}'] = row
            numbers = (earlier, count.conditionals, count.loops, count.kernels, count.bytes / 1e6)
            low, high = floors['launches']
            cells = [f'{number:.0f}' for number in numbers]
            cells += [f'{floors[name]:.2f}' for name in BANDWIDTH]
            rows.append([f'{preset}, {turn}', *cells, f'{low:.1f} to {high:.1f}'])
        measure.show(header, rows)
    measure.write(options, 'floors', {'steps': content})


if __name__ == '__main__':
    main()
