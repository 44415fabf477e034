"""F03, F04: a process that is stopped accepts requests and never answers; nobody waits for it."""

import asyncio
import signal
import time

from hostler.app.config import GatewayConfig
from hostler.wire.client import Pool
from tests.integration.gateway.rig import rig, until
from tests.integration.gateway.test_streams import begin, whole_text


def test_F03_requests_on_a_stopped_worker_are_answered_by_another() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name, first_delay_ms=20)
            ours.publish()
            engine = ours.engines["a"].process
            engine.send_signal(signal.SIGSTOP)
            began_s = time.monotonic()
            answers = await asyncio.gather(*(ours.chat(f"{n}") for n in range(12)))
            assert {answer.status for answer in answers} == {200}
            assert {answer.header(b"x-hostler-instance") for answer in answers} == {b"b"}
            assert time.monotonic() - began_s < 4.0
            assert b"2" in {answer.header(b"x-attempts") for answer in answers}
            engine.send_signal(signal.SIGCONT)
            await until(lambda: len(ours.gateway.router.usable("m")) == 2, 3)

    asyncio.run(main())


def test_F04_streams_on_a_stopped_worker_end_with_an_error_in_time() -> None:
    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name, delay_ms=100)
            ours.publish(concurrency=20)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            readers = [begin(ours, pool, f"[[tokens=60]] {n}") for n in range(10)]
            for reader in readers:
                await asyncio.wait_for(reader.began.wait(), 10)
            process = ours.engines["a"].process
            process.send_signal(signal.SIGSTOP)
            stopped_s = time.monotonic()
            stuck = [r for r in readers if r.headers[b"x-hostler-instance"] == b"a"]
            assert stuck
            for reader in stuck:
                await asyncio.wait_for(reader.ended.wait(), 5)
                assert b"worker_lost" in reader.payloads[-1]
                assert not reader.is_clean
            assert time.monotonic() - stopped_s < 4.0
            process.send_signal(signal.SIGCONT)
            for number, reader in enumerate(readers):
                await asyncio.wait_for(reader.ended.wait(), 20)
                if reader not in stuck:
                    assert reader.is_clean
                    assert whole_text(f"[[tokens=60]] {number}").startswith(reader.text[:40])
            await pool.close()

    asyncio.run(main())


def test_F42_what_an_instance_had_that_was_given_up_while_silent_is_answered_by_another() -> None:
    """Nobody probed it once it was no instance: its requests waited for as long as it was silent."""

    async def main() -> None:
        async with rig() as ours:
            for name in "ab":
                await ours.start_engine(name, first_delay_ms=300)
            ours.publish()
            left = ours.engines["a"]
            asked = [asyncio.create_task(ours.chat(f"{n}")) for n in range(8)]
            await until(lambda: ours.gateway.router.load.get("a", 0) >= 2, 3)
            left.process.send_signal(signal.SIGSTOP)
            del ours.engines["a"]
            ours.publish()
            try:
                answers = await asyncio.wait_for(asyncio.gather(*asked), 10)
            finally:
                left.process.send_signal(signal.SIGCONT)
                ours.engines["a"] = left
            assert {answer.status for answer in answers} == {200}
            assert {answer.header(b"x-hostler-instance") for answer in answers} == {b"b"}
            await until(lambda: not ours.gateway.router.load, 3)

    asyncio.run(main())


def test_what_an_instance_that_was_given_up_still_says_reaches_its_clients() -> None:
    """It may be cut off from the controller alone."""

    async def main() -> None:
        async with rig(GatewayConfig(probe_interval_s=0.1)) as ours:
            for name in "ab":
                await ours.start_engine(name, first_delay_ms=1500)
            ours.publish()
            asked = [asyncio.create_task(ours.chat(f"{n}")) for n in range(8)]
            await until(lambda: ours.gateway.router.load.get("a", 0) >= 2, 3)
            left = ours.engines.pop("a")
            ours.publish()
            answers = await asyncio.gather(*asked)
            ours.engines["a"] = left
            assert {answer.status for answer in answers} == {200}
            by = {answer.header(b"x-hostler-instance") for answer in answers}
            assert by == {b"a", b"b"}
            assert {answer.header(b"x-attempts") for answer in answers} == {None}

    asyncio.run(main())
