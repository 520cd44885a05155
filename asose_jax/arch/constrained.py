"""Finds the best genotype whose costs stay within limits, exactly.

Score and costs are sums over classes, from each of which one item is taken: the multiple-choice
knapsack problem with one or more budgets (Kellerer, Pferschy and Pisinger 2004, Knapsack Problems,
chapter 11). A class is a row of alpha or, where the space keeps some edges of each node, a node:
its items are the sets of edges that it may keep, with an operation on each.

Classes are added one after another to all partial choices that can still lead to the best one
(dynamic programming with bounds). A partial choice is dropped if another one has at least its score
at no higher cost, if the cheapest rest exceeds a budget, or if the Lagrangian bound of the rest is
below a complete choice that is known from a first pass, which keeps few partial choices.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from asose_jax.arch.genotype import NONE, NetSpec

_BEAM = 64  # partial choices that the first pass keeps after each class
_ROUNDING = 1e-9  # slack of bounds, so that rounding excludes nothing
_BLOCK = 256  # choices that are compared at a time


class _Class(NamedTuple):
    """The alternatives of which one is chosen.

    Attributes:
      items: what each alternative is, `[N]` tuples of (row, candidate).
      scores: `[N]`.
      costs: `[N, D]`.
    """

    items: list[tuple[tuple[int, int], ...]]
    scores: np.ndarray
    costs: np.ndarray


def best_choice(
    spec: NetSpec, scores: Sequence[np.ndarray], costs: Sequence[np.ndarray], budgets: np.ndarray
) -> list[int] | None:
    """Returns the choice of the largest total score that keeps every budget.

    Args:
      spec: description of the network.
      scores: of each candidate, finite, `[K]` for each of `spec.rows()`. Where the space keeps some
        edges of each node, those of `none` do not count.
      costs: of each candidate in each of D kinds, `[K, D]` for each row.
      budgets: what all candidates together may cost, `[D]`.

    Returns:
      The index of the candidate of each row; `None` if no choice keeps the budgets.
    """
    classes = [_undominated(each) for each in _classes(spec, scores, costs)]
    chosen = _search(*_with_joint_budget(classes, np.asarray(budgets, np.float64)))
    if chosen is None:
        return None
    none = [row.candidates.index(NONE) if NONE in row.candidates else 0 for row in spec.rows()]
    picked = dict(enumerate(none))
    for alternatives, index in zip(classes, chosen, strict=True):
        picked.update(alternatives.items[index])
    return [picked[row] for row in range(len(none))]


def _classes(
    spec: NetSpec, scores: Sequence[np.ndarray], costs: Sequence[np.ndarray]
) -> Iterator[_Class]:
    """Yields the alternatives of each row or, where nodes keep some edges, of each node."""
    numbered = list(enumerate(spec.rows()))
    kinds = np.shape(costs[0])[1]
    for _, group in itertools.groupby(numbered, lambda row: row[1].group):
        if spec.EDGES_KEPT is None:
            for number, row in group:
                items = [((number, k),) for k in range(len(row.candidates))]
                yield _Class(items, *(np.asarray(x[number], np.float64) for x in (scores, costs)))
            continue
        edges = [
            [(number, k) for k, name in enumerate(row.candidates) if name != NONE]
            for number, row in group
        ]
        edges = [edge for edge in edges if edge]
        items = [
            item
            for kept in itertools.combinations(edges, min(spec.EDGES_KEPT, len(edges)))
            for item in itertools.product(*kept)
        ]
        yield _Class(
            items,
            np.array([sum(float(scores[n][k]) for n, k in item) for item in items]),
            # The start has the shape of costs: a node that keeps no edge has one empty item.
            np.array([sum((costs[n][k] for n, k in item), np.zeros(kinds)) for item in items]),
        )


def _undominated(alternatives: _Class) -> _Class:
    kept = _pareto(alternatives.scores, alternatives.costs)
    items = [alternatives.items[i] for i in kept]
    return _Class(items, alternatives.scores[kept], alternatives.costs[kept])


def _pareto(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Returns the indices of those of N choices that no other one beats.

    Args:
      scores: `[N]`.
      costs: `[N, D]`.

    Returns:
      Indices by falling score. Of equal choices, the first is kept.
    """
    kept = np.zeros(0, np.intp)
    order = np.argsort(-scores, kind='stable')
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        beaten = (costs[kept][None] <= costs[block][:, None]).all(-1).any(-1)
        block = block[~beaten]
        below = (costs[block][None] <= costs[block][:, None]).all(-1)
        kept = np.concatenate([kept, block[~np.tril(below, -1).any(-1)]])
    return kept


def _search(classes: Sequence[_Class], budgets: np.ndarray) -> list[int] | None:
    """Returns the index of the chosen alternative of each class; `None` if none is possible."""
    prices = _prices(classes, budgets, slack=False)
    gains = [(each.scores - each.costs @ prices).max() for each in classes]
    # What the classes after the first i add at most to the bound, and cost at least.
    rest = np.append(np.cumsum(gains[::-1])[::-1], 0.0) + prices @ budgets
    least = np.zeros((len(classes) + 1, len(budgets)))
    for i in range(len(classes) - 1, -1, -1):
        least[i] = classes[i].costs.min(0) + least[i + 1]
    known, best = -np.inf, None
    for beam in (_BEAM, None):
        scores, costs, steps = np.zeros(1), np.zeros((1, len(budgets))), []
        for i, each in enumerate(classes):
            scores = (scores[:, None] + each.scores).reshape(-1)
            costs = (costs[:, None] + each.costs).reshape(-1, len(budgets))
            bounds = scores - costs @ prices + rest[i + 1]
            possible = (costs + least[i + 1] <= budgets).all(-1) & (bounds >= known - _ROUNDING)
            kept = np.flatnonzero(possible)
            if beam is None:
                kept = kept[_pareto(scores[kept], costs[kept])]
            else:
                kept = kept[np.argsort(-bounds[kept], kind='stable')[:beam]]
            steps.append(np.divmod(kept, len(each.scores)))
            scores, costs = scores[kept], costs[kept]
        if len(scores) and scores.max() > known:
            at = int(scores.argmax())
            known, best = scores[at], []
            for before, index in reversed(steps):
                best.append(int(index[at]))
                at = before[at]
            best.reverse()
    return best


def _with_joint_budget(
    classes: Sequence[_Class], budgets: np.ndarray
) -> tuple[list[_Class], np.ndarray]:
    """Adds a weighted sum of all kinds of cost, with its budget, as a further kind.

    It excludes no choice that keeps the others. But where each budget alone could still be kept and
    all together cannot, it shows this long before the last class.
    """
    weights = _prices(classes, budgets, slack=True)
    joint = [
        each._replace(costs=np.column_stack([each.costs, each.costs @ weights])) for each in classes
    ]
    total = budgets @ weights
    return joint, np.append(budgets, total + _ROUNDING * (1 + abs(total)))


def _prices(classes: Sequence[_Class], budgets: np.ndarray, slack: bool) -> np.ndarray:
    """Returns prices of the costs `[D]`, not negative: a dual solution of the linear relaxation.

    With any prices, the search is right. With these it is fast: neither rounding nor a relaxation
    without a solution can make its result wrong.

    Args:
      classes: the classes.
      budgets: `[D]`.
      slack: whether the relaxation maximizes the smallest slack of all budgets instead of the
        score.
    """
    sizes = [len(each.scores) for each in classes]
    costs = np.concatenate([each.costs for each in classes])
    largest = costs.max(0)
    unit = np.where(largest > 0, largest, 1.0)
    one_of_each = np.repeat(np.eye(len(sizes)), sizes, axis=1)
    scores = np.concatenate([each.scores for each in classes])
    excess = np.full((len(budgets), 1), -1.0 if slack else 0.0)
    solution = optimize.linprog(
        np.append(np.zeros_like(scores), 1.0) if slack else np.append(-scores, 0.0),
        A_ub=np.hstack([(costs / unit).T, excess]),
        b_ub=budgets / unit,
        A_eq=np.hstack([one_of_each, np.zeros((len(sizes), 1))]),
        b_eq=np.ones(len(sizes)),
        bounds=[*[(0, None)] * len(scores), (None, None)],
    )
    if solution.status != 0:
        return np.zeros(len(budgets))
    return np.maximum(0.0, -solution.ineqlin.marginals) / unit
