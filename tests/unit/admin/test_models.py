"""Orders about models: start, show, stop, apply; and keys."""

import asyncio
from pathlib import Path

import pytest

from tests.unit.admin.plane import Plane


def test_a_start_is_accepted_at_once_and_says_where_to_follow(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.control.happen("earlier")
        answer = await plane.ask("POST", "/api/v1/models", {"model": "org/qwen", "replicas": 2})
        assert answer.status == 202
        assert answer.json["created"] is True
        assert answer.json["model"]["wanted"] == 2
        address = answer.json["events"]
        assert address == "/api/v1/events?follow=true&after=1&model=org%2Fqwen"
        page = await plane.ask("GET", address.replace("follow=true&", "").replace("%2F", "/"))
        assert [event["kind"] for event in page.json["events"]] == ["instance.ready"] * 2

    asyncio.run(main())


def test_the_same_start_again_is_200_and_another_one_409_with_the_difference(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "qwen", "replicas": 2})
        again = await plane.ask("POST", "/api/v1/models", {"model": "qwen", "replicas": 2})
        assert (again.status, again.json["created"]) == (200, False)
        other = await plane.ask("POST", "/api/v1/models", {"model": "qwen", "replicas": 3})
        assert (other.status, other.code) == (409, "already_running")
        assert "replicas" in other.json["error"]["message"]

    asyncio.run(main())


def test_a_model_with_slashes_in_its_name_is_shown_listed_and_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "a/b/c"})
        shown = await plane.ask("GET", "/api/v1/models/a/b/c")
        assert (shown.json["name"], shown.json["ready"]) == ("a/b/c", 1)
        assert [one["instance_id"] for one in shown.json["instances"]] == ["i0"]
        listed = await plane.ask("GET", "/api/v1/models")
        assert [one["states"] for one in listed.json["models"]] == [{"ready": 1}]
        stopped = await plane.ask("DELETE", "/api/v1/models/a/b/c")
        assert (stopped.status, stopped.json["model"]["wanted"]) == (202, 0)
        assert (await plane.ask("GET", "/api/v1/models/a/b/c")).status == 200
        await plane.ask("DELETE", "/api/v1/models/a/b/c?delete=true")
        gone = await plane.ask("GET", "/api/v1/models/a/b/c")
        assert (gone.status, gone.code) == (404, "model_not_found")

    asyncio.run(main())


def test_no_name_can_be_mistaken_for_the_logs_of_another(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        answer = await plane.ask("POST", "/api/v1/models", {"model": "qwen/logs"})
        assert (answer.status, answer.code) == (400, "invalid_value")

    asyncio.run(main())


def test_two_types_of_one_name_must_be_told_apart(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for kind in ("llm", "reranker"):
            await plane.ask("POST", "/api/v1/models", {"model": "both", "worker_type": kind})
        either = await plane.ask("GET", "/api/v1/models/both")
        assert (either.status, either.json["error"]["param"]) == (400, "worker_type")
        one = await plane.ask("GET", "/api/v1/models/both?worker_type=reranker")
        assert one.json["worker_key"] == "both@reranker"
        assert len(one.json["instances"]) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("engine=llama.cpp", 200, "context_length"),
        ("engine=lama.cpp", 400, "did you mean 'llama.cpp'?"),
        ("model=qwen", 200, "context_length"),
        ("model=nothing", 404, "model_not_found"),
        ("", 400, "either engine or model"),
        ("engine=a&model=b", 400, "either engine or model"),
        ("engine=a&engine=b", 400, "given twice"),
        ("engin=a", 400, "did you mean 'engine'?"),
        ("model=qwen&worker_type=llmm", 400, "worker_type"),
    ],
)
def test_parameters_are_described_by_engine_or_model(
    tmp_path: Path, query: str, status: int, text: str
) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        await plane.ask("POST", "/api/v1/models", {"model": "qwen"})
        answer = await plane.ask("GET", f"/api/v1/parameters?{query}")
        assert answer.status == status
        assert text in answer.body.decode()

    asyncio.run(main())


def test_what_can_be_started_and_how_the_controller_is(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        supported = await plane.ask("GET", "/api/v1/supported-models")
        assert supported.json["models"][0]["model"] == "qwen"
        await plane.ask("POST", "/api/v1/models", {"model": "qwen"})
        order = {"model": "qwen", "apply_type": "restart"}
        applied = await plane.ask("POST", "/api/v1/apply", order)
        assert [one["instance_id"] for one in applied.json["instances"]] == ["i0"]
        status = await plane.ask("GET", "/api/v1/status", key=plane.key("metrics"))
        assert (status.json["incarnation"], status.json["models"]) == (3, {"ready": 1})
        instances = await plane.ask("GET", "/api/v1/instances?model=other")
        assert instances.json == {"instances": []}

    asyncio.run(main())


def test_F110_a_key_is_shown_once_and_listed_by_id_and_last_four(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        order = {"scopes": ["inference"], "name": "app", "models": ["qwen"], "expires_in_s": 60}
        made = await plane.ask("POST", "/api/v1/keys", order)
        assert (made.status, plane.changes) == (201, 1)
        plain = made.json["key"]
        assert plane.keyring().identify(f"Bearer {plain}".encode()).expires_at_s == 1_060.0
        listed = await plane.ask("GET", "/api/v1/keys")
        mine = next(key for key in listed.json["keys"] if key["name"] == "app")
        assert (mine["last_4"], mine["scopes"]) == (plain[-4:], ["inference"])
        secret = plain.split("_")[2]
        assert secret not in listed.body.decode()
        assert "secret_hash" not in listed.body.decode()
        gone = await plane.ask("DELETE", f"/api/v1/keys/{mine['key_id']}")
        assert (gone.json["revoked"], plane.changes) == (True, 2)

    asyncio.run(main())


def test_a_key_order_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for order, param in (
            ({"scopes": []}, "scopes"),
            ({"scopes": ["root"]}, "scopes"),
            ({"models": ["../x"]}, "name"),
            ({"name": "admin.key"}, "name"),
            ({"expires_in_s": -1}, "expires_in_s"),
            ({"name": "x" * 101}, "name"),
        ):
            answer = await plane.ask("POST", "/api/v1/keys", order)
            assert (answer.status, answer.json["error"]["param"]) == (400, param)
        assert plane.changes == 0

    asyncio.run(main())


def test_a_key_cannot_revoke_itself(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        answer = await plane.ask("DELETE", f"/api/v1/keys/{plane.admin.view.key_id}")
        assert (answer.status, answer.code) == (409, "conflict")
        assert (await plane.ask("GET", "/api/v1/keys")).status == 200

    asyncio.run(main())
