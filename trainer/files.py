"""Files that are whole or absent: written under a temporary name and then renamed."""
from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def temporary(folder: Path, data: bytes, synced: bool = True) -> Iterator[str]:
    """The name of a file in `folder` that holds `data`; gone after it unless it was renamed."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        yield name
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


def write_whole(path: Path, data: bytes, synced: bool = True) -> None:
    """Write to a temporary name beside `path`, rename: a crash leaves the old file or the new one, never half. Unsynced a loss of
    power may leave damage, which who reads it has to notice."""
    with temporary(path.parent, data, synced) as name:
        os.replace(name, path)


def digest_of(path: Path) -> str:
    """sha256 of the file's bytes; "" where it cannot be read."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()
