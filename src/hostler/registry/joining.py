"""Joining, seen from the machine that joins: it proves the controller, then itself; later it renews.

Its tls folder is written in this order: `key.pem` before anything is asked, so that who asks again after
a crash is known by its key; `ca.pem` and `cert.pem` when the answer is here. With the last it has joined.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import msgspec

from hostler.app.private_file import write_private
from hostler.app.telemetry import logger
from hostler.app.tokens import parse_token
from hostler.core.errors import (
    BadRequest,
    ConfigError,
    ControllerUnavailable,
    HostlerError,
    StartupError,
)
from hostler.core.hosts import HostFacts, JoinAnswer, JoinRequest, RenewRequest, Role
from hostler.core.refusal import refusal_in
from hostler.core.trust import IdentityRefused, JoinRefused, WrongController
from hostler.wire.csr import ends_at_s, is_due, make_request, request_for
from hostler.wire.identity import (
    CA_FILE,
    CERT_FILE,
    CONTROLLER,
    KEY_FILE,
    client_context,
)
from hostler.wire.tls import fingerprint_of, first_certificate, load_chain

log = logger(__name__)

TIMEOUT_S = 10.0
ANSWER_BYTES = 256 * 1024
LOOK_EVERY_S = 3600.0  # whether a certificate must be renewed
AGAIN_S = 60.0  # after a renewal that failed
SIGNS_HEADER = "x-hostler-signs"  # beside the authority: "no" where no certificates are made
SKEW_S = 1800.0  # between two clocks; more is told
_now_at_s = time.time  # Unix time: what certificates are about
_NOT_YET, _EXPIRED = 9, 10  # OpenSSL's numbers


async def join(
    url: str,
    token: str,
    role: Role,
    facts: HostFacts,
    address: str,
    port: int,
    tls_dir: Path,
    *,
    given: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> JoinAnswer:
    """Join the controller at this URL, and write the tls folder.

    No byte of the token's secret leaves before the server there has proven to be vouched for by the
    authority that the token names. Asked again after a crash, the same machine gets the same id.

    address, port: of its relay; "" for the address it connects from.
    given: the tls folder holds certificates of the operator's authority, which stay. A controller that
        makes none is shown those in any case.

    Raises:
        BadRequest: this is no token, or the server says what is wrong. WrongController: another server
        answers there. JoinRefused: the token is no good (any more). ControllerUnavailable: nobody
        answers. ConfigError: the URL, a given file or a clock is wrong. StartupError: the folder.
    """
    parsed = parse_token(token)
    where = _checked(url)
    authority, signs = await _pinned(where, parsed.fingerprint, timeout_s)
    given = given or not signs
    csr = "" if given else _own_request(tls_dir)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if given:
        _check_given(where, tls_dir)
        load_chain(context, tls_dir / CERT_FILE, tls_dir / KEY_FILE)
    request = JoinRequest(
        token=str(parsed), role=role, csr=csr, facts=facts, address=address, port=port
    )
    answer = await _post(where, "/join", request, context, timeout_s)
    if fingerprint_of(answer.authority) != parsed.fingerprint:
        raise WrongController(f"{where}: its answer names another authority than the token")
    if not given:
        _write(tls_dir, CA_FILE, answer.authority)
        _write(tls_dir, CERT_FILE, answer.certificate)
    client_context(tls_dir)
    return answer


async def renew(url: str, tls_dir: Path, *, timeout_s: float = TIMEOUT_S) -> JoinAnswer:
    """Get another certificate for the key in the tls folder, and write it there.

    Raises:
        IdentityRefused: this machine was removed, or its certificate has expired. Else as `join`.
    """
    where, context = _checked(url), client_context(tls_dir)
    if ends_at_s((tls_dir / CERT_FILE).read_text()) < _now_at_s():
        raise IdentityRefused(
            f"{where}: the certificate of this machine has expired; join again with a new token. It stays "
            "the host it was"
        )
    request = RenewRequest(csr=request_for((tls_dir / KEY_FILE).read_text()))
    answer = await _post(where, "/host/renew", request, context, timeout_s)
    _write(tls_dir, CERT_FILE, answer.certificate)
    log.info("tls.renewed", expires_at_s=answer.expires_at_s)
    return answer


def is_renewal_due(tls_dir: Path, now_s: float) -> bool:
    """Is less than a third left of the certificate there? False where there is none, or a given one."""
    path = tls_dir / CERT_FILE
    if path.is_symlink() or not path.exists():
        return False
    return is_due(path.read_text(), now_s)


async def keep_renewed(
    url: Callable[[], str], tls_dir: Path, *, clock: Callable[[], float] = _now_at_s
) -> None:
    """Renew the certificate whenever that is due, for ever. What goes wrong is told and tried again.

    url: where the controller is now.
    """
    while True:
        wait_s = LOOK_EVERY_S
        try:
            if is_renewal_due(tls_dir, clock()):
                await renew(url(), tls_dir)
        except (HostlerError, OSError) as error:
            wait_s = AGAIN_S if isinstance(error, ControllerUnavailable) else LOOK_EVERY_S
            log.warning("tls.not_renewed", why=str(error), again_in_s=wait_s)
        await asyncio.sleep(wait_s)


# Private


def _checked(url: str) -> str:
    """Return `https://HOST:PORT`.

    Raises:
        ConfigError
    """
    try:
        parts = urlsplit(url)
        is_good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
        is_good = is_good and parts.path in ("", "/") and not parts.query and not parts.username
    except ValueError:
        is_good = False
    if not is_good:
        raise ConfigError(
            f"controller {url!r}: need https://HOST:PORT, the control port that `hostler up --tls` tells"
        )
    return f"https://{parts.netloc}"


async def _pinned(url: str, fingerprint: str, timeout_s: float) -> tuple[str, bool]:
    """Return the authority's certificate that the token names, and whether it signs for machines there.

    Nothing is believed of that connection, and nothing secret is sent on it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    answer = await _ask(url, "GET", "/authority", b"", context, timeout_s)
    found = first_certificate(answer.text) if answer.status_code == 200 else ""
    if not found:
        raise WrongController(
            f"{url}: this is no control port of Hostler (it answers {answer.status_code} to GET "
            "/authority); `hostler up --tls` and `hostler token create` tell the right address"
        )
    if (shown := fingerprint_of(found)) != fingerprint:
        raise WrongController(
            f"{url}: another server than the one meant answers there: its authority has the fingerprint "
            f"{shown[:16]}…, the token says {fingerprint[:16]}…. Nothing was told to it. Check the address; "
            "if the controller has a new authority, make a new token"
        )
    return found, answer.headers.get(SIGNS_HEADER) != "no"


def _check_given(url: str, tls_dir: Path) -> None:
    """Return when the operator's files are there. Raises ConfigError."""
    if missing := [one for one in (CA_FILE, CERT_FILE, KEY_FILE) if not (tls_dir / one).exists()]:
        raise ConfigError(
            f"{url}: a certificate of your own authority is needed (none is made there, or you gave one): "
            "name its files with --tls-ca, --tls-cert (for a name like b1.host.hostler.internal) and "
            f"--tls-key, or put them into {tls_dir}; missing: {', '.join(missing)}"
        )


def _own_request(tls_dir: Path) -> str:
    """Return a request for this machine's key, which is made and kept when there is none."""
    try:
        tls_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        tls_dir.chmod(0o700)
        path = tls_dir / KEY_FILE
        if path.exists():
            try:
                return request_for(path.read_text())
            except ConfigError as error:
                log.warning("join.key_replaced", key=str(path), why=error.message)
        key, csr = make_request()
        write_private(path, key.encode())
    except OSError as error:
        raise _folder_error(tls_dir, error) from error
    return csr


def _write(tls_dir: Path, name: str, text: str) -> None:
    try:
        write_private(tls_dir / name, text.encode())
    except OSError as error:
        raise _folder_error(tls_dir, error) from error


def _folder_error(tls_dir: Path, error: OSError) -> StartupError:
    return StartupError(f"tls folder {tls_dir}: cannot be written ({error.strerror or error})")


async def _post(
    url: str, path: str, message: msgspec.Struct, context: ssl.SSLContext, timeout_s: float
) -> JoinAnswer:
    """Ask the controller, and nobody else.

    Raises as `join`.
    """
    body = msgspec.json.encode(message)
    answer = await _ask(url, "POST", path, body, context, timeout_s)
    if answer.status_code != 200:
        raise _refusal(url, answer.status_code, answer.content)
    try:
        found = msgspec.json.decode(answer.content, type=JoinAnswer)
        said = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise BadRequest(
            f"{url}{path}: the answer is not what this version expects ({error})"
        ) from error
    skew_s = _now_at_s() - said
    if abs(skew_s) > SKEW_S:
        log.warning("join.clocks_differ", ours_is_ahead_s=round(skew_s), controller=url)
    return found


async def _ask(
    url: str, method: str, path: str, body: bytes, context: ssl.SSLContext, timeout_s: float
) -> httpx2.Response:
    """Ask once. The name that the server must prove is the controller's, whatever the URL says."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpx2.AsyncClient(verify=context, trust_env=False, timeout=timeout_s) as client,
            client.stream(
                method,
                url + path,
                content=body,
                headers={"content-type": "application/json"},
                extensions={"sni_hostname": CONTROLLER.name},
            ) as answer,
        ):
            read = b""
            async for part in answer.aiter_raw():
                read += part
                if len(read) > ANSWER_BYTES:
                    raise WrongController(f"{url}{path}: the answer is longer than any of ours")
            return httpx2.Response(answer.status_code, headers=answer.headers, content=read)
    except (httpx2.HTTPError, TimeoutError, OSError) as error:
        raise _lost(url, error) from error


def _lost(url: str, error: Exception) -> HostlerError:
    """What it means that there was no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            if cause.verify_code in (_NOT_YET, _EXPIRED):
                now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
                return ConfigError(
                    f"{url}: its certificate is not good at this moment ({cause.verify_message}). This "
                    f"machine's clock says {now} UTC: set it, or the controller's, and try again"
                )
            return WrongController(
                f"{url}: it does not prove to be the controller ({cause.verify_message})"
            )
        if isinstance(cause, ssl.SSLError):
            return ControllerUnavailable(
                f"{url}: no TLS connection ({cause.reason or cause}); is it the control port?"
            )
        cause = cause.__cause__ or cause.__context__
    return ControllerUnavailable(
        f"{url}: nobody answers ({str(error) or type(error).__name__}); is the controller up, and the "
        "control port open to this machine?"
    )


def _refusal(url: str, status: int, body: bytes) -> HostlerError:
    code, text = refusal_in(body, f"status {status}")
    if code == JoinRefused.code:
        return JoinRefused(
            f"{url} does not take this token: it has expired, was revoked, is used up, or is for another "
            "role. The controller's log says which (join.refused); make another with `hostler token create`"
        )
    if code == IdentityRefused.code:
        return IdentityRefused(
            f"{url}: this machine was removed there; join again with a new token"
        )
    kind = BadRequest if status < 500 else ControllerUnavailable
    return kind(f"{url}: {text}")
