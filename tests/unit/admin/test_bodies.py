"""What a client may send: every mistake is a 4xx that names the field, and never a 500."""

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler.admin.body import BODY_BYTES, decode
from hostler.core.errors import HostlerError
from hostler.core.worker import WorkerApplyRequest, WorkerStartupRequest
from tests.unit.admin.plane import Plane

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "code", "param", "text"),
    [
        (b"", "invalid_json", None, "not valid JSON"),
        (b"{", "invalid_json", None, "not valid JSON"),
        (b'{"model": NaN}', "invalid_json", None, "not valid JSON"),
        (b'\xff\xfe{"model"', "invalid_json", None, "not valid JSON"),
        (b'{"model": "\xff"}', "invalid_json", None, "not valid JSON"),
        (b'\xef\xbb\xbf{"model": "a"}', "invalid_json", None, "not valid JSON"),
        (b'{"model":"a","params":{"x":' + b"[" * 5000, "invalid_json", None, "too deeply"),
        (b"[]", "invalid_value", None, "expected `object`"),
        (b"{}", "invalid_value", "model", "model: missing"),
        (b'{"model": 7}', "invalid_value", "model", "expected `str`, got `int`"),
        (b'{"model": "a", "replicas": "2"}', "invalid_value", "replicas", "expected `int | null`"),
        (b'{"model": "a", "replicas": -1}', "invalid_value", "replicas", "need 0 or more"),
        (b'{"model": "a", "replcas": 2}', "unknown_parameter", "replcas", "'replicas'"),
        (b'{"model": "a", "__proto__": {}}', "unknown_parameter", "__proto__", "known: model"),
        (b'{"model": "a", "worker_type": "cat"}', "invalid_value", "worker_type", "cat"),
        (b'{"model": "a", "urls": [1]}', "invalid_value", "urls[0]", "expected `str`"),
        (b'{"model": "../etc"}', "invalid_value", "name", "model name"),
        (b'{"model": "A"}', "invalid_value", "name", "model name"),
    ],
)
def test_a_wrong_body_is_refused_and_the_field_named(
    tmp_path: Path, body: bytes, code: str, param: str | None, text: str
) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask("POST", "/api/v1/models", body)
        error = answer.json["error"]
        assert (answer.status, error["code"], error["param"]) == (400, code, param)
        assert text in error["message"]
        assert error["type"] == "invalid_request_error"
        assert answer.headers["x-should-retry"] == "false"

    asyncio.run(main())


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": ""},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_plain_json_is_415(tmp_path: Path, headers: dict[str, str]) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask("POST", "/api/v1/models", {}, headers=headers)
        assert (answer.status, answer.code) == (415, "unsupported_media_type")

    asyncio.run(main())


def test_F91_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    async def main() -> None:
        answer = await Plane(tmp_path).ask("POST", "/api/v1/models", b" " * (BODY_BYTES + 1))
        assert (answer.status, answer.code) == (413, "request_too_large")

    asyncio.run(main())


def refused(data: bytes, kind: type[msgspec.Struct]) -> HostlerError | None:
    """How the decoder refuses these bytes, None when it takes them."""
    try:
        decode(data, kind)
    except HostlerError as error:
        return error
    return None


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_F92_any_bytes_are_either_understood_or_refused_with_a_client_error(data: bytes) -> None:
    for kind in (WorkerStartupRequest, WorkerApplyRequest):
        refusal = refused(data, kind)
        assert refusal is None or refusal.http_status == 400


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
fields = st.sampled_from([*WorkerStartupRequest.__struct_fields__, "x", "modle"])


@given(st.dictionaries(fields, values, max_size=5))
def test_any_json_object_is_understood_or_refused_by_name(tree: dict[str, object]) -> None:
    refusal = refused(msgspec.json.encode(tree), WorkerStartupRequest)
    assert refusal is None or (refusal.http_status == 400 and refusal.param is not None)


def test_a_fault_of_ours_is_a_bare_500_that_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        (tmp_path / "worker-i0.log").mkdir()  # reading a folder fails in a way no handler expects
        await plane.ask("POST", "/api/v1/models", {"model": "qwen"})
        answer = await plane.ask("GET", "/api/v1/models/qwen/logs")
        assert (answer.status, answer.code) == (500, "internal_error")
        assert str(tmp_path) not in answer.body.decode()
        assert b"Traceback" not in answer.body

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "IsADirectoryError" in caplog.text


def test_F96_a_harmless_request_id_is_kept_and_any_other_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for given_id, is_kept in (
            ("abc-1_Z", True),
            ("a" * 64, True),
            ("a" * 65, False),
            ("", False),
            ("a b", False),
            ("a\r\nset-cookie: x", False),
            ("../x", False),
        ):
            headers = {"x-request-id": given_id}
            answer = await plane.ask("GET", "/api/v1/nothing", headers=headers)
            told = answer.headers["x-request-id"]
            assert (told == given_id) is is_kept
            assert is_kept or told.startswith("req_")

    asyncio.run(main())


def test_F125_every_answer_forbids_caching_and_guessing(tmp_path: Path) -> None:
    async def main() -> None:
        plane = Plane(tmp_path)
        for path in ("/api/v1/models", "/api/v1/nothing", "/api/v1/openapi.json"):
            answer = await plane.ask("GET", path)
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"

    asyncio.run(main())
