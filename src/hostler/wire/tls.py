"""Certificates: what a server shows over TLS, taken anew when its files change.

Open connections keep what they have; each new handshake shows the newest that could be read.
"""

import contextlib
import ssl
from pathlib import Path

import msgspec

from hostler.app.telemetry import logger
from hostler.core.errors import ConfigError

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

    Raises (constructor):
        ConfigError: a file cannot be read, is no PEM, or the key does not belong to the certificate.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = Path(cert).expanduser(), Path(key).expanduser()
        self._tried = self._seen = self._stamp()
        self.context = self._newest = server_context(self._cert, self._key)
        self.context.sni_callback = self._show
        self.facts = describe(self._cert, self._key)

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
            self._newest = server_context(self._cert, self._key)
            self.facts = describe(self._cert, self._key)
        except ConfigError as error:
            log.warning("tls.not_reloaded", why=error.message, shown="the one before")
            return False
        log.info("tls.reloaded", cert=str(self._cert), names=", ".join(self.facts.names))
        return True

    # Private

    def _show(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        tls.context = self._newest

    def _stamp(self) -> Stamp:
        """What changes when a file does; through links, as they are swapped by those who renew."""
        found = []
        for path in (self._cert, self._key):
            try:
                stat = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """Return a context for a server: TLS 1.2 or newer, HTTP/1.1.

    Raises:
        ConfigError
    """
    for path, name in ((cert, "tls_cert"), (key, "tls_key")):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"server.{name} {path}: cannot be read ({error.strerror})") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"server.tls_cert {cert} and server.tls_key {key}: not a PEM certificate and its own "
            f"unencrypted key ({getattr(error, 'reason', None) or error})"
        ) from error
    return context


def describe(cert: Path, key: Path) -> CertificateFacts:
    """Say what the certificate says of itself, by a handshake in memory that trusts nothing else.

    Raises:
        ConfigError: as `server_context`.
    """
    theirs, ours = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.load_verify_locations(cert)
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server = server_context(cert, key).wrap_bio(*theirs, server_side=True)
    client = client_context.wrap_bio(*ours)
    try:
        for _ in range(4):  # two flights each way are a whole handshake
            for side, (_, out), (into, _) in ((client, ours, theirs), (server, theirs, ours)):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                into.write(out.read())
        found = client.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            return CertificateFacts()
        return CertificateFacts(ends_at_s=float("inf"))  # odd, but not for us to judge
    names = tuple(str(pair[1]) for pair in found.get("subjectAltName", ()))
    return CertificateFacts(
        names=names, ends_at_s=float(ssl.cert_time_to_seconds(str(found["notAfter"])))
    )


# Private


def _no_password() -> str:
    """Asked for an encrypted key only; without this OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted")
