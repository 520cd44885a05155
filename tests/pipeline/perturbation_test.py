"""Selection by perturbation: exactly, on accuracies by hand, and on networks."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runs import NAMES_OF, Killed, lines_of, summary_of, tiny

from asose_jax.arch import genotype
from asose_jax.pipeline import evaluation, perturbation, single_run
from asose_jax.spaces import darts
from asose_jax.spaces.registry import SPACES

KEY = jax.random.key(0)
NAMES = ('none', 'skip_connect', 'nor_conv_1x1')
SIZES = {'channels': 4, 'depth': 3, 'reductions': (1,), 'max_channels': 8}


@functools.cache
def _spec(space, names=None):
    found = SPACES[space]
    return found.build((8, 8, 1), 3, primitives=names or NAMES_OF[space], **SIZES)


def _uniform(spec):
    return [np.full(len(row.candidates), 1 / len(row.candidates), 'f') for row in spec.rows()]


def _worth(spec, seed=0):
    """What each candidate of each row adds to accuracy; all are different."""
    count = sum(len(row.candidates) for row in spec.rows())
    numbers = iter(np.random.default_rng(seed).permutation(count) / (4 * count**2))
    return [np.array([next(numbers) for _ in row.candidates]) for row in spec.rows()]


def _accuracy(worth, calls=None):
    """Adds up what is there, so that what is worth most is missed most."""

    def accuracy(rows):
        if calls is not None:
            calls.append(rows)
        return float(sum((w * (row > 0)).sum() for w, row in zip(worth, rows, strict=True)))

    return accuracy


@pytest.mark.parametrize('space', ['chain', 'nasbench201'])
@pytest.mark.parametrize('seed', range(3))
def test_each_row_keeps_what_accuracy_misses_most_whatever_alpha_says(space, seed):
    spec = _spec(space, NAMES)
    worth = _worth(spec, seed)
    rows = [np.array([0.98, 0.01, 0.01], 'f') for _ in spec.rows()]
    chosen = perturbation.select(spec, rows, _accuracy(worth), jax.random.key(seed))
    kept = [name for group in chosen.operations for name in group]
    assert kept == [NAMES[w.argmax()] for w in worth]


def test_later_rows_are_asked_with_earlier_ones_decided():
    """Enumerated: accuracy is a table of all 27 networks, averaged over those that are left."""
    spec = _spec('chain', NAMES)
    table = np.random.default_rng(1).random((3,) * 3)

    def accuracy(rows):
        each = [row / row.sum() for row in rows]
        return float(np.einsum('ijk,i,j,k', table, *each))

    chosen = perturbation.select(spec, _uniform(spec), accuracy, KEY)
    order = jax.random.permutation(jax.random.split(KEY)[0], 3).tolist()
    present = [np.ones(3) for _ in range(3)]
    for row in order:
        found = []
        for k in range(3):
            masked = [
                mask * (np.arange(3) != k) if n == row else mask for n, mask in enumerate(present)
            ]
            cells = itertools.product(*(np.flatnonzero(mask) for mask in masked))
            found.append(np.mean([table[cell] for cell in cells]))
        present[row] = np.eye(3)[int(np.argmin(found))]
    assert chosen.operations == tuple((NAMES[int(mask.argmax())],) for mask in present)


def test_of_equals_the_more_likely_one_is_kept():
    spec = _spec('chain', NAMES)
    rows = [np.array(row, 'f') for row in ([0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1])]
    chosen = perturbation.select(spec, rows, lambda _: 0.5, KEY)
    assert chosen.operations == (('nor_conv_1x1',), ('none',), ('skip_connect',))


@pytest.mark.parametrize('seed', range(3))
def test_darts_keeps_two_edges_a_node_and_never_chooses_none(seed):
    spec, calls = _spec('darts'), []
    worth = _worth(spec, seed)
    for row in worth:
        row[0] = 1.0  # `none` would be missed more than anything
    chosen = perturbation.select(
        spec, _uniform(spec), _accuracy(worth, calls), jax.random.key(seed)
    )
    best = iter([w[1:].argmax() + 1 for w in worth])
    left = iter(worth)
    for names in chosen.operations:
        own = [(next(best), next(left)) for _ in names]
        kept = [edge for edge, name in enumerate(names) if name != 'none']
        ranked = sorted(range(len(names)), key=lambda edge: -own[edge][1][own[edge][0]])
        assert kept == sorted(ranked[: darts.EDGES_PER_NODE])
        assert [names[edge] for edge in kept] == [
            spec.rows()[0].candidates[own[e][0]] for e in kept
        ]
    assert darts.loads(darts.dumps(chosen)) == chosen
    # Operations of 28 edges but `none`, then the edges of nodes that have more than two.
    assert len(calls) == 28 * (len(spec.rows()[0].candidates) - 1) + 2 * (3 + 4 + 5)


def test_darts_with_nothing_but_skip_and_none_asks_for_edges_only():
    spec, calls = _spec('darts', ('none', 'skip_connect')), []
    chosen = perturbation.select(spec, _uniform(spec), _accuracy(_worth(spec), calls), KEY)
    assert len(calls) == 2 * (3 + 4 + 5)
    assert all(sum(name != 'none' for name in node) == 2 for node in chosen.operations)


def test_logits_are_finite_and_their_softmax_has_the_ratios():
    spec = _spec('chain', NAMES)
    rows = [np.array(row, 'f') for row in ([0.0, 1.0, 0.0], [0.2, 0.0, 0.6], [1e-42, 0.5, 0.5])]
    arch = {f'block_{b}': {'choice_0': {'alpha': np.zeros(3, 'f')}} for b in range(3)}
    arch['edges'] = {'logits': np.arange(2.0)}
    tree = genotype.with_row_weights(spec, rows, arch)
    assert jax.tree.structure(tree) == jax.tree.structure(arch)
    assert tree['edges']['logits'] is arch['edges']['logits']  # weights of edges stay
    for (group, member, _), row in zip(spec.rows(), rows, strict=True):
        block, choice = spec.alpha_path(group, member)
        logits = tree[block][choice]['alpha']
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(jax.nn.softmax(logits), row / row.sum(), atol=1e-6)
        assert (np.asarray(jax.nn.softmax(jnp.array(logits)))[row == 0] == 0).all()


# --- The run

FIELDS = {
    'model.primitives': NAMES,
    'warmup.epochs': 0,
    'growth.epochs': 0,
    'search.selection': 'perturbation',
}


@pytest.mark.slow
def test_selection_that_is_killed_begins_again_and_finds_the_same(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO, 'asose_jax'):
        summary = single_run.run(tiny(**FIELDS), tmp_path / 'whole')
    told = [record.getMessage() for record in caplog.records]
    assert sum('selection: choice' in line for line in told) == 2
    assert summary['selection'] == 'perturbation'
    original, calls = evaluation.mean_loss_and_accuracy, []

    def means(sums):
        calls.append(sums)
        if len(calls) == 2 + 4:  # two epochs, then evaluations of the selection
            raise Killed
        return original(sums)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, 'mean_loss_and_accuracy', means)
        with pytest.raises(Killed):
            single_run.run(tiny(**FIELDS), tmp_path / 'halves')
    single_run.run(tiny(**FIELDS), tmp_path / 'halves')
    assert lines_of(tmp_path / 'halves') == lines_of(tmp_path / 'whole')
    assert summary_of(tmp_path / 'halves') == summary_of(tmp_path / 'whole')


@pytest.mark.slow
def test_evaluation_is_of_the_mixture_that_the_rows_say(tmp_path, monkeypatch):
    seen = {}

    def spied(spec, rows, accuracy, key):
        for name in NAMES:
            only = [np.float32([each == name for each in row.candidates]) for row in spec.rows()]
            seen[name] = accuracy(only)
        seen['all'] = accuracy(rows)
        seen['scaled'] = accuracy([3 * row for row in rows])
        raise Killed

    monkeypatch.setattr(perturbation, 'select', spied)
    with pytest.raises(Killed):
        single_run.run(tiny(**FIELDS), tmp_path)
    assert all(0 < value < 1 for value in seen.values())
    assert seen['skip_connect'] != seen['nor_conv_1x1']
    assert seen['scaled'] == seen['all']
