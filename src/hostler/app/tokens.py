"""Join tokens: how another machine is let in, once; and the machines that were.

A token reads `hstj_<id>_<secret>_<fingerprint>`: 10 characters of id, 32 random bytes in 43, both base 62,
and the SHA-256 of the authority's certificate in hex. The machine that joins knows the controller by the
fingerprint before it shows the secret; the store holds only the secret's hash. A secret scanner finds
it with `hstj_[0-9A-Za-z]{10}_[0-9A-Za-z]{43}_[0-9a-f]{64}`. Not here: HTTP, certificates.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from hostler.app.auth import base62, random_id
from hostler.core.errors import BadRequest
from hostler.core.hosts import HostFacts, Role

JOIN_VARIABLE = "HOSTLER_JOIN_TOKEN"  # where commands that join find their token
DAY_S = 86400.0
GIVEN = "given to "  # begins the `key_hash` of a machine whose certificate is of another authority
KEPT_S = 90 * DAY_S  # what is over is still listed for so long: tokens that ended, hosts removed
LONGEST_S = 366 * DAY_S


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a token as it is shown. fingerprint: of whom the controller must be vouched for by."""

    token_id: str
    secret: str
    fingerprint: str

    def __str__(self) -> str:
        return f"hstj_{self.token_id}_{self.secret}_{self.fingerprint}"


class StoredToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as the store keeps it. uses_left: None for any number until it ends."""

    token_id: str
    secret_hash: str
    role: Role
    created_at_s: float
    expires_at_s: float
    uses_left: int | None = None
    name: str = ""
    revoked: bool = False


class StoredHost(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that joined: this list says who may speak, whatever a certificate says.

    name: its own word for itself, or the operator's. address, port: of its relay.
    token_id, key_hash: with what it joined. removed_at_s: Unix time; None while it belongs to us.
    """

    host_id: str
    role: Role
    name: str
    facts: HostFacts
    address: str = ""
    port: int = 0
    joined_at_s: float = 0.0
    is_draining: bool = False
    token_id: str = ""
    key_hash: str = ""
    removed_at_s: float | None = None

    @property
    def is_removed(self) -> bool:
        return self.removed_at_s is not None


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it is let in, and its token after that. is_news: both are to be kept."""

    host: StoredHost
    token: StoredToken
    is_news: bool = True


class TokenRefused(Exception):
    """A token that lets nobody in (any more); the text says why. For logs, never for who showed it."""


class TokenStore(Protocol):
    """Where tokens are kept, and who came in by them."""

    def tokens(self) -> tuple[StoredToken, ...]:
        """By creation; with those revoked, and those that ended less than 90 days ago."""

    def save_token(self, token: StoredToken) -> None:
        """Add it, or replace the one of the same id."""

    def revoke_token(self, token_id: str) -> bool:
        """Let nobody in by it any more. False: there is no such token."""

    def admit(self, host: StoredHost, now_s: float) -> StoredHost:
        """Keep a host and count the use of its token, both or neither; return the host that is kept.

        A machine that comes with the key of a host that is here is that host. When it asks again with the
        same token, its answer was lost: nothing is counted, and what is kept stays as it is.

        Raises:
            TokenRefused: unknown, revoked, of another role, ended, or used up. Nothing was changed.
        """


class HostStore(Protocol):
    """The machines that joined."""

    def hosts(self) -> tuple[StoredHost, ...]:
        """By the time they joined; with those removed less than 90 days ago."""

    def save_host(self, host: StoredHost) -> bool:
        """Add it, or replace the one of the same id. False: that one was removed, and stays so."""

    def remove_host(self, host_id: str, now_s: float) -> bool:
        """Let it speak no more. False: there is none, or it was removed before."""


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token just made. plain is nowhere else: show it once."""

    plain: str
    stored: StoredToken


def new_token(
    role: Role,
    fingerprint: str,
    *,
    lasts_s: float = DAY_S,
    uses: int | None = 1,
    name: str = "",
    clock: Callable[[], float] = time.time,
) -> NewToken:
    """Make a token. It is good once its `stored` part has been saved."""
    token = JoinToken(
        token_id=random_id(), secret=base62(secrets.token_bytes(32)), fingerprint=fingerprint
    )
    now_s = clock()
    stored = StoredToken(
        token_id=token.token_id,
        secret_hash=_hash(token.secret),
        role=role,
        created_at_s=now_s,
        expires_at_s=now_s + min(lasts_s, LONGEST_S),
        uses_left=uses,
        name=name,
    )
    return NewToken(plain=str(token), stored=stored)


def parse_token(text: str) -> JoinToken:
    """Return the parts of a token.

    Raises:
        BadRequest: it is not of that form; a token cut off at a line's end is told so.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise BadRequest(
            "not a join token (hstj_, three parts, 124 characters); copy the whole of what "
            "`hostler token create` printed",
            param="token",
        )
    token_id, secret, fingerprint = match.groups()
    return JoinToken(token_id=token_id, secret=secret, fingerprint=fingerprint)


def is_proven(token: StoredToken | None, secret: str) -> bool:
    """Is this the secret of that token? The work is the same for a token that nobody knows."""
    known = token.secret_hash if token is not None else "0" * 64
    is_equal = hmac.compare_digest(_hash(secret), known)
    return is_equal and token is not None


def admitted(
    token: StoredToken | None, known: Iterable[StoredHost], host: StoredHost, now_s: float
) -> Admission:
    """Say what a store has to keep when this host asks to be let in by this token.

    known: who is here. One with the same key is the host that asks: it keeps its id, and when it came by
    this very token, no use is counted, for its answer was lost.

    Raises:
        TokenRefused
    """
    if token is None:
        raise TokenRefused("no such token")
    if token.revoked:
        raise TokenRefused("the token was revoked")
    if token.expires_at_s <= now_s:
        raise TokenRefused("the token has expired")
    if token.role is not host.role:
        raise TokenRefused(f"the token is for a {token.role}, not for a {host.role}")
    for one in known:
        if one.key_hash != host.key_hash or one.role is not host.role or one.is_removed:
            continue
        if one.token_id == host.token_id:
            return Admission(host=one, token=token, is_news=False)
        host = msgspec.structs.replace(host, host_id=one.host_id, is_draining=one.is_draining)
    if token.uses_left is not None:
        if token.uses_left <= 0:
            raise TokenRefused("the token is used up")
        token = msgspec.structs.replace(token, uses_left=token.uses_left - 1)
    return Admission(host=host, token=token)


# Private

_FORM = re.compile(r"hstj_([0-9A-Za-z]{10})_([0-9A-Za-z]{43})_([0-9a-f]{64})")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
