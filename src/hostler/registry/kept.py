"""KeptSnapshot: the last snapshot of a gateway in a file, for the one that comes after it.

A gateway that is killed while no controller lives is started again and goes on with it. Soft state: it
is taken only when nobody tells anything newer, and `hostler up` removes it when it ends.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import msgspec

from hostler.app.process import boot_id
from hostler.core.snapshot import Endpoint, Snapshot

OLDEST_S = 24 * 3600.0  # keys may have been revoked since


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file. at_s: monotonic seconds, which all processes of one boot share."""

    boot_id: str
    at_s: float
    snapshot: Snapshot


class KeptSnapshot:
    """One file, readable by its owner alone. It holds hashes of keys, no key."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = monotonic, *, is_lasting: bool = False
    ) -> None:
        """is_lasting: good for other boots and any age: of a machine that has no controller of its own."""
        self._path = path
        self._clock = clock
        self._is_lasting = is_lasting

    def save(self, snapshot: Snapshot) -> None:
        """Replace what is there. A full disk or the like changes nothing."""
        fresh = self._path.with_suffix(f".{os.getpid()}")
        try:
            file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "wb") as output:
                kept = Kept(boot_id=boot_id(), at_s=self._clock(), snapshot=snapshot)
                output.write(msgspec.json.encode(kept))
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)

    def drop(self) -> None:
        """Nothing of it is true any more."""
        self._path.unlink(missing_ok=True)

    def load(self) -> Snapshot | None:
        """Return it with those instances that somebody listens for; None: there is none of use."""
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return None
        is_old = kept.boot_id != boot_id() or self._clock() - kept.at_s > OLDEST_S
        if is_old and not self._is_lasting:
            return None
        found = kept.snapshot
        alive = tuple(i for i in found.instances if _listens(i.endpoint))
        return msgspec.structs.replace(found, instances=alive)


# Private


def _listens(endpoint: Endpoint) -> bool:
    """Does a process hold this Unix socket? Of a server given by URL the first request tells."""
    if not endpoint.socket:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(0.1)
        try:
            line.connect(endpoint.socket)
        except OSError:
            return False
    return True
