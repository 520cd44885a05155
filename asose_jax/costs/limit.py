"""Keeps the cost of the derived network within limits.

The price of `expected_cost` draws alpha towards a target, which the derived network may miss. A
limit holds: the derived network is the most likely one of those that keep it. Costs are sums over
the choices of a network, so that network is found exactly, see `arch.constrained`.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from asose_jax.arch import constrained, genotype
from asose_jax.arch.genotype import Genotype, NetSpec
from asose_jax.costs import flops
from asose_jax.costs.expected_cost import UNITS, meters_by_kind, with_all_channels
from asose_jax.costs.flops import CostTable, Meter
from asose_jax.costs.latency import Latencies
from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')

# The smallest probability that has a logarithm of its own: below, float32 loses digits.
_MIN_PROBABILITY = float(np.finfo(np.float32).tiny)
# Beyond a limit by a sum in another order of the same numbers; far less than 1 FLOP.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class CostLimit:
    """Holds the limits on the cost of the derived network, and finds networks that keep them.

    Attributes:
      largest: by kind, the largest cost that is allowed, in the unit of `expected_cost.UNITS`.
      meters: by kind, what determines the costs.
    """

    largest: Mapping[str, float]
    meters: Mapping[str, Meter]

    def __str__(self) -> str:
        """Returns the fields of the config, as `cost.limit.params=60000`."""
        return ', '.join(f'cost.limit.{kind}={value:.10g}' for kind, value in self.largest.items())

    def most_likely(self, spec: NetSpec, arch: Mapping[str, Any]) -> Genotype:
        """Returns the genotype within the limits that alpha makes most likely.

        It is that of `genotype.most_likely` if that keeps the limits. Else it maximizes the sum of
        the logarithms by which `NetSpec.choose` ranks candidates: of softmax(alpha) of the chosen
        candidates; where nodes keep some of their edges, of those of kept edges, times their edge
        weights.

        Raises:
          UserError: No genotype keeps the limits.
        """
        rows = genotype.probabilities(spec, arch)
        edges = genotype.edge_weights(spec, arch)
        return self._most_likely(
            spec,
            tuple(tuple(row.tolist()) for row in rows),
            tuple(None if weights is None else tuple(weights.tolist()) for weights in edges),
        )

    @functools.lru_cache(maxsize=4)  # noqa: B019 (an evaluation asks three times; a run has one limit)
    def _most_likely(
        self,
        spec: NetSpec,
        rows: tuple[tuple[float, ...], ...],
        edges: tuple[tuple[float, ...] | None, ...],
    ) -> Genotype:
        probabilities = [np.array(row, np.float32) for row in rows]
        weights = [None if each is None else np.array(each, np.float32) for each in edges]
        likeliest = genotype.genotype_from_indices(spec, spec.choose(probabilities, weights))
        shares = genotype.one_hot_rows(spec, likeliest)
        if spec.is_derived() or not self._exceeded(self._costs(spec, shares)):
            return likeliest
        scores = [np.log(np.maximum(row, _MIN_PROBABILITY)) for row in rows]
        for i, (group, member, _) in enumerate(spec.rows()):
            own = edges[group]
            if own is not None:
                scores[i] += np.log(max(own[member], _MIN_PROBABILITY))
        best = self._best(spec, scores)
        if best is None:
            raise self._unreachable(spec)
        return genotype.genotype_from_indices(spec, best)

    def is_reachable(self, spec: NetSpec) -> bool:
        """Returns whether a network that can be derived keeps all limits."""
        no_preference = [np.zeros(len(row.candidates)) for row in spec.rows()]
        return self._best(spec, no_preference) is not None

    def require_reachable(self, spec: NetSpec) -> None:
        """Checks that a network of the space, or the derived network itself, keeps all limits.

        Raises:
          UserError: None does; the message names the smallest cost of each kind.
        """
        if not self.is_reachable(spec):
            raise self._unreachable(spec)

    def log_reach(self, spec: NetSpec) -> None:
        """Logs the limits, beside the costs of the networks that can be derived."""
        for kind, table in self._tables(spec).items():
            logger.info(
                'cost.limit.%s=%.10g: networks have from %.6g to %.6g',
                *(kind, self.largest[kind], *table.reach(spec)),
            )

    def costs(self, spec: NetSpec) -> dict[str, float]:
        """Returns the cost of a derived network in each kind, as summary.json has them.

        Parameters and multiply-adds are counted in the whole network. FLOPs are those of
        `flops.forward_flops`, and latency is likewise the sum over the parts.
        """
        plain = with_all_channels(dataclasses.replace(spec, factors=()))
        by_table = self._costs(plain, [np.ones(1)] * len(plain.rows()))
        whole = {'params': flops.PARAMS.network, 'multiply_adds': flops.multiply_adds}
        return {
            kind: float(whole[kind](plain) if kind in whole else cost)
            for kind, cost in by_table.items()
        }

    def share(self, spec: NetSpec, chosen: Genotype) -> float:
        """Returns the cost of a network as a share of its limit: the largest of all kinds."""
        costs = self._costs(spec, genotype.one_hot_rows(spec, chosen))
        return max(cost / self.largest[kind] for kind, cost in costs.items())

    def require_kept(self, spec: NetSpec) -> None:
        """Checks the derived network as a whole.

        Raises:
          RuntimeError: It exceeds a limit; that would be a fault of this program.
        """
        costs = self.costs(spec)
        if self._exceeded(costs):
            raise RuntimeError(f'the derived network has {_text(costs)}, beyond {self}')

    def summary(self, spec: NetSpec) -> dict[str, Any]:
        """Returns the entry `cost_limit` of summary.json: limit and value of each kind.

        A latency is the sum over the parts, beside what the whole network takes if that is known.
        """
        entry: dict[str, Any] = {}
        for kind, value in self.costs(spec).items():
            entry[kind] = {'limit': self.largest[kind], 'value': value, 'unit': UNITS[kind]}
            measured = ''
            if kind == 'latency':
                entry[kind]['as_a_whole'] = whole = self.meters[kind].network(spec)
                measured = '' if whole is None else f'; as a whole {whole:.6g}'
            logger.info(
                'cost.limit.%s=%.10g: the derived network has %.10g%s',
                *(kind, self.largest[kind], value, measured),
            )
        return entry

    def _tables(self, spec: NetSpec) -> dict[str, CostTable]:
        full = with_all_channels(spec)
        return {kind: flops.cost_table(full, self.meters[kind]) for kind in self.largest}

    def _costs(self, spec: NetSpec, shares: list[np.ndarray]) -> dict[str, float]:
        return {kind: float(table.total(shares)) for kind, table in self._tables(spec).items()}

    def _exceeded(self, costs: Mapping[str, float]) -> list[str]:
        return [k for k, cost in costs.items() if cost > self.largest[k] * (1 + _ROUNDING)]

    def _best(self, spec: NetSpec, scores: list[np.ndarray]) -> list[int] | None:
        tables = self._tables(spec)
        rows = zip(*(table.rows for table in tables.values()), strict=True)
        budgets = [
            self.largest[kind] * (1 + _ROUNDING) - table.constant for kind, table in tables.items()
        ]
        return constrained.best_choice(
            spec, scores, [np.stack(kinds, -1) for kinds in rows], np.array(budgets)
        )

    def _unreachable(self, spec: NetSpec) -> UserError:
        least = {kind: table.reach(spec)[0] for kind, table in self._tables(spec).items()}
        if spec.is_derived():
            return UserError(
                f'{self}: the network that is to be trained has {_text(least)}. Raise the limit, '
                'leave it out, or name another network.'
            )
        together = '' if self._exceeded(least) else ' together'
        return UserError(
            f'{self}: no network that can be derived keeps this{together}. The smallest values, '
            f'each by itself: {_text(least)}. Raise the limit, or make the network smaller '
            '(model.channels, model.depth, model.primitives).'
        )


def _text(costs: Mapping[str, float]) -> str:
    return ', '.join(f'{cost:.10g} {_NAMES[kind]}' for kind, cost in costs.items())


_NAMES = {
    'params': 'parameters',
    'flops': 'FLOPs',
    'multiply_adds': 'multiply-adds',
    'latency': 'ms of latency',
}


def validation_errors(config: Mapping[str, Any]) -> list[str]:
    """Returns what contradicts the group `cost.limit` of a config."""
    cost, limits, wrong = config['cost'], limits_of(config), []
    if not limits and not cost['targets']:
        return []
    named = f'cost.targets={tuple(cost["targets"])}'
    if not cost['targets']:
        first, value = next(iter(limits.items()))
        named = f'cost.limit.{first}={value:g}'
    own = limits.get(cost['kind'])
    if own is not None and cost['target'] is not None and cost['target'] > own:
        wrong.append(
            f'cost.target={cost["target"]:g}: must not exceed cost.limit.{cost["kind"]}={own:g}, '
            'or alpha is drawn to networks that cannot be derived'
        )
    if config['search']['selection'] != 'argmax':
        wrong.append(
            f'search.selection={config["search"]["selection"]!r}: chooses whatever it costs; with '
            f'{named}, set search.selection=argmax'
        )
    wrong += [
        f'{field}={config[field]}: such networks are chosen whatever they cost; with {named}, '
        'leave it out'
        for field in ('random_cells', 'plain_cells')
        if config[field] and not (cost['targets'] and field == 'random_cells')
    ]
    return wrong


def random_genotype(
    spec: NetSpec,
    largest: Mapping[str, float],
    costs: Mapping[str, Any],
    generator: np.random.Generator,
) -> Genotype:
    """Draws a genotype that keeps limits: the one that a search with random alpha would end with.

    The probabilities of the candidates are drawn as in `genotype.random`. Where the genotype that
    they make most likely keeps the limits, it is that one.

    Args:
      spec: Description of the network, for which some genotype keeps the limits.
      largest: By kind, the largest cost that is allowed.
      costs: Content of costs.json, as `expected_cost.write_costs` wrote it for `spec`.
      generator: Source of randomness.
    """
    scores = [
        np.log(np.maximum(generator.dirichlet(np.ones(len(row.candidates))), _MIN_PROBABILITY))
        for row in spec.rows()
    ]
    rows = [
        np.array([[entry['candidates'][name][kind] for kind in largest] for name in row.candidates])
        for row, entry in zip(spec.rows(), costs['rows'], strict=True)
    ]
    budgets = [value * (1 + _ROUNDING) - costs['around'][kind] for kind, value in largest.items()]
    best = constrained.best_choice(spec, scores, rows, np.array(budgets))
    assert best is not None, 'the search under these limits ended with such a genotype'
    return genotype.genotype_from_indices(spec, best)


def limits_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Returns the limits of a config that are set, by kind."""
    return {kind: value for kind, value in config['cost']['limit'].items() if value is not None}


def make_limit(config: ml_collections.ConfigDict, latencies: Latencies | None) -> CostLimit | None:
    """Builds the limit that the group `cost.limit` of a config describes; `None` for none."""
    largest = limits_of(config)
    return CostLimit(largest, meters_by_kind(latencies)) if largest else None
