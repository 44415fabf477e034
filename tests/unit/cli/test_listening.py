"""The listening socket: what cannot be bound is said before anything starts."""

import pytest

from hostler.app.config import ServerConfig
from hostler.cli.listening import listening_socket
from hostler.core.errors import ConfigError


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_number_that_is_no_port_is_refused_not_shortened(port: int) -> None:
    with pytest.raises(ConfigError, match=f"server.port {port}: need 1 to 65535"):
        listening_socket(ServerConfig(port=port))
