"""Crowd: the connections of one server: how many, whose, and which one goes when there is no room (F66)."""

import ipaddress
from collections.abc import Iterator
from heapq import nsmallest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostler.wire.connection import ServerConnection

_AT_ONCE = (
    64  # idle ones that one look finds; a look at all of them for each newcomer would cost too much
)


class Crowd:
    """Open connections.

    most: of all together. most_per_client: of one address, or of one IPv6 network of 64 bits; 0: any
        number. This machine's own programs are not counted: a proxy here speaks for everybody.
    """

    def __init__(self, most: int, most_per_client: int) -> None:
        self.most = most
        self.evicted = 0  # closed while idle, for others
        self.turned_away = 0  # refused: nobody was idle
        self._most_per_client = most_per_client
        self._all: set[ServerConnection] = set()
        self._by_client: dict[str, set[ServerConnection]] = {}
        self._idle: list[tuple[float, int, ServerConnection]] = []  # found at the last look

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> "Iterator[ServerConnection]":
        """Those that are open now; they may come and go meanwhile."""
        return iter(tuple(self._all))

    def add(self, connection: "ServerConnection") -> bool:
        """Count a new connection. False: it must be refused, since no idle one can go for it."""
        self._all.add(connection)
        client = client_network(connection.client) if self._most_per_client else ""
        if client:
            its = self._by_client.setdefault(client, set())
            its.add(connection)
            if len(its) > self._most_per_client and not self._evict_of(its, connection):
                self.turned_away += 1
                return False
        if len(self._all) > self.most and not self.make_room(connection):
            self.turned_away += 1
            return False
        return True

    def remove(self, connection: "ServerConnection") -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if self._by_client and (client := client_network(connection.client)) in self._by_client:
            its = self._by_client[client]
            its.discard(connection)
            if not its:
                del self._by_client[client]

    def make_room(self, newcomer: "ServerConnection | None") -> bool:
        """Close the connection that has been idle longest, if one is."""
        if not self._idle:
            found = ((c.idle_since_s, id(c), c) for c in self._all if c is not newcomer)
            self._idle = nsmallest(_AT_ONCE, (one for one in found if one[0] >= 0))[::-1]
        while self._idle:
            since_s, _, connection = self._idle.pop()
            if connection.idle_since_s == since_s:
                self._evict(connection)
                return True
        return False

    # Private

    def _evict_of(self, its: "set[ServerConnection]", newcomer: "ServerConnection") -> bool:
        idle = [c for c in its if c is not newcomer and c.idle_since_s >= 0]
        if idle:
            self._evict(min(idle, key=lambda one: one.idle_since_s))
        return bool(idle)

    def _evict(self, connection: "ServerConnection") -> None:
        self.evicted += 1
        connection.cut()
        self.remove(connection)


def client_network(client: str) -> str:
    """Whose a connection is, for counting: an address, or an IPv6 network; "" for this machine's own."""
    if ":" not in client:
        return "" if client.startswith("127.") or client == "unix" else client
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    if address.ipv4_mapped is not None:
        return client_network(str(address.ipv4_mapped))
    return "" if address.is_loopback else str(ipaddress.IPv6Address(int(address) >> 64 << 64))
