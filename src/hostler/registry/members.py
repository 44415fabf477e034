"""Members: which machines may speak to this controller. What is in memory was in the store first.

Whether a machine lives, and what runs there, is not known here (registry/hosts.py).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

import msgspec

from hostler.app.telemetry import logger
from hostler.app.tokens import (
    DAY_S,
    GIVEN,
    KEPT_S,
    HostStore,
    StoredHost,
    StoredToken,
    TokenStore,
)
from hostler.core.errors import Conflict
from hostler.core.hosts import Role
from hostler.storage.writer import Writer
from hostler.wire.identity import DAYS, Identity, Peer

log = logger(__name__)

HOSTS_MOST = 10_000
REFUSED_MOST = 1000  # gateways: the newest; each is in every list of orders
LASTS_S = (DAYS + 1) * DAY_S  # clocks differ

Listener = Callable[[StoredHost], None]


class MemberStore(TokenStore, HostStore, Protocol):
    """Tokens, and who came in by them."""


class Members:
    """The machines that joined and were not removed.

    joined, removed: call these with a machine, in the event loop, after the store has it.
    """

    def __init__(self, store: MemberStore, writer: Writer, clock: Callable[[], float]) -> None:
        """clock: Unix time: tokens outlive processes."""
        self.joined: list[Listener] = []
        self.removed: list[Listener] = []
        self._store = store
        self._writer = writer
        self._clock = clock
        hosts = store.hosts()
        self._known = {one.host_id: one for one in hosts if not one.is_removed}
        self._refused = {one.host_id: _ends_at_s(one) for one in hosts if _is_refused(one)}

    @property
    def known(self) -> Mapping[str, StoredHost]:
        """By id."""
        return MappingProxyType(self._known)

    def find(self, identity: Identity) -> StoredHost | None:
        """Return the machine of this identity; None for one that never joined, or was removed."""
        found = self._known.get(identity.id)
        return found if found is not None and peer_of(found.role) is identity.role else None

    def refused(self) -> tuple[str, ...]:
        """Return the ids of gateways that were removed while their certificates may be good still.

        Relays ask nobody who belongs here: they are told these.
        """
        now_s = self._clock()
        if any(ends_at_s <= now_s for ends_at_s in self._refused.values()):
            self._refused = {i: at_s for i, at_s in self._refused.items() if at_s > now_s}
        newest = sorted(self._refused, key=lambda one: -self._refused[one])[:REFUSED_MOST]
        return tuple(sorted(newest))

    async def token(self, token_id: str) -> StoredToken | None:
        """Return a token as it is kept now. Raises StorageBusy, StorageFailed."""
        found = await self._writer.do(self._store.tokens)
        return next((one for one in found if one.token_id == token_id), None)

    async def admit(self, host: StoredHost) -> StoredHost:
        """Let a machine in by its token; return it as it is kept: it may have been here before.

        Raises:
            TokenRefused: nothing was changed. Conflict: there are too many. StorageBusy.
        """
        if len(self._known) >= HOSTS_MOST:
            raise Conflict(f"{HOSTS_MOST} machines have joined already; remove some")
        kept = await self._writer.do(self._store.admit, host, self._clock())
        self._known[kept.host_id] = kept
        if is_news(kept, host):
            for listener in self.joined:
                listener(kept)
        return kept

    async def save(self, host: StoredHost) -> bool:
        """Keep what has changed of a machine. False: it was removed. Raises StorageBusy."""
        is_kept = await self._writer.do(self._store.save_host, host)
        if is_kept and host.host_id in self._known:
            self._known[host.host_id] = host
        return is_kept

    async def remove(self, host_id: str) -> StoredHost | None:
        """Let a machine speak no more, from now on; None: there is no such one. Raises StorageBusy."""
        if host_id not in self._known:
            return None
        now_s = self._clock()
        await self._writer.do(self._store.remove_host, host_id, now_s)
        host = self._known.pop(host_id, None)
        if host is not None:
            removed = msgspec.structs.replace(host, removed_at_s=now_s)
            if _is_refused(removed):
                self._refused[host_id] = _ends_at_s(removed)
            for listener in self.removed:
                listener(host)
        return host


def is_news(kept: StoredHost, asked: StoredHost) -> bool:
    """Did it come in just now, rather than asking once more for what it had?"""
    return kept.joined_at_s == asked.joined_at_s


def peer_of(role: Role) -> Peer:
    """What a machine that joined with this role shows itself as."""
    return Peer.GATEWAY if role is Role.GATEWAY else Peer.HOST


# Private


def _is_refused(host: StoredHost) -> bool:
    return host.is_removed and host.role is Role.GATEWAY


def _ends_at_s(host: StoredHost) -> float:
    """When the last certificate of a machine that was removed has ended. Of a given one nobody knows: it is
    refused for as long as the store remembers the machine.
    """
    lasts_s = KEPT_S if host.key_hash.startswith(GIVEN) else LASTS_S
    return (host.removed_at_s or 0.0) + lasts_s
