"""Every command that a document shows runs, as it is written but for its size."""

import functools
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import prepared
from helpers.benchmarks import NAMES
from helpers.pictures import picture
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = ['README.md', 'CONTRIBUTING.md']
DOCUMENTS += sorted(f'docs/{page.name}' for page in ROOT.glob('docs/*.md'))
CONFIGS = sorted(f'configs/{file.name}' for file in ROOT.glob('configs/*.py'))

# Lines that are not run here, by a part of them, and why.
EXCEPTIONS = {
    'pip install tensorflow': 'needs a network',
    '-m pytest': 'that is this',
    'ruff check': '.ci/run does it',
    '.ci/run': 'that starts this',
    '-r tests/requirements.txt': 'the first lines of .ci/run',
    'source .venv': 'the README has it in one line with the search',
    'cp -r /usr/share/icons': 'a theme of Debian; the icons are made here',
    'docker build': 'no Docker here',
    'NatsBench': 'a package that is not installed; nats_test has one of the same form',
    'RUN=': 'words for the commands after it',
}
# What makes a run small, in the place of what the line says.
SMALL = (
    *('data.image_size=8', 'data.train_split=train', 'data.valid_fraction=0.5', 'batch_size=16'),
    *('model.channels=8', 'model.max_channels=16', 'model.depth=3', 'model.reductions=(1,)'),
    *('warmup.epochs=1', 'search.epochs=1', 'growth.epochs=0', 'optimize.epochs=1'),
    *('retrain.epochs=1', 'retrain.batch_size=16', 'checkpoint.every_seconds=600'),
    "model.primitives=('none','skip_connect','max_pool_3x3','sep_conv_3x3','nor_conv_3x3')",
)
# Lines on the run in /tmp/digits.
FIRST = re.compile(r'(workdir=|genotype=)/tmp/digits\b')
# Further flags of the lines that have such a part.
SPECIAL = {
    'seeds': ('seeds=(0,)', 'random_cells=1'),
    'cost.target=': ('cost.target=50000',),
    'cost.targets=': ('cost.targets=(30000,100000)',),
    'limit.latency': ('cost.limit.latency=1000',),  # on however slow a machine
    'lr_warmup_steps': ('retrain.lr_warmup_steps=2',),
    'mode=retrain': ('retrain.channels=8', 'retrain.depth=3', 'retrain.reductions=(1,)'),
}
# Flags that these lines must not have: the sizes are those of the network, or of its run.
FORBIDDEN = {
    'init_from': SPECIAL['mode=retrain'],
    'same_flops': (*SPECIAL['mode=retrain'], 'retrain.epochs=1'),
}


def lines_of(name: str) -> list[str]:
    """The commands of a document, each as a line, continuations joined, remarks left out."""
    text = (ROOT / name).read_text(encoding='utf-8')
    if name.endswith('.py'):
        found = re.findall(r'^    (python main\.py .*?)(?:   .*)?$', text, re.MULTILINE)
        found = [line for line in found if _anywhere(line) not in _shown()]
    else:
        blocks = re.findall(r'^```bash\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
        found = ''.join(blocks).replace('\\\n', ' ').splitlines()
    return [line for line in found if line.strip() and not line.lstrip().startswith('#')]


@functools.cache
def _shown():
    """The commands in the blocks of all documents, wherever their directories are."""
    return frozenset(_anywhere(line) for name in DOCUMENTS for line in lines_of(name))


def _plain(line):
    """The line without its remark, in an environment that is there already."""
    line = re.sub(r'\s+#.*', '', line).strip()
    return re.sub(r'^python3 -m venv .*?&& \S*python main', 'python main', line)


def _anywhere(line):
    return re.sub(r'(?<=workdir=)\S+', 'DIR', _plain(line))


def _exception(line):
    return next((part for part in EXCEPTIONS if part in line and 'main.py' not in line), None)


def _is_run(line):
    return 'main.py' in line or 'measure.py' in line


@pytest.mark.parametrize('name', [*DOCUMENTS, *CONFIGS])
def test_every_command_is_run_or_stands_among_the_exceptions(name):
    strangers = [line for line in lines_of(name) if not _is_run(line) and not _exception(line)]
    assert not strangers


def test_every_exception_is_one():
    lines = [line for name in DOCUMENTS for line in lines_of(name)]
    assert {_exception(line) for line in lines} - {None} == set(EXCEPTIONS)


@pytest.mark.parametrize('name', DOCUMENTS)
def test_a_command_within_a_sentence_stands_in_a_block_of_a_document(name):
    text = (ROOT / name).read_text(encoding='utf-8')
    found = [
        ' '.join(line.split()) for line in re.findall(r'(?<!`)`(python main\.py [^`]+)`', text)
    ]
    assert not [line for line in found if _anywhere(line) not in _shown()]


@pytest.mark.parametrize('name', DOCUMENTS)
def test_every_benchmark_that_is_named_exists_with_its_flags_and_is_run_small(name):
    text = (ROOT / name).read_text(encoding='utf-8')
    common = (ROOT / 'benchmarks' / 'measure.py').read_text(encoding='utf-8')
    for module, rest in re.findall(r'python\s-m\sbenchmarks\.(\w+)([^`\n]*)', text):
        assert module in {*NAMES, 'ablation', 'accelerator', 'floors', 'growth_position'}
        source = (ROOT / 'benchmarks' / f'{module}.py').read_text(encoding='utf-8') + common
        for flag in re.findall(r'--[\w-]+', rest):
            assert f"add_argument('{flag}'" in source, f'{module} {flag}'


# --- They run


def _world(tmp_path):
    """What the commands find: data, a genotype, and a `python` that makes runs small."""
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (10, 10, 3), dtype=np.uint8)) for _ in range(160)
    ]
    classes = [f'class {i}' for i in range(10)]
    parts = {'train': pictures, 'test': pictures[:40]}
    prepared.write(tmp_path / 'tfds', 'cifar10', 3, parts, classes)
    for folder in ('PICTURES', 'icons'):
        for kind in ('round', 'square', 'odd <b>$x$'):
            for i in range(30):
                picture(tmp_path / folder / kind / f'{i}.png', (12, 9 + i % 5), seed=i)
    cell = [('sep_conv_3x3', 0), ('skip_connect', 1)] * 4
    concat = [2, 3, 4, 5]
    text = f'normal={cell}, normal_concat={concat}, reduce={cell}, reduce_concat={concat}'
    (tmp_path / 'FILE').write_text(f'Genotype({text})')


def _small(line):
    """The line with flags appended that make it small; runs that are finished need none."""
    if 'main.py' not in line or re.search(r'--mode=(evaluate|predict|export|report)', line):
        return line
    flags = [*SMALL, *(flag for part, flags in SPECIAL.items() if part in line for flag in flags)]
    forbidden = {flag for part, flags in FORBIDDEN.items() if part in line for flag in flags}
    flags = [flag for flag in flags if flag not in forbidden]
    line = _without(line, [flag.partition('=')[0] for flag in flags])
    return ' '.join([line, *(f'"--config.{flag}"' for flag in flags)])


def _without(line, fields):
    """The line without the flags of these fields: a tuple that is given twice is both together."""
    for field in fields:
        value = r'("[^"]*"|\([^)]*\)|[^\s"\']*)'
        line = re.sub(rf"'?--config\.{re.escape(field)}={value}'?(?=[\s\"]|$)", '', line)
    return line


def _written(line, tmp_path, number):
    """The line for a shell: in another place, and small."""
    line = re.sub(r'(?<![\w/])/tmp/|(?<==)(?=PICTURES|icons|FILE)', f'{tmp_path}/', _plain(line))
    return _small(line.replace('--workdir=DIR', f'--workdir={tmp_path}/dir_{number}'))


def _run(lines, words, tmp_path):
    """Runs these lines, one after another."""
    _world(tmp_path)
    environment = {**os.environ, 'TFDS_DATA_DIR': str(tmp_path / 'tfds'), 'JAX_PLATFORMS': 'cpu'}
    shell = f'python() {{ {sys.executable} "$@"; }}'
    for number, line in enumerate(lines):
        script = '\n'.join([shell, *words, _written(line, tmp_path, number)])
        done = subprocess.run(
            ['bash', '-euc', script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f'{line}\n{script}\n{done.stderr[-2000:]}'


@pytest.mark.slow
def test_first_commands_of_the_documents_run_one_after_another(tmp_path):
    """The README's search, the same network from scratch, and all uses of a finished run."""
    lines = [line for name in DOCUMENTS for line in lines_of(name) if _is_run(line)]
    lines = [*dict.fromkeys(_plain(line) for line in lines if FIRST.search(line))]
    assert len(lines) == 8
    assert lines[0] == _plain(next(filter(_is_run, lines_of('README.md'))))
    _run(lines, [], tmp_path)


def _own_runs(name):
    """The runs of a document, but for uses of the first run, which it may not make itself."""
    lines = list(filter(_is_run, lines_of(name)))
    if any(re.search(r'--config=.* --workdir=/tmp/digits\b', line) for line in lines):
        return lines
    return [line for line in lines if not FIRST.search(line)]  # the test above runs them


@pytest.mark.soak
@pytest.mark.parametrize('name', [*filter(_own_runs, [*DOCUMENTS, *CONFIGS])])
def test_commands_run_one_after_another(name, tmp_path):
    fields = [flag.partition('=')[0] for flag in SMALL]
    words = [_without(line, fields) for line in lines_of(name) if 'RUN=' in line]
    _run(_own_runs(name), words, tmp_path)
