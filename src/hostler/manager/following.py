"""FollowingRouter: the manager's own router, at what its registry knows."""

from hostler.registry.registry import Registry
from hostler.routing.router import Router


class FollowingRouter:
    """Brings a router up to date when it is used, and at each change: somebody may wait in its queues."""

    def __init__(self, registry: Registry, router: Router) -> None:
        self._registry = registry
        self._router = router
        self._version = 0

    def now(self) -> Router:
        """The router, as the registry is at this moment; as it was, while adopted workers are awaited."""
        told = self._registry.told
        told.step()
        if told.picture.version != self._version and not self._registry.unheard:
            changes = told.since(self._version)
            if changes is None:
                self._router.update(told.picture.snapshot())
            else:
                for change in changes:
                    self._router.take(change)
            self._version = told.picture.version
        return self._router

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self._registry.changed(self._version)
            self.now()
