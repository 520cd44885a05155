"""ASO-SE: differentiable architecture search with alternating stable optimization.

config = configs.search.get_config('digits')
result = asose_jax.search(config, workdir)   # what summary.json holds
model = asose_jax.load(workdir)
model.predict(images)                        # probabilities
"""

from asose_jax.errors import Stopped, UserError
from asose_jax.genotype import Genotype
from asose_jax.many import search
from asose_jax.trained import Trained, evaluate, export, load

__all__ = [
    'Genotype',
    'Stopped',
    'Trained',
    'UserError',
    'evaluate',
    'export',
    'load',
    'search',
]
