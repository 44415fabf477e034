"""Join tokens over the admin API: shown once, listed without secrets, revoked for good."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hostler.admin.tokens import TokenDesk
from hostler.app.tokens import parse_token
from tests.unit.admin.plane import Plane


def ask(plane: Plane, method: str, path: str, body: Any = None) -> Any:
    return asyncio.run(plane.ask(method, path, body, key=plane.admin))


def test_a_token_is_shown_once_in_the_command_that_uses_it(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    made = ask(plane, "POST", "/api/v1/tokens", {"role": "host", "name": "rack"})
    assert made.status == 201
    token = parse_token(made.json["token"])
    assert token.fingerprint == "f" * 64
    assert made.json["command"] == (
        f"hostler host join --controller https://10.0.0.1:8101 --token {token}"
    )
    info = made.json["info"]
    assert (info["uses_left"], info["expires_at_s"]) == (1, plane.now_s + 86400)
    listed = ask(plane, "GET", "/api/v1/tokens")
    assert listed.json["tokens"] == [info]
    assert token.secret not in str(listed.json)


@pytest.mark.parametrize(
    ("role", "command"),
    [("worker", "hostler worker --controller "), ("gateway", "hostler gateway ")],
)
def test_each_role_has_its_command(tmp_path: Path, role: str, command: str) -> None:
    made = ask(Plane(tmp_path), "POST", "/api/v1/tokens", {"role": role, "uses": 0})
    assert made.json["command"].startswith(command)
    assert made.json["info"]["uses_left"] is None


def test_a_revoked_token_stays_listed_and_each_order_is_in_the_events(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    token_id = ask(plane, "POST", "/api/v1/tokens", {"role": "host"}).json["info"]["token_id"]
    gone = ask(plane, "DELETE", f"/api/v1/tokens/{token_id}")
    assert (gone.status, gone.json["revoked"]) == (200, True)
    assert ask(plane, "GET", "/api/v1/tokens").json["tokens"] == [gone.json]
    assert ask(plane, "DELETE", "/api/v1/tokens/nobody").status == 404
    assert [one.kind for one in plane.told] == ["token.created", "token.revoked"]
    assert {one.fields["token_id"] for one in plane.told} == {token_id}
    assert {one.fields["key_id"] for one in plane.told} == {plane.admin.view.key_id}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"role": "admin"},
        {"role": "host", "uses": -1},
        {"role": "host", "uses": 1.5},
        {"role": "host", "expires_in_s": 0},
        {"role": "host", "expires_in_s": 1e12},
        {"role": "host", "secret": "x"},
        {"role": "host", "name": "n" * 101},
    ],
)
def test_an_order_that_is_wrong_makes_no_token(tmp_path: Path, body: Any) -> None:
    plane = Plane(tmp_path)
    assert ask(plane, "POST", "/api/v1/tokens", body).status == 400
    assert (plane.store.tokens(), plane.told) == ((), [])


def test_a_server_without_a_control_port_says_how_to_have_one(tmp_path: Path) -> None:
    plane = Plane(tmp_path, desk=None)
    assert ask(plane, "GET", "/api/v1/tokens").code == "conflict"
    plane = Plane(tmp_path)
    plane = Plane(tmp_path, desk=TokenDesk(plane.store, plane.told.append))
    refused = ask(plane, "POST", "/api/v1/tokens", {"role": "host"})
    assert refused.status == 409
    assert "hostler up --tls" in refused.json["error"]["message"]
