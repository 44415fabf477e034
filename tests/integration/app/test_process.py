"""Processes by pidfd: the right one is known, signalled, waited for and swept; strangers never."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from hostler.app.process import ProcessHandle, boot_id, spawn, sweep, tagged, wait_exit
from hostler.core.errors import StartupError

NAME = "HOSTLER_TEST_TAG"
STARTED: list[ProcessHandle] = []


@pytest.fixture
def tag() -> Iterator[str]:
    value = secrets.token_hex(6)
    yield value
    sweep(NAME, value)
    ends_s = time.monotonic() + 10
    while STARTED and time.monotonic() < ends_s:
        STARTED[:] = [one for one in STARTED if one.reap() is None and not is_reaped(one)]
        time.sleep(0.01)
    assert not STARTED


def is_reaped(handle: ProcessHandle) -> bool:
    """Whether it is gone altogether: somebody else has waited for it."""
    return not Path(f"/proc/{handle.pid}").exists()


def start(tag: str, *argv: str, **more: str) -> ProcessHandle:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        env = {"PATH": os.environ["PATH"], NAME: tag, **more}
        STARTED.append(spawn(argv or ("sleep", "60"), env=env, stdout=null))
        return STARTED[-1]
    finally:
        os.close(null)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_exit_is_seen_by_everyone_who_waits(
    tag: str, make_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        handle = start(tag)
        assert await wait_exit(handle, timeout_s=0.05) is None
        assert handle.alive()
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(wait_exit(handle, timeout_s=5)) for _ in range(3)]
            await asyncio.sleep(0.05)
            handle.kill()
        assert [task.result() for task in waiting] == [-signal.SIGKILL] * 3
        assert not handle.alive()
        assert await wait_exit(start(tag, "sh", "-c", "exit 7"), timeout_s=5) == 7

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(main())


def test_a_child_that_ends_while_the_time_runs_out_is_reaped_all_the_same(tag: str) -> None:
    handle = start(tag, "true")
    while handle.alive():
        time.sleep(0.01)
    # the time is over before the loop has looked at the process even once
    assert asyncio.run(wait_exit(handle, timeout_s=0.0)) == 0
    assert is_reaped(handle)


def test_a_child_has_a_session_of_its_own_and_default_signals(tag: str) -> None:
    handle = start(tag)
    assert os.getsid(handle.pid) == handle.pid
    status = Path(f"/proc/{handle.pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn"))
    assert not int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1))
    assert handle.terminate()
    assert asyncio.run(wait_exit(handle, timeout_s=5)) == -signal.SIGTERM


def test_a_child_inherits_no_descriptor(tag: str, tmp_path: Path) -> None:
    path = tmp_path / "fds"
    with (tmp_path / "open").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        handle = start(tag, "sh", "-c", f"ls /proc/$$/fd > {path}")
        asyncio.run(wait_exit(handle, timeout_s=5))
    assert set(path.read_text().split()) <= {"0", "1", "2", "10", "255"}


def test_a_missing_program_is_named() -> None:
    with pytest.raises(StartupError, match="'no-such-program'"):
        start("x", "no-such-program")


def test_a_process_written_down_is_found_again_and_only_that_one(tag: str) -> None:
    handle = start(tag)
    pid, ticks = handle.pid, handle.start_ticks
    found = ProcessHandle.find(pid, ticks, boot_id())
    assert found is not None
    assert found.alive()
    assert ProcessHandle.find(pid, ticks + 1, boot_id()) is None
    assert ProcessHandle.find(pid, ticks, "another boot") is None
    assert ProcessHandle.find(None, None, boot_id()) is None
    handle.kill()
    asyncio.run(wait_exit(handle, timeout_s=5))
    assert ProcessHandle.find(pid, ticks, boot_id()) is None
    assert ProcessHandle.of(pid) is None


def test_F17_a_pid_that_is_used_again_is_never_hit(tag: str) -> None:
    """The kernel is made to give the next process the pid of one that has ended."""
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(50):
        first = start(tag)
        first.kill()
        assert asyncio.run(wait_exit(first, timeout_s=5)) == -signal.SIGKILL
        try:
            last_pid.write_text(str(first.pid - 1))
        except OSError:
            pytest.skip("this user may not choose pids")
        stranger = start(tag)
        if stranger.pid == first.pid:
            break
        stranger.kill()
        asyncio.run(wait_exit(stranger, timeout_s=5))
    else:
        pytest.skip("others took the pid each time")
    assert not first.kill()
    assert not first.terminate()
    assert not first.alive()
    time.sleep(0.05)
    assert stranger.alive()
    if stranger.start_ticks != first.start_ticks:
        assert ProcessHandle.find(first.pid, first.start_ticks, first.boot_id) is None


def test_a_sweep_ends_what_carries_the_tag_and_nothing_else(tag: str) -> None:
    mine = [start(tag), start(tag, "sh", "-c", "sleep 60 & setsid sleep 60 & wait")]
    other = start(tag + "x")
    try:
        ends_at_s = time.monotonic() + 20  # a bound for a busy machine
        while len(tagged(NAME, tag)) < 4 and time.monotonic() < ends_at_s:
            time.sleep(0.01)
        assert len(tagged(NAME, tag)) == 4
        assert len(sweep(NAME, tag)) == 4
        assert tagged(NAME, tag) == {}
        assert other.alive()
        assert not any(handle.alive() for handle in mine)
        assert sweep(NAME, tag) == []
    finally:
        sweep(NAME, tag + "x")


def test_a_sweep_can_spare_the_ones_that_are_known(tag: str) -> None:
    known, unknown, plain = (
        start(tag, INSTANCE="a"),
        start(tag, INSTANCE="b"),
        start(tag),
    )
    assert sweep(NAME, tag, having="INSTANCE", but_not=frozenset({"a"})) == [unknown.pid]
    assert known.alive()
    assert plain.alive()


def test_a_sweep_can_be_of_one_server_alone(tag: str) -> None:
    ours, theirs, nobodys = start(tag, STATE="/a"), start(tag, STATE="/b"), start(tag)
    assert sweep(NAME, tag, within=("STATE", "/a")) == [ours.pid]
    assert theirs.alive()
    assert nobodys.alive()


def test_a_sweep_spares_this_very_process(tag: str) -> None:
    own = Path("/proc/self/environ").read_bytes().split(b"\0")
    name, _, value = next(item for item in own if b"=" in item).decode().partition("=")
    assert os.getpid() not in tagged(name, value)
