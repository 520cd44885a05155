"""Writes a network as StableHLO, which `jax.export` runs on any of its platforms."""

import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import export as jax_export

from asose_jax.runtime import workdir

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(
    path: pathlib.Path,
    probabilities: Callable[[jax.Array], jax.Array],
    image_shape: tuple[int, int, int],
) -> None:
    """Writes the network for images uint8 `[N, H, W, C]`, for any N.

    Args:
      path: of the file.
      probabilities: maps images to probabilities float32 `[N, classes]`; JAX traces it.
      image_shape: `(H, W, C)`.

    Raises:
      OSError: it cannot be written; it names the path.
    """
    (count,) = jax_export.symbolic_shape('n')
    images = jax.ShapeDtypeStruct((count, *image_shape), np.uint8)
    exported = jax_export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)
    with workdir.naming(path):
        path.write_bytes(exported.serialize())


def save_parameters(path: pathlib.Path, variables: Mapping[str, Any]) -> None:
    """Saves an Orbax checkpoint of the variables.

    Raises:
      OSError: it cannot be written; it names the path.
    """
    try:
        with workdir.naming(path), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, variables, force=True)
    except ValueError as error:  # tensorstore tells of the disk in words
        number = re.search(r'OS error (\d+)', str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
