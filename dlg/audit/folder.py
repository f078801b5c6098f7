"""The folder of an audit: its settings and its finished cells, so that an audit can go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dlg import defenses
from dlg.audit.cell_result import CellResult, Outcome, Scores
from dlg.audit.grid import Cell
from dlg.audit.samples import SampleKind, Samples
from dlg.audit.subject import Subject
from dlg.errors import InputError, one_line, quoted
from dlg.results import pictures
from dlg.results.folder import ResultFolder
from dlg.results.versions import versions

SETTINGS_FILE = "settings.json"
# The folder with the finished cells, in that of the audit.
CELLS_FOLDER = "cells"
# The pictures of a cell, by which its files are called.
PICTURES = ("target", "recovered")
# What reading a file of JSON may raise where its content is damaged.
_BAD_JSON = (ValueError, TypeError, KeyError, RecursionError)
# What opening a damaged picture may raise.
_BAD_PICTURE = (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError)


def as_json(value: Any) -> bytes:
    """The content of a JSON file, for people to read."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def audit_settings(
    sources: Sequence[str],
    samples: Samples,
    subjects: Iterable[Subject],
    iterations: int,
    time_limit: float | None = None,
    with_bound: bool = False,
    compare: bool = False,
    specs: Iterable[str] = (),
) -> dict[str, Any]:
    """What all rows of an audit have in common; an audit of another grid may go on with them.

    Parameters
    ----------
    sources : sequence of str
        Where the samples come from, as ``--data`` was given.
    samples : Samples
        All samples from there.
    subjects : iterable of Subject
        The networks. Of the user's own, a hash is kept.
    iterations : int
        The most iterations of an attack.
    time_limit : float or None
        The most seconds for the attacks on a cell.
    with_bound : bool
        Whether rows have bounds.
    compare : bool
        Whether rows have the attacks of `dlg.audit.attacks.COMPARED`.
    specs : iterable of str
        The spellings of the defences. Of the user's own, a hash is kept.
    """
    own_defenses = {spec: defenses.parse(spec).fingerprint for spec in specs}
    return {
        "data": list(sources),
        "data_sha256": hashlib.sha256(samples.features.tobytes() + samples.labels.tobytes()).hexdigest(),
        "feature_shape": list(samples.features.shape[1:]),
        "own_networks_sha256": {each.name: each.fingerprint for each in subjects if each.fingerprint is not None},
        "own_defenses_sha256": {spec: found for spec, found in own_defenses.items() if found is not None},
        "iterations": iterations,
        "time_limit": time_limit,
        "bound": with_bound,
        "compare": compare,
        "versions": versions(),
    }


def refuse_another_audit(result_dir: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Check that the folder holds no audit, or that it is to be resumed and has the same settings.

    Cells without settings are refused. Nobody knows with which data, iterations
    and versions they were made, so they must not be mixed with others, and to
    run them again would replace them.

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
        _refuse_stray_cells(result_dir)
        return
    if not resume:
        raise InputError(
            f"{quoted(str(result_dir))} holds an audit already; go on with it by --resume, or give another --result_dir"
        )
    try:
        found = dict(json.loads(file.read_bytes()))
    except (OSError, *_BAD_JSON) as error:
        raise InputError(f"cannot read {quoted(str(file))} ({one_line(error)}); give another --result_dir") from None
    different = [
        f"{name} ({quoted(found.get(name))} there, {quoted(settings[name])} now)"
        for name in settings
        if found.get(name) != settings[name]
    ]
    if different:
        raise InputError(
            f"the audit in {quoted(str(result_dir))} has another {' and another '.join(different)}; give the same, or"
            " another --result_dir"
        )


def _refuse_stray_cells(result_dir: Path) -> None:
    cells = result_dir / CELLS_FOLDER
    if cells.is_dir() and any(cells.glob("[!.]*.json")):
        raise InputError(
            f"{quoted(str(cells))} holds cells, and {SETTINGS_FILE!r} beside it is missing, so that nobody knows what"
            f" they are of; move {CELLS_FOLDER!r} away, or give another --result_dir"
        )


class CellFolder:
    """The cells on disk: KEY.json with the row, its pictures KEY.target.png and KEY.recovered.png.

    Samples that are no pictures are in KEY.target.json and KEY.recovered.json. A
    bound, where one was computed, is in KEY.bound.png.

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

    @property
    def path(self) -> Path:
        """Where they are."""
        return self._folder.path

    def keep(self, outcome: Outcome) -> None:
        """Write a finished cell. Its row is written last: a cell counts as finished when its row is there."""
        key = outcome.result.cell.key
        shown = dict(zip(PICTURES, (outcome.target, outcome.recovered)))
        for which, samples in shown.items():
            if samples is None or outcome.result.scores is None:
                continue
            if outcome.result.scores.sample_kind == SampleKind.PICTURE.value:
                pictures.save_batch(self._folder, f"{key}.{which}.png", samples)
            else:
                self._folder.write(f"{key}.{which}.json", as_json(samples.tolist()))
        if outcome.bound is not None:
            pictures.save_batch(self._folder, f"{key}.bound.png", outcome.bound)
        self._folder.write(f"{key}.json", as_json(outcome.result.to_json()))

    def result(self, cell: Cell) -> CellResult | None:
        """The result of a cell, or None where the cell is to be run.

        It is to be run where its row is missing or damaged, or one of its
        pictures is.
        """
        try:
            result = CellResult.from_json(json.loads((self.path / f"{cell.key}.json").read_bytes()))
        except (OSError, *_BAD_JSON):
            return None
        if result.cell != cell or (result.scores is not None and not self._has_samples(cell, result.scores)):
            return None
        return result

    def _has_samples(self, cell: Cell, scores: Scores) -> bool:
        """Whether the true and the recovered samples of a cell are there, whole."""
        if scores.sample_kind == SampleKind.PICTURE.value:
            return self._has_pictures(cell)
        try:
            return all(len(self.numbers(cell, which)) == cell.batch_size for which in PICTURES)
        except (OSError, *_BAD_JSON):
            return False

    def numbers(self, cell: Cell, which: str) -> list[Any]:
        """The samples of the ``target``, or what was ``recovered``, of a cell whose samples are no pictures."""
        return list(json.loads((self.path / f"{cell.key}.{which}.json").read_bytes()))

    def _has_pictures(self, cell: Cell) -> bool:
        """Whether both pictures of a cell are whole, of one size, and of as many images as its batch has."""
        sizes = set()
        for which in PICTURES:
            try:
                with Image.open(self.picture(cell, which)) as picture:
                    picture.load()
                    sizes.add(picture.size)
            except _BAD_PICTURE:
                return False
        return len(sizes) == 1 and all(width % cell.batch_size == 0 for width, _ in sizes)

    def picture(self, cell: Cell, which: str) -> Path:
        """Where the picture of the ``target`` is, of what was ``recovered``, or of the ``bound``."""
        return self.path / f"{cell.key}.{which}.png"
