"""Which server a command talks to, and with which key.

Options go before the environment, and that before the state folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Group, Parameter

from hostler.app.config import default_state_dir, environment
from hostler.app.paths import StatePaths
from hostler.app.record import UpRecord as UpRecord
from hostler.app.record import read_admin_key, read_standby
from hostler.app.record import read_up_record as read_up_record
from hostler.cli.exits import CommandFailed, Exit

SERVER_OPTIONS = Group("Server", sort_key=90)
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@Parameter(name="*", group=SERVER_OPTIONS)
@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every client command has."""

    json: Annotated[bool, Parameter(negative=(), help="Print JSON for programs.")] = False
    url: Annotated[str | None, Parameter(help="The server. [env: HOSTLER_URL]")] = None
    key: Annotated[str | None, Parameter(help="An API key. [env: HOSTLER_API_KEY]")] = None
    state_dir: Annotated[
        Path | None, Parameter(help="The server's state folder. [env: HOSTLER_STATE_DIR]")
    ] = None

    ca: Annotated[
        Path | None,
        Parameter(help="PEM file of who may vouch for an https server. [env: SSL_CERT_FILE]"),
    ] = None

    @property
    def paths(self) -> StatePaths:
        given = self.state_dir or environment("HOSTLER_STATE_DIR")
        return StatePaths(given or default_state_dir())


NO_OPTIONS = Common()


@dataclass(frozen=True, kw_only=True)
class Target:
    """One server and the key to show it; key is None when none was found.

    socket: the server's own Unix socket, when it is that of the state folder and speaks TLS: its
        certificate is for the names that others call it by. ca: who may vouch for an https server.
    """

    url: str
    key: str | None
    socket: Path | None = None
    ca: Path | None = None
    standby: str = ""  # of whom the controller here is one, and why

    @property
    def is_local(self) -> bool:
        return (urlsplit(self.url).hostname or "") in LOOPBACK


def find_target(common: Common) -> Target:
    """Return the server that the options, the environment or the state folder name.

    The key in the state folder is shown only to the server of that state folder.

    Raises:
        CommandFailed: none of them names a server, or a URL is not one.
    """
    record = read_up_record(common.paths)
    url = common.url or environment("HOSTLER_URL") or (record.url if record else None)
    if url is None:
        raise CommandFailed(
            f"no server is known: {common.paths.up_record} does not exist; "
            "start one with `hostler up`, or name one with --url or --state-dir",
            Exit.UNREACHABLE,
        )
    url = _check_url(url)
    key = common.key or environment("HOSTLER_API_KEY")
    if not key and record and _same_server(url, record.url):
        key = read_admin_key(common.paths)
    is_given = bool(common.url or environment("HOSTLER_URL"))
    is_near = not is_given and url.startswith("https:") and common.paths.gateway_socket.exists()
    own = record.ca if record and _same_server(url, record.url) else ""
    ca = common.ca or own or environment("SSL_CERT_FILE")
    standby = read_standby(common.paths) if not is_given else None
    return Target(
        url=url,
        key=key or None,
        socket=common.paths.gateway_socket if is_near else None,
        ca=Path(ca) if ca else None,
        standby=standby.text if standby else "",
    )


# Private


def _check_url(url: str) -> str:
    """Return the URL without a trailing slash or `/v1`, so that both forms people paste work."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise CommandFailed(f"{url!r} is not a URL like http://127.0.0.1:8100", Exit.USAGE)
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _same_server(url: str, recorded: str) -> bool:
    one, other = urlsplit(url), urlsplit(recorded)
    if (one.scheme, one.port) != (other.scheme, other.port):
        return False
    return one.hostname == other.hostname or {one.hostname, other.hostname} <= LOOPBACK
