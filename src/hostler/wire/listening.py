"""The listening socket: bound before anything starts, so that a taken port is one clear sentence."""

import errno
import socket

import msgspec
import psutil

from hostler.app.config import ControlConfig, ServerConfig
from hostler.core.errors import ConfigError, StartupError

BACKLOG = 4096


def listening_sockets(server: ServerConfig, count: int) -> list[socket.socket]:
    """Return so many listening TCP sockets on one address; the kernel spreads connections over them.

    Raises as `listening_socket`. The address is tried alone first: two servers that share ports may
    also share the same one, and each would have half of the other's connections.
    """
    if count == 1:
        return [listening_socket(server)]
    with listening_socket(server) as alone:
        server = msgspec.structs.replace(server, port=alone.getsockname()[1])
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            found.append(listening_socket(server, is_shared=True))
    except BaseException:  # boundary: the sockets must not leak; the error goes on
        for sock in found:
            sock.close()
        raise
    return found


def control_socket(control: ControlConfig) -> socket.socket:
    """Return the control port's listening socket. Raises as `listening_socket`."""
    where = ServerConfig(host=control.host, port=control.port)
    return listening_socket(where, section="control")


def listening_socket(
    server: ServerConfig, *, is_shared: bool = False, section: str = "server"
) -> socket.socket:
    """Return a listening TCP socket on the configured address.

    is_shared: other sockets of this user may listen there too. section: of the settings it is from.

    Raises:
        ConfigError: no port has this number.
        StartupError: the port is taken (by whom, when that can be seen), not allowed, or the host is
            not an address of this machine.
    """
    if not 0 <= server.port <= 65535:  # the resolver would silently take the rest of a division
        raise ConfigError(f"{section}.port {server.port}: need 1 to 65535, or 0 for a free one")
    try:
        found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise StartupError(f"host {server.host!r}: not an address ({error.strerror})") from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise StartupError(_explain(server, error, section)) from error
    sock.setblocking(False)
    return sock


def relay_socket(address: str, port: int) -> socket.socket:
    """Return where a machine's relay will listen: at this address, if it is this machine's, else at all.

    Raises as `listening_socket`.
    """
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                address = ""  # that of a router before it
    return listening_socket(ServerConfig(host=address or "0.0.0.0", port=port))


# Private


def _explain(server: ServerConfig, error: OSError, section: str) -> str:
    option = "--port" if section == "server" else f"--{section}-port"
    where = f"port {server.port} on {server.host}"
    if error.errno == errno.EADDRINUSE:
        holder = _holder(server.port)
        return f"{where} is in use{holder}; end that program or choose another with {option}"
    if error.errno == errno.EACCES:
        return f"{where} may not be bound by this user; choose one above 1023 with {option}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {server.host!r} is not an address of this machine"
    return f"{where}: {error.strerror}"


def _holder(port: int) -> str:
    """Name the process that listens there, when this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                pid = connection.pid
                return f" by {psutil.Process(pid).name()} (pid {pid})" if pid else ""
    except psutil.Error:
        return ""
    return ""
