"""Machines of a test's own: who reaches whom, what is lost, and that nothing is left."""

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostler.testing import netns
from hostler.testing.netns import Network
from hostler.testing.slow_line import SlowLine

WHY_NOT = netns.missing()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def reaches(net: Network, one: str, other: str, listener: socket.socket) -> bool:
    """Can `one` open a connection to a socket of `other`?"""
    with net.inside(one), socket.socket() as sock:
        sock.settimeout(0.3)
        try:
            sock.connect((net.address(other), listener.getsockname()[1]))
        except OSError:
            return False
        return True


def test_machines_reach_each_other_until_a_line_is_cut() -> None:
    with Network("a", "b") as net:
        with net.inside("b"):
            listener = socket.create_server((net.address("b"), 0))
        with listener:
            assert reaches(net, "a", "b", listener)
            with socket.create_connection((net.address("b"), listener.getsockname()[1]), 2):
                pass  # the test itself is on the same bridge
            net.cut("a", "b", one_way=True)
            assert not reaches(net, "a", "b", listener)
            net.heal()
            assert reaches(net, "a", "b", listener)
            net.cut("b", "a", one_way=True)
            assert not reaches(net, "a", "b", listener)  # the answers are lost
            net.heal("a")
            assert reaches(net, "a", "b", listener)
            net.lose(100, "a", "b")
            assert not reaches(net, "a", "b", listener)


def test_nothing_is_left_of_a_network() -> None:
    with Network("a") as net:
        running = net.popen("a", [sys.executable, "-c", "import time; time.sleep(60)"])
        names = [path.name for path in Path("/run/netns").iterdir()]
        assert any(name.startswith("hst-") for name in names)
        time.sleep(0.05)
        assert running.poll() is None
    assert running.wait(5) == -9
    left = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert net._bridge not in left
    assert not any(Path("/run/netns", name).exists() for name in net._names.values())


def test_a_slow_line_delays_each_way_and_can_stall() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        line = SlowLine("127.0.0.1", port, delay_s=0.05)
        async with line.running():
            reader, writer = await asyncio.open_connection(*line.address)
            began_s = time.monotonic()
            writer.write(b"one")
            assert await reader.read(100) == b"one"
            assert time.monotonic() - began_s >= 0.1
            line.is_stalled = True
            writer.write(b"two")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(100), 0.2)
            line.is_stalled = False
            assert await asyncio.wait_for(reader.read(100), 5) == b"two"
            line.reset()
            with pytest.raises((ConnectionError, AssertionError)):
                assert await reader.read(100)
            writer.close()
        server.close()

    asyncio.run(main())
