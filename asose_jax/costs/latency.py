"""Measures the latency of operations and networks, and keeps the results in a file.

No two measurements agree, so a run measures each latency once: what is in the file is never
measured again, and a resumed run goes on with the numbers that it started with.
"""

import hashlib
import json
import logging
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from asose_jax.arch.genotype import NetSpec
from asose_jax.costs import flops
from asose_jax.costs.flops import Part
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError
from asose_jax.train import pmap

logger = logging.getLogger('asose_jax')

_PASSES_PER_CALL = 10
_WARMUP_CALLS = 2  # not evaluated
_MIN_CALLS = 10  # evaluated calls
_MIN_SECONDS = 0.1  # of all calls together


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
        self._milliseconds = self._read() if path.exists() else {}
        self._num_saved = len(self._milliseconds)

    def operation(self, name: str, shape: tuple[int, int, int], stride: int) -> float:
        """Returns the milliseconds of an operation, beyond those of a program without it.

        Args:
          name: Name of the operation, from `operations.PRIMITIVES`.
          shape: Shape of one input image, `(H, W, C)`.
          stride: 1 or 2.
        """
        part = flops.operation_program(name, shape, stride, self._images, self._dtype)
        nothing = Part(lambda key, x: {}, lambda _, x: x[:, ::stride, ::stride], part.x)
        total, overhead = (
            self._measure_once(f'{label} {"x".join(map(str, shape))} stride {stride}', program)
            for label, program in ((name, part), ('nothing', nothing))
        )
        return max(0.0, total - overhead)

    def network(self, spec: NetSpec) -> float:
        """Returns the milliseconds of a whole derived network."""
        text = json.dumps(spec.to_json(), sort_keys=True)
        key = f'network {hashlib.sha256(text.encode()).hexdigest()[:16]}'
        return self._measure_once(key, flops.network_program(spec, self._images, self._dtype))

    def save(self) -> None:
        """Writes the file if there are new latencies, and waits until it is on disk."""
        if len(self._milliseconds) > self._num_saved:
            content = {**self._conditions, 'milliseconds': self._milliseconds}
            content['checksum'] = workdir.checksum(content)
            workdir.write_atomically(self._path, json.dumps(content, indent=2) + '\n')
            self._num_saved = len(self._milliseconds)

    def _measure_once(self, key: str, part: Part) -> float:
        if key not in self._milliseconds:
            low, self._milliseconds[key], high = measure_milliseconds(part)
            logger.info('latency of %s: %.3f ms', key, self._milliseconds[key])
            if high > 2 * low:
                logger.warning(
                    'latency of %s: half of the calls took %.3f to %.3f ms, which is too wide a '
                    'range: other programs seem to be running. Stop them, delete %s if it exists, '
                    'and start again',
                    *(key, low, high, self._path),
                )
        return self._milliseconds[key]

    def _read(self) -> dict[str, float]:
        remedy = (
            'Restore the file from a copy, choose another --workdir, or delete the file to measure '
            'again; the run then continues, but not bit for bit as it would have.'
        )
        try:
            content = json.loads(self._path.read_text(encoding='utf-8'))
            intact = content.pop('checksum') == workdir.checksum(content)
            milliseconds = {key: float(value) for key, value in content['milliseconds'].items()}
            intact = intact and all(map(math.isfinite, milliseconds.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{self._path} cannot be read ({type(error).__name__}: {error}). {remedy}'
            ) from error
        if not intact:
            raise UserError(
                f'{self._path} is damaged: its checksum does not match its content. {remedy}'
            )
        conditions = {key: content.get(key) for key in self._conditions}
        if conditions != self._conditions:
            raise UserError(
                f'{self._path} was measured with {conditions}, but this run measures with '
                f'{self._conditions}. Continue on the device and with the settings of the file. '
                f'Otherwise: {remedy}'
            )
        return milliseconds


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
