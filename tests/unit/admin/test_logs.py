"""Logs: the last lines, the new ones, and no file but an instance's own."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostler.admin.logs import LogTail
from hostler.app.auth import new_key
from hostler.core.worker import WorkerStartupRequest
from tests.unit.admin.plane import Plane


def test_the_last_lines_of_a_log_are_told_as_json_or_text(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a/b", "replicas": 2})
        (tmp_path / "worker-i0.log").write_text("one\ntwo\r\nthree")
        (tmp_path / "worker-i1.log").write_text("only\n")
        one = await plane.ask("GET", "/api/v1/instances/i0/logs?tail=2")
        assert one.json == {"logs": [{"instance_id": "i0", "lines": ["two", "three"]}]}
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


def test_a_log_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    tail = LogTail("i", tmp_path / "none")
    assert tail.last_lines(5) == tail.new_lines() == []


def test_new_lines_come_whole_and_a_cut_file_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = LogTail("i", path)
    assert tail.last_lines(5) == ["old"]
    with path.open("a") as file:
        file.write("new\nhal")
        file.flush()
        assert tail.new_lines() == ["new"]
        file.write("f\n")
        file.flush()
        assert tail.new_lines() == ["half"]
    path.write_text("")
    assert tail.new_lines() == []
    path.write_text("again\n")
    assert tail.new_lines() == ["again"]


def test_a_long_log_is_read_from_its_end_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for n in range(40_000):
            file.write(b"%0100d\n" % n)
    lines = LogTail("i", path).last_lines(10_000)
    assert [int(line) for line in lines] == list(range(30_000, 40_000))


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"")
    tail = LogTail("i", path)
    path.write_bytes(b"x" * 300_000)
    seen = sum(len(line) for _ in range(6) for line in tail.new_lines())
    assert seen >= 200_000


def test_a_key_that_an_engine_printed_is_not_shown(tmp_path: Path) -> None:
    key = new_key(["admin"]).plain
    path = tmp_path / "log"
    path.write_text(f"calling with {key}\nAuthorization: Bearer sk-other-secret\n")
    shown = "\n".join(LogTail("i", path).last_lines(5))
    assert key.split("_")[2] not in shown
    assert "sk-other-secret" not in shown


DOTS = st.sampled_from(["..", ".", "%2e%2e", "..%2f", "%2f", "\\", "...", "\0", "~", "i0", "i0\n"])
PARTS = st.lists(DOTS | st.text(max_size=6), min_size=1, max_size=5)


@given(PARTS.map("/".join))
@example("../canary")
@example("../../../../../../../../etc/passwd")
@example("i0/../../canary")
@example("%2e%2e/canary")
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_F104_no_id_or_name_leads_to_a_file_outside(name: str) -> None:
    address = quote(name, safe="/.%~\\") if "%" not in name else name.replace("\0", "%00")
    for path in (f"/api/v1/instances/{name}/logs", f"/api/v1/models/{name}/logs", address):
        answer = asyncio.run(canary_plane().ask("GET", path.partition("?")[0]))
        assert b"canary-content" not in answer.body
        assert answer.status in (200, 400, 404, 405)
        if answer.status == 200:
            assert name in ("i0", "")


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
