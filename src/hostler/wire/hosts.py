"""HostPolicy: which Host headers mean this server (F93)."""

import ipaddress
from collections.abc import Iterable

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_REMEMBERED = 1024


class HostPolicy:
    """The names this server answers to; everything else is a misdirected request (DNS rebinding).

    names: besides the loopback names, which always count; without port.
    any_address: also every literal IP address. Rebinding needs a name, so that is safe where the
        server listens on every address of the machine.
    """

    def __init__(self, names: Iterable[str] = (), *, any_address: bool = False) -> None:
        self._names = frozenset(_plain(name) for name in (*LOOPBACK_NAMES, *names))
        self._any_address = any_address
        self._known: dict[bytes, bool] = {}

    def allows(self, host: bytes) -> bool:
        """Is this value of a Host header (already known to be well formed) one of ours?"""
        known = self._known.get(host)
        if known is None:
            known = self._judge(host.decode("ascii"))
            if len(self._known) < _REMEMBERED:
                self._known[host] = known
        return known

    # Private

    def _judge(self, host: str) -> bool:
        name = host.partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        name = _plain(name)
        if name in self._names:
            return True
        return self._any_address and _is_address(name)


def _plain(name: str) -> str:
    """One spelling for each name: lower case, no final dot, no brackets, short addresses."""
    name = name.strip("[]").lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
