"""A search ends once its choices have settled, and optimize gets the epochs that are left."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks
from helpers.runs import CHEAPEST, assert_resumed_as_the_whole, lines_of, tiny

from asose_jax.arch import genotype
from asose_jax.pipeline import builders, settling
from asose_jax.pipeline.run_history import RunHistory
from asose_jax.train.phases import Phase

SPEC = networks.build(
    'chain', (6, 6, 2), 3, channels=2, depth=2, reductions=(), primitives=CHEAPEST
)
EPOCHS = {Phase.WARMUP: 1, Phase.SEARCH: 8, Phase.GROWTH: 0, Phase.OPTIMIZE: 1}


def _arch(*rows):
    """Alpha of `SPEC`, whose every mixed operation has two candidates."""
    leaves, tree = jax.tree.flatten(networks.shapes(networks.supernet(SPEC))['arch'])
    assert [leaf.shape for leaf in leaves] == [(2,)] * 2
    return jax.tree.unflatten(tree, [jnp.array(row) for row in rows])


def test_margin_is_that_of_the_least_certain_choice():
    arch = _arch((0.0, 0.5), (0.2, 0.0))
    chosen = genotype.most_likely(SPEC, arch)
    np.testing.assert_allclose(settling.smallest_margin(SPEC, arch, chosen), 0.2, rtol=1e-5)


def test_choices_that_a_limit_has_made_do_not_count():
    arch = _arch((0.0, 0.5), (0.2, 0.0))
    cheaper = genotype.Genotype(((CHEAPEST[1],), (CHEAPEST[1],)))
    np.testing.assert_allclose(settling.smallest_margin(SPEC, arch, cheaper), 0.5, rtol=1e-5)
    cheapest = genotype.Genotype(((CHEAPEST[0],), (CHEAPEST[1],)))
    assert settling.smallest_margin(SPEC, arch, cheapest) == np.inf


@pytest.mark.parametrize(
    ('margins', 'changed', 'ends_after'),
    [
        ([0.2] * 8, [], 4),  # alpha rests in the first
        ([0.2, 0.2, 0.2, 0.05, 0.2, 0.2, 0.2, 0.2], [], 7),
        ([0.2] * 8, [2], 4),  # it is the first of those that are alike
        ([0.2] * 8, [3], 5),
        ([0.2] * 8, [2, 4, 6], None),
        ([0.05] * 8, [], None),
        ([0.05] * 5 + [0.2] * 3, [], None),  # not at the end of the last epoch
    ],
)
def test_search_ends_after_three_epochs_with_the_same_sure_choices(
    monkeypatch, margins, changed, ends_after
):
    schedule = networks.make_schedule(EPOCHS, 10, freeze_epochs=1)
    span = schedule.spans[1]
    state, history = types.SimpleNamespace(arch=None), RunHistory(phases=[{}])
    current = types.SimpleNamespace(spec=SPEC, state=state, history=history)
    search = types.SimpleNamespace(settle_epochs=3)
    context = types.SimpleNamespace(
        schedule=schedule,
        config=types.SimpleNamespace(search=search),
    )
    ended = None
    for epoch in range(1, 9):
        margin = margins[epoch - 1]
        monkeypatch.setattr(settling, 'smallest_margin', lambda *_, margin=margin: margin)
        record = {
            'step': span.start + epoch * span.epoch_steps,
        }
        record |= {'arch/changed': [0] * (epoch in changed), 'genotype': []}
        if settling.update(context, current, span, record):
            ended = epoch
            break
    assert ended == ends_after
    if ended:
        step = span.start + ended * span.epoch_steps
        assert history.halted == {'step': step, 'epoch': ended, 'settled_for': 3}
        assert history.phases[-1] == {'epochs': ended, 'steps': ended * span.epoch_steps}


@pytest.mark.slow
def test_run_whose_search_settles_is_resumed_bit_for_bit_and_optimizes_for_longer(tmp_path):
    fields = {
        'model.primitives': CHEAPEST,
        'warmup.epochs': 0,
        'search.epochs': 6,
        'search.freeze_epochs': 0,
        'search.settle_epochs': 2,
        'growth.epochs': 0,
        'arch.init_std': 1.0,  # no choice is close
        'arch.travel': 1e-3,
    }
    assert_resumed_as_the_whole(fields, 11, tmp_path)
    summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
    assert summary['halted'] == {'step': 12, 'epoch': 2, 'settled_for': 2}
    rows = [(row['name'], row['epochs'], row['steps']) for row in summary['phases']]
    assert rows == [('search', 2, 12), ('optimize', 5, 20)]
    assert [line['step'] for line in lines_of(tmp_path / 'whole')] == [6, 12, 16, 20, 24, 28, 32]
    planned = builders.make_schedule(tiny(**fields), 287)
    ended = planned.with_search_until(12, hands_over=True)
    assert ended.weight_updates(ended.steps) == planned.weight_updates(planned.steps)
