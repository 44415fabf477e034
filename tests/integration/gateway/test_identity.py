"""F27: a port that changes hands never makes one model answer for another."""

import asyncio
import contextlib
import socket

import msgspec

from hostler.app.config import HttpLimits
from hostler.core.snapshot import Endpoint
from hostler.testing import fake_text
from hostler.wire.exchange import Exchange
from hostler.wire.server import HttpServer
from tests.integration.gateway.rig import Rig, error_of, rig, text_of, until
from tests.unit.routing.fleet import instance, model


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def publish_urls(ours: Rig, ports: dict[str, int]) -> None:
    """One model, each instance a server given by URL."""
    ours.source.publish(
        [model("m", engine="openai", wanted=len(ports))],
        [
            instance(i, "m", engine="openai", endpoint=Endpoint(host="127.0.0.1", port=port))
            for i, port in ports.items()
        ],
    )


def test_F27_another_model_on_a_reused_port_is_never_asked() -> None:
    async def main() -> None:
        async with rig() as ours:
            ports = {"a": free_port(), "b": free_port()}
            for name, port in ports.items():
                await ours.start_engine(name, port=port)
            publish_urls(ours, ports)
            wrong, statuses = 0, []
            stop = asyncio.Event()

            async def client(number: int) -> None:
                nonlocal wrong
                turn = 0
                while not stop.is_set():
                    turn += 1
                    answer = await ours.chat(f"{number} {turn}")
                    statuses.append(answer.status)
                    if answer.status == 200 and not text_of(answer).startswith(f"m{fake_text.BAR}"):
                        wrong += 1

            async with asyncio.TaskGroup() as tasks:
                for number in range(8):
                    tasks.create_task(client(number))
                await asyncio.sleep(0.5)
                ours.engines["a"].kill()
                thief = await ours.start_engine("x", "another-model", port=ports["a"])
                await asyncio.sleep(1.5)
                stop.set()
            assert wrong == 0
            assert set(statuses) == {200}
            assert (await thief.ledger())["executions"] == []

    asyncio.run(main())


def test_F27_a_quiet_moment_does_not_help_the_wrong_model() -> None:
    async def main() -> None:
        async with rig() as ours:
            port = free_port()
            await ours.start_engine("a", port=port)
            publish_urls(ours, {"a": port})
            assert (await ours.chat("before")).status == 200
            ours.engines["a"].kill()
            thief = await ours.start_engine("x", "another-model", port=port)
            for number in range(20):
                answer = await ours.chat(f"after {number}")
                assert answer.status == 503
                assert error_of(answer)["code"] in ("no_healthy_worker", "upstream_error")
            assert (await thief.ledger())["executions"] == []
            thief.kill()
            await ours.start_engine("b", port=port)
            await until(lambda: bool(ours.gateway.router.usable("m")), 6)
            assert (await ours.chat("back")).status == 200

    asyncio.run(main())


def test_F27_an_answer_that_names_another_instance_is_thrown_away() -> None:
    async def main() -> None:
        async with rig() as ours, contextlib.AsyncExitStack() as stack:
            asked: list[bytes | None] = []

            def lie(exchange: Exchange) -> None:
                asked.append(exchange.request.header(b"x-hostler-instance"))
                exchange.send(
                    200,
                    msgspec.json.encode({"choices": [{"message": {"content": "wrong"}}]}),
                    [(b"content-type", b"application/json"), (b"x-hostler-instance", b"other")],
                )

            liar = HttpServer(lie, limits=HttpLimits())
            await liar.listen_unix(ours.folder / "liar.sock")
            stack.push_async_callback(liar.close, 0.0)
            good = await ours.start_engine("b")
            ours.source.publish(
                [model("m")],
                [
                    instance("a", endpoint=Endpoint(socket=str(ours.folder / "liar.sock"))),
                    instance("b", endpoint=good.endpoint),
                ],
            )
            for number in range(6):
                answer = await ours.chat(f"{number}")
                assert answer.status == 200
                assert answer.header(b"x-hostler-instance") == b"b"
            assert b"a" in asked

    asyncio.run(main())


def test_a_server_given_by_url_that_falls_silent_is_out_and_comes_back() -> None:
    async def main() -> None:
        async with rig() as ours:
            port = free_port()
            engine = await ours.start_engine("a", port=port)
            publish_urls(ours, {"a": port})
            assert ours.gateway.router.usable("m")
            engine.kill()
            await until(lambda: not ours.gateway.router.usable("m"), 4)
            assert (await ours.post("/ready", b"")).status == 405
            await ours.start_engine("a", port=port)
            await until(lambda: bool(ours.gateway.router.usable("m")), 4)
            assert (await ours.chat("x")).status == 200

    asyncio.run(main())
