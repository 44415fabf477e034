"""Joins: lets machines in by their tokens, and gives them certificates.

Whatever is wrong with a token, who shows it gets one answer; the log and the events say what it was.
"""

import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from typing import Protocol

from hostler.app.telemetry import logger
from hostler.app.tokens import GIVEN, JoinToken, StoredHost, TokenRefused, is_proven, parse_token
from hostler.core.deployment import HERE
from hostler.core.errors import BadRequest, RequestTooLarge
from hostler.core.hosts import JoinAnswer, JoinRequest, RenewRequest
from hostler.core.trust import JoinRefused
from hostler.core.worker import OperatorEvent
from hostler.registry.attempts import Attempts
from hostler.registry.members import Members, is_news, peer_of
from hostler.registry.server import decode
from hostler.wire.identity import Identity

log = logger(__name__)

REQUEST_BYTES = 64 * 1024
_TOLD_EVERY_S = 1.0  # of refusals, as events; each of them is in the log


class Signed(Protocol):
    """A new certificate, PEM, and its end, Unix time."""

    @property
    def certificate(self) -> str: ...
    @property
    def expires_at_s(self) -> float: ...


class Signer(Protocol):
    """The authority, as far as it is needed here. `wire.authority.Authority` is one."""

    certificate: str
    fingerprint: str
    can_sign: bool

    def sign(self, csr_pem: str, identity: Identity) -> Signed: ...
    def key_hash(self, csr_pem: str) -> str: ...


class Joins:
    """POST /join and POST /host/renew."""

    def __init__(
        self,
        members: Members,
        signer: Signer,
        *,
        tell: Callable[[OperatorEvent], None] = lambda event: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """tell: takes events for operators."""
        self._members = members
        self._signer = signer
        self._tell = tell
        self._monotonic = monotonic
        self._attempts = Attempts(monotonic)
        self._told_at_s = float("-inf")

    @property
    def authority(self) -> str:
        """The certificate of who vouches for this controller, PEM."""
        return self._signer.certificate

    @property
    def signs(self) -> bool:
        """Are certificates made here?"""
        return self._signer.can_sign

    async def join(self, body: bytes, client: str, peer: Identity | None) -> JoinAnswer:
        """Let a machine in.

        client: the address it connects from. peer: who it is already, by a given certificate.

        Raises:
            JoinRefused: the token is no good. RateLimitExceeded, BadRequest, StorageBusy.
        """
        self._attempts.check(client)
        try:
            if len(body) > REQUEST_BYTES:
                raise RequestTooLarge(f"a request to join has {REQUEST_BYTES} bytes at most")
            request = decode(body, JoinRequest)
            token = await self._check_token(request, client)
            host = self._host_of(request, token, client, peer)
            try:
                kept = await self._members.admit(host)
            except TokenRefused as error:
                raise self._refusal(token.token_id, client, str(error)) from error
        except (BadRequest, JoinRefused, RequestTooLarge):
            self._attempts.failed(client)
            raise
        answer = self._certify(request.csr, Identity(peer_of(kept.role), kept.host_id))
        if is_news(kept, host):
            self._tell_joined(kept)
        return answer

    async def renew(self, body: bytes, identity: Identity) -> JoinAnswer:
        """Give a machine that belongs here another certificate. Raises BadRequest."""
        request = decode(body, RenewRequest)
        self._check_signs()
        return self._certify(request.csr, identity)

    # Private

    async def _check_token(self, request: JoinRequest, client: str) -> JoinToken:
        """Return the token, proven to be one of ours; what it is still good for says the store."""
        try:
            token = parse_token(request.token)
        except BadRequest as error:
            raise self._refusal("", client, "it is no token") from error
        stored = await self._members.token(token.token_id)
        if not is_proven(stored, token.secret):
            why = "no such token" if stored is None else "its secret is wrong"
            raise self._refusal(token.token_id, client, why)
        if token.fingerprint != self._signer.fingerprint:
            raise self._refusal(token.token_id, client, "it is of another authority")
        return token

    def _host_of(
        self, request: JoinRequest, token: JoinToken, client: str, peer: Identity | None
    ) -> StoredHost:
        _check_facts(request)
        if request.csr:
            self._check_signs()
            host_id, key_hash = secrets.token_hex(6), self._signer.key_hash(request.csr)
        elif peer is not None and peer.role is peer_of(request.role):
            host_id, key_hash = peer.id, f"{GIVEN}{peer.id}"
        else:
            raise BadRequest(
                "csr: a request for a certificate is needed, or a given certificate for a "
                f"{peer_of(request.role)} on this connection",
                param="csr",
            )
        return StoredHost(
            host_id=host_id,
            role=request.role,
            name=request.facts.name,
            facts=request.facts,
            address=request.address or client,
            port=request.port,
            joined_at_s=time.time(),
            token_id=token.token_id,
            key_hash=key_hash,
        )

    def _check_signs(self) -> None:
        """Return when certificates are made here. Raises BadRequest."""
        if not self.signs:
            raise BadRequest(
                "this controller makes no certificates (control.tls_ca_key is not set): give the machine one "
                "of your authority's",
                param="csr",
            )

    def _certify(self, csr: str, identity: Identity) -> JoinAnswer:
        """csr: "": the machine has a given certificate, and keeps it."""
        if not csr:
            return JoinAnswer(
                host_id=identity.id, certificate="", authority=self.authority, expires_at_s=0.0
            )
        signed = self._signer.sign(csr, identity)
        return JoinAnswer(
            host_id=identity.id,
            certificate=signed.certificate,
            authority=self.authority,
            expires_at_s=signed.expires_at_s,
        )

    def _refusal(self, token_id: str, client: str, why: str) -> JoinRefused:
        """Say what it was to the operator; return the one answer there is."""
        log.warning("join.refused", token_id=token_id, client=client, why=why)
        now_s = self._monotonic()
        if now_s - self._told_at_s >= _TOLD_EVERY_S:
            self._told_at_s = now_s
            fields = {"token_id": token_id, "client": client}
            self._tell(OperatorEvent(kind="join.refused", message=why, fields=fields))
        return JoinRefused()

    def _tell_joined(self, host: StoredHost) -> None:
        fields = {"host_id": host.host_id, "role": host.role.value, "token_id": host.token_id}
        text = f"{host.role} {host.name} at {host.address}"
        self._tell(OperatorEvent(kind="host.joined", message=text, fields=fields))


# Private

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _check_facts(request: JoinRequest) -> None:
    """Return when name, address and port are such as can be shown, and connected to.

    Raises:
        BadRequest
    """
    if _NAME.fullmatch(request.facts.name) is None:
        raise BadRequest(
            "facts.name: need 1 to 64 letters, digits, dots, dashes or underscores",
            param="facts.name",
        )
    if request.facts.name == HERE:
        raise BadRequest(
            f"facts.name: {HERE!r} means the controller's own machine; give this one another name",
            param="facts.name",
        )
    if not 0 <= request.port <= 65535:
        raise BadRequest(f"port: {request.port} is no port", param="port")
    if not request.address:
        return
    try:
        address = ipaddress.ip_address(request.address)
    except ValueError as error:
        raise BadRequest("address: need an IP address, never a name", param="address") from error
    if address.is_unspecified or address.is_multicast:
        raise BadRequest(f"address: nobody can be reached at {address}", param="address")
