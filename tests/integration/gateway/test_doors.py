"""Who may open which door: every route and every identity, against a matrix; and what is open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from hostler.app.config import HttpLimits
from hostler.core.errors import StartupError
from hostler.core.lifecycle import State
from hostler.gateway.routes import Auth, GatewayRoute, RouteTable
from hostler.wire.client import Response, fetch, stream
from hostler.wire.exchange import Exchange
from hostler.wire.server import HttpServer
from tests.integration.gateway.rig import (
    ADMIN,
    EXPIRED,
    LIMITED,
    METRICS,
    USER,
    Rig,
    error_of,
    rig,
)
from tests.unit.routing.fleet import instance, model

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
WORK = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "x"},
    "/v1/embeddings": {"model": "m", "input": "x"},
    "/v1/rerank": {"model": "m", "query": "x", "documents": ["y"]},
    "/rerank": {"model": "m", "query": "x", "documents": ["y"]},
    "/tokenize": {"model": "m", "content": "x"},
    "/v1/engine/*": {"model": "m", "tokens": [1]},
}
IDENTITIES = {
    "nobody": None,
    "wrong": "hst_0000000000_" + "0" * 49,
    "user": USER.plain,
    "limited": LIMITED.plain,
    "metrics": METRICS.plain,
    "admin": ADMIN.plain,
    "expired": EXPIRED.plain,
}
REFUSED = {"nobody": 401, "wrong": 401, "expired": 401}
INFERENCE = {**REFUSED, "user": 200, "limited": 200, "metrics": 403, "admin": 200}
METRIC = {**REFUSED, "user": 403, "limited": 403, "metrics": 200, "admin": 200}
ADMINS = {**REFUSED, "user": 403, "limited": 403, "metrics": 403, "admin": 200}
OPEN = dict.fromkeys(IDENTITIES, 200)
# The controller judges; the gateway lets reading through, and changes only with some credential.
CONTROLLER = dict.fromkeys(IDENTITIES, 299)

MATRIX = {
    ("GET", "/health"): OPEN,
    ("GET", "/ready"): OPEN,
    ("GET", "/metrics"): METRIC,
    ("GET", "/status"): METRIC,
    ("GET", "/v1/models"): INFERENCE,
    ("GET", "/v1/models/*"): INFERENCE,
    ("POST", "/v1/chat/completions"): INFERENCE,
    ("POST", "/v1/completions"): INFERENCE,
    ("POST", "/v1/embeddings"): INFERENCE,
    ("POST", "/v1/rerank"): INFERENCE,
    ("POST", "/rerank"): INFERENCE,
    ("POST", "/tokenize"): INFERENCE,
    ("POST", "/v1/engine/*"): {**INFERENCE, "user": 404, "limited": 404, "admin": 404},
    ("GET", "/api/v1/requests"): ADMINS,
    ("GET", "/api/v1/requests/*"): {**ADMINS, "admin": 404},
    ("GET", "/"): CONTROLLER,  # the console's files
    ("GET", "/console/*"): CONTROLLER,
    ("*", "/api/v1"): CONTROLLER,
    ("*", "/api/v1/*"): CONTROLLER,
}


async def ask(
    ours: Rig, method: str, path: str, key: str | None, *, header: bytes = b"authorization"
) -> Response:
    headers = [(b"content-type", b"application/json")]
    if key is not None:
        value = key.encode() if header == b"x-api-key" else b"Bearer " + key.encode()
        headers.append((header, value))
    real = path.replace("/v1/models/*", "/v1/models/m").replace(
        "/v1/engine/*", "/v1/engine/detokenize"
    )
    body = msgspec.json.encode(WORK[path]) if path in WORK else b""
    return await fetch(
        ours.endpoint, method, real.replace("*", "x"), headers=headers, body=body, timeout_s=10
    )


@contextlib.asynccontextmanager
async def controller(ours: Rig, seen: list[Exchange]) -> AsyncIterator[None]:
    def answer(exchange: Exchange) -> None:
        seen.append(exchange)
        exchange.send(299, b"{}", [(b"content-type", b"application/json")])

    server = HttpServer(answer, limits=HttpLimits())
    await server.listen_unix(ours.folder / "admin.sock")
    yield
    await server.close(0.0)


def test_F99_every_route_and_every_identity_are_as_the_matrix_says() -> None:
    async def main() -> None:
        async with rig() as ours, controller(ours, []):
            await ours.start_engine("a")
            ours.publish()
            routes = {(route.method, route.path) for route in ours.gateway.table.routes}
            assert routes == set(MATRIX)
            heads = {
                ("HEAD", path): MATRIX[method, path] for method, path in routes if method == "GET"
            }
            for (method, path), wanted in (MATRIX | heads).items():
                found = {}
                for who, key in IDENTITIES.items():
                    answer = await ask(ours, "GET" if method == "*" else method, path, key)
                    found[who] = answer.status
                    if method == "HEAD":
                        assert answer.body == b""
                    elif answer.status >= 400 and path != "/v1/engine/*":
                        error_of(answer)
                assert found == wanted, (method, path)
            for path in ("/api/v1/models", "/api/v1/openapi.json"):
                assert (await ask(ours, "POST", path, None)).status == 401
                assert (await ask(ours, "DELETE", path, USER.plain)).status == 299
            assert (
                await ask(ours, "GET", "/v1/models", USER.plain, header=b"x-api-key")
            ).status == 200

    asyncio.run(main())


def test_F99_all_refusals_for_want_of_a_key_are_the_same() -> None:
    async def main() -> None:
        async with rig() as ours:
            ours.source.publish([model("m")], [])
            bodies = {
                (await ask(ours, "POST", "/v1/chat/completions", IDENTITIES[who])).body
                for who in REFUSED
            }
            assert len(bodies) == 1

    asyncio.run(main())


def test_F99_a_route_that_declares_no_policy_stops_the_start() -> None:
    def handler(exchange: Exchange, key: object) -> None:
        raise AssertionError

    route = GatewayRoute(method="GET", path="/secret", handler=handler)
    with pytest.raises(StartupError, match="/secret"):
        RouteTable([route])
    RouteTable([GatewayRoute(method="GET", path="/x", handler=handler, auth=Auth.OPEN)])


def test_paths_that_are_nearly_a_route_are_none() -> None:
    async def main() -> None:
        async with rig() as ours:
            ours.source.publish([model("m")], [])
            for path in (
                "/V1/models",
                "/v1/models/",
                "/v1",
                "/console",
                "/admin",
                "/metrics/",
                "/api/v2/x",
            ):
                answer = await ask(ours, "GET", path, ADMIN.plain)
                assert answer.status == 404, path
            wrong = await ask(ours, "GET", "/v1/chat/completions", ADMIN.plain)
            assert wrong.status == 405
            assert error_of(wrong)["code"] == "method_not_allowed"
            assert wrong.header(b"allow") == b"POST"
            for path in ("/v1/models", "/v1/models/m"):
                wrong = await ask(ours, "POST", path, ADMIN.plain)
                assert (wrong.status, wrong.header(b"allow")) == (405, b"GET, HEAD")

    asyncio.run(main())


def test_a_key_limited_to_models_sees_and_uses_those_alone() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish(models=[model("m"), model("secret")])
            listed = msgspec.json.decode((await ask(ours, "GET", "/v1/models", LIMITED.plain)).body)
            assert [entry["id"] for entry in listed["data"]] == ["m"]
            for name in ("secret", "no-such-model"):
                body = {**CHAT, "model": name}
                answer = await ours.post("/v1/chat/completions", body, key=LIMITED.plain)
                assert answer.status == 403
                assert error_of(answer)["code"] == "model_not_allowed"
            answer = await ours.post("/v1/chat/completions", {**CHAT, "model": "secrets"})
            assert answer.status == 404
            assert "'secret'" in error_of(answer)["message"]

    asyncio.run(main())


def test_a_model_that_cannot_serve_yet_says_what_it_waits_for() -> None:
    async def main() -> None:
        async with rig() as ours:
            assert (await ask(ours, "GET", "/ready", None)).status == 503
            ours.source.publish([model("m", loading=True)], [instance("a", state=State.STARTING)])
            answer = await ours.chat("x")
            assert answer.status == 503
            assert error_of(answer)["code"] == "model_loading"
            assert "1 starting" in error_of(answer)["message"]
            assert int(answer.header(b"retry-after") or 0) >= 1
            not_ready = await ask(ours, "GET", "/ready", None)
            assert not_ready.status == 503
            assert int(not_ready.header(b"retry-after") or 0) >= 1
            await ours.start_engine("a")
            ours.publish()
            assert (await ask(ours, "GET", "/ready", None)).status == 200

    asyncio.run(main())


def test_the_controller_is_reached_and_its_absence_is_said() -> None:
    async def main() -> None:
        async with rig() as ours:
            ours.source.publish([model("m")], [])
            seen: list[Exchange] = []
            away = await ask(ours, "GET", "/api/v1/models", ADMIN.plain)
            assert away.status == 503
            assert error_of(away)["code"] == "controller_unavailable"
            assert int(away.header(b"retry-after") or 0) >= 1
            async with controller(ours, seen):
                answer = await fetch(
                    ours.endpoint,
                    "PUT",
                    "/api/v1/models/x?a=1",
                    headers=[(b"authorization", b"Bearer k"), (b"x-evil", b"1")],
                    body=b'{"b":2}',
                    timeout_s=5,
                )
                assert answer.status == 299
                request = seen[0].request
                assert (request.method, request.path, request.query) == (
                    "PUT",
                    "/api/v1/models/x",
                    "a=1",
                )
                assert request.header(b"authorization") == b"Bearer k"
                assert request.header(b"x-evil") is None
                assert request.body == b'{"b":2}'

    asyncio.run(main())


def test_events_of_the_controller_come_through_as_they_happen() -> None:
    async def main() -> None:
        async with rig() as ours:
            ours.source.publish([model("m")], [])
            gone = asyncio.Event()
            held: list[Exchange] = []

            def answer(exchange: Exchange) -> None:
                exchange.on_gone = gone.set
                exchange.start(200, [(b"content-type", b"text/event-stream")], None)
                exchange.write(b"data: 1\n\n")
                held.append(exchange)

            server = HttpServer(answer, limits=HttpLimits())
            await server.listen_unix(ours.folder / "admin.sock")
            parts = stream(ours.endpoint, "GET", "/api/v1/events", timeout_s=5, idle_s=5)
            assert await anext(parts) == b"data: 1\n\n"
            held[0].write(b"data: 2\n\n")
            assert await anext(parts) == b"data: 2\n\n"
            await parts.aclose()
            await asyncio.wait_for(gone.wait(), 2)
            await server.close(0.0)

    asyncio.run(main())


def test_metrics_have_bounded_labels() -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish()
            await ours.chat("x")
            for number in range(50):
                await ours.post("/v1/chat/completions", {**CHAT, "model": f"made-up-{number}"})
            text = (await ask(ours, "GET", "/metrics", METRICS.plain)).body.decode()
            assert 'hostler_requests_total{model="m",route="chat",status="200"} 1.0' in text
            assert 'hostler_refusals_total{code="model_not_found"} 50.0' in text
            assert "made-up" not in text
            assert 'hostler_in_flight{model="m"} 0.0' in text

    asyncio.run(main())


def test_the_access_log_has_one_line_a_request_and_no_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with rig() as ours:
            await ours.start_engine("a")
            ours.publish()
            await ours.chat("a-very-private-prompt")
            await ours.chat("[[status=400]] a-very-private-prompt")

    with caplog.at_level("INFO", logger="hostler.gateway.access"):
        asyncio.run(main())
    lines = [r.__dict__["fields"] for r in caplog.records if r.name == "hostler.gateway.access"]
    assert [line["status"] for line in lines] == [200, 400]
    assert {line["key_id"] for line in lines} == {USER.view.key_id}
    assert all(line["request_id"] and line["model"] == "m" for line in lines)
    assert "private" not in caplog.text + repr(lines)
