"""The best choice within budgets is that of trying every one."""

import itertools

import numpy as np
import pytest

from asose_jax.arch import constrained
from asose_jax.spaces import chain, darts, nasbench201
from asose_jax.spaces.registry import SPACES

NAMES = {
    'chain': ('none', 'skip_connect', 'max_pool_3x3', 'sep_conv_3x3', 'nor_conv_1x1'),
    'nasbench201': ('none', 'skip_connect', 'nor_conv_1x1'),
    'darts': ('none', 'skip_connect', 'sep_conv_3x3'),
}


def _spec(space):
    """A network with some hundred genotypes; of a darts cell, three nodes are left to choose."""
    names, size = NAMES[space], {'channels': 4, 'max_channels': 8, 'primitives': NAMES[space]}
    if space == 'chain':
        return chain.build((8, 8, 2), 5, depth=4, reductions=(1,), **size)
    if space == 'nasbench201':
        return nasbench201.build((8, 8, 2), 5, depth=2, reductions=(), **size)
    spec = darts.build((8, 8, 2), 5, depth=2, reductions=(1,), **size)
    free = {0: 2, 2: 4, 5: 3}  # edges by node
    groups = [
        (names,) * free[g]
        if g in free
        else (('skip_connect',), ('skip_connect',), *((('none',),) * (g % 4)))
        for g in range(8)
    ]
    return spec.with_groups(tuple(groups))


def _choices(spec):
    """Every choice that a derived network can be."""
    rows = spec.rows()
    for picked in itertools.product(*(range(len(row.candidates)) for row in rows)):
        kept = [0] * len(spec.groups())
        for row, k in zip(rows, picked, strict=True):
            kept[row.group] += row.candidates[k] != 'none'
        if spec.EDGES_KEPT is None or set(kept) == {spec.EDGES_KEPT}:
            yield picked


def _total(rows, picked):
    return sum(row[k] for row, k in zip(rows, picked, strict=True))


@pytest.mark.parametrize('space', SPACES)
@pytest.mark.parametrize(('kinds', 'beam'), [(1, 64), (2, 1), (3, 2)])
def test_best_choice_is_that_of_trying_every_one(monkeypatch, space, kinds, beam):
    """Also if the first pass, which keeps few partial choices, finds another one or none."""
    monkeypatch.setattr(constrained, '_BEAM', beam)
    spec, random = _spec(space), np.random.default_rng(kinds)
    choices = [*_choices(spec)]
    assert len(choices) > 100
    found = set()
    for _ in range(4):
        scores = [random.normal(size=len(row.candidates)) for row in spec.rows()]
        if space == 'darts':  # edges that are not kept do not count
            for row, names in zip(scores, spec.rows(), strict=True):
                row[[name == 'none' for name in names.candidates]] = 0.0
        costs = [
            random.integers(0, 50, (len(row.candidates), kinds))
            * (np.array(row.candidates) != 'none')[:, None]
            for row in spec.rows()
        ]
        totals = np.array([_total(costs, picked) for picked in choices])
        values = np.array([_total(scores, picked) for picked in choices])
        for share in (-0.01, 0.0, 0.1, 0.3, 0.6, 1.0):
            low, high = totals.min(0), totals.max(0)
            budgets = np.floor(low + share * (high - low))
            within = (totals <= budgets).all(1)
            best = constrained.best_choice(spec, scores, costs, budgets)
            if not within.any():
                assert best is None
            else:
                assert tuple(best) == choices[int(np.where(within, values, -np.inf).argmax())]
            found.add(best is not None)
    assert found == {True, False}


def test_budgets_that_conflict_are_seen_before_all_partial_choices_are_listed():
    """Without the joint budget, this would take minutes and gigabytes."""
    random = np.random.default_rng(2)
    names = tuple(f'op_{i}' for i in range(10))
    spec = chain.build(
        (8, 8, 2), 5, channels=8, depth=20, reductions=(), max_channels=8, primitives=names
    )
    costs = [np.floor(random.uniform(0, 1e5, (10, 3))) for _ in range(20)]
    scores = [random.normal(size=10) for _ in range(20)]
    assert constrained.best_choice(spec, scores, costs, np.full(3, 4.4e5)) is None


def test_node_without_edges_costs_nothing_of_every_kind():
    groups = list(_spec('darts').groups())
    groups[3] = (('none',),) * len(groups[3])
    spec, random = _spec('darts').with_groups(tuple(groups)), np.random.default_rng(0)
    scores = [random.normal(size=len(row.candidates)) for row in spec.rows()]
    costs = [np.ones((len(row.candidates), 2)) for row in spec.rows()]
    chosen = constrained.best_choice(spec, scores, costs, np.full(2, 14.0))  # 7 nodes of 2 edges
    names = [row.candidates[k] for row, k in zip(spec.rows(), chosen, strict=True)]
    assert len(names) - names.count('none') == 14
    assert constrained.best_choice(spec, scores, costs, np.full(2, 13.0)) is None
