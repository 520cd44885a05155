"""ASO-SE on images: warmup, search, growth, optimize.

    python main.py --config=configs/search.py --workdir=DIR             CIFAR-10 through TFDS
    python main.py --config=configs/search.py:digits --workdir=DIR      scikit-learn's digits
    python main.py --config=configs/search.py:folder --config.data.dir=PICTURES --workdir=DIR
    python main.py --config=configs/search.py:nasbench201 --workdir=DIR   NAS-Bench-201's cell
    python main.py --config=configs/search.py:nasbench201_small --workdir=DIR   in minutes on a CPU
    python main.py --config=configs/search.py:darts --workdir=DIR       the cells of DARTS
    python main.py --config=configs/search.py:seed --workdir=DIR       ASO-SE as first described

Any field can be set on the command line: --config.search.epochs=2 --config.model.channels=16.
docs/config.md lists the fields; asose_jax/config/presets.py has the values of each preset. The
preset cifar10 is made for one accelerator; on two CPU cores take 16 channels and a few epochs.
"""

from asose_jax.config.presets import PRESETS, get_config

__all__ = ['PRESETS', 'get_config']
