"""Authority: makes the certificates of our machines. It and `csr.py` import `cryptography`, nobody else.

Elliptic keys (P-256) throughout: small, quick, known to every TLS library. No list of revoked ones is
kept: a machine that is removed is refused by its id (docs/design/hosts.md).
"""

import ipaddress
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hostler.app.private_file import link_private, write_private
from hostler.app.telemetry import logger
from hostler.core.errors import ConfigError, StartupError
from hostler.wire.csr import DAMAGED, PEM, Key, is_due, key_hash, key_of, private_pem
from hostler.wire.identity import CA_FILE, CERT_FILE, CONTROLLER, DAYS, KEY_FILE, Identity, Peer
from hostler.wire.tls import check_shown, fingerprint_of

log = logger(__name__)

CA_KEY_FILE = "ca.key"
CA_DAYS = 3650
EARLY_S = 3600.0  # a certificate is good so long before it was made: clocks differ


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's own files, PEM: an authority, and what it gave to the controller.

    ca_key: of the authority; without it no certificate can be made here. cert, key: of the
        controller; without them they are made.
    """

    ca: Path
    ca_key: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A new certificate, PEM, and its end, Unix time."""

    certificate: str
    expires_at_s: float


class Authority:
    """Who vouches for our machines: a certificate, and its key if it is here. `open` makes one.

    certificate: PEM. fingerprint: its SHA-256 in hex, as `openssl x509 -fingerprint -sha256` says.
    """

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        certificate: x509.Certificate,
        key: Key | None,
        clock: Callable[[], float],
    ) -> None:
        """key: None: nothing can be signed here."""
        self.folder = folder
        self.names = names
        self.certificate = _pem(certificate)
        self.fingerprint = fingerprint_of(self.certificate)
        self._issuer = certificate
        self._key = key
        self.can_sign = key is not None
        self.has_given_certificate = False
        self._clock = clock

    @classmethod
    def open(
        cls,
        folder: Path,
        names: Iterable[str],
        *,
        given: Given | None = None,
        clock: Callable[[], float] = time.time,
    ) -> "Authority":
        """Return the authority of a tls folder, made when there is none, and this machine's certificate.

        names: DNS names and addresses of this machine, for `cert.pem`. Files are made in this order:
        `ca.key`, `ca.pem`, `key.pem`, `cert.pem`. What a crash left out is made at the next `open`.

        Raises:
            ConfigError: a given file cannot be used. StartupError: a file of the folder is damaged or
                cannot be written; nothing that was there is replaced then.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            made = _given(folder, given) if given is not None else _own(folder, clock)
            authority = cls(folder, tuple(names), *made, clock)
            authority.has_given_certificate = given is not None and given.cert is not None
            authority.renew_own()
        except OSError as error:
            raise StartupError(
                f"tls folder {folder}: {error.filename or ''} cannot be used ({error.strerror}); "
                "make room there, or mend its permissions"
            ) from error
        return authority

    def sign(self, csr_pem: str, identity: Identity, days: float = DAYS) -> Signed:
        """Return a certificate for the key in a request. Nothing else that the request asks for counts.

        Raises:
            BadRequest: it is no request, or its key is not one that is taken.
            ConfigError: the key of the authority is not here.
        """
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.role is not Peer.GATEWAY:
            usage.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        return self._issue(key_of(csr_pem), [x509.DNSName(identity.name)], usage, days)

    def key_hash(self, csr_pem: str) -> str:
        """Return what tells the key of a request from every other. Raises BadRequest as `sign`."""
        return key_hash(csr_pem)

    def renew_own(self) -> bool:
        """Make this machine's certificate anew if that is due; say whether it was. Never a given one.

        Raises:
            OSError: it cannot be written; the one before stays.
        """
        if self.has_given_certificate:
            return False
        cert, key = self.folder / CERT_FILE, self.folder / KEY_FILE
        names = _general(self.names)
        try:
            kept = None if key.is_symlink() else _read_key(key)  # a link: one that was given before
        except ConfigError:
            kept = None
        if kept is not None and not self._is_due(cert, kept, names):
            return False
        if not isinstance(kept, ec.EllipticCurvePrivateKey):
            kept = ec.generate_private_key(ec.SECP256R1())
            write_private(key, private_pem(kept))
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = self._issue(kept.public_key(), names, usage, DAYS)
        write_private(cert, made.certificate.encode())
        log.info("tls.own_certificate", names=len(self.names), expires_at_s=made.expires_at_s)
        return True

    # Private

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        usage: list[x509.ObjectIdentifier],
        days: float,
    ) -> Signed:
        if self._key is None:
            raise ConfigError(
                "this controller makes no certificates: control.tls_ca_key is not set; give this machine "
                "one of your authority's"
            )
        now_s = self._clock()
        ends = min(_at(now_s + days * 86400.0), self._issuer.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._issuer.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_at(now_s - EARLY_S))
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(_issuer_id(self._issuer, self._key), critical=False)
        )
        made = builder.sign(self._key, hashes.SHA256())
        return Signed(certificate=_pem(made), expires_at_s=ends.timestamp())

    def _is_due(self, path: Path, key: Key, names: list[x509.GeneralName]) -> bool:
        """Must the certificate there be made anew: is it old, damaged, or of another key or names?"""
        try:
            text = path.read_text("ascii")
            found = x509.load_pem_x509_certificate(text.encode())
            found.verify_directly_issued_by(self._issuer)
            shown = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (FileNotFoundError, *DAMAGED):
            return True
        is_other = found.public_key() != key.public_key() or list(shown) != names
        return is_other or is_due(text, self._clock())


# Private


def _own(folder: Path, clock: Callable[[], float]) -> tuple[x509.Certificate, Key | None]:
    """Read the authority of ours, or make one. Its key is written first: it is what counts."""
    path, key_path = folder / CA_FILE, folder / CA_KEY_FILE
    if path.is_symlink():
        path.unlink()  # one that was given before
    try:
        key = _read_key(key_path)
    except ConfigError as error:
        raise StartupError(f"{error.message}; put a copy of it back, or {_ANEW}") from error
    if key is None and path.exists():
        raise StartupError(f"{path} is there but {key_path.name} is gone; put it back, or {_ANEW}")
    if key is None:
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(key_path, private_pem(key))
    if not path.exists():
        write_private(path, _pem(_self_signed(key, clock())).encode())
        log.info("tls.authority_made", folder=str(folder))
    found = _read_authority(path, key, StartupError)
    if found.not_valid_after_utc.timestamp() < clock():
        raise StartupError(
            f"the authority in {path} ended on {found.not_valid_after_utc:%F}; {_ANEW}"
        )
    return found, key


_ANEW = "remove the folder to begin with a new authority: then all other machines must join again"


def _given(folder: Path, given: Given) -> tuple[x509.Certificate, Key | None]:
    """Read the operator's files and link them into the folder."""
    key = _read_key(given.ca_key) if given.ca_key is not None else None
    if given.ca_key is not None and key is None:
        raise ConfigError(f"control.tls_ca_key {given.ca_key}: there is no such file")
    authority = _read_authority(given.ca, key, ConfigError)
    if given.cert is not None and given.key is not None:
        check_shown(given.cert, given.key, given.ca, CONTROLLER.name)
        link_private(folder / KEY_FILE, given.key.absolute())
        link_private(folder / CERT_FILE, given.cert.absolute())
    link_private(folder / CA_FILE, given.ca.absolute())
    return authority, key


def _read_authority(
    path: Path, key: Key | None, raised: type[ConfigError | StartupError]
) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())[0]
        basic = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (OSError, *DAMAGED) as error:
        raise raised(f"authority {path}: cannot be read as a PEM certificate ({error})") from error
    if not basic.ca:
        raise raised(f"authority {path}: a certificate that may not vouch for others (no CA)")
    if key is not None and found.public_key() != key.public_key():
        raise raised(f"authority {path}: the key beside it is another's")
    return found


def _self_signed(key: Key, now_s: float) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hostler authority")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_at(now_s - EARLY_S))
        .not_valid_after(_at(now_s + CA_DAYS * 86400.0))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _issuer_id(issuer: x509.Certificate, key: Key) -> x509.AuthorityKeyIdentifier:
    """How the issuer names its own key, which need not be as we would."""
    made = x509.AuthorityKeyIdentifier
    try:
        said = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return made.from_issuer_public_key(key.public_key())
    return made.from_issuer_subject_key_identifier(said)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read_key(path: Path) -> Key | None:
    """Return the private key in a file; None when there is none.

    Raises:
        ConfigError
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        key = serialization.load_pem_private_key(data, None)
    except DAMAGED as error:
        raise ConfigError(f"key {path}: not an unencrypted PEM key ({error})") from error
    if not isinstance(key, Key):
        raise ConfigError(f"key {path}: need an elliptic or RSA key")
    return key


def _general(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if name.isascii():
                found.append(x509.DNSName(name))
    return [*found, x509.DNSName(CONTROLLER.name)]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(PEM).decode()


def _at(time_s: float) -> datetime:
    return datetime.fromtimestamp(int(time_s), UTC)
