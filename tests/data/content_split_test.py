"""Choices by content: every class is on both sides, and copies weigh as little as they can."""

import numpy as np
import pytest

from asose_jax.data import content_split

KEYS = [f'valid {seed}' for seed in range(12)]


def _choose(classes, targets, key, left=1):
    """Returns what is chosen of each class, which is given by its contents."""
    labels = np.repeat(np.arange(len(classes)), [len(each) for each in classes])
    contents = np.array([content for each in classes for content in each])
    chosen = content_split.choose(contents, labels.astype(np.int32), np.array(targets), left, key)
    if chosen is None:
        return None
    return [''.join(sorted(contents[chosen & (labels == k)])) for k in range(len(classes))]


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize(
    ('contents', 'target', 'expected'),
    [
        ('a' * 50 + 'bc', 10, {'bc'}),  # both that fit
        ('a' * 50 + 'b' * 7 + 'c' * 6, 2, {'c' * 6}),  # none fits: the fewest copies
        ('a' * 50 + 'b' * 7 + 'c' * 6, 10, {'b' * 7, 'c' * 6}),  # one of those that fit
    ],
)
def test_many_copies_are_chosen_only_where_fewer_are_not_enough(key, contents, target, expected):
    (found, other) = _choose([contents, 'uvwxyz'], (target, 2), key)
    assert found in expected
    assert len(other) == 2


@pytest.mark.parametrize('key', KEYS)
def test_dead_end_of_one_order_is_left_by_another(key):
    """A ring of pictures, each in two classes: every second one must be chosen."""
    ring = ['ab', 'de', 'bc', 'cd', 'ef', 'fa']
    found = _choose(ring, [1] * 6, key)
    assert found is not None
    assert [len(each) for each in found] == [1] * 6
    assert ''.join(sorted(set(''.join(found)))) in ('ace', 'bdf')


def test_nothing_is_chosen_where_no_choice_exists():
    assert _choose(['ab', 'bc', 'ca'], [1] * 3, 'valid 0') is None


def test_without_copies_the_first_in_the_order_of_the_hash_are_chosen():
    """Fixed here, so that runs of before go on."""
    letters = 'abcdefghijkl'
    assert _choose([letters, letters.upper()], (3, 4), 'valid 0') == ['abk', 'ADGL']
