"""F05: engines whose health is fine and that say nothing are found, slow ones are left alone."""

import asyncio
import time

import pytest

from hostler.app.config import GatewayConfig
from hostler.core.errors import ControllerUnavailable
from hostler.core.fleet import Doubt
from hostler.wire.client import Pool, fetch
from tests.integration.gateway.rig import Rig, rig, until
from tests.integration.gateway.test_streams import begin

STALL = GatewayConfig(stall_s=0.6, canary_timeout_s=0.6)


async def stuck(ours: Rig, instance_id: str) -> None:
    """Let what this engine is asked from now on hang, its health and its lists of models apart."""
    await ours.engines[instance_id].script(hang_at=0)


@pytest.mark.timeout(60)
def test_F05_an_engine_that_says_nothing_loses_its_requests_to_others_and_is_told_of() -> None:
    told: list[Doubt] = []

    async def main() -> None:
        async with rig(STALL) as ours:

            async def tell(doubt: Doubt) -> None:
                told.append(doubt)
                if len(told) == 1:
                    raise ControllerUnavailable

            ours.gateway._doubts._tell = tell
            for name in "ab":
                await ours.start_engine(name, delay_ms=40)
            ours.publish(concurrency=8)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            readers = [begin(ours, pool, f"[[tokens=100]] {n}") for n in range(2)]
            stalled = [begin(ours, pool, f"[[hang_at=2]] {n}") for n in range(4)]
            for reader in (*readers, *stalled):
                await asyncio.wait_for(reader.began.wait(), 10)
            await asyncio.sleep(1.0)  # streams that say nothing beside one that moves: no doubt
            assert not ours.gateway.router.health
            for reader in readers:
                await asyncio.wait_for(reader.ended.wait(), 10)
                assert reader.is_clean
            await stuck(ours, "a")
            began_s = time.monotonic()
            answers = await asyncio.gather(*(ours.chat(f"{n}") for n in range(6)))
            assert {answer.status for answer in answers} == {200}
            assert {answer.header(b"x-hostler-instance") for answer in answers} == {b"b"}
            assert b"2" in {answer.header(b"x-attempts") for answer in answers}
            assert time.monotonic() - began_s < 6.0
            health = await fetch(ours.engines["a"].endpoint, "GET", "/health", timeout_s=5)
            assert health.status == 200  # it looks well
            on_a = [r for r in stalled if r.headers[b"x-hostler-instance"] == b"a"]
            for reader in on_a:
                await asyncio.wait_for(reader.ended.wait(), 5)
                assert b"worker_lost" in reader.payloads[-1]
                assert not reader.is_clean
            assert told[0] == Doubt(instance_id="a", epoch=1)
            assert [i.instance_id for i in ours.gateway.router.usable("m")] == ["b"]
            for reader in stalled:
                assert reader.call is not None
                reader.call.cancel()
            await pool.close()

    asyncio.run(main())


@pytest.mark.timeout(60)
def test_F05_slow_engines_are_left_alone_and_one_that_recovers_serves_again() -> None:
    async def main() -> None:
        async with rig(STALL) as ours:
            engine = await ours.start_engine("a")
            ours.publish(concurrency=4)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            slow = begin(ours, pool, "[[tokens=4]] [[delay_ms=1000]]")  # slower than stall_s
            prefill = asyncio.ensure_future(ours.chat("[[first_delay_ms=3000]]"))
            await asyncio.wait_for(slow.ended.wait(), 20)
            assert slow.is_clean
            assert (await prefill).status == 200
            assert (await prefill).header(b"x-attempts") is None
            await stuck(ours, "a")
            call = asyncio.ensure_future(ours.chat("x"))
            await until(lambda: not ours.gateway.router.usable("m"), 10)
            assert (await call).status == 502
            assert (await ours.chat("y")).status == 503
            await engine.script(hang_at=None)
            await until(lambda: bool(ours.gateway.router.usable("m")), 10)
            assert (await ours.chat("z")).status == 200
            await pool.close()

    asyncio.run(main())


@pytest.mark.timeout(60)
def test_F05_a_full_engine_that_reads_long_prompts_is_not_doubted() -> None:
    async def main() -> None:
        async with rig(STALL) as ours:
            await ours.start_engine("a", first_delay_ms=2500)
            ours.publish(concurrency=2)
            calls = [asyncio.ensure_future(ours.chat(f"{n}")) for n in range(2)]
            await asyncio.sleep(2.0)
            assert not ours.gateway.router.health
            assert {answer.status for answer in await asyncio.gather(*calls)} == {200}

    asyncio.run(main())
