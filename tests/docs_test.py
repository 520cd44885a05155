"""The docs agree with the program."""

import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
import unicodedata
import warnings

import pytest
from absl import flags
from ml_collections import config_flags

import asose_jax
from asose_jax.config.consistency import flatten, validate
from asose_jax.config.schema import FIELDS
from configs import search
from tools import config_page

ROOT = pathlib.Path(__file__).parent.parent


def test_page_of_the_config_is_that_of_the_schema():
    assert config_page.PAGE.read_text(encoding='utf-8') == config_page.page(), (
        'write it anew: python -m tools.config_page'
    )


def _read(*arguments):
    """The config that the program reads from these."""
    known = flags.FlagValues()
    line = ['main.py', *arguments]
    config_flags.DEFINE_config_file('config', flag_values=known, sys_argv=line)
    flags.DEFINE_string('workdir', '', '', flag_values=known)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # ml_collections imports by load_module
        known(line)
    return known.config


@pytest.mark.parametrize('preset', search.PRESETS)
def test_every_field_can_be_set_on_the_command_line(root, preset):
    """To what the default preset has, where a preset has None as well."""
    wanted = {name: field.default for name, field in FIELDS.items() if field.default is not None}
    settings = [f'--config.{name}={value}' for name, value in wanted.items()]
    found = flatten(_read(f'--config={root}/configs/search.py:{preset}', *settings))
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize('preset', search.PRESETS)
def test_every_field_that_may_be_none_can_be_set_to_none_and_to_a_value(root, preset):
    optional = [name for name, field in FIELDS.items() if field.rule.holds(None)]
    file = f'--config={root}/configs/search.py:{preset}'
    found = flatten(_read(file, *(f'--config.{name}=None' for name in optional)))
    assert [found[name] for name in optional] == [None] * len(optional)
    values = {
        'track': 'wandb',
        'network_channels': 16,
        'data.test_fraction': 0.1,
        'data.class_weights': 'balanced',
        'arch.lr': 0.001,
        'search.exact_start': True,
        'search.noise': 'unit',
        'retrain.reductions': (1, 2),
        'cost.kind': 'flops',
        'cost.target': 1.0,
    }
    wanted = {name: values.get(name, 'a/b' if _holds_text(name) else 3) for name in optional}
    found = flatten(_read(file, *(f'--config.{name}={v}' for name, v in wanted.items())))
    assert {name: found[name] for name in optional} == wanted
    assert all(FIELDS[name].rule.holds(value) for name, value in wanted.items())


def _holds_text(name):
    return FIELDS[name].rule.holds('a/b')


def test_commands_of_the_ablation_are_read_and_valid(root, monkeypatch):
    monkeypatch.chdir(root)
    page = (root / 'docs' / 'evidence' / 'ablation.md').read_text(encoding='utf-8')
    commands = [line for line in page.splitlines() if line.startswith('python main.py')]
    assert len(commands) > 30
    for command in commands:
        validate(_read(*shlex.split(command, comments=True)[2:]), 1)


def test_messages_that_are_explained_are_messages_of_the_program(root):
    """Each in one piece of text, or in pieces that follow each other."""
    page = (root / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8')
    told = re.findall(r'^\| `([^`]+)` \|', page, re.MULTILINE)
    source = ' '.join(
        path.read_text(encoding='utf-8') for path in (root / 'asose_jax').rglob('*.py')
    )
    whole = re.sub(r"['\"]\s*\n\s*f?['\"]", '', source)
    assert len(told) > 10
    for message in told:
        assert message in whole, message


def test_numbers_of_the_results_are_those_that_the_ablation_wrote(root):
    written = {}
    for line in (root / 'docs' / 'evidence' / 'ablation.md').read_text('utf-8').splitlines():
        row, *cells = line.strip('| ').split(' | ')
        written[row] = set(cells)
    told = [(root / 'docs' / f'{name}.md').read_text('utf-8') for name in ('results', 'ablations')]
    found = 0
    for line in '\n'.join(told).splitlines():
        if not (named := re.match(r'\| `(\w+)`', line)):
            continue
        rows = {named[1], f'only_{named[1]}', f'without_{named[1]}'} & set(written)
        numbers = set(re.findall(r'(?<=\| )[+-]?[\d.]+ ± [\d.]+(?= \|)', line))
        assert rows, line
        assert numbers <= set().union(*(written[row] for row in rows)), line
        found += len(numbers)
    assert found > 50


def test_numbers_of_the_readme_are_those_of_the_results(root):
    results = (root / 'docs' / 'results.md').read_text('utf-8').splitlines()
    text = (root / 'README.md').read_text('utf-8').split('## Results')[1].split('\n## ')[0]
    rows = [line for line in text.splitlines() if line.startswith('| ') and '±' in line]
    assert len(rows) >= 4
    assert set(rows) <= set(results)
    assert 'JPEG re-encode' in text


# --- Pages and their links

PAGES = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'docs').rglob('*.md'))


def _without_code(text):
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r'`[^`\n]*`', '`', text)


def _links(text):
    """The targets of links and images, but for those with a scheme."""
    text = _without_code(text)
    found = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [target for target in found if not re.match(r'[a-z]+:', target)]


def _anchors(text):
    """The anchors of headings that a repository page and the docs site both have."""
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    titles = [
        re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', title.strip()).replace('`', '')
        for title in re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    ]
    shown = [re.sub(r'[^\w\- ]', '', title).lower().replace(' ', '-') for title in titles]
    plain = [unicodedata.normalize('NFKD', title).encode('ascii', 'ignore') for title in titles]
    built = [re.sub(r'[^\w\s-]', '', title.decode()).strip().lower() for title in plain]
    return set(shown) & {re.sub(r'[-\s]+', '-', title) for title in built}


@pytest.mark.parametrize(
    ('text', 'links'),
    [
        ('[a](b.md) ![c](d.png) <img src="e.png">', ['b.md', 'd.png', 'e.png']),
        ('[a](https://b.org) [c](#d)', ['#d']),
        ('`[a](b.md)`\n```\n[c](d.md)\n```\n', []),
        ('[`a`](b.md)', ['b.md']),
    ],
)
def test_links_are_found_outside_of_code(text, links):
    assert _links(text) == links


@pytest.mark.parametrize(
    ('heading', 'anchors'),
    [
        ('## Is it worth it?', {'is-it-worth-it'}),
        ('# A: `b`, c', {'a-b-c'}),
        ('# How α learns', set()),  # the site leaves α out
        ('```\n# a remark\n```', set()),
    ],
)
def test_anchor_is_that_of_the_repository_and_of_the_site(heading, anchors):
    assert _anchors(heading) == anchors


@pytest.mark.parametrize('name', PAGES)
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(name):
    page = ROOT / name
    docs, broken = ROOT / 'docs', []
    for link in _links(page.read_text(encoding='utf-8')):
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        inside = not page.is_relative_to(docs) or target.is_relative_to(docs)  # of the site
        holds = inside and target.is_file()
        if holds and anchor:
            holds = anchor in _anchors(target.read_text(encoding='utf-8'))
        if not holds:
            broken.append(link)
    assert not broken


def test_readme_is_read_in_one_screen_or_two():
    assert len((ROOT / 'README.md').read_bytes()) <= 8 * 1024


def test_every_page_of_the_docs_is_in_the_navigation_of_the_site_once():
    nav = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8').split('\nnav:\n')[1]
    named = re.findall(r': (\S+\.md)$', nav, re.MULTILINE)
    assert sorted(f'docs/{name}' for name in named) == [n for n in PAGES if n.startswith('docs/')]


# The right edge of what must not be cut off; wide tables and code scroll by themselves.
EDGE = """() => Math.max(
  document.documentElement.scrollWidth,
  ...[...document.querySelectorAll('article :is(img, p, h1)')].map(
    e => Math.floor(e.getBoundingClientRect().right)))"""


@pytest.mark.slow
def test_site_is_built_without_a_warning_and_no_page_is_wider_than_a_phone(tmp_path, browser):
    pytest.importorskip('mkdocstrings', reason="no mkdocs here: pip install -e '.[docs]'")
    command = [sys.executable, '-m', 'mkdocs', 'build', '-q', '--strict', '-d', str(tmp_path)]
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1'}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    opened = browser.new_page(viewport={'width': 390, 'height': 844})
    opened.route(lambda url: not url.startswith('file:'), lambda route: route.abort())
    pages = sorted(tmp_path.rglob('index.html'))
    assert len(pages) > 20
    for page in pages:
        opened.goto(page.as_uri(), wait_until='domcontentloaded')
        assert opened.evaluate(EDGE) <= 390, page
    opened.close()


def test_every_name_on_the_pages_of_the_package_is_there():
    """`mkdocs build` leaves out members that do not exist."""
    found = 0
    for page in (ROOT / 'docs' / 'api').glob('*.md'):
        text = page.read_text(encoding='utf-8')
        for path, members in re.findall(
            r'^::: (\S+)(?:\n    options:\n      members: \[(.*)\])?$', text, re.MULTILINE
        ):
            head, _, last = path.rpartition('.')
            owner = importlib.import_module(path if members else head)
            names = members.split(', ') if members else [last]
            found += len(names)
            for name in names:
                assert getattr(owner, name).__doc__, f'{path}: {name}'
    assert found > 40


def test_all_public_names_are_on_the_page_of_the_package():
    text = (ROOT / 'docs' / 'api' / 'public.md').read_text(encoding='utf-8')
    assert {*re.findall(r'^::: asose_jax\.(\w+)$', text, re.MULTILINE)} == {*asose_jax.__all__}


def test_layout_names_every_folder_of_the_package_and_none_else():
    text = (ROOT / 'docs' / 'layout.md').read_text(encoding='utf-8').split('## The package')[1]
    named = re.findall(r'^\| `(\w+)/` \|', text, re.MULTILINE)
    assert sorted(named) == sorted(
        path.parent.name for path in (ROOT / 'asose_jax').glob('*/__init__.py')
    )


def test_code_and_tests_that_the_laws_name_exist():
    code = {path.stem: path for path in (ROOT / 'asose_jax').rglob('*.py')}
    tests = {path.stem for path in (ROOT / 'tests').rglob('*_test.py')}
    text = (ROOT / 'docs' / 'laws.md').read_text(encoding='utf-8')
    rows = [re.split(r'(?<!\\)\|', line)[1:-1] for line in text.splitlines() if line[:2] == '| ']
    assert len(rows) > 20
    for _, modules, held in rows[1:]:
        for module, *names in (name.split('.') for name in re.findall(r'`([^`]+)`', modules)):
            source = code[module].read_text(encoding='utf-8')
            for name in names:
                assert re.search(rf'\b(class|def) {name}\b', source), f'{module}.{name}'
        assert {*re.findall(r'`(\w+_test)`', held)} <= tests, held
        assert re.search(r'`\w+_test`', held), held
