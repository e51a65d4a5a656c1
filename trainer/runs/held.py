"""Whether a run is being trained, by whichever process: it holds a lock on a file in the run's folder, which the system lets go of with the process."""
from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import IO

from ..errors import LoomError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

FILE = "running.lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


class Hold:
    """This process's claim to a run. LoomError where another has it."""

    def __init__(self, run: Path) -> None:
        self._path = run / FILE
        while True:
            self._file = _open(self._path, os.O_CREAT)
            if not (_lock(self._file) or time.sleep(0.1) or _lock(self._file)):  # whoever looks whether it is held has it for a moment
                self._file.close()
                raise LoomError(f"run {run.name!r} is being trained by another process: wait for its end, or stop it there")
            if self._path.exists() and os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                return
            self._file.close()  # the one before us has just removed it

    def moved(self, to: Path) -> None:
        """The run's folder goes there, and the claim ends with it: nobody takes the run up in between. OSError where it cannot go."""
        if fcntl is None:
            self.release()  # Windows moves no folder with an open file in it: there a moment is left
        os.rename(self._path.parent, to)
        self._path = to / FILE
        self.release()

    def release(self) -> None:
        with contextlib.suppress(OSError):  # Windows removes no open file: the empty one stays
            os.unlink(self._path)
        self._file.close()


def is_held(run: Path) -> bool:
    """Whether some process trains that run; False where the file system has no locks."""
    try:
        with _open(run / FILE) as file:
            return not _lock(file)
    except OSError:
        return False


def _open(path: Path, flags: int = 0) -> IO[bytes]:
    """No link is followed: its target would come to be."""
    return os.fdopen(os.open(path, os.O_RDWR | flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o644), "r+b")


def _lock(file: IO[bytes]) -> bool:
    """Until the file is closed; False where another has it open and locked. Where there are no locks nobody is kept out."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in _TAKEN
    return True
