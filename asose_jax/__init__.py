"""ASO-SE: differentiable architecture search with alternating stable optimization.

Example:
  from asose_jax.config import presets
  config = presets.get_config('digits')
  summary = asose_jax.search(config, workdir)  # as in summary.json
  model = asose_jax.load(workdir)
  model.predict(images)  # probabilities of the classes
  asose_jax.predict(workdir, 'PICTURES')  # the path of a table of classes
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asose_jax.arch.genotype import Genotype
    from asose_jax.inference import Trained, evaluate, export, load, predict
    from asose_jax.runtime.errors import Stopped, UserError
    from asose_jax.sweep.runner import search

__all__ = [
    'Genotype',
    'Stopped',
    'Trained',
    'UserError',
    'evaluate',
    'export',
    'load',
    'predict',
    'search',
]

_MODULES = {
    'Genotype': 'arch.genotype',
    'Stopped': 'runtime.errors',
    'UserError': 'runtime.errors',
    'search': 'sweep.runner',
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import asose_jax` alone does not load jax."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from asose_jax.runtime import log  # imported here: it loads rich

    with log.root_unchanged():
        module = importlib.import_module(f'{__name__}.{_MODULES.get(name, "inference")}')
    return getattr(module, name)
