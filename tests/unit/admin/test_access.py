"""Who may call what: every operation with every kind of key, against the table written here."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from hostler.admin.api import OPERATIONS, admin_app
from hostler.admin.operation import Call, Operation
from hostler.app.auth import NewKey, Scope
from hostler.core.errors import StartupError
from tests.unit.admin.plane import Plane

# operation -> statuses for: no key, inference, metrics, worker, expired admin, revoked admin, admin
MATRIX = """
GET    /api/v1/status                        401 403 200 403 401 401 200
GET    /api/v1/models                        401 403 403 403 401 401 200
POST   /api/v1/models                        401 403 403 403 401 401 400
GET    /api/v1/models/{name:path}/logs       401 403 403 403 401 401 404
GET    /api/v1/models/{name:path}            401 403 403 403 401 401 404
DELETE /api/v1/models/{name:path}            401 403 403 403 401 401 404
POST   /api/v1/apply                         401 403 403 403 401 401 400
GET    /api/v1/instances                     401 403 403 403 401 401 200
GET    /api/v1/instances/{instance_id}/logs  401 403 403 403 401 401 404
POST   /api/v1/instances/{instance_id}/restart 401 403 403 403 401 401 404
GET    /api/v1/select                        401 403 403 403 401 401 400
GET    /api/v1/metadata                      401 400 403 403 401 401 400
GET    /api/v1/wait                          401 403 403 403 401 401 400
GET    /api/v1/supported-models              401 403 403 403 401 401 200
GET    /api/v1/parameters                    401 403 403 403 401 401 400
GET    /api/v1/events                        401 403 403 403 401 401 200
GET    /api/v1/gateways                      401 403 403 403 401 401 503
POST   /api/v1/gateways/restart              401 403 403 403 401 401 503
GET    /api/v1/settings                      401 403 403 403 401 401 200
GET    /api/v1/hosts                         401 403 403 403 401 401 200
GET    /api/v1/hosts/{host}                  401 403 403 403 401 401 404
POST   /api/v1/hosts/{host}/drain            401 403 403 403 401 401 404
DELETE /api/v1/hosts/{host}                  401 403 403 403 401 401 404
GET    /api/v1/usage                         401 403 403 403 401 401 200
GET    /api/v1/keys                          401 403 403 403 401 401 200
POST   /api/v1/keys                          401 403 403 403 401 401 201
DELETE /api/v1/keys/{key_id}                 401 403 403 403 401 401 404
POST   /api/v1/session                       401 201 403 403 401 401 201
GET    /api/v1/session                       401 200 403 403 401 401 200
DELETE /api/v1/session                       401 200 403 403 401 401 200
POST   /api/v1/session/tickets               401 403 403 403 401 401 201
GET    /api/v1/tokens                        401 403 403 403 401 401 200
POST   /api/v1/tokens                        401 403 403 403 401 401 400
DELETE /api/v1/tokens/{token_id}             401 403 403 403 401 401 404
GET    /api/v1/openapi.json                  401 403 403 403 401 401 200
"""


def rows() -> dict[str, list[int]]:
    table = {}
    for line in MATRIX.split("\n"):
        if line:
            method, path, *statuses = line.split()
            table[f"{method} {path}"] = [int(status) for status in statuses]
    return table


def test_F99_every_operation_answers_each_kind_of_key_as_the_table_says(tmp_path: Path) -> None:
    async def main() -> dict[str, list[int]]:
        plane = Plane(tmp_path)
        keys: list[NewKey | None] = [
            None,
            plane.key("inference"),
            plane.key("metrics"),
            plane.key("worker"),
            plane.key("admin", expires_at_s=plane.now_s),
            plane.key("admin", revoked=True),
            plane.admin,
        ]
        found = {}
        for operation in OPERATIONS:
            path = operation.path.replace("{name:path}", "no/such").replace("{instance_id}", "x")
            path = path.replace("{key_id}", "nobody").replace("{host}", "nobody")
            path = path.replace("{token_id}", "nobody")
            body: Any = {} if operation.request else None
            found[f"{operation.method} {operation.path}"] = [
                (await plane.ask(operation.method, path, body, key=key)).status for key in keys
            ]
        return found

    assert asyncio.run(main()) == rows()


def test_F99_an_operation_without_a_scope_cannot_be_made() -> None:
    async def handler(call: Call) -> Response:
        return Response()

    with pytest.raises(TypeError):
        Operation(method="GET", path="/x", summary="", handler=handler)  # type: ignore[call-arg]
    for nothing in (None, "", "open", "admin"):
        with pytest.raises(StartupError, match="declares no scope"):
            Operation(
                method="GET",
                path="/x",
                summary="",
                handler=handler,
                scope=nothing,  # type: ignore[arg-type]
            )


def test_an_operation_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="declared twice"):
        Plane(tmp_path, operations=(OPERATIONS[0], OPERATIONS[0]))
    assert callable(admin_app)


def test_F99_a_refused_request_reaches_no_handler_and_its_body_is_not_read(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for key in (None, plane.key("inference")):
            answer = await plane.ask("POST", "/api/v1/models", b"\xff not json", key=key)
            assert answer.status in (401, 403)
        assert plane.control.handled == []

    asyncio.run(main())


def test_F111_absent_unknown_expired_and_revoked_keys_get_the_same_answer(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        stranger = Plane(tmp_path).admin
        bodies = set()
        for key in (
            None,
            stranger,
            plane.key("admin", expires_at_s=1.0),
            plane.key("admin", revoked=True),
        ):
            answer = await plane.ask("GET", "/api/v1/models", key=key)
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            bodies.add(answer.body)
        assert len(bodies) == 1

    asyncio.run(main())


def test_two_authorization_headers_are_refused_even_if_one_is_right(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for other in (f"Bearer {plane.admin.plain}", "Bearer nothing", ""):
            answer = await plane.ask("GET", "/api/v1/models", headers={"authorization": other})
            assert answer.status == 401

    asyncio.run(main())


def test_F101_claims_about_where_a_request_comes_from_open_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for name in ("x-real-ip", "x-forwarded-for", "forwarded", "client-ip", "x-forwarded-host"):
            for value in ("127.0.0.1", "::1", "for=127.0.0.1", "localhost"):
                answer = await plane.ask("GET", "/api/v1/models", key=None, headers={name: value})
                assert answer.status == 401

    asyncio.run(main())


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "TRACE", "OPTIONS", "get", "CONNECT"])
def test_F97_a_method_that_is_not_declared_gets_405_and_the_declared_ones(
    tmp_path: Path, method: str
) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask(method, "/api/v1/models")
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, POST"

    asyncio.run(main())


@pytest.mark.parametrize(
    "path", ["/console", "/api", "/api/v1", "/api/v1/", "/api/v1//models", "/API/v1/keys"]
)
def test_an_address_that_is_not_in_the_table_is_404(tmp_path: Path, path: str) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask("GET", path)
        assert (answer.status, answer.code) == (404, "not_found")

    asyncio.run(main())


def test_scopes_are_the_four_known_words() -> None:
    assert {scope.value for scope in Scope} == {"inference", "admin", "metrics", "worker"}
    assert {operation.scope for operation in OPERATIONS} <= set(Scope)
