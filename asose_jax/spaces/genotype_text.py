"""Chooses one genotype of those that a text holds: a Python file, a log, a table of results."""

import dataclasses
import re
from collections.abc import Sequence

_NAME = re.compile(r"([A-Za-z_]\w*)\s*[=:]\s*['\"(`]*$")


class ChoiceError(ValueError):
    """Reports a text that holds several genotypes, or none of the name that was given."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A genotype in a text.

    Attributes:
      text: its own text, which the space parses; genotypes with equal texts are the same.
      line: number of its first line, from 1.
      name: of the variable that it is assigned to, or the like; `None` if it has none.
    """

    text: str
    line: int
    name: str | None = None

    def __str__(self) -> str:
        """Returns the name and the line, for messages."""
        return f'{self.name or "unnamed"} (line {self.line})'


def name_before(line: str) -> str | None:
    """Returns the name that a genotype has if `line` stands before it.

    Args:
      line: beginning of the line with the genotype: `... NAME = `, `NAME: ` or, in a table, the
        cells before it, `| NAME | ... | `.
    """
    if (found := _NAME.search(line)) is not None:
        return found[1]
    cells = line.strip().strip('|').split('|')
    return cells[0].split()[0] if len(cells) > 1 and cells[0].split() else None


def choose(found: Sequence[Found], name: str | None) -> str | None:
    """Returns the text of the genotype that is meant.

    Args:
      found: the genotypes of the text, in order.
      name: of one of them; `None` if the config names none.

    Returns:
      Its text; `None` if nothing was found and no name was given.

    Raises:
      ChoiceError: there are several different ones to choose from, or none has the name.
    """
    wanted = [entry for entry in found if name in (None, entry.name)]
    several: dict[str, Found] = {}
    for entry in wanted:
        several.setdefault(entry.text, entry)
    if len(several) == 1:
        return wanted[0].text
    listed = ', '.join(map(str, sorted(several.values() or found, key=lambda entry: entry.line)))
    if name is not None:
        count = 'no genotype' if not wanted else f'{len(several)} different genotypes'
        raise ChoiceError(
            f'it holds {count} of the name {name!r}, but {listed or "none at all"}. Name one of '
            'them, FILE:NAME, or copy it to a file of its own'
        )
    if several:
        raise ChoiceError(
            f'it holds {len(several)} different genotypes: {listed}. Say which, FILE:NAME, or copy '
            'it to a file of its own'
        )
    return None
