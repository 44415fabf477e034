"""Waiting: until a model is ready, or gone, for as long as that may take. Orders nothing."""

import asyncio
from collections.abc import Callable, Sequence

from hostler.app.config import LifeConfig
from hostler.catalog.needs import size_bytes
from hostler.core.deployment import Deployment, Wish
from hostler.core.errors import BadRequest, Conflict, UpstreamTimeout
from hostler.core.lifecycle import Instance, State
from hostler.manager.files import ModelFiles
from hostler.manager.launching import load_deadline_s
from hostler.manager.plan import GONE
from hostler.manager.progress import Progress
from hostler.manager.wishes import Wishes
from hostler.registry.registry import GATHER_S


class Waiting:
    """Looks at every news of the registry whether it is so."""

    def __init__(
        self,
        life: LifeConfig,
        wishes: Wishes,
        progress: Progress,
        files: ModelFiles,
    ) -> None:
        self._life = life
        self._wishes = wishes
        self._registry = progress.registry
        self._reconciler = progress.reconciler
        self._progress = progress
        self._files = files

    def start_limit_s(self, deployment: Deployment) -> float:
        """How long its processes may take to be ready, once its files are here: by their size."""
        try:
            path = self._files.present(deployment)
            return load_deadline_s(self._life, size_bytes(path) if path else 0)
        except (OSError, BadRequest):  # deleted meanwhile; written down before sources were read
            return load_deadline_s(self._life, 0)

    async def until_ready(self, deployment: Deployment, timeout_s: float | None = None) -> None:
        """Return when every wished instance of a deployment is ready.

        timeout_s: None: `start_limit_s` from the last moment at which files were fetched, which
            takes as long as bytes come (a fetch that stands still fails by itself).

        Raises:
            EngineError: one of them was given up, and why. UpstreamTimeout: it took too long.
            Conflict: it was told to stop meanwhile.
        """

        def limit_s() -> float:
            return self.start_limit_s(deployment) if timeout_s is None else timeout_s

        def is_fetching() -> bool:
            if timeout_s is not None:
                return False
            living = self._progress.living(deployment)
            return any(one.state is State.FETCHING for one in living)

        what = f"model {deployment.name!r}: start"
        try:
            await self._until(
                lambda: self._is_ready(deployment), limit_s, what, deployment.name, is_fetching
            )
        except UpstreamTimeout as error:
            if reason := self._progress.reason(deployment):
                raise UpstreamTimeout(f"{error.message}: {reason}") from error
            raise
        if self._registry.told.is_stirred:
            await asyncio.sleep(
                2 * GATHER_S
            )  # a request that follows finds it ready at the gateways

    async def until_gone(
        self,
        model_name: str | None,
        timeout_s: float,
        among: Callable[[], Sequence[Instance]] | None = None,
    ) -> None:
        """Return when no process of a model (None: of any) is left, also of a forgotten one.

        among: the instances that count; all of them, when left out.

        Raises:
            UpstreamTimeout
        """

        def is_gone() -> bool:
            known = self._registry.instances() if among is None else among()
            return all(
                one.state in GONE or model_name not in (None, one.model_name) for one in known
            )

        what = "stop" if model_name is None else f"model {model_name!r}: stop"
        await self._until(is_gone, lambda: timeout_s, what, model_name)

    # Private

    def _is_ready(self, deployment: Deployment) -> bool:
        now = next((one for one in self._wishes.all() if one.name == deployment.name), None)
        if deployment.wish is Wish.RUNNING and (now is None or now.wish is Wish.STOPPED):
            raise Conflict(f"model {deployment.name!r} was told to stop while it was awaited")
        return self._progress.is_ready(deployment)

    async def _until(
        self,
        is_true: Callable[[], bool],
        limit_s: Callable[[], float],
        what: str,
        model: str | None,
        is_paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """model: the one that is awaited; None: all.

        is_paused: the time does not run now, and begins anew after that.
        """
        loop, told_s = asyncio.get_running_loop(), 0.0
        try:
            async with asyncio.timeout(None) as scope:
                while not is_true():
                    if is_paused():
                        scope.reschedule(None)
                    elif scope.when() is None:
                        told_s = limit_s()
                        scope.reschedule(loop.time() + told_s)
                    news = self._registry.news()
                    if model is None:
                        self._reconciler.wake()
                    else:
                        self._reconciler.stir(model)
                    await news.wait()
        except TimeoutError as error:
            raise UpstreamTimeout(f"{what}: not done after {told_s:g} s") from error
