"""The folder that an attack writes its results into. Files are written whole, and other files are left alone."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from dlg.errors import InputError, quoted


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    The content goes into a file of another name in the same folder, which is then
    renamed. An error or Ctrl-C leaves an earlier file of the name as it was.

    Parameters
    ----------
    path : Path
        The file. One that exists is replaced.
    content : bytes
        What it shall hold.

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class ResultFolder:
    """A folder that exists and can be written to.

    Parameters
    ----------
    path : Path
        The folder. It and its parents are made where they are missing.
    within : ResultFolder, optional
        One that holds it, and goes with it where both were made for this run.

    Attributes
    ----------
    path : Path
        As it was given.

    Raises
    ------
    InputError
        Where the folder cannot be made or written to.
    """

    def __init__(self, path: Path, within: ResultFolder | None = None) -> None:
        self.path = path
        # The folders that were missing, innermost first.
        self._made: list[Path] = []
        try:
            self._made = [each for each in (path, *path.parents) if not each.exists()]
            path.mkdir(parents=True, exist_ok=True)
            self.write(".writable", b"")
            self.remove(r"\.writable")
        except OSError as error:
            self._remove_made()
            raise InputError(
                f"cannot write results into {quoted(str(path))}: {error.strerror or error}; give another result_dir"
            ) from None
        if within is not None:
            self._made += within._made

    def write(self, name: str, content: bytes) -> None:
        """Write a file of this name into the folder, whole or not at all."""
        write_whole(self.path / name, content)

    def remove(self, pattern: str) -> None:
        """Remove the files of the folder whose whole name matches the regular expression."""
        for file in self.path.iterdir():
            if re.fullmatch(pattern, file.name) and file.is_file():
                file.unlink()

    def is_empty(self) -> bool:
        """Whether it holds no file that is whole, hidden ones aside; also where it is gone."""
        try:
            return not any(not file.name.startswith(".") for file in self.path.iterdir())
        except FileNotFoundError:
            # Another thread that heard the same signal has discarded it.
            return True

    def discard(self) -> None:
        """Remove it and its files, and the folders that were made for it. A folder that then holds something stays."""
        with contextlib.suppress(OSError):
            self.remove(".*")
            self.path.rmdir()
        # Also where it is gone: another thread that heard the same signal may have come as far as here, and the process
        # ends as soon as one of the two is done.
        self._remove_made()

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
