"""Writes a PyTorch module and its weights, and compares them with the network."""

import importlib
import pathlib
import runpy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from asose_jax.exports import comparison
from asose_jax.exports.torch_module import Module
from asose_jax.runtime import workdir

_DESCRIPTION = """A network that was searched and trained with asose_jax, in plain PyTorch.

    network = load()  # the weights are in {weights}, beside this file
    logits = network(torch.from_numpy(images))
    probabilities = logits.softmax(-1)

Images are uint8 or float [N, H, W, C] with pixel values 0 to 255: channels last, as in NumPy and
Pillow, for any N. The network normalises them itself: (images - MEAN) / STD by channel.
"""


def write(
    path: pathlib.Path,
    module: Module,
    constants: Mapping[str, Any],
    logits: Callable[[np.ndarray], Any],
) -> None:
    """Writes the Python file and, beside it, its weights; compares them with the network.

    Args:
      path: of the Python file.
      module: of a whole network, see `translation.add_network`.
      constants: plain values that the file holds, by their names in it.
      logits: maps images uint8 `[N, H, W, C]` to the logits of the network, `[N, classes]`.

    Raises:
      OSError: a file cannot be written; it names the path.
    """
    from safetensors.numpy import save  # imported here: only this export needs it

    weights = path.with_suffix('.safetensors')
    with workdir.naming(weights):
        weights.write_bytes(save(module.weights(), {'format': 'pt'}))
    source = module.source(_DESCRIPTION.format(weights=weights.name), constants)
    workdir.write_atomically(path, source)
    comparison.compare(path, 'torch', module.image_shape, logits, lambda: _runner(path))


def _runner(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that maps images to the logits of a file, on the CPU."""
    torch: Any = importlib.import_module('torch')
    network = runpy.run_path(str(path))['load']()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    return run
