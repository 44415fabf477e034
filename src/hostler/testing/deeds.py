"""Deeds: what a test did to a server, so that the oracle can tell what must be true afterwards.

The admin writes with their answers (I22), and the processes that the test itself sent a signal to.
"""

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

_MODELS, _KEYS, _APPLY = "/api/v1/models", "/api/v1/keys", "/api/v1/apply"
_THERE_ALREADY = 409
_COMPARED = ("wish", "engine", "source", "params", "replicas", "concurrency")


class Write(msgspec.Struct, kw_only=True):
    """One order. status: None while nobody knows what came of it, and for ever when no answer came."""

    method: str
    path: str
    body: Any = None
    began_s: float
    ended_s: float | None = None
    status: int | None = None
    answer: Any = None

    @property
    def is_done(self) -> bool:
        return self.status is not None and self.status < 300

    @property
    def is_refused(self) -> bool:
        return self.status is not None and self.status >= 400

    @property
    def model(self) -> str:
        """The model that the order names, "" for another kind of order."""
        path = urlsplit(self.path).path
        if path.startswith(f"{_MODELS}/"):
            return unquote(path.removeprefix(f"{_MODELS}/"))
        if path in (_MODELS, _APPLY) and isinstance(self.body, Mapping):
            return str(self.body.get("model", ""))
        return ""

    @property
    def is_deletion(self) -> bool:
        given = parse_qs(urlsplit(self.path).query).get("delete", ["false"])
        return self.method == "DELETE" and bool(self.model) and given[-1] in ("true", "1")


class Deeds:
    """What a test did, in its order. Several threads may write at once.

    hit: the pids it sent a signal to. staged: ids of instances that the test itself started beside the
    server's; the server is not blamed for their processes (I17, I18).
    """

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.hit: set[int] = set()
        self.staged: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, method: str, path: str, body: Any) -> Write | None:
        """Note an order that is about to be sent; None for what changes nothing."""
        if method not in ("POST", "PUT", "DELETE") or not path.startswith("/api/v1/"):
            return None
        write = Write(method=method, path=path, body=body, began_s=time.monotonic())
        with self._lock:
            self.writes.append(write)
        return write

    def end(self, write: Write, status: int, data: bytes) -> None:
        """Note what came of an order."""
        write.ended_s = time.monotonic()
        try:
            write.answer = msgspec.json.decode(data)
        except msgspec.MsgspecError:
            write.answer = None
        write.status = status


def check_writes(
    writes: Iterable[Write],
    deployments: Mapping[str, Mapping[str, Any]],
    keys: Mapping[str, bool],
    declared: Collection[str] = (),
) -> list[str]:
    """I22: what was acknowledged is there, what was refused left no trace.

    deployments: by name, as they stand now. keys: id → revoked. declared: names that the settings
    wish; they are there whatever the orders say.
    """
    made = list(writes)
    found = check_keys(made, keys)
    for name in sorted({write.model for write in made} - {""}):
        mine = [write for write in made if write.model == name]
        now = deployments.get(name)
        fault = _fault(mine, now)
        if now is not None and name not in declared and _only_refused(mine):
            fault = f"was refused ({mine[-1].status}), and is there"
        if fault:
            found.append(f"I22 model {name!r} {fault}")
    return found


def check_keys(writes: Iterable[Write], keys: Mapping[str, bool]) -> list[str]:
    """I22 for keys: one that was made is there, one that was revoked stays revoked."""
    found = []
    for write in writes:
        path = urlsplit(write.path).path
        if not write.is_done or not path.startswith(_KEYS):
            continue
        if write.method == "POST":
            key_id = write.answer["info"]["key_id"]
            if key_id not in keys:
                found.append(f"I22 key {key_id} was made, and is not there")
        elif not keys.get(path.removeprefix(f"{_KEYS}/"), False):
            found.append(f"I22 key {path.removeprefix(f'{_KEYS}/')} was revoked, and is not")
    return found


# Private


def _fault(mine: list[Write], now: Mapping[str, Any] | None) -> str:
    """What is wrong with one model, "" when nothing is or nobody can tell."""
    deletions = [write for write in mine if write.is_deletion and not write.is_refused]
    last = max(deletions, key=lambda write: write.began_s, default=None)
    if last is not None:
        if last.ended_s is None or any(
            _crossed(last, write) for write in mine if write is not last
        ):
            return ""
        mine = [write for write in mine if write.began_s > last.ended_s]
        if now is not None and last.is_done and not any(not write.is_refused for write in mine):
            return "was deleted, and is there"
    told = [
        write.answer["model"]["deployment"]
        for write in mine
        if write.is_done and isinstance(write.answer, Mapping) and "model" in write.answer
    ]
    if not told:
        return ""
    newest = max(told, key=lambda deployment: deployment["generation"])
    if now is None:
        return f"was ordered (generation {newest['generation']}), and is not there"
    if now["generation"] < newest["generation"]:
        return f"was at generation {newest['generation']}, and is at {now['generation']}"
    if now["generation"] == newest["generation"]:
        differ = [field for field in _COMPARED if now.get(field) != newest.get(field)]
        if differ:
            return f"differs from what was acknowledged in {', '.join(differ)}"
    return ""


def _crossed(one: Write, other: Write) -> bool:
    """Whether two orders were under way at once, so that nobody knows which came first."""
    if other.is_refused:
        return False
    one_ends, other_ends = (x.ended_s if x.ended_s is not None else 1e18 for x in (one, other))
    return one.began_s <= other_ends and other.began_s <= one_ends


def _only_refused(mine: list[Write]) -> bool:
    """Whether every order that could have made a model was refused; not because it was there."""
    makers = [w for w in mine if w.method == "POST" and urlsplit(w.path).path == _MODELS]
    return bool(makers) and all(w.is_refused and w.status != _THERE_ALREADY for w in makers)
