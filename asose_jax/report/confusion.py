"""The picture of what is taken for what, whatever the classes are called and however many."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import figure as figures
from matplotlib import font_manager
from sklearn import metrics

DPI = 150  # pixels of an inch
_CELL = 0.5  # inches; smaller ones, of many classes, hold no number
_CELLS = 20.0  # inches of all cells together, at most
_NAMES = 3.0  # inches beside the cells
_LINE = 0.16  # inches of a name, at least
_LETTERS = 24  # of a name that is shown whole
_NO_FONT = (
    'Last Resort'  # it comes with matplotlib, and has the same box for all letters of a script
)


def figure(confusion: np.ndarray, names: Sequence[str]) -> figures.Figure:
    """A matrix in colour, with numbers as far as they can be read.

    Args:
      confusion: `[classes, classes]` counts; rows: what it is; columns: what the network says.
      names: of the classes. Long ones are cut, and end with their number.

    Returns:
      The figure; `savefig(path, dpi=DPI)` writes it.
    """
    cell = min(_CELL, _CELLS / len(names))
    side = max(4.0, cell * len(names) + _NAMES)
    made = figures.Figure(figsize=(side, side), layout='constrained')
    axes = made.subplots()
    metrics.ConfusionMatrixDisplay(confusion).plot(
        ax=axes, cmap='viridis', colorbar=False, include_values=cell == _CELL
    )
    families, missing = _fonts(set(''.join(names)))
    shown = range(0, len(names), math.ceil(_LINE / cell))
    labels = [_label(names[k], k, missing) for k in shown]
    look = {'parse_math': False, 'fontfamily': families, 'fontsize': 9}
    axes.set_xticks(shown, labels, rotation='vertical', **look)
    axes.set_yticks(shown, labels, **look)
    axes.set_xlabel('what the network says')
    axes.set_ylabel('what it is')
    return made


def _label(name, number, missing):
    """In one line; what no font shows as hexadecimal digits, lest names look alike."""
    told = ''.join(
        letter.encode('unicode_escape').decode() if letter in missing else letter for letter in name
    )
    return told if len(told) <= _LETTERS else f'{told[: _LETTERS - 1]}… ({number})'


def _fonts(letters):
    """Families that have these letters between them, and the set of those that none has."""
    usual = font_manager.FontProperties()
    families = list(usual.get_family())
    missing = {letter for letter in letters if not letter.isprintable()}
    sought = letters - missing - _letters_of(font_manager.findfont(usual))
    for font in font_manager.fontManager.ttflist:
        if not sought:
            break
        has = set() if font.name.startswith(_NO_FONT) else sought & _letters_of(font.fname)
        if has:
            families.append(font.name)
            sought -= has
    return families, missing | sought


def _letters_of(file):
    return set(map(chr, font_manager.get_font(file).get_charmap()))
