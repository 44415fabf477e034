"""The listening socket: what cannot be bound is said before anything starts."""

import pytest

from hostler.app.config import Config, GatewayConfig, LifeConfig, ServerConfig
from hostler.cli.supervisor import renewed
from hostler.core.errors import ConfigError, StartupError
from hostler.wire.listening import listening_socket, listening_sockets


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_number_that_is_no_port_is_refused_not_shortened(port: int) -> None:
    with pytest.raises(ConfigError, match=f"server.port {port}: need 1 to 65535"):
        listening_socket(ServerConfig(port=port))


def test_several_sockets_share_a_port_that_nobody_else_gets() -> None:
    socks = listening_sockets(ServerConfig(port=0), 3)
    try:
        ports = {sock.getsockname()[1] for sock in socks}
        assert len(ports) == 1
        taken = ServerConfig(port=ports.pop())
        for count in (1, 2):  # one that shares its port as well has no part of ours
            with pytest.raises(StartupError, match="is in use"):
                listening_sockets(taken, count)
    finally:
        for sock in socks:
            sock.close()


def test_new_settings_are_taken_by_gateways_but_for_what_is_bound_or_not_theirs() -> None:
    old = Config(server=ServerConfig(port=8100))
    new = Config(
        server=ServerConfig(port=9000, allowed_hosts=("models.example",)),
        gateway=GatewayConfig(processes=3, queue_length=7),
        life=LifeConfig(kill_grace_s=9.0),
    )
    taken, notes = renewed(old, new)
    assert (taken.server.port, taken.server.allowed_hosts) == (8100, ("models.example",))
    assert (taken.gateway.processes, taken.gateway.queue_length) == (1, 7)
    assert taken.life == old.life
    assert [note.split(":")[0] for note in notes] == ["gateway.processes", "server.port", "life"]
    assert renewed(old, old) == (old, ())


@pytest.mark.parametrize("count", [0, -1, 33])
def test_a_number_of_gateways_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match="gateway: need 1 to 32 processes"):
        GatewayConfig(processes=count)
