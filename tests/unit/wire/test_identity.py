"""Names of identities: each has one reading, and nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.wire.identity import CONTROLLER, Identity, Peer, is_identity_id, read_name

IDS = st.from_regex(r"[a-z0-9]{4,40}", fullmatch=True)


@given(role=st.sampled_from([Peer.HOST, Peer.GATEWAY]), held=IDS)
def test_a_name_is_read_as_whom_it_was_made_for(role: Peer, held: str) -> None:
    identity = Identity(role, held)
    assert is_identity_id(held)
    assert read_name(identity.name) == identity
    assert len(identity.name) < 254
    assert str(identity) == f"{role} {held}"


def test_the_controller_has_one_name() -> None:
    assert CONTROLLER.name == "controller.hostler.internal"
    assert read_name(CONTROLLER.name) == CONTROLLER
    assert str(CONTROLLER) == "controller"


@given(st.text(max_size=80))
def test_any_other_text_names_nobody(text: str) -> None:
    found = read_name(text)
    assert found is None or found.name == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "host.hostler.internal",
        "abc.host.hostler.internal",
        "ABCD.host.hostler.internal",
        "*.host.hostler.internal",
        "a.bcde.host.hostler.internal",
        "abcd.host.hostler.internal.",
        "abcd.host.hostler.internal.example.org",
        "abcd.controller.hostler.internal",
        "abcd.worker.hostler.internal",
        "controller.hostler.internal\n",
        "abcd.host.hostler.internal\x00",
        "xabcd-host.hostler.internal",
        f"{'a' * 41}.host.hostler.internal",
    ],
)
def test_what_is_nearly_a_name_names_nobody(name: str) -> None:
    assert read_name(name) is None
