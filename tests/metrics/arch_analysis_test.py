"""What a run tells."""

import io
import itertools
import json
import logging
import math
import re
import types

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from helpers import networks

from asose_jax.arch import genotype
from asose_jax.metrics import arch_analysis, metrics_log, progress
from asose_jax.metrics.progress import Progress
from asose_jax.pipeline import run_summary
from asose_jax.train.phases import Phase, Span

SPEC = networks.build('chain', (8, 8, 1), 2, channels=4, depth=2, reductions=(), max_channels=4)
FIGURES = {'train/loss': 1.5, 'train/accuracy': 0.25, 'tau': 0.5}


def _arch(first, second):
    return {
        'block_0': {'choice_0': {'alpha': jnp.array(first, jnp.float32)}},
        'block_1': {'choice_0': {'alpha': jnp.array(second, jnp.float32)}},
    }


def test_analysis_by_hand():
    certain = [0.0] * 3 + [1e3] + [0.0] * 6
    even = [0.0] * 10
    arch = _arch(certain, even)
    told = arch_analysis.analyze_architecture(arch, SPEC, [['none'], ['none']])
    assert told['arch/entropies'] == pytest.approx([0, math.log(10)])
    assert told['arch/entropy'] == pytest.approx(math.log(10) / 2)
    assert told['arch/confidence'] == pytest.approx(0.55)
    assert told['genotype'] == [['skip_connect'], ['none']]
    assert (told['arch/skip_fraction'], told['arch/none_fraction']) == (0.5, 0.5)
    assert told['arch/param_free_fraction'] == 1
    assert told['arch/counts'] == {'skip_connect': 1, 'none': 1}
    assert told['arch/changed'] == [0]
    assert told['arch/probabilities'] == [[0, 0, 0, 1, 0, 0, 0, 0, 0, 0], [0.1] * 10]
    assert told['arch/draw_entropy'] is None
    json.dumps(told)
    arch['block_1']['choice_0']['alpha'] = jnp.arange(10.0)
    drawn = np.exp(np.arange(10) / 0.5)
    drawn /= drawn.sum()
    told = arch_analysis.analyze_architecture(arch, SPEC, sampling_temperature=0.5)
    assert told['arch/draw_entropy'] == pytest.approx(-(drawn * np.log(drawn)).sum() / 2, rel=1e-5)


def test_derived_network_is_sure():
    chosen = genotype.Genotype((('sep_conv_3x3',), ('none',)))
    told = arch_analysis.analyze_architecture({}, genotype.derive(SPEC, chosen))
    assert (told['arch/entropy'], told['arch/confidence']) == (0, 1)
    assert told['genotype'] == [['sep_conv_3x3'], ['none']]


def test_metrics_of_work_that_will_be_done_again_are_dropped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    log = metrics_log.MetricsLog(path, 0)
    for step in (10, 20, 30):
        log.write({'step': step, 'loss': 1.0})
    with path.open('a') as file:
        file.write('{"step": 40, "lo')
    metrics_log.MetricsLog(path, 20).write({'step': 30, 'loss': 2.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line['step'], line['loss']) for line in lines] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    metrics_log.MetricsLog(path, 0).write(
        {'step': 1, 'valid/loss': float('nan'), 'x': float('inf')}
    )
    assert path.read_text() == '{"step": 1, "valid/loss": null, "x": null}\n'


def test_factors_are_rounded_and_null_where_they_are_no_numbers():
    factors = [[[jnp.float32(1 / 3), None]], [[jnp.float32(0)], [jnp.float32(jnp.nan)]]]
    assert arch_analysis.rounded_factors(factors) == [[[0.3333, None]], [[0.0], [None]]]


def _console(terminal, width=120):
    return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=width)


def test_without_a_terminal_there_are_plain_lines(caplog):
    console = _console(False)
    span = Span(Phase.SEARCH, 100, 200, 10)
    with (
        caplog.at_level(logging.INFO, 'asose_jax'),
        Progress(console, span, 100, 32) as p,
    ):
        p.update(110, FIGURES)
        p.evaluated(110, {**FIGURES, 'valid/accuracy': 0.5, 'arch/entropy': 2.0})
    (line,) = [record.getMessage() for record in caplog.records]
    for part in ('search 1/10', 'loss 1.500', 'train 25.0%', 'valid 50.0%', 'tau 0.50', 'ETA 0:'):
        assert part in line
    assert 'images/s' in line
    assert console.file.getvalue() == ''


def test_a_pause_counts_neither_as_training_nor_towards_the_next_line(caplog, monkeypatch):
    """Ten steps of 10 s, a pause of 1000 s between them: no line, and 1 step a second."""
    seconds = iter([0, 10, 1010, 1020])
    clock = types.SimpleNamespace(monotonic=seconds.__next__)
    monkeypatch.setattr(progress, 'time', clock)
    bar = Progress(_console(False), Span(Phase.GROWTH, 0, 100, 10), 0, 32)
    with caplog.at_level(logging.INFO, 'asose_jax'):
        bar.update(10, FIGURES)
        bar.resume()
        bar.update(20, FIGURES)
    assert bar.steps_per_second == 1
    assert not caplog.records


def test_in_a_terminal_there_is_a_bar():
    console = _console(True)
    with Progress(console, Span(Phase.WARMUP, 0, 100, 10), 0, 32) as bar:
        bar.update(50, {**FIGURES, 'tau': None})
    drawn = console.file.getvalue()
    assert 'warmup' in drawn
    assert '5/10' in drawn
    assert 'tau' not in drawn


def test_in_a_notebook_there_is_one_output_that_ends_in_the_last_state(monkeypatch):
    """At most one drawing each half second, and one at the end."""
    clock = types.SimpleNamespace(monotonic=itertools.count(0, 0.2).__next__)
    monkeypatch.setattr(progress, 'time', clock)
    console, shown = rich.console.Console(force_jupyter=True), []

    def display(bar, display_id):
        assert display_id
        output = types.SimpleNamespace(update=lambda bar: shown.append(_text(bar)))
        output.update(bar)
        return output

    monkeypatch.setattr('IPython.display.display', display)
    with Progress(console, Span(Phase.SEARCH, 0, 100, 10), 0, 32) as bar:
        for step in range(10, 90, 10):
            bar.update(step, FIGURES)
        during = len(shown)
        assert during < 7
    assert len(shown) == during + 1
    assert 'search' in shown[0]
    assert '8/10' in shown[-1]


def _text(renderable):
    return renderable._repr_mimebundle_((), ())['text/plain']


def test_all_that_the_bar_says_fits_80_columns(monkeypatch):
    clock = types.SimpleNamespace(monotonic=itertools.count(0, 60).__next__)
    monkeypatch.setattr(progress, 'time', clock)
    console = _console(True, width=80)
    with Progress(console, Span(Phase.OPTIMIZE, 0, 10_000, 100), 0, 128) as bar:
        bar.evaluated(100, {**FIGURES, 'valid/accuracy': 0.5, 'arch/entropy': 0.0})
        bar.update(9950, FIGURES)
    drawn = console.file.getvalue()
    for part in ('optimize', '100/100', 'train 25.0%', 'valid 50.0%', 'tau 0.50', 'images/s'):
        assert part in drawn
    assert re.search(r'ETA \d+:\d\d:\d\d', drawn)


@pytest.mark.parametrize('in_notebook', [False, True])
def test_the_last_table_has_every_phase_and_fits_80_columns(monkeypatch, in_notebook):
    monkeypatch.setattr(rich.console, '_is_jupyter', lambda: in_notebook)
    row = {'seconds': 3000.0, 'compile_seconds': 12.0, 'epochs': 100}
    phases = [
        {**row, 'name': name, 'valid_accuracy_first': 0.25, 'valid_accuracy_last': 0.5}
        for name in Phase
    ]
    phases[0]['valid_accuracy_last'] = None  # it was stopped before it was evaluated
    drawn = run_summary.final_table({'phases': phases, 'test_accuracy': 0.512}).splitlines()
    assert max(map(len, drawn)) <= 80
    assert [line.split()[0] for line in drawn[2:]] == [*Phase, 'test']
    assert '51.20%' in drawn[-1]
    assert '12000.0' in drawn[-1]


def test_edges_that_are_left_out_are_no_collapse():
    """DARTS derives two edges of a node; `none` stands for the others."""
    spec = networks.build('darts', (8, 8, 3), 10, channels=4, depth=2, reductions=(1,))
    arch = {spec.alpha_path(*row[:2])[0]: {'alpha': jnp.arange(8.0)} for row in spec.rows()}
    told = arch_analysis.analyze_architecture(arch, spec)
    assert told['arch/counts'] == {'dil_conv_5x5': 16}
    assert told['arch/none_fraction'] == told['arch/skip_fraction'] == 0
    assert sum(name == 'none' for node in told['genotype'] for name in node) == 28 - 16
