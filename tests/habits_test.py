"""Workflows, hooks, forms and containers agree with the project; none of them runs here."""

import datetime
import pathlib
import re
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
WORKFLOW = ROOT / '.github' / 'workflows' / 'ci.yml'
FORMS = [ROOT / '.github' / 'ISSUE_TEMPLATE' / name for name in ('bug.yml', 'question.yml')]
HOOKS = ROOT / '.pre-commit-config.yaml'
CONTAINERS = sorted((ROOT / 'docker').glob('*.Dockerfile'))


def _yaml(path):
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def _files(*patterns):
    """The project's own files, relative to it."""
    return [path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)]


def _project():
    return tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']


@pytest.mark.parametrize(
    'path',
    [
        *_files('*.yml', '.*.yaml', '.github/**/*.yml'),
        pathlib.Path('CITATION.cff'),
    ],
    ids=str,
)
def test_every_file_of_yaml_can_be_read(path):
    assert isinstance(_yaml(ROOT / path), dict)


def test_citation_has_the_version_and_the_date_of_the_changelog():
    citation, version = _yaml(ROOT / 'CITATION.cff'), _project()['version']
    assert str(citation['version']) == version
    released = citation['date-released']
    assert isinstance(released, datetime.date)
    changelog = (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert f'\n## {version} - {released.isoformat()}\n' in changelog


def test_package_needs_what_the_requirements_name():
    """The dependencies are read from requirements.txt; extras that tests need have their ranges."""
    text = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    assert 'dependencies' in text['project']['dynamic']
    read = text['tool']['setuptools']['dynamic']['dependencies']
    assert read == {'file': ['requirements.txt']}
    tested = (ROOT / 'tests' / 'requirements.txt').read_text(encoding='utf-8').splitlines()
    tested = {line.partition('#')[0].strip() for line in tested}
    assert {*_project()['optional-dependencies']['onnx']} <= tested


def test_workflow_runs_the_parts_of_the_one_command():
    """Of its own it has none; only the soak ring stays with the one command."""
    jobs = _yaml(WORKFLOW)['jobs']
    runs = [step['run'] for job in jobs.values() for step in job['steps'] if 'run' in step]
    parts = [re.fullmatch(r'bash \.ci/run (\w+)( \S+ matrix\.paths \S+)?', run)[1] for run in runs]
    local = (ROOT / '.ci' / 'run').read_text(encoding='utf-8')
    defined = set(re.findall(r'^(\w+)\(\) \{', local, re.MULTILINE))
    assert {*parts} == {'lint', 'package', 'default', 'slow'}
    assert {*parts, 'soak'} <= defined
    assert '\ndefault\nlint\npackage\nslow\nsoak\n' in local


def test_default_ring_runs_on_every_version_that_the_readme_promises():
    matrix = _yaml(WORKFLOW)['jobs']['default']['strategy']['matrix']
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert f'Python {" or ".join(", ".join(matrix["python"]).rsplit(", ", 1))}' in readme
    assert _project()['requires-python'] == f'>={matrix["python"][0]}'


def test_every_test_file_is_in_one_part_of_the_slow_ring():
    parts = _yaml(WORKFLOW)['jobs']['slow']['strategy']['matrix']['include']
    assert len(parts) == 3
    found = []
    for part in parts:
        for path in part['paths'].split():
            assert _files(path), path
            found += _files(path if '*' in path else f'{path}/**/*_test.py')
    assert sorted(found) == sorted(_files('tests/**/*_test.py'))


def test_hooks_run_commands_of_the_environment_on_files_that_there_are():
    (repository,) = _yaml(HOOKS)['repos']
    assert repository['repo'] == 'local'
    names = {*map(str, _files('*.toml', '*.py', 'asose_jax/**/*.py', 'tools/*.py', 'docs/*.md'))}
    for hook in repository['hooks']:
        assert hook['language'] == 'system'
        if hook['entry'].startswith('python -m '):
            module = hook['entry'].split()[2].replace('.', '/')
            assert (ROOT / f'{module}.py').is_file()
        else:
            assert hook['entry'].split()[0] in {'ruff', 'basedpyright'}
        assert any(re.search(hook['files'], name) for name in names)


@pytest.mark.parametrize('path', FORMS, ids=lambda path: path.name)
def test_forms_ask_for_something_and_have_an_own_name_for_each_answer(path):
    form = _yaml(path)
    assert form['name']
    assert form['description']
    assert any(field.get('validations', {}).get('required') for field in form['body'])
    names = [field['id'] for field in form['body']]
    assert len({*names}) == len(names)
    assert all(field['attributes']['label'] for field in form['body'])


@pytest.mark.parametrize('path', CONTAINERS, ids=lambda path: path.name)
def test_containers_say_that_they_were_not_built_and_copy_what_there_is(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    assert lines[0].startswith('# Not built')
    sent = (ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines()
    copied = [name for line in lines if line.startswith('COPY ') for name in line.split()[1:-1]]
    assert len(copied) == 5
    for name in copied:
        assert (ROOT / name).exists()
        assert f'!{name}' in sent
    (base,) = [line for line in lines if line.startswith('FROM ')]
    versions = _yaml(WORKFLOW)['jobs']['default']['strategy']['matrix']['python']
    assert re.fullmatch(r'FROM python:(\S+)-slim', base)[1] in versions
    for extra in re.findall(r'"\.\[(\w+)\]"', '\n'.join(lines)):
        assert extra in _project()['optional-dependencies']


def test_there_is_a_container_for_the_cpu_and_one_for_cuda():
    assert [path.name for path in CONTAINERS] == ['cpu.Dockerfile', 'cuda.Dockerfile']
