"""HeadFetch: a model whose files lie on the controller's machine, fetched from there by a host.

What comes is resumed where a line broke, hashed, checked, and seen whole or not at all, as from any other
source.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import msgspec

from hostler.app.telemetry import logger
from hostler.catalog.address import check_member, folder_name
from hostler.catalog.headers import check_files
from hostler.catalog.progress import FetchLimits, FetchPhase, FetchProgress, Report
from hostler.catalog.runner import in_thread
from hostler.catalog.store import (
    Manifest,
    StoredFile,
    check_space,
    disk_errors,
    find_file,
    locked,
    make_models_dir,
    present_path,
    publish,
    read_manifest,
    staging,
)
from hostler.catalog.wheel import copy_file, hash_file
from hostler.core.deployment import Deployment
from hostler.core.errors import (
    BadRequest,
    ControllerUnavailable,
    InsufficientStorage,
    ModelSourceError,
)
from hostler.core.hosts import FILES_PATH, FileFacts, FileList
from hostler.core.refusal import refusal_in
from hostler.manager.controllers import Controllers
from hostler.wire.client import UpstreamLost, UpstreamStatus, stream

log = logger(__name__)

HEAD_S = 10.0  # until an answer begins
IDLE_S = 30.0  # between two parts of it; a list says each second that it is being made
LIST_BYTES = 8 << 20
FRUITLESS_MOST = 6  # connections in a row without one new byte
CHANGES_MOST = 3  # of the files, while they are fetched
RETRY_S = 0.25


class _Changed(Exception):
    """The files there are other ones by now, or must be listed again."""


class HeadFetch:
    """Fetches for one host."""

    def __init__(
        self,
        controllers: Controllers,
        models_dir: Path,
        *,
        limits: FetchLimits | None = None,
        tries: int = FRUITLESS_MOST,
    ) -> None:
        """tries: to reach a controller, when nothing was fetched before; then it is away."""
        self._tries = tries
        self._controllers = controllers
        self._models_dir = models_dir
        self._limits = limits or FetchLimits()

    async def fetch(self, deployment: Deployment, instance_id: str, report: Report) -> Path:
        """Return the file or folder that an engine opens, as it is on the controller's machine now.

        Raises:
            ModelSourceError: it is not there either, changes all the time, or the line broke again and
                again. ModelFormatError: an engine may not be shown it. InsufficientStorage: no room.
        """
        source = deployment.source
        for _ in range(CHANGES_MOST):
            kept = present_path(self._models_dir / folder_name(source))
            try:
                told = await self._listed(source, instance_id, 1 if kept else self._tries)
            except ControllerUnavailable:
                if kept is None:
                    raise
                log.info("files.kept_used", source=source)  # nobody can say that it is old
                return kept
            try:
                return await self._bring(told, deployment, instance_id, report)
            except _Changed as change:
                log.info("files.changed", source=source, why=str(change))
        raise ModelSourceError(f"{source}: it changes on the controller's machine all the time")

    # Private

    async def _bring(
        self, told: FileList, deployment: Deployment, instance_id: str, report: Report
    ) -> Path:
        source, models_dir = deployment.source, self._models_dir
        make_models_dir(models_dir)
        total = sum(one.bytes for one in told.files)

        def tell(phase: FetchPhase, done: int) -> None:
            report(FetchProgress(source=source, phase=phase, done_bytes=done, total_bytes=total))

        async with locked(models_dir, folder_name(source)):
            if (kept := self._kept(told, source)) is not None:
                return kept
            with staging(models_dir) as stage, disk_errors(source):
                files = stage / "files"
                files.mkdir()
                done = 0
                tell(FetchPhase.DOWNLOADING, 0)
                for number, one in enumerate(told.files):
                    place = _place(files, one.name)
                    await self._bring_file(
                        f"{FILES_PATH}/{instance_id}/{number}",
                        one,
                        place,
                        lambda many, before=done: tell(FetchPhase.DOWNLOADING, before + many),  # type: ignore[misc]
                    )
                    done += one.bytes
                main = files / told.main if told.main else files
                await in_thread(lambda stop: check_files(main, deployment.engine))
                manifest = Manifest(
                    source=source,
                    main=told.main,
                    files=_stored(told),
                    fetched_at_s=time.time(),
                )
                folder = await asyncio.to_thread(publish, files, models_dir, manifest)
        tell(FetchPhase.DONE, total)
        return folder / told.main if told.main else folder

    def _kept(self, told: FileList, source: str) -> Path | None:
        """What was fetched before, when it is the same still."""
        folder = self._models_dir / folder_name(source)
        manifest = read_manifest(folder)
        if manifest is None or (manifest.main, manifest.files) != (told.main, _stored(told)):
            return None
        return present_path(folder)

    async def _listed(self, source: str, instance_id: str, tries: int) -> FileList:
        for fruitless in range(tries - 1):
            try:
                return await self._list(source, instance_id)
            except ControllerUnavailable as error:  # it is restarted, or another one takes over
                log.info("files.not_listed", source=source, why=error.message)
                await asyncio.sleep(RETRY_S * 2**fruitless)
        return await self._list(source, instance_id)

    async def _list(self, source: str, instance_id: str) -> FileList:
        read = bytearray()
        try:
            async for part in self._parts(f"{FILES_PATH}/{instance_id}", 0):
                read += part
                if len(read) > LIST_BYTES:
                    raise ModelSourceError(f"{source}: its list of files is longer than any")
            told = msgspec.json.decode(bytes(read).strip(), type=FileList)
        except UpstreamStatus as error:
            refused = self._refused(source, error)
            raise (
                refused if error.status < 500 else ControllerUnavailable(refused.message)
            ) from error
        except msgspec.MsgspecError as error:
            raise ModelSourceError(
                f"{source}: its list of files cannot be read: {error}"
            ) from error
        except _LOST as error:
            raise ControllerUnavailable(
                f"{source}: not on this machine, and the controller does not answer ({error})"
            ) from error
        if not told.files or max(one.bytes for one in told.files) > self._limits.file_bytes:
            raise ModelSourceError(
                f"{source}: no files there, or one over the limit of a model file"
            )
        return told

    async def _bring_file(
        self, path: str, facts: FileFacts, place: Path, tell: Callable[[int], None]
    ) -> None:
        """Put one file in its place: from another model here that has it, or from the controller."""
        origin = await asyncio.to_thread(find_file, self._models_dir, facts.sha256, facts.bytes)
        if origin is not None:
            try:
                if await in_thread(lambda stop: copy_file(origin, place, stop)) == facts.sha256:
                    return
            except OSError as error:
                log.info("files.not_copied", file=facts.name, why=str(error))
            place.unlink(missing_ok=True)
        parts = self._models_dir / ".parts"
        parts.mkdir(mode=0o700, exist_ok=True)
        part = parts / f"{facts.sha256}.part"
        async with locked(self._models_dir, f"url-{facts.sha256}"):
            try:
                check_space(self._models_dir, facts.bytes - _size(part), self._limits.reserve_bytes)
                with disk_errors(facts.name):
                    await self._download(path, facts, part, tell)
            except InsufficientStorage:
                part.unlink(missing_ok=True)
                raise
            found = await in_thread(lambda stop: hash_file(part, stop))
            if found != facts.sha256:
                part.unlink(missing_ok=True)
                raise _Changed(f"{facts.name}: what came has another SHA-256")
            part.rename(place)

    async def _download(
        self, path: str, facts: FileFacts, part: Path, tell: Callable[[int], None]
    ) -> None:
        fruitless, reason = 0, ""
        while fruitless < FRUITLESS_MOST:
            have = began = _size(part)
            if have > facts.bytes:
                part.unlink()
                have = began = 0
            try:
                with part.open("ab") as out:
                    if have < facts.bytes:
                        async for data in self._parts(path, have):
                            have += len(data)
                            if have > facts.bytes:
                                raise _Changed(f"{facts.name}: more came than was told")
                            out.write(data)
                            tell(have)
                    out.flush()
                    await asyncio.to_thread(
                        os.fsync, out.fileno()
                    )  # may take as long as a beat is late
                if have == facts.bytes:
                    return
                reason = f"{have} of {facts.bytes} bytes"
            except UpstreamStatus as error:
                if error.status < 500:
                    raise _Changed(self._refused(facts.name, error).message) from error
                reason = f"status {error.status}"
            except _LOST as error:
                reason = str(error) or type(error).__name__
            fruitless = 0 if _size(part) > began else fruitless + 1
            await asyncio.sleep(RETRY_S * 2**fruitless)
        raise ModelSourceError(
            f"{facts.name}: fetching it from the controller broke off again and again ({reason})"
        )

    async def _parts(self, path: str, begin: int) -> AsyncIterator[bytes]:
        pool = self._controllers.pool()
        headers = ((b"range", b"bytes=%d-" % begin),) if begin else ()
        parts = stream(
            pool.endpoint, "GET", path, headers=headers, timeout_s=HEAD_S, idle_s=IDLE_S, pool=pool
        )
        async with aclosing(parts):
            async for part in parts:
                yield part

    def _refused(self, what: str, error: UpstreamStatus) -> ModelSourceError:
        code, text = refusal_in(error.body)
        return ModelSourceError(f"{what}: not on this machine; from the controller: {text or code}")


# Private

_LOST = (UpstreamLost, TimeoutError, ConnectionError)


def _place(folder: Path, name: str) -> Path:
    try:
        place = folder / check_member(name)
    except BadRequest as error:
        raise ModelSourceError(error.message) from error
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _stored(told: FileList) -> tuple[StoredFile, ...]:
    return tuple(
        StoredFile(name=one.name, bytes=one.bytes, sha256=one.sha256) for one in told.files
    )


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
