"""The queue before real engines: who waits, who goes first, who is refused, and that nothing is left over."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from hostler.app.config import GatewayConfig
from hostler.core.errors import Draining
from hostler.core.serving import RoutingRules
from hostler.wire.client import Pool
from tests.integration.gateway.rig import HEAVY, LOW, OTHER_USER, USER, Rig, error_of, rig, until
from tests.integration.gateway.test_streams import Reader, begin
from tests.unit.routing.fleet import model


async def fill(ours: Rig, pool: Pool, prompt: str = "[[delay_ms=1000]]") -> Reader:
    """Take the only slot for about a second a token."""
    reader = begin(ours, pool, prompt)
    await until(lambda: bool(ours.gateway.router.load), 5)
    return reader


def test_F53_a_request_can_lower_its_class_and_not_raise_it() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a", first_delay_ms=50, tokens=1)
            ours.publish(concurrency=1)
            order: list[str] = []

            async def ask(name: str, key: str, wish: bytes | None) -> None:
                fields = [(b"x-hostler-priority", wish)] if wish is not None else []
                text = f"{name} [[first_delay_ms=3000]]" if name == "first" else name
                body = {"model": "m", "messages": [{"role": "user", "content": text}]}
                answer = await ours.post("/v1/chat/completions", body, key=key, headers=fields)
                assert answer.status == 200, answer.body
                order.append(name)

            async with asyncio.TaskGroup() as tasks:
                for number, (name, key, wish) in enumerate(
                    [
                        ("first", USER.plain, None),
                        ("low key", LOW.plain, None),
                        ("low key asks for high", LOW.plain, b"high"),
                        ("lowered", USER.plain, b"Low"),
                        ("normal", USER.plain, b"high"),
                    ]
                ):
                    tasks.create_task(ask(name, key, wish))
                    count = number
                    await until(lambda count=count: ours.gateway.router.waiting("m") == count, 5)  # type: ignore[misc]
            assert order[:2] == ["first", "normal"]
            bad = await ours.post(
                "/v1/chat/completions",
                {"model": "m", "messages": [{"role": "user", "content": "x"}]},
                headers=[(b"x-hostler-priority", b"urgent")],
            )
            assert bad.status == 400
            error = error_of(bad)
            assert error["param"] == "x-hostler-priority"
            assert "urgent" in error["message"]
            assert "normal" in error["message"]

    asyncio.run(main())


def test_F53_a_key_that_floods_gets_its_share_and_no_more() -> None:
    async def main() -> None:
        async with rig(GatewayConfig(queue_length=64)) as ours:
            await ours.start_engine("a", first_delay_ms=30, tokens=4)
            ours.publish(concurrency=4)
            good: Counter[str] = Counter()
            told: Counter[int] = Counter()
            ends_at_s = time.monotonic() + 2.0

            async def client(name: str, key: str) -> None:
                while time.monotonic() < ends_at_s:
                    answer = await ours.chat("hello", key=key)
                    told[answer.status] += 1
                    if answer.status == 200:
                        good[name] += 1
                    else:
                        assert answer.header(b"retry-after")
                        await asyncio.sleep(0.2)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(80):
                    tasks.create_task(client("flood", USER.plain))
                for _ in range(24):  # so many that some of them always wait, also on a busy machine
                    tasks.create_task(client("heavy", HEAVY.plain))  # weight 3
            assert set(told) <= {200, 429, 503}
            assert told[429] + told[503] > 0
            share = good["heavy"] / good.total()
            assert share > 0.55, (good, told)

    asyncio.run(main())


def test_F46_a_client_that_leaves_at_any_point_frees_its_place_at_once() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a")
            ours.publish(concurrency=1)
            pool = Pool(ours.endpoint, connect_timeout_s=2, idle_s=1)
            held = await fill(ours, pool)
            for stream in (True, False):
                waiting = [begin(ours, pool, f"{n}", stream=stream) for n in range(20)]
                await until(lambda: ours.gateway.router.waiting("m") == 20, 5)
                for reader in waiting:
                    assert reader.call is not None
                    reader.call.cancel()
                await until(lambda: ours.gateway.router.waiting("m") == 0, 1)
            assert held.call is not None
            held.call.cancel()  # while it runs
            await ours.settled()
            for prompt, stream in (("[[first_delay_ms=3000]]", True), ("[[delay_ms=200]]", False)):
                for _ in range(5):
                    reader = begin(ours, pool, prompt, stream=stream)
                    await until(lambda: bool(ours.gateway.router.load), 5)
                    assert reader.call is not None
                    reader.call.cancel()
                    await ours.settled()
            await asyncio.sleep(1.0)  # I05: within a second
            ends = {one["end"] for one in (await engine.ledger())["executions"]}
            assert "running" not in ends
            assert (await ours.chat("still there")).status == 200
            await pool.close()

    asyncio.run(main())


def test_F54_a_slot_and_a_place_come_back_on_each_of_twelve_ways_out() -> None:
    async def main() -> None:
        settings = GatewayConfig(
            queue_length=2, queue_wait_s=0.2, request_timeout_s=1.5, attempts=1
        )
        async with rig(settings) as ours:
            await ours.start_engine("a")
            ours.publish(concurrency=1)
            pool = Pool(ours.endpoint, connect_timeout_s=2, idle_s=1)

            async def told(prompt: str, *, key: str = USER.plain, stream: bool = False) -> int:
                return (await ours.chat(prompt, key=key, stream=stream)).status

            async def gone(prompt: str) -> int:
                reader = await fill(ours, pool, prompt)
                await asyncio.sleep(0.05)
                assert reader.call is not None
                reader.call.cancel()
                return 499

            async def in_queue(way: Callable[[], Awaitable[int]]) -> int:
                reader = await fill(ours, pool)
                status = await way()
                assert reader.call is not None
                reader.call.cancel()
                return status

            async def too_late() -> int:
                return await told("x")

            async def full() -> int:
                places = [begin(ours, pool, "x") for _ in range(2)]
                await until(lambda: ours.gateway.router.waiting("m") == 2, 5)
                status = await told("x")
                for place in places:
                    assert place.call is not None
                    place.call.cancel()
                return status

            async def displaced() -> int:
                mine = [asyncio.ensure_future(told("x")) for _ in range(2)]
                await until(lambda: ours.gateway.router.waiting("m") == 2, 5)
                other = begin(ours, pool, "x", key=OTHER_USER.plain)
                status = await mine[1]
                await mine[0]
                assert other.call is not None
                other.call.cancel()
                return status

            async def left() -> int:
                place = begin(ours, pool, "x")
                await until(lambda: ours.gateway.router.waiting("m") == 1, 5)
                assert place.call is not None
                place.call.cancel()
                return 499

            async def cut() -> int:
                reader = begin(ours, pool, "[[ending=cut]]")
                await asyncio.wait_for(reader.ended.wait(), 5)
                return reader.status

            async def drained() -> int:
                reader = await fill(ours, pool, "[[delay_ms=100]]")
                ours.gateway.relays.end_all(Draining())
                await asyncio.wait_for(reader.ended.wait(), 5)
                return 503

            ways: dict[str, tuple[Callable[[], Awaitable[int]], int]] = {
                "whole answer": (lambda: told("x"), 200),
                "stream": (lambda: told("x", stream=True), 200),
                "engine says 400": (lambda: told("[[status=400]]"), 400),
                "engine says 500": (lambda: told("[[status=500]]"), 500),
                "engine says 503": (lambda: told("[[status=503]]"), 503),
                "half a stream, then the end": (cut, 200),
                "client leaves before a byte": (lambda: gone("[[first_delay_ms=3000]]"), 499),
                "client leaves a stream": (lambda: gone("[[delay_ms=50]] [[tokens=100]]"), 499),
                "client leaves the queue": (lambda: in_queue(left), 499),
                "the wait is too long": (lambda: in_queue(too_late), 503),
                "the queue is full": (lambda: in_queue(full), 503),
                "another key has its place": (lambda: in_queue(displaced), 429),
                "the request's deadline": (lambda: told("[[first_delay_ms=5000]]"), 504),
                "the drain's end": (drained, 503),
            }
            for name, (way, status) in ways.items():
                found = await way()
                assert found == status, name
                await ours.settled()
                await until(lambda: ours.gateway.router.waiting("m") == 0, 1)
            await pool.close()

    asyncio.run(main())


def test_F58_without_an_instance_the_answer_is_quick_and_says_when_to_come_back() -> None:
    async def main() -> None:
        async with rig() as ours:
            for loading, code in ((True, "model_loading"), (False, "no_healthy_worker")):
                ours.publish(models=[model("m", loading=loading)])
                began_s = time.monotonic()
                answer = await ours.chat("hello")
                assert time.monotonic() - began_s < 1.0
                assert (answer.status, error_of(answer)["code"]) == (503, code)
                assert answer.header(b"retry-after")

    asyncio.run(main())


def test_F52_two_hundred_clients_at_sixteen_slots_get_an_answer_or_a_time_to_come_back() -> None:
    async def main() -> None:
        async with rig(GatewayConfig(queue_length=64)) as ours:
            for name in ("a", "b"):
                await ours.start_engine(name, first_delay_ms=40, tokens=2)
            ours.publish(concurrency=8)
            told: Counter[int] = Counter()
            alive: list[int] = []
            ends_at_s = time.monotonic() + 2.0

            async def client(number: int) -> None:
                while time.monotonic() < ends_at_s:
                    answer = await ours.chat(f"{number}")
                    told[answer.status] += 1
                    if answer.status != 200:
                        assert int(answer.header(b"retry-after") or b"0") >= 1
                        await asyncio.sleep(0.2)

            async def monitor() -> None:
                while time.monotonic() < ends_at_s:
                    began_s = time.monotonic()
                    answer = await ours.post("/v1/models", {})  # a route that is refused: 405
                    alive.append(answer.status)
                    assert time.monotonic() - began_s < 2.0
                    await asyncio.sleep(0.05)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(monitor())
                for number in range(200):
                    tasks.create_task(client(number))
            assert set(told) <= {200, 429, 503}
            assert told[200] > 100
            assert told.total() > told[200]
            assert set(alive) == {405}

    asyncio.run(main())


def test_a_model_s_own_length_and_wait_are_kept() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            rules = RoutingRules(queue_length=1, queue_wait_s=0.1)
            ours.publish(concurrency=1, models=[msgspec.structs.replace(model("m"), routing=rules)])
            pool = Pool(ours.endpoint, connect_timeout_s=2, idle_s=1)
            held = await fill(ours, pool)
            late, refused = await asyncio.gather(ours.chat("1"), ours.chat("2"))
            assert {late.status, refused.status} == {503}
            texts = sorted(error_of(one)["message"] for one in (late, refused))
            assert "1 requests wait already" in texts[0]
            assert "too long" in texts[1]
            assert held.call is not None
            held.call.cancel()
            await ours.settled()
            await pool.close()

    asyncio.run(main())
