"""Identity: who is at the other end of a connection between machines, by the certificate it showed.

A certificate of our authority names its holder by a DNS name that nobody resolves. So the ordinary
check of a name proves a server, and reading the name of a checked certificate proves a client. Only
Python's ssl is needed. Not here: making certificates (wire/authority.py), and who may do what.

A tls folder (0700) holds `ca.pem`, whom we trust, and `cert.pem` with `key.pem`, who we are.
"""

import re
import ssl
from enum import StrEnum
from pathlib import Path

import msgspec

from hostler.core.errors import ConfigError
from hostler.wire.tls import Certificates, Stamp, load_chain, stamp, trust

DAYS = 30.0  # that a certificate of ours is good for; renewed when a third is left
CA_FILE, CERT_FILE, KEY_FILE = "ca.pem", "cert.pem", "key.pem"


class Peer(StrEnum):
    """What a machine of ours can be for another."""

    HOST = "host"  # also one that brings a worker of its own choice
    GATEWAY = "gateway"
    CONTROLLER = "controller"


class Identity(msgspec.Struct, frozen=True):
    """Who somebody is. id: of a host or gateway, given when it joined; "" for the controller."""

    role: Peer
    id: str = ""

    @property
    def name(self) -> str:
        """The DNS name in its certificate; a connection to it asks for this name."""
        return f"{self.id}.{self.role}{_OURS}" if self.id else f"{self.role}{_OURS}"

    def __str__(self) -> str:
        return f"{self.role} {self.id}".rstrip()


CONTROLLER = Identity(Peer.CONTROLLER)


def is_identity_id(text: str) -> bool:
    """Can this be the id of a host or gateway? DNS names know no upper case."""
    return _ID.fullmatch(text) is not None


def read_name(name: str) -> Identity | None:
    """Return whom a DNS name stands for; None when it is not one of ours."""
    if name == CONTROLLER.name:
        return CONTROLLER
    match = _NAME.fullmatch(name)
    return Identity(Peer(match[2]), match[1]) if match is not None else None


def peer_identity(connection: ssl.SSLObject | None) -> Identity | None:
    """Return who is at the other end of a TLS connection; None for anybody else.

    connection: a transport's `get_extra_info("ssl_object")`. Its context must trust our authority
        alone: Python tells of a certificate only when it has been checked. One that names nobody of
        ours, or two, is nobody's.
    """
    found = connection.getpeercert() if connection is not None else None
    whom = set()
    for pair in (found or {}).get("subjectAltName", ()):
        if pair[0] == "DNS" and (one := read_name(str(pair[1]))) is not None:
            whom.add(one)
    return whom.pop() if len(whom) == 1 else None


def client_context(folder: Path) -> ssl.SSLContext:
    """Return a context for connections to our machines: TLS 1.3, our authority alone, our certificate.

    Whoever connects with it passes `server_hostname=Identity(...).name`: that names who must answer.

    Raises:
        ConfigError: a file of the tls folder cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificates and their names
    context.hostname_checks_common_name = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    trust(context, folder / CA_FILE)
    load_chain(context, folder / CERT_FILE, folder / KEY_FILE)
    return context


class ClientContexts:
    """The newest `client_context` of a tls folder: made anew when its files have changed.

    Raises (constructor):
        ConfigError: as `client_context`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = tuple(folder / name for name in (CA_FILE, CERT_FILE, KEY_FILE))
        self._stamp: Stamp = stamp(self._files)
        self._newest = client_context(folder)

    def newest(self) -> ssl.SSLContext:
        """For a new connection. Files that cannot be used now change nothing."""
        seen = stamp(self._files)
        if seen != self._stamp:
            self._stamp = seen
            try:
                self._newest = client_context(self._folder)
            except ConfigError:
                self._stamp = ()  # half written, it may be: look again
        return self._newest


def server_certificates(folder: Path, *, clients_must_show: bool) -> Certificates:
    """Return what a server of ours shows, and asks of clients: a certificate of our authority.

    clients_must_show: no connection without one; else who shows none is nobody (`Exchange.peer`).

    Raises:
        ConfigError: as `client_context`.
    """
    return Certificates(
        str(folder / CERT_FILE),
        str(folder / KEY_FILE),
        clients=folder / CA_FILE,
        clients_must_show=clients_must_show,
    )


# Private

_OURS = ".hostler.internal"
_ID = re.compile(r"[a-z0-9]{4,40}")
_NAME = re.compile(r"([a-z0-9]{4,40})\.(host|gateway)\.hostler\.internal")
