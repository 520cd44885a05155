"""The page of a run: whole for every kind of run, safe with every string, never in the way."""

import base64
import io
import json
import logging
import math
import re

import numpy as np
import pytest
from helpers import recorded
from helpers.pages import HOSTILE, OVERLAPS, PHONE, SHORT, Parsed, every_screen, text_of
from PIL import Image

from asose_jax.metrics import run_record
from asose_jax.report import charts, formatting, page
from asose_jax.runtime.errors import UserError

SECTIONS = (
    *('numbers', 'accuracy', 'curves', 'alpha', 'operations', 'network', 'growth', 'alarms'),
    *('time', 'setup'),
)
RUNS = {
    'chain': {},
    'begun': {'finished': False, **SHORT, 'growth.epochs': 2},
    'nasbench201': {'preset': 'nasbench201', **SHORT},
    'darts': {'preset': 'darts', **SHORT},
    'retrained': {'preset': 'darts', 'warmup.epochs': 0, 'search.epochs': 0, 'optimize.epochs': 4},
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A workdir of every kind of run, its page drawn."""
    place = tmp_path_factory.mktemp('runs')
    made = {name: recorded.write(place / name, **how) for name, how in RUNS.items()}
    (place / 'empty').mkdir()
    for workdir in (*made.values(), place / 'empty'):
        page.write(workdir)
    return {**made, 'empty': place / 'empty'}


@pytest.mark.parametrize('name', [*RUNS, 'empty'])
def test_page_has_all_sections(runs, name):
    found = Parsed(text_of(runs[name]))
    assert tuple(found.sections) == SECTIONS
    assert all(told.strip() for told in found.sections.values())
    assert len(set(found.ids)) == len(found.ids)
    assert not re.search(r'\b(nan|None|Undefined|inf)\b', found.text)


def test_page_says_what_the_run_came_to(runs):
    summary = json.loads((runs['chain'] / 'summary.json').read_text())
    found = Parsed(text_of(runs['chain']))
    assert f'{100 * summary["test_accuracy"]:.1f} %' in found.sections['numbers']
    assert 'G1: a new block 2, after evaluation 23' in found.sections['growth']
    assert {'before: 3 blocks', 'after: 4 blocks'} <= set(found.sections['growth'].splitlines())
    assert 'collapse: 83 % of the genotype is skip_connect' in found.sections['alarms']
    assert '(evaluations 8–9, 12 of 37)' in found.sections['alarms']
    assert 'block 1, branch 1' in found.sections['alpha']
    assert 'factor 0.75' in found.sections['network']
    assert '5 of 5' in found.sections['time']
    assert 'jax 0.10.2' in found.sections['setup']
    assert 'Not finished: search, epoch 2 of 3.' in Parsed(text_of(runs['begun'])).text


def test_page_loads_nothing_and_runs_no_script(runs):
    for workdir in runs.values():
        text, found = text_of(workdir), Parsed(text_of(workdir))
        assert "default-src 'none'" in text
        assert not re.search(r'https?:|url\(|@import|javascript:', text)
        assert all(link.startswith(('#', 'data:image/png;base64,')) for link in found.links)
        assert not found.tags & {'script', 'link', 'iframe', 'object', 'img'}


def test_hostile_strings_stay_text(tmp_path):
    workdir = recorded.write(tmp_path / HOSTILE.replace('/', ''), **SHORT)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for line in lines[:2]:
        line['phase'] = HOSTILE
        line['alarms'] = [HOSTILE]
    lines[-1]['genotype'] = [[HOSTILE] * len(group) for group in lines[-1]['genotype']]
    lines[-1]['arch/counts'] = {HOSTILE: 3}
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for name, changes in {
        'run': {'classes': [HOSTILE], 'command': HOSTILE, 'devices': [HOSTILE]},
        'config': {'data.name': HOSTILE, HOSTILE: HOSTILE},
        'genotype': {'genotype': lines[-1]['genotype']},
    }.items():
        path = workdir / f'{name}.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    page.write(workdir)
    plain, hostile = Parsed(text_of(recorded_page(tmp_path))), Parsed(text_of(workdir))
    assert hostile.tags == plain.tags
    for section in ('setup', 'alarms', 'operations', 'time'):
        assert HOSTILE in hostile.sections[section]
    assert hostile.text.count(HOSTILE) > 10


def recorded_page(tmp_path):
    page.write(recorded.write(tmp_path / 'plain', **SHORT))
    return tmp_path / 'plain'


def test_broken_lines_and_files_are_left_out(tmp_path):
    workdir = recorded.write(tmp_path / 'run', **SHORT)
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    lines[1:1] = ['{"step": 3, "lo', '[]', '{"step": 1}']
    odd = {**json.loads(lines[0]), 'valid/accuracy': math.nan, 'train/loss': None, 'tau': 'x'}
    odd |= {'growth': [3, {'where': None}], 'alarms': 'x', 'factors': [[None]], 'arch/counts': 7}
    odd |= {'network': {'space': 'unknown'}}
    lines[0] = json.dumps(odd)
    path.write_text('\n'.join(lines))
    page.write(workdir)
    found = Parsed(text_of(workdir))
    assert tuple(found.sections) == SECTIONS
    assert '3 lines of metrics.jsonl cannot be read' in found.text
    for name in ('config', 'run', 'summary', 'genotype'):
        (workdir / f'{name}.json').write_text('{"half')
    page.write(workdir)
    assert tuple(Parsed(text_of(workdir)).sections) == SECTIONS


def test_page_shows_the_curvature_that_ended_a_search_and_the_cost(tmp_path):
    workdir = recorded.write(tmp_path, 'nasbench201', **SHORT)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for i, line in enumerate(lines):
        line |= {'arch/eigenvalue': 0.1 * i, 'cost/expected': 1e6 - i}
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    summary = json.loads((workdir / 'summary.json').read_text())
    summary['halted'] = {'step': 60, 'epoch': 3, 'alpha_of_epoch': 2}
    (workdir / 'summary.json').write_text(json.dumps(summary))
    page.write(workdir)
    found = Parsed(text_of(workdir)).sections
    assert 'search stopped early after epoch 3' in found['alarms']
    assert 'Curvature in α' in found['curves']
    assert 'expected cost of the network' in found['curves']


def test_page_says_where_a_search_settled(tmp_path):
    workdir = recorded.write(tmp_path, **SHORT)
    summary = json.loads((workdir / 'summary.json').read_text())
    summary['halted'] = {'step': 60, 'epoch': 3, 'settled_for': 2}
    (workdir / 'summary.json').write_text(json.dumps(summary))
    page.write(workdir)
    text = text_of(workdir)
    assert 'the network had been the same for 2' in text
    assert 'search stopped early' not in text


def test_alpha_of_a_block_is_followed_through_growth(runs):
    """A new block 2 makes the old one block 3; its column goes on there."""
    told = run_record.read(runs['chain'])
    tracks = {(track.group, track.member): track for track in told.tracks()}
    assert list(tracks) == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    searched = told.phase_ranges[-2].last + 1
    firsts = {key: min(track.columns) for key, track in tracks.items()}
    assert firsts == {(0, 0): 0, (1, 0): 0, (3, 0): 0, (2, 0): 23, (1, 1): 26}
    assert all(max(track.columns) == searched - 1 for track in tracks.values())
    assert tracks[3, 0].columns[22] == told.lines[22]['arch/probabilities'][2]
    assert tracks[3, 0].columns[23] == told.lines[23]['arch/probabilities'][3]
    assert [grown.event['kind'] for grown in told.growths] == ['depth', 'width', 'branch']


def test_heat_map_has_the_colour_of_every_number():
    values = np.array([[0.0, 0.5, 1.0], [np.nan, 0.25, 2.0]])
    chart = charts.heat_map(
        run_record.Record('run', {}, []), 'title', 'told', ['a', 'b'], values, ends=['', '']
    )
    data = base64.b64decode(chart['image'].partition(',')[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGBA'))
    expected = charts.viridis(np.array([0.0, 0.5, 1.0, 0.25, 1.0]))
    assert pixels.shape == (2, 3, 4)
    assert pixels[1, 0, 3] == 0
    found = pixels[:, :, :3].reshape(-1, 3)[[0, 1, 2, 4, 5]]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 2


@pytest.mark.parametrize(
    ('low', 'high', 'expected'),
    [
        (0.31, 0.66, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (3, 3, [0, 2, 4, 6]),
        (0, 0, [-0.5, -0.25, 0, 0.25, 0.5]),
        (0, 123456, [0, 50000, 100000, 150000]),
    ],
)
def test_axes_have_round_numbers_around_all_values(low, high, expected):
    assert charts.ticks(low, high, 5) == pytest.approx(expected)


def test_a_line_breaks_where_there_is_no_number():
    told = run_record.Record('run', {}, [{'phase': 'search'}] * 5)
    given = [charts.Line('a', [1.0, 2.0, None, 3.0, None], 'first')]
    (line,) = charts.lines(told, '', '', given)['lines']
    assert re.sub('[0-9.,]+', '', line['path']) == 'MLMh'


def test_numbers_in_words():
    assert formatting.spans([1, 2, 3, 7]) == 'evaluations 1–3, 7'
    assert (formatting.plain(1234567.0), formatting.plain(0.12345), formatting.plain(None)) == (
        '1,234,567',
        '0.1235',
        '–',
    )
    assert [charts.short(n) for n in (250, 12_000, 3.4e6, 6.18e14)] == [
        '250',
        '12k',
        '3.4M',
        '618T',
    ]


# --- While a run is at work


def test_a_page_that_cannot_be_drawn_is_one_line_in_the_log(tmp_path, monkeypatch, caplog):
    def fail(told):
        raise RuntimeError('out of ink')

    monkeypatch.setattr(page, 'render', fail)
    with caplog.at_level(logging.WARNING, 'asose_jax'):
        page.Page(tmp_path).draw()
    (line,) = [logged.getMessage() for logged in caplog.records]
    assert line == 'report.html was not drawn: RuntimeError: out of ink'


def test_pages_take_a_fiftieth_of_the_time_but_are_drawn_at_once_when_asked(tmp_path, monkeypatch):
    now, drawn = [0.0], []

    def write(directory):
        drawn.append(now[0])
        now[0] += 0.1

    monkeypatch.setattr(page, 'write', write)
    monkeypatch.setattr(page.time, 'monotonic', lambda: now[0])
    pages = page.Page(tmp_path)
    for _ in range(100):
        pages.draw(at_once=False)
        now[0] += 0.2
    assert drawn == pytest.approx([0, 5.1, 10.2, 15.3], abs=0.21)
    pages.draw()
    assert len(drawn) == 5


def test_on_many_hosts_one_draws(tmp_path):
    page.Page(tmp_path, is_primary_host=False).draw()
    assert not list(tmp_path.iterdir())


def test_rebuilt_page_is_the_same(runs):
    before = text_of(runs['chain'])
    assert page.rebuild(runs['chain']) == runs['chain'] / page.NAME
    assert text_of(runs['chain']) == before


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'holds no run: there is no config.json'),
        ('{"name": "x", "version": 1}', 'holds no run: its config.json is of no run'),
        ('{}', 'holds no run: its config.json is of no run'),
        ('{"a', 'config.json cannot be read'),
    ],
)
def test_what_is_no_run_gets_no_page(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'config.json').write_text(content)
    before = list(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        page.rebuild(tmp_path)
    assert list(tmp_path.iterdir()) == before


# --- Looks


def _variables(css):
    """The colours of the light page, and of the dark one."""
    blocks = re.findall(r':root \{(.*?)\}', css, re.DOTALL)
    return [dict(re.findall(r'--([a-z-]+): (#\w{6})', block)) for block in blocks]


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_text_and_lines_stand_out_from_what_is_behind_them(root, scheme):
    """WCAG 2: a contrast of 4.5 for text, 3 for lines."""
    colours = _variables((root / 'asose_jax' / 'report' / 'templates' / 'report.css').read_text())[
        scheme
    ]

    def contrast(front, back):
        pair = sorted(_luminance(colours[name]) + 0.05 for name in (front, back))
        return pair[1] / pair[0]

    for back in ('paper', 'panel', 'band'):
        for front in ('ink', 'muted'):
            assert contrast(front, back) >= 4.5, (front, back)
        for front in ('first', 'second', 'third', 'mark', 'new'):
            assert contrast(front, back) >= 3, (front, back)
    for back in ('conv', 'pool', 'skip', 'fixed'):
        assert contrast('ink', back) >= 4.5, back
    assert contrast('alarm', 'alarm-panel') >= 4.5


@every_screen(PHONE)
def test_in_a_browser_nothing_overlaps_or_overflows_or_complains(runs, browser, width, scheme):
    opened = browser.new_page(viewport={'width': width, 'height': 844}, color_scheme=scheme)
    told, asked = [], []
    opened.on('console', lambda message: told.append(message.text))
    opened.on('pageerror', lambda error: told.append(str(error)))
    opened.on('request', lambda request: asked.append(request.url))
    for workdir in runs.values():
        opened.goto((workdir / page.NAME).as_uri())
        assert opened.evaluate('document.documentElement.scrollWidth') <= width, workdir.name
        assert opened.evaluate(OVERLAPS) == [], workdir.name
        for section in SECTIONS:
            assert opened.locator(f'#{section}').bounding_box()['height'] > 40
        for image in opened.get_by_role('img').all()[:20]:
            assert image.get_attribute('aria-labelledby') or image.get_attribute('aria-label')
    opened.close()
    assert told == []
    assert all(url.startswith(('file:', 'data:')) for url in asked)
