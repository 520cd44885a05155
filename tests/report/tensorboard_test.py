"""Event files, read back with TensorBoard itself."""

import json

import numpy as np
import pytest
from helpers.runs import make_whole

accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')


def _read(workdir):
    made = accumulator.EventAccumulator(str(workdir / 'events'), size_guidance={'histograms': 0})
    return made.Reload()


def _lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_events_have_every_number_of_the_metrics_also_after_kills(shared):
    workdir = shared('whole', make_whole) / 'stopped'
    found, lines = _read(workdir), _lines(workdir)
    names = {
        name
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name != 'step'
    }
    assert set(found.Tags()['scalars']) == names
    for name in names:
        expected = [
            (line['step'], line[name]) for line in lines if isinstance(line.get(name), int | float)
        ]
        told = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in told] == [step for step, _ in expected]
        np.testing.assert_allclose(
            [value for _, value in told], [value for _, value in expected], rtol=1e-5
        )
    searched = [line['step'] for line in lines if line['phase'] != 'optimize']
    for name, steps in {'alpha/0_0': searched, 'alpha/1_0': searched[-3:]}.items():
        assert [event.step for event in found.Histograms(name)] == steps
