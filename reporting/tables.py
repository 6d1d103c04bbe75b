"""CSV tables that hold names of files: numbers and text, never formulas."""
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from runtime.files import TEXT

# what makes a spreadsheet take a cell for a formula, full-width forms too (OWASP, CSV injection)
FORMULA_STARTS = tuple('=+-@\t\r\n＝＋－＠')


def open_table(path: Path) -> TextIO:
    """A new CSV file, to write to."""
    return open(path, 'w', newline='', **TEXT)


class TableWriter:
    """Rows to a CSV file by column name; a text that a spreadsheet would compute, as a file's name
    that begins with =, gets an apostrophe in front."""

    def __init__(self, file: TextIO, columns: Iterable[str]) -> None:
        """Writes the header."""
        self._writer = csv.DictWriter(file, list(columns))
        self._writer.writeheader()

    def writerow(self, row: dict[str, Any]) -> None:
        self._writer.writerow({name: as_text(value) for name, value in row.items()})


def rounded(value: float | None, unit: str = '') -> str:
    """A metric to print, with one decimal; a count without, and – for what is undefined."""
    if value is None:
        return '–'
    return f'{value}' if isinstance(value, int) else f'{value:.1f}{unit and " " + unit}'


def as_text(value: Any) -> Any:
    """A cell of which no spreadsheet makes a formula; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
