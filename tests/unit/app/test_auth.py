"""Keys: made, checked, refused alike; the admin key's file; what may be bound."""

import ast
import inspect
import os
import re
import stat
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.app import auth
from hostler.app.auth import (
    KeyRing,
    Scope,
    check_bind,
    ensure_admin_key,
    is_loopback,
    new_key,
    require,
)
from hostler.app.config import ServerConfig
from hostler.app.paths import StatePaths
from hostler.core.errors import (
    BadRequest,
    ConfigError,
    HostlerError,
    InsufficientScope,
    InvalidAPIKey,
    ModelNotAllowed,
    StartupError,
)
from hostler.storage.memory import MemoryStore

SCANNER = re.compile(r"hst_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}")


def bearer(plain: str) -> bytes:
    return f"Bearer {plain}".encode()


def test_F110_a_key_has_its_documented_form_and_only_its_hash_is_kept() -> None:
    made = new_key(["inference"], models=["qwen"], clock=lambda: 5.0)
    assert SCANNER.fullmatch(made.plain)
    secret = made.plain.split("_")[2][:43]
    assert secret not in repr(made.stored)
    assert re.fullmatch(r"[0-9a-f]{64}", made.view.secret_hash)
    assert (made.stored.last_4, made.stored.created_at_s) == (made.plain[-4:], 5.0)


def test_F110_keys_do_not_repeat_and_use_every_digit() -> None:
    keys = [new_key(["inference"]) for _ in range(2_000)]
    assert len({key.view.key_id for key in keys}) == len({key.plain for key in keys}) == 2_000
    secrets = "".join(key.plain.split("_")[2][1:43] for key in keys)
    shares = [secrets.count(digit) / len(secrets) for digit in set(secrets)]
    assert len(shares) == 62
    assert max(shares) < 1.2 / 62
    assert min(shares) > 0.8 / 62


def test_a_key_is_known_by_its_header() -> None:
    made = new_key(["inference"])
    ring = KeyRing([new_key(["admin"]).view, made.view])
    assert ring.identify(bearer(made.plain)) == made.view
    assert ring.identify(b"bearer " + made.plain.encode()) == made.view


def wrong_headers() -> list[bytes | None]:
    known, other = new_key(["inference"]), new_key(["inference"])
    good = bearer(known.plain)
    mixed = f"hst_{known.view.key_id}_{other.plain.split('_')[2][:43]}"
    checked = mixed.encode() + auth._checksum(mixed.encode())
    return [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        good[7:],
        b"Basic " + good[7:],
        b" " + good,
        good + b" ",
        good + b"\n",
        good[:-1],
        good[:-1] + (b"0" if good[-1:] != b"0" else b"1"),
        good.swapcase(),
        good.replace(b"hst_", b"hst-"),
        bearer(other.plain),
        b"Bearer " + checked,
        b"Bearer ' OR 1=1 --",
        b"Bearer " + b"a" * 100_000,
        "Bearer hst_ключ".encode(),
    ]


@pytest.mark.parametrize("header", wrong_headers(), ids=count())
def test_F111_every_wrong_header_gets_the_same_error(header: bytes | None) -> None:
    ring = KeyRing([new_key(["inference"]).view])
    with pytest.raises(InvalidAPIKey) as caught:
        ring.identify(header)
    assert caught.value.message == InvalidAPIKey().message


@given(st.binary(max_size=120))
def test_no_bytes_but_a_key_are_accepted(header: bytes) -> None:
    with pytest.raises(InvalidAPIKey):
        KeyRing([new_key(["inference"]).view]).identify(header)


def test_a_key_ends_at_its_expiry_and_when_revoked() -> None:
    now_s = 100.0
    made = new_key(["inference"], expires_at_s=101.0)
    ring = KeyRing([made.view], clock=lambda: now_s)
    assert ring.identify(bearer(made.plain)).key_id == made.view.key_id
    now_s = 101.0
    with pytest.raises(InvalidAPIKey):
        ring.identify(bearer(made.plain))
    store = MemoryStore()
    forever = new_key(["inference"])
    store.save_key(forever.stored)
    store.revoke_key(forever.view.key_id)
    stored = store.keys()
    with pytest.raises(InvalidAPIKey):
        KeyRing(key.view for key in stored).identify(bearer(forever.plain))


def test_scopes_are_needed_and_admin_implies_them() -> None:
    for scope in Scope:
        require(new_key([scope]).view, scope)
        require(new_key([Scope.ADMIN]).view, scope)
        for other in {*Scope} - {scope, Scope.ADMIN}:
            with pytest.raises(InsufficientScope):
                require(new_key([other]).view, scope)


def test_a_key_limited_to_models_may_use_these_alone() -> None:
    key = new_key(["inference"], models=["a", "b/c"]).view
    require(key, "inference", "b/c")
    require(new_key(["inference"]).view, "inference", "anything")
    with pytest.raises(ModelNotAllowed):
        KeyRing.require(key, "inference", "b")


@pytest.mark.parametrize("scopes", [[], ["root"], ["inference", "Admin"], [""]])
def test_a_key_without_a_known_scope_is_not_made(scopes: list[str]) -> None:
    with pytest.raises(BadRequest):
        new_key(scopes)


def per_call_s(call: Callable[[], object], calls: int) -> float:
    began_s = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began_s) / calls


def test_a_check_is_no_slow_password_hash() -> None:
    made = new_key(["inference"])
    ring = KeyRing([*(new_key(["inference"]).view for _ in range(1_000)), made.view])
    header = bearer(made.plain)
    best_s = min(per_call_s(lambda: ring.identify(header), 5_000) for _ in range(7))
    assert best_s < 4e-5  # it takes 2 to 4 µs; a salted slow hash takes 10,000 times that


def test_F111_a_known_and_an_unknown_id_take_the_same_time() -> None:
    known = new_key(["inference"])
    ring = KeyRing([known.view])
    body = f"hst_{known.view.key_id}_{'x' * 43}".encode()
    wrong_secret = b"Bearer " + body + auth._checksum(body)
    unknown = bearer(new_key(["inference"]).plain)

    def refused(header: bytes) -> Callable[[], None]:
        def call() -> None:
            try:
                ring.identify(header)
            except HostlerError:
                return

        return call

    def difference() -> float:
        times_s: dict[bytes, list[float]] = {wrong_secret: [], unknown: []}
        for _ in range(200):  # in turn, so that a busy machine slows both
            for header, found in times_s.items():
                found.append(per_call_s(refused(header), 100))
        one, other = (statistics.median(found) for found in times_s.values())
        return abs(one - other) / max(one, other)

    # A difference that is there shows in every round; one that a neighbour makes does not.
    assert any(difference() < 0.03 for _ in range(6))


def test_F111_no_secret_is_compared_with_an_operator() -> None:
    tree = ast.parse(inspect.getsource(auth.KeyRing))
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            assert not names & {"secret", "secret_hash", "checksum", "proven"}


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[StatePaths]:
    made = StatePaths(tmp_path / "state")
    made.create()
    yield made
    made.leave()


def admin_keys(store: MemoryStore) -> list[bool]:
    """Whether each key of the file was revoked, oldest first."""
    stored = store.keys()
    return [key.view.revoked for key in stored if key.name == auth.ADMIN_KEY_NAME]


def test_the_admin_key_is_made_once_and_kept_for_its_owner_alone(paths: StatePaths) -> None:
    store = MemoryStore()
    old = os.umask(0)
    try:
        plain, made = ensure_admin_key(store, paths)
    finally:
        os.umask(old)
    assert made
    assert paths.admin_key.read_bytes() == plain.encode()
    assert stat.S_IMODE(paths.admin_key.stat().st_mode) == 0o600
    assert ensure_admin_key(store, paths) == (plain, False)
    stored = store.keys()
    key = KeyRing(one.view for one in stored).identify(bearer(plain))
    assert key.scopes == ("admin",)
    assert [one.name for one in paths.state_dir.iterdir() if one.name.startswith(".")] == []


def test_a_lost_or_damaged_admin_key_is_replaced_and_the_old_one_revoked(
    paths: StatePaths,
) -> None:
    store = MemoryStore()
    first, _ = ensure_admin_key(store, paths)
    other = new_key(["inference"])
    store.save_key(other.stored)
    for content in (None, b"", b"\xff\xfe", first.encode()[:-1], other.plain.encode()):
        before = paths.admin_key.read_text()
        paths.admin_key.unlink()
        if content is not None:
            paths.admin_key.write_bytes(content)
        plain, made = ensure_admin_key(store, paths)
        assert made
        assert paths.admin_key.read_text() == plain != before
    assert admin_keys(store).count(False) == 1
    stored = store.keys()
    ring = KeyRing(key.view for key in stored)
    with pytest.raises(InvalidAPIKey):
        ring.identify(bearer(first))
    assert ring.identify(bearer(plain)).scopes == ("admin",)
    assert ring.identify(bearer(other.plain)).scopes == ("inference",)


def test_a_revoked_admin_key_is_replaced_at_the_next_start(paths: StatePaths) -> None:
    store = MemoryStore()
    first, _ = ensure_admin_key(store, paths)
    store.revoke_key(store.keys()[0].view.key_id)
    second, made = ensure_admin_key(store, paths)
    assert made
    assert second != first


def test_the_admin_keys_file_is_narrowed_and_a_link_refused(paths: StatePaths) -> None:
    store = MemoryStore()
    plain, _ = ensure_admin_key(store, paths)
    paths.admin_key.chmod(0o644)
    assert ensure_admin_key(store, paths) == (plain, False)
    assert stat.S_IMODE(paths.admin_key.stat().st_mode) == 0o600
    paths.admin_key.rename(paths.state_dir / "elsewhere")
    paths.admin_key.symlink_to(paths.state_dir / "elsewhere")
    with pytest.raises(StartupError, match=r"admin\.key"):
        ensure_admin_key(store, paths)
    paths.admin_key.unlink()
    paths.admin_key.mkdir()
    with pytest.raises(StartupError, match="not a plain file"):
        ensure_admin_key(store, paths)


LOOPBACK = ["127.0.0.1", "127.1.2.3", "localhost", "::1"]
REMOTE = ["0.0.0.0", "::", "192.168.1.5", "", "example.org", "localhost.example.org", "2130706433"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_may_always_be_bound(host: str) -> None:
    assert is_loopback(host)
    check_bind(ServerConfig(host=host), has_key=False)


@pytest.mark.parametrize("host", REMOTE)
def test_F100_any_other_address_needs_leave_and_a_key(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(StartupError, match="allow_remote"):
        check_bind(ServerConfig(host=host), has_key=True)
    with pytest.raises(StartupError, match="no valid API key"):
        check_bind(ServerConfig(host=host, allow_remote=True), has_key=False)
    check_bind(ServerConfig(host=host, allow_remote=True), has_key=True)
    tls = ServerConfig(host=host, tls_cert="a.pem", tls_key="b.pem")
    check_bind(tls, has_key=True)
    with pytest.raises(StartupError, match="no valid API key"):
        check_bind(tls, has_key=False)


def test_a_certificate_without_its_key_is_no_tls() -> None:
    with pytest.raises(ConfigError, match="TLS needs both"):
        ServerConfig(tls_cert="a.pem")
    with pytest.raises(ConfigError, match="TLS needs both"):
        ServerConfig(tls_key="a.pem")
