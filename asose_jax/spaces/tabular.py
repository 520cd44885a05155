"""Reads tabular benchmarks: published accuracies of the cells of a space.

The cell that a search chose is looked up when the run is over, and its accuracy and rank are
reported. The table never influences what is chosen.
"""

import contextlib
import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from asose_jax.runtime import text_file
from asose_jax.runtime.errors import UserError, describe_os_error

ARCH_COLUMN = 'arch'  # column with the texts of the cells, as the space writes them


@contextlib.contextmanager
def _naming_line(number: int) -> Iterator[None]:
    """Puts the number of a line of the file in front of a `ValueError` of the body."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'line {number}: {error}') from error


def _add_row(
    columns: dict[str, dict[str, float]], row: dict[Any, Any], normalize: Callable[[str], str]
) -> None:
    """Adds a row of the file to the columns of accuracies."""
    if None in row or None in row.values():
        raise ValueError('it has more or fewer fields than there are columns')
    arch = normalize(row[ARCH_COLUMN])
    for name, accuracies in columns.items():
        if arch in accuracies:
            raise ValueError(f'it repeats the cell {arch}')
        try:
            number = row[name].strip().removesuffix('%').replace(',', '.')  # 88,1 is European
            accuracies[arch] = float(number)
        except ValueError:
            raise ValueError(f'{name} is {row[name]!r}, not a number') from None
        if not math.isfinite(accuracies[arch]):
            raise ValueError(f'{name} is {accuracies[arch]}, not a finite number')


@dataclasses.dataclass(frozen=True)
class Table:
    """Holds accuracies of cells.

    Attributes:
      columns: `column -> text of the cell -> accuracy`.
    """

    columns: dict[str, dict[str, float]]

    @classmethod
    def read(cls, path: str, normalize: Callable[[str], str]) -> 'Table':
        """Reads a CSV file with a column `arch` and one or more columns of accuracies.

        Args:
          path: Path of the file.
          normalize: Brings the text of a cell into the form in which cells are looked up; raises a
            `ValueError` if the text is not a cell.

        Returns:
          The table.

        Raises:
          UserError: The file cannot be read as such a table; the message names the line.
        """
        file = pathlib.Path(path).expanduser()
        try:
            text = text_file.read(file)
            header = text.partition('\n')[0]
            delimiter = max(',;\t', key=header.count)  # semicolons and tabs are those of Excel
            reader = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter)
            names = [name for name in reader.fieldnames or [] if name != ARCH_COLUMN]
            if ARCH_COLUMN not in (reader.fieldnames or []) or not names:
                raise ValueError(f'its columns are {reader.fieldnames}')
            columns = {name: {} for name in names}
            for row in reader:
                with _naming_line(reader.line_num):
                    _add_row(columns, row, normalize)
        except OSError as error:
            raise UserError(
                f'benchmark.table={path!r} cannot be read: {describe_os_error(error)}'
            ) from error
        except (ValueError, csv.Error) as error:
            raise UserError(
                f'benchmark.table={path!r}: {error}. It must be a CSV file with a column '
                f'{ARCH_COLUMN!r} and one or more columns of accuracies.'
            ) from error
        return cls(columns)

    def dumps(self) -> str:
        """Returns the text of the CSV file that `read` reads; every column has all cells."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow([ARCH_COLUMN, *self.columns])
        for arch in next(iter(self.columns.values())):
            writer.writerow([arch, *(accuracies[arch] for accuracies in self.columns.values())])
        return file.getvalue()

    def lookup(self, arch: str) -> dict[str, Any]:
        """Returns accuracy and rank of a cell in each column; larger accuracies are better.

        Returns:
          `column -> {'accuracy', 'rank' (1 is the best), 'of' (number of cells in the table)}`;
          empty if the cell is not in the table. Cells of equal accuracy share the better rank.
        """
        return {
            name: {
                'accuracy': accuracies[arch],
                'rank': 1 + sum(other > accuracies[arch] for other in accuracies.values()),
                'of': len(accuracies),
            }
            for name, accuracies in self.columns.items()
            if arch in accuracies
        }
