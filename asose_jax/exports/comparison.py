"""Compares what was exported with the network."""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asose_jax.runtime import packages

logger = logging.getLogger('asose_jax')

_IMAGES = 16
# Rounding leaves about 1e-6 of the largest logit; a wrong layer leaves far more than this.
_TOLERANCE = 1e-4


def compare(
    path: pathlib.Path,
    package: str,
    shape: Sequence[int],
    logits: Callable[[np.ndarray], Any],
    runner: Callable[[], Callable[[np.ndarray], np.ndarray]],
) -> None:
    """Runs a file on random images if its runtime is installed, and logs the error of its logits.

    Args:
      path: of the file.
      package: that runs it.
      shape: of an image, `(H, W, C)`.
      logits: maps images uint8 `[N, H, W, C]` to the logits of the network, `[N, classes]`.
      runner: loads the file and returns a function that does the same; it may need the package.
    """
    if not packages.is_installed(package):
        logger.warning(
            '%s was not run, since %s is not installed: pip install %s', path, package, package
        )
        return
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, *shape), dtype=np.uint8)
    expected, found = np.asarray(logits(images)), runner()(images)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    logger.info(
        '%s: on %d random images, no logit differs from the network by more than %.1e of the '
        'largest',
        path.name,
        len(images),
        difference,
    )
    if not difference <= _TOLERANCE:  # also where it is not a number
        logger.warning(
            '%s computes something else than the network. Do not use it; please report this.', path
        )
