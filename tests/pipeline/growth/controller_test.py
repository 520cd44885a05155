"""When a network grows: at plateaus, between steps, and the same way after any stop."""

import itertools
import json
import logging
import types

import pytest
from helpers.runs import (
    EVERY_STEP,
    WHOLE,
    Compiled,
    assert_same_end,
    final_state,
    growing_config,
    make_whole,
    run_with_stops,
    stop_after,
    stop_before_saving,
    tiny,
)

from asose_jax.config import retrain
from asose_jax.config.consistency import validate
from asose_jax.metrics import run_record
from asose_jax.pipeline import builders, single_run
from asose_jax.pipeline.growth import controller, transforms
from asose_jax.pipeline.growth.scoring import Candidate, Limits
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.report import page
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import registry
from asose_jax.train import state
from asose_jax.train.phases import Phase


@pytest.fixture(scope='session')
def grown(shared):
    """A run that grew in depth and in width, and was never stopped; and what it compiled."""
    place = shared('whole', make_whole)
    summary = json.loads((place / 'run' / 'summary.json').read_text())
    return place / 'run', summary, json.loads((place / 'programs.json').read_text())


pytestmark = pytest.mark.xdist_group('growing')  # they share programs


@pytest.fixture(scope='module')
def programs():
    """Shares compiled programs among the runs of this module."""
    return Compiled()


@pytest.fixture
def compiled(monkeypatch, programs):
    """Each program is compiled for the first run that needs it."""
    programs.install(monkeypatch)


def test_programs_of_earlier_networks_are_let_go(grown):
    _, _, programs = grown
    assert len(programs['compiled']) == 5  # warmup, search, two growths, optimize
    assert programs['alive'] == [4]


@pytest.mark.parametrize(
    ('accuracies', 'growths'),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], []),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], [3, 6]),
        ([0.5, 0.51, 0.515, 0.519], [3]),  # less than two points better is not better
        ([0.5, 0.51, 0.53, 0.53, 0.54, 0.55], [5]),  # small steps add up
        ([0.5, 0.4, 0.4, 0.4, 0.53, 0.5], [3]),
    ],
)
def test_accuracy_that_is_not_better_for_patience_evaluations_is_a_plateau(accuracies, growths):
    best, waited, told = None, 0, []
    for number, accuracy in enumerate(accuracies):
        best, waited, reached = controller.plateau(best, waited, accuracy, 0.02, 3)
        if reached:
            told.append(number)
    assert told == growths


def test_run_grows_in_turn_and_tells_it_in_metrics_and_summary(grown):
    workdir, summary, _ = grown
    events = summary['growth']
    assert [(event['step'], event['kind']) for event in events] == [(34, 'depth'), (46, 'width')]
    for event in events:
        assert event['max_abs_logit_change'] <= 1e-5
        assert event['valid_accuracy_after'] == event['valid_accuracy_before']
        assert event['params_after'] > event['params_before']
        assert event['stall_seconds'] > 0
        assert event['score'] > 0
    assert events[1]['params_before'] == events[0]['params_after']
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [e for line in lines for e in line['growth']] == events
    params = {line['step']: line['params'] for line in lines}
    assert params[34] == events[0]['params_before']
    assert params[40] == events[0]['params_after']
    network = json.loads((workdir / 'genotype.json').read_text())['network']
    spec = registry.spec_from_json(network)
    assert len(spec.blocks) == 2
    assert summary['train_flops'] == lines[-1]['train_flops'] > lines[-2]['train_flops'] > 0
    assert sum(transforms.stage_channels(spec)) > 8


def test_page_has_the_networks_before_and_after_each_growth(grown):
    told = run_record.read(grown[0])
    deeper, wider = told.growths
    where = deeper.event['where']
    assert len(deeper.after.spec.blocks) == len(deeper.before.spec.blocks) + 1
    assert deeper.after.factors[where] in ([0.0], [None])  # the new block does nothing yet
    assert [len(row) for row in deeper.after.probabilities] == [3, 3]
    assert transforms.stage_channels(wider.after.spec) != transforms.stage_channels(
        wider.before.spec
    )
    assert wider.after.chosen == wider.before.chosen
    text = (grown[0] / page.NAME).read_text(encoding='utf-8')
    assert f'G1: a new block {where}' in text
    for title in ('before: 1 blocks', 'after: 2 blocks', 'before: 2 blocks'):
        assert title in text


def test_each_grown_network_is_compiled_once(grown):
    compiled = grown[2]['compiled']
    assert [phase for _, phase in compiled] == [
        Phase.WARMUP,
        Phase.SEARCH,
        Phase.GROWTH,
        Phase.GROWTH,
        Phase.OPTIMIZE,
    ]
    assert len({json.dumps(spec) for spec, _ in compiled}) == 4


def test_run_stopped_around_its_growths_and_resumed_ends_bit_for_bit_as_the_whole_one(grown):
    """Decided and trained on; between growth and checkpoint; grown twice and one step."""
    assert_same_end(grown[0].parent / 'stopped', grown[0], tiny(**WHOLE))


@pytest.mark.soak
def test_growth_of_several_blocks_stopped_again_and_again_ends_bit_for_bit_as_the_whole_one(
    tmp_path,
):
    """A call is a step, and each leaves a checkpoint; stopped also wherever phases meet."""
    config = growing_config(**EVERY_STEP)
    stops = [(stop_after, step) for step in (4, 9, 16, 28, 31)]
    stops += [(stop_before_saving, 34), (stop_after, 34), (stop_after, 47), (stop_after, 52)]
    with pytest.MonkeyPatch.context() as patch:
        Compiled().install(patch)
        run_with_stops(config, tmp_path / 'stopped', stops)
    single_run.run(growing_config(), tmp_path / 'whole')
    assert_same_end(tmp_path / 'stopped', tmp_path / 'whole', config)


def test_optimizer_counts_and_totals_go_on_through_growth(grown):
    """52 + 4 steps, no matter through how many networks."""
    config = tiny(**WHOLE)
    step, _, final = final_state(grown[0], config)
    schedule = builders.make_schedule(config, 287)
    assert step == int(final.step) == schedule.steps
    counts = {int(leaf) for leaf in _counts(final.opt_state)}
    assert counts == {schedule.weight_updates(step), schedule.alpha_updates(step)}


def _counts(tree):
    return [leaf for leaf in state.jax.tree.leaves(tree) if leaf.dtype == 'int32']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        pytest.param({'growth.kinds': ()}, None, id='no-kinds'),
        pytest.param({'growth.last_epochs': 5}, None, id='last-epochs'),
        pytest.param(
            {'growth.max_depth': 1, 'growth.max_channels': 7},
            'would make 2, over growth.max_depth=1',
            id='limits',
        ),
    ],
)
@pytest.mark.usefixtures('compiled')
def test_run_without_room_for_growth_does_not_grow(tmp_path, caplog, changes, told):
    with caplog.at_level(logging.INFO, 'asose_jax'):
        summary = single_run.run(tiny(**{**WHOLE, **changes}), tmp_path)
    assert summary['growth'] == []
    refusals = [r.getMessage() for r in caplog.records if 'not possible' in r.getMessage()]
    if told is None:
        assert not refusals
    else:
        assert any(told in line for line in refusals)
        assert any('over growth.max_channels=7' in line for line in refusals)


@pytest.mark.slow
def test_control_trains_the_same_network_for_as_many_flops(grown, tmp_path):
    workdir, summary, _ = grown
    config = tiny(**WHOLE, **{'genotype': str(workdir), 'retrain.epochs': 'same_flops'})
    epoch = 3 * summary['flops_per_image'] * 4 * 64  # 4 whole batches of 64 images
    control = single_run.run(retrain.retrain_config(config), tmp_path / 'run')
    assert control['genotype'] == summary['genotype']
    assert control['params'] == summary['params']
    assert control['flops_per_image'] == summary['flops_per_image']
    assert control['train_flops'] == pytest.approx(summary['train_flops'], abs=epoch / 2)


@pytest.mark.parametrize(
    ('changes', 'kinds'),
    [
        pytest.param(
            {'growth.kinds': ('branch',), 'growth.where': 'random', 'growth.max_branches': 3},
            ['branch', 'branch'],
            id='branch-random',
            marks=pytest.mark.soak,
        ),
        pytest.param(
            {'growth.where': 'last', 'growth.lead_epochs': 0},
            ['depth', 'width', 'depth', 'width'],
            id='last-at-once',
            marks=pytest.mark.soak,
        ),
        pytest.param({'growth.kinds': ('auto',)}, None, id='auto', marks=pytest.mark.soak),
        pytest.param(
            {'growth.kinds': ('branch+depth+width',), 'growth.max_branches': 3},
            ['width', 'branch', 'depth'] * 2,
            id='together',
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures('compiled')
def test_other_ways_to_grow_run_through(tmp_path, changes, kinds):
    summary = single_run.run(tiny(**{**WHOLE, **changes}), tmp_path)
    assert len(summary['growth']) >= 2
    if kinds is not None:
        assert [event['kind'] for event in summary['growth']] == kinds
    assert all(event['max_abs_logit_change'] <= 1e-5 for event in summary['growth'])
    assert summary['test_accuracy'] > 0.05
    for before, after in itertools.pairwise(run_record.read(tmp_path).growths):
        if before.at == after.at:  # together: one after another, in the network as it stood
            assert before.after.spec == after.before.spec != after.after.spec
            assert before.event['params_after'] == after.event['params_before']


def test_growths_that_take_place_together_are_the_best_of_each_kind_a_new_block_last(monkeypatch):
    """Places are those of the network as it stands; all of them together keep to the limit."""
    limits = []

    def possible(spec, params, kinds, factor, limit):
        (kind,) = kinds
        limits.append(limit.params)
        if limit.params < 10:
            return [], ['too dear']
        return [Candidate(Growth(kind, i), 10, score) for i, score in enumerate([1, 3, 2])], []

    monkeypatch.setattr(controller.scoring, 'list_candidates', possible)
    monkeypatch.setattr(
        controller,
        '_choose',
        lambda _, __, kind, candidates, *rest: max(candidates, key=lambda c: c.score),
    )
    config = tiny()
    context = types.SimpleNamespace(config=config, limit=None)
    current = types.SimpleNamespace(spec=None)
    held = types.SimpleNamespace(params=None)
    limit = Limits(9, 99, 9, 25)
    chosen = controller._choose_together(context, current, 'depth+branch+width', held, 0, limit)
    assert [(each.growth.kind, each.growth.where) for each in chosen] == [
        ('width', 1),
        ('branch', 1),
    ]
    assert limits == [25, 15, 5]
    chosen = controller._choose_together(context, current, 'depth+width', held, 0, limit)
    assert [each.growth.kind for each in chosen] == ['width', 'depth']


@pytest.mark.parametrize(
    'kinds', [('depth+depth',), ('depth+auto',), ('depth+',), ('length+depth',)]
)
def test_kinds_that_cannot_take_place_together_are_refused(kinds):
    with pytest.raises(UserError, match=r'growth.kinds=.*joined by \+'):
        validate(growing_config(**{'growth.kinds': (kinds,)}), 1)
