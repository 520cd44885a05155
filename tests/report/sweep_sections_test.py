"""The page of several searches, on workdirs written by hand."""

import itertools
import json
import re
import shutil

import pytest
from helpers import fronts
from helpers.pages import DESK, HOSTILE, OVERLAPS, Parsed, every_screen, text_of
from helpers.several_searches import FOUND, RANDOM, write

from asose_jax.metrics import run_record
from asose_jax.report import page, strip_chart, sweep_sections
from asose_jax.report.formatting import percent, plain

SECTIONS = ('numbers', 'accuracy', 'searches')


@pytest.fixture(scope='module')
def all_of(tmp_path_factory):
    """Directories of several searches, their pages drawn."""
    place = tmp_path_factory.mktemp('several')
    made = {
        'compared': write(place / 'compared'),
        'chain': write(place / 'chain', 'digits', (3,), controls=False, **{'growth.epochs': 2}),
        'darts': write(place / 'darts', 'darts', tuple(range(9)), controls=False),
        'begun': write(place / 'begun'),
        'front': fronts.write(place / 'front'),
        'front begun': fronts.write(place / 'front begun', seeds=(0,)),
        'empty': place / 'empty',
    }
    for name in ('seed_1/summary.json', 'seed_30/metrics.jsonl', 'seed_30/summary.json'):
        (made['begun'] / name).unlink()
    (made['begun'] / 'seed_30' / page.NAME).unlink()
    (made['begun'] / 'found' / 'seed_0' / 'summary.json').unlink()
    made['empty'].mkdir()
    (made['empty'] / 'config.json').write_text('{"seeds": [0, 1]}')
    shutil.rmtree(made['front begun'] / 'flops_1600000')
    (made['front begun'] / 'random' / 'flops_1000000' / '0' / 'summary.json').unlink()
    for name in ('begun', 'front begun', 'empty'):
        page.write(made[name])
    return made


@pytest.mark.parametrize(
    'name', ['compared', 'chain', 'darts', 'begun', 'empty', 'front', 'front begun']
)
def test_page_has_all_sections_and_loads_nothing(all_of, name):
    text = text_of(all_of[name])
    found = Parsed(text)
    last = 'front' if name.startswith('front') else 'chance'
    assert tuple(found.sections) == (*SECTIONS, last, 'setup')
    assert all(told.strip() for told in found.sections.values())
    assert len(set(found.ids)) == len(found.ids)
    assert not re.search(r'\b(nan|None|Undefined|inf)\b', found.text)
    assert not re.search(r'https?:|url\(|@import|javascript:', text)
    assert not found.tags & {'script', 'link', 'iframe', 'object', 'img'}


def test_page_says_how_searches_stand_among_random_cells(all_of):
    found = Parsed(text_of(all_of['compared'])).sections
    median = sorted(RANDOM)[24:26]
    assert f'{50 * sum(median):.1f} %' in found['numbers']
    assert '3 of 4' in found['numbers']
    ranks = [f'{1 + sum(other > accuracy for other in RANDOM)} of 51' for accuracy in FOUND]
    assert all(rank in found['searches'] for rank in ranks)
    assert 'skip_connect everywhere' in found['chance']
    assert '81.2 %' in found['searches']
    assert 'seeds' in found['setup']


def test_every_search_is_a_line_with_its_seed_and_a_link_to_its_page(all_of):
    found = Parsed(text_of(all_of['compared']))
    links = [link for link in found.links if not link.startswith('#')]
    assert links == [f'seed_{seed}/{page.NAME}' for seed in (0, 1, 2, 30)]
    assert all((all_of['compared'] / link).exists() for link in links)
    made = sweep_sections.build(all_of['compared'], run_record.read(all_of['compared']), page.NAME)
    chart = made['accuracy']['charts'][0]
    assert {end['text'] for end in chart['ends']} == {'0', '1', '2', '30'}
    heights = sorted(end['y'] for end in chart['ends'])
    assert all(b - a >= 11.9 for a, b in itertools.pairwise(heights))
    assert len({line['style'] for line in chart['lines']}) == 4


def test_runs_that_are_at_work_are_shown_as_far_as_they_are(all_of):
    found = Parsed(text_of(all_of['begun']))
    assert '2 of 4 searches are finished' in found.text
    assert 'Not finished: optimize, epoch 2 of 2.' in found.sections['searches']
    assert 'Not finished: no evaluation yet.' in found.sections['searches']
    links = [link for link in found.links if not link.startswith('#')]
    assert links == [f'seed_{seed}/{page.NAME}' for seed in (0, 1, 2)]
    (row,) = [
        row
        for row in sweep_sections.build(
            all_of['begun'], run_record.read(all_of['begun']), page.NAME
        )['searches']['rows']
        if row['name'] == 'seed_2'
    ]
    assert f'{100 * FOUND[2]:.1f} %' in row['cells']  # although that of seed_0 is missing


def test_picture_of_a_front_shows_what_its_table_and_its_summary_say(all_of):
    made = sweep_sections.build(all_of['front'], run_record.read(all_of['front']), page.NAME)
    (wide, narrow), table = made['front']['charts'], made['front']['table']
    found, scratch, random = made['front']['series']
    assert len(table['rows']) == sum(len(group.points) for group in made['front']['series']) == 18
    listed = {(row[2], row[3]) for row in table['rows']}
    points = [point for group in made['front']['series'] for point in group.points]
    assert {(plain(cost), percent(accuracy)) for cost, accuracy in points} == listed
    targets = sorted(fronts.TARGETS)
    for i, (cost, mean, std) in enumerate(found.means):
        assert cost == pytest.approx(0.85 * targets[i])  # of two seeds
        assert mean == pytest.approx(0.705 + 0.05 * i)
        assert std == pytest.approx(0.01 / 2**0.5)
    assert [mean for _, mean, _ in scratch.means] == pytest.approx([0.72, 0.77, 0.82])
    assert (random.means, len(random.points)) == ([], 6)
    assert max(cost for cost, _ in points) <= targets[-1]
    for chart in (wide, narrow):
        box, drawn = chart['box'], chart['groups'][0]
        (x0, y0), *_, (x1, y1) = drawn['points']
        assert box.left <= x0 < x1 <= box.right  # more costs more
        assert box.bottom >= y0 > y1 >= box.top  # and is better
        assert drawn['path'].count(',') == len(drawn['bars']) == 3
        assert chart['groups'][2]['path'] == ''
        # A point lies between the marks of the targets below and above its cost.
        assert chart['marked'][0] < chart['groups'][0]['points'][2][0] < chart['marked'][1]
    text = Parsed(text_of(all_of['front'])).sections
    assert '850,000' in text['front']
    assert '70.5 % ± 0.71' in text['front']
    assert '6 of 6' in text['numbers']  # above the median of random networks
    assert '1 of 3' in text['searches']  # among the random networks of its target


def test_front_that_is_at_work_shows_the_targets_that_have_results(all_of):
    found = Parsed(text_of(all_of['front begun']))
    assert '2 of 3 searches are finished, 8 of 9 trainings from scratch' in found.text
    assert 'Not finished: no evaluation yet.' in found.sections['searches']
    assert '1,600,000' not in found.sections['front']
    assert '2,200,000' in found.sections['front']


def test_strips_mark_every_network_and_none_hides_another():
    given = [
        strip_chart.Strip('found', [(0.5, '1'), (0.7, '2')], 'diamond'),
        strip_chart.Strip('random cells', [(0.6, ''), (0.6, ''), (0.601, '')], 'ball'),
    ]
    made = strip_chart.chart('title', 'told', given, width=360.0)
    found, random = made['strips']
    assert (len(found['points']), len(random['points'])) == (2, 3)
    assert len(set(random['points'])) == 3
    assert made['marked'] == [x for x, _ in found['points']]
    assert [label['text'] for label in found['labels']] == ['1', '2']
    left, right = found['points'][0][0], found['points'][1][0]
    near = [strip_chart.Strip('found', [(0.5, '1'), (0.501, '2'), (0.9, '3')], 'diamond')]
    labels = strip_chart.chart('title', 'told', near, width=360.0)['strips'][0]['labels']
    assert [label['text'] for label in labels] == ['1, 2', '3']
    assert random['median'] == pytest.approx((left + right) / 2, abs=0.1)


def test_hostile_and_broken_files_stay_text_or_are_left_out(all_of, tmp_path):
    directory = write(tmp_path / HOSTILE.replace('/', ''))
    for name, changes in {
        'config': {'data.name': HOSTILE, HOSTILE: HOSTILE, 'plain_cells': [HOSTILE, '../..', 3]},
        'seed_1/summary': {'genotype': [[HOSTILE]], 'phases': HOSTILE},
        'seed_2/summary': {'valid_accuracy': HOSTILE},
        'found/seed_2/summary': {'test_accuracy': HOSTILE},
        'seed_0/run': {'command': HOSTILE, 'devices': [HOSTILE]},
    }.items():
        path = directory / f'{name}.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    lines = (directory / 'seed_0' / 'metrics.jsonl').read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), 'phase': HOSTILE})
    (directory / 'seed_0' / 'metrics.jsonl').write_text('\n'.join([*lines, '{"half']))
    page.write(directory)
    hostile, plain = Parsed(text_of(directory)), Parsed(text_of(all_of['compared']))
    assert hostile.tags == plain.tags
    assert HOSTILE in hostile.sections['setup']
    assert HOSTILE in hostile.sections['accuracy']
    assert '2 of 4 searches are finished' in hostile.text
    for name in ('seed_0/genotype', 'seed_0/config', 'random/3/summary'):
        (directory / f'{name}.json').write_text('{"half')
    page.write(directory)
    assert '1 of 4 searches are finished' in Parsed(text_of(directory)).text


def test_hostile_files_of_a_front_stay_text_or_are_left_out(all_of, tmp_path):
    directory = fronts.write(tmp_path / 'front', seeds=(0,))
    for name, changes in {
        'flops_1000000/seed_0/summary': {'flops_per_image': HOSTILE},
        'random/flops_1600000/1/summary': {'flops_per_image': None},
        'found/flops_1600000/seed_0/summary': {'test_accuracy': HOSTILE},
    }.items():
        path = directory / f'{name}.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    page.write(directory)
    assert Parsed(text_of(directory)).tags == Parsed(text_of(all_of['front'])).tags
    assert '2 of 3 searches are finished, 7 of 9 trainings' in Parsed(text_of(directory)).text
    path = directory / 'config.json'
    for changes in ({'cost.targets': [HOSTILE, None, '../..']}, {'cost.kind': '../..'}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        page.write(directory)
        assert '0 of 1 searches are finished' in Parsed(text_of(directory)).text


def test_rebuilt_page_is_that_of_all_runs(all_of):
    before = text_of(all_of['compared'])
    assert page.rebuild(all_of['compared']) == all_of['compared'] / page.NAME
    assert text_of(all_of['compared']) == before
    assert 'several searches' in before


@every_screen(DESK)
def test_in_a_browser_nothing_overlaps_or_overflows_or_complains(all_of, browser, width, scheme):
    opened = browser.new_page(viewport={'width': width, 'height': 844}, color_scheme=scheme)
    told = []
    opened.on('console', lambda message: told.append(message.text))
    for name, directory in all_of.items():
        opened.goto((directory / page.NAME).as_uri())
        assert opened.evaluate('document.documentElement.scrollWidth') <= width, name
        assert opened.evaluate(OVERLAPS) == [], name
        for image in opened.get_by_role('img').all():
            assert image.get_attribute('aria-labelledby') or image.get_attribute('aria-label')
    opened.close()
    assert told == []
