"""The files of a run take the places of an earlier run's only when all of them are there."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from dlg.errors import InputError, quoted
from dlg.interrupts import interrupts_deferred
from dlg.results.folder import ResultFolder
from dlg.results.lock import folder_lock

# Where the files of a run are until it ends; a run that was killed leaves it, with what it had.
UNFINISHED = "unfinished_run"
# What `UNFINISHED` is called while its files are moved to their places; a run that is killed just then leaves it, and
# the next one moves the rest.
FINISHED = "finished_run"


class Replacement:
    """Files that will replace others.

    Parameters
    ----------
    place : ResultFolder
        Where the results belong. It is locked.

    Attributes
    ----------
    folder : ResultFolder
        Where to write them until then.
    """

    def __init__(self, place: ResultFolder) -> None:
        self._place, self.path = place, place.path
        path = place.path
        self._patterns: list[str] = []
        finish(path)
        ResultFolder(path / UNFINISHED).discard()
        self.folder = ResultFolder(path / UNFINISHED, within=place)

    def add(self, pattern: str) -> None:
        """Files whose whole name matches the regular expression will be replaced.

        Raises
        ------
        InputError
            Where a folder has such a name.
        """
        for entry in self.path.iterdir():
            if re.fullmatch(pattern, entry.name) and entry.is_dir():
                raise InputError(
                    f"{quoted(str(entry))} is a folder, and results are to be written there; move it away, or give"
                    " another result_dir"
                )
        self._patterns.append(pattern)

    def complete(self) -> None:
        """Put the new files into the places of the earlier ones."""
        os.replace(self.folder.path, self.path / FINISHED)
        for pattern in self._patterns:
            self._place.remove(pattern)
        finish(self.path)


_current: ContextVar[Replacement | None] = ContextVar("_current", default=None)


@contextlib.contextmanager
def replaced_results(path: Path, pattern: str) -> Iterator[ResultFolder]:
    """Write a run's files beside an earlier run's, and put them into their places at the end of the block.

    Where the block raises, the new files are removed, with the folders that were
    made for them, and those of the earlier run are as they were. A block inside
    of another one for the same folder, in the same thread, belongs to it: all
    files take their places at the end of the outer one. Until then they are in
    the folder's ``unfinished_run``.

    Parameters
    ----------
    path : Path
        The folder of the results. It and its parents are made where they are missing.
    pattern : str
        A regular expression for the names of the files that the run may write.
        Files of such names are removed, also where there is no new one.

    Yields
    ------
    ResultFolder
        Where to write.

    Raises
    ------
    InputError
        Where the folder cannot be made or written to, another run writes into
        it, or a folder has the name of a file. Nothing was written then.
    """
    outer = _current.get()
    if outer is not None and outer.path.resolve() == path.resolve():
        outer.add(pattern)
        yield outer.folder
        return
    made = ResultFolder(path)
    with folder_lock(made.path):
        replacement = Replacement(made)
        token = _current.set(replacement)
        try:
            replacement.add(pattern)
            yield replacement.folder
            with interrupts_deferred():
                replacement.complete()
        finally:
            _current.reset(token)
            replacement.folder.discard()


def finish(path: Path) -> None:
    """Move the files of a run that was killed while they were moved to their places."""
    finished = path / FINISHED
    if finished.is_dir():
        for file in finished.iterdir():
            os.replace(file, path / file.name)
        finished.rmdir()
