"""MemoryMembers: the part of `MemoryStore` that keeps join tokens, and the machines that came in by them."""

import threading

import msgspec

from hostler.app.tokens import KEPT_S, StoredHost, StoredToken, admitted


class MemoryMembers:
    """As `storage.members.SqlMembers`, in dictionaries; its lock is the whole store's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, StoredToken] = {}
        self._hosts: dict[str, StoredHost] = {}

    def tokens(self) -> tuple[StoredToken, ...]:
        with self._lock:
            return tuple(
                sorted(self._tokens.values(), key=lambda one: (one.created_at_s, one.token_id))
            )

    def save_token(self, token: StoredToken) -> None:
        with self._lock:
            self._tokens[token.token_id] = token
            for old in tuple(self._tokens.values()):
                if old.expires_at_s < token.created_at_s - KEPT_S:
                    del self._tokens[old.token_id]

    def revoke_token(self, token_id: str) -> bool:
        with self._lock:
            if (token := self._tokens.get(token_id)) is None:
                return False
            self._tokens[token_id] = msgspec.structs.replace(token, revoked=True)
            return True

    def admit(self, host: StoredHost, now_s: float) -> StoredHost:
        with self._lock:
            token = self._tokens.get(host.token_id)
            admission = admitted(token, self._hosts.values(), host, now_s)
            if admission.is_news:
                self._tokens[admission.token.token_id] = admission.token
                self._hosts[admission.host.host_id] = admission.host
            return admission.host

    def hosts(self) -> tuple[StoredHost, ...]:
        with self._lock:
            return tuple(
                sorted(self._hosts.values(), key=lambda one: (one.joined_at_s, one.host_id))
            )

    def save_host(self, host: StoredHost) -> bool:
        with self._lock:
            before = self._hosts.get(host.host_id)
            if before is not None and before.is_removed:
                return False
            self._hosts[host.host_id] = host
            return True

    def remove_host(self, host_id: str, now_s: float) -> bool:
        with self._lock:
            host = self._hosts.get(host_id)
            if host is None or host.is_removed:
                return False
            self._hosts[host_id] = msgspec.structs.replace(host, removed_at_s=now_s)
            for old in tuple(self._hosts.values()):
                if old.removed_at_s is not None and old.removed_at_s < now_s - KEPT_S:
                    del self._hosts[old.host_id]
            return True
