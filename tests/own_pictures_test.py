"""Own pictures through the whole program, whatever they are called: all that a run leaves."""

import csv
import html
import json
import logging
import os
import shutil

import numpy as np
import pytest
from helpers import prepared
from helpers.pictures import config_of, picture
from helpers.runs import CHEAPEST
from jax import export as jax_export
from PIL import Image

import asose_jax
from asose_jax.data import dataset, image_folder, tfds
from asose_jax.pipeline import builders, initialization, single_run
from asose_jax.report import page
from asose_jax.runtime.errors import UserError

SMALL = {'model.depth': 1, 'model.reductions': (), 'model.primitives': CHEAPEST}

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
        str(tmp_path),
        ('train', 'test'),
        test_fraction=None,
        image_size=8,
        resident_bytes=0,
        split_by='content',
    )
    assert found == tuple(names)


def test_class_names_come_through_to_all_that_a_run_leaves_as_they_are(tmp_path):
    """Also where the folder's own name is no text."""
    root = tmp_path / os.fsdecode(b'set\xe9')
    names, run = _hostile(root), tmp_path / 'run'
    config = config_of(root, **SMALL, **{'data.resident_megabytes': 0, 'data.image_size': 8})
    single_run.run(config, run)
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


@pytest.fixture(scope='module')
def _finished_run(tmp_path_factory):
    """A folder of 24 pictures, and a run that was trained on it."""
    place = tmp_path_factory.mktemp('finished')
    for k, name in enumerate(('cat', 'dog')):
        for i in range(12):
            picture(place / 'set' / name / f'{i}.png', seed=100 * k + i)
    single_run.run(config_of(place / 'set', **SMALL), place / 'run')
    return place


@pytest.fixture
def trained(_finished_run, tmp_path):
    """A copy of the folder and of the run, which a test may change."""
    shutil.copytree(_finished_run, tmp_path, dirs_exist_ok=True)
    path = tmp_path / 'run' / 'config.json'
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, 'data.dir': str(tmp_path / 'set')}))
    return tmp_path / 'set', tmp_path / 'run'


def _uses(folder, run):
    """All that a run is used for after training; each meets the data."""
    return {
        'search': lambda: single_run.run(config_of(folder, **SMALL), run),
        'evaluate': lambda: asose_jax.evaluate(run),
        'export': lambda: asose_jax.export(run),
    }


@pytest.mark.parametrize('use', ['search', 'evaluate', 'export'])
@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda d: picture(d / 'cat' / 'x.png', seed=500), "1 picture is new: 'cat/x.png'"),
        (lambda d: (d / 'cat' / '5.png').unlink(), "1 picture is gone: 'cat/5.png'"),
        (lambda d: picture(d / 'dog' / '7.png', seed=9), "1 picture is changed: 'dog/7.png'"),
    ],
)
def test_other_pictures_are_refused_by_name_wherever_a_run_is_used(trained, use, change, told):
    folder, run = trained
    change(folder)
    before = (run / 'run.json').read_text()
    with pytest.raises(UserError) as error:
        _uses(folder, run)[use]()
    assert told in str(error.value)
    assert 'Restore the data, or start a run in another --workdir' in str(error.value)
    assert '\n' not in str(error.value)
    assert (run / 'run.json').read_text() == before
    assert not (run / 'export').exists()


def test_renamed_pictures_are_the_same_data_to_all_that_a_run_is_used_for(trained):
    folder, run = trained
    accuracy = json.loads((run / 'summary.json').read_text())['test_accuracy']
    (folder / 'cat' / '0.png').rename(folder / 'cat' / 'zzz.png')
    for use in _uses(folder, run).values():
        use()
    assert json.loads((run / 'evaluation.json').read_text())['accuracy'] == pytest.approx(accuracy)
    assert 'cat/zzz.png' in json.loads((run / 'data.json').read_text())


def test_pictures_are_predicted_as_evaluate_counts_them(trained):
    """Those of the test part, found among all files by their pixels."""
    folder, run = trained
    data = builders.load_data(config_of(folder, **SMALL))
    tested = {image.tobytes() for image in data.images.read(data.test)[0]}
    asose_jax.predict(run, folder)
    with open(run / 'predictions.csv', encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['file'] for row in rows] == sorted(map(str, folder.glob('*/*.png')))
    confusion = np.zeros((2, 2), int)
    for row in rows:
        assert list(row) == ['file', 'class', 'probability', 'class_2', 'probability_2']
        if np.asarray(Image.open(row['file'])).tobytes() in tested:
            truth = os.path.basename(os.path.dirname(row['file']))
            confusion[data.class_names.index(truth), data.class_names.index(row['class'])] += 1
    assert confusion.sum() == len(data.test)
    assert confusion.tolist() == asose_jax.evaluate(run)['confusion']


def test_network_is_exported_where_the_data_are_not(trained):
    folder, run = trained
    shutil.rmtree(folder)
    assert (asose_jax.export(run) / 'model.stablehlo').exists()


def test_run_of_an_older_version_keeps_its_split_and_is_guarded_from_then_on(trained):
    """Older versions recorded no digest and split by position, which names decide."""
    folder, run = trained
    shutil.rmtree(run)
    config, load = config_of(folder, **SMALL), builders.load_data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, 'load_data', lambda config, *_, **__: load(config, 'position'))
        single_run.run(config, run)
    (run / 'data.json').unlink()
    for name in ('run.json', 'summary.json'):
        content = json.loads((run / name).read_text())
        del content['data']
        (run / name).write_text(json.dumps(content))
    accuracy = content['test_accuracy']
    assert asose_jax.evaluate(run)['accuracy'] == pytest.approx(accuracy)
    assert single_run.run(config, run)['test_accuracy'] == accuracy
    assert json.loads((run / 'run.json').read_text())['data']['split_by'] == 'position'
    (folder / 'cat' / '0.png').rename(folder / 'cat' / 'zzz.png')
    with pytest.raises(UserError, match=r"new: 'cat/zzz.png'; 1 picture is gone: 'cat/0.png'"):
        asose_jax.evaluate(run)


def _without_data(run):
    path = run / 'run.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k != 'data'}))


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (lambda folder, run: None, False),
        (lambda folder, run: (folder / 'cat' / '0.png').rename(folder / 'cat' / 'z.png'), False),
        (lambda folder, run: picture(folder / 'cat' / 'x.png', seed=500), True),
        (lambda folder, run: _without_data(run), True),  # as older versions left it
    ],
)
def test_weights_that_may_know_the_test_pictures_are_told(
    trained, change, told, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    folder, run = trained
    change(folder, run)
    dataset.warn_of_other_pictures(builders.load_data(config_of(folder, **SMALL)), run)
    assert any('may be in the test split of this run' in line for line in caplog.messages) == told


@pytest.mark.parametrize(('fraction', 'told'), [(None, False), (0.2, False), (0.4, True)])
def test_another_share_of_test_pictures_is_another_split(
    trained, fraction, told, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    folder, run = trained
    config = config_of(folder, **SMALL, **{'data.test_fraction': fraction})
    dataset.warn_of_other_pictures(builders.load_data(config), run)
    assert any('may be in the test split of this run' in line for line in caplog.messages) == told


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('name', ['', 'genotype.json'])
def test_genotype_of_a_search_with_another_split_is_told(trained, old, name, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    folder, run = trained
    if old:
        _without_data(run)
    config = config_of(folder, **SMALL, genotype=str(run / name))
    images = builders.load_data(config)
    initialization.find_origin(config, images, builders.make_schedule(config, len(images.train)))
    assert any('may be in the test split of this run' in line for line in caplog.messages) == old


def test_run_on_splits_that_share_images_goes_on_and_is_evaluated_with_a_warning(
    tmp_path, caplog, monkeypatch
):
    """Older versions let such runs begin."""
    monkeypatch.setattr(logging.getLogger('asose_jax'), 'propagate', True)
    pictures = [Image.new('L', (8, 8), 10 * i) for i in range(24)]
    prepared.write(tmp_path, 'own', 1, {'train': pictures}, 'ab')
    fields = {'data.name': 'own', 'data.image_size': 8, 'data.test_split': 'train[20:]'}
    config, run = config_of(tmp_path, **SMALL, **fields), tmp_path / 'run'
    with pytest.raises(UserError, match='share 4 images'):
        single_run.run(config, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds, 'require_disjoint', lambda *_: None)
        accuracy = single_run.run(config, run)['test_accuracy']
    for use in (
        lambda: single_run.run(config, run)['test_accuracy'],
        lambda: asose_jax.evaluate(run)['accuracy'],
    ):
        caplog.clear()
        assert use() == pytest.approx(accuracy)
        (told,) = [line for line in caplog.messages if 'share 4 images' in line]
        assert told.endswith('The run began with these splits and keeps them.')


def test_run_whose_record_is_lost_is_not_gone_on_with(trained):
    folder, run = trained
    (run / 'run.json').unlink()
    with pytest.raises(UserError, match=r'run.json is missing .* Restore it'):
        single_run.run(config_of(folder, **SMALL), run)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_exported_network_takes_own_pictures_as_they_are(tmp_path, mode):
    """Grey or colour: one file of the folder, read by Pillow, gives what `predict` gives."""
    for k, name in enumerate(('cat', 'dog')):
        for i in range(12):
            picture(tmp_path / 'set' / name / f'{i}.png', seed=100 * k + i)
            path = tmp_path / 'set' / name / f'{i}.png'
            Image.open(path).convert(mode).save(path)
    single_run.run(config_of(tmp_path / 'set'), tmp_path / 'run')
    model, target = asose_jax.load(tmp_path / 'run'), asose_jax.export(tmp_path / 'run')
    pixels = np.asarray(Image.open(path)).reshape(1, 8, 8, -1)
    exported = jax_export.deserialize((target / 'model.stablehlo').read_bytes())
    np.testing.assert_allclose(exported.call(pixels), model.predict(pixels), atol=1e-5)
    assert asose_jax.evaluate(tmp_path / 'run')['accuracy'] == model.summary['test_accuracy']


# --- Classes of very different sizes


def _grey_levels(root, counts):
    """Pictures of one grey each: brighter on average, and far fewer to train on, in `rare`."""
    random = np.random.default_rng(0)
    for (part, name), count in counts.items():
        (root / part / name).mkdir(parents=True)
        for i, level in enumerate(random.normal(140 if name == 'rare' else 110, 20, count)):
            pixels = np.full((8, 8), level.clip(0, 255)) + random.uniform(0, 1, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f'{i}.png')


@pytest.mark.parametrize(
    ('weights', 'expected'), [(None, None), ('balanced', [352 / (2 * 320), 352 / (2 * 32)])]
)
def test_steps_of_a_run_have_the_class_weights_of_its_training_part(
    tmp_path, monkeypatch, caplog, weights, expected
):
    """As they are compiled, in every phase; 0.2 of the pictures are held out."""
    pictures = tmp_path / 'pictures'
    _grey_levels(pictures, {('train', 'common'): 400, ('train', 'rare'): 40, ('test', 'rare'): 1})
    contexts = []
    monkeypatch.setattr(single_run, '_run_phases', lambda *both: contexts.append(both))
    fields = {'data.valid_fraction': 0.2, 'data.class_weights': weights}
    with caplog.at_level(logging.INFO, 'asose_jax'):
        single_run.run(config_of(pictures, **SMALL, **fields), tmp_path / 'run')
    ((context, origin, _),) = contexts
    found = context.step_config(origin.spec).class_weights
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    told = 'balanced class weights in the training loss: 0.55 (common) to 5.5 (rare)'
    assert (told in caplog.messages) == (weights is not None)


@pytest.mark.slow
def test_balanced_weights_raise_the_recall_of_a_rare_class(tmp_path):
    counts = {('train', 'common'): 320, ('train', 'rare'): 32}
    _grey_levels(tmp_path / 'set', {**counts, ('test', 'common'): 60, ('test', 'rare'): 60})
    fields = {**SMALL, 'batch_size': 32, 'data.valid_fraction': 0.25, 'optimize.epochs': 12}
    found = {}
    for weights in (None, 'balanced'):
        config = config_of(tmp_path / 'set', **fields, **{'data.class_weights': weights})
        result = single_run.run(config, tmp_path / str(weights))
        evaluation = asose_jax.evaluate(tmp_path / str(weights))
        assert evaluation['balanced_accuracy'] == pytest.approx(result['test_balanced_accuracy'])
        found[weights] = {row['name']: row['recall'] for row in evaluation['classes']}
    assert found['balanced']['rare'] > found[None]['rare'] + 0.2
    assert found['balanced']['common'] < found[None]['common']
