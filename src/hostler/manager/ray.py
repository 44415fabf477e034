"""RayWorkerManager: the contract on the machines of a Ray cluster, in any program.

It is the manager of one machine that others join, with Ray to find them. How instances get their places is
in `ray_place.py` and what that uses.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from hostler.app.config import Config, ModelConfig
from hostler.app.machines_section import ControlConfig, RayConfig
from hostler.app.telemetry import logger
from hostler.core.errors import HostlerError
from hostler.manager.local import LocalWorkerManager
from hostler.manager.ray_cluster import RayCluster
from hostler.manager.ray_place import check_ray
from hostler.storage.store import Store

log = logger(__name__)

AUTO = "auto"


class RayWorkerManager(LocalWorkerManager):
    """Starts model workers on the nodes of a Ray cluster and keeps them running.

    `async with RayWorkerManager("10.0.0.1:6379") as manager:`; requests go to the workers, never through Ray.
    Nodes join at a control port of this program: on the settings' `[control]`, or a free port.
    """

    def __init__(
        self,
        address: str = "",
        config: Config | None = None,
        *,
        store: Store | None = None,
        models: Sequence[ModelConfig] | None = None,
        declare: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet.

        address: of the cluster's head, HOST:PORT; `auto`: the one on this machine; left out: the config's,
            else `auto`. All else is as of LocalWorkerManager.
        """
        given = config or Config()
        super().__init__(
            msgspec.structs.replace(
                given,
                ray=RayConfig(address=address or given.ray.address or AUTO),
                control=given.control or ControlConfig(port=0),
            ),
            store=store,
            models=models,
            declare=declare,
            clock=clock,
        )
        self._ray = RayCluster(self.config.ray.address)

    async def start(self) -> None:
        """As of every manager.

        Raises:
            StartupError: ray is missing or older than 2.52, RAY_AUTH_MODE=token is not set, or the
                cluster does not let us in.
        """
        check_ray(self.config)
        await self._ray.connect()
        try:
            await super().start()
        except BaseException:  # the reason goes on
            await self._leave()
            raise

    async def stop(self, ignore_exception: bool = False) -> None:
        """As of every manager. Without a store the nodes' host processes end, too."""
        try:
            await super().stop(ignore_exception)
        finally:
            await self._leave()

    # Private

    async def _leave(self) -> None:
        try:
            await self._ray.leave()
        except HostlerError as error:  # a Ray that is gone is left in any case
            log.warning("ray.not_left", why=error.message)
