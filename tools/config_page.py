"""Writes docs/config.md from the schema: `python -m tools.config_page`."""

import pathlib

from asose_jax.config.schema import FIELDS, GROUPS

PAGE = pathlib.Path(__file__).parent.parent / 'docs' / 'config.md'
_HEAD = """# Config reference

Written by `python -m tools.config_page`. Defaults are those of the preset `cifar10`;
`asose_jax/config/presets.py` has the others. Set any field on the command line, with Python's
literals: `--config.search.epochs=2`, `--config.data.image_size=None`. A run that goes on must have
the config that it was begun with, but for fields marked *, and paths that lead to
[the same content](files.md).
"""


def page() -> str:
    """Returns the page, in Markdown: a table for each group of fields."""
    lines, group = [_HEAD], None
    for name, field in FIELDS.items():
        head = name.rpartition('.')[0]
        if head != group:
            group = head
            title = f'`{head}`: {GROUPS[head]}' if head else 'The run'
            lines += ['', f'## {title}', '']
            lines += ['| field | default | meaning |', '|---|---|---|']
        source = f' Source: {field.source}' if field.source else ''
        cells = (
            f'`{name}`' + ('*' if field.changeable else ''),
            f'`{field.default!r}`',
            f'{field.help}.<br>Allowed: {field.rule.allowed}.{source}',
        )
        lines.append('| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
