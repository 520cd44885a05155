"""Adds a penalty on the cost of the derived network to the loss of alpha.

    weight * |E[cost] / target - 1|

This is the absolute reward of TuNAS (Bender et al. 2020, arXiv:2008.06120), which has the opposite
sign and uses the cost of one drawn network. Here, costs are sums over parts, so the mean over all
networks is exact and differentiable, and needs no draw.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from asose_jax.arch import genotype, gumbel
from asose_jax.arch.genotype import FALLBACK, NetSpec
from asose_jax.costs import flops
from asose_jax.costs.flops import Meter
from asose_jax.costs.latency import Latencies, LatencyTable
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')

UNITS = {
    'flops': 'floating-point operations of one image, forward; a multiply-add counts as two',
    'params': 'numbers in params',
    'multiply_adds': 'multiply-adds of convolutions and head for one image, forward',
    'latency': 'milliseconds of one batch of cost.batch_size images (or 1), forward',
}
LATENCY_FILE = 'latency.json'  # file in the workdir
COSTS_FILE = 'costs.json'  # file in the workdir


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """Sets the target for the cost of the derived network, and computes the penalty.

    Attributes:
      kind: A key of `UNITS`.
      target: Desired cost of the whole network, in the unit of its kind.
      weight: Weight of the penalty.
      meter: Determines the costs.
    """

    kind: str
    target: float
    weight: float
    meter: Meter

    def expected(self, spec: NetSpec, rows: list[Any]) -> Any:
        """Returns the mean cost of networks that are derived at random, see `NetSpec.shares`.

        The rows are softmax(alpha) `[K]`, NumPy or traced; the unit is that of the kind.
        """
        return self._table(spec).total(spec.shares(rows))

    def _table(self, spec: NetSpec) -> flops.CostTable:
        return flops.cost_table(with_all_channels(spec), self.meter)

    def penalty(self, spec: NetSpec) -> Callable[[Any], jax.Array]:
        """Returns `arch -> penalty`, float32, to be added to the loss of alpha.

        A row of alpha that is not finite counts as skip_connect and gets no gradient.
        """
        table = self._table(spec)  # outside of the traced function, because it may measure

        def penalty_of(arch: Any) -> jax.Array:
            rows = []
            for group, member, candidates in spec.rows():
                alpha = genotype.subtree(arch, spec.alpha_path(group, member))['alpha']
                safe = candidates.index(FALLBACK)
                rows.append(gumbel.guarded_weights(alpha, jax.nn.softmax, fallback=safe)[0])
            return self.weight * jnp.abs(table.total(spec.shares(rows)) / self.target - 1)

        return penalty_of

    def reach(self, spec: NetSpec) -> tuple[float, float]:
        """Returns the costs of the cheapest and the most expensive network of the space."""
        return self._table(spec).reach(spec)

    def require_reachable_target(self, spec: NetSpec, grows: bool) -> None:
        """Checks that a network of the space can meet the target, or will do so when it has grown.

        Raises:
          UserError: The target is out of reach; the message names the range.
        """
        low, high = self.reach(spec)
        if self.target < low or (self.target > high and not grows):
            raise UserError(
                f'cost.target={self.target:g}: networks of this space cost from {low:.6g} to '
                f'{high:.6g} ({UNITS[self.kind]}). Set a target in between.'
            )

    def log_reach(self, spec: NetSpec) -> None:
        """Logs the target beside the costs of the networks that can be derived."""
        low, high = self.reach(spec)
        logger.info(
            'cost (%s): networks cost from %.4g to %.4g, target %.4g',
            *(self.kind, low, high, self.target),
        )
        if self.target < low:
            logger.warning(
                'cost.target=%g cannot be reached any more: the grown network costs at least %.4g',
                *(self.target, low),
            )

    def summary(self, spec: NetSpec) -> dict[str, Any]:
        """Returns the entry `cost` of summary.json: by the table, and as a whole if known."""
        return {
            'kind': self.kind,
            'unit': UNITS[self.kind],
            'target': self.target,
            'by_table': float(self.expected(spec, [np.ones(1)] * len(spec.rows()))),
            'as_a_whole': self.meter.network(spec),
        }


def with_all_channels(spec: NetSpec) -> NetSpec:
    """Returns the network without partial channels, which a derived network does not have."""
    return dataclasses.replace(spec, partial=1)


def write_costs(spec: NetSpec, meters: Mapping[str, Meter], directory: pathlib.Path) -> None:
    """Writes `costs.json`: the costs of all candidates, and of what is around them."""
    tables = {
        kind: flops.cost_table(with_all_channels(spec), meter) for kind, meter in meters.items()
    }
    rows = [
        {
            'group': group,
            'member': member,
            'candidates': {
                name: {kind: float(table.rows[i][k]) for kind, table in tables.items()}
                for k, name in enumerate(candidates)
            },
        }
        for i, (group, member, candidates) in enumerate(spec.rows())
    ]
    constant = {kind: table.constant for kind, table in tables.items()}
    content = {'units': {kind: UNITS[kind] for kind in tables}, 'around': constant, 'rows': rows}
    workdir.write_atomically(directory / COSTS_FILE, json.dumps(content, indent=2) + '\n')


def grows(config: Mapping[str, Any]) -> bool:
    """Returns whether the network grows during the run, and its costs with it."""
    return bool(config['growth']['epochs'] and config['growth']['kinds'])


def validation_errors(config: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the group `cost` of a config."""
    cost, messages = config['cost'], []
    kind, target, batch_size = cost['kind'], cost['target'], cost['batch_size']
    if cost['targets']:
        messages += _target_errors(cost)
    elif (kind is None) != (target is None):
        messages.append(f'cost.kind={kind!r}, cost.target={target!r}: set both or neither')
    if batch_size is not None and not _measures_latency(cost):
        messages.append(
            f"cost.batch_size={batch_size}: only cost.kind='latency' and cost.limit.latency "
            'measure batches; leave it out'
        )
    if cost['table'] is not None and not _measures_latency(cost):
        messages.append(
            f"cost.table={cost['table']!r}: only cost.kind='latency' and cost.limit.latency need "
            'latencies; leave it out'
        )
    if cost['table'] is not None and grows(config):
        messages.append(
            f'cost.table={cost["table"]!r}: has no latencies of networks that have grown; set '
            'growth.epochs=0'
        )
    if kind is not None and not any(config[phase]['epochs'] for phase in ('search', 'growth')):
        messages.append(
            f'cost.kind={kind!r}: nothing is chosen because search and growth have 0 epochs; '
            'leave cost.kind and cost.target out'
        )
    return messages


def _target_errors(cost: Mapping[str, Any]) -> list[str]:
    """Returns what contradicts `cost.targets`, each of which is a price and a limit."""
    kind, named = cost['kind'], f'cost.targets={tuple(cost["targets"])}'
    if kind is None:
        return [f'{named}: set cost.kind to what they count: {", ".join(UNITS)}']
    own = {'cost.target': cost['target'], f'cost.limit.{kind}': cost['limit'][kind]}
    messages = [
        f'{field}={value:g}: each of {named} is such a value itself; leave it out'
        for field, value in own.items()
        if value is not None
    ]
    if _measures_latency(cost) and cost['table'] is None:
        messages.append(
            f'{named}: each run would measure other latencies; name a table of them, cost.table'
        )
    return messages


def _measures_latency(cost: Mapping[str, Any]) -> bool:
    return cost['kind'] == 'latency' or cost['limit']['latency'] is not None


def open_latencies(
    config: ml_collections.ConfigDict, directory: pathlib.Path, started: bool
) -> Latencies | None:
    """Opens the file of latencies, if there is a price or a limit on them; else `None`.

    Raises:
      UserError: Latencies are to be measured on more than one host, or their file cannot be used.
    """
    cost = config.cost
    if not _measures_latency(cost):
        return None
    if cost.table is not None:
        is_copied = started and (directory / LATENCY_FILE).exists()
        table = None if is_copied else cost.table
        return LatencyTable(directory / LATENCY_FILE, cost.batch_size or 1, table)
    if jax.process_count() > 1:
        field = "cost.kind='latency'"
        if cost.kind != 'latency':
            field = f'cost.limit.latency={cost.limit.latency:g}'
        raise UserError(
            f'{field}: each host would measure different latencies. Search on one host, or set the '
            "kind 'flops' instead."
        )
    if started and not (directory / LATENCY_FILE).exists():
        logger.warning(
            '%s is missing: latencies are measured again, so the resumed run will not be the same '
            'bit for bit',
            directory / LATENCY_FILE,
        )
    return Latencies(directory / LATENCY_FILE, cost.batch_size or 1, config.model.dtype)


def meters_by_kind(latencies: Latencies | None) -> dict[str, Meter]:
    """Returns what determines the costs of each kind; without latencies, only what is counted."""
    if latencies is None:
        return flops.COUNTED
    return {**flops.COUNTED, 'latency': Meter(latencies.operation, latencies.network)}


def make_budget(config: ml_collections.ConfigDict, latencies: Latencies | None) -> Budget | None:
    """Builds the budget that the group `cost` of a config describes; `None` for none."""
    cost = config.cost
    if cost.kind is None:
        return None
    return Budget(cost.kind, cost.target, cost.weight, meters_by_kind(latencies)[cost.kind])
