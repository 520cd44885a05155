"""The notebook of the docs runs, in a process of its own and in this one, and is kept clean."""

import json
import os
import shutil

import nbclient
import nbformat
import numpy as np
import pytest
from helpers.runs import CHEAPEST, NEVER, TINY, WHOLE, make_whole

# What makes the search of the notebook small.
SMALL = {
    **TINY,
    'model.depth': 1,
    'model.reductions': (0,),
    'model.primitives': CHEAPEST,
    'search.epochs': 1,
    'growth.epochs': 0,
    'checkpoint.every_seconds': NEVER,
}


@pytest.fixture
def notebook(root):
    """A function of the parameters, which gives the notebook with them."""

    def read(**parameters):
        found = nbformat.read(root / 'docs' / 'quickstart.ipynb', as_version=4)
        (cell,) = [c for c in found.cells if 'parameters' in c.metadata.get('tags', ())]
        before = {}
        exec(cell.source, before)
        assert before.keys() >= parameters.keys()
        cell.source = '\n'.join(f'{name} = {value!r}' for name, value in parameters.items())
        return found

    return read


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_notebook_is_valid_and_stored_without_outputs(root, notebook):
    found = notebook()
    nbformat.validate(found)
    assert [(cell.outputs, cell.execution_count) for cell in _code(found)] == [([], None)] * 8


def test_cells_of_the_notebook_run_on_a_finished_run(notebook, shared, tmp_path):
    workdir = shutil.copytree(shared('whole', make_whole) / 'run', tmp_path / 'run')
    names = {}
    for cell in _code(notebook(workdir=str(workdir), fields=WHOLE)):
        exec(cell.source, names)
    summary = json.loads((workdir / 'summary.json').read_text())
    assert names['result'] == summary
    assert names['evaluation']['accuracy'] == pytest.approx(summary['test_accuracy'])
    predicted = names['probabilities'].argmax(-1)
    rows = names['table'].read_text().splitlines()[1:]
    assert [row.split(',')[1] for row in rows] == [str(label) for label in predicted]
    exported = np.asarray(names['exported'].call(names['pixels']))
    np.testing.assert_allclose(exported, names['probabilities'], atol=1e-5)


@pytest.mark.slow
def test_notebook_shows_log_progress_and_report(root, notebook, tmp_path):
    found = notebook(workdir=str(tmp_path / 'run'), fields=SMALL)
    client = nbclient.NotebookClient(
        found, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
    )
    client.execute(env={**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'})
    outputs = {cell.id: cell.outputs for cell in _code(found)}
    shown = {name: _text(parts) for name, parts in outputs.items()}
    assert outputs['install'] == []
    bars = [part.data['text/plain'] for part in outputs['search'] if 'data' in part]
    assert [bar.split()[0] for bar in bars] == ['warmup', 'search', 'optimize']
    for bar in bars:
        assert ' 1/1 ' in bar
    lines = shown['search'].splitlines()
    for start in ('digits: 287 train', 'optimize 1/1 loss', 'test accuracy '):
        assert len([line for line in lines if line[9:].startswith(start)]) == 1  # behind the time
    assert 'iframe srcdoc="&lt;!DOCTYPE html&gt;' in outputs['report'][0].data['text/html']
    assert 'test accuracy' in shown['evaluate']
    assert 'image/png' in outputs['evaluate'][-1].data
    assert '9.png' in shown['predict']
    assert 'the classes of 10 pictures are in' in shown['table']
    assert 'Array(' in outputs['export'][-1].data['text/plain']
    assert not [
        part for parts in outputs.values() for part in parts if part.get('name') == 'stderr'
    ]


def _text(outputs):
    return ''.join(part.text for part in outputs if part.output_type == 'stream')
