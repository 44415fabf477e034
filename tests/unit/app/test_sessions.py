"""Sessions and tickets: keys that stand for another one."""

import msgspec
import pytest

from hostler.app.auth import KeyRing, NewKey, is_over, key_id_of, new_key, new_session
from hostler.core.errors import InvalidAPIKey
from hostler.core.snapshot import KeyView


def shown(made: NewKey) -> bytes:
    return b"Bearer " + made.plain.encode()


def ring_of(*keys: KeyView, now_s: float = 100.0) -> KeyRing:
    return KeyRing(keys, clock=lambda: now_s)


def test_whoever_has_a_session_is_its_parent() -> None:
    parent = new_key(["inference"], models=["qwen"], weight=2.0)
    session = new_session(parent.view, 60.0, clock=lambda: 90.0)
    found = ring_of(parent.view, session.view).identify(shown(session))
    assert (found.key_id, found.scopes, found.models) == (
        parent.view.key_id,
        ("inference",),
        ("qwen",),
    )
    assert (found.weight, found.expires_at_s) == (2.0, 150.0)
    assert key_id_of(shown(session)) == session.view.key_id


@pytest.mark.parametrize("ends_s", [None, 95.0, 120.0])
def test_a_session_ends_by_itself_and_with_its_parent(ends_s: float | None) -> None:
    parent = new_key(["admin"], expires_at_s=ends_s)
    session = new_session(parent.view, 60.0, clock=lambda: 90.0)
    last_s = min(150.0, ends_s or 150.0)
    for now_s in (91.0, 94.0, 119.0, 149.0, 151.0):
        ring = ring_of(parent.view, session.view, now_s=now_s)
        if now_s < last_s:
            assert ring.identify(shown(session)).key_id == parent.view.key_id
        else:
            with pytest.raises(InvalidAPIKey):
                ring.identify(shown(session))


def revoked(key: KeyView) -> KeyView:
    return msgspec.structs.replace(key, revoked=True)


def test_a_session_is_nothing_without_its_parent() -> None:
    parent = new_key(["admin"])
    session = new_session(parent.view, 60.0, clock=lambda: 90.0)
    deeper = new_session(session.view, 60.0, clock=lambda: 90.0)
    for keys in (
        (session.view,),
        (revoked(parent.view), session.view),
        (parent.view, revoked(session.view)),
    ):
        with pytest.raises(InvalidAPIKey):
            ring_of(*keys).identify(shown(session))
    with pytest.raises(InvalidAPIKey):
        ring_of(parent.view, session.view, deeper.view).identify(shown(deeper))


def test_a_ticket_is_no_key() -> None:
    parent = new_key(["admin"])
    ticket = new_session(parent.view, 60.0, is_ticket=True, clock=lambda: 90.0)
    ring = ring_of(parent.view, ticket.view)
    with pytest.raises(InvalidAPIKey):
        ring.identify(shown(ticket))
    found = ring.identify(shown(ticket), by_ticket=True)
    assert (found.key_id, found.is_ticket) == (parent.view.key_id, True)


def test_what_ended_may_be_forgotten_and_a_plain_key_never() -> None:
    parent = new_key(["admin"], expires_at_s=10.0)
    session = new_session(parent.view, 60.0, clock=lambda: 0.0)
    assert session.view.expires_at_s == 10.0
    assert not is_over(session.view, 9.0)
    assert is_over(session.view, 10.0)
    assert is_over(revoked(session.view), 0.0)
    assert not is_over(revoked(parent.view), 99.0)
