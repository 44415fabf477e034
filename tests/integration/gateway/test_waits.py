"""What a client sees while it waits, and how long it has to: comments in streams, deadlines of its own."""

import asyncio
import time

import msgspec
import pytest

from hostler.app.config import GatewayConfig
from hostler.gateway.relay import KEEP_ALIVE
from hostler.wire.client import Pool
from tests.integration.gateway.rig import error_of, rig, text_of
from tests.integration.gateway.test_streams import begin, read, read_with_sdk, sdk, whole_text

OFTEN = GatewayConfig(keep_alive_s=0.1)
SLOW = "[[first_delay_ms=400]]"


def test_F63_a_stream_that_waits_for_its_engine_gets_comments_and_then_its_answer() -> None:
    async def main() -> None:
        async with rig(OFTEN) as ours:
            await ours.start_engine("a")
            ours.publish()
            reader = await read(ours, SLOW)
            assert reader.data.startswith(KEEP_ALIVE * 2)
            assert KEEP_ALIVE not in reader.data.partition(b"data: ")[2]
            assert reader.headers[b"content-type"].startswith(b"text/event-stream")
            assert reader.headers[b"x-accel-buffering"] == b"no"
            assert reader.is_clean
            assert reader.text == whole_text(SLOW)
            async with sdk(ours) as client:
                assert await read_with_sdk(client, SLOW) == whole_text(SLOW)
            whole = await ours.chat(SLOW)  # not a stream: a status is owed, and nothing before it
            assert text_of(whole) == whole_text(SLOW)

    asyncio.run(main())


def test_F63_a_stream_that_waits_in_the_queue_gets_comments_too() -> None:
    async def main() -> None:
        async with rig(OFTEN) as ours:
            await ours.start_engine("a")
            ours.publish(concurrency=1)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            first, second = begin(ours, pool, SLOW), begin(ours, pool, "second")
            for reader in (first, second):
                await asyncio.wait_for(reader.ended.wait(), 10)
                assert reader.is_clean
            assert second.data.startswith(KEEP_ALIVE * 2)
            assert second.text == whole_text("second")
            await pool.close()

    asyncio.run(main())


def test_F63_after_comments_another_instance_may_still_answer() -> None:
    async def main() -> None:
        async with rig(OFTEN) as ours:
            await ours.start_engine("a", hang_at=0)
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            reader = begin(ours, pool, "moved")
            await asyncio.wait_for(reader.began.wait(), 5)
            await ours.start_engine("b")
            ours.publish()
            ours.engines["a"].kill()
            await asyncio.wait_for(reader.ended.wait(), 10)
            assert reader.data.startswith(KEEP_ALIVE)
            assert reader.is_clean
            assert reader.text == whole_text("moved")
            await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("[[status=400]]", "fake_status"),
        ("[[status=500]] [[status_body=garbage]]", "upstream_error"),
        ("[[content_type=text/html]]", "upstream_error"),
        ("[[die]]", "worker_lost"),
    ],
)
def test_F63_a_failure_after_comments_is_an_event_and_no_clean_end(words: str, code: str) -> None:
    async def main() -> None:
        async with rig(OFTEN) as ours:
            await ours.start_engine("a")
            ours.publish(concurrency=1)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            begin(ours, pool, SLOW)
            reader = begin(ours, pool, words)  # it waits for the one slot
            await asyncio.wait_for(reader.ended.wait(), 10)
            assert (reader.status, reader.is_clean) == (200, False)
            assert reader.data.startswith(KEEP_ALIVE)
            [payload] = reader.payloads
            assert msgspec.json.decode(payload)["error"]["code"] == code
            await pool.close()

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["engine", "queue"])
def test_F64_a_request_ends_at_the_deadline_it_asked_for(where: str, stream: bool) -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a", hang_at=0)
            ours.publish(concurrency=1)
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}
            asked = [(b"x-request-timeout", b"0.4")]
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                if where == "queue":
                    ahead = tasks.create_task(
                        ours.post(
                            "/v1/chat/completions", body, headers=[(b"x-request-timeout", b"1")]
                        )
                    )
                    await asyncio.sleep(0.05)
                answer = await ours.post("/v1/chat/completions", body, headers=asked)
                took_s = time.monotonic() - began_s
                assert (answer.status, error_of(answer)["code"]) == (504, "upstream_timeout")
                assert 0.35 < took_s < 0.95
                if where == "queue":
                    assert (await ahead).status == 504
            assert not ours.gateway.relays.deadlines

    asyncio.run(main())


def test_F64_a_started_stream_ends_at_its_deadline_with_an_error_event() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a", delay_ms=20)
            ours.publish()
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            began_s = time.monotonic()
            timeout = [(b"x-request-timeout", b"0.5")]
            reader = begin(ours, pool, "[[tokens=1000]]", headers=timeout)
            await asyncio.wait_for(reader.ended.wait(), 10)
            assert 0.4 < time.monotonic() - began_s < 1.0
            assert not reader.is_clean
            assert len(reader.payloads) > 3
            assert msgspec.json.decode(reader.payloads[-1])["error"]["code"] == "upstream_timeout"
            await pool.close()

    asyncio.run(main())


def test_F64_retries_do_not_lengthen_it_and_an_answer_in_time_forgets_it() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            await ours.start_engine("b")
            ours.publish()
            ours.engines["a"].kill()
            body = {"model": "m", "prompt": "x"}
            for _ in range(3):
                answer = await ours.post(
                    "/v1/completions", body, headers=[(b"x-request-timeout", b"30")]
                )
                assert answer.status == 200
            assert not ours.gateway.relays.deadlines

    asyncio.run(main())


def test_F64_a_deadline_that_is_none_is_refused_and_says_what_would_do() -> None:
    async def main() -> None:
        async with rig(GatewayConfig(request_timeout_s=60)) as ours:
            await ours.start_engine("a")
            ours.publish()
            body = {"model": "m", "prompt": "x"}
            for bad in (b"", b"0", b"-1", b"1e3", b"nan", b"inf", b"61", b"10s", b"1, 2", b"0.0"):
                answer = await ours.post(
                    "/v1/completions", body, headers=[(b"x-request-timeout", bad)]
                )
                assert answer.status == 400, bad
                error = error_of(answer)
                assert error["param"] == "x-request-timeout"
                assert "up to 60" in error["message"]
            for good in (b"60", b"1", b"59.999"):
                answer = await ours.post(
                    "/v1/completions", body, headers=[(b"x-request-timeout", good)]
                )
                assert answer.status == 200, good

    asyncio.run(main())
