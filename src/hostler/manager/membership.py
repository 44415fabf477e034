"""Membership: what a machine remembers of having joined, in its state folder. Its keys are in `tls/`."""

import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from hostler.core.errors import ConfigError, StartupError
from hostler.core.hosts import Offer, Role
from hostler.core.snapshot import Endpoint
from hostler.manager.host_rules import HostRules

CONTROLLER = "controller"  # the `host_id` by which a controller is meant


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """How this machine works for a controller.

    controllers: `https://ADDRESS:PORT`, addresses alone; several of which one serves. `unix:PATH`: for
        tests on one machine, where no relay is needed.
    address, port: of its relay; address "": the one it connects from.
    offer: of a worker brought by hand. token_id: of the token it joined with last.
    is_over: the controller has said that it does not know this host (any more).
    """

    host_id: str
    name: str
    role: Role = Role.HOST
    controllers: tuple[str, ...]
    address: str = ""
    port: int = 0
    rules: HostRules = HostRules()
    offer: Offer | None = None
    joined_at_s: float = 0.0
    token_id: str = ""
    is_over: bool = False

    @property
    def is_near(self) -> bool:
        """Is its controller on this machine, at a Unix socket?"""
        return all(one.startswith(_UNIX) for one in self.controllers)


def load_membership(path: Path) -> Membership | None:
    """Return what was kept there; None: this machine has not joined.

    Raises:
        StartupError: it is there and cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StartupError(
            f"{path}: cannot be read ({error}); remove it and join again with `hostler host join`"
        ) from error


def save_membership(path: Path, membership: Membership) -> None:
    """Keep it, for its owner alone.

    Raises:
        StartupError: it cannot be written.
    """
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(msgspec.json.format(msgspec.json.encode(membership)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise StartupError(f"{path}: cannot be written ({error.strerror or error})") from error


def pin(url: str) -> str:
    """Return a controller's URL with an address in place of a name: names may change, and lie (F39).

    Raises:
        ConfigError: it is no `https://HOST:PORT`, or its name has no address now.
    """
    if url.startswith(_UNIX):
        return url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.scheme != "https" or parts.path not in ("", "/"):
        raise ConfigError(
            f"controller {url!r}: need https://HOST:PORT, the control port that `hostler up --tls` tells"
        )
    if not _is_address(host):
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigError(
                f"controller {url!r}: no address is known for {host} ({error.strerror or error}); "
                "give its IP address"
            ) from error
        host = str(found[0][4][0])
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def endpoint_of(url: str) -> Endpoint:
    """Return where a pinned controller answers."""
    if url.startswith(_UNIX):
        return Endpoint(socket=url.removeprefix(_UNIX))
    parts = urlsplit(url)
    return Endpoint(host=parts.hostname or "", port=parts.port or 0, tls=True, host_id=CONTROLLER)


# Private

_UNIX = "unix:"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
