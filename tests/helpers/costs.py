"""Where the time of a test run goes: the slowest tests, the compiler, and its cache."""

import collections
import json
import pathlib

import jax
import pytest

_SLOWEST = 20
_COMPILING = '/jax/core/compile/backend_compile_duration'
_TRACING = tuple(
    f'/jax/core/compile/{part}_duration' for part in ('jaxpr_trace', 'jaxpr_to_mlir_module')
)
_HIT, _MISS = '/jax/compilation_cache/cache_hits', '/jax/compilation_cache/cache_misses'


def seconds(file: pathlib.Path) -> dict[str, float]:
    """Reads what tests took in earlier runs, by their names; empty if that is not known."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


class Costs:
    """A plugin of pytest: listens to the compiler, and tells at the end what took how long.

    Args:
      config: of pytest; in a worker the numbers go to the process that gathers them.
      file: where the seconds of each test are kept for the next run.
    """

    def __init__(self, config: pytest.Config, file: pathlib.Path):
        self._config, self._file = config, file
        self._took = collections.defaultdict(float)
        self._counts = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._heard_duration)
        jax.monitoring.register_event_listener(self._heard)

    def _heard_duration(self, event, duration, **_):
        if event == _COMPILING:
            self._counts['compiling'] += duration
            self._counts['programs'] += 1
        elif event in _TRACING:
            self._counts['tracing'] += duration

    def _heard(self, event, **_):
        if event in (_HIT, _MISS):
            self._counts['hits' if event == _HIT else 'misses'] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self._config, 'workeroutput'):
            self._config.workeroutput['costs'] = dict(self._counts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        self._counts.update(getattr(node, 'workeroutput', {}).get('costs', {}))

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not self._took:
            return
        longest = sorted(self._took.items(), key=lambda each: -each[1])[:_SLOWEST]
        terminalreporter.section(f'the {len(longest)} slowest tests, with their fixtures')
        for name, took in longest:
            terminalreporter.write_line(f'{took:7.1f} s  {name}')
        count, total = self._counts, sum(self._took.values())
        terminalreporter.write_line(
            f'of {total:.0f} s in tests: {count["compiling"]:.0f} s in the compiler or reading its '
            f'cache ({count["programs"]:.0f} programs; {count["hits"]} read, {count["misses"]} '
            f'written), {count["tracing"]:.0f} s tracing'
        )
        known = {name: round(took, 3) for name, took in self._took.items()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps({**seconds(self._file), **known}))
