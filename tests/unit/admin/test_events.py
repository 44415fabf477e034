"""Events: pages, and streams that can be taken up again."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from starlette.types import Message

from hostler.admin.events import sse_event
from hostler.core.worker import OperatorEvent
from tests.unit.admin.plane import Plane, scope_of


class Follower:
    """A client that reads a stream until it has seen enough, then leaves."""

    def __init__(self, plane: Plane, address: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        key = ("authorization", f"Bearer {plane.admin.plain}")
        self._scope = scope_of("GET", address, [key, *headers])
        self._plane = plane
        self._seen = asyncio.Condition()
        self._leaves = asyncio.Event()
        self._asked = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""

    async def run(self) -> None:
        await self._plane.app(self._scope, self._receive, self._send)

    async def see(self, text: str) -> None:
        async with asyncio.timeout(5), self._seen:
            await self._seen.wait_for(lambda: text in self.text)

    def leave(self) -> None:
        self._leaves.set()

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._leaves.is_set():
            raise OSError("the client has gone")
        async with self._seen:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                fields = message["headers"]
                self.headers = {name.decode(): value.decode() for name, value in fields}
            self.text += message.get("body", b"").decode()
            self._seen.notify_all()


def test_the_newest_events_are_listed_and_pages_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for n in range(7):
            await plane.control.happen(f"k{n}", model="ab"[n % 2])
        newest = await plane.ask("GET", "/api/v1/events?limit=2")
        assert [one["seq"] for one in newest.json["events"]] == [6, 7]
        page = await plane.ask("GET", "/api/v1/events?after=0&limit=3")
        assert ([one["seq"] for one in page.json["events"]], page.json["next"]) == ([1, 2, 3], 3)
        end = await plane.ask("GET", "/api/v1/events?after=7")
        assert end.json == {"events": [], "next": 7}
        far = await plane.ask("GET", "/api/v1/events?after=65051106909451394991750381568")
        assert far.status == 400
        mine = await plane.ask("GET", "/api/v1/events?after=0&model=b")
        assert [one["kind"] for one in mine.json["events"]] == ["k1", "k3", "k5"]

    asyncio.run(main())


@pytest.mark.parametrize("how", ["accept", "follow"])
def test_a_stream_tells_what_happens_and_ends_when_the_client_leaves(
    tmp_path: Path, how: str
) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.control.happen("before")
        asked = [("accept", "text/event-stream")] if how == "accept" else []
        address = "/api/v1/events" + ("?follow=true" if how == "follow" else "")
        follower = Follower(plane, address, asked)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(follower.run())
            await follower.see("hostler events")
            await plane.control.happen("model.start", "qwen")
            await follower.see('id: 2\nevent: model.start\ndata: {"seq":2,')
            follower.leave()
            await plane.control.happen("after")
            async with asyncio.timeout(5):
                await asyncio.wait([running])
        assert "before" not in follower.text
        assert follower.headers["content-type"].startswith("text/event-stream")
        assert follower.headers["x-accel-buffering"] == "no"

    asyncio.run(main())


def test_a_stream_is_taken_up_after_the_last_event_id(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for n in range(500):
            await plane.control.happen("tick", model="ab"[n % 2])
        follower = Follower(
            plane, "/api/v1/events?follow=true&after=9&model=a", [("last-event-id", "3")]
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            await follower.see("id: 499\n")
            follower.leave()
            await plane.control.happen("end", model="a")
        seen = [int(line[4:]) for line in follower.text.split("\n") if line.startswith("id: ")]
        assert seen == list(range(5, 500, 2))

    asyncio.run(main())


def test_F63_a_silent_stream_is_kept_alive_by_comments(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path, keep_alive_s=0.02)
        follower = Follower(plane, "/api/v1/events?follow=true&model=quiet")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            await follower.see(": keep-alive\n\n: keep-alive\n\n")
            for _ in range(20):  # others' events do not hold the comments back
                await plane.control.happen("tick", model="loud")
            follower.text = ""
            await follower.see(": keep-alive")
            follower.leave()

    asyncio.run(main())


def test_streams_are_bounded_and_their_places_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path, followers=1, keep_alive_s=0.02)
        for _ in range(3):
            first = Follower(plane, "/api/v1/events?follow=true")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(first.run())
                await first.see("hostler events")
                refused = await plane.ask("GET", "/api/v1/events?follow=true")
                assert (refused.status, refused.code) == (503, "overloaded")
                assert int(refused.headers["retry-after"]) >= 1
                first.leave()

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["-1", "x", "1e3", "", "\u0663", "9" * 30])
def test_a_last_event_id_that_is_no_number_is_refused(tmp_path: Path, wrong: str) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask(
            "GET", "/api/v1/events", headers={"last-event-id": wrong}
        )
        assert answer.status == 400

    asyncio.run(main())


def test_F96_nothing_in_an_event_can_begin_a_field_of_its_own() -> None:
    event = OperatorEvent(seq=1, kind="a\nid: 9", message="x\r\ndata: y\n\nid: 7")
    lines = sse_event(event).split(b"\n")
    assert [line.partition(b":")[0] for line in lines] == [b"id", b"event", b"data", b"", b""]


def test_a_log_is_followed_line_by_line(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a"})
        path = tmp_path / "worker-i0.log"
        path.write_text("first\n")
        follower = Follower(plane, "/api/v1/models/a/logs?follow=true")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.run())
            await follower.see("event: i0\ndata: first\n\n")
            with path.open("a") as file:
                file.write("second\n")
            await follower.see("data: second\n\n")
            plane.control.instances.clear()  # the manager forgets it: the stream ends by itself

    asyncio.run(main())


def test_a_client_that_leaves_before_its_answer_is_no_fault_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        follower = Follower(plane, "/api/v1/models")
        follower.leave()
        await follower.run()
        assert plane.control.handled == ["run_data"]

    asyncio.run(main())
    assert caplog.records == []
