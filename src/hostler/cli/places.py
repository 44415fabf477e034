"""Places: where one `hostler up` is found: its listening sockets, their certificates, their URLs."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hostler.app.config import Config, ServerConfig, tls_dir
from hostler.wire.identity import CA_FILE, CERT_FILE, CONTROLLER
from hostler.wire.listening import control_socket, listening_sockets, relay_socket
from hostler.wire.tls import Certificates


class Places:
    """The sockets of the gateways, and of the control port if there is one."""

    def __init__(self, settings: Config) -> None:
        self._settings = settings
        self.socks: list[socket.socket] = []
        self.control: socket.socket | None = None
        self.relay: socket.socket | None = None  # where the control port is
        self.url = ""  # where clients find the server
        self.control_url = ""  # where other machines join; "": nowhere
        self.ca = ""  # file of who vouches for the server, where that is us

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Make the certificates that are missing, and hold the sockets while the block lasts.

        Raises:
            ConfigError, StartupError: a certificate cannot be made or used, an address not be bound.
        """
        settings = self._settings
        if is_own(settings) or settings.control is not None:
            from hostler.registry.own_authority import open_authority

            open_authority(settings)
        if is_own(settings):
            self.ca = str(tls_dir(settings) / CA_FILE)
        names = certificate_names(settings.server)
        with ExitStack() as stack:
            self.socks = listening_sockets(settings.server, settings.gateway.processes)
            for sock in self.socks:
                stack.enter_context(sock)
            self.url = _url(settings, self.socks[0].getsockname()[1], names)
            if settings.control is not None:
                from hostler.registry.own_authority import control_url

                self.control = stack.enter_context(control_socket(settings.control))
                self.relay = stack.enter_context(
                    relay_socket(settings.control.host, settings.control.relay_port)
                )
                self.control_url = control_url(settings, self.control.getsockname()[1])
            yield


def check_certificate(settings: Config) -> None:
    """Try the operator's certificate, before anything starts. Raises ConfigError."""
    if settings.server.is_tls and not is_own(settings):
        certificate_names(settings.server)


def is_own(settings: Config) -> bool:
    """Does the server show a certificate of our own authority?"""
    return settings.server.tls_cert == str(tls_dir(settings) / CERT_FILE)


def certificate_names(server: ServerConfig) -> tuple[str, ...]:
    """The names that the server's certificate is good for. Raises ConfigError."""
    if not server.is_tls:
        return ()
    names = Certificates(server.tls_cert, server.tls_key).facts.names
    return tuple(name for name in names if name != CONTROLLER.name)


# Private


def _url(settings: Config, port: int, names: tuple[str, ...]) -> str:
    """Return where clients find the server. names: for which its certificate is good."""
    host = settings.server.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, host)
    if not settings.server.is_tls:
        return f"http://{shown}:{port}"
    plain = [name for name in names if not name.startswith("*")]
    if plain and shown not in plain:
        shown = plain[0]
    return f"https://{f'[{shown}]' if ':' in shown and shown[0] != '[' else shown}:{port}"
