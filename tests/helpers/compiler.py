"""How tests compile: their programs run for milliseconds, so the compiler is to be quick."""

import os

from asose_jax.train import pmap

_EMITTERS = 'xla_cpu_use_fusion_emitters'  # of jaxlib 0.10; later ones have nothing else
_KNOWN = pmap.jax.__version_info__ < (0, 11)


def be_quick() -> None:
    """Lets XLA optimize nothing, and generate code in half the time; before jax has a backend."""
    flags = [os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=0']
    if _KNOWN:
        flags.append(f'--{_EMITTERS}=false')
    os.environ['XLA_FLAGS'] = ' '.join(flags)
    keep_runs_exact()


def keep_runs_exact() -> None:
    """Lets runs have the code that they have outside of tests.

    The other code rounds with where its arrays lie: what is stopped would not end bit for bit.
    """
    if _KNOWN:
        pmap._OPTIONS['cpu'][_EMITTERS] = True
