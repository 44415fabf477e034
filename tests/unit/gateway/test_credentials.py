"""When a browser's cookie counts as a key: when the console's own page asks, and never else."""

import pytest

from hostler.core.console import cookie_name
from hostler.gateway.credentials import credentials_of, session_of
from hostler.wire.http1 import Head

OURS = {
    b"host": b"127.0.0.1:8100",
    b"cookie": b"theme=dark; hostler_session_8100=hst_abc; other=1",
    b"x-hostler-console": b"1",
    b"origin": b"http://127.0.0.1:8100",
    b"sec-fetch-site": b"same-origin",
}


def head(**changes: bytes | None) -> Head:
    named = {name.replace("_", "-").encode(): value for name, value in changes.items()}
    fields = {name: value for name, value in {**OURS, **named}.items() if value is not None}
    return Head("POST", b"/api/v1/models", 11, list(fields.items()))


def test_our_own_page_is_believed() -> None:
    assert session_of(head()) == b"Bearer hst_abc"
    assert session_of(head(origin=None, sec_fetch_site=None)) == b"Bearer hst_abc"  # a GET


@pytest.mark.parametrize(
    "changes",
    [
        {"x_hostler_console": None},  # a form, a link, an image
        {"origin": b"http://evil.example"},
        {"origin": b"http://127.0.0.1:8101"},
        {"origin": b"null"},
        {"sec_fetch_site": b"cross-site"},
        {"sec_fetch_site": b"same-site"},
        {"sec_fetch_site": b"none"},
        {"host": b"evil.example:8100", "origin": b"http://127.0.0.1:8100"},
        {"cookie": None},
        {"cookie": b"hostler_session_8101=hst_abc"},
        {"cookie": b"xhostler_session_8100=hst_abc"},
    ],
)
def test_F116_what_another_page_makes_a_browser_send_is_nobody_s(
    changes: dict[str, bytes | None],
) -> None:
    assert session_of(head(**changes)) is None


def test_what_is_passed_on_to_the_controller_and_to_other_gateways_is_a_key() -> None:
    assert credentials_of(head()) == [(b"authorization", b"Bearer hst_abc")]
    assert credentials_of(head(authorization=b"Bearer hst_k")) == [
        (b"authorization", b"Bearer hst_k")
    ]
    assert credentials_of(head(x_api_key=b"hst_k")) == [(b"x-api-key", b"hst_k")]
    assert credentials_of(head(origin=b"http://evil.example")) == []


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8100", "hostler_session_8100"),
        ("models.example", "hostler_session"),
        ("[::1]:8100", "hostler_session_8100"),
        ("[::1]", "hostler_session"),
        ("", "hostler_session"),
    ],
)
def test_two_servers_of_one_machine_have_cookies_of_their_own(host: str, name: str) -> None:
    assert cookie_name(host) == name
