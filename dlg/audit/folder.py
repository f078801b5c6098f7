"""The folder of an audit: its settings and its finished cells, so that an audit can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlg.audit.cell_result import CellResult, Outcome
from dlg.audit.grid import Cell
from dlg.errors import InputError, one_line
from dlg.results import pictures
from dlg.results.folder import ResultFolder
from dlg.results.versions import versions

SETTINGS_FILE = "settings.json"


def as_json(value: Any) -> bytes:
    """The content of a JSON file, for people to read."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def audit_settings(sources: Sequence[str], images: np.ndarray, labels: np.ndarray, iterations: int) -> dict[str, Any]:
    """What all rows of an audit have in common; an audit of another grid may go on with them.

    Parameters
    ----------
    sources : sequence of str
        Where the samples come from, as ``--data`` was given.
    images, labels : ndarray
        All samples from there.
    iterations : int
        The most iterations of an attack.
    """
    return {
        "data": sources,
        "data_sha256": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        "iterations": iterations,
        "versions": versions(),
    }


def refuse_another_audit(result_dir: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Check that the folder holds no audit, or that it is to be resumed and has the same settings.

    Parameters
    ----------
    result_dir : Path
        The folder, which may be missing.
    settings : mapping
        The settings of this audit, as `audit_settings` gives them.
    resume : bool
        Whether this audit goes on with the one in the folder.

    Raises
    ------
    InputError
        Where it cannot.
    """
    file = result_dir / SETTINGS_FILE
    if not file.exists():
        return
    if not resume:
        raise InputError(
            f"{str(result_dir)!r} holds an audit already; go on with it by --resume, or give another --result_dir"
        )
    try:
        found = dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {str(file)!r} ({one_line(error)}); give another --result_dir") from None
    different = [
        f"{name} ({json.dumps(found.get(name))} there, {json.dumps(settings[name])} now)"
        for name in settings
        if found.get(name) != settings[name]
    ]
    if different:
        raise InputError(
            f"the audit in {str(result_dir)!r} has another {' and another '.join(different)}; give the same, or"
            " another --result_dir"
        )


class CellFolder:
    """The cells on disk: KEY.json with the row, KEY.target.png and KEY.recovered.png.

    Parameters
    ----------
    path : Path
        The folder, which is made if missing.

    Raises
    ------
    InputError
        Where it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self._folder = ResultFolder(path)
        # What a killed process left half written.
        self._folder.remove(r"\..*\.part")

    def keep(self, outcome: Outcome) -> None:
        """Write a finished cell. Its row is written last: a cell counts as finished when its row is there."""
        key = outcome.result.cell.key
        if outcome.target is not None and outcome.recovered is not None:
            pictures.save_batch(self._folder, f"{key}.target.png", outcome.target)
            pictures.save_batch(self._folder, f"{key}.recovered.png", outcome.recovered)
        self._folder.write(f"{key}.json", as_json(outcome.result.to_json()))

    def result(self, cell: Cell) -> CellResult | None:
        """The result of a cell, or None where it is not there or cannot be read."""
        try:
            result = CellResult.from_json(json.loads((self._folder.path / f"{cell.key}.json").read_bytes()))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None
        return result if result.cell == cell else None

    def picture(self, cell: Cell, which: str) -> Path:
        """Where the picture of the ``target`` is, or of what was ``recovered``."""
        return self._folder.path / f"{cell.key}.{which}.png"
