"""Refused: the gateways that belong here no more, in a file of the tls folder, for the relay beside it.

The controller writes it; the relay is a process of its own and looks at it, as it does at certificates.
"""

from collections.abc import Collection
from pathlib import Path

import msgspec

from hostler.app.private_file import write_private
from hostler.app.telemetry import logger
from hostler.wire.tls import Stamp, stamp

log = logger(__name__)

REFUSED_FILE = "refused.json"
LOOK_EVERY_S = 0.25


def save_refused(folder: Path, gateways: Collection[str]) -> None:
    """Write their ids down, whole or not at all. Raises OSError."""
    write_private(folder / REFUSED_FILE, msgspec.json.encode(sorted(gateways)))


class RefusedFile:
    """The file, for who looks at it again and again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REFUSED_FILE
        self._stamp: Stamp = ()

    def news(self) -> frozenset[str] | None:
        """Return who is in it, when it has changed since the last look; None: nothing new is known."""
        seen = stamp([self._path])
        if seen == self._stamp:
            return None
        self._stamp = seen
        try:
            return frozenset(msgspec.json.decode(self._path.read_bytes(), type=list[str]))
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:  # who was refused stays so
            log.warning("relay.refused_unread", file=str(self._path), why=str(error))
            return None
