"""What operators can ask a gateway about its requests."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from hostler.app.config import GatewayConfig
from hostler.core.timeline import RequestList, RequestView
from hostler.wire.client import Pool, Response, fetch
from hostler.wire.server import HttpServer
from tests.integration.gateway.rig import ADMIN, USER, Rig, error_of, rig, until
from tests.integration.gateway.test_streams import begin, read

SECRET = "do-not-show-this"


async def get(ours: Rig, path: str) -> Response:
    headers = [(b"authorization", b"Bearer " + ADMIN.plain.encode())]
    return await fetch(
        ours.endpoint, "GET", f"/api/v1/requests{path}", headers=headers, timeout_s=5
    )


async def listed(ours: Rig, query: str = "") -> RequestList:
    answer = await get(ours, query)
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body, type=RequestList)


def test_requests_under_way_come_first_then_the_newest_that_ended() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", tokens=4)
            ours.publish(concurrency=1)
            await ours.chat(SECRET)
            await read(ours, SECRET)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            hanging = begin(ours, pool, f"{SECRET} [[hang_at=2]]")
            await asyncio.wait_for(hanging.began.wait(), 5)
            waiting = begin(ours, pool, SECRET)
            await until(lambda: ours.gateway.router.waiting("m") == 1, 5)
            found = (await listed(ours)).requests
            assert [one.outcome and one.outcome.value for one in found] == [None, None, "ok", "ok"]
            queued, running, stream, whole = found
            assert queued.queued_s is not None
            assert (queued.waited_s or 0) > 0
            assert running.first_byte_s is not None
            assert 1 <= running.events <= 2  # so far
            assert (stream.stream, stream.completion_tokens, stream.events) == (True, 4, 4)
            assert (whole.stream, whole.completion_tokens) == (False, 4)
            assert whole.key_id == USER.stored.view.key_id
            assert [t.instance_id for t in whole.tries] == ["i1"]
            assert whole.tries[0].why
            everything = (await get(ours, "")).body
            assert SECRET.encode() not in everything
            assert USER.plain.encode() not in everything
            for reader in (hanging, waiting):
                assert reader.call is not None
                reader.call.cancel()
            await pool.close()
            await ours.settled()
            assert [one.outcome and one.outcome.value for one in (await listed(ours)).requests][
                :2
            ] == [
                "client_gone",
                "client_gone",
            ]

    asyncio.run(main())


def test_requests_are_found_by_what_is_asked_for_and_by_their_id() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1")
            ours.publish()
            good = await ours.chat("hello")
            await ours.chat("[[status=400]]", key=ADMIN.plain)

            async def count(query: str) -> int:
                return len((await listed(ours, query)).requests)

            assert await count("") == 2
            assert await count("?limit=1") == 1
            assert await count("?outcome=client_error") == 1
            assert await count("?model=m") == 2
            assert await count("?model=other") == 0
            assert await count(f"?key={USER.stored.view.key_id}&outcome=ok") == 1
            assert await count("?since=0") == 2
            assert await count("?since=99999999999") == 0
            request_id = (good.header(b"x-request-id") or b"").decode()
            shown = msgspec.json.decode((await get(ours, f"/{request_id}")).body, type=RequestView)
            assert (shown.request_id, shown.status) == (request_id, 200)
            missing = await get(ours, "/req_nobody")
            assert (missing.status, error_of(missing)["code"]) == (404, "not_found")
            for query in ("?lim=1", "?limit=0", "?limit=x", "?outcome=bad", "?limit=1&limit=2"):
                answer = await get(ours, query)
                assert answer.status == 400, query
                error_of(answer)

    asyncio.run(main())


def test_what_is_new_and_what_is_older_are_asked_for_by_the_ends_of_requests() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", tokens=4)
            ours.publish(concurrency=8)
            pool = Pool(ours.endpoint, connect_timeout_s=1, idle_s=1)
            hanging = begin(ours, pool, "[[hang_at=2]]")
            await asyncio.wait_for(hanging.began.wait(), 5)
            for number in range(5):
                await ours.chat(f"number {number}")
            told = await listed(ours)
            every = [one for one in told.requests if one.outcome is not None]
            ends = [one.at_s + one.took_s for one in every]
            assert all(end <= told.at_s for end in ends)

            async def ids(query: str) -> list[str]:
                return [one.request_id for one in (await listed(ours, query)).requests]

            between = (ends[1] + ends[2]) / 2
            running = told.requests[0].request_id
            new = await ids(f"?ended_after={between}")
            assert new == [running, *(one.request_id for one in every[:2])]
            assert await ids(f"?ended_after={told.at_s + 60}") == [running]
            older = await ids(f"?ended_before={between}&limit=2")
            assert older == [one.request_id for one in every[2:4]]
            assert await ids(f"?ended_before={ends[-1] - 60}") == []
            assert hanging.call is not None
            hanging.call.cancel()
            await pool.close()
            await ours.settled()

    asyncio.run(main())


def test_a_gateway_that_is_told_to_remember_none_shows_only_those_under_way() -> None:
    async def main() -> None:
        async with rig(GatewayConfig(timeline_requests=0)) as ours:
            await ours.start_engine("i1")
            ours.publish()
            await ours.chat("hello")
            assert (await listed(ours)).requests == ()

    asyncio.run(main())


def test_a_gateway_says_what_its_siblings_know_too() -> None:
    async def main() -> None:
        async with rig() as one, rig() as other:
            servers = []
            for ours in (one, other):
                await ours.start_engine("i1")
                ours.publish()
                server = HttpServer(
                    ours.gateway.handle, limits=ours.gateway._config.limits,
                    on_head=ours.gateway.judge_head,
                )  # fmt: skip
                await server.listen_unix(ours.folder / "gateway.sock")
                servers.append(server)
            one.gateway._sight._siblings = lambda: [
                other.folder / "gateway.sock",
                Path("/none.sock"),
            ]
            await one.chat("a")
            answer = await other.chat("b")
            found = await listed(one)
            assert (len(found.requests), found.silent) == (2, 1)
            assert len((await listed(one, "?here=true")).requests) == 1
            request_id = (answer.header(b"x-request-id") or b"").decode()
            shown: Any = msgspec.json.decode((await get(one, f"/{request_id}")).body)
            assert shown["request_id"] == request_id
            assert (await get(one, f"/{request_id}?here=true")).status == 404
            for server in servers:
                await server.close(0.0)

    asyncio.run(main())


def test_the_metrics_tell_tokens_waits_and_gaps_of_each_model() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("i1", tokens=5, delay_ms=1)
            ours.publish(concurrency=1)
            await asyncio.gather(ours.chat("a b c"), read(ours, "a b c"))
            lines = ours.gateway.metrics.text().decode().splitlines()
            told = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            assert told['hostler_tokens_total{kind="completion",model="m"}'] == "10.0"
            assert float(told['hostler_tokens_total{kind="prompt",model="m"}']) > 0
            assert told['hostler_tokens_total{kind="cached",model="m"}'] == "0.0"
            assert told['hostler_inter_token_seconds_count{model="m"}'] == "1.0"
            assert told['hostler_first_byte_seconds_count{model="m"}'] == "1.0"
            assert told['hostler_queue_seconds_count{model="m"}'] == "1.0"
            assert told['hostler_request_seconds_count{model="m"}'] == "2.0"
            assert USER.stored.view.key_id not in "\n".join(lines)

    asyncio.run(main())
