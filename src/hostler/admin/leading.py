"""Who leads: a controller with a file of its own always does; of those that share a database one does.

`leading` waits until it is this one, and stands by meanwhile. A leader that cannot say so any more ends
its process at once, as SIGKILL would: what it knows may be old, and its supervisor starts the next one,
which stands by.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NoReturn

from hostler.admin.standby import StandBy
from hostler.app.config import Config, StoreConfig
from hostler.app.environment import environment
from hostler.app.paths import StatePaths
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.app.version import installed_version
from hostler.core.errors import HostlerError, InsufficientStorage, StorageBusy, StorageFailed
from hostler.core.snapshot import KeyView
from hostler.storage.lease import OWNER_VARIABLE, Candidate, Holding, Lease, Standing, clock
from hostler.storage.postgres import PostgresStore, check_url
from hostler.storage.sql import SqlStore
from hostler.storage.store import Store

log = logger(__name__)

LOOK_EVERY_S = 0.4  # at who leads
LOCK_WAIT_S = 0.5  # of one try; the writer tries again
LOST_EXIT = 75
KEYS_EVERY_S = 5.0


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


@asynccontextmanager
async def leading(
    config: Config,
    paths: StatePaths,
    stop: asyncio.Event,
    control: socket.socket | None = None,
) -> AsyncIterator[Lead | None]:
    """Wait until this controller leads; None: it was asked to stop before.

    control: the control port's listening socket, at which nobody is served until then.

    Raises:
        StartupError: the store cannot be used.
    """
    if not config.store.url:
        store = SqlStore(paths.database, busy_timeout_s=LOCK_WAIT_S)
        try:
            yield Lead(store)
        finally:
            store.close()
        return
    check_url(config.store.url)
    candidacy = _Candidacy(config.store, paths)
    try:
        yield await candidacy.won(stop, control)
    finally:
        candidacy.close()


def controller_name(config: StoreConfig) -> str:
    """What other controllers call this one."""
    return config.name or socket.gethostname()


# Private

_PASSING = (StorageBusy, StorageFailed, InsufficientStorage)


class _Candidacy:
    """One controller's way to the lead, and its hold on it."""

    def __init__(self, config: StoreConfig, paths: StatePaths) -> None:
        self._config = config
        self._paths = paths
        self._candidate = Candidate(
            owner=environment(OWNER_VARIABLE) or secrets.token_hex(8),
            name=controller_name(config),
            pid=os.getpid(),
            version=installed_version(),
        )
        self._store: PostgresStore | None = None
        self._lease: Lease | None = None
        self._holding: Holding | None = None
        self._keys: tuple[KeyView, ...] | None = None
        self._keys_at_s = 0.0
        self._reached_at_s = clock()

    async def won(self, stop: asyncio.Event, control: socket.socket | None) -> Lead | None:
        """Stand by until it leads; None: asked to stop before."""
        self._paths.claim()
        standby = StandBy(self._paths, self._candidate.name, control)
        async with standby.running():
            while not stop.is_set():
                try:
                    seen, lead = await asyncio.to_thread(self._try)
                except _PASSING as error:
                    await self._out_of_reach(standby, error)
                else:
                    if lead is not None:
                        return lead
                    await self._behind(standby, seen)
                await first_of(stop.wait(), timeout_s=LOOK_EVERY_S)
        return None

    def close(self) -> None:
        """Renew no more, and let go of the database. Whether the lead is given back was decided before."""
        if self._holding is not None:
            self._holding.stop()
        if self._store is not None:
            self._store.close()

    # Private

    def _try(self) -> tuple[Standing, Lead | None]:
        """One try, in a thread."""
        if self._store is None or self._lease is None:
            self._store = PostgresStore(self._config.url)
            self._lease = Lease(self._store.lease_line, self._candidate)
        store, began_s = self._store, clock()
        seen, number = self._lease.try_take()
        if number is None:
            self._learn_keys(store)
            return seen, None
        store.fence.number = number
        self._holding = Holding(self._lease, number, began_s, _end_process)
        self._holding.start()
        store.migrate()
        log.info("controller.leads", name=self._candidate.name, number=number, before=seen.name)
        folder = f"{socket.gethostname()}:{self._paths.state_dir}"
        return seen, Lead(store, folder, self._candidate.name, seen.name, self._holding.give_back)

    def _learn_keys(self, store: PostgresStore) -> None:
        if self._keys is None or clock() - self._keys_at_s > KEYS_EVERY_S:
            self._keys = tuple(key.view for key in store.keys())
            self._keys_at_s = clock()

    async def _behind(self, standby: StandBy, seen: Standing) -> None:
        """Another one leads, or the lease of the one before has not run out."""
        self._reached_at_s = clock()
        standby.know(self._keys or ())
        if seen.is_held and seen.owner != self._candidate.owner:
            standby.tell(f"{seen.name} leads", seen.name)
            await standby.let_workers_go()
            return
        standby.tell(f"{seen.name} led and is silent; this one leads in a moment")
        await standby.hold_workers()

    async def _out_of_reach(self, standby: StandBy, error: HostlerError) -> None:
        standby.tell(f"{error.message}; it is tried again all the time")
        limit_s = self._config.cut_off_s
        if limit_s and clock() - self._reached_at_s > limit_s:
            await standby.let_workers_go()


def _end_process(why: str) -> NoReturn:
    """Not one more line of ours is carried out: another controller may lead by now."""
    log.error("controller.lost_the_lead", why=why)
    os._exit(LOST_EXIT)
