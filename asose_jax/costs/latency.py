"""Measures the latency of operations and networks, and keeps the results in a file.

No two measurements agree, so a run measures each latency once: what is in the file is never
measured again, and a resumed run goes on with the numbers that it started with. Latencies of
another machine come in a file of the same form (docs/device_latency.md).
"""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asose_jax.arch.genotype import NetSpec
from asose_jax.costs import flops
from asose_jax.costs.flops import Meter, Part
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError
from asose_jax.train import pmap

logger = logging.getLogger('asose_jax')

_PASSES_PER_CALL = 10
_WARMUP_CALLS = 2  # not evaluated
_MIN_CALLS = 10  # evaluated calls
_MIN_SECONDS = 0.1  # of all calls together
_LISTED = 20  # latencies that a message names

# Name of what an operation is measured beyond: its input with this stride, and nothing else.
NOTHING = 'nothing'


class Operation(NamedTuple):
    """Says which operation is measured.

    Attributes:
      name: From `operations.PRIMITIVES`, or `NOTHING`.
      shape: Of one input image, `(H, W, C)`.
      stride: 1 or 2.
    """

    name: str
    shape: tuple[int, int, int]
    stride: int

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f'{self.name} {"x".join(map(str, self.shape))} stride {self.stride}'

    def program(self, images: int, dtype: str) -> Part:
        """Returns what is measured, for a batch of images."""
        if self.name != NOTHING:
            return flops.operation_program(*self, images, dtype)
        x = jax.ShapeDtypeStruct((images, *self.shape), dtype)
        return Part(lambda key, x: {}, lambda _, x: x[:, :: self.stride, :: self.stride], x)


def network_key(spec: NetSpec) -> str:
    """Returns the name of a whole network in the file."""
    text = json.dumps(spec.to_json(), sort_keys=True)
    return f'network {hashlib.sha256(text.encode()).hexdigest()[:16]}'


def required(spec: NetSpec) -> dict[str, Operation | NetSpec]:
    """Lists what the cost table of a network consists of, by its names in the file.

    Args:
      spec: Description of the network.
    """
    found: dict[str, Operation | NetSpec] = {}

    def operation(name: str, shape: tuple[int, int, int], stride: int) -> float:
        for part in (Operation(name, shape, stride), Operation(NOTHING, shape, stride)):
            found[part.key] = part
        return 0.0

    def network(spec: NetSpec) -> float:
        found[network_key(spec)] = spec
        return 0.0

    flops.cost_table(dataclasses.replace(spec, partial=1), Meter(operation, network))
    return found


class Latencies:
    """Measures what one batch takes at inference on the first local device.

    Args:
      path: Path of the file of latencies. Those that it has are not measured again.
      images: Number of images in a batch.
      dtype: Dtype of activations.

    Raises:
      UserError: The file cannot be read, or was measured on another device or with other settings.
    """

    def __init__(self, path: pathlib.Path, images: int, dtype: str) -> None:
        """Reads the file, if it exists."""
        self._path, self._images, self._dtype = path, images, dtype
        device = jax.local_devices()[0]
        self._conditions = {
            'device': f'{device.platform} {device.device_kind}',
            'images': images,
            'dtype': dtype,
        }
        self._milliseconds = self._read()['milliseconds'] if path.exists() else {}
        self._num_saved = len(self._milliseconds)

    def require(self, spec: NetSpec) -> None:
        """Does nothing: what is not known is measured. See `LatencyTable.require`.

        Args:
          spec: Description of the network that a run starts with.
        """

    def operation(self, name: str, shape: tuple[int, int, int], stride: int) -> float:
        """Returns the milliseconds of an operation, beyond those of a program without it.

        Args:
          name: Name of the operation, from `operations.PRIMITIVES`.
          shape: Shape of one input image, `(H, W, C)`.
          stride: 1 or 2.
        """
        parts = (Operation(each, shape, stride) for each in (name, NOTHING))
        total, overhead = (
            self._once(part.key, lambda part=part: part.program(self._images, self._dtype))
            for part in parts
        )
        return max(0.0, total - overhead)

    def network(self, spec: NetSpec) -> float | None:
        """Returns the milliseconds of a whole derived network, or `None` if they are not known."""
        return self._once(
            network_key(spec), lambda: flops.network_program(spec, self._images, self._dtype)
        )

    def save(self) -> None:
        """Writes the file if there are new latencies, and waits until it is on disk."""
        if len(self._milliseconds) > self._num_saved:
            content = {**self._conditions, 'milliseconds': self._milliseconds}
            content['checksum'] = workdir.checksum(content)
            workdir.write_atomically(self._path, json.dumps(content, indent=2) + '\n')
            self._num_saved = len(self._milliseconds)

    def _once(self, key: str, program: Callable[[], Part]) -> float:
        if key not in self._milliseconds:
            low, self._milliseconds[key], high = measure_milliseconds(program())
            logger.info('latency of %s: %.3f ms', key, self._milliseconds[key])
            if high > 2 * low:
                logger.warning(
                    'latency of %s: half of the calls took %.3f to %.3f ms, which is too wide a '
                    'range: other programs seem to be running. Stop them, delete %s if it exists, '
                    'and start again',
                    *(key, low, high, self._path),
                )
        return self._milliseconds[key]

    def _read(self) -> dict[str, Any]:
        remedy = (
            'Restore the file from a copy, choose another --workdir, or delete the file to measure '
            'again; the run then continues, but not bit for bit as it would have.'
        )
        try:
            content = _parsed(self._path)
        except ValueError as error:
            raise UserError(f'{self._path} {error}. {remedy}') from error
        conditions = {key: content.get(key) for key in self._conditions}
        if conditions != self._conditions:
            raise UserError(
                f'{self._path} was measured with {conditions}, but this run measures with '
                f'{self._conditions}. Continue on the device and with the settings of the file. '
                f'Otherwise: {remedy}'
            )
        return content


class LatencyTable(Latencies):
    """Holds the latencies of another machine, and measures none.

    Args:
      path: Path of the file of latencies in the workdir, a copy of the table.
      images: Number of images in a batch.
      table: The table, as the user names it; `None` if the copy is there.

    Raises:
      UserError: The file cannot be read, or was measured with another number of images.
    """

    def __init__(self, path: pathlib.Path, images: int, table: str | None) -> None:
        """Reads the table, or its copy."""
        self._path, self._images, self._table = path, images, table
        self._conditions = {'images': images}
        if table is None:
            content = self._read()
        else:
            content = self._read_table(pathlib.Path(table).expanduser())
        self._milliseconds = content.pop('milliseconds')
        self._num_saved = 0 if table else len(self._milliseconds)
        self._conditions = content
        logger.info(
            'latencies are not measured but those of %s, for batches of %d',
            *(content.get('device'), images),
        )

    def require(self, spec: NetSpec) -> None:
        """Checks that the table has all latencies of a network.

        Raises:
          UserError: It is of another space, or some are missing.
        """
        remedy = 'Write the operations of this search by --mode=latency, and time them.'
        space = self._conditions.get('space')
        if space != spec.SPACE:
            raise UserError(
                f'cost.table={self._table!r} is of the space {space!r}, but this run is of '
                f'{spec.SPACE!r}. {remedy}'
            )
        missing = [key for key in required(spec) if key not in self._milliseconds]
        if missing:
            more = f' and {len(missing) - _LISTED} more' if len(missing) > _LISTED else ''
            raise UserError(
                f'cost.table={self._table!r} lacks {len(missing)} latencies of this search: '
                f'{", ".join(missing[:_LISTED])}{more}. {remedy}'
            )

    def network(self, spec: NetSpec) -> float | None:
        """Returns the milliseconds of a derived network; `None` if the table does not have it."""
        return self._milliseconds.get(network_key(spec))

    def _once(self, key: str, program: Callable[[], Part]) -> float:
        return self._milliseconds[key]

    def _read_table(self, path: pathlib.Path) -> dict[str, Any]:
        try:
            content = _parsed(path, checked=False)
        except ValueError as error:
            raise UserError(
                f'cost.table={self._table!r} {error}. It must be what measure.py wrote, see '
                'docs/device_latency.md.'
            ) from error
        if content.get('images') != self._images:
            raise UserError(
                f'cost.table={self._table!r} was measured with images={content.get("images")!r}, '
                f'but this run has cost.batch_size={self._images}. Set both alike.'
            )
        return content


def _parsed(path: pathlib.Path, checked: bool = True) -> dict[str, Any]:
    """Reads a file of latencies.

    Args:
      path: Of the file.
      checked: Whether it must have a checksum; one that is there must match in either case.

    Returns:
      Its content without the checksum, with a float in `milliseconds` for each key.

    Raises:
      ValueError: It cannot be read, or is damaged; a predicate whose subject is the file.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        intact = True
        if checked or 'checksum' in content:
            intact = content.pop('checksum') == workdir.checksum(content)
        milliseconds = {key: float(value) for key, value in content['milliseconds'].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'cannot be read ({type(error).__name__}: {error})') from error
    if not intact:
        raise ValueError('is damaged: its checksum does not match its content')
    if not all(math.isfinite(value) and value >= 0 for value in milliseconds.values()):
        raise ValueError('is damaged: it has latencies that are no numbers of at least 0')
    return {**content, 'milliseconds': milliseconds}


def measure_milliseconds(part: Part) -> tuple[float, float, float]:
    """Measures the milliseconds of one pass on the first device.

    A call runs several passes one after another, since the time of starting a program would hide
    that of a small one. Each pass waits for the previous one: a number of its output, times 0, is
    added to the input.

    Returns:
      Lower quartile, median and upper quartile over the calls.
    """

    def passes(variables: Any, x: jax.Array) -> jax.Array:
        def one(_: int, zero: jax.Array) -> jax.Array:
            y = lax.optimization_barrier(part.call(variables, x + zero))
            return 0 * y.reshape(-1)[0]

        return lax.fori_loop(0, _PASSES_PER_CALL, one, jnp.zeros((), x.dtype))

    key = jax.random.key(0)
    # This program runs once: optimizing it would take longer than it saves.
    start = jax.jit(part.start, compiler_options={'xla_backend_optimization_level': 0})
    x = jax.random.normal(key, part.x.shape, jnp.float32).astype(part.x.dtype)
    variables = start(key, x)
    call = pmap.compile_lowered(jax.jit(passes).lower(variables, x))
    seconds = []
    while len(seconds) < _WARMUP_CALLS + _MIN_CALLS or sum(seconds) < _MIN_SECONDS:
        start_time = time.perf_counter()
        jax.block_until_ready(call(variables, x))
        seconds.append(time.perf_counter() - start_time)
    quartiles = np.quantile(seconds[_WARMUP_CALLS:], (0.25, 0.5, 0.75))
    low, median, high = quartiles * 1000 / _PASSES_PER_CALL
    return float(low), float(median), float(high)
