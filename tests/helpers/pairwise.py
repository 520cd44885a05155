"""Few cases that still hold every pair of values of any two factors."""

import itertools
from collections.abc import Sequence
from typing import Any


def pairs(case: Sequence[Any]) -> set[tuple[Any, ...]]:
    """All pairs of a case, each value with the place of its factor."""
    return set(itertools.combinations(enumerate(case), 2))


def cases(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Picks, from all combinations, whichever has most pairs that none picked before has."""
    left = list(itertools.product(*factors))
    missing, chosen = set().union(*map(pairs, left)), []
    while missing:
        best = max(left, key=lambda case: len(pairs(case) & missing))
        missing -= pairs(best)
        chosen.append(best)
    return chosen


def covers(chosen: Sequence[Sequence[Any]], *factors: Sequence[Any]) -> bool:
    """Whether any two values of two factors meet in a case."""
    wanted = {
        ((i, one), (j, other))
        for (i, first), (j, second) in itertools.combinations(enumerate(factors), 2)
        for one in first
        for other in second
    }
    return wanted <= set().union(*map(pairs, chosen))
