"""Pages as a browser reads them."""

import html.parser
import itertools

import pytest

from asose_jax.report import page

SHORT = {'warmup.epochs': 2, 'search.epochs': 3, 'optimize.epochs': 2}


HOSTILE = '"><img src=x onerror=alert(1)>\'</td></style><script>alert(2)</script>&lt;{{ 7 * 7 }}'


PHONE, DESK = (390, 'light'), (1280, 'dark')


def every_screen(first):
    """Widths of a phone and of a desk, light and dark; all but one are of the slow ring."""
    others = [each for each in itertools.product((390, 1280), ('light', 'dark')) if each != first]
    slow = [pytest.param(*each, marks=pytest.mark.slow) for each in others]
    return pytest.mark.parametrize(('width', 'scheme'), [first, *slow])


OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const field = svg.getBoundingClientRect();
    if (!field.width) continue;
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < -1 || a.right > innerWidth + 1) found.push('outside: ' + texts[i].textContent);
      boxes.slice(i + 1).forEach((b, j) => {
        const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        const gap = texts[i].matches('.phase') && texts[i + 1 + j].matches('.phase') ? -2 : 1;
        if (w > gap && h > 3)
          found.push(texts[i].textContent + ' / ' + texts[i + 1 + j].textContent);
      });
    });
  }
  return found;
}"""


_VOID = {'meta', 'path', 'rect', 'image'}


class Parsed(html.parser.HTMLParser):
    """Tags, text and ids of a page; fails where tags do not close as they opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.sections = [], set(), [], {}
        self.links, self.text = [], ''
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        self.links += [given[name] for name in ('href', 'src') if name in given]
        self.ids += [given['id']] if 'id' in given else []
        assert not any(name.startswith('on') for name in given)
        if tag == 'section':
            self.sections[given['id']] = ''
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == 'style':
            return
        self.text += data
        if 'section' in self.open:
            self.sections[list(self.sections)[-1]] += data


def text_of(workdir):
    return (workdir / page.NAME).read_text(encoding='utf-8')
