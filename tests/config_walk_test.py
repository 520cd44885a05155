"""A walk through the config: wherever it comes, a run comes to its end or is refused."""

import random

import pytest
from helpers.runs import CHEAPEST, NAMES_OF, tiny

from asose_jax.config.consistency import flatten
from asose_jax.pipeline import single_run
from asose_jax.runtime.errors import UserError

STEPS, CHANGES = 12, 3
START = {'model.depth': 1, 'model.reductions': (), 'model.primitives': CHEAPEST}
# Of each field some of what it allows, which does not mean that all of it goes together.
ALLOWED = {
    'seed': (0, 1, 7),
    'batch_size': (32, 62, 64),
    'chunk_steps': (1, 5, 32),
    'data.class_weights': (None, 'balanced'),
    'data.crop_padding': (0, 1),
    'data.cutout': (0, 2, 4),
    'data.flip': (False, True),
    'data.image_size': (None, 6, 8),
    'data.valid_fraction': (0, 0.5, 0.8),
    'model.space': ('chain', 'nasbench201', 'darts'),
    'model.depth': (1, 2, 3),
    'model.reductions': ((), (0,), (1,)),
    'model.primitives': (CHEAPEST, ('none', *CHEAPEST), *NAMES_OF.values()),
    'model.residual': (False, True),
    'model.remat': (False, True),
    'model.dtype': ('float32', 'bfloat16'),
    'weights.clip': (0.0, 5.0),
    'weights.lr_warmup_steps': (0, 2),
    'weights.nesterov': (False, True),
    'weights.weight_decay': (0.0, 3e-4),
    'arch.lr': (None, 3e-4),
    'arch.none_bias': (-2.0, 0.0),
    'arch.weight_decay': (0.0, 1e-3),
    'arch.anchor': (0.0, 1e-3),
    'arch.samples': (1, 2),
    'arch.micro_batches': (1, 2),
    'warmup.epochs': (0, 1),
    'warmup.operations': ('skip', 'uniform'),
    'search.epochs': (0, 1, 2),
    'search.freeze_epochs': (None, 0, 1),
    'search.exact_start': (None, False, True),
    'search.statistics_batches': (0, 3),
    'search.turn_period': (2, 5),
    'search.turns': ('alternate', 'together'),
    'search.arch_data': ('valid', 'train'),
    'search.estimator': ('straight_through', 'gdas', 'reinmax', 'gumbel', 'softmax', 'drnas'),
    'search.second_order': (False, True),
    'search.noise': (None, 'unit', 'temperature'),
    'search.auxiliary_skip': (False, True),
    'search.partial_channels': (1, 2),
    'search.early_stop': (False, True),
    'search.stop_window': (1, 5),
    'search.settle_epochs': (None, 2),
    'search.selection': ('argmax', 'perturbation'),
    'growth.epochs': (0, 4),
    'growth.kinds': ((), ('depth', 'width'), ('branch',), ('auto',)),
    'growth.where': ('score', 'last', 'random'),
    'growth.patience': (1, 5),
    'growth.last_epochs': (1, 5),
    'growth.lead_epochs': (0, 1),
    'optimize.epochs': (0, 1),
    'optimize.lr': (None, 0.1),
    'optimize.label_smoothing': (0.0, 0.1),
    'optimize.mixup': (0.0, 0.2),
    'optimize.cutmix': (0.0, 1.0),
    'optimize.randaugment': (0, 2),
    'optimize.ema': (0.0, 0.9),
    'optimize.drop_path': (0.0, 0.2),
    'optimize.second_head': (0.0, 0.4),
    'cost.kind': (None, 'flops', 'params'),
    'cost.target': (None, 2e4),
    'guard.alpha': (False, True),
    'checkpoint.every_seconds': (0, 10**9),
    'checkpoint.keep': (1, 2),
}


def test_allowed_values_are_of_fields_that_there_are():
    assert set(ALLOWED) <= set(flatten(tiny()))


@pytest.mark.soak
@pytest.mark.parametrize('seed', range(2))
def test_random_walk_through_the_config_runs_or_is_refused_with_a_message(tmp_path, seed):
    """From what was refused, it goes back; anything else that is raised fails."""
    chance, fields, finished = random.Random(seed), START, 0
    for step in range(STEPS):
        names = chance.sample([*ALLOWED], CHANGES)
        changed = {**fields, **{name: chance.choice(ALLOWED[name]) for name in names}}
        workdir = tmp_path / str(step)
        try:
            summary = single_run.run(tiny(**changed), workdir)
        except UserError:
            continue
        fields = changed
        finished += 1
        assert 0 <= summary['test_accuracy'] <= 1
    assert finished > STEPS / 4
