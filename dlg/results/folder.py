"""The folder an attack writes into: whole files only, and nobody else's touched."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dlg.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place, then renamed."""
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class ResultFolder:
    """A folder that is there and can be written to.

    Parameters
    ----------
    path : Path
        The folder; it and its parents are made if missing.

    Raises
    ------
    InputError
        Where it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.write(".writable", b"")
            self.remove(r"\.writable")
        except OSError as error:
            raise InputError(
                f"cannot write results into {str(path)!r}: {error.strerror or error}; give another result_dir"
            ) from None

    def write(self, name: str, content: bytes) -> None:
        """See `write_whole`."""
        write_whole(self.path / name, content)

    def remove(self, pattern: str) -> None:
        """Remove the files whose whole name matches a regular expression."""
        for file in self.path.iterdir():
            if re.fullmatch(pattern, file.name) and file.is_file():
                file.unlink()
