"""Candidacy: of controllers that share a database one leads; the others stand by until they can.

A leader that cannot say so any more ends its process at once, as SIGKILL would: what it knows may be old,
and its supervisor starts the next one, which stands by.
"""

import asyncio
import os
import secrets
import socket
from typing import NoReturn

from hostler.admin.lead import Lead
from hostler.admin.standby import StandBy
from hostler.app.config import StoreConfig
from hostler.app.environment import environment
from hostler.app.paths import StatePaths
from hostler.app.supervision import OWNER_VARIABLE
from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.app.version import installed_version
from hostler.core.errors import HostlerError, InsufficientStorage, StorageBusy, StorageFailed
from hostler.core.snapshot import KeyView
from hostler.storage.lease import Candidate, Holding, Lease, Standing, clock
from hostler.storage.postgres import PostgresStore, check_url

log = logger(__name__)

LOOK_EVERY_S = 0.4  # at who leads
LOST_EXIT = 75
KEYS_EVERY_S = 5.0
_PASSING = (StorageBusy, StorageFailed, InsufficientStorage)


class Candidacy:
    """One controller's way to the lead, and its hold on it."""

    def __init__(self, config: StoreConfig, paths: StatePaths) -> None:
        """Raises ConfigError: this database cannot be used here."""
        check_url(config.url)
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


def controller_name(config: StoreConfig) -> str:
    """What other controllers call this one."""
    return config.name or socket.gethostname()


# Private


def _end_process(why: str) -> NoReturn:
    """Not one more line of ours is carried out: another controller may lead by now."""
    log.error("controller.lost_the_lead", why=why)
    os._exit(LOST_EXIT)
