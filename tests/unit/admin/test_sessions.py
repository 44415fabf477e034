"""How a browser signs in and out, and what the console's files are answered with."""

import asyncio
import gzip
from pathlib import Path

import pytest

from hostler.app.auth import NewKey, new_key
from tests.unit.admin.plane import Answer, Plane

SESSION = "/api/v1/session"


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


def cookie_of(answer: Answer) -> str:
    return answer.headers["set-cookie"]


def as_key(plane: Plane, plain: str) -> dict[str, str]:
    return {"authorization": f"Bearer {plain}"}


def test_a_key_is_exchanged_for_a_cookie_and_signing_out_ends_it(plane: Plane) -> None:
    async def main() -> None:
        asked = {"x-forwarded-host": "127.0.0.1:8100", "origin": "http://127.0.0.1:8100"}
        answer = await plane.ask("POST", SESSION, headers=asked)
        name, _, rest = cookie_of(answer).partition("=")
        value, _, attributes = rest.partition(";")
        assert (answer.status, name) == (201, "hostler_session_8100")
        assert attributes == " Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"
        assert value not in str(answer.json)
        found = await plane.ask("GET", SESSION, key=None, headers=as_key(plane, value))
        assert found.json["key_id"] == plane.admin.view.key_id
        assert found.json["expires_at_s"] == plane.now_s + 43_200
        listed = await plane.ask("GET", "/api/v1/keys")
        assert [one["key_id"] for one in listed.json["keys"]] == [plane.admin.view.key_id]
        gone = await plane.ask("DELETE", SESSION, key=None, headers=as_key(plane, value))
        assert "Max-Age=0" in cookie_of(gone)
        again = await plane.ask("GET", SESSION, key=None, headers=as_key(plane, value))
        assert again.status == 401
        assert (await plane.ask("GET", SESSION)).status == 200  # the key itself is as it was

    asyncio.run(main())


def test_over_tls_the_cookie_is_never_sent_in_the_clear(plane: Plane) -> None:
    asked = {"x-forwarded-host": "models.example", "origin": "https://models.example"}
    answer = asyncio.run(plane.ask("POST", SESSION, headers=asked))
    assert cookie_of(answer).startswith("hostler_session=hst_")
    assert cookie_of(answer).endswith("; Secure")


def test_a_ticket_works_once_for_ten_minutes_and_for_nothing_else(plane: Plane) -> None:
    async def ticket() -> dict[str, str]:
        made = await plane.ask("POST", f"{SESSION}/tickets")
        assert made.status == 201
        return as_key(plane, made.json["ticket"])

    async def main() -> None:
        first = await ticket()
        refused = await plane.ask("GET", "/api/v1/models", key=None, headers=first)
        assert refused.status == 401
        answers = await asyncio.gather(
            *(plane.ask("POST", SESSION, key=None, headers=first) for _ in range(5))
        )
        assert sorted(one.status for one in answers) == [201, 401, 401, 401, 401]
        late = await ticket()
        plane.now_s += 601
        assert (await plane.ask("POST", SESSION, key=None, headers=late)).status == 401

    asyncio.run(main())


def test_a_session_of_a_key_for_one_model_may_do_no_more_than_that_key(plane: Plane) -> None:
    async def main() -> None:
        made: NewKey = new_key(["inference"], models=["qwen"])
        plane.store.save_key(made.stored)
        answer = await plane.ask("POST", SESSION, key=made)
        value = cookie_of(answer).partition("=")[2].partition(";")[0]
        assert answer.json["models"] == ["qwen"]
        for method, path in (("GET", "/api/v1/keys"), ("POST", f"{SESSION}/tickets")):
            assert (
                await plane.ask(method, path, key=None, headers=as_key(plane, value))
            ).status == 403

    asyncio.run(main())


def test_the_page_needs_no_key_and_may_load_nothing_of_others(plane: Plane) -> None:
    async def main() -> None:
        page = await plane.ask("GET", "/", key=None)
        assert page.status == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert b"<script>" not in page.body
        assert b" style=" not in page.body
        small = await plane.ask("GET", "/", key=None, headers={"accept-encoding": "br, gzip"})
        assert gzip.decompress(small.body) == page.body
        known = {"if-none-match": page.headers["etag"]}
        assert (await plane.ask("GET", "/", key=None, headers=known)).status == 304
        script = await plane.ask("GET", "/console/app.js", key=None)
        assert script.headers["content-type"].startswith("text/javascript")
        for path in ("/console/", "/console/../api.py", "/console/__init__.py", "/console/no.js"):
            assert (await plane.ask("GET", path, key=None)).status == 404

    asyncio.run(main())
