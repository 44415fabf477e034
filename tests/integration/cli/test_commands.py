"""Commands against the real admin API on a real socket."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostler.cli.exits import Exit
from tests.integration.cli.serving import served
from tests.unit.admin.plane import Plane
from tests.unit.admin.test_logs import Elsewhere

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


@pytest.fixture
def url(plane: Plane, tmp_path: Path) -> Iterator[str]:
    with served(plane, tmp_path / "state") as address:
        yield address


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in a process of its own, as a person does; return code, stdout, stderr."""
    for name in ("HOSTLER_URL", "HOSTLER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOSTLER_STATE_DIR", str(tmp_path / "state"))

    def run_command(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "hostler", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout, done.stderr

    return run_command


def test_a_model_is_started_listed_shown_and_stopped(url: str, run: Run) -> None:
    code, _, progress = run("model", "start", "qwen", "--replicas", "2", "--param", "threads=2")
    assert code == Exit.OK, progress
    assert "qwen@llm: ready" in progress
    code, out, _ = run("model", "list")
    assert code == Exit.OK
    assert "2/2" in out
    code, out, _ = run("model", "show", "qwen")
    assert code == Exit.OK
    assert "2 of 2 instances ready" in out
    assert "threads" in out
    code, out, _ = run("model", "show", "qwen", "--json")
    assert json.loads(out)["deployment"]["params"] == {"threads": 2}
    code, out, _ = run("model", "stop", "qwen", "--no-wait", "--delete")
    assert (code, out) == (Exit.OK, "qwen@llm: is stopping\n")
    code, out, _ = run("model", "list", "--json")
    assert json.loads(out) == []


def test_a_name_with_a_slash_is_one_name(url: str, run: Run) -> None:
    assert run("model", "start", "org/qwen")[0] == Exit.OK
    code, out, _ = run("model", "show", "org/qwen")
    assert code == Exit.OK
    assert out.startswith("org/qwen@llm")


def test_the_same_model_with_another_specification_is_a_conflict(url: str, run: Run) -> None:
    assert run("model", "start", "qwen")[0] == Exit.OK
    code, _, err = run("model", "start", "qwen", "--replicas", "3")
    assert code == Exit.CONFLICT
    assert "replicas" in err


def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(url: str, run: Run) -> None:
    run("model", "start", "qwen")
    code, out, err = run("model", "show", "other")
    assert (code, out) == (Exit.NOT_FOUND, "")
    assert "'other'" in err
    assert "qwen" in err


def test_what_could_be_started_is_listed(url: str, run: Run) -> None:
    code, out, _ = run("model", "list", "--all")
    assert code == Exit.OK
    assert "llama.cpp" in out


def test_ps_shows_instances(url: str, run: Run) -> None:
    run("model", "start", "qwen")
    code, out, _ = run("ps")
    assert code == Exit.OK
    assert "qwen" in out
    assert "ready" in out
    code, out, _ = run("ps", "--json")
    assert [one["model_name"] for one in json.loads(out)["instances"]] == ["qwen"]


def test_a_key_is_made_shown_once_listed_and_revoked(url: str, run: Run, plane: Plane) -> None:
    code, out, _ = run(
        "key", "create", "laptop", "--days", "1", "--weight", "2", "--priority", "low"
    )
    plain = out.strip()
    assert code == Exit.OK
    assert plain.startswith("hst_")
    code, out, _ = run("key", "list")
    assert "laptop" in out
    assert plain not in out
    key_id = plain.split("_")[1]
    assert run("key", "revoke", key_id)[0] == Exit.OK
    assert run("model", "list", "--key", plain)[0] == Exit.AUTH
    code, out, _ = run("key", "list", "--revoked", "--json")
    mine = next(one for one in json.loads(out) if one["key_id"] == key_id)
    assert (mine["revoked"], mine["weight"], mine["priority"]) == (True, 2.0, "low")
    assert run("key", "create", "--weight", "0")[0] == Exit.FAILED
    assert run("key", "create", "--priority", "urgent")[0] == Exit.USAGE


def test_a_key_without_the_scope_and_no_key_at_all_are_told_apart(
    url: str, run: Run, plane: Plane, tmp_path: Path
) -> None:
    code, _, err = run("model", "list", "--key", plane.key("inference").plain)
    assert code == Exit.AUTH
    (tmp_path / "state" / "admin.key").unlink()
    code, _, err = run("model", "list")
    assert code == Exit.AUTH
    assert "--key" in err


def test_events_are_shown_and_go_on_from_a_number(url: str, run: Run) -> None:
    run("model", "start", "qwen")
    code, out, _ = run("events")
    assert code == Exit.OK
    assert "instance.ready  qwen" in out
    last = json.loads(run("events", "--json")[1].splitlines()[-1])["seq"]
    assert run("events", "--after", str(last)) == (Exit.OK, "", "")


def test_logs_are_shown_without_what_a_terminal_would_obey(
    url: str, run: Run, tmp_path: Path
) -> None:
    run("model", "start", "qwen")
    (tmp_path / "worker-i0.log").write_text("one\ntwo\x1b[2J\nthree\n")
    code, out, _ = run("model", "logs", "qwen", "--tail", "2")
    assert (code, out) == (Exit.OK, "two\ufffd[2J\nthree\n")


def test_a_name_that_nobody_knows_is_told_where_it_is_not_an_error(url: str, run: Run) -> None:
    code, _, err = run("model", "start", "qwen")
    assert code == Exit.OK, err
    code, out, err = run("key", "create", "laptop", "--model", "nosuch", "--model", "qwen")
    assert (code, out[:4]) == (Exit.OK, "hst_")
    assert "no model 'nosuch' is known yet" in err
    assert "qwen" not in err
    code, out, err = run("events", "--model", "nosuch")
    assert (code, out) == (Exit.OK, "")
    assert "no model 'nosuch' is known, and no event of it" in err
    code, out, err = run("events", "--model", "qwen")
    assert "instance.ready" in out
    assert err == ""


def test_another_model_that_does_not_exist_is_told_and_is_no_error(url: str, run: Run) -> None:
    assert run("model", "start", "qwen-small")[0] == Exit.OK
    asked = ("model", "start", "qwen", "--fallback", "unavailable=qwen-smal", "--split", "canary=5")
    code, out, err = run(*asked, "--json")
    assert code == Exit.OK, err
    assert "hostler: routing: model 'qwen-smal' does not exist yet" in err
    assert "did you mean 'qwen-small'?" in err
    assert len(json.loads(out)["notes"]) == 2
    shown = run("model", "show", "qwen")[1]
    assert "  note: routing: model 'canary' does not exist yet" in shown
    assert run("model", "start", "canary")[0] == Exit.OK
    assert "canary' does not" not in run("model", "show", "qwen")[1]


def test_a_log_on_a_silent_machine_is_a_failure_that_shows_the_others(
    url: str, run: Run, plane: Plane, tmp_path: Path
) -> None:
    run("model", "start", "qwen", "--replicas", "2")
    (tmp_path / "worker-i0.log").write_text("here\n")
    plane.control.logs["i1"] = log = Elsewhere()
    log.is_silent = True
    code, out, told = run("model", "logs", "qwen")
    assert code == Exit.FAILED
    assert "here" in out
    assert "the log of i1: host 'b' does not answer" in told


@pytest.mark.parametrize("words", [("logs", "-f"), ("model", "logs", "--follow")], ids=" ".join)
def test_followed_logs_are_json_lines_when_asked(
    words: tuple[str, ...], url: str, run: Run, plane: Plane, tmp_path: Path
) -> None:
    code, _, err = run("model", "start", "qwen")
    assert code == Exit.OK, err
    (tmp_path / "worker-i0.log").write_text('one "quoted"\ntwo\n')
    command = [sys.executable, "-m", "hostler", *words, "qwen", "--json"]
    with subprocess.Popen([*command, "--tail", "5"], stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            lines = [follower.stdout.readline() for _ in range(2)]
            plane.control.instances.pop("i0")  # and its log with it
            assert follower.wait(30) == Exit.OK
        finally:
            follower.kill()
    assert [json.loads(line) for line in lines] == [
        {"instance_id": "i0", "line": 'one "quoted"'},
        {"instance_id": "i0", "line": "two"},
    ]


def test_an_update_changes_what_is_named_and_needs_something(url: str, run: Run) -> None:
    code, _, err = run("model", "start", "qwen")
    assert code == Exit.OK, err
    assert run("model", "update", "qwen", "--source", "/models/mended.gguf")[0] == Exit.OK
    code, _, err = run("model", "update", "qwen")
    assert code == Exit.USAGE
    assert "--source" in err


def test_a_wrong_command_line_is_a_usage_error_on_stderr(run: Run) -> None:
    for arguments in (
        ("model", "strat"),
        ("model", "show"),
        ("ps", "--nope"),
        ("tokens", "a", "b"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (Exit.USAGE, ""), arguments
        assert err


def test_nobody_listening_is_told_with_what_to_do(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    code, out, err = run("model", "list", "--url", f"http://127.0.0.1:{port}")
    assert (code, out) == (Exit.UNREACHABLE, "")
    assert "hostler up" in err


def test_no_command_prints_a_traceback_when_the_server_is_something_else(
    run: Run, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        pid = os.fork()
        if pid == 0:  # a server that is not ours
            connection, _ = other.accept()
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()
            os._exit(0)
        code, _, err = run("model", "list", "--url", f"http://127.0.0.1:{other.getsockname()[1]}")
        os.waitpid(pid, 0)
    assert code == Exit.FAILED
    assert "Hostler" in err


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], int]]:
    """Start processes that carry tags, as workers of a server that is gone do."""
    started: list[subprocess.Popen[bytes]] = []

    def start(tags: dict[str, str]) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **tags}
        )
        started.append(process)
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_ps_tells_of_processes_that_outlive_their_server(
    run: Run, tmp_path: Path, leftover: Callable[[dict[str, str]], int]
) -> None:
    folder = str(tmp_path / "state")
    ours = leftover({"HOSTLER_STATE_DIR": folder, "HOSTLER_INSTANCE": "abc"})
    leftover({"HOSTLER_STATE_DIR": folder + "2", "HOSTLER_INSTANCE": "def"})
    leftover({"HOSTLER_STATE_DIR": folder})  # a shell of the operator: no instance, no role
    time.sleep(0.1)
    code, out, err = run("ps", "--json")
    assert code == Exit.UNREACHABLE
    told: dict[str, Any] = json.loads(out)
    assert told["answers"] is False
    assert [(one["pid"], one["instance_id"]) for one in told["processes"]] == [(ours, "abc")]
    code, out, err = run("ps")
    assert "abc" in out
    assert "no controller answers" in err
    assert "orphan_grace_s" in err


def test_version_starts_quickly() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "hostler", "version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("hostler ")
    assert "httpx2" not in done.stderr
    assert "sqlalchemy" not in done.stderr
    assert "uvloop" not in done.stderr
