"""When a network grows: at plateaus, between steps, and the same way after any stop."""

import gc
import json
import logging
import weakref

import chex
import pytest
from helpers.runs import (
    EVERY_STEP,
    Killed,
    final_state,
    growing_config,
    lines_of,
    stop_after,
    summary_of,
)

from asose_jax import (
    batches,
    devices,
    growing,
    growth,
    page,
    pipeline,
    record,
    results,
    spaces,
    state,
)
from asose_jax.config import flatten
from asose_jax.errors import UserError
from asose_jax.phases import Phase
from configs import scratch


@pytest.fixture(scope='module')
def grown(tmp_path_factory):
    """A run that grew in depth and in width, and was never stopped; and what it compiled."""
    compiled, original = [], devices.compile_train
    workdir = tmp_path_factory.mktemp('grown') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            devices,
            'compile_train',
            lambda *a: (compiled.append((a[0].model.spec, a[1])), original(*a))[1],
        )
        summary = pipeline.run(growing_config(), workdir)
    return workdir, summary, compiled


@pytest.mark.slow
def test_programs_of_earlier_networks_are_let_go(tmp_path, monkeypatch):
    made, alive, original, finish = [], [], devices.compile_train, results.write

    def compile_train(*arguments):
        program = original(*arguments)
        made.append(weakref.ref(program))
        return program

    def at_the_end(setup, current):
        gc.collect()
        alive.extend(ref() for ref in made if ref() is not None)
        return finish(setup, current)

    monkeypatch.setattr(devices, 'compile_train', compile_train)
    monkeypatch.setattr(results, 'write', at_the_end)
    pipeline.run(growing_config(), tmp_path)
    assert len(made) == 5  # warmup, search, two growths, optimize
    assert alive == [made[-1]()]


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
        best, waited, reached = growing.plateau(best, waited, accuracy, 0.02, 3)
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
    spec = spaces.spec_from_json(network)
    assert len(spec.blocks) == 3
    assert summary['train_flops'] == lines[-1]['train_flops'] > lines[-2]['train_flops'] > 0
    assert sum(growth.stage_channels(spec)) > 12


def test_page_has_the_networks_before_and_after_each_growth(grown):
    told = record.read(grown[0])
    deeper, wider = told.growths
    where = deeper.event['where']
    assert len(deeper.after.spec.blocks) == len(deeper.before.spec.blocks) + 1
    assert deeper.after.gates[where] == [0.0]  # the new block does nothing yet
    assert [len(row) for row in deeper.after.probabilities] == [2, 2, 2]
    assert growth.stage_channels(wider.after.spec) != growth.stage_channels(wider.before.spec)
    assert wider.after.chosen == wider.before.chosen
    text = (grown[0] / page.NAME).read_text(encoding='utf-8')
    assert f'G1: a new block {where}' in text
    for title in ('before: 2 blocks', 'after: 3 blocks', 'before: 3 blocks'):
        assert title in text


def test_each_grown_network_is_compiled_once(grown):
    _, _, compiled = grown
    assert [phase for _, phase in compiled] == [
        Phase.WARMUP,
        Phase.SEARCH,
        Phase.GROWTH,
        Phase.GROWTH,
        Phase.OPTIMIZE,
    ]
    assert len({spec for spec, _ in compiled}) == 4


def _killed_before_saving(monkeypatch, step):
    """Ends the run between the growth at `step` and its checkpoint."""
    original = growing.consider

    def consider(setup, current, span, record, batch):
        events = original(setup, current, span, record, batch)
        if record['step'] == step:
            assert events
            raise Killed
        return events

    monkeypatch.setattr(growing, 'consider', consider)


@pytest.mark.parametrize(
    ('stop', 'step'),
    [
        pytest.param(stop_after, 28, id='decided', marks=pytest.mark.slow),
        pytest.param(stop_after, 31, id='decided-and-trained-on', marks=pytest.mark.slow),
        pytest.param(
            _killed_before_saving, 34, id='between-growth-and-checkpoint', marks=pytest.mark.slow
        ),
        pytest.param(stop_after, 34, id='grown', marks=pytest.mark.slow),
        pytest.param(stop_after, 47, id='grown-twice-and-one-step', marks=pytest.mark.slow),
    ],
)
def test_growing_run_stopped_and_resumed_ends_bit_for_bit_as_the_whole_one(
    grown, tmp_path, monkeypatch, stop, step
):
    config = growing_config(**EVERY_STEP)
    with monkeypatch.context() as patch:
        stop(patch, step)
        with pytest.raises(Killed):
            pipeline.run(config, tmp_path)
    batches._shuffled.cache_clear()  # as in a new process
    pipeline.run(config, tmp_path)
    assert lines_of(tmp_path) == lines_of(grown[0])
    assert summary_of(tmp_path) == summary_of(grown[0])
    ours, theirs = final_state(tmp_path, config), final_state(grown[0], growing_config())
    assert ours[:2] == theirs[:2]
    chex.assert_trees_all_equal(ours[2], theirs[2])


def test_optimizer_counts_and_totals_go_on_through_growth(grown):
    """57 + 4 steps, no matter through how many networks."""
    config = growing_config()
    step, _, final = final_state(grown[0], config)
    plan = pipeline.make_plan(config, 287)
    assert step == int(final.step) == plan.steps
    counts = {int(leaf) for leaf in _counts(final.opt_state)}
    assert counts == {plan.weight_updates(step), plan.alpha_updates(step)}


def _counts(tree):
    return [leaf for leaf in state.jax.tree.leaves(tree) if leaf.dtype == 'int32']


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        pytest.param({'growth.kinds': ()}, None, id='no-kinds', marks=pytest.mark.slow),
        pytest.param({'growth.last_epochs': 5}, None, id='last-epochs', marks=pytest.mark.slow),
        pytest.param(
            {'growth.max_depth': 2, 'growth.max_channels': 7},
            'would make 3, over growth.max_depth=2',
            id='limits',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_run_without_room_for_growth_does_not_grow(tmp_path, caplog, changes, told):
    with caplog.at_level(logging.INFO, 'asose_jax'):
        summary = pipeline.run(growing_config(**{'optimize.epochs': 0, **changes}), tmp_path)
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
    config = scratch.get_config(str(workdir))
    assert config.growth.epochs == config.search.epochs == config.warmup.epochs == 0
    epoch = 3 * summary['flops_per_image'] * 4 * 64  # 4 whole batches of 64 images
    control = pipeline.run(config, tmp_path / 'run')
    assert control['genotype'] == summary['genotype']
    assert control['params'] == summary['params']
    assert control['flops_per_image'] == summary['flops_per_image']
    assert control['train_flops'] == pytest.approx(summary['train_flops'], abs=epoch / 2)


def test_control_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='does not hold a finished run'):
        scratch.get_config(str(tmp_path))
    (tmp_path / 'config.json').write_text(json.dumps(flatten(growing_config(seeds=(0, 1)))))
    (tmp_path / 'summary.json').write_text('{}')
    with pytest.raises(ValueError, match=r'several searches; name one of them: .*/seed_N'):
        scratch.get_config(str(tmp_path))
    config = growing_config(**{'network': str(tmp_path)})
    for phase in ('warmup', 'search', 'growth'):
        config[phase].epochs = 0
    with pytest.raises(UserError, match=r'genotype.json cannot be read as a network'):
        pipeline.run(config, tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'kinds'),
    [
        ({'growth.kinds': ('branch',), 'growth.where': 'random'}, ['branch', 'branch']),
        ({'growth.where': 'last', 'growth.lead_epochs': 0}, ['depth', 'width', 'depth', 'width']),
        ({'growth.kinds': ('auto',)}, None),
    ],
    ids=['branch-random', 'last-at-once', 'auto'],
)
def test_other_ways_to_grow_run_through(tmp_path, changes, kinds):
    summary = pipeline.run(growing_config(**changes), tmp_path)
    assert len(summary['growth']) >= 2
    if kinds is not None:
        assert [event['kind'] for event in summary['growth']] == kinds
    assert all(event['max_abs_logit_change'] <= 1e-5 for event in summary['growth'])
    assert summary['test_accuracy'] > 0.05
