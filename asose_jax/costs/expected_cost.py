"""A price on what the derived network costs: a term of alpha's loss, and its table.

    weight * |E[cost] / target - 1|

is the absolute value reward of TuNAS (Bender et al. 2020, arXiv:2008.06120), there with the other
sign and the cost of one drawn network. Costs are sums over parts, so that the mean over all
networks is exact and differentiable, and nothing need be drawn.
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
from asose_jax.arch.genotype import SAFE, NetSpec
from asose_jax.costs import flops
from asose_jax.costs.flops import Meter
from asose_jax.costs.latency import Latencies
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')

UNITS = {
    'flops': 'floating-point operations of one image, forward; a multiply-add counts as two',
    'params': 'numbers in params',
    'latency': 'milliseconds of one batch of cost.batch_size images (or 1), forward',
}
LATENCY = 'latency.json'
COSTS = 'costs.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Budget:
    """What the derived network may cost.

    Attributes:
      kind: a key of `UNITS`.
      target: in that unit, of the whole network.
      weight: of the term.
      meter: says what things cost.
      latencies: where they are kept, if that is the kind.
    """

    kind: str
    target: float
    weight: float
    meter: Meter
    latencies: Latencies | None = None

    def expected(self, spec: NetSpec, rows: list[Any]) -> Any:
        """The mean cost over networks derived by chance, see `NetSpec.shares`.

        Args:
          spec: of the network.
          rows: softmax(alpha) `[K]` for each of its rows, NumPy or traced.

        Returns:
          A number in the unit of the kind.
        """
        return self._table(spec).total(spec.shares(rows))

    def _table(self, spec):
        return flops.table(_derivable(spec), self.meter)

    def penalty(self, spec: NetSpec) -> Callable[[Any], jax.Array]:
        """The term for alpha's loss, float32, as a function of the tree of alpha.

        A row that is not finite counts as skip_connect, and gets no gradient.
        """
        table = self._table(spec)  # now, since this measures and what is traced cannot

        def of(arch):
            rows = []
            for group, member, candidates in spec.rows():
                alpha = genotype.at(arch, spec.alpha_path(group, member))['alpha']
                safe = candidates.index(SAFE)
                rows.append(gumbel.guarded_weights(alpha, jax.nn.softmax, fallback=safe)[0])
            return self.weight * jnp.abs(table.total(spec.shares(rows)) / self.target - 1)

        return of

    def reach(self, spec: NetSpec) -> tuple[float, float]:
        """What the cheapest and the dearest of the networks cost that can be derived."""
        constant, rows = self._table(spec)
        top = max(row.max() for row in rows)
        picked = [spec.choose(scores) for scores in ([top - row for row in rows], rows)]
        low, high = (
            constant + sum(float(row[int(k)]) for row, k in zip(rows, chosen, strict=True))
            for chosen in picked
        )
        return low, high

    def require_reach(self, spec: NetSpec, grows: bool) -> None:
        """Refuses a target that no network of the space meets; networks that grow may cost more.

        Raises:
          UserError: with the range.
        """
        low, high = self.reach(spec)
        if self.target < low or (self.target > high and not grows):
            raise UserError(
                f'cost.target={self.target:g}: networks of this space cost from {low:.6g} to '
                f'{high:.6g} ({UNITS[self.kind]}). Set a target in between.'
            )

    def measure_costs(self, spec: NetSpec, directory: pathlib.Path, is_primary_host: bool) -> None:
        """Counts and measures what `spec` needs, and writes it, before anything makes use of it.

        The devices must be idle, or what is measured is wrong.
        """
        low, high = self.reach(spec)
        logger.info(
            'cost (%s): networks from %.4g to %.4g, target %.4g', self.kind, low, high, self.target
        )
        if self.target < low:
            logger.warning('the network has grown so far that none of its choices meets the target')
        if is_primary_host and self.latencies is not None:
            self.latencies.save()
        if is_primary_host:
            text = json.dumps(self.table(spec), indent=2) + '\n'
            workdir.write_atomically(directory / COSTS, text)

    def table(self, spec: NetSpec) -> dict[str, Any]:
        """JSON: what every candidate of every row costs, and what is around them; by kind."""
        meters = {'flops': flops.FLOPS, 'params': flops.PARAMS, self.kind: self.meter}
        tables = {kind: flops.table(_derivable(spec), meter) for kind, meter in meters.items()}
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
        return {'units': {kind: UNITS[kind] for kind in tables}, 'around': constant, 'rows': rows}

    def summary(self, spec: NetSpec, is_primary_host: bool) -> dict[str, Any]:
        """JSON: what the derived network costs by the table, and as a whole."""
        found = {
            'kind': self.kind,
            'unit': UNITS[self.kind],
            'target': self.target,
            'by_table': float(self.expected(spec, [np.ones(1)] * len(spec.rows()))),
            'as_a_whole': self.meter.network(spec),
        }
        if is_primary_host and self.latencies is not None:
            self.latencies.save()
        return found


def _derivable(spec):
    """With all channels: what a derived network has."""
    return dataclasses.replace(spec, partial=1)


def contradictions(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the group `cost`, a line each."""
    c, wrong = config['cost'], []
    if (c['kind'] is None) != (c['target'] is None):
        wrong.append(f'cost.kind={c["kind"]!r}, cost.target={c["target"]!r}: set both or neither')
    if c['batch_size'] is not None and c['kind'] != 'latency':
        wrong.append(
            f"cost.batch_size={c['batch_size']}: only cost.kind='latency' measures batches"
        )
    if c['kind'] is not None and not any(config[p]['epochs'] for p in ('search', 'growth')):
        wrong.append(
            f'cost.kind={c["kind"]!r}: nothing is chosen, as search and growth have 0 epochs; '
            'leave cost.kind and cost.target out'
        )
    return wrong


def budget(
    config: ml_collections.ConfigDict, directory: pathlib.Path, started: bool
) -> Budget | None:
    """The budget that the group `cost` asks for, if it does.

    Args:
      config: of the run.
      directory: its workdir.
      started: whether the run goes on.

    Raises:
      UserError: latencies on many hosts, or of a file that cannot be used.
    """
    c = config.cost
    if c.kind is None:
        return None
    if c.kind != 'latency':
        meter = {'flops': flops.FLOPS, 'params': flops.PARAMS}[c.kind]
        return Budget(c.kind, c.target, c.weight, meter)
    if jax.process_count() > 1:
        raise UserError(
            "cost.kind='latency': the hosts would each measure something else. Search on one host, "
            "or take cost.kind='flops'."
        )
    if started and not (directory / LATENCY).exists():
        logger.warning(
            '%s is not there: latencies are measured anew, so the run does not go on bit for bit',
            directory / LATENCY,
        )
    latencies = Latencies(directory / LATENCY, c.batch_size or 1, config.model.dtype)
    meter = Meter(latencies.operation, latencies.network)
    return Budget(c.kind, c.target, c.weight, meter, latencies)
