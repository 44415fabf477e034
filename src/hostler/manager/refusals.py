"""Refusals: tells the relay of the controller's machine which gateways were removed."""

import asyncio
from pathlib import Path

from hostler.app.tasks import first_of
from hostler.app.telemetry import logger
from hostler.app.tokens import StoredHost
from hostler.registry.members import Members
from hostler.wire.refused import save_refused

LOOK_EVERY_S = 3600.0  # whether the certificate of one has ended
AGAIN_S = 1.0  # until what could not be written is tried again

log = logger(__name__)


async def keep_refused(members: Members, folder: Path) -> None:
    """Write it down, for ever, whenever it changes: a file, which outlives the relay and us.

    folder: tls, where the relay looks.
    """
    changed, written = asyncio.Event(), None

    def note(stored: StoredHost) -> None:
        changed.set()

    members.removed.append(note)
    try:
        while True:
            changed.clear()
            wanted, wait_s = members.refused(), LOOK_EVERY_S
            if wanted != written:
                try:
                    await asyncio.to_thread(save_refused, folder, wanted)
                    written = wanted
                except OSError as error:
                    wait_s = AGAIN_S
                    log.warning("control.refused_unwritten", why=str(error), again_in_s=wait_s)
            await first_of(changed.wait(), timeout_s=wait_s)
    finally:
        members.removed.remove(note)
