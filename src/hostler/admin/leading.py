"""Who leads: a controller with a file of its own always does; of those that share a database one does.

How one of several comes to lead: candidacy.py.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hostler.admin.lead import Lead
from hostler.app.config import Config
from hostler.app.paths import StatePaths
from hostler.storage.sql import SqlStore

LOCK_WAIT_S = 0.5  # of one try; the writer tries again


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
    from hostler.admin.candidacy import Candidacy  # PostgreSQL's part takes long to import

    candidacy = Candidacy(config.store, paths)
    try:
        yield await candidacy.won(stop, control)
    finally:
        candidacy.close()
