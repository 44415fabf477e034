"""Certificates: what a server shows over TLS, taken anew when its files change.

Open connections keep what they have; each new handshake shows the newest that could be read.
"""

import contextlib
import hashlib
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import ConfigError

OURS, SETTINGS = ("certificate", "key"), ("server.tls_cert", "server.tls_key")
EXPIRED = 10  # OpenSSL's number for "certificate has expired"

log = logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class CertificateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate says of itself. names: DNS names and addresses; wildcards as they stand.

    ends_at_s: None when it has expired already: then nothing else is known of it.
    """

    names: tuple[str, ...] = ()
    ends_at_s: float | None = None


class Certificates:
    """A certificate chain and its key, in two PEM files.

    context: for the listening socket; it stays the same for ever.
    clients: PEM file of who vouches for clients, which are then asked for certificates, in TLS 1.3;
        None: they are not. clients_must_show: no connection without one.

    Raises (constructor):
        ConfigError: a file cannot be read, is no PEM, or the key does not belong to the certificate.
    """

    def __init__(
        self,
        cert: str,
        key: str,
        *,
        clients: Path | None = None,
        clients_must_show: bool = False,
    ) -> None:
        self._cert, self._key = Path(cert).expanduser(), Path(key).expanduser()
        self._clients, self._must_show = clients, clients_must_show
        self._tried = self._seen = self._stamp()
        self.context = self._newest = self._make()
        self.context.sni_callback = self._show
        self.facts = describe(self._cert, self._key)

    @property
    def asks_clients(self) -> bool:
        """Are clients asked for certificates?"""
        return self._clients is not None

    def refresh(self, *, at_once: bool = False) -> bool:
        """Read the files if they have changed; say whether a new certificate is shown from now on.

        What cannot be used is told once and changes nothing. at_once: also files that may be half
            written: otherwise they must have been the same at the last look.
        """
        seen, self._seen = self._seen, self._stamp()
        if self._seen == self._tried or (not at_once and seen != self._seen):
            return False
        self._tried = self._seen
        try:
            self._newest = self._make()
            self.facts = describe(self._cert, self._key)
        except ConfigError as error:
            log.warning("tls.not_reloaded", why=error.message, shown="the one before")
            return False
        log.info("tls.reloaded", cert=str(self._cert), names=", ".join(self.facts.names))
        return True

    # Private

    def _show(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        tls.context = self._newest

    def _make(self) -> ssl.SSLContext:
        told = SETTINGS if self._clients is None else OURS
        context = server_context(self._cert, self._key, told)
        if self._clients is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            trust(context, self._clients)
            context.verify_mode = ssl.CERT_REQUIRED if self._must_show else ssl.CERT_OPTIONAL
        return context

    def _stamp(self) -> Stamp:
        files = (self._cert, self._key, *([self._clients] if self._clients is not None else []))
        return stamp(files)


def stamp(files: Iterable[Path]) -> Stamp:
    """What changes when a file does; through links, as they are swapped by those who renew."""
    found = []
    for path in files:
        try:
            stat = path.stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(found)


def trust(context: ssl.SSLContext, authority: Path) -> None:
    """Let the certificates in a PEM file vouch for others, roots or not, and nobody else.

    Raises:
        ConfigError
    """
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if not isinstance(error, ssl.SSLError) else "no PEM certificate in it"
        raise ConfigError(f"authority {authority}: cannot be used ({why})") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def server_context(cert: Path, key: Path, told: tuple[str, str] = SETTINGS) -> ssl.SSLContext:
    """Return a context for a server: TLS 1.2 or newer, HTTP/1.1. told: as in `load_chain`.

    Raises:
        ConfigError
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, cert, key, told)
    return context


def load_chain(
    context: ssl.SSLContext, cert: Path, key: Path, told: tuple[str, str] = OURS
) -> None:
    """Let a context show this certificate. told: what the files are called in errors.

    Raises:
        ConfigError
    """
    for path, name in zip((cert, key), told, strict=True):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{name} {path}: cannot be read ({error.strerror})") from error
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{told[0]} {cert} and {told[1]} {key}: not a PEM certificate and its own unencrypted key "
            f"({getattr(error, 'reason', None) or error})"
        ) from error


def describe(cert: Path, key: Path) -> CertificateFacts:
    """Say what the certificate says of itself, by a handshake in memory that trusts nothing else.

    Raises:
        ConfigError: as `server_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    trust(context, cert)
    try:
        found = _shake(server_context(cert, key), context)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            return CertificateFacts()
        return CertificateFacts(ends_at_s=float("inf"))  # odd, but not for us to judge
    names = tuple(str(pair[1]) for pair in found.get("subjectAltName", ()))
    return CertificateFacts(
        names=names, ends_at_s=float(ssl.cert_time_to_seconds(str(found["notAfter"])))
    )


def check_shown(cert: Path, key: Path, authority: Path, name: str) -> None:
    """Return when whoever trusts that authority would take this certificate for that name.

    Raises:
        ConfigError
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust(context, authority)
    try:
        _shake(server_context(cert, key, OURS), context, name)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"certificate {cert}: not one of the authority {authority} for the name {name} "
            f"({error.verify_message})"
        ) from error


def first_certificate(pem: str) -> str:
    """Return the first certificate of a PEM text, alone; "" when there is none."""
    match = _CERTIFICATE.search(pem)
    return match[0] + "\n" if match is not None else ""


def fingerprint_of(pem: str) -> str:
    """Return the SHA-256 of the first certificate in a PEM text, hex.

    Raises:
        ValueError: there is none.
    """
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first_certificate(pem))).hexdigest()


# Private

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]{1,65536}-----END CERTIFICATE-----"
)


def _shake(
    theirs: ssl.SSLContext, ours: ssl.SSLContext, name: str | None = None
) -> Mapping[str, Any]:
    """Shake hands in memory; return what the server's certificate says of itself.

    Raises:
        ssl.SSLCertVerificationError: it is not good for us.
    """
    there, here = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    server = theirs.wrap_bio(*there, server_side=True)
    client = ours.wrap_bio(*here, server_hostname=name)
    for _ in range(4):  # two flights each way are a whole handshake
        for side, (_, out), (into, _) in ((client, here, there), (server, there, here)):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            into.write(out.read())
    return client.getpeercert() or {}


def _no_password() -> str:
    """Asked for an encrypted key only; without this OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted")
