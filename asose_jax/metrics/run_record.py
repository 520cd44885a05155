"""What the workdir of a run holds, read again: evaluations, phases, growths, and alpha over time.

Whatever is missing or broken there is left out: a reader never fails because of it.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from asose_jax.arch.genotype import NetSpec
from asose_jax.spaces import chain, registry

_ODD = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of what is not as it should


@dataclasses.dataclass(frozen=True)
class Network:
    """A network at one moment.

    Attributes:
      spec: its description.
      chosen: the operation of every row of alpha, by group and member, if it were derived now.
      probabilities: softmax(alpha) by row, in the order of `spec.rows()`; empty if not known.
      factors: of the chosen operations, by group and member; empty where they are not known,
        `None` for an operation without a factor.
    """

    spec: NetSpec
    chosen: list[list[str]]
    probabilities: list[list[float]]
    factors: list[list[float | None]]


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A phase on the axis of evaluations, `first` to `last`, from 0."""

    name: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Grown:
    """A growth: behind which evaluation, what the log tells of it, the network before and after."""

    at: int
    event: dict[str, Any]
    before: Network | None
    after: Network | None


@dataclasses.dataclass(frozen=True)
class Track:
    """A row of alpha through all evaluations, also where growth has changed its number.

    Attributes:
      group: as it is in the end.
      member: as it is in the end.
      candidates: K names.
      columns: evaluation -> probabilities `[K]`.
    """

    group: int
    member: int
    candidates: tuple[str, ...]
    columns: dict[int, list[float]]


@dataclasses.dataclass(frozen=True)
class Record:
    """The files of a workdir; those that are not there are empty.

    Attributes:
      name: of the directory.
      config: field -> value.
      lines: of metrics.jsonl, one for each evaluation.
      unread: how many of its lines cannot be read.
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
        """A figure of every evaluation; `None` where there is no finite number."""
        return [number(line.get(key)) for line in self.lines]

    def last(self, key: str) -> float | None:
        """The newest number of a series, if there is any."""
        return next((n for n in reversed(self.series(key)) if n is not None), None)

    @functools.cached_property
    def stretches(self) -> list[Stretch]:
        found: list[Stretch] = []
        for i, line in enumerate(self.lines):
            if found and found[-1].name == line['phase']:
                found[-1] = dataclasses.replace(found[-1], last=i)
            else:
                found.append(Stretch(line['phase'], i, i))
        return found

    @functools.cached_property
    def _story(self) -> tuple[list[Network | None], list[Grown]]:
        """The network of every evaluation, and the growths."""
        spec, networks, growths = None, [], []
        for i, line in enumerate(self.lines):
            if 'network' in line:
                spec = _spec(line['network'])
            networks.append(_network(spec, line))
            events, grown = line.get('growth'), line.get('grown')
            events = [e for e in events if _is_growth(e)] if isinstance(events, list) else []
            before = networks[-1]
            for number, event in enumerate(events, 1):
                told = grown if isinstance(grown, dict) else {}
                if number < len(events):  # one of several that took place together
                    told = {key: event.get(key) for key in ('network', 'genotype')}
                spec = _spec(told.get('network'))
                after = _network(spec, told)
                growths.append(Grown(i, event, before, after))
                before = after
        return networks, growths

    @property
    def networks(self) -> list[Network | None]:
        return self._story[0]

    @property
    def growths(self) -> list[Grown]:
        return self._story[1]

    def newest_network(self) -> Network | None:
        """That of the last evaluation or growth; of a finished run, the one in genotype.json."""
        spec = _spec(self.genotype.get('network'))
        if spec is not None:
            found = _network(spec, {'genotype': self.genotype.get('genotype')})
            last = self.networks[-1] if self.networks else None
            if found and last and last.chosen == found.chosen:
                found = dataclasses.replace(found, factors=last.factors)
            return found
        if self.growths and self.growths[-1].at == len(self.lines) - 1:
            return self.growths[-1].after
        return self.networks[-1] if self.networks else None

    def tracks(self) -> list[Track]:
        """Alpha over time, by row; empty where nothing was searched."""
        live: dict[tuple[int, int], Track] = {}
        deeper = [
            (grown.at, grown.event['where'])
            for grown in self.growths
            if grown.event.get('kind') == chain.DEPTH
        ]
        for i, network in enumerate(self.networks):
            rows = network.spec.rows() if network and network.probabilities else []
            for row, shares in zip(rows, network.probabilities if rows else [], strict=True):
                if len(row.candidates) == 1:
                    continue
                key = (row.group, row.member)
                live.setdefault(key, Track(*row, {})).columns[i] = shares
            for where in (where for at, where in deeper if at == i):
                live = {(g + (g >= where), m): track for (g, m), track in live.items()}
        return [dataclasses.replace(live[key], group=key[0], member=key[1]) for key in sorted(live)]


def read(workdir: pathlib.Path) -> Record:
    """What `workdir` holds at this moment."""
    files = {name: contents(workdir / f'{name}.json') for name in ('config', 'run', 'summary')}
    lines, unread = [], 0
    path = workdir / 'metrics.jsonl'
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    for line in text.splitlines():
        made = _parsed(line)
        if isinstance(made.get('step'), int) and isinstance(made.get('phase'), str):
            lines.append(made)
        else:
            unread += 1
    chosen = contents(workdir / 'genotype.json')
    return Record(workdir.resolve().name, lines=lines, unread=unread, genotype=chosen, **files)


def _is_growth(event):
    return isinstance(event, dict) and isinstance(event.get('where'), int)


def number(value: Any) -> float | None:
    """`value`, if it is a finite number."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return value if real and math.isfinite(value) else None


def contents(path: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where there is none."""
    return _parsed(path.read_text(encoding='utf-8', errors='replace')) if path.exists() else {}


def _parsed(text):
    try:
        made = json.loads(text)
    except ValueError:
        return {}
    return made if isinstance(made, dict) else {}


def _spec(data: Any) -> NetSpec | None:
    try:
        spec = registry.spec_from_json(data)
        spec.rows()
    except _ODD:  # a space that is not known here, or no description at all
        return None
    return spec


def _network(spec: NetSpec | None, told: Mapping[str, Any]) -> Network | None:
    """The network of a line; `None` if the line does not fit the description."""
    if spec is None:
        return None
    try:
        chosen = [[str(name) for name in group] for group in told['genotype']]
        sizes = [[len(row.candidates) for row in spec.rows()], [len(g) for g in spec.groups()]]
        shares = [[float(share) for share in row] for row in told.get('arch/probabilities') or []]
        fits = [len(group) for group in chosen] == sizes[1]
        fits &= not shares or [len(row) for row in shares] == sizes[0]
        held = _factors(spec, chosen, told.get('factors') or [])
    except _ODD:
        return None
    return Network(spec, chosen, shares, held) if fits else None


def _factors(spec, chosen, told):
    """The factors of the chosen operations; empty if they do not fit the description."""
    if [[len(row) for row in group] for group in told] != [
        [len(names) for names in group] for group in spec.groups()
    ]:
        return []
    return [
        [number(told[g][m][names.index(chosen[g][m])]) for m, names in enumerate(group)]
        for g, group in enumerate(spec.groups())
    ]
