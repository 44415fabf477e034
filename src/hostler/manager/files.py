"""ModelFiles: a deployment's files, fetched once for all who want them, with progress in the events."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from hostler.catalog.catalog import Catalog
from hostler.catalog.headers import check_files
from hostler.catalog.progress import FetchPhase, FetchProgress, Report
from hostler.catalog.sources import fetch_model, is_path, is_present
from hostler.core.deployment import Deployment
from hostler.core.errors import ModelFormatError, ModelSourceError
from hostler.core.worker import OperatorEvent
from hostler.engines.base import find_engine

Tell = Callable[[OperatorEvent], None]
_TELL_EVERY_S = 0.2


class Head(Protocol):
    """Whoever fetches from the controller's machine; head_fetch.HeadFetch."""

    async def fetch(self, deployment: Deployment, instance_id: str, report: Report) -> Path: ...


class ModelFiles:
    """Where the files of models are on this machine."""

    def __init__(
        self,
        models_dir: Path,
        catalog: Catalog,
        *,
        tell: Tell,
        clock: Callable[[], float],
        head: Head | None = None,
    ) -> None:
        """tell: takes progress events. head: where paths are looked for that are not here."""
        self._head = head
        self._models_dir = models_dir
        self._catalog = catalog
        self._tell = tell
        self._clock = clock
        self._fetching: dict[str, asyncio.Lock] = {}

    def present(self, deployment: Deployment) -> Path | None:
        """The files' place when they are all there; None also for an engine without files."""
        if not find_engine(deployment.engine).needs_files:
            return None
        return is_present(deployment.source, self._models_dir)

    async def provide(
        self, deployment: Deployment, instance_id: str, on_fetch: Callable[[], object]
    ) -> Path | None:
        """Return the files, fetched if need be and looked at; None for an engine without files.

        on_fetch: called before anything is fetched. Raises as `fetch` and `check`.
        """
        if not find_engine(deployment.engine).needs_files:
            return None
        if (path := self.present(deployment)) is None:
            on_fetch()
            path = await self.fetch(instance_id, deployment)
        self.check(path, deployment)
        return path

    async def fetch(self, instance_id: str, deployment: Deployment) -> Path:
        """Fetch the files, or wait for the fetch that another replica began.

        Raises:
            ModelSourceError, ModelFormatError, InsufficientStorage: with the reason.
        """
        source = deployment.source
        lock = self._fetching.setdefault(source, asyncio.Lock())
        async with lock:
            if (present := self.present(deployment)) is not None:
                return present
            entry = self._catalog.find(deployment.name)
            if entry is not None and entry.source != source:
                entry = None
            reporter = _Reporter(self._tell, self._clock, deployment.name, instance_id)
            try:
                if self._head is not None and is_path(source):
                    return await self._head.fetch(deployment, instance_id, reporter.report)
                path = await fetch_model(
                    source, self._models_dir, progress=reporter.report, entry=entry
                )
            except OSError as error:
                raise ModelSourceError(f"{source}: {error.strerror or error}") from error
            return path

    def check(self, path: Path, deployment: Deployment) -> None:
        """Look at the files' headers before an engine sees them.

        Raises:
            ModelFormatError: they are not what the engine reads.
        """
        try:
            check_files(path, deployment.engine)
        except OSError as error:
            raise ModelFormatError(f"{path.name}: cannot be read ({error.strerror})") from error


class _Reporter:
    """Turns a fetch's reports into events, a few a second."""

    def __init__(
        self, tell: Tell, clock: Callable[[], float], model: str, instance_id: str
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._model = model
        self._instance_id = instance_id
        self._told_at_s = -1.0
        self._phase: FetchPhase | None = None

    def report(self, progress: FetchProgress) -> None:
        now_s = self._clock()
        if progress.phase is self._phase and now_s - self._told_at_s < _TELL_EVERY_S:
            return
        self._phase = progress.phase
        self._told_at_s = now_s
        self._tell(
            OperatorEvent(
                kind="fetch.progress",
                model=self._model,
                instance_id=self._instance_id,
                message=progress.phase.value,
                fields=msgspec.to_builtins(progress),
            )
        )
