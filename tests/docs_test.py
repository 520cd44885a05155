"""What the docs say holds."""

import re
import shlex
import warnings

import pytest
from absl import flags
from ml_collections import config_flags

from asose_jax.config.schema import FIELDS
from asose_jax.config.validation import flatten, validate
from configs import search
from tools import config_page


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
        'network_channels': 16,
        'data.test_fraction': 0.1,
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
    told = (root / 'README.md').read_text('utf-8').split('## Results')[1].split('\n## ')[0]
    found = 0
    for line in told.splitlines():
        if not (named := re.match(r'\| `(\w+)`', line)):
            continue
        rows = {named[1], f'only_{named[1]}', f'without_{named[1]}'} & set(written)
        numbers = set(re.findall(r'(?<=\| )[+-]?[\d.]+ ± [\d.]+(?= \|)', line))
        assert rows, line
        assert numbers <= set().union(*(written[row] for row in rows)), line
        found += len(numbers)
    assert found > 50
