"""Lead: what a controller has that leads: a store that it alone writes to."""

import asyncio
from collections.abc import Callable

from hostler.app.telemetry import logger
from hostler.storage.store import Store

log = logger(__name__)


class Lead:
    """A store that this controller alone writes to, for as long as it lives.

    folder: ours among those that share the store; "": nobody shares it.
    name, before: of who leads now, and who did last; "" when nobody else can.
    """

    def __init__(
        self,
        store: Store,
        folder: str = "",
        name: str = "",
        before: str = "",
        give_back: Callable[[], None] | None = None,
    ) -> None:
        self.store = store
        self.folder = folder
        self.name = name
        self.before = before
        self._give_back = give_back

    @property
    def story(self) -> str:
        """Who leads after whom, for people."""
        return f"{self.name} leads; before it {self.before} did"

    async def give_back(self) -> None:
        """Let another controller lead; nothing can be written from here on."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            await asyncio.to_thread(give_back)
            log.info("controller.gave_the_lead_back")
