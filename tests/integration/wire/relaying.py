"""A relay on a real port before scripted engines, and who connects to it."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trustme

from hostler.app.config import HttpLimits
from hostler.core.snapshot import Endpoint
from hostler.wire.identity import CONTROLLER, ClientContexts, Identity, Peer, server_certificates
from hostler.wire.relay import Relay
from hostler.wire.server import Exchange, HttpServer
from tests.certificates import tls_folder
from tests.integration.wire.running import socket_folder

CA = trustme.CA()
HOST, OTHER_HOST = Identity(Peer.HOST, "host1"), Identity(Peer.HOST, "host2")
GATEWAY = Identity(Peer.GATEWAY, "gate1")


class Town:
    """One relay; its engines are handlers. gateway, controller, other_host: who may ask, or not."""

    def __init__(self, folder: Path, relay: Relay, port: int) -> None:
        self.folder = folder
        self.relay = relay
        self.port = port
        self.gateway = self.contexts(GATEWAY)
        self.controller = self.contexts(CONTROLLER)
        self.other_host = self.contexts(OTHER_HOST)

    def contexts(self, who: Identity, ca: trustme.CA = CA) -> ClientContexts:
        return ClientContexts(tls_folder(self.folder / f"tls-{who.role}-{who.id}", who, ca))

    def endpoint(self, instance_id: str = "x", host_id: str = HOST.id) -> Endpoint:
        return Endpoint(
            host="127.0.0.1", port=self.port, host_id=host_id, prefix=f"/i/{instance_id}"
        )


@asynccontextmanager
async def town(
    engine: Callable[[Exchange], None] | None = None,
    agent: Callable[[Exchange], None] | None = None,
    *,
    beat: Callable[[], bytes] | None = None,
    logs: Callable[[str, str], bytes] | None = None,
    who: Identity = HOST,
) -> AsyncIterator[Town]:
    """A relay that knows the instance `x`. None: nobody listens on its socket."""
    async with socket_folder() as folder, AsyncExitStack() as stack:
        paths = folder / "x.sock", folder / "x.agent"
        for handler, path in ((engine, paths[0]), (agent, paths[1])):
            if handler is not None:
                server = HttpServer(handler, limits=HttpLimits())
                await server.listen_unix(path)
                stack.push_async_callback(server.close, 0.0)
        shown = server_certificates(tls_folder(folder / "tls", who, CA), clients_must_show=True)
        relay = Relay(
            lambda found: (str(paths[0]), str(paths[1])) if found == "x" else None,
            shown,
            beat=beat,
            logs=logs,
        )
        sock = socket.create_server(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        await stack.enter_async_context(relay.running(sock))
        yield Town(folder, relay, port)
