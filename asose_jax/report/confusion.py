"""Draws a confusion matrix, for any number of classes and any characters in their names."""

import math
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib import figure as figures
from matplotlib import font_manager
from sklearn import metrics

DPI = 150
_MAX_CELL_INCHES = 0.5  # smaller cells, of many classes, have no number: it could not be read
_MAX_MATRIX_INCHES = 20.0
_NAMES_INCHES = 3.0  # beside the matrix
_MIN_LABEL_INCHES = (
    0.16  # between the names of two classes; where cells are smaller, some have none
)
_MAX_LABEL_LETTERS = 24
# It comes with matplotlib and has the same box for all letters of a script.
_PLACEHOLDER_FONT = 'Last Resort'


def figure(confusion: np.ndarray, names: Sequence[str]) -> figures.Figure:
    """Draws a confusion matrix in colour, with the counts where the cells are large enough.

    Args:
      confusion: `[classes, classes]` counts; rows are true classes, columns predicted ones.
      names: names of the classes. Long ones are cut, and end with the number of the class.

    Returns:
      The figure; `savefig(path, dpi=DPI)` writes it.
    """
    cell = min(_MAX_CELL_INCHES, _MAX_MATRIX_INCHES / len(names))
    side = max(4.0, cell * len(names) + _NAMES_INCHES)
    drawing = figures.Figure(figsize=(side, side), layout='constrained')
    axes = drawing.subplots()
    metrics.ConfusionMatrixDisplay(confusion).plot(
        ax=axes, cmap='viridis', colorbar=False, include_values=cell == _MAX_CELL_INCHES
    )
    families, missing = _fonts(set(''.join(names)))
    labelled = range(0, len(names), math.ceil(_MIN_LABEL_INCHES / cell))
    labels = [_label(names[k], k, missing) for k in labelled]
    style = {'parse_math': False, 'fontfamily': families, 'fontsize': 9}
    axes.set_xticks(labelled, labels, rotation='vertical', **style)
    axes.set_yticks(labelled, labels, **style)
    axes.set_xlabel('predicted class')
    axes.set_ylabel('true class')
    return drawing


def _label(name: str, number: int, missing: Collection[str]) -> str:
    """Formats a class name in one line.

    Letters without a glyph become hexadecimal escapes, so that two names never look alike.

    Args:
      name: the name.
      number: number of the class, which a cut name ends with.
      missing: letters that no font has.
    """
    text = ''.join(
        letter.encode('unicode_escape').decode() if letter in missing else letter for letter in name
    )
    if len(text) <= _MAX_LABEL_LETTERS:
        return text
    return f'{text[: _MAX_LABEL_LETTERS - 1]}… ({number})'


def _fonts(letters: set[str]) -> tuple[list[str], set[str]]:
    """Returns families of fonts that have these letters between them, and letters that none has."""
    default = font_manager.FontProperties()
    families = list(default.get_family())
    unprintable = {letter for letter in letters if not letter.isprintable()}
    uncovered = letters - unprintable - _letters_of(font_manager.findfont(default))
    for font in font_manager.fontManager.ttflist:
        if not uncovered:
            break
        if font.name.startswith(_PLACEHOLDER_FONT):
            continue
        covered = uncovered & _letters_of(font.fname)
        if covered:
            families.append(font.name)
            uncovered -= covered
    return families, unprintable | uncovered


def _letters_of(file: str) -> set[str]:
    """Returns the letters that a font file has glyphs for."""
    return set(map(chr, font_manager.get_font(file).get_charmap()))
