"""The crisis: settings under which accuracy is said to fall when the search begins, and its cures.

    python main.py --config=configs/crisis.py --workdir=DIR                  no cure
    python main.py --config=configs/crisis.py:only_bias --workdir=DIR        one cure
    python main.py --config=configs/crisis.py:without_bias --workdir=DIR     all cures but one
    python main.py --config=configs/crisis.py:ancestor --workdir=DIR         no cure, see below
    python main.py --config=configs/crisis.py:cured_ancestor --workdir=DIR   all cures, likewise

All cures together are configs/search.py:seed. The last two are like the program that this method
comes from in two things more, which no cure touches: its blocks have no residual, so that `none`
cuts the network, and a hard draw passes no gradient to alpha, which rests. (They do not grow.)
Any field can be set on the command line, as with configs/search.py.
"""

import ml_collections

from configs import search

# What each cure changes: the values of before; those of after are the preset's.
CURES = {
    'temperature': {'search.tau_start': 5.0, 'search.tau_rate': 0.95},
    'transition': {'search.transition_noise': 0.0},
    'turns': {'search.turns': 'together', 'search.turn_period': 2},
    'guard': {'guard.alpha': False},
    'bias': {
        f'{group}.{operation}_bias': 0.0
        for group in ('arch', 'growth')
        for operation in ('none', 'skip')
    },
}
ALL = frozenset(CURES)
NAMES = {
    'broken': frozenset(),
    **{f'only_{name}': frozenset({name}) for name in CURES},
    **{f'without_{name}': ALL - {name} for name in CURES},
    'ancestor': frozenset(),
    'cured_ancestor': ALL,
}
AT_REST = {'arch.lr': 1e-30, 'arch.lr_end': 0.0}  # moves no float32


def get_config(name: str = 'broken') -> ml_collections.ConfigDict:
    """The config of a run with these cures."""
    if name not in NAMES:
        raise ValueError(f'unknown name {name!r}; there are {", ".join(NAMES)}')
    config = search.get_config('seed')
    for cure in ALL - NAMES[name]:
        config.update_from_flattened_dict(CURES[cure])
    if name.endswith('ancestor'):
        config.update_from_flattened_dict(AT_REST)
        config.model.residual = False
        config.growth.kinds = ()
    return config
