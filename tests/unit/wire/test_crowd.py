"""F66: who goes when there is no room, and whose connections are counted."""

import pytest

from hostler.app.config import HttpLimits
from hostler.wire.server import Exchange, HttpServer
from tests.unit.wire.transport import Client

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def hold(exchange: Exchange) -> None:
    """Answer later, or never."""


def server_for(connections: int = 4096, per_client: int = 512) -> HttpServer:
    limits = HttpLimits(connections=connections, connections_per_client=per_client)
    return HttpServer(hold, limits=limits)


def test_F66_the_connection_idle_longest_goes_for_a_new_one() -> None:
    server = server_for(connections=3)
    server.now_s = 1.0
    first = Client(server=server)
    server.now_s = 2.0
    second = Client(server=server)
    server.now_s = 3.0
    third = Client(server=server)
    server.now_s = 4.0
    fourth = Client(server=server)
    assert first.transport.is_cut
    assert not any(one.has_ended for one in (second, third, fourth))
    fourth.feed(GET)  # busy from now on
    second.feed(GET)
    fifth = Client(server=server)
    assert third.transport.is_cut
    assert not any(one.has_ended for one in (second, fourth, fifth))
    assert (len(server.crowd), server.crowd.evicted) == (3, 2)


def test_F66_an_answered_connection_is_idle_anew() -> None:
    server = HttpServer(lambda e: e.send(200, b""), limits=HttpLimits(connections=2))
    server.now_s = 1.0
    old = Client(server=server)
    server.now_s = 2.0
    silent = Client(server=server)
    server.now_s = 3.0
    old.feed(GET)
    Client(server=server)
    assert silent.transport.is_cut
    assert not old.has_ended


@pytest.mark.parametrize(
    "data", [GET, GET[:9], b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
)
def test_F66_where_nobody_is_idle_the_new_one_is_refused(data: bytes) -> None:
    server = server_for(connections=2)
    for _ in range(2):
        Client(server=server).feed(data)
    late = Client(server=server)
    [(status, headers, _)] = late.answers()
    assert (status, headers["retry-after"]) == (503, "1")
    assert (server.crowd.turned_away, server.crowd.evicted) == (1, 0)


def test_F66_one_address_has_its_own_limit_and_harms_no_other() -> None:
    server = server_for(per_client=2)
    other = Client(server=server, address="10.0.0.2")
    mine = [Client(server=server, address="10.0.0.1") for _ in range(2)]
    mine[0].feed(GET)
    Client(server=server, address="10.0.0.1").feed(GET)
    assert mine[1].transport.is_cut  # its own idle one, not that of the other
    refused = Client(server=server, address="10.0.0.1")
    assert refused.statuses() == [503]
    assert not other.has_ended
    for one in mine:
        one.connection.connection_lost(None)
    refused.connection.connection_lost(None)
    assert Client(server=server, address="10.0.0.1").statuses() == []


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", ""])
def test_F66_this_machines_own_programs_are_not_counted_by_address(address: str) -> None:
    server = server_for(per_client=1)
    clients = [Client(server=server, address=address).feed(GET) for _ in range(5)]
    assert not any(client.has_ended for client in clients)


def test_F66_addresses_of_one_network_count_as_one_and_mapped_ones_as_what_they_are() -> None:
    server = server_for(per_client=2)
    for address in ("fd00:1::1", "fd00:1::2"):
        Client(server=server, address=address).feed(GET)
    assert Client(server=server, address="fd00:1::ffff:3%eth0").statuses() == [503]
    assert Client(server=server, address="fd00:2::3").statuses() == []
    for address in ("10.0.0.1", "::ffff:10.0.0.1"):
        Client(server=server, address=address).feed(GET)
    assert Client(server=server, address="10.0.0.1").statuses() == [503]


def test_F66_the_limit_of_an_address_can_be_taken_away() -> None:
    server = server_for(per_client=0)
    clients = [Client(server=server, address="10.0.0.1").feed(GET) for _ in range(600)]
    assert not any(client.has_ended for client in clients)


def test_no_memory_of_addresses_is_left_behind() -> None:
    server = server_for()
    for number in range(100):
        Client(server=server, address=f"10.0.0.{number}").connection.connection_lost(None)
    assert len(server.crowd) == 0
    assert server.crowd._by_client == {}


def test_a_connection_is_closed_after_as_many_requests_as_are_allowed() -> None:
    limits = HttpLimits(requests_per_connection=3)
    client = Client(limits=limits).feed(GET * 5)
    found = [headers.get("connection") for _, headers, _ in client.answers()]
    assert found == [None, None, "close"]
    assert client.has_ended
    assert len(Client(limits=HttpLimits(requests_per_connection=1)).feed(GET * 5).answers()) == 1
    assert len(Client().feed(GET * 500).answers()) == 500
