"""API keys: how one is made, checked and kept; and which address may be bound with or without one.

A key reads `hst_<id>_<secret><crc>`: 10 characters of id, 32 random bytes in 43 characters, and the
CRC-32 of all before it in 6, all base 62. A secret scanner finds it with
`hst_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}`. Only the SHA-256 of the secret is kept: it has 256 random
bits, so a slow hash would add nothing. The check keeps no memo: a look-up and one hash take 2 µs.
Not here: what a request may cost (limits), and HTTP.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Protocol

import msgspec

from hostler.app.config import ServerConfig
from hostler.app.faults import CrashPoint, crash_point
from hostler.app.paths import StatePaths
from hostler.app.private_file import write_private
from hostler.core.errors import (
    BadRequest,
    InsufficientScope,
    InvalidAPIKey,
    ModelNotAllowed,
    StartupError,
)
from hostler.core.serving import Priority
from hostler.core.snapshot import KeyView


class Scope(StrEnum):
    """What a key may do. `admin` implies the others."""

    INFERENCE = "inference"
    ADMIN = "admin"
    METRICS = "metrics"
    WORKER = "worker"


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the store keeps it: its view, and what helps a person to tell it from the others.

    last_4: the last four characters of the key. The end of its checksum: nothing secret.
    """

    view: KeyView
    name: str = ""
    last_4: str = ""
    created_at_s: float = 0.0


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key just made. plain is nowhere else: show it once."""

    plain: str
    stored: StoredKey

    @property
    def view(self) -> KeyView:
        return self.stored.view


class KeyStore(Protocol):
    """Where keys are kept."""

    def keys(self) -> tuple[StoredKey, ...]: ...
    def save_key(self, key: StoredKey) -> None: ...
    def revoke_key(self, key_id: str) -> bool: ...
    def drop_keys(self, key_ids: Sequence[str]) -> int: ...


def new_key(
    scopes: Iterable[str],
    *,
    models: Iterable[str] = (),
    name: str = "",
    expires_at_s: float | None = None,
    weight: float = 1.0,
    priority: Priority = Priority.NORMAL,
    clock: Callable[[], float] = time.time,
) -> NewKey:
    """Make a key. It is valid once its `stored` part has been saved.

    Raises:
        BadRequest: no scope, or one that is not known.
    """
    wanted = tuple(dict.fromkeys(scopes))
    known = {scope.value for scope in Scope}
    if not wanted or not known.issuperset(wanted):
        raise BadRequest(
            f"scopes: need one or more of {', '.join(Scope)}, got {', '.join(wanted) or 'none'}",
            param="scopes",
        )
    key_id = random_id()
    secret = base62(secrets.token_bytes(32))
    body = f"hst_{key_id}_{secret}"
    plain = body + _checksum(body.encode()).decode()
    view = KeyView(
        key_id=key_id,
        secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
        scopes=wanted,
        models=tuple(models),
        expires_at_s=expires_at_s,
        weight=weight,
        priority=priority,
    )
    stored = StoredKey(view=view, name=name, last_4=plain[-4:], created_at_s=clock())
    return NewKey(plain=plain, stored=stored)


def new_session(
    parent: KeyView,
    lasts_s: float,
    *,
    is_ticket: bool = False,
    clock: Callable[[], float] = time.time,
) -> NewKey:
    """Make a key that stands for another one for a while: whoever has it is that one.

    It ends with the other, at the latest. is_ticket: it can be exchanged for such a key, once, and
    do nothing else.
    """
    made = new_key(parent.scopes, name=_SESSION_NAME, clock=clock)
    ends_s = min(clock() + lasts_s, parent.expires_at_s or inf)
    view = msgspec.structs.replace(
        made.view, parent=parent.key_id, is_ticket=is_ticket, expires_at_s=ends_s
    )
    return NewKey(plain=made.plain, stored=msgspec.structs.replace(made.stored, view=view))


def require(key: KeyView, scope: str, model: str | None = None) -> None:
    """Return when this key may do that, with that model if one is named.

    Raises:
        InsufficientScope: it has neither this scope nor `admin`.
        ModelNotAllowed: it is limited to other models.
    """
    if scope not in key.scopes and Scope.ADMIN not in key.scopes:
        raise InsufficientScope(
            f"this key has no scope {scope!r} (it has: {', '.join(key.scopes)}); "
            f"an administrator can make another: hostler key create --scope {scope}"
        )
    if model is not None and key.models and model not in key.models:
        raise ModelNotAllowed(f"this key may not use model {model!r}", param="model")


class KeyRing:
    """The keys of one moment. A new list of keys is a new ring."""

    def __init__(self, keys: Iterable[KeyView], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        every = {key.key_id: key for key in keys}
        self._keys = {
            key.key_id.encode(): (_stood_for(key, every), bytes.fromhex(key.secret_hash))
            for key in every.values()
        }

    def identify(self, authorization: bytes | None, *, by_ticket: bool = False) -> KeyView:
        """Return the key of an `Authorization` header's value, `Bearer <key>`; for a session its parent.

        by_ticket: a ticket counts as well.

        Raises:
            InvalidAPIKey: absent, malformed, unknown, expired or revoked; the error is the same in
                each case, and so is the work for every well-formed key.
        """
        match = _HEADER.match(authorization) if authorization is not None else None
        if match is None:
            raise InvalidAPIKey
        body, key_id, secret, checksum = match.groups()
        if not hmac.compare_digest(_checksum(body), checksum):
            raise InvalidAPIKey
        key, secret_hash = self._keys.get(key_id, _MISS)
        proven = hmac.compare_digest(hashlib.sha256(secret).digest(), secret_hash)
        if not proven or key.revoked or (key.is_ticket and not by_ticket):
            raise InvalidAPIKey
        if key.expires_at_s is not None and key.expires_at_s <= self._clock():
            raise InvalidAPIKey
        return key

    require = staticmethod(require)


def key_id_of(authorization: bytes) -> str:
    """The id in an `Authorization` header's value that has been identified."""
    match = _HEADER.match(authorization)
    if match is None:
        raise InvalidAPIKey
    return match[2].decode()


def is_over(key: KeyView, now_s: float) -> bool:
    """Whether a session or a ticket has ended, so that nobody needs to know of it any more."""
    return bool(key.parent) and (key.revoked or (key.expires_at_s or inf) <= now_s)


def ensure_admin_key(store: KeyStore, paths: StatePaths, owner: str = "") -> tuple[str, bool]:
    """Return the administrator's key and whether it was made just now.

    Its plain text is in `admin.key` in the state folder (0600, nothing else in it), its hash in the
    store. Who owns that folder is the administrator. So when the file is gone, damaged, or holds a
    key that is revoked or unknown here, a new key is made and written there, and the one that was
    there before is revoked: at most one such key is valid, and a lost file heals by a restart.
    owner: of this folder, where the store is shared: each folder has a key of its own.

    Raises:
        StartupError: the file cannot be read or written, or is not a plain file of this user.
    """
    stored = store.keys()
    plain = _read_key_file(paths.admin_key)
    if plain is not None:
        try:
            held = KeyRing(key.view for key in stored).identify(b"Bearer " + plain.encode())
            require(held, Scope.ADMIN)
        except (InvalidAPIKey, InsufficientScope):
            plain = None
        else:
            return plain, False
    name = f"{ADMIN_KEY_NAME} of {owner}" if owner else ADMIN_KEY_NAME
    made = new_key([Scope.ADMIN], name=name)
    store.save_key(made.stored)
    crash_point(CrashPoint.ADMIN_KEY_SAVED)
    _write_key_file(paths.admin_key, made.plain)
    for key in stored:
        if key.name == name and not key.view.revoked:
            store.revoke_key(key.view.key_id)
    return made.plain, True


ADMIN_KEY_NAME = "admin.key"  # of the key in that file; no operator's begins so


def random_id() -> str:
    """Ten characters of base 62 that nothing else of ours is called by."""
    return "".join(secrets.choice(_DIGITS) for _ in range(_ID_CHARS))


def base62(data: bytes) -> str:
    """32 bytes in 43 characters that need no quoting anywhere."""
    number = int.from_bytes(data, "big")
    digits = []
    for _ in range(_SECRET_CHARS):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(digits)


def is_loopback(host: str) -> bool:
    """Whether a listener on this host can be reached from this machine alone. A name other than
    `localhost` counts as remote: what it means may change after we looked."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(config: ServerConfig, has_key: bool) -> None:
    """Return when this address may be bound.

    Raises:
        StartupError: it is open to the network and nobody allowed that, or no key guards it.
    """
    if is_loopback(config.host):
        return
    shown = config.host or "every address"
    if not config.is_tls and not config.allow_remote:
        raise StartupError(
            f"server.host {shown} can be reached from the network, and plain HTTP shows keys to "
            "whoever listens there; set server.tls_cert and server.tls_key, bind 127.0.0.1 and put a "
            "TLS proxy in front, or set server.allow_remote = true (--allow-remote) if that network "
            "is yours"
        )
    if not has_key:
        raise StartupError(
            f"server.host {shown} can be reached from the network and there is no valid API key; "
            "make one first: hostler key create"
        )


# Private

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = tuple((high + low).encode() for high in _DIGITS for low in _DIGITS)
_ID_CHARS, _SECRET_CHARS, _CRC_CHARS = 10, 43, 6
_HEADER = re.compile(
    rb"[Bb]earer (hst_([0-9A-Za-z]{%d})_([0-9A-Za-z]{%d}))([0-9A-Za-z]{%d})\Z"
    % (_ID_CHARS, _SECRET_CHARS, _CRC_CHARS)
)
_KEY_FILE_BYTES = 256
_SESSION_NAME = "console"

# What an unknown id is compared with: no secret has this hash, and the work is the same.
_MISS = (KeyView(key_id="", secret_hash="0" * 64, scopes=(), revoked=True), bytes(32))


def _stood_for(key: KeyView, every: Mapping[str, KeyView]) -> KeyView:
    """What somebody is who has this key: of a session or a ticket, its parent, for as long as it lasts."""
    if not key.parent:
        return key
    parent = every.get(key.parent)
    if parent is None or parent.parent:
        return msgspec.structs.replace(key, revoked=True)
    return msgspec.structs.replace(
        parent,
        is_ticket=key.is_ticket,
        revoked=parent.revoked or key.revoked,
        expires_at_s=min(parent.expires_at_s or inf, key.expires_at_s or inf),
    )


def _checksum(body: bytes) -> bytes:
    """CRC-32 in six base-62 digits: a typing mistake is refused before any look-up."""
    rest, low = divmod(zlib.crc32(body), 3844)
    high, middle = divmod(rest, 3844)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def _read_key_file(path: Path) -> str | None:
    """Return what the file holds; None when it is not there. A mode wider than 0600 is narrowed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartupError(
            f"admin key {path}: cannot be read ({error.strerror}); remove it and start again"
        ) from error
    try:
        facts = os.fstat(file)
        if not os.path.isfile(path) or facts.st_uid != os.getuid():
            raise StartupError(f"admin key {path}: not a plain file of this user; remove it")
        if facts.st_mode & 0o077:
            os.fchmod(file, 0o600)
        return os.read(file, _KEY_FILE_BYTES).decode("ascii", "replace").strip()
    finally:
        os.close(file)


def _write_key_file(path: Path, plain: str) -> None:
    """Put the key there in one step: a reader sees the old file or the whole new one."""
    try:
        write_private(path, plain.encode())
    except OSError as error:
        raise StartupError(
            f"admin key {path}: cannot be written ({error.strerror}); "
            "make room there or choose another folder with --state-dir"
        ) from error
