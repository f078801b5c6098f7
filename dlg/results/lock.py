"""A lock on a folder, so that two runs do not write into it at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dlg.errors import InputError, quoted


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold a folder's lock over the block.

    The lock is the kernel's, on the folder itself: there is no lock file, and the
    lock ends with its process however that ends. Where the file system cannot
    lock a folder, as some network ones cannot, the block runs without.

    Parameters
    ----------
    path : Path
        A folder that exists.

    Raises
    ------
    InputError
        Where another run holds the lock, in this process or in another one.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing into {quoted(str(path))}; wait for its end, or give another result_dir"
            ) from None
        except OSError:
            pass  # this file system has no locks for folders
        yield
    finally:
        os.close(folder)
