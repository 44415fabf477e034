"""A small file that its owner alone can read, written in one step: whole and on the disk, or not at all."""

import os
import secrets
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Put `data` there (0600): a reader sees the old file or the whole new one, after a power cut too.

    Raises:
        OSError
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as output:
            output.write(data)
            output.flush()
            os.fsync(file)
        part.replace(path)
    except BaseException:  # boundary: nothing half written stays; the error goes on
        part.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def link_private(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, in one step, whatever was there. Raises OSError."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        part.symlink_to(target)
        part.replace(path)
    except BaseException:  # boundary: as above
        part.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Let the names in a folder be on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
