"""Measures the predictions of a classifier on labelled images, by class and over all."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from asose_jax.runtime.errors import counted

_CALIBRATION_BINS = 15
_TOP = 5
_MAX_NAMES = 10  # of classes in one line of the log
_FEW_CLASSES = 10  # among so few, five guesses say little


def scores(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """Computes the content of evaluation.json.

    A quotient without a denominator is `None`: the recall of a class that no image is of, the
    precision of one that was never predicted, and F1 where both hold. Means over classes leave it
    out, as scikit-learn does.

    Args:
      labels: true classes, integers `[N]`, N > 0.
      probabilities: of each class, float `[N, classes]`; finite.
      class_names: one name for each class.

    Returns:
      Numbers of images as integers, all else as fractions or, the likelihood, in nats:
        * `images`, `accuracy`;
        * `balanced_accuracy`: mean recall of the classes that have images;
        * `macro_f1`: mean F1 of the classes that have images or were predicted;
        * `top_5_accuracy`, with more than ten classes;
        * `expected_calibration_error`, see `expected_calibration_error`;
        * `negative_log_likelihood`: mean over the images;
        * `classes`: `name`, `recall`, `precision`, `f1`, `images` and `predicted` (the number of
          images that were predicted to be of the class);
        * `confusion`: counts; rows: true class, columns: predicted class.
    """
    numbers = range(len(class_names))
    predicted = probabilities.argmax(-1)
    confusion = metrics.confusion_matrix(labels, predicted, labels=numbers)
    by_class: Any = metrics.precision_recall_fscore_support(
        labels,
        predicted,
        labels=numbers,
        zero_division=np.nan,  # pyright: ignore[reportArgumentType]  # the value without images
    )
    precision, recall, f1, images = by_class
    # In double precision, log_loss takes no probability for less than 2e-16, and wants exact sums.
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(-1, keepdims=True)
    result = {
        'images': len(labels),
        'accuracy': float(metrics.accuracy_score(labels, predicted)),
        'balanced_accuracy': float(np.nanmean(recall)),
        'macro_f1': float(np.nanmean(f1)),
    }
    if len(class_names) > _FEW_CLASSES:
        result[f'top_{_TOP}_accuracy'] = float(
            metrics.top_k_accuracy_score(labels, probabilities, k=_TOP, labels=numbers)
        )
    return {
        **result,
        'expected_calibration_error': expected_calibration_error(labels, probabilities),
        'negative_log_likelihood': float(metrics.log_loss(labels, exact, labels=numbers)),
        'classes': [
            {
                'name': name,
                'recall': _finite_or_none(recall[k]),
                'precision': _finite_or_none(precision[k]),
                'f1': _finite_or_none(f1[k]),
                'images': int(images[k]),
                'predicted': int(confusion[:, k].sum()),
            }
            for k, name in enumerate(class_names)
        ],
        'confusion': confusion.tolist(),
    }


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Computes the expected calibration error of Guo et al. 2017 (arXiv:1706.04599, eq. 3).

    ECE = sum_m |B_m|/N |acc(B_m) - conf(B_m)|, where B_m are the images whose largest probability
    is in ((m-1)/15, m/15].

    Args:
      labels: true classes, integers `[N]`.
      probabilities: of each class, float `[N, classes]`.

    Returns:
      The error, from 0 to 1.
    """
    confidence = probabilities.max(-1).astype(np.float64)
    correct = probabilities.argmax(-1) == labels
    inner_edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)[1:-1]
    bins = np.digitize(confidence, inner_edges, right=True)
    return float(np.abs(np.bincount(bins, correct - confidence)).sum() / len(labels))


def describe(result: dict[str, Any]) -> list[str]:
    """Formats what `scores` returns, as lines for a log."""
    top = f'top_{_TOP}_accuracy'
    lines = [
        f'test accuracy {100 * result["accuracy"]:.2f} % of {result["images"]} images, '
        f'balanced accuracy {100 * result["balanced_accuracy"]:.2f} %, '
        f'macro F1 {100 * result["macro_f1"]:.2f} %'
        + (f', top-{_TOP} accuracy {100 * result[top]:.2f} %' if top in result else ''),
        f'expected calibration error {100 * result["expected_calibration_error"]:.2f} %, '
        f'mean negative log-likelihood {result["negative_log_likelihood"]:.4f}',
    ]
    for row in result['classes']:
        parts = [
            f'{title} {_percent(row[key])}'
            for key, title in {'recall': 'recall', 'precision': 'precision', 'f1': 'F1'}.items()
        ]
        lines.append(f'{row["name"]}: {", ".join(parts)}, {counted(row["images"], "image")}')
    without = {
        'images': 'the test set has no image of these classes, so they have no recall',
        'predicted': 'no image was predicted to be of these classes, so they have no precision',
    }
    for key, sentence in without.items():
        if names := [row['name'] for row in result['classes'] if not row[key]]:
            more = f' and {len(names) - _MAX_NAMES} more' if len(names) > _MAX_NAMES else ''
            lines.append(f'{sentence}: {", ".join(names[:_MAX_NAMES])}{more}')
    return lines


def _percent(fraction: float | None) -> str:
    return 'undefined' if fraction is None else f'{100 * fraction:.1f} %'


def _finite_or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
