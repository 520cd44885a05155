"""Measured milliseconds of operations and networks, and the file that keeps them.

No two measurements agree, so a run measures once: what is in the file is never measured again, and
a run that was stopped goes on with the numbers that it began with.
"""

import hashlib
import json
import logging
import math
import pathlib
import time

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

_PASSES = 10  # in one call
_WARM, _RUNS, _SECONDS = 2, 10, 0.1  # calls first, at least so many, and for so long


class Latencies:
    """What one batch takes on the first device of this machine, at inference.

    Args:
      path: of the file; what it holds need not be measured.
      images: in a batch.
      dtype: of activations.

    Raises:
      UserError: the file cannot be read, or was measured elsewhere or with other settings.
    """

    def __init__(self, path: pathlib.Path, images: int, dtype: str):
        self._path, self._images, self._dtype = path, images, dtype
        device = jax.local_devices()[0]
        self._where = {
            'device': f'{device.platform} {device.device_kind}',
            'images': images,
            'dtype': dtype,
        }
        self._known = self._read() if path.exists() else {}
        self._saved = len(self._known)

    def operation(self, name: str, shape: tuple[int, int, int], stride: int) -> float:
        """Milliseconds of an operation, for inputs of `shape`, `(H, W, C)`."""
        part = flops.operation(name, shape, stride, self._images, self._dtype)
        nothing = Part(lambda key, x: {}, lambda _, x: x[:, ::stride, ::stride], part.x)
        taken, idle = (
            self._of(f'{what} {"x".join(map(str, shape))} stride {stride}', each)
            for what, each in ((name, part), ('nothing', nothing))
        )
        return max(0.0, taken - idle)

    def network(self, spec: NetSpec) -> float:
        """Milliseconds of a derived network."""
        text = json.dumps(spec.to_json(), sort_keys=True)
        key = f'network {hashlib.sha256(text.encode()).hexdigest()[:16]}'
        return self._of(key, flops.network(spec, self._images, self._dtype))

    def save(self) -> None:
        """Writes the file, if there is anything new; waits until the disk has it."""
        if len(self._known) > self._saved:
            content = {**self._where, 'milliseconds': self._known}
            content['checksum'] = workdir.checksum(content)
            workdir.write_atomically(self._path, json.dumps(content, indent=2) + '\n')
            self._saved = len(self._known)

    def _of(self, key, part):
        if key not in self._known:
            low, self._known[key], high = measured(part)
            logger.info('latency of %s: %.3f ms', key, self._known[key])
            if high > 2 * low:
                logger.warning(
                    'latency of %s: %.3f to %.3f ms, so something else is at work on this machine; '
                    'let it rest, delete %s if it is there, and start again',
                    *(key, low, high, self._path),
                )
        return self._known[key]

    def _read(self):
        way_out = (
            'Put a copy back, choose another --workdir, or delete the file to measure anew: the '
            'run then goes on, but not bit for bit as it would have.'
        )
        try:
            content = json.loads(self._path.read_text(encoding='utf-8'))
            intact = content.pop('checksum') == workdir.checksum(content)
            known = {key: float(value) for key, value in content['milliseconds'].items()}
            whole = intact and all(map(math.isfinite, known.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{self._path} cannot be read ({type(error).__name__}: {error}). {way_out}'
            ) from error
        if not whole:
            raise UserError(f'{self._path} is damaged: its checksum is another one. {way_out}')
        theirs = {key: content.get(key) for key in self._where}
        if theirs != self._where:
            raise UserError(
                f'{self._path} was measured with {theirs}; here it would be {self._where}. Go on '
                f'where it was measured. Or: {way_out}'
            )
        return known


def measured(part: Part) -> tuple[float, float, float]:
    """Milliseconds of a pass on the first device: quartiles of some calls with many passes each.

    One after another, since what starting a program takes would hide what small ones take. A pass
    waits for the one before: its input has a number of that one's output added, times 0.
    """

    def passes(variables, x):
        def one(_, before):
            y = lax.optimization_barrier(part.call(variables, x + before))
            return 0 * y.reshape(-1)[0]

        return lax.fori_loop(0, _PASSES, one, jnp.zeros((), x.dtype))

    key = jax.random.key(0)
    # Runs once: time spent on optimizing this program would not come back.
    start = jax.jit(part.start, compiler_options={'xla_backend_optimization_level': 0})
    x = jax.random.normal(key, part.x.shape, jnp.float32).astype(part.x.dtype)
    variables = start(key, x)
    call = pmap.optimized(jax.jit(passes).lower(variables, x))
    taken = []
    while len(taken) < _WARM + _RUNS or sum(taken) < _SECONDS:
        begun = time.perf_counter()
        jax.block_until_ready(call(variables, x))
        taken.append(time.perf_counter() - begun)
    low, median, high = np.quantile(taken[_WARM:], (0.25, 0.5, 0.75)) * 1000 / _PASSES
    return float(low), float(median), float(high)
