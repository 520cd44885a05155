"""What the docs say holds. docs/config.md is made: PYTHONPATH=. python tests/docs_test.py."""

import ast
import io
import pathlib
import re
import shlex
import tokenize
import warnings

import pytest
from absl import flags
from ml_collections import config_flags

from asose_jax.config.schema import RULES
from asose_jax.config.validation import flatten, validate
from configs import search

# Where a default, or the field itself, comes from; fields without a line are this program's own.
SOURCES = {
    'data.cutout': '[cutout](https://arxiv.org/abs/1708.04552)',
    'weights.lr': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'weights.momentum': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'weights.weight_decay': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'arch.b1': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'arch.b2': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'arch.weight_decay': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'warmup.operations': '[SPOS](https://arxiv.org/abs/1904.00420)',
    'search.estimator': '[methods.md](methods.md#estimators)',
    'search.second_order': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'arch.anchor': '[DrNAS](https://arxiv.org/abs/2006.10355)',
    'search.auxiliary_skip': '[DARTS-](https://arxiv.org/abs/2009.01027)',
    'search.partial_channels': '[PC-DARTS](https://arxiv.org/abs/1907.05737)',
    'search.early_stop': '[R-DARTS](https://arxiv.org/abs/1909.09656)',
    'search.stop_window': '[R-DARTS](https://arxiv.org/abs/1909.09656)',
    'search.stop_ratio': '[R-DARTS](https://arxiv.org/abs/1909.09656)',
    'search.selection': '[DARTS-PT](https://arxiv.org/abs/2108.04392)',
    'cost': '[TuNAS](https://arxiv.org/abs/2008.06120)',
    'search.noise': '[Gumbel-Softmax](https://arxiv.org/abs/1611.01144)',
    'search.tau_start': '[Gumbel-Softmax](https://arxiv.org/abs/1611.01144)',
    'search.tau_rate': '[Gumbel-Softmax](https://arxiv.org/abs/1611.01144)',
    'growth.width_factor': '[Net2Net](https://arxiv.org/abs/1511.05641)',
    'retrain': '[DARTS](https://arxiv.org/abs/1806.09055)',
    'optimize.drop_path': '[FractalNet](https://arxiv.org/abs/1605.07648)',
    'optimize.second_head': '[DARTS](https://arxiv.org/abs/1806.09055)',
}


def config_page(root: pathlib.Path) -> str:
    """Every field of configs/search.py: default, what it may be, meaning, source."""
    meanings = _comments((root / 'configs' / 'search.py').read_text(encoding='utf-8'))
    lines = [
        '# Every field of the config',
        '',
        'The defaults are those of the preset `cifar10`; `configs/search.py` has more. Set any',
        'field on the command line: `--config.search.epochs=2`, `--config.seed=1`.',
    ]
    group, defaults = None, flatten(search.get_config())
    for field in [name for name in meanings if name in defaults]:  # in the order of the file
        default = defaults[field]
        head = field.rpartition('.')[0]
        if head != group:
            group = head
            what = f': {meanings[head]}' if head in meanings else ''
            lines += ['', f'## {head or "The run"}{what}', '']
            lines += ['| field | default | allowed | meaning | source |', '|---|---|---|---|---|']
        source = SOURCES.get(field, SOURCES.get(head, ''))
        cells = (
            f'`{field}`',
            f'`{default!r}`',
            RULES[field].allowed,
            meanings[field],
            source,
        )
        lines.append('| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


def _comments(text):
    """What stands behind `#`, in and below a statement that sets a field or a group, by field."""
    told = [
        (token.start[0], token.string.lstrip('# '))
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    function = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef))
    found = {}
    following = [node.lineno for node in function.body[1:]] + [function.end_lineno]
    for node, following_line in zip(function.body, following, strict=True):  # presets' are nested
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name = ast.unparse(node.targets[0]).removeprefix('config.')
            within = [line for at, line in told if node.lineno <= at < following_line]
            if within:
                found.setdefault(name, ' '.join(within))
    return found


def test_page_of_the_config_is_that_of_the_config(root):
    assert (root / 'docs' / 'config.md').read_text(encoding='utf-8') == config_page(root), (
        'write it anew: PYTHONPATH=. python tests/docs_test.py'
    )


def test_every_field_says_what_it_means(root):
    meanings = _comments((root / 'configs' / 'search.py').read_text(encoding='utf-8'))
    assert set(flatten(search.get_config())) <= set(meanings)


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
    """Tuples aside, which are set alike but may grow; to what the default preset has."""
    default = flatten(search.get_config())
    wanted = {k: v for k, v in default.items() if v is not None and not isinstance(v, tuple)}
    settings = [f'--config.{name}={value}' for name, value in wanted.items()]
    found = flatten(_read(f'--config={root}/configs/search.py:{preset}', *settings))
    assert {name: found[name] for name in wanted} == wanted


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


if __name__ == '__main__':
    here = pathlib.Path(__file__).parent.parent
    (here / 'docs' / 'config.md').write_text(config_page(here), encoding='utf-8')
