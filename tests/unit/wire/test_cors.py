"""Which web pages may use the server: none, those listed, or all; by literal bytes."""

import pytest

from hostler.app.config import HttpLimits, ServerConfig
from hostler.core.errors import ConfigError, HostlerError, InvalidAPIKey
from hostler.wire.cors import ASKED, METHODS, SHOWN, Cors
from hostler.wire.server import Exchange, Head, HttpServer
from tests.unit.wire.transport import Client

APP, OTHER = b"https://app.example", b"https://evil.example"
BODY = b"Content-Length: 2\r\n\r\n{}"


def ask(method: bytes, origin: bytes | None, fields: bytes = b"", path: bytes = b"/v1/x") -> bytes:
    shown = b"Origin: " + origin + b"\r\n" if origin is not None else b""
    end = BODY if method == b"POST" else b"\r\n"
    return method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + shown + fields + end


def preflight(origin: bytes | None, path: bytes = b"/v1/x") -> bytes:
    return ask(b"OPTIONS", origin, b"Access-Control-Request-Method: POST\r\n", path)


def handle(exchange: Exchange) -> None:
    assert exchange.request.method != "OPTIONS"
    exchange.send(200, b"ok")


def need_key(head: Head) -> HostlerError | None:
    return None if b"authorization" in head.fields else InvalidAPIKey()


def client(*origins: str) -> Client:
    cors = Cors(origins) if origins else None
    return Client(server=HttpServer(handle, limits=HttpLimits(), on_head=need_key, cors=cors))


KEY = b"Authorization: Bearer x\r\n"


def test_a_preflight_of_a_listed_page_is_answered_without_a_key() -> None:
    [(status, headers, body)] = client(APP.decode()).feed(preflight(APP)).answers()
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == APP.decode()
    assert headers["access-control-allow-methods"] == METHODS.decode()
    assert headers["access-control-allow-headers"] == ASKED.decode()
    assert headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in headers
    assert "content-length" not in headers


@pytest.mark.parametrize(
    "origin", [OTHER, b"null", b"", None, APP + b".evil", b"HTTPS://APP.EXAMPLE"]
)
def test_a_preflight_of_any_other_page_learns_nothing(origin: bytes | None) -> None:
    [(status, headers, _)] = client(APP.decode()).feed(preflight(origin)).answers()
    assert status == 401
    assert not [name for name in headers if name.startswith("access-control")]
    assert headers["vary"] == "origin"


def test_an_answer_shows_itself_to_a_listed_page_alone() -> None:
    for origin in (APP, OTHER, None):
        [(status, headers, body)] = client(APP.decode()).feed(ask(b"POST", origin, KEY)).answers()
        assert (status, body, headers["vary"]) == (200, b"ok", "origin")
        if origin == APP:
            assert headers["access-control-allow-origin"] == APP.decode()
            assert headers["access-control-expose-headers"] == SHOWN.decode()
        else:
            assert not [name for name in headers if name.startswith("access-control")]


def test_errors_show_themselves_too() -> None:
    keyless = client(APP.decode()).feed(ask(b"POST", APP))
    [(status, headers, _)] = keyless.answers()
    assert (status, headers["access-control-allow-origin"]) == (401, APP.decode())
    large = ask(b"POST", APP, KEY).replace(b"Length: 2", b"Length: 99999999")
    [(status, headers, _)] = client(APP.decode()).feed(large).answers()
    assert (status, headers["access-control-allow-origin"]) == (413, APP.decode())


def test_every_page_may_be_let_in() -> None:
    for data, status in ((preflight(OTHER), 204), (ask(b"POST", OTHER, KEY), 200)):
        [(told, headers, _)] = client("*").feed(data).answers()
        assert (told, headers["access-control-allow-origin"]) == (status, "*")
        assert "vary" not in headers


def test_F116_the_control_plane_is_for_no_page() -> None:
    for origins in (("*",), (APP.decode(),)):
        for data in (preflight(APP, b"/api/v1/models"), ask(b"POST", APP, b"", b"/api/v1/models")):
            [(status, headers, _)] = client(*origins).feed(data).answers()
            assert status == 401
            assert not [name for name in headers if name.startswith("access-control")]


def test_F116_without_the_setting_there_is_nothing_of_it() -> None:
    for data in (preflight(APP), ask(b"POST", APP, KEY)):
        [(_, headers, _)] = client().feed(data).answers()
        assert not [name for name in headers if name.startswith(("access-control", "vary"))]


def test_options_that_are_no_preflight_are_the_handlers() -> None:
    seen: list[str] = []
    server = HttpServer(
        lambda e: (seen.append(e.request.method), e.send(405, b""))[1],  # type: ignore[func-returns-value]
        limits=HttpLimits(),
        cors=Cors(["*"]),
    )
    assert Client(server=server).feed(ask(b"OPTIONS", APP)).statuses() == [405]
    assert seen == ["OPTIONS"]


@pytest.mark.parametrize(
    "origin",
    ["app.example", "https://app.example/", "https://App.example", "null", "https://*.a.b", ""],
)
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigError, match="cors_origins"):
        ServerConfig(cors_origins=(origin,))


def test_origins_as_browsers_write_them_are_taken() -> None:
    ServerConfig(
        cors_origins=(
            "*",
            "https://a.b",
            "http://localhost:3000",
            "http://[::1]:80",
            "tauri://localhost",
        )
    )
