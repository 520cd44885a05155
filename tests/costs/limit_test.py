"""A limit on the cost holds: for every derived network, and in every evaluation before."""

import dataclasses
import functools
import itertools
import json
import types

import jax
import numpy as np
import optax
import pytest
from helpers import networks
from helpers.runs import CELLS, CHEAPEST, GROWING, lines_of, summary_of, tiny

from asose_jax.arch import genotype
from asose_jax.costs import flops
from asose_jax.costs.expected_cost import write_costs
from asose_jax.costs.flops import Meter
from asose_jax.costs.limit import CostLimit, random_genotype
from asose_jax.pipeline import evaluation, single_run
from asose_jax.pipeline.growth import controller, transforms
from asose_jax.pipeline.growth.scoring import Candidate
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.pipeline.run_context import RunState
from asose_jax.runtime.errors import UserError
from asose_jax.spaces.registry import SPACES
from asose_jax.train.state import Packed

NAMES = {
    'chain': ('none', 'max_pool_3x3', 'skip_connect', 'sep_conv_3x3', 'conv_7x1_1x7'),
    'nasbench201': ('none', 'skip_connect', 'nor_conv_3x3'),
    'darts': ('none', 'skip_connect', 'sep_conv_3x3'),
}
# Milliseconds that nobody measured: of an operation, and of what is around all of them.
CLOCK = Meter(
    lambda name, shape, stride: 1e-4 * sum(map(ord, name)) * shape[0] * stride + 0.01 * shape[-1],
    lambda spec: 1.0 + 0.5 * len(spec.rows()),
)
METERS = {**flops.COUNTED, 'latency': CLOCK}
every_space = pytest.mark.parametrize('space', SPACES)


@functools.cache
def _spec(space, partial=1):
    return dataclasses.replace(networks.priced(space, NAMES[space]), partial=partial)


@functools.cache
def _few_choices(space):
    """The same network; of a darts cell, some nodes are left to choose."""
    spec = _spec(space, partial=2 if space == 'darts' else 1)
    if space != 'darts':
        return spec
    free, fixed = {1: 3, 4: 2}, (('skip_connect',), ('sep_conv_3x3',))
    groups = [
        (NAMES[space],) * free[g] if g in free else (*fixed, *((('none',),) * (g % 4)))
        for g in range(8)
    ]
    return spec.with_groups(tuple(groups))


def _genotypes(spec):
    """Every genotype that can be derived, as the candidates' indices."""
    for picked in itertools.product(*(range(len(row.candidates)) for row in spec.rows())):
        chosen = genotype.genotype_from_indices(spec, picked)
        kept = {sum(name != 'none' for name in group) for group in chosen.operations}
        if spec.EDGES_KEPT is None or kept == {spec.EDGES_KEPT}:
            yield picked, chosen


def _arch(spec, seed):
    random = np.random.default_rng(seed)
    arch = {}

    def put(path, name, leaf):
        inner = arch
        for part in path:
            inner = inner.setdefault(part, {})
        inner[name] = leaf.astype(np.float32)

    for group, member, candidates in spec.rows():
        if len(candidates) > 1:
            put(spec.alpha_path(group, member), 'alpha', random.normal(size=len(candidates)))
    for group, members in enumerate(spec.groups()):
        if (path := spec.edge_path(group)) is not None:
            put(path, 'logits', random.normal(size=len(members)))
    return arch


def _limit(**largest):
    return CostLimit(largest, {kind: METERS[kind] for kind in largest})


def _reach(spec, kind):
    return flops.cost_table(dataclasses.replace(spec, partial=1), METERS[kind]).reach(spec)


def _between(spec, kind, share):
    low, high = _reach(spec, kind)
    return low + share * (high - low)


# --- The network that is derived


@every_space
@pytest.mark.parametrize('kind', METERS)
def test_derived_network_is_the_likeliest_of_all_that_keep_the_limit(space, kind):
    """Of all genotypes, also where edges have weights of their own (darts here)."""
    spec = _few_choices(space)
    tables = flops.cost_table(dataclasses.replace(spec, partial=1), METERS[kind])
    everything = [*_genotypes(spec)]
    costs = np.array(
        [tables.total(genotype.one_hot_rows(spec, chosen)) for _, chosen in everything]
    )
    changed = 0
    for seed, share in itertools.product(range(3), (0.0, 0.15, 0.5, 1.0)):
        arch, largest = _arch(spec, seed), _between(spec, kind, share)
        logs = [np.log(row.astype(float)) for row in genotype.probabilities(spec, arch)]
        edges = genotype.edge_weights(spec, arch)
        scores = []
        for picked, _ in everything:
            score = 0.0
            for (group, member, names), row, k in zip(spec.rows(), logs, picked, strict=True):
                if space != 'darts' or names[k] != 'none':
                    score += row[k]
                    score += 0.0 if edges[group] is None else float(np.log(edges[group][member]))
            scores.append(score)
        allowed = costs <= largest * (1 + 1e-12)
        expected = everything[int(np.where(allowed, scores, -np.inf).argmax())][1]
        assert _limit(**{kind: largest}).most_likely(spec, arch) == expected
        changed += expected != genotype.most_likely(spec, arch)
        assert share < 1 or expected == genotype.most_likely(spec, arch)
    assert changed


@pytest.mark.parametrize(
    ('space', 'count'),
    [
        ('chain', 4),
        ('nasbench201', 2),
        ('darts', 1),
        *(pytest.param(space, 20, marks=pytest.mark.slow) for space in SPACES),
    ],
)
def test_twenty_of_twenty_whole_networks_keep_all_limits(space, count):
    """In the default ring, the first few: each takes a while to trace."""
    spec = _spec(space)
    largest = {kind: int(_between(spec, kind, 0.25)) for kind in flops.COUNTED}
    cost_limit, exceeded = _limit(**largest), 0
    table = flops.cost_table(spec, flops.PARAMS)
    for seed in range(count):
        arch = _arch(spec, seed)
        derived = genotype.derive(spec, cost_limit.most_likely(spec, arch))
        assert networks.parameters(derived) <= largest['params']
        assert flops.forward_flops(derived) <= largest['flops']
        assert flops.multiply_adds(derived) <= largest['multiply_adds']
        free = genotype.one_hot_rows(spec, genotype.most_likely(spec, arch))
        exceeded += table.total(free) > largest['params']
    assert exceeded >= count / 4


@every_space
def test_random_genotypes_keep_all_limits_and_without_a_tight_one_are_those_of_the_space(
    space, tmp_path
):
    spec = _spec(space)
    write_costs(spec, flops.COUNTED, tmp_path)
    costs = json.loads((tmp_path / 'costs.json').read_text())
    largest = {'params': _between(spec, 'params', 0.2), 'flops': _between(spec, 'flops', 0.3)}
    tight, changed = _limit(**largest), 0
    for seed in range(20):
        free = genotype.random(spec, np.random.default_rng(seed))
        loose = random_genotype(spec, {'flops': 1e12}, costs, np.random.default_rng(seed))
        assert loose == free
        drawn = random_genotype(spec, largest, costs, np.random.default_rng(seed))
        assert tight.share(spec, drawn) <= 1
        assert (drawn == free) == (tight.share(spec, free) <= 1)
        changed += drawn != free
    assert changed >= 5


def test_a_row_that_is_not_finite_counts_as_skip_connect():
    spec = _spec('chain')
    arch = {
        f'block_{b}': {'choice_0': {'alpha': np.arange(5.0, dtype=np.float32)}} for b in range(3)
    }
    arch['block_1']['choice_0']['alpha'][:] = np.nan
    largest = _between(spec, 'params', 0.1)
    chosen = _limit(params=largest).most_likely(spec, arch)
    assert chosen != genotype.most_likely(spec, arch)
    assert chosen.operations[1] == ('skip_connect',)


def test_a_derived_network_beyond_the_limit_is_a_fault():
    derived = genotype.derive(_spec('chain'), genotype.uniform_genotype(_spec('chain'), 'none'))
    params = networks.parameters(derived)
    _limit(params=params).require_kept(derived)
    with pytest.raises(RuntimeError, match=rf'has {params} parameters, beyond cost.limit.params='):
        _limit(params=params - 1).require_kept(derived)


# --- What cannot be reached


def test_limit_out_of_reach_is_one_line_with_the_smallest_values(tmp_path):
    config = tiny(**{'cost.limit.params': 100, 'cost.limit.flops': 1e6})
    with pytest.raises(UserError) as error:
        single_run.run(config, tmp_path / 'run')
    text = str(error.value)
    assert text.startswith('cost.limit.flops=1000000, cost.limit.params=100: no network that can')
    assert 'smallest values, each by itself: 7143 FLOPs, 182 parameters. Raise' in text
    assert '\n' not in text
    assert not (tmp_path / 'run').exists()


def test_limits_that_only_conflict_are_called_so():
    spec = _spec('chain').with_groups(((NAMES['chain'][1:],),) * 3)  # `none` costs nothing
    opposite = Meter(lambda name, *_: 9.0 - CLOCK.operation(name, *_), CLOCK.network)
    meters = {'latency': CLOCK, 'params': opposite}
    least = {kind: flops.cost_table(spec, meter).reach(spec)[0] for kind, meter in meters.items()}
    both = CostLimit({kind: 1.01 * cost for kind, cost in least.items()}, meters)
    with pytest.raises(UserError, match=r'no network that can be derived keeps this together'):
        both.require_reachable(spec)


def test_given_network_beyond_the_limit_is_refused(tmp_path):
    cell = '|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|'
    phases = {f'{phase}.epochs': 0 for phase in ('warmup', 'search', 'growth')}
    config = tiny(**{**CELLS, **phases, 'genotype': cell, 'cost.limit.multiply_adds': 10})
    message = r'cost.limit.multiply_adds=10: the network that is to .* has \d+ multiply-adds'
    with pytest.raises(UserError, match=message):
        single_run.run(config, tmp_path / 'run')


# --- Evaluations, and growth


def test_network_of_an_evaluation_is_the_one_that_would_be_derived():
    """Alpha of the state that is evaluated is sure of it; nothing else differs."""
    spec = _few_choices('darts')
    net, tx = networks.supernet(spec), optax.sgd(0.1, momentum=0.9)
    packed = Packed.of(networks.fresh_state(net, tx))
    current = RunState(spec, packed, None)
    cost_limit = _limit(params=_between(spec, 'params', 0.2))
    context = types.SimpleNamespace(limit=cost_limit, most_likely=cost_limit.most_likely)
    evaluated = jax.device_get(evaluation._evaluated(context, current))
    own, arch = packed.unpack().arch, evaluated.unpack().arch
    chosen = cost_limit.most_likely(spec, own)
    assert chosen != genotype.most_likely(spec, own)
    assert genotype.most_likely(spec, arch) == chosen
    assert arch['normal_1_edges'] is not None
    for name in ('params', 'batch_stats', 'opt_state'):
        assert getattr(evaluated.vectors, name) is getattr(packed.vectors, name) or all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(getattr(evaluated.vectors, name)),
                jax.tree.leaves(getattr(packed.vectors, name)),
                strict=True,
            )
        )
    context.limit, context.most_likely = None, genotype.most_likely
    assert evaluation._evaluated(context, current) is packed


def test_growth_that_leaves_no_network_within_the_limit_is_not_made():
    spec = _spec('chain')
    growths = [
        Growth('width', 1, channels=16),
        Growth('depth', 1, candidates=NAMES['chain']),
        Growth('branch', 0, candidates=NAMES['chain']),
    ]
    candidates = [Candidate(growth, 1) for growth in growths]
    after = [_reach(transforms.grown_spec(spec, growth), 'params')[0] for growth in growths]
    assert after[0] > after[1] == after[2] == _reach(spec, 'params')[0]
    tight, loose = (_limit(params=after[0] - margin) for margin in (1, 0))
    kept, refused = controller._within_cost_limit(tight, spec, [], candidates)
    assert kept == candidates[1:]
    assert len(refused) == 1
    assert refused[0].startswith('with stage 1 with 16 channels, no network would keep cost.limit')
    assert controller._within_cost_limit(loose, spec, [], candidates) == (candidates, [])
    # Behind a growth in width that just fits, a second one does not.
    second = [Candidate(Growth('width', 0, channels=8), 1), candidates[1]]
    kept, _ = controller._within_cost_limit(loose, spec, candidates[:1], second)
    assert kept == second[1:]


def test_genotype_goes_through_a_growth_with_the_network():
    chosen = genotype.Genotype((('none',), ('sep_conv_3x3',)))
    names = ('skip_connect', 'none')
    grown = [
        transforms.carried_genotype(chosen, growth).operations
        for growth in (
            Growth('depth', 1, candidates=names),
            Growth('branch', 1, candidates=names),
            Growth('width', 1, channels=16),
        )
    ]
    assert grown[0] == (('none',), ('skip_connect',), ('sep_conv_3x3',))
    assert grown[1] == (('none',), ('sep_conv_3x3', 'skip_connect'))
    assert grown[2] == chosen.operations


# --- Whole runs


@pytest.mark.slow
def test_run_under_a_limit_grows_within_it_and_ends_with_the_network_it_evaluated(tmp_path):
    """Width would leave no network under the limit, a new block does."""
    fields = {
        **GROWING,
        'growth.epochs': 4,
        'model.primitives': ('none', *CHEAPEST),
        'model.depth': 1,
        'model.reductions': (0,),
        'warmup.epochs': 0,
        'optimize.epochs': 0,
        'growth.kinds': ('width', 'depth'),
        'cost.limit.params': 215,
    }
    summary = single_run.run(tiny(**fields), tmp_path / 'run')
    assert [event['kind'] for event in summary['growth']] == ['depth']
    for event in summary['growth']:
        assert event['max_abs_logit_change'] <= 1e-5
        assert event['valid_accuracy_after'] == pytest.approx(event['valid_accuracy_before'])
    entry = summary['cost_limit']['params']
    assert entry['limit'] == 215
    assert entry['value'] == summary['params'] <= 215
    lines = lines_of(tmp_path / 'run')
    assert all(0 < line['cost/limit_share'] <= 1 for line in lines)
    assert lines[-1]['genotype'] == summary['genotype']
    assert lines[-1]['valid/accuracy'] == summary['valid_accuracy']
    likeliest = [
        row[names.index(line_names[0])] < max(row)
        for line in lines
        for row, names, line_names in zip(
            line['arch/probabilities'],
            [('none', *CHEAPEST)] * len(line['genotype']),
            line['genotype'],
            strict=True,
        )
    ]
    assert any(likeliest)  # the limit has changed what is chosen
    table = json.loads((tmp_path / 'run' / 'costs.json').read_text())
    assert len(table['rows']) == 2
    assert summary_of(tmp_path / 'run')['cost_limit'] == summary['cost_limit']
