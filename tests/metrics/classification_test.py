"""Results by class and over all, checked by hand and against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics

from asose_jax.metrics import classification

# Two of three images of a are right, and one of two of b. Class c has no image, but one is
# predicted to be of it.
LABELS = np.array([0, 0, 0, 1, 1])
GUESSES = np.array([0, 0, 1, 1, 2])
CONFIDENCE = np.array([0.9, 0.7, 0.6, 0.6, 0.5])
NAMES = ('a', 'b', 'c', 'd')  # d is neither there nor predicted


def _sure_of(guesses, confidence, classes):
    """Probabilities whose largest one is known; the others share the rest."""
    rest = (1 - confidence) / (classes - 1)
    probabilities = np.repeat(rest[:, None], classes, axis=1)
    probabilities[np.arange(len(guesses)), guesses] = confidence
    return probabilities.astype(np.float32)


@pytest.fixture
def result():
    return classification.scores(LABELS, _sure_of(GUESSES, CONFIDENCE, 4), NAMES)


def test_results_by_class_are_those_by_hand(result):
    rows = {row.pop('name'): row for row in result['classes']}
    a = {'recall': 2 / 3, 'precision': 1.0, 'f1': 0.8, 'images': 3, 'predicted': 2}
    b = {'recall': 1 / 2, 'precision': 1 / 2, 'f1': 1 / 2, 'images': 2, 'predicted': 2}
    assert rows['a'] == pytest.approx(a)
    assert rows['b'] == pytest.approx(b)
    assert result['confusion'] == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_quotients_without_a_denominator_are_null_and_stated(result):
    c, d = result['classes'][2:]
    zero = {'recall': None, 'precision': 0.0, 'f1': 0.0, 'images': 0, 'predicted': 1}
    assert c == {'name': 'c', **zero}
    undefined = dict.fromkeys(('recall', 'precision', 'f1'))
    assert d == {'name': 'd', **undefined, 'images': 0, 'predicted': 0}
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert classification.describe(result)[2:] == [
        'a: recall 66.7 %, precision 100.0 %, F1 80.0 %, 3 images',
        'b: recall 50.0 %, precision 50.0 %, F1 50.0 %, 2 images',
        'c: recall undefined, precision 0.0 %, F1 0.0 %, no images',
        'd: recall undefined, precision undefined, F1 undefined, no images',
        'the test set has no image of these classes, so they have no recall: c, d',
        'no image was predicted to be of these classes, so they have no precision: d',
    ]


@pytest.mark.parametrize(
    ('classes', 'end'),
    [(11, ': 1, 2, 3, 4, 5, 6, 7, 8, 9, 10'), (12, '10 and 1 more'), (99, '10 and 88 more')],
)
def test_line_names_ten_classes_at_most(classes, end):
    labels, guesses = np.arange(classes), np.zeros(classes, int)
    probabilities = _sure_of(guesses, np.full(classes, 0.9), classes)
    found = classification.scores(labels, probabilities, tuple(map(str, labels)))
    assert classification.describe(found)[-1].endswith(end)


def test_results_over_all_are_those_by_hand(result):
    assert result['images'] == 5
    assert result['accuracy'] == pytest.approx(3 / 5)
    assert result['balanced_accuracy'] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result['macro_f1'] == pytest.approx((0.8 + 0.5 + 0.0) / 3)
    right = [0.9, 0.7, (1 - 0.6) / 3, 0.6, (1 - 0.5) / 3]
    assert result['negative_log_likelihood'] == pytest.approx(-np.log(right).mean(), rel=1e-6)
    # Two images share a confidence, so they share a bin, and half of them are right.
    errors = [abs(1 - 0.9), abs(1 - 0.7), abs(1 - 2 * 0.6), abs(0 - 0.5)]
    assert result['expected_calibration_error'] == pytest.approx(sum(errors) / 5)
    assert classification.describe(result)[0] == (
        'test accuracy 60.00 % of 5 images, balanced accuracy 58.33 %, macro F1 43.33 %'
    )


def test_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_one():
    """Guo et al. 2017: the bins are ((m-1)/15, m/15], so these two images are in two bins."""
    edge = np.array([[0.4, 0.6], [0.39, 0.61]])
    assert classification.expected_calibration_error(np.array([1, 0]), edge) == pytest.approx(
        (abs(1 - 0.6) + abs(0 - 0.61)) / 2
    )
    within = np.array([[0.38, 0.62], [0.39, 0.61]])
    assert classification.expected_calibration_error(np.array([1, 0]), within) == pytest.approx(
        abs(1 - 0.62 + 0 - 0.61) / 2
    )


@pytest.mark.parametrize(('classes', 'told'), [(10, False), (11, True)])
def test_top_5_accuracy_is_told_of_more_than_ten_classes(classes, told):
    probabilities = np.tile(np.arange(1.0, classes + 1), (classes, 1))
    probabilities /= probabilities.sum(1, keepdims=True)
    result = classification.scores(np.arange(classes), probabilities, list('abcdefghijk')[:classes])
    assert result.get('top_5_accuracy') == (pytest.approx(5 / 11) if told else None)
    assert (', top-5 accuracy 45.45 %' in classification.describe(result)[0]) == told


def test_numbers_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    labels = random.integers(0, 12, 300)
    probabilities = random.dirichlet(np.ones(12), 300).astype(np.float32)
    probabilities[::2] = _sure_of(labels[::2], np.full(150, 0.8), 12)
    found = classification.scores(labels, probabilities, [*'abcdefghijkl'])
    guesses = probabilities.argmax(1)
    assert found['balanced_accuracy'] == metrics.balanced_accuracy_score(labels, guesses)
    assert found['macro_f1'] == metrics.f1_score(labels, guesses, average='macro')


def test_one_sure_mistake_leaves_the_likelihood_finite():
    result = classification.scores(np.array([0, 1]), np.eye(2, dtype=np.float32)[[1, 1]], 'ab')
    assert result['negative_log_likelihood'] == pytest.approx(-np.log(np.finfo(float).eps) / 2)
