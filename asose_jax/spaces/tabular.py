"""What others measured of the cells of a space: the true accuracy of what a search found.

A tabular benchmark trains every cell of a space. Its numbers are looked up when a run is over, and
told; nothing is ever chosen by them.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable
from typing import Any

from asose_jax.runtime.errors import UserError

ARCH = 'arch'  # the column that names the cells, as the space writes them


@dataclasses.dataclass(frozen=True)
class Table:
    """Accuracies of cells.

    Attributes:
      columns: `column -> arch -> accuracy`.
    """

    columns: dict[str, dict[str, float]]

    @classmethod
    def read(cls, path: str, plain: Callable[[str], str]) -> 'Table':
        """Reads a CSV file: a column `arch`, and columns of numbers, larger is better.

        Args:
          path: of the file.
          plain: brings the text of a cell into the form by which it will be looked up; a
            `ValueError` if it is none.

        Raises:
          UserError: the file cannot be read so; the message names the line.
        """
        file = pathlib.Path(path).expanduser()
        try:
            with file.open(encoding='utf-8', newline='') as lines:
                reader = csv.DictReader(lines)
                names = [name for name in reader.fieldnames or [] if name != ARCH]
                if ARCH not in (reader.fieldnames or []) or not names:
                    raise ValueError(f'its columns are {reader.fieldnames}')
                columns = {name: {} for name in names}
                for row in reader:
                    line, arch = f'line {reader.line_num}', plain(row[ARCH] or '')
                    if None in row or None in row.values():
                        raise ValueError(f'{line} has not as many fields as there are columns')
                    if arch in columns[names[0]]:
                        raise ValueError(f'{line} has {arch} for the second time')
                    for name in names:
                        columns[name][arch] = number = float(row[name])
                        if not math.isfinite(number):
                            raise ValueError(f'{line} has {name} {number}')
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(
                f'benchmark.table={path!r}: {error}. It must be a CSV file with a column {ARCH!r} '
                'and one or more columns of accuracies.'
            ) from error
        return cls(columns)

    def dumps(self) -> str:
        """The file that `read` reads; every column has all cells."""
        file = io.StringIO()
        rows = csv.writer(file, lineterminator='\n')
        rows.writerow([ARCH, *self.columns])
        for arch in next(iter(self.columns.values())):
            rows.writerow([arch, *(numbers[arch] for numbers in self.columns.values())])
        return file.getvalue()

    def lookup(self, arch: str) -> dict[str, Any]:
        """What the table says of a cell.

        Args:
          arch: its text.

        Returns:
          `column -> {'accuracy', 'rank' (1 is the best), 'of' (cells in the table)}`; empty if the
          cell is not in it.
        """
        return {
            name: {
                'accuracy': numbers[arch],
                'rank': 1 + sum(other > numbers[arch] for other in numbers.values()),
                'of': len(numbers),
            }
            for name, numbers in self.columns.items()
            if arch in numbers
        }
