"""The authority: what it signs, what it refuses, and what a crash between two files leaves."""

import os
import shutil
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.core.errors import BadRequest, ConfigError, StartupError
from hostler.testing.clock import ManualClock
from hostler.wire.authority import CA_KEY_FILE, Authority, Given
from hostler.wire.csr import CSR_BYTES, is_due, key_hash, make_request, request_for
from hostler.wire.identity import CA_FILE, CERT_FILE, CONTROLLER, DAYS, KEY_FILE, Identity, Peer
from hostler.wire.names import machine_names
from hostler.wire.tls import check_shown, fingerprint_of, first_certificate

NAMES = ("localhost", "127.0.0.1", "::1")
HOST = Identity(Peer.HOST, "ab12cd34")
ORDER = (CA_KEY_FILE, CA_FILE, KEY_FILE, CERT_FILE)  # as they are written
DAY_S = 86400.0
NOW_S = 1.8e9


def names_of(pem: str) -> list[str]:
    found = x509.load_pem_x509_certificate(pem.encode()).extensions
    value = found.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(one.value) for one in value]


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ORDER if (folder / name).exists()}


def request(key: object, *names: str) -> str:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "controller")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        wanted = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(wanted, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    signed = builder.sign(key, digest)  # type: ignore[arg-type]
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def test_a_new_authority_makes_its_files_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    authority = Authority.open(folder, NAMES)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == set(ORDER)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    shown = (folder / CERT_FILE).read_text()
    assert names_of(shown) == [*NAMES, CONTROLLER.name]
    assert authority.fingerprint == fingerprint_of((folder / CA_FILE).read_text())
    check_shown(folder / CERT_FILE, folder / KEY_FILE, folder / CA_FILE, "localhost")


def test_opened_again_it_is_the_same_and_nothing_is_written(tmp_path: Path) -> None:
    Authority.open(tmp_path, NAMES)
    before = files(tmp_path)
    again = Authority.open(tmp_path, NAMES)
    assert files(tmp_path) == before
    assert again.certificate == before[CA_FILE].decode()


@pytest.mark.parametrize("kept", range(5))
def test_a_crash_between_any_two_files_is_mended_by_the_next_start(
    tmp_path: Path, kept: int
) -> None:
    Authority.open(tmp_path, NAMES)
    for name in ORDER[kept:]:
        (tmp_path / name).unlink()
    before = files(tmp_path)
    Authority.open(tmp_path, NAMES)
    after = files(tmp_path)
    assert set(after) == set(ORDER)
    assert {name: after[name] for name in ORDER[:kept]} == before  # what was there stays
    check_shown(tmp_path / CERT_FILE, tmp_path / KEY_FILE, tmp_path / CA_FILE, CONTROLLER.name)


def test_a_lost_certificate_of_the_authority_is_made_again_with_its_key(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NAMES)
    key, csr = make_request()
    signed = authority.sign(csr, HOST)
    (tmp_path / CA_FILE).unlink()
    Authority.open(tmp_path, NAMES)
    (tmp_path / "host.pem").write_text(signed.certificate)
    (tmp_path / "host.key").write_text(key)
    check_shown(tmp_path / "host.pem", tmp_path / "host.key", tmp_path / CA_FILE, HOST.name)


def test_an_authority_without_its_key_is_refused_and_nothing_is_replaced(tmp_path: Path) -> None:
    Authority.open(tmp_path, NAMES)
    (tmp_path / CA_KEY_FILE).unlink()
    before = files(tmp_path)
    with pytest.raises(StartupError, match=r"ca\.key is gone; put it back, or remove the folder"):
        Authority.open(tmp_path, NAMES)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", [CA_KEY_FILE, CA_FILE])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN", os.urandom(300)], ids=["empty", "cut", "?"])
def test_a_damaged_authority_is_told_and_left_as_it_is(
    tmp_path: Path, name: str, damage: bytes
) -> None:
    Authority.open(tmp_path, NAMES)
    (tmp_path / name).write_bytes(damage)
    before = files(tmp_path)
    with pytest.raises(StartupError, match=name):
        Authority.open(tmp_path, NAMES)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", [KEY_FILE, CERT_FILE])
def test_a_damaged_certificate_of_this_machine_is_made_anew(tmp_path: Path, name: str) -> None:
    Authority.open(tmp_path, NAMES)
    (tmp_path / name).write_bytes(b"-----BEGIN")
    Authority.open(tmp_path, NAMES)
    check_shown(tmp_path / CERT_FILE, tmp_path / KEY_FILE, tmp_path / CA_FILE, "127.0.0.1")


def test_another_key_beside_the_authority_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path / "one", NAMES)
    Authority.open(tmp_path / "two", NAMES)
    shutil.copy(tmp_path / "one" / CA_KEY_FILE, tmp_path / "two" / CA_KEY_FILE)
    with pytest.raises(StartupError, match="the key beside it is another's"):
        Authority.open(tmp_path / "two", NAMES)


def test_its_own_certificate_is_renewed_when_a_third_is_left_and_its_key_stays(
    tmp_path: Path,
) -> None:
    clock = ManualClock(NOW_S)
    authority = Authority.open(tmp_path, NAMES, clock=clock)
    first = files(tmp_path)
    clock.advance(DAYS * DAY_S * 0.6)
    assert not authority.renew_own()
    clock.advance(DAYS * DAY_S * 0.1)
    assert authority.renew_own()
    then = files(tmp_path)
    assert then[CERT_FILE] != first[CERT_FILE]
    assert {**then, CERT_FILE: b""} == {**first, CERT_FILE: b""}
    assert not authority.renew_own()


def test_other_names_of_the_machine_make_another_certificate(tmp_path: Path) -> None:
    Authority.open(tmp_path, NAMES)
    Authority.open(tmp_path, ("ai.example.org", "10.1.2.3"))
    shown = names_of((tmp_path / CERT_FILE).read_text())
    assert shown == ["ai.example.org", "10.1.2.3", CONTROLLER.name]


def test_an_authority_whose_time_is_over_is_told(tmp_path: Path) -> None:
    Authority.open(tmp_path, NAMES, clock=lambda: NOW_S)
    with pytest.raises(StartupError, match="ended on 20"):
        Authority.open(tmp_path, NAMES, clock=lambda: NOW_S + 3651 * DAY_S)


def test_a_certificate_is_due_before_its_time_and_in_its_last_third(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NAMES, clock=lambda: NOW_S)
    signed = authority.sign(make_request()[1], HOST, days=30)
    assert signed.expires_at_s == NOW_S + 30 * DAY_S
    assert not is_due(signed.certificate, NOW_S)
    assert not is_due(signed.certificate, NOW_S + 19.9 * DAY_S)
    assert is_due(signed.certificate, NOW_S + 20.1 * DAY_S)
    assert is_due(signed.certificate, NOW_S - 2 * 3600)
    with pytest.raises(ConfigError, match="not a PEM certificate"):
        is_due("nothing", NOW_S)


def test_no_certificate_outlives_the_authority(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, NAMES, clock=lambda: NOW_S)
    signed = authority.sign(make_request()[1], HOST, days=36500)
    assert signed.expires_at_s == NOW_S + 3650 * DAY_S


@pytest.mark.parametrize(
    ("identity", "usage"),
    [
        (HOST, ["serverAuth", "clientAuth"]),
        (Identity(Peer.GATEWAY, "ffff0000"), ["clientAuth"]),
        (CONTROLLER, ["serverAuth", "clientAuth"]),
    ],
)
def test_what_a_request_asks_for_does_not_count_only_its_key(
    tmp_path: Path, identity: Identity, usage: list[str]
) -> None:
    authority = Authority.open(tmp_path, NAMES)
    key = ec.generate_private_key(ec.SECP384R1())
    signed = authority.sign(request(key, CONTROLLER.name, "*.host.hostler.internal"), identity)
    made = x509.load_pem_x509_certificate(signed.certificate.encode())
    assert names_of(signed.certificate) == [identity.name]
    assert made.public_key() == key.public_key()
    assert not made.subject.rdns
    extensions = made.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    found = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [one._name for one in found] == usage
    assert made.not_valid_before_utc < datetime.now(UTC)


HOSTILE: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "words": lambda: "please",
    "a cut one": lambda: make_request()[1][:200],
    "a key": lambda: make_request()[0],
    "bytes that are no text": lambda: "\udcff\x00",
    "one too long": lambda: make_request()[1] + "A" * CSR_BYTES,
    "a short RSA key": lambda: request(rsa.generate_private_key(65537, 2048)),
    "a key of another kind": lambda: request(ed25519.Ed25519PrivateKey.generate()),
    "a curve of another kind": lambda: request(ec.generate_private_key(ec.SECP521R1())),
    "another's signature": lambda: forged(),
}


SAMPLE = make_request()[1]


def forged() -> str:
    """A request for a key that whoever sends it does not hold: one bit of the key is changed."""
    pem = make_request()[1]
    der = bytearray(x509.load_pem_x509_csr(pem.encode()).public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(make_request()[1].encode())
    point = other.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    at = der.index(b"\x03\x42\x00\x04") + 3
    der[at : at + len(point)] = point
    changed = x509.load_der_x509_csr(bytes(der))
    return changed.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("made", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_request_is_a_clear_error_and_no_certificate(
    tmp_path: Path, made: Callable[[], str]
) -> None:
    authority = Authority.open(tmp_path, NAMES)
    with pytest.raises(BadRequest, match=r"^csr: "):
        authority.sign(made(), HOST)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_request_with_any_of_its_bits_changed_is_refused_or_is_for_a_key_of_its_own(
    tmp_path: Path, data: st.DataObject
) -> None:
    authority = Authority.open(tmp_path, NAMES)
    made = x509.load_pem_x509_csr(SAMPLE.encode())
    der = bytearray(made.public_bytes(serialization.Encoding.DER))
    for at in data.draw(st.lists(st.integers(0, len(der) * 8 - 1), min_size=1, max_size=4)):
        der[at // 8] ^= 1 << at % 8
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    try:
        signed = authority.sign(pem, HOST)
    except BadRequest:
        return
    assert names_of(signed.certificate) == [HOST.name]


def test_a_key_is_the_same_in_each_of_its_requests() -> None:
    key, csr = make_request()
    assert key_hash(request_for(key)) == key_hash(csr)
    assert key_hash(make_request()[1]) != key_hash(csr)
    with pytest.raises(ConfigError, match="not a PEM key"):
        request_for("nothing")


def given_files(folder: Path, *names: str) -> Given:
    """An authority of the operator, and what it gave to the controller."""
    folder.mkdir()
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "their-ca.pem"))
    ca.private_key_pem.write_to_path(str(folder / "their-ca.key"))
    cert = ca.issue_cert(*names)
    cert.cert_chain_pems[0].write_to_path(str(folder / "their-cert.pem"))
    cert.private_key_pem.write_to_path(str(folder / "their-key.pem"))
    return Given(
        ca=folder / "their-ca.pem",
        ca_key=folder / "their-ca.key",
        cert=folder / "their-cert.pem",
        key=folder / "their-key.pem",
    )


def test_given_certificates_are_used_as_they_are(tmp_path: Path) -> None:
    theirs = given_files(tmp_path / "given", CONTROLLER.name, "ai.example.org")
    folder = tmp_path / "tls"
    authority = Authority.open(folder, NAMES, given=theirs)
    assert (folder / CERT_FILE).read_text() == (theirs.cert or folder).read_text()
    assert not (folder / CA_KEY_FILE).exists()
    authority.names = ("another.example.org",)
    assert not authority.renew_own()  # it is the operator's
    assert (folder / CERT_FILE).is_symlink()
    assert (folder / KEY_FILE).is_symlink()
    signed = authority.sign(make_request()[1], HOST)
    x509.load_pem_x509_certificate(signed.certificate.encode()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(theirs.ca.read_bytes())
    )


def test_a_given_authority_makes_the_certificate_that_was_not_given(tmp_path: Path) -> None:
    theirs = given_files(tmp_path / "given", "other")
    folder = tmp_path / "tls"
    Authority.open(folder, NAMES, given=Given(ca=theirs.ca, ca_key=theirs.ca_key))
    check_shown(folder / CERT_FILE, folder / KEY_FILE, theirs.ca, "localhost")
    Authority.open(folder, NAMES)  # no longer given: one of its own again
    check_shown(folder / CERT_FILE, folder / KEY_FILE, folder / CA_FILE, "localhost")
    with pytest.raises(ConfigError, match="not one of the authority"):
        check_shown(folder / CERT_FILE, folder / KEY_FILE, theirs.ca, "localhost")


def test_without_the_key_of_the_given_authority_nothing_is_signed(tmp_path: Path) -> None:
    theirs = given_files(tmp_path / "given", CONTROLLER.name)
    only = Given(ca=theirs.ca, cert=theirs.cert, key=theirs.key)
    authority = Authority.open(tmp_path / "tls", NAMES, given=only)
    with pytest.raises(ConfigError, match=r"control\.tls_ca_key is not set"):
        authority.sign(make_request()[1], HOST)


def test_given_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    theirs = given_files(tmp_path / "given", "ai.example.org")
    folder = tmp_path / "tls"
    with pytest.raises(ConfigError, match=r"their-cert\.pem: not one of .*controller\.hostler"):
        Authority.open(folder, NAMES, given=theirs)
    with pytest.raises(ConfigError, match=r"missing\.pem: cannot be read"):
        Authority.open(folder, NAMES, given=Given(ca=tmp_path / "missing.pem"))
    with pytest.raises(ConfigError, match=r"missing\.key: there is no such file"):
        Authority.open(folder, NAMES, given=Given(ca=theirs.ca, ca_key=tmp_path / "missing.key"))
    with pytest.raises(ConfigError, match=r"may not vouch for others|no PEM|BasicConstraints"):
        Authority.open(folder, NAMES, given=Given(ca=theirs.cert or folder, ca_key=theirs.key))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("a file is in the way")
    with pytest.raises(StartupError, match=r"tls folder .* cannot be used"):
        Authority.open(tmp_path / "tls", NAMES)


def test_the_first_certificate_of_a_text_is_cut_out(tmp_path: Path) -> None:
    one = Authority.open(tmp_path / "one", NAMES).certificate
    two = Authority.open(tmp_path / "two", NAMES).certificate
    assert first_certificate("words\n" + one + two) == one
    assert fingerprint_of(one + two) == fingerprint_of(one) != fingerprint_of(two)
    assert first_certificate("no certificate here") == ""


def test_a_machine_has_names_and_the_given_ones_come_first() -> None:
    names = machine_names(["ai.example.org", ""])
    assert names[:2] == ("ai.example.org", "localhost")
    assert "127.0.0.1" in names
    assert len(set(names)) == len(names)
