"""Logs: the last lines, the new ones, and no file but an instance's own."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostler.admin import logs
from hostler.core.trust import LogUnavailable
from hostler.core.worker import WorkerStartupRequest
from tests.amounts import many
from tests.unit.admin.plane import Plane
from tests.unit.admin.test_events import Follower


def test_the_last_lines_of_a_log_are_told_as_json_or_text(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a/b", "replicas": 2})
        (tmp_path / "worker-i0.log").write_text("one\ntwo\r\nthree")
        (tmp_path / "worker-i1.log").write_text("only\n")
        one = await plane.ask("GET", "/api/v1/instances/i0/logs?tail=2")
        assert one.json == {"logs": [{"instance_id": "i0", "lines": ["two", "three"], "error": ""}]}
        both = await plane.ask("GET", "/api/v1/models/a/b/logs", headers={"accept": "text/plain"})
        assert both.body == b"==> i0 <==\none\ntwo\nthree\n==> i1 <==\nonly\n"
        none = await plane.ask("GET", "/api/v1/instances/i1/logs?tail=0")
        assert none.json["logs"][0]["lines"] == []

    asyncio.run(main())


@pytest.mark.parametrize("query", ["tail=-1", "tail=10001", "tail=many", "follow=perhaps", "n=1"])
def test_a_query_that_is_not_known_is_refused(tmp_path: Path, query: str) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a"})
        answer = await plane.ask("GET", f"/api/v1/instances/i0/logs?{query}")
        assert answer.status == 400

    asyncio.run(main())


class Elsewhere:
    """The log of an instance on a machine that may fall silent."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_silent = False
        self.closed = 0

    async def last_lines(self, count: int) -> list[str]:
        return (await self.new_lines())[-count:]

    async def new_lines(self) -> list[str]:
        if self.is_silent:
            raise LogUnavailable("host 'b' does not answer")
        lines, self.lines = self.lines, []
        return lines

    async def close(self) -> None:
        self.closed += 1


def test_a_log_of_a_silent_machine_says_so_beside_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a", "replicas": 2})
        (tmp_path / "worker-i0.log").write_text("here\n")
        log = plane.control.logs["i1"] = Elsewhere()
        log.is_silent = True
        both = (await plane.ask("GET", "/api/v1/models/a/logs")).json["logs"]
        assert [one["lines"] for one in both] == [["here"], []]
        assert [one["error"] for one in both] == ["", "host 'b' does not answer"]
        plain = await plane.ask("GET", "/api/v1/models/a/logs", headers={"accept": "text/plain"})
        assert b"==> i1 <==\n-- host 'b' does not answer --\n" in plain.body
        alone = await plane.ask("GET", "/api/v1/instances/i1/logs")
        assert (alone.status, alone.code) == (503, "log_unavailable")
        assert log.closed == 3

    asyncio.run(main())


def test_who_follows_is_told_once_that_a_machine_is_silent_and_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "AGAIN_S", 0.05)

    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a"})
        log = plane.control.logs["i0"] = Elsewhere()
        log.lines = ["one", "two"]
        follower = Follower(plane, "/api/v1/models/a/logs?follow=true&tail=1")
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(follower.run())
            await follower.see("event: i0\ndata: two\n\n")
            log.is_silent = True
            await follower.see("data: -- host 'b' does not answer --")
            await asyncio.sleep(0.6)  # two looks more
            log.is_silent = False
            log.lines = ["three"]
            await follower.see("data: three")
            follower.leave()
            await running
        assert "one" not in follower.text
        assert follower.text.count("does not answer") == 1
        assert follower.text.count("-- it answers again --") == 1
        assert log.closed >= 1

    asyncio.run(main())


def test_an_answer_holds_so_many_bytes_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ANSWER_BYTES", 1000)

    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a", "replicas": 3})
        for number in range(3):
            (tmp_path / f"worker-i{number}.log").write_text("x" * 400 + "\n")
        found = (await plane.ask("GET", "/api/v1/models/a/logs")).json["logs"]
        assert [len(one["lines"]) for one in found] == [1, 1, 0]
        assert found[2]["error"].startswith("left out")

    asyncio.run(main())


def test_a_machine_that_says_nothing_for_ever_does_not_hold_up_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ALL_S", 0.2)

    class Mute(Elsewhere):
        async def new_lines(self) -> list[str]:
            await asyncio.Event().wait()
            return []

    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a", "replicas": 2})
        (tmp_path / "worker-i0.log").write_text("here\n")
        plane.control.logs["i1"] = Mute()
        found = (await plane.ask("GET", "/api/v1/models/a/logs")).json["logs"]
        assert [one["lines"] for one in found] == [["here"], []]
        assert found[1]["error"] == "it was not read within 0.2 s"

    asyncio.run(main())


DOTS = st.sampled_from(["..", ".", "%2e%2e", "..%2f", "%2f", "\\", "...", "\0", "~", "i0", "i0\n"])
PARTS = st.lists(DOTS | st.text(max_size=6), min_size=1, max_size=5)


@given(PARTS.map("/".join))
@example("../canary")
@example("../../../../../../../../etc/passwd")
@example("i0/../../canary")
@example("%2e%2e/canary")
@settings(max_examples=many(1500), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_F104_no_id_or_name_leads_to_a_file_outside(name: str) -> None:
    address = quote(name, safe="/.%~\\") if "%" not in name else name.replace("\0", "%00")
    for path in (f"/api/v1/instances/{name}/logs", f"/api/v1/models/{name}/logs", address):
        answer = asyncio.run(canary_plane().ask("GET", path.partition("?")[0]))
        assert b"canary-content" not in answer.body
        assert answer.status in (200, 400, 404, 405)
        if answer.status == 200:
            assert name in ("i0", "") or path == "/"  # where the console is


_planes: list[Plane] = []


def canary_plane() -> Plane:
    return _planes[0]


@pytest.fixture(autouse=True, scope="module")
def _canary(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "canary").write_text("canary-content")
    logs = root / "logs"
    logs.mkdir()
    (logs / "worker-i0.log").write_text("fine\n")
    plane = Plane(logs)
    asyncio.run(plane.control.start_model(WorkerStartupRequest(model="qwen")))
    _planes[:] = [plane]
