"""Requests for certificates: made by a machine that joins, read by the authority that signs.

The key of a request never travels. Of what a request says only its key counts.
"""

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hostler.core.errors import BadRequest, ConfigError

CSR_BYTES = 16 * 1024
PEM = serialization.Encoding.PEM
# What cryptography raises for bytes that are not what they should be.
DAMAGED = (
    ValueError, TypeError, OverflowError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound,
    x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
)  # fmt: skip

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_request() -> tuple[str, str]:
    """Return a new key and a request for a certificate for it, PEM both. The key never travels."""
    key = private_pem(ec.generate_private_key(ec.SECP256R1())).decode()
    return key, request_for(key)


def request_for(key_pem: str) -> str:
    """Return a request for a certificate for this key. Who it is for says the authority.

    Raises:
        ConfigError: it is no such key.
    """
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), None)
    except DAMAGED as error:
        raise ConfigError(f"not a PEM key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("not an elliptic key, as a request needs it")
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM).decode()


def key_hash(csr_pem: str) -> str:
    """Return what tells the key of a request from every other. Raises BadRequest as `key_of`."""
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key_of(csr_pem).public_bytes(serialization.Encoding.DER, info)
    return hashlib.sha256(der).hexdigest()


def is_due(certificate_pem: str, now_s: float) -> bool:
    """Is it time for another certificate: is less than a third of this one's time left?

    Raises:
        ConfigError: it is no certificate.
    """
    found = _read(certificate_pem)
    began_s, ends_s = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    return not began_s <= now_s <= ends_s - (ends_s - began_s) / 3


def ends_at_s(certificate_pem: str) -> float:
    """Return the end of a certificate, Unix time. Raises ConfigError: it is none."""
    return _read(certificate_pem).not_valid_after_utc.timestamp()


def key_of(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a request, which was signed with it.

    Raises:
        BadRequest
    """
    if len(csr_pem) > CSR_BYTES:
        raise BadRequest(f"csr: longer than {CSR_BYTES} bytes", param="csr")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        is_proven = request.is_signature_valid
    except DAMAGED as error:
        raise BadRequest("csr: not a PEM request for a certificate", param="csr") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise BadRequest("csr: need a key on the curve P-256 or P-384", param="csr")
    if not is_proven:
        raise BadRequest("csr: not signed by its own key", param="csr")
    return key


def private_pem(key: Key) -> bytes:
    """Return a key as it is kept: PEM, not encrypted."""
    form, locked = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(PEM, form, locked)


# Private

_CURVES = (ec.SECP256R1, ec.SECP384R1)


def _read(certificate_pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate_pem.encode())
    except DAMAGED as error:
        raise ConfigError(f"not a PEM certificate: {error}") from error
