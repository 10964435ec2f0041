"""What was measured, put into a Markdown page."""

import re
from collections.abc import Iterable
from pathlib import Path

from bloomlab.bench.table import heading, line
from bloomlab.bench.timing import Row
from bloomlab.errors import InputError
from bloomlab.markdown import with_table


class Page:
    """A Markdown page with a place for a model's table: `<!-- table: 560m -->`, `<!-- end -->`.

    Args:
        path: the page.
        model: what is measured; of a path or hub id its last part names the table.

    Raises:
        InputError: the page cannot be read.
        UnknownNameError: the page has no place for this model.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.name = path, re.sub(r"[^\w-]+", "-", Path(model).name)
        with_table(self._text(), self.name, "")

    def write(self, machine: str, rows: Iterable[Row]) -> None:
        """Put the rows into the page, under the line that tells the machine.

        Raises:
            InputError: the page cannot be read or written.
            UnknownNameError: its place for this model is gone.
        """
        lines = [machine, "", heading(markdown=True), *(line(row, markdown=True) for row in rows)]
        text = with_table(self._text(), self.name, "\n".join(lines))
        try:
            self.path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error}.") from error

    def _text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the page {self.path}: {error}.") from error
