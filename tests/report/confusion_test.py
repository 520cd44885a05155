"""The confusion matrix: names stay text, and all of them stay in the picture."""

import itertools

import numpy as np
import pytest
from matplotlib import font_manager

from asose_jax.report import confusion

MARKUP = ('$100', r'$\frac{a$', r'a\$b', '<b>x</b>', '[red]cats[red] & "dogs"', '_a^b', '100 % {x}')


def _drawn(names):
    figure = confusion.figure(np.eye(len(names), dtype=int), names)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    return figure, axes, [*axes.get_xticklabels(), *axes.get_yticklabels()]


def _said(names):
    _, _, labels = _drawn(names)
    shown = [label.get_text() for label in labels]
    assert shown[: len(names)] == shown[len(names) :]
    return shown[: len(names)]


def test_markup_of_any_kind_is_shown_as_it_is():
    assert _said(MARKUP) == list(MARKUP)
    assert not any(label.get_parse_math() for label in _drawn(MARKUP)[2])


def test_letters_of_other_scripts_are_shown_as_they_are():
    assert _said(('größe', 'кошка', 'γάτα', 'العربية')) == ['größe', 'кошка', 'γάτα', 'العربية']


def test_what_only_another_font_has_is_taken_from_there(monkeypatch):
    fonts = font_manager.fontManager.ttflist
    own = [each for each in fonts if each.name == 'DejaVu Sans']
    other = [each for each in fonts if each.name == 'STIXGeneral']
    known = set(
        font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    )
    more = sorted(set(font_manager.get_font(other[0].fname).get_charmap()) - known)
    letter = next(chr(code) for code in more if chr(code).isprintable())
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', own)
    (escaped, _) = _said((letter, 'b'))
    assert escaped == letter.encode('unicode_escape').decode()
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', own + other)
    assert _said((letter, 'b')) == [letter, 'b']


def test_what_no_font_has_is_told_by_its_number_lest_two_names_look_alike():
    """Also what would break the line. Warnings are errors here."""
    names = ('\U0010fffd', '\U0010fffc', 'a\nb', 'caf\udce9')
    assert _said(names) == [r'\U0010fffd', r'\U0010fffc', r'a\nb', r'caf\udce9']


def test_long_names_are_cut_stay_apart_and_leave_room_for_the_cells():
    names = ('n' * 255, 'n' * 254 + 'm', '大' * 80, '<script>alert("x")</script>' * 3, 'short')
    said = _said(names)
    assert len(set(said)) == 5
    assert max(map(len, said)) <= 30
    assert said[4] == 'short'
    figure, axes, labels = _drawn(names)
    whole = figure.bbox
    for part in (*labels, axes.xaxis.label, axes.yaxis.label):
        box = part.get_window_extent()
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
    assert axes.bbox.width > 0.3 * whole.width


@pytest.mark.parametrize(
    'count', [2, 41, *(pytest.param(count, marks=pytest.mark.slow) for count in (40, 500))]
)
def test_any_number_of_classes_fits_a_picture_that_can_be_opened(count):
    figure, axes, labels = _drawn([f'class {k}' for k in range(count)])
    assert max(figure.get_size_inches()) * confusion.DPI < 4000
    assert len(axes.texts) == (count**2 if count <= 40 else 0)
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    apart = all(one.y0 >= other.y1 - 1 for one, other in itertools.pairwise(boxes))
    assert apart
    assert labels[0].get_text() == 'class 0'
