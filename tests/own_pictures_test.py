"""Own pictures through the whole program, whatever they are called: all that a run leaves."""

import html
import json
import os

import numpy as np
import pytest
from helpers.pictures import config_of, picture
from helpers.runs import CHEAPEST
from jax import export as jax_export
from PIL import Image

import asose_jax
from asose_jax.data import image_folder
from asose_jax.pipeline import run_phases
from asose_jax.report import page

HOSTILE = (
    *('[red]cats[red] & "dogs"', 'a b', 'größe 大', '$100', r'$\frac{a$', '<script>x', 'n' * 200),
    os.fsdecode(b'caf\xe9'),  # as old archives have it
)


def _hostile(root):
    """A class for each name, of pictures of two sizes, some of them grey."""
    for k, name in enumerate(HOSTILE):
        for i in range(6):
            path = root / name / f'{i}.png'
            picture(path, (8 + i % 2, 8), seed=100 * k + i)
            if i % 3 == 0:
                Image.open(path).convert('L').save(path)
    return sorted([*HOSTILE[:-1], r'caf\xe9'])


def test_names_that_are_no_text_become_text(tmp_path):
    names = _hostile(tmp_path)
    *_, found = image_folder.load(
        str(tmp_path), ('train', 'test'), test_fraction=None, image_size=8, resident_bytes=0
    )
    assert found == tuple(names)


def test_class_names_come_through_to_all_that_a_run_leaves_as_they_are(tmp_path):
    """Also where the folder's own name is no text."""
    root = tmp_path / os.fsdecode(b'set\xe9')
    names, run = _hostile(root), tmp_path / 'run'
    small = {'model.depth': 1, 'model.reductions': (), 'model.primitives': CHEAPEST}
    config = config_of(root, **small, **{'data.resident_megabytes': 0, 'data.image_size': 8})
    run_phases.run(config, run)
    asose_jax.evaluate(run)
    asose_jax.export(run)
    page.rebuild(run)
    summary = json.loads((run / 'summary.json').read_text())
    assert summary['classes'] == names
    assert summary['images'] == {'train': 24, 'valid': 16, 'test': 8}
    evaluation = json.loads((run / 'evaluation.json').read_text())
    assert [row['name'] for row in evaluation['classes']] == names
    assert evaluation['accuracy'] == pytest.approx(summary['test_accuracy'])
    assert json.loads((run / 'export' / 'model.json').read_text())['classes'] == names
    text = (run / 'report.html').read_text(encoding='utf-8')
    assert '<script' not in text
    assert ', '.join(names) in html.unescape(text)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_exported_network_takes_own_pictures_as_they_are(tmp_path, mode):
    """Grey or colour: one file of the folder, read by Pillow, gives what `predict` gives."""
    for k, name in enumerate(('cat', 'dog')):
        for i in range(12):
            picture(tmp_path / 'set' / name / f'{i}.png', seed=100 * k + i)
            path = tmp_path / 'set' / name / f'{i}.png'
            Image.open(path).convert(mode).save(path)
    run_phases.run(config_of(tmp_path / 'set'), tmp_path / 'run')
    model, target = asose_jax.load(tmp_path / 'run'), asose_jax.export(tmp_path / 'run')
    pixels = np.asarray(Image.open(path)).reshape(1, 8, 8, -1)
    exported = jax_export.deserialize((target / 'model.stablehlo').read_bytes())
    np.testing.assert_allclose(exported.call(pixels), model.predict(pixels), atol=1e-5)
    assert asose_jax.evaluate(tmp_path / 'run')['accuracy'] == model.summary['test_accuracy']
