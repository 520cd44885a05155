"""A front of networks: one warmup, a search for each target from its end, and random networks."""

import json
import os
import shutil
import signal

import pytest
from helpers import fronts
from helpers.command import Run, on_one_core, wait_until_free
from helpers.runs import lines_of, tiny

from asose_jax.costs import flops
from asose_jax.report import page
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import registry
from asose_jax.sweep import front, runner
from asose_jax.train import checkpoint
from configs.search import get_config

PARTS = ('flops_1000000', 'flops_1600000', 'flops_2200000')  # of `fronts.TARGETS`, rising


@pytest.fixture
def asked(monkeypatch):
    """The unfinished jobs that were to be run, a list for each time; only warmups come to an end.

    Nothing is compared afterwards.
    """
    found = []

    def run_jobs(jobs, machine, directory, console):
        found.append([job for job in jobs if not job.is_finished(directory)])
        for job in found[-1]:
            if job.only_warmup:
                _end_warmup(directory / job.name, job.config.warmup.epochs)

    monkeypatch.setattr(runner.placement, 'available_slots', list)
    monkeypatch.setattr(runner.placement, 'in_child', lambda *_: None)
    monkeypatch.setattr(runner, 'run_jobs', run_jobs)
    monkeypatch.setattr(runner, '_summarize', lambda *_: {})
    return found


def _config(**fields):
    config = get_config(fronts.PRESET)
    targets = {**fronts.SMALL, 'cost.kind': 'flops', 'cost.targets': fronts.TARGETS}
    config.update_from_flattened_dict({**targets, 'warmup.epochs': 2, **fields})
    return config


def _end_warmup(workdir, epochs):
    """Leaves what a warmup leaves at its end, random bytes in the place of arrays."""
    (workdir / 'checkpoints' / str(17 * epochs)).mkdir(parents=True)
    (workdir / 'checkpoints' / str(17 * epochs) / 'state').write_bytes(os.urandom(64))
    (workdir / 'events').mkdir()
    (workdir / 'events' / 'file').write_text('events')
    (workdir / 'run.json').write_text('{"data": {}}')
    lines = [{'step': 17 * n, 'phase': 'warmup', 'epoch': n} for n in range(1, epochs + 1)]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (workdir / 'metrics.jsonl').write_text(text)


def _files(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob('*') if p.is_file()}


# --- Which runs


def test_each_seed_warms_up_once_and_all_of_its_searches_begin_with_those_bits(tmp_path, asked):
    runner.search(_config(seeds=(3, 5)), tmp_path)
    assert [job.name for job in asked[0]] == ['warmup/seed_3', 'warmup/seed_5']
    assert len(asked[1]) == 6
    for seed in (3, 5):
        warm = _files(tmp_path / 'warmup' / f'seed_{seed}')
        for part in PARTS:
            assert _files(tmp_path / part / f'seed_{seed}') == warm
    runner.search(_config(seeds=(3, 5)), tmp_path)
    assert [job.only_warmup for jobs in asked[2:] for job in jobs] == [False] * 6


def test_added_target_begins_with_the_old_warmup_and_leaves_the_other_searches_alone(
    tmp_path, asked
):
    runner.search(_config(**{'cost.targets': fronts.TARGETS[:2]}), tmp_path)
    went_on = tmp_path / PARTS[0] / 'seed_0' / 'checkpoints' / '99'
    went_on.mkdir()
    (tmp_path / PARTS[0] / 'seed_0' / 'metrics.jsonl').write_text('later')
    runner.search(_config(), tmp_path)
    assert asked[2] == []
    warm = _files(tmp_path / 'warmup' / 'seed_0')
    assert _files(tmp_path / PARTS[1] / 'seed_0') == warm
    assert (tmp_path / PARTS[0] / 'seed_0' / 'metrics.jsonl').read_text() == 'later'


def test_searches_have_their_target_as_price_and_limit_and_the_warmup_neither(tmp_path, asked):
    runner.search(_config(**{'cost.limit.params': 1e6}), tmp_path)
    (warmup,), searches = asked
    assert (warmup.only_warmup, warmup.config.cost.kind) == (True, None)
    assert [job.name for job in searches] == [f'{part}/seed_0' for part in PARTS]
    for job, target in zip(searches, sorted(fronts.TARGETS), strict=True):
        cost = job.config.cost
        assert (cost.target, cost.limit.flops, cost.limit.params) == (target, target, 1e6)
        assert (cost.targets, job.config.seeds, job.only_warmup) == ((), (), False)


def test_without_warmup_searches_begin_by_themselves(tmp_path, asked):
    runner.search(_config(**{'warmup.epochs': 0}), tmp_path)
    assert [job.only_warmup for jobs in asked for job in jobs] == [False] * 3


def test_search_that_is_killed_while_it_takes_over_the_warmup_takes_it_over_anew(
    tmp_path, monkeypatch
):
    _end_warmup(tmp_path / 'warm', 2)
    copytree = shutil.copytree

    def killed(source, target, **options):
        copytree(source, target, **options)
        if target.name == 'warmup.tmp':
            (target / 'state').write_bytes(b'half')
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(front.shutil, 'copytree', killed)
        with pytest.raises(KeyboardInterrupt):
            front.begin_with(tmp_path / 'warm', 2, tmp_path / 'run')
    assert not checkpoint.has_checkpoint(tmp_path / 'run' / 'checkpoints')
    front.begin_with(tmp_path / 'warm', 2, tmp_path / 'run')
    assert _files(tmp_path / 'run') == _files(tmp_path / 'warm')


def test_warmup_has_ended_only_with_its_last_line_and_the_checkpoint_of_it(tmp_path):
    _end_warmup(tmp_path, 3)
    assert front.end_of_warmup(tmp_path, 3) == tmp_path / 'checkpoints' / '51'
    assert front.end_of_warmup(tmp_path, 4) is None
    shutil.rmtree(tmp_path / 'checkpoints' / '51')
    assert front.end_of_warmup(tmp_path, 3) is None
    assert front.end_of_warmup(tmp_path / 'nothing', 3) is None


# --- Random networks


def test_random_networks_of_each_target_keep_its_limit_and_are_drawn_alike_again(tmp_path, asked):
    fronts.write(tmp_path, seeds=(0,))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    drawn = []
    for _ in range(2):
        runner.search(_config(random_cells=4), tmp_path)
        drawn.append({})
        for part, target in zip(PARTS, sorted(fronts.TARGETS), strict=True):
            for i in range(4):
                content = json.loads((tmp_path / 'random' / part / f'{i}.json').read_text())
                network = registry.spec_from_json(content['network'])
                assert flops.forward_flops(network) <= target
                drawn[-1][part, i] = json.dumps(content['genotype'])
    assert drawn[0] == drawn[1]
    assert len({*drawn[0].values()}) > 6
    names = [f'{group}/{part}' for part in PARTS for group in ('found', 'random')]
    assert {job.name.rpartition('/')[0] for job in asked[-1]} <= {*names}


def test_networks_that_are_trained_in_another_size_have_no_limit_of_the_search(tmp_path, asked):
    fronts.write(tmp_path, seeds=(0,))
    for name in ('config.json', page.NAME):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / 'found')
    for channels, limits in ((None, [*sorted(fronts.TARGETS)]), (32, [None] * 3)):
        runner.search(_config(random_cells=1, **{'retrain.channels': channels}), tmp_path)
        found = [job.config.cost.limit.flops for job in asked[-1] if job.name[:5] == 'found']
        assert found == limits
        (tmp_path / 'config.json').unlink()


# --- What is refused


@pytest.mark.parametrize(
    ('targets', 'told'),
    [
        ((100, 3e4), r'out of reach: 100\. Networks of this space cost from \d+ to \d+ \(floating'),
        ((2e4, 3e9, 4e9), r'out of reach: 3000000000, 4000000000\. .* Take targets in between\.'),
        ((2e4, 3e4), None),
    ],
)
def test_targets_out_of_reach_are_one_line_with_the_range_before_any_work(
    tmp_path, monkeypatch, targets, told
):
    monkeypatch.setattr(runner.placement, 'available_slots', list)
    monkeypatch.setattr(runner.placement, 'in_child', lambda call, *arguments: call(*arguments))
    monkeypatch.setattr(runner, 'run_jobs', lambda *_: pytest.fail('work'))
    monkeypatch.setattr(front, 'warmup_config', lambda _: pytest.fail('warmup'))
    fields = {'cost.kind': 'flops', 'cost.targets': targets, 'growth.epochs': 0}
    config = tiny(**fields)
    if told is None:
        with pytest.raises(pytest.fail.Exception, match='warmup'):
            runner.search(config, tmp_path / 'run')
        return
    with pytest.raises(UserError, match=told) as error:
        runner.search(config, tmp_path / 'run')
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'run').exists()


def test_growth_may_reach_a_target_above_all_networks_of_today():
    front.require_reachable(tiny(**{'cost.kind': 'flops', 'cost.targets': (2e4, 3e9)}))


@pytest.mark.usefixtures('asked')
def test_plain_sweep_and_front_do_not_take_over_the_workdir_of_each_other(tmp_path):
    priced = {'cost.kind': 'flops', 'cost.target': 1e6, 'cost.limit.flops': 1e6}
    for first, second in ((_config(), None), (None, _config())):
        place = tmp_path / str(first is None)
        plain = _config(seeds=(0,), **{**priced, 'cost.targets': ()})
        runner.search(first or plain, place)
        with pytest.raises(UserError, match=r'holds a run with another config'):
            runner.search(second or plain, place)


# --- The whole program


def _checksums(workdir):
    """Of all arrays in the last checkpoint, by their names; and its step."""
    with checkpoint.Checkpoints(workdir / 'checkpoints') as checkpoints:
        step = checkpoints.latest()
        return step, checkpoints.describe(step)['checksums']


@pytest.mark.slow
def test_front_that_is_killed_goes_on_and_each_search_ends_as_it_would_alone(root, tmp_path):
    fields = {
        'batch_size': 64,
        'data.valid_fraction': 0.8,
        'model.channels': 4,
        'model.depth': 1,
        'model.reductions': (0,),
        'model.primitives': ('none', 'skip_connect', 'nor_conv_1x1'),
        'warmup.epochs': 1,
        'search.epochs': 2,
        'growth.epochs': 0,
        'optimize.epochs': 1,
        'checkpoint.every_seconds': 0,
    }
    spec = registry.SPACES['chain'].build(
        (8, 8, 1), 10, channels=4, depth=1, reductions=(0,), max_channels=256,
        primitives=fields['model.primitives'],
    )  # fmt: skip
    low, high = flops.cost_table(spec, flops.FLOPS).reach(spec)
    targets = (low, high)
    how = {'base': fields, 'environment': {'JAX_NUM_CPU_DEVICES': '1'}}
    several, place = {'cost.kind': 'flops', 'cost.targets': targets}, tmp_path / 'front'
    searches = [place / f'flops_{target:.0f}' / 'seed_0' for target in targets]
    killed = Run(root, place, several, **how)
    begun = searches[0] / 'metrics.jsonl'
    assert killed.wait_for(lambda _: begun.exists() and 'search' in begun.read_text()), (
        killed.output
    )
    killed.signal(signal.SIGKILL)
    killed.wait()
    for search in searches:
        if search.exists():
            wait_until_free(search)
    warm = _files(place / 'warmup')
    whole = Run(root, place, several, **how)
    assert whole.wait() == 0, whole.output
    assert _files(place / 'warmup') == warm
    assert 'warmup' not in ''.join(line for line in whole.lines if 'started' in line)

    summary = json.loads((place / 'summary.json').read_text())
    assert [entry['target'] for entry in summary['front']['targets']] == [*targets]
    for entry, row in zip(summary['front']['targets'], summary['searches'], strict=True):
        assert low <= row['cost'] == entry['searched']['cost'] <= entry['target']
    assert (place / 'summary.md').read_text().strip() in whole.output

    target, search = targets[0], searches[0]
    own = {'cost.kind': 'flops', 'cost.target': target, 'cost.limit.flops': target}
    with on_one_core():
        single = Run(root, tmp_path / 'alone', own, **how)
    assert single.wait() == 0, single.output
    assert _checksums(search) == _checksums(tmp_path / 'alone')
    # In warmup, its evaluations choose no network within a limit.
    ours, alone = (
        [line for line in lines_of(run) if line['phase'] != 'warmup']
        for run in (search, tmp_path / 'alone')
    )
    assert len(ours) == 3
    for line in (ours[0], alone[0]):  # compares its genotype with that of the line before
        del line['arch/changed']
    assert ours == alone
