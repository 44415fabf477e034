"""A server in a process of its own with few files: `python few_files.py MOST`. Prints its port.

GET /take uses up all files but four, SIGUSR1 gives them back; GET /hold is never answered.
"""

import asyncio
import contextlib
import resource
import signal
import socket
import sys
from pathlib import Path

import uvloop

from hostler.app.config import HttpLimits
from hostler.wire.server import Exchange, HttpServer


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    if len(sys.argv) > 1:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
    taken: list[socket.socket] = []

    def handle(exchange: Exchange) -> None:
        match exchange.request.path:
            case "/hold":
                return
            case "/take":
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(socket.socket())
                for _ in range(min(4, len(taken))):
                    taken.pop().close()
        words = (rss_bytes(), len(server.crowd), server.crowd.evicted, server.shut_count)
        exchange.send(200, " ".join(map(str, words)).encode())

    def give_back() -> None:
        while taken:
            taken.pop().close()

    server = HttpServer(handle, limits=HttpLimits())

    async def serve() -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        await server.listen(sock)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, give_back)
        sys.stdout.write(f"{sock.getsockname()[1]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
