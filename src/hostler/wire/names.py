"""What others may call this machine by: the names and addresses that its certificate holds."""

import ipaddress
import socket
from collections.abc import Iterable

import psutil

NAMES_MOST = 64


def machine_names(extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names and addresses that others may call this machine by, `extra` first."""
    found = [*extra, "localhost", socket.gethostname()]
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6) and "%" not in one.address:
                found.append(one.address)
    return tuple(dict.fromkeys(name for name in found if name))[:NAMES_MOST]


def outside_address(names: Iterable[str]) -> str:
    """Return the first of these names and addresses that means this machine elsewhere, too."""
    for name in names:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            continue
        if address.version == 4 and not address.is_loopback:
            return name
    return "127.0.0.1"
