"""The expected cost is exact, its gradient right, and alpha follows it."""

import dataclasses
import functools
import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks, search_steps
from helpers.runs import (
    CHEAPEST,
    EVERY_STEP,
    GROWING,
    Killed,
    final_state,
    lines_of,
    stop_after,
    summary_of,
    tiny,
)
from scipy import optimize

from asose_jax.arch import genotype
from asose_jax.costs import flops, latency
from asose_jax.costs.expected_cost import Budget
from asose_jax.data import batches
from asose_jax.pipeline import builders, initialization, single_run
from asose_jax.runtime.errors import UserError
from asose_jax.spaces.registry import SPACES
from asose_jax.train import steps
from asose_jax.train.phases import Phase
from asose_jax.train.state import Packed

METERS = flops.COUNTED
NAMES = {
    'chain': ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'conv_7x1_1x7'),
    'nasbench201': ('none', 'skip_connect', 'nor_conv_3x3'),
    'darts': ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3'),
}
every_space = pytest.mark.parametrize('space', SPACES)
# Of a cell of DARTS, the 28 rows take seconds to trace.
most_spaces = pytest.mark.parametrize(
    'space', ['chain', 'nasbench201', pytest.param('darts', marks=pytest.mark.slow)]
)


@functools.cache
def _spec(space):
    return networks.priced(space, NAMES[space])


def _rows(spec, seed):
    random = np.random.default_rng(seed)
    return [random.dirichlet(np.ones(len(row.candidates))) for row in spec.rows()]


def _one_hot(spec, chosen):
    """Rows that are sure of a genotype."""
    return [
        np.eye(len(row.candidates))[row.candidates.index(chosen.operations[row.group][row.member])]
        for row in spec.rows()
    ]


def _budget(kind='flops', target=1e5, weight=0.3):
    return Budget(kind, target, weight, METERS[kind])


def _arch(spec, seed=0):
    random = np.random.default_rng(seed)
    arch = {}
    for group, member, candidates in spec.rows():
        inner = arch
        for name in spec.alpha_path(group, member):
            inner = inner.setdefault(name, {})
        inner['alpha'] = random.normal(size=len(candidates)).astype(np.float32)
    return arch


# --- The table


FIRST = {('chain', 'flops'), ('chain', 'params'), ('nasbench201', 'multiply_adds')}
FIRST |= {('darts', 'flops')}
SURE = [(*each, seed) for each in itertools.product(SPACES, METERS) for seed in range(3)]


@pytest.mark.parametrize(
    ('space', 'kind', 'seed'),
    [
        pytest.param(*case, marks=() if case[:2] in FIRST and not case[2] else pytest.mark.slow)
        for case in SURE
    ],
)
def test_sure_rows_cost_what_the_derived_network_costs(space, kind, seed):
    spec = _spec(space)
    chosen = genotype.genotype_from_indices(spec, spec.choose(_rows(spec, seed)))
    derived = genotype.derive(spec, chosen)
    expected = _budget(kind).expected(spec, _one_hot(spec, chosen))
    whole = METERS[kind].network(derived)
    if kind == 'params':
        assert whole == networks.parameters(derived)
    elif kind == 'flops':
        assert expected == pytest.approx(flops.forward_flops(derived), rel=1e-9)
    # An edge of nasbench201 that `none` leaves out spares an addition, too.
    left_out = space == 'nasbench201' and kind == 'flops'
    assert expected == pytest.approx(whole, rel=0.02 if left_out else 1e-9)
    one = [np.ones(1)] * len(spec.rows())
    assert expected == pytest.approx(_budget(kind).expected(derived, one), rel=1e-9)


@every_space
def test_reach_is_that_of_all_networks_and_is_met(space):
    spec = _spec(space)
    low, high = flops.cost_table(spec, flops.FLOPS).reach(spec)
    for seed in range(5):
        rows = _rows(spec, seed)
        derived = genotype.derive(spec, genotype.genotype_from_indices(spec, spec.choose(rows)))
        assert low <= flops.forward_flops(derived) <= high
        assert low <= _budget().expected(spec, rows) <= high
    costs = flops.cost_table(spec, flops.FLOPS).rows
    for sign, end in ((1, high), (-1, low)):
        best = [sign * row - (sign * row).min() for row in costs]
        dearest = genotype.derive(spec, genotype.genotype_from_indices(spec, spec.choose(best)))
        assert space == 'darts' or flops.forward_flops(dearest) == end


def test_two_edges_of_a_node_stay_by_the_product_of_their_strengths():
    spec = networks.build(
        'darts', (8, 8, 2), 5, channels=4, depth=2, reductions=(1,), primitives=NAMES['darts']
    )
    rows = _rows(spec, 5)
    for shares in (spec.shares(rows), jax.jit(spec.shares)([jnp.float32(row) for row in rows])):
        at = {(row.group, row.member): i for i, row in enumerate(spec.rows())}
        for group in range(8):
            members = [at[group, m] for m in range(2 + group % 4)]
            strength = [max(rows[i][1:]) for i in members]
            pairs = {
                (a, b): strength[a] * strength[b] for b in range(len(members)) for a in range(b)
            }
            for m, i in enumerate(members):
                kept = sum(p for pair, p in pairs.items() if m in pair) / sum(pairs.values())
                by_hand = kept * rows[i] / rows[i][1:].sum()
                np.testing.assert_allclose(shares[i][1:], by_hand[1:], rtol=1e-5)
                assert shares[i][0] == 0


def test_an_edge_sure_of_none_is_as_good_as_not_there_and_nothing_is_nan():
    spec = _spec('darts')
    rows = [np.eye(4, dtype=np.float32)[0] for _ in spec.rows()]
    assert all(np.isfinite(share).all() for share in spec.shares(rows))
    total = jax.jit(jax.grad(lambda rows: sum(share.sum() for share in spec.shares(rows))))
    gradient = total([jnp.array(row) for row in rows])
    assert all(np.isfinite(leaf).all() for leaf in gradient)


# --- The term


@functools.cache
def _on_both_sides(space):
    """Budgets that are too small and too large; and values and slopes of their terms, compiled."""
    spec = _spec(space)
    rows = [np.float64(row) for row in genotype.probabilities(spec, _arch(spec))]
    expected = _budget().expected(spec, rows)
    budgets = [_budget(target=times * expected) for times in (0.5, 2.0)]
    penalties = [budget.penalty(spec) for budget in budgets]
    return budgets, jax.jit(lambda arch: [jax.value_and_grad(each)(arch) for each in penalties])


@most_spaces
def test_gradient_is_that_of_the_absolute_value_on_both_sides(space):
    spec, arch = _spec(space), _arch(_spec(space))
    rows = [np.float64(row) for row in genotype.probabilities(spec, arch)]
    budgets, program = _on_both_sides(space)
    for times, budget, (value, found) in zip((0.5, 2), budgets, program(arch), strict=True):
        assert value == pytest.approx(0.3 * abs(1 / times - 1), rel=1e-4)
        for i, (group, member, _) in enumerate(spec.rows()):
            if space == 'darts' and member not in (0, 1 + group % 4):
                continue  # of its 28 rows the first and the last of a node
            path = spec.alpha_path(group, member)

            def exact(alpha, i=i, budget=budget):  # in float64
                moved = [*rows[:i], np.exp(alpha) / np.exp(alpha).sum(), *rows[i + 1 :]]
                return 0.3 * abs(budget.expected(spec, moved) / budget.target - 1)

            alpha = np.float64(genotype.subtree(arch, path)['alpha'])
            numeric = optimize.approx_fprime(alpha, exact, 1e-6)
            ours = genotype.subtree(found, path)['alpha']
            np.testing.assert_allclose(ours, numeric, rtol=1e-2, atol=1e-5)
        assert max(abs(leaf).max() for leaf in jax.tree.leaves(found)) > 1e-3


@most_spaces
def test_a_broken_row_counts_as_skip_connect_and_gets_no_gradient(space):
    spec, arch = _spec(space), _arch(_spec(space))
    group, member, candidates = spec.rows()[-1]
    broken = genotype.subtree(arch, spec.alpha_path(group, member))
    _, program = _on_both_sides(space)
    broken['alpha'] = 50.0 * np.eye(len(candidates), dtype='f')[candidates.index('skip_connect')]
    sure = program(arch)
    broken['alpha'] = np.full(len(candidates), np.nan, np.float32)
    for (expected, _), (value, gradient) in zip(sure, program(arch), strict=True):
        assert value == pytest.approx(float(expected), rel=1e-6)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert not genotype.subtree(gradient, spec.alpha_path(group, member))['alpha'].any()


def test_alpha_steps_add_its_gradient_and_the_logged_loss_stays():
    """In a network of one block: two programs are compiled."""
    index, free = np.arange(16, dtype=np.int32), search_steps.ONE_BLOCK
    spec = free.model.spec
    penalty = _budget(target=1e3).penalty(spec)
    held = dataclasses.replace(free, penalty=penalty)
    before, after = (search_steps.after_one(step_config, index) for step_config in (free, held))
    assert before.totals.arch_loss == pytest.approx(float(after.totals.arch_loss), rel=1e-6)
    arch = networks.fresh_state(free.model, free.tx, seed=1).arch
    gradient = jax.tree.leaves(jax.jit(jax.grad(penalty))(arch))
    moments = map(search_steps.first_moment_of, (before, after))
    for without, found, added in zip(*moments, gradient, strict=True):
        np.testing.assert_allclose(found, without + (1 - 0.5) * added, rtol=1e-4, atol=1e-7)
        assert added.any()


@pytest.mark.slow
def test_phases_that_move_no_alpha_have_the_same_program_with_and_without():
    def program(step_config, phase):
        batch = {'index': np.zeros((1, 1, 16), np.int32), 'steps': np.ones(1, np.int32)}
        call = functools.partial(steps.train_steps, step_config, phase)
        mapped = jax.vmap(call, (None, 0, None), axis_name=steps.AXIS)
        begun = Packed.of(search_steps.fresh())
        return str(jax.make_jaxpr(mapped)(begun, batch, search_steps.SHARED))

    off = search_steps.STEP_CONFIG
    on = dataclasses.replace(off, penalty=_budget().penalty(search_steps.SPEC))
    for phase in (Phase.WARMUP, Phase.OPTIMIZE):
        assert program(off, phase) == program(on, phase)


# --- The run

SHORT = {'warmup.epochs': 0, 'growth.epochs': 0, 'optimize.epochs': 0}


@pytest.mark.slow
def test_a_small_target_ends_in_a_cheaper_network_than_a_large_one(tmp_path):
    found, tables = [], []
    for target in (9e3, 28e3):
        price = {'cost.kind': 'flops', 'cost.weight': 30.0, 'cost.target': target}
        found.append(
            single_run.run(tiny(**SHORT, **price, **{'arch.travel': 30.0}), tmp_path / str(target))
        )
        tables.append(json.loads((tmp_path / str(target) / 'costs.json').read_text()))
    small, large = found
    assert small['flops_per_image'] < large['flops_per_image']
    assert tables[0] == tables[1]
    for summary, table in zip(found, tables, strict=True):
        told = summary['cost']
        assert told['by_table'] == told['as_a_whole'] == summary['flops_per_image']
        chosen = [
            table['rows'][i]['candidates'][names[0]] for i, names in enumerate(summary['genotype'])
        ]
        for kind, key in (('flops', 'flops_per_image'), ('params', 'params')):
            assert table['around'][kind] + sum(each[kind] for each in chosen) == summary[key]
    lines = lines_of(tmp_path / '28000.0')
    distances = [abs(line['cost/expected'] / 28e3 - 1) for line in lines]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize('target', [7e3, 32e3])
def test_target_out_of_reach_is_one_clear_error_with_the_range(tmp_path, target):
    price = {'cost.kind': 'flops', 'cost.target': target, 'growth.kinds': ()}
    with pytest.raises(UserError, match=r'cost.target=.*: networks .* from 7143 to 30819'):
        single_run.run(tiny(**price), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.fixture
def clock(monkeypatch):
    """Instead of measuring, names the milliseconds; no number comes twice."""
    taken = []

    def measured(part):
        taken.append(part)
        return (1 / (1 + len(taken)),) * 3

    monkeypatch.setattr(latency, 'measure_milliseconds', measured)
    return taken


LATENCY = {'cost.kind': 'latency', 'cost.target': 0.5, 'cost.weight': 3.0}


def _stopped_and_resumed(tmp_path, monkeypatch, clock, step, fields, between=lambda: None):
    """Two workdirs: of a run that was never stopped, and of one that was, after `step`."""
    single_run.run(tiny(**LATENCY, **fields), tmp_path / 'whole')
    clock.clear()  # the other run measures the same, but not when it goes on
    config = tiny(**LATENCY, **fields, **EVERY_STEP)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Killed):
            single_run.run(config, tmp_path / 'halves')
    flops.cost_table.cache_clear()  # as in a new process
    batches._shuffled.cache_clear()
    between()
    single_run.run(config, tmp_path / 'halves')
    return config


def _assert_same(tmp_path, config):
    whole, halves = tmp_path / 'whole', tmp_path / 'halves'
    assert lines_of(halves) == lines_of(whole)
    assert summary_of(halves) == summary_of(whole)
    for name in ('latency.json', 'costs.json'):
        assert (halves / name).read_text() == (whole / name).read_text()
    ours, theirs = final_state(halves, config), final_state(whole, config)
    chex.assert_trees_all_equal(ours[2], theirs[2])


@pytest.mark.slow
def test_what_was_measured_is_kept_and_a_resumed_run_ends_bit_for_bit(tmp_path, monkeypatch, clock):
    fields = {**SHORT, 'search.epochs': 1, 'growth.epochs': 0}
    config = _stopped_and_resumed(tmp_path, monkeypatch, clock, 3, fields)
    _assert_same(tmp_path, config)
    told = json.loads((tmp_path / 'whole' / 'summary.json').read_text())['cost']
    known = json.loads((tmp_path / 'whole' / 'latency.json').read_text())['milliseconds']
    assert told['as_a_whole'] in known.values()
    file = tmp_path / 'halves' / 'latency.json'
    file.write_text(file.read_text()[:-9])
    with pytest.raises(UserError, match=r'latency.json cannot be read'):
        single_run.run(config, tmp_path / 'halves')


@pytest.mark.slow
def test_run_with_a_table_measures_nothing_and_goes_on_without_it(tmp_path, monkeypatch, clock):
    fields = {**SHORT, 'search.epochs': 1, 'model.primitives': CHEAPEST}
    config = tiny(**LATENCY, **fields)
    images = builders.load_data(config)
    schedule = builders.make_schedule(config, len(images.train))
    spec = initialization.find_origin(config, images, schedule).spec
    known = {key: 0.1 * (i + 1) for i, key in enumerate(latency.required(spec))}
    table = tmp_path / 'table.json'
    table.write_text(json.dumps({'space': 'chain', 'images': 1, 'milliseconds': known}))
    fields['cost.table'] = str(table)
    config = _stopped_and_resumed(tmp_path, monkeypatch, clock, 3, fields, table.unlink)
    assert not clock
    _assert_same(tmp_path, config)
    told = json.loads((tmp_path / 'whole' / 'summary.json').read_text())['cost']
    assert told['as_a_whole'] is None
    chosen = json.loads((tmp_path / 'whole' / 'costs.json').read_text())
    names = json.loads((tmp_path / 'whole' / 'genotype.json').read_text())['genotype']
    total = chosen['around']['latency'] + sum(
        row['candidates'][name]['latency']
        for row, (name,) in zip(chosen['rows'], names, strict=True)
    )
    assert told['by_table'] == pytest.approx(total)


@pytest.mark.soak
def test_table_grows_with_the_network_and_is_kept(tmp_path, monkeypatch, clock):
    fields = {**GROWING, 'model.primitives': CHEAPEST}
    config = _stopped_and_resumed(tmp_path, monkeypatch, clock, 30, fields)
    _assert_same(tmp_path, config)
    summary = summary_of(tmp_path / 'whole')
    assert len(summary['growth']) > 0
    table = json.loads((tmp_path / 'whole' / 'costs.json').read_text())
    assert len(table['rows']) == len(summary['genotype']) > 2
