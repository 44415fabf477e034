"""`https:`: one file, resumable, bounded, and known by its SHA-256."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import msgspec

from hostler.catalog.address import UrlAddress, is_url_allowed
from hostler.catalog.progress import FetchLimits, FetchPhase
from hostler.catalog.runner import in_thread
from hostler.catalog.store import StoredFile, check_space, disk_errors, locked
from hostler.catalog.wheel import Tell, hash_file
from hostler.core.errors import InsufficientStorage, ModelSourceError

_REDIRECTS = 5
_FRUITLESS = 4  # connections in a row without one new byte
_CONNECTIONS = 200  # for one file; each goes on where the last one broke
_RETRY_S = 0.25


class _Resume(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside a part: the validator that its server gave."""

    validator: str = ""


class _Broken(Exception):
    """The connection ended early; what came is kept."""


async def fetch_url(
    address: UrlAddress, into: Path, models_dir: Path, *, limits: FetchLimits, tell: Tell
) -> tuple[StoredFile, ...]:
    """Put the file into `into`. An interrupted or cancelled download is resumed the next time.

    Raises:
        ModelSourceError: the server refused, sent another file, or broke off again and again.
        InsufficientStorage: before or while writing; the part is removed.
    """
    parts = models_dir / ".parts"
    parts.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = parts / f"{address.sha256}.part"
    async with locked(
        models_dir, f"url-{address.sha256}", on_wait=lambda: tell(FetchPhase.WAITING, 0, None)
    ):
        try:
            with disk_errors(address.file):
                await _download(address, part, models_dir, limits, tell)
        except InsufficientStorage:
            _forget(part)
            raise
        size = part.stat().st_size
        found = await in_thread(lambda stop: hash_file(part, stop))
        if found != address.sha256:
            _forget(part)
            raise ModelSourceError(
                f"{address.file}: the SHA-256 of what came is {found[:16]}…, expected "
                f"{address.sha256[:16]}…; nothing was kept"
            )
        part.rename(into / address.file)
        _resume_file(part).unlink(missing_ok=True)
    return (StoredFile(name=address.file, bytes=size, sha256=found),)


# Private


async def _download(
    address: UrlAddress, part: Path, models_dir: Path, limits: FetchLimits, tell: Tell
) -> None:
    timeout = httpx2.Timeout(30.0, read=limits.stall_s)
    async with httpx2.AsyncClient(timeout=timeout, follow_redirects=False) as client:
        fruitless = 0
        for _ in range(_CONNECTIONS):
            before = _size(part)
            try:
                return await _download_once(client, address, part, models_dir, limits, tell)
            except (_Broken, httpx2.TransportError) as error:
                reason = str(error) or type(error).__name__
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless >= _FRUITLESS:
                break
            await asyncio.sleep(_RETRY_S * 2**fruitless)
    raise ModelSourceError(
        f"{address.file}: the download broke off again and again ({reason}); "
        "check the network and try again: it goes on where it stopped"
    )


async def _download_once(
    client: httpx2.AsyncClient,
    address: UrlAddress,
    part: Path,
    models_dir: Path,
    limits: FetchLimits,
    tell: Tell,
) -> None:
    have = _size(part)
    validator = _read_validator(part)
    headers = {"accept-encoding": "identity"}
    if have and validator:
        headers |= {"range": f"bytes={have}-", "if-range": validator}
    async with _answer(client, address, headers) as answer:
        if answer.status_code == 416:
            _forget(part)
            raise _Broken("the server no longer has that range")
        if answer.status_code in (429, 500, 502, 503, 504):
            raise _Broken(f"status {answer.status_code}")
        resumed = answer.status_code == 206 and _range_start(answer) == have
        if answer.status_code != 200 and not resumed:
            raise ModelSourceError(
                f"{address.file}: the server answered status {answer.status_code}; check the URL"
            )
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ModelSourceError(f"{address.file}: the server sends it compressed, unasked")
        have = have if resumed else 0
        total = _total(answer, have)
        if (total or 0) > limits.file_bytes:
            raise ModelSourceError(
                f"{address.file}: {total} bytes is over the limit of a model file"
            )
        check_space(models_dir, (total or have) - have, limits.reserve_bytes)
        _write_validator(part, answer)
        await _write(answer, part, have, total, limits, tell)


async def _write(
    answer: httpx2.Response,
    part: Path,
    have: int,
    total: int | None,
    limits: FetchLimits,
    tell: Tell,
) -> None:
    with part.open("r+b" if have else "wb") as out:
        out.seek(have)
        tell(FetchPhase.DOWNLOADING, have, total)
        async for chunk in answer.aiter_raw():
            have += len(chunk)
            if have > (total if total is not None else limits.file_bytes):
                raise ModelSourceError(f"{part.stem}: the server sent more than it announced")
            out.write(chunk)
            tell(FetchPhase.DOWNLOADING, have, total)
        out.flush()
        os.fsync(out.fileno())
    if total is not None and have < total:
        raise _Broken(f"{have} of {total} bytes")


@asynccontextmanager
async def _answer(
    client: httpx2.AsyncClient, address: UrlAddress, headers: dict[str, str]
) -> AsyncIterator[httpx2.Response]:
    """Follow a bounded number of redirects, each to a place that a source could name itself."""
    url = address.url
    for _ in range(_REDIRECTS + 1):
        async with client.stream("GET", url, headers=headers) as answer:
            if answer.status_code not in (301, 302, 303, 307, 308):
                yield answer
                return
            target = httpx2.URL(url).join(answer.headers.get("location", ""))
            if not is_url_allowed(str(target)) or (
                url.startswith("https:") and target.scheme != "https"
            ):
                raise ModelSourceError(
                    f"{address.file}: the server redirects to a place not allowed"
                )
            url = str(target)
    raise ModelSourceError(f"{address.file}: more than {_REDIRECTS} redirects")


def _range_start(answer: httpx2.Response) -> int | None:
    unit, _, rest = answer.headers.get("content-range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isascii() and start.isdigit() else None


def _total(answer: httpx2.Response, have: int) -> int | None:
    length = answer.headers.get("content-length", "")
    return have + int(length) if length.isascii() and length.isdigit() else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _resume_file(part: Path) -> Path:
    return part.with_suffix(".json")


def _read_validator(part: Path) -> str:
    try:
        return msgspec.json.decode(_resume_file(part).read_bytes(), type=_Resume).validator
    except (OSError, msgspec.DecodeError):
        return ""


def _write_validator(part: Path, answer: httpx2.Response) -> None:
    """Keep a strong ETag only: a weak one does not promise the same bytes."""
    tag = answer.headers.get("etag", "")
    validator = "" if tag.startswith("W/") else tag
    _resume_file(part).write_bytes(msgspec.json.encode(_Resume(validator=validator)))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _resume_file(part).unlink(missing_ok=True)
