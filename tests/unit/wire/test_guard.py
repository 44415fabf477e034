"""F89, F90, F91, F93, F96: limits and refusals of the server, without sockets."""

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.app.config import HttpLimits
from hostler.core.errors import HostlerError, InvalidAPIKey, Overloaded
from hostler.wire.http1 import Head, build_request, field_lines, parse_head
from hostler.wire.server import Exchange, HostPolicy
from tests.amounts import many
from tests.unit.wire.transport import Client

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


def head_with(target: bytes = b"/", host: bytes = b"Host: localhost\r\n") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + host + b"\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 1_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 50_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000, 414),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 99 + b"\r\n", 200),
        (b"GET /" + b"a" * 8_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 200),
    ],
)
@pytest.mark.parametrize("step", [1_000, 10_000_000])
def test_F89_a_head_over_the_limits_is_refused(data: bytes, status: int, step: int) -> None:
    client = Client().feed(*[data[at : at + step] for at in range(0, len(data), step)])
    assert client.statuses() == [status]
    assert client.has_ended == (status != 200)


@pytest.mark.parametrize(
    "target",
    [
        b"http://localhost/", b"HTTP://a/", b"//admin", b"/a//b", b"/a/../b", b"/..", b"/.", b"/a/.", b"/./a",
        b"/%2e%2e/a", b"/a%2Fb", b"/a%2fb", b"/a%5cb", b"/a\\b", b"/%00", b"/%0d%0a", b"/%zz", b"/a?%g",
        b"*", b"a", b"/a#b", b"localhost:80", b"/%7f",
    ],
)  # fmt: skip
def test_F93_a_target_that_is_not_a_plain_path_is_refused(target: bytes) -> None:
    client = Client().feed(head_with(target) + GET)
    assert client.statuses() == [400]
    assert client.has_ended


@pytest.mark.parametrize(
    "target", [b"/", b"/v1/models/a%20b", b"/a?b=//c/../%2e", b"/a.b/c..d/...", b"/~x/@y:z"]
)
def test_F93_a_plain_path_is_handed_over_raw(target: bytes) -> None:
    [(status, _, body)] = Client().feed(head_with(target)).answers()
    assert (status, body) == (200, target.partition(b"?")[0])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"", 400),
        (b"Host:\r\n", 400),
        (b"Host: localhost\r\nHost: localhost\r\n", 400),
        (b"Host: local host\r\n", 400),
        (b"Host: a/b\r\n", 400),
        (b"Host: a@localhost\r\n", 400),
        (b"Host: localhost:port\r\n", 400),
        (b"Host: localhost, evil\r\n", 400),
        (b"Host: evil.example\r\n", 421),
        (b"Host: localhost.evil.example\r\n", 421),
        (b"Host: 10.0.0.1\r\n", 421),
        (b"Host: 127.0.0.1.nip.io\r\n", 421),
        (b"Host: LOCALHOST:8100\r\n", 200),
        (b"Host: localhost.\r\n", 200),
        (b"Host: 127.0.0.1:1\r\n", 200),
        (b"Host: [::1]:8100\r\n", 200),
        (b"Host: [0:0:0:0:0:0:0:1]\r\n", 200),
        (b"Host: api.example\r\n", 200),
    ],
)
def test_F93_exactly_one_valid_and_known_host_is_needed(host: bytes, status: int) -> None:
    client = Client(hosts=HostPolicy(["Api.example"])).feed(head_with(host=host))
    assert client.statuses() == [status]


def test_F93_an_address_may_be_allowed_where_a_name_is_not() -> None:
    policy = HostPolicy(any_address=True)
    assert policy.allows(b"10.1.2.3:80")
    assert policy.allows(b"[fd00::1]:80")
    assert not policy.allows(b"rebinding.example")


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE", b"TRACK"])
def test_F93_methods_for_proxies_are_refused(method: bytes) -> None:
    assert Client().feed(method + GET.removeprefix(b"GET")).statuses() == [405]


def test_F93_an_upgrade_is_ignored() -> None:
    fields = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    client = Client().feed(GET[:-2] + fields + b"\r\n" + GET)
    assert client.statuses() == [200, 200]


LIMITS = HttpLimits(body_bytes=1000, all_bodies_bytes=1500)


def test_F91_a_body_is_refused_by_its_length_before_a_byte_of_it() -> None:
    client = Client(limits=LIMITS).feed(POST + b"Content-Length: 1001\r\n\r\n")
    assert client.statuses() == [413]
    assert client.has_ended


def test_F91_a_chunked_body_is_refused_by_count() -> None:
    client = Client(limits=LIMITS).feed(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(11):
        client.feed(b"64\r\n" + b"x" * 100 + b"\r\n")
    assert client.statuses() == [413]
    assert client.server.bodies_held == 0


def test_F91_a_compressed_body_is_refused() -> None:
    fields = b"Content-Length: 3\r\nContent-Encoding: gzip\r\n\r\n"
    assert Client().feed(POST + fields).statuses() == [415]


def test_F91_bodies_of_one_process_are_bounded_together_and_given_back() -> None:
    held: list[Exchange] = []
    first = Client(held.append, limits=LIMITS)
    first.feed(POST + b"Content-Length: 900\r\n\r\n" + b"x" * 900)
    second = Client(server=first.server).feed(POST + b"Content-Length: 900\r\n\r\n" + b"x" * 500)
    assert second.statuses() == []
    second.feed(b"x" * 400)
    [(status, headers, _)] = second.answers()
    assert (status, headers["retry-after"]) == (503, "1")
    assert first.server.bodies_held == 900
    held[0].send(200, b"")
    assert first.server.bodies_held == 0


def test_F91_on_head_judges_before_the_body_and_before_continue() -> None:
    heads: list[Head] = []

    def on_head(head: Head) -> HostlerError | None:
        heads.append(head)
        return None if head.header(b"authorization") else InvalidAPIKey()

    handled: list[Exchange] = []
    refused = Client(handled.append, on_head=on_head)
    refused.feed(POST + b"Content-Length: 10\r\nExpect: 100-continue\r\n\r\n")
    [(status, headers, _)] = refused.answers()
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert refused.has_ended
    welcome = Client(handled.append, on_head=on_head)
    fields = b"Content-Length: 10\r\nExpect: 100-continue\r\nAuthorization: x\r\n\r\n"
    welcome.feed(POST + fields)
    assert welcome.statuses() == [100]
    welcome.feed(b"0123456789")
    assert [exchange.request.body for exchange in handled] == [b"0123456789"]
    assert [head.path for head in heads] == ["/", "/"]


def test_F91_a_refused_request_whose_body_is_here_does_not_cost_the_connection() -> None:
    client = Client(on_head=lambda head: InvalidAPIKey() if head.method == "POST" else None)
    client.feed(POST + b"Content-Length: 34\r\n\r\n" + GET[:34] + GET)
    assert client.statuses() == [401, 200]
    assert not client.has_ended


def test_F90_a_head_a_body_and_silence_have_deadlines() -> None:
    client = Client()
    client.connection.check_deadlines(9.9, 0.0)
    assert not client.has_ended
    client.connection.check_deadlines(10.1, 0.0)
    assert (client.statuses(), client.has_ended) == ([], True)  # never said anything: no answer
    client = Client().feed(GET[:5], GET[5:9])
    client.connection.check_deadlines(10.1, 0.0)
    assert (client.statuses(), client.has_ended) == ([408], True)
    client = Client().feed(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 99_999)
    client.connection.check_deadlines(59.9, 0.0)
    assert client.statuses() == []
    client.connection.check_deadlines(60.1, 0.0)
    assert (client.statuses(), client.has_ended) == ([408], True)
    client = Client().feed(GET)
    client.connection.check_deadlines(74.9, 0.0)
    assert not client.has_ended
    client.connection.check_deadlines(75.1, 0.0)
    assert (client.statuses(), client.has_ended) == ([200], True)


def test_F90_a_dripping_body_is_cut_before_its_deadline() -> None:
    client = Client().feed(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 1_000)
    client.connection.check_deadlines(9.9, 0.0)
    assert client.statuses() == []
    client.connection.check_deadlines(10.1, 0.0)
    assert client.statuses() == [408]


def test_F48_a_reader_that_takes_nothing_is_cut_and_its_handler_told_once() -> None:
    gone: list[int] = []

    def handle(exchange: Exchange) -> None:
        exchange.on_gone = lambda: gone.append(1)
        exchange.start(200, [], None)
        exchange.write(b"x" * 1000)

    client = Client(handle).feed(GET)
    client.transport.waiting = 500
    client.connection.check_deadlines(1.0, 0.0)
    client.transport.waiting = 400
    client.connection.check_deadlines(20.0, 0.0)
    client.connection.check_deadlines(49.0, 0.0)
    assert not client.transport.is_cut
    client.connection.check_deadlines(50.1, 0.0)
    assert client.transport.is_cut
    client.connection.connection_lost(None)
    assert gone == [1]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [(b"abc-DEF_09", True), (b"a" * 64, True), (b"a" * 65, False), (b"a b", False), (b"", False)],
)
def test_F96_a_request_id_is_echoed_only_when_it_is_a_safe_one(given: bytes, is_kept: bool) -> None:
    [(_, headers, _)] = Client().feed(GET[:-2] + b"X-Request-Id: " + given + b"\r\n\r\n").answers()
    assert (headers["x-request-id"] == given.decode()) == is_kept
    assert headers["x-request-id"]


def test_F96_a_header_with_a_line_break_cannot_be_sent() -> None:
    for value in (b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0"):
        with pytest.raises(ValueError, match="holds CR"):
            field_lines([(b"x", value)])
        client = Client(lambda exchange, v=value: exchange.send(200, b"", [(b"x", v)])).feed(GET)  # type: ignore[misc]
        assert client.statuses() == [500]
    for path in ("/a b", "/a\r\nx: y", "/\n"):
        with pytest.raises(ValueError, match="white space"):
            build_request("GET", path, "localhost", [], b"")


class Fields:
    """What httptools reads from a request's head."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))


token = st.text("abcXYZ-_.!#$%&'*+^`|~019", min_size=1, max_size=8).map(str.encode)
value = st.text('abc \t:;,="\\/()[]{}<>?@\x80\xff019', max_size=12).map(
    lambda text: text.encode("latin-1")
)


@settings(max_examples=many(1000), deadline=None)
@given(fields=st.lists(st.tuples(token, value), max_size=8), tail=st.text("ab/?=&-._~", max_size=9))
def test_F88_heads_taken_here_read_the_same_in_llhttp(
    fields: list[tuple[bytes, bytes]], tail: str
) -> None:
    lines = b"".join(b"x-%b:%b\r\n" % field for field in fields)
    raw = b"POST /" + tail.encode() + b" HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
    try:
        head = parse_head(raw, 100, Head)
    except HostlerError:
        return
    other = Fields(raw)
    assert (other.url, other.headers) == (head.target, head.headers)
    assert head.fields.keys() == dict(other.headers).keys()


def test_errors_carry_retry_after_where_the_contract_asks() -> None:
    client = Client(lambda exchange: exchange.send_error(Overloaded(retry_after_s=7))).feed(GET)
    [(status, headers, _)] = client.answers()
    assert (status, headers["retry-after"]) == (503, "7")
