"""results.json and results.csv: every row of an audit, and how it was made."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

from dlg.audit.cell_result import COLUMNS, CellResult

# The version of the format of results.json, which docs/audit.md describes. It is raised where a name goes or what it
# means changes; a new name leaves it.
SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class AuditResults:
    """What an audit found.

    Attributes
    ----------
    options : mapping of str to anything that JSON has
        The command's options.
    command : str
        The command that repeats the audit.
    versions : mapping of str to str
        As `dlg.results.versions.versions` gives them.
    cells : int
        How many cells the grid has. There are fewer rows where the audit was
        interrupted.
    delta : float
        The δ at which ε is given.
    rows : tuple of CellResult
        In the order of the grid.
    """

    options: Mapping[str, Any]
    command: str
    versions: Mapping[str, str]
    cells: int
    delta: float
    rows: tuple[CellResult, ...]

    def to_json(self) -> dict[str, Any]:
        """What results.json holds."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"schema_version": SCHEMA_VERSION} | values | {"rows": [row.to_json() for row in self.rows]}

    def to_csv(self) -> bytes:
        """The content of results.csv.

        A line for each row, with the columns `COLUMNS`. The elements of a list
        are separated by spaces. A field is empty where results.json has null;
        an element is ``inf`` there.
        """
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow([_csv_field(value) for value in row.to_json().values()])
        return text.getvalue().encode()


def _csv_field(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join("inf" if each is None else str(each) for each in value)
    return value
