"""The fake engine as a process: good answers and each fault, read as literal bytes from its socket."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.app.process import ProcessHandle, sweep
from hostler.testing import fake_text
from hostler.testing.executions import End
from tests.integration.testing.fakes import MODEL, Fake, Start, body, events, streamed_text


@pytest.fixture
def start() -> Iterator[Start]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fe") as folder:
        made: list[Fake] = []

        def make(script: dict[str, Any] | None = None, *arguments: str) -> Fake:
            made.append(Fake(Path(folder), script or {}, *arguments))
            return made[-1]

        yield make
        for fake in made:
            fake.process.kill()
            fake.process.wait(5)
            if fake.process.stdout is not None:
                fake.process.stdout.close()
            sweep("FAKE_TAG", fake.tag)


def test_answers_are_the_ones_known_beforehand(start: Start) -> None:
    fake = start().wait()
    right = fake_text.expected_texts(MODEL, body())[0]
    head, data = fake.chat()
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    answer = json.loads(data)
    assert answer["choices"][0]["message"]["content"] == right
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 16, "total_tokens": 17}
    request = body(stream=True, stream_options={"include_usage": True})
    head, data = fake.post("/v1/chat/completions", request)
    assert b"content-type: text/event-stream" in head
    assert data.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    assert streamed_text(data) == right
    assert json.loads(events(data)[-2][6:])["usage"]["completion_tokens"] == 16
    assert json.loads(events(data)[-3][6:])["choices"][0]["finish_reason"] == "stop"


def test_every_route_answers(start: Start) -> None:
    fake = start().wait()
    texts = {"model": MODEL, "prompt": ["a", "b"], "n": 2, "max_tokens": 2}
    choices = json.loads(fake.post("/v1/completions", texts)[1])["choices"]
    assert [c["text"] for c in choices] == fake_text.expected_texts(MODEL, texts)
    assert {c["finish_reason"] for c in choices} == {"length"}
    data = json.loads(fake.post("/v1/embeddings", {"input": ["a", "b"]})[1])["data"]
    assert [tuple(d["embedding"]) for d in data] == [fake_text.embedding(MODEL, t) for t in "ab"]
    as_text = json.loads(
        fake.post("/v1/embeddings", {"input": "a", "encoding_format": "base64"})[1]
    )
    assert as_text["data"][0]["embedding"] == fake_text.base64_vector(
        fake_text.embedding(MODEL, "a")
    )
    request = {"query": "q", "documents": ["a", {"text": "b"}], "return_documents": True}
    results = json.loads(fake.post("/v1/rerank", request)[1])["results"]
    ranking = fake_text.ranking(MODEL, "q", ["a", "b"])
    assert [(r["index"], r["relevance_score"]) for r in results] == ranking
    assert results[0]["document"]["text"] == "ab"[ranking[0][0]]
    assert json.loads(fake.post("/tokenize", {"content": "a b c"})[1])["count"] == 3
    assert json.loads(fake.get("/v1/models")[1])["data"][0]["id"] == MODEL
    assert fake.get("/health")[1] == b'{"status":"ok"}'
    assert fake.get("/metrics")[1] == b"fake:requests_running 0\n"
    assert fake.get("/nowhere")[0].startswith(b"HTTP/1.1 404 ")


def test_one_connection_serves_many_requests_in_order(start: Start) -> None:
    fake = start().wait()
    one = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    got = fake.raw(one + one + last)
    assert got.count(b"HTTP/1.1 200 OK") == 3
    assert got.index(b'"status"') < got.index(b'"list"')


def test_the_ledger_has_what_reached_the_engine(start: Start) -> None:
    fake = start().wait()
    fake.chat(temperature=0.5, strange_field=1)
    record = fake.last()
    assert (record.request_id, record.model, record.asked) == ("r-7", MODEL, MODEL)
    assert record.body_keys == ("messages", "model", "strange_field", "temperature")
    assert (record.tokens, record.end, record.status) == (16, End.DONE, 200)
    last = json.loads(fake.get("/_fake/last")[1])
    assert last["path"] == "/v1/chat/completions"
    assert last["body"]["strange_field"] == 1
    assert fake.counts()["finished"] == 1


def test_a_wrong_body_is_refused(start: Start) -> None:
    fake = start().wait()
    for wrong in (b"{", b"[]", b'{"messages": 3}', b"\xff"):
        head, data = fake.post("/v1/chat/completions", wrong)
        assert head.startswith(b"HTTP/1.1 400 "), wrong
        assert "error" in json.loads(data)
    assert fake.counts()["refused"] == 4


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("[[die]]", -signal.SIGKILL),
        ("[[segv]]", -signal.SIGSEGV),
        ("[[abort]]", -signal.SIGABRT),
        ("[[die]] [[crash_with=7]]", 7),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_it_dies_before_any_byte(start: Start, word: str, code: int, stream: bool) -> None:
    fake = start().wait()
    assert fake.chat(word, stream=stream)[0] in (b"", b"RESET")
    assert fake.ended() == code
    assert (fake.last().end, fake.last().tokens) == (End.CRASHED, 0)


def test_it_dies_after_some_tokens(start: Start) -> None:
    fake = start().wait()
    _, data = fake.chat("[[crash_at=3]]", stream=True)
    assert streamed_text(data).count(" ") == 3
    assert not data.endswith(b"0\r\n\r\n")
    assert fake.ended() == -signal.SIGKILL
    assert fake.last().tokens == 3


def test_it_dies_in_the_middle_of_an_event(start: Start) -> None:
    fake = start().wait()
    _, data = fake.chat("[[half]]", stream=True)
    *whole, half = events(data.removesuffix(b"RESET"))
    assert len(whole) == 2
    assert half.startswith(b"data: {")
    assert not half.endswith(b"}")
    assert fake.ended() == -signal.SIGKILL


def test_a_sigkill_from_outside_loses_no_record(start: Start) -> None:
    fake = start({"delay_ms": 200}).wait()
    data = json.dumps(body(stream=True)).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(fake.socket)
        head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(data)
        client.sendall(head + data)
        assert client.recv(65536)
        fake.process.kill()
        fake.ended()
    assert fake.last().end is End.KILLED


def test_it_hangs_before_the_head(start: Start) -> None:
    fake = start().wait()
    assert fake.chat("[[hang]]", 0.3, stream=True) == (b"TIMEOUT", b"")
    assert fake.get("/health")[0].startswith(b"HTTP/1.1 200")
    assert fake.last().end is End.ABORTED
    assert fake.counts() | {"in_flight": 0, "aborted": 1} == fake.counts()


def test_it_hangs_after_some_tokens(start: Start) -> None:
    fake = start().wait()
    _, data = fake.chat("[[hang_at=2]]", 0.3, stream=True)
    assert data.endswith(b"TIMEOUT")
    assert streamed_text(data.removesuffix(b"TIMEOUT")).count(" ") == 2


def test_it_is_half_alive(start: Start) -> None:
    fake = start({"half_alive": True}).wait()
    assert fake.get("/health")[0].startswith(b"HTTP/1.1 200")
    head, data = fake.chat(timeout_s=0.3, stream=True)
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert data == b"TIMEOUT"


@pytest.mark.parametrize(
    ("ending", "last"),
    [
        ("no_done", b'"finish_reason":"stop"}]}\n\n\r\n0\r\n\r\n'),
        ("no_finish", b'"finish_reason":null}]}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'),
        ("cut", b'"finish_reason":null}]}\n\n\r\n'),
    ],
)
def test_a_stream_ends_wrong(start: Start, ending: str, last: bytes) -> None:
    fake = start({"ending": ending}).wait()
    assert fake.chat(stream=True)[1].endswith(last)


def test_a_whole_answer_is_cut(start: Start) -> None:
    fake = start({"ending": "cut"}).wait()
    head, data = fake.chat()
    assert 0 < len(data) < int(head.rpartition(b"content-length: ")[2])


def test_a_connection_is_dropped(start: Start) -> None:
    fake = start({"ending": "reset"}).wait()
    assert not fake.chat(stream=True)[1].endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
def test_its_bytes_make_no_sense(start: Start, stream: bool) -> None:
    fake = start().wait()
    head, data = fake.chat("[[spoil=head]]", stream=stream)
    assert head.removesuffix(b"RESET").startswith(b"HTTP/1.1 200 OK\r\ncontent-type")
    assert data == b""
    assert b"no HTTP" in fake.chat("[[spoil=garbage]]", stream=stream)[0]
    head, data = fake.chat("[[spoil=chunk]] [[tokens=4]]", stream=stream)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    if stream:
        assert streamed_text(data).count(" ") == 2
        assert b"\r\n" not in data[-20:]
    else:
        assert 0 < len(data) < int(head.rpartition(b"content-length: ")[2])


def test_it_refuses_connections_for_a_while(start: Start) -> None:
    fake = start().wait()
    with socket.socket(socket.AF_UNIX) as idle:
        idle.settimeout(5)
        idle.connect(fake.socket)
        idle.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.recv(65536)
        assert fake.post("/_fake/script", {"refuse_s": 0.3})[0].startswith(b"HTTP/1.1 200 ")
        assert idle.recv(65536) == b""
        with pytest.raises(OSError, match=r"No such file|refused"):
            fake.chat()
    time.sleep(0.4)
    assert fake.chat()[0].startswith(b"HTTP/1.1 200 ")


def test_statuses_come_by_script_by_prompt_and_by_rate(start: Start) -> None:
    fake = start().wait()
    head, data = fake.chat("[[status=429]] [[retry_after_s=2]]")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"retry-after: 2\r\n" in head + b"\r\n"
    assert json.loads(data)["error"]["code"] == "fake_status"
    assert fake.last().end is End.REFUSED
    fake.post("/_fake/script", {"status": 500, "status_rate": 0.25})
    heads = [fake.chat()[0][9:12] for _ in range(8)]
    assert heads == [b"200", b"200", b"200", b"500"] * 2
    fake.post("/_fake/script", {"status_rate": 1, "status_body": "garbage"})
    assert fake.chat()[1] == b'<html>\xff\xfe{"error":'
    fake.post("/_fake/script", {"status_body": "empty"})
    assert fake.chat()[1] == b""
    fake.post("/_fake/script", {"status": None})
    assert fake.chat()[0].startswith(b"HTTP/1.1 200")
    assert fake.post("/_fake/script", {"bogus": 1})[0].startswith(b"HTTP/1.1 400")


def test_head_and_length_can_be_wrong(start: Start) -> None:
    fake = start({"content_type": "text/plain", "length_delta": 10}).wait()
    head, data = fake.chat(timeout_s=0.3)
    assert b"content-type: text/plain\r\n" in head
    length = int(head.rpartition(b"content-length: ")[2].split(b"\r\n")[0])
    assert length == len(data.removesuffix(b"TIMEOUT")) + 10


def test_bytes_come_in_drips(start: Start) -> None:
    fake = start().wait()
    began_s = time.monotonic()
    text = streamed_text(fake.chat("[[drip_bytes=50]] [[drip_ms=2]] [[tokens=3]]", stream=True)[1])
    assert text.count(" ") == 3
    assert time.monotonic() - began_s > 0.03


def test_delays_are_kept(start: Start) -> None:
    fake = start({"first_delay_ms": 60, "delay_ms": 20, "tokens": 5}).wait()
    for stream in (True, False):
        began_s = time.monotonic()
        fake.chat(stream=stream)
        assert 0.15 < time.monotonic() - began_s < 1


def test_it_is_not_ready_while_it_loads(start: Start) -> None:
    fake = start({"load_s": 0.4}).wait()
    for path in ("/health", "/v1/models"):
        assert fake.get(path)[0].startswith(b"HTTP/1.1 503 ")
    assert fake.chat()[0].startswith(b"HTTP/1.1 503 ")
    time.sleep(0.5)
    assert fake.get("/health")[0].startswith(b"HTTP/1.1 200 ")


def test_it_is_never_ready(start: Start) -> None:
    assert start({"never_ready": True}).wait().get("/health")[0].startswith(b"HTTP/1.1 503 ")


def test_it_exits_at_the_start(start: Start) -> None:
    assert start({"exit_at_start": 3}).ended() == 3
    assert start({"bogus": 3}).ended() == 2


def test_it_lies_about_its_model_and_the_tokens_tell(start: Start) -> None:
    fake = start({"lie_model": "other"}).wait()
    assert json.loads(fake.get("/v1/models")[1])["data"][0]["id"] == "other"
    answer = json.loads(fake.chat()[1])
    assert answer["model"] == "other"
    assert answer["choices"][0]["message"]["content"].startswith("m1‖")


def test_a_strict_engine_serves_only_its_model(start: Start) -> None:
    fake = start({"strict_model": True}).wait()
    assert fake.chat()[0].startswith(b"HTTP/1.1 200 ")
    head, data = fake.post("/v1/chat/completions", {**body(), "model": "other"})
    assert head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(data)["error"]["code"] == "model_not_found"


def test_sigterm_is_obeyed_drained_or_ignored(start: Start) -> None:
    fake = start({"sigterm": "ignore"}).wait()
    fake.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        fake.process.wait(0.2)
    fake.post("/_fake/script", {"sigterm": "drain", "delay_ms": 20})
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(fake.socket)
        data = json.dumps(body(stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        got = client.recv(65536)
        fake.process.terminate()
        while piece := client.recv(65536):
            got += piece
    assert got.endswith(b"0\r\n\r\n")
    assert fake.ended() == 0
    fake = start().wait()
    fake.process.terminate()
    assert fake.ended() == 0


def test_it_closes_a_connection_silently(start: Start) -> None:
    fake = start({"close_after": 2}).wait()
    got = fake.raw(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert b"connection" not in got


def test_it_floods_its_output(start: Start) -> None:
    fake = start({"start_stdout_mb": 3})
    assert fake.process.stdout is not None
    assert len(fake.process.stdout.read(3_000_000)) == 3_000_000
    fake.wait()


def test_it_leaves_grandchildren_that_only_the_tag_finds(start: Start) -> None:
    fake = start({"grandchildren": True}).wait()
    pids = json.loads(fake.get("/_fake/ledger")[1])["grandchildren"]
    assert len(pids) == 2
    sessions = {os.getsid(pid) for pid in pids}
    assert os.getsid(fake.process.pid) not in sessions
    fake.process.kill()
    fake.ended()
    handles = [ProcessHandle.of(pid) for pid in pids]
    assert all(handle is not None and handle.alive() for handle in handles)
    assert sorted(sweep("FAKE_TAG", fake.tag)) == sorted(pids)


def test_it_dumps_its_arguments_and_environment(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "dump.json"
    fake = start({"dump": str(path)}).wait()
    found = json.loads(path.read_text())
    assert found["env"]["FAKE_TAG"] == fake.tag
    assert f"--model={MODEL}" in found["argv"]


def test_it_serves_on_a_port_as_well(start: Start) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start({}, "--socket=", f"--port={port}")
    ends_at_s = time.monotonic() + 5
    while time.monotonic() < ends_at_s:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                client.sendall(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")
                return
        time.sleep(0.01)
    raise AssertionError("no answer on the port")
