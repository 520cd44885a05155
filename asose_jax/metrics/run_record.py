"""Reads the files of a workdir back: evaluations, phases, growths, and alpha over time.

Missing and malformed files, lines and values are left out: reading never fails because of them.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from asose_jax.arch.genotype import NetSpec
from asose_jax.runtime.workdir import parse_object, read_json_object
from asose_jax.spaces import chain, registry

# Raised while malformed JSON values are interpreted.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclasses.dataclass(frozen=True)
class Network:
    """Holds the state of a network at one evaluation.

    Attributes:
      spec: its description.
      chosen: name of the most likely operation of every row of alpha, by group and member.
      probabilities: softmax(alpha) by row, in the order of `spec.rows()`; empty if not known.
      factors: factors of the chosen operations, by group and member; `None` for an operation
        without a factor. Empty if not known.
    """

    spec: NetSpec
    chosen: list[list[str]]
    probabilities: list[list[float]]
    factors: list[list[float | None]]


@dataclasses.dataclass(frozen=True)
class PhaseRange:
    """Names a phase, and its first and last evaluation (inclusive, counted from 0)."""

    name: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class GrowthEvent:
    """Describes one growth of the network.

    Attributes:
      at: the evaluation after which it took place, counted from 0.
      event: its entry in metrics.jsonl: `kind`, `where`, parameters and accuracies.
      before: the network before it; `None` if it cannot be read.
      after: the network after it; likewise.
    """

    at: int
    event: dict[str, Any]
    before: Network | None
    after: Network | None


@dataclasses.dataclass(frozen=True)
class Track:
    """Follows one row of alpha through all evaluations, also where growth renumbers its block.

    Attributes:
      group: its group in the last network.
      member: its member in the last network.
      candidates: names of the K operations.
      columns: probabilities `[K]` by evaluation.
    """

    group: int
    member: int
    candidates: tuple[str, ...]
    columns: dict[int, list[float]]


class _History(NamedTuple):
    networks: list[Network | None]
    growths: list[GrowthEvent]


@dataclasses.dataclass(frozen=True)
class Record:
    """Holds what the files of a workdir contain; a missing file counts as empty.

    Attributes:
      name: name of the directory.
      config: config.json: field -> value.
      lines: readable lines of metrics.jsonl, one for each evaluation.
      unread: number of its lines that cannot be read.
      run: run.json.
      summary: summary.json; a run is finished when it has one.
      genotype: genotype.json.
    """

    name: str
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    unread: int = 0
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    genotype: dict[str, Any] = dataclasses.field(default_factory=dict)

    def series(self, key: str) -> list[float | None]:
        """Returns a metric at every evaluation; `None` where it is missing or not finite."""
        return [finite_or_none(line.get(key)) for line in self.lines]

    def last(self, key: str) -> float | None:
        """Returns the newest finite value of a metric, or `None` if there is none."""
        return next((n for n in reversed(self.series(key)) if n is not None), None)

    @functools.cached_property
    def phase_ranges(self) -> list[PhaseRange]:
        """Returns the phases in order, each with its first and last evaluation."""
        phases: list[PhaseRange] = []
        for i, line in enumerate(self.lines):
            if phases and phases[-1].name == line['phase']:
                phases[-1] = dataclasses.replace(phases[-1], last=i)
            else:
                phases.append(PhaseRange(line['phase'], i, i))
        return phases

    @functools.cached_property
    def _history(self) -> _History:
        """Follows the description of the network, which is logged only where it changes."""
        spec: NetSpec | None = None
        networks: list[Network | None] = []
        growths: list[GrowthEvent] = []
        for i, line in enumerate(self.lines):
            if 'network' in line:
                spec = _spec(line['network'])
            networks.append(_network(spec, line))
            events, grown = line.get('growth'), line.get('grown')
            events = [e for e in events if _is_growth(e)] if isinstance(events, list) else []
            before = networks[-1]
            for nth, event in enumerate(events, 1):
                entry = grown if isinstance(grown, dict) else {}
                if nth < len(events):  # `grown` describes the network after the last of them
                    entry = {key: event.get(key) for key in ('network', 'genotype')}
                spec = _spec(entry.get('network'))
                after = _network(spec, entry)
                growths.append(GrowthEvent(i, event, before, after))
                before = after
        return _History(networks, growths)

    @property
    def networks(self) -> list[Network | None]:
        """Returns the network at every evaluation; `None` where it cannot be read."""
        return self._history.networks

    @property
    def growths(self) -> list[GrowthEvent]:
        """Returns the growths in order."""
        return self._history.growths

    def newest_network(self) -> Network | None:
        """Returns the network of genotype.json or, in an unfinished run, the newest in the log."""
        spec = _spec(self.genotype.get('network'))
        if spec is not None:
            network = _network(spec, {'genotype': self.genotype.get('genotype')})
            last = self.networks[-1] if self.networks else None
            if network and last and last.chosen == network.chosen:
                network = dataclasses.replace(network, factors=last.factors)
            return network
        if self.growths and self.growths[-1].at == len(self.lines) - 1:
            return self.growths[-1].after
        return self.networks[-1] if self.networks else None

    def tracks(self) -> list[Track]:
        """Returns alpha over time, a track for each row that was searched; empty without a search.

        A growth in depth inserts a block: the rows of all later blocks get other numbers, and
        their tracks go on under these.
        """
        live: dict[tuple[int, int], Track] = {}  # by group and member in the current network
        inserted = [
            (grown.at, grown.event['where'])
            for grown in self.growths
            if grown.event.get('kind') == chain.DEPTH
        ]
        for i, network in enumerate(self.networks):
            if network and network.probabilities:
                for row, shares in zip(network.spec.rows(), network.probabilities, strict=True):
                    if len(row.candidates) > 1:
                        key = (row.group, row.member)
                        live.setdefault(key, Track(*row, {})).columns[i] = shares
            for where in (where for at, where in inserted if at == i):
                live = {(g + (g >= where), m): track for (g, m), track in live.items()}
        return [dataclasses.replace(live[key], group=key[0], member=key[1]) for key in sorted(live)]


def read(workdir: pathlib.Path) -> Record:
    """Reads the files of the workdir of a run or a sweep as they are at this moment.

    A line of metrics.jsonl counts as readable if it has a `step` and a `phase`.
    """
    files = {
        name: read_json_object(workdir / f'{name}.json') for name in ('config', 'run', 'summary')
    }
    lines, unread = [], 0
    path = workdir / 'metrics.jsonl'
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    for line in text.splitlines():
        metrics = parse_object(line)
        if isinstance(metrics.get('step'), int) and isinstance(metrics.get('phase'), str):
            lines.append(metrics)
        else:
            unread += 1
    chosen = read_json_object(workdir / 'genotype.json')
    return Record(workdir.resolve().name, lines=lines, unread=unread, genotype=chosen, **files)


def _is_growth(event: object) -> bool:
    return isinstance(event, dict) and isinstance(event.get('where'), int)


def finite_or_none(value: object) -> float | None:
    """Returns `value` if it is a finite number, not a bool, and `None` otherwise."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return value if math.isfinite(value) else None


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a metrics line by name, but for its step."""
    return {
        name: value
        for name, value in line.items()
        if name != 'step' and finite_or_none(value) is not None
    }


def _spec(data: Any) -> NetSpec | None:
    """Returns the description in `data`; `None` if it is malformed or of an unknown space."""
    try:
        spec = registry.spec_from_json(data)
        spec.rows()
    except _MALFORMED:
        return None
    return spec


def _network(spec: NetSpec | None, line: Mapping[str, Any]) -> Network | None:
    """Returns the network of a metrics line; `None` if the line does not fit the description."""
    if spec is None:
        return None
    try:
        chosen = [[str(name) for name in group] for group in line['genotype']]
        row_sizes = [len(row.candidates) for row in spec.rows()]
        group_sizes = [len(group) for group in spec.groups()]
        rows = line.get('arch/probabilities') or []
        probabilities = [[float(share) for share in row] for row in rows]
        fits = [len(group) for group in chosen] == group_sizes
        fits &= not probabilities or [len(row) for row in probabilities] == row_sizes
        factors = _factors(spec, chosen, line.get('factors') or [])
    except _MALFORMED:
        return None
    return Network(spec, chosen, probabilities, factors) if fits else None


def _factors(
    spec: NetSpec, chosen: Sequence[Sequence[str]], factors: Sequence[Sequence[Sequence[Any]]]
) -> list[list[float | None]]:
    """Selects the factors of the chosen operations; empty if they do not fit the description.

    Args:
      spec: description of the network.
      chosen: names of operations by group and member.
      factors: by group, member and candidate.
    """
    if [[len(row) for row in group] for group in factors] != [
        [len(names) for names in group] for group in spec.groups()
    ]:
        return []
    return [
        [finite_or_none(factors[g][m][names.index(chosen[g][m])]) for m, names in enumerate(group)]
        for g, group in enumerate(spec.groups())
    ]
