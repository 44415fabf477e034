"""What is held against an instance, and what is not: busy, slow, refusing, finished."""

import asyncio
import time
from collections import Counter

from hostler.wire.client import Pool
from tests.integration.gateway.rig import Rig, error_of, rig
from tests.integration.gateway.test_streams import begin


async def executions(ours: Rig, instance_id: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = (await ours.engines[instance_id].ledger())["executions"]
    return found


def test_an_engine_that_says_not_now_is_left_alone_for_as_long_as_it_asks() -> None:
    async def main() -> None:
        async with rig() as ours:
            busy = await ours.start_engine("a", status=429, retry_after_s=2)
            await ours.start_engine("b")
            ours.publish()
            answers = [await ours.chat(f"{n}") for n in range(20)]
            assert {answer.status for answer in answers} == {200}
            assert len(await executions(ours, "a")) == 1  # asked once, then left alone
            assert not ours.gateway.router.health.troubled()  # busy is no fault
            await busy.script(status=0, retry_after_s=None)
            await asyncio.sleep(2.1)
            for number in range(6):
                await ours.chat(f"again {number}")
            assert len(await executions(ours, "a")) > 1

    asyncio.run(main())


def test_when_all_engines_are_busy_the_client_is_told_when_to_come_back() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name, status in (("a", 429), ("b", 503)):
                await ours.start_engine(name, status=status, retry_after_s=30)
            ours.publish()
            for _ in range(3):  # and they are asked again: nobody waits for an empty fleet
                answer = await ours.chat("x")
                assert answer.status == 503
                assert int(answer.header(b"retry-after") or 0) >= 1
                assert error_of(answer)["code"] == "no_healthy_worker"

    asyncio.run(main())


def test_F06_a_slow_instance_gets_less_and_is_never_put_out() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "abc":
                await ours.start_engine(name, first_delay_ms=200 if name == "a" else 20)
            ours.publish(concurrency=16)
            served: Counter[bytes] = Counter()
            took_s: list[float] = []
            stop_s = time.monotonic() + 2.5

            async def client(number: int) -> None:
                while time.monotonic() < stop_s:
                    began_s = time.monotonic()
                    answer = await ours.chat(f"{number}")
                    assert answer.status == 200
                    took_s.append(time.monotonic() - began_s)
                    served[answer.header(b"x-hostler-instance") or b""] += 1

            await asyncio.gather(*(client(number) for number in range(6)))
            assert not ours.gateway.router.health
            capacity = 0.1 / 2.1  # of one that is ten times slower than each of two others
            assert 0 < served[b"a"] / served.total() <= 3 * capacity, served

    asyncio.run(main())


def test_F47_nothing_is_aborted_that_was_finished() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a")
            ours.publish(concurrency=64)
            for _ in range(4):
                answers = await asyncio.gather(*(ours.chat(f"{n}") for n in range(50)))
                assert {answer.status for answer in answers} == {200}  # each closes its connection
            ends = Counter(one["end"] for one in (await engine.ledger())["executions"])
            assert ends == {"done": 200}

    asyncio.run(main())


def test_F51_what_a_client_has_seen_a_byte_of_is_executed_once() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "abc":
                await ours.start_engine(name, delay_ms=20)
            ours.publish(concurrency=16)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            readers = [begin(ours, pool, f"[[tokens=20]] {n}") for n in range(12)]
            for reader in readers:
                await asyncio.wait_for(reader.began.wait(), 10)
            ours.engines["a"].kill()
            for reader in readers:
                await asyncio.wait_for(reader.ended.wait(), 10)
            cut = [r for r in readers if not r.is_clean]
            assert {r.headers[b"x-hostler-instance"] for r in cut} == {b"a"}
            seen: Counter[object] = Counter()
            for name in "bc":
                seen.update(one["request_id"] for one in await executions(ours, name))
            assert not {r.headers[b"x-request-id"].decode() for r in cut} & seen.keys()
            assert set(seen.values()) == {1}
            await pool.close()

    asyncio.run(main())


def test_F55_cancelled_calls_use_up_no_connection() -> None:
    async def main() -> None:
        async with rig() as ours:
            engine = await ours.start_engine("a", delay_ms=30)
            ours.publish(concurrency=8)
            for turn in range(10):
                calls = [asyncio.ensure_future(ours.chat(f"{turn} {n}")) for n in range(30)]
                await asyncio.sleep(0.03)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            await ours.settled()
            await engine.script(delay_ms=0)
            answers = await asyncio.gather(*(ours.chat(f"good {n}") for n in range(100)))
            assert {answer.status for answer in answers} == {200}
            async with asyncio.timeout(2):
                while (await engine.ledger())["counts"]["in_flight"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            lane = ours.gateway._lanes.lane(ours.source.snapshot.instances[0])
            assert lane.pool.connection_count < 100  # of 300 calls that were cancelled

    asyncio.run(main())
