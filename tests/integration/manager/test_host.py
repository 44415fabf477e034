"""A real host process before a simulated controller: lists, beats, kills, and who is away for how long."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import psutil
import pytest

from hostler.core.errors import NotFound
from hostler.core.hosts import EVENTS_PER_BEAT, OrderWish
from hostler.core.model import WorkerType
from hostler.manager.host_rules import HostRules
from hostler.testing.host_run import HostRun
from hostler.testing.sim_controller import SimController, echo_order

Body = Callable[[HostRun, SimController], Awaitable[None]]


class Shared:
    """One host process for all tests that leave it alive; each has a controller of a newer incarnation."""

    def __init__(self) -> None:
        self.host = HostRun()
        self.socket = self.host.root / "c.sock"
        self.host.join([f"unix:{self.socket}"])
        self.incarnation = 0

    async def play(self, body: Body) -> None:
        self.incarnation += 10
        sim = SimController(self.socket, incarnation=self.incarnation)
        sim.order()
        if self.host.process is None:
            self.host.start()
        async with sim.running():
            await sim.until(lambda: bool(sim.beats) and sim.last.version == 1, "a beat")
            await sim.until(lambda: not sim.last.instances, "nothing runs")
            await body(self.host, sim)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    found = Shared()
    with found.host:
        yield found


def play(body: Body, shared: Shared | None = None, *, rules: HostRules | None = None) -> None:
    """Run a test with a host process that has joined a simulated controller."""

    async def main() -> None:
        if shared is not None:
            return await shared.play(body)
        with HostRun() as host:
            sim = SimController(host.root / "c.sock")
            host.join([sim.url], rules=rules)
            host.start()
            async with sim.running():
                await sim.until(lambda: bool(sim.beats), "a beat")
                await body(host, sim)

    asyncio.run(main())


async def ready(sim: SimController, *ids: str) -> dict[str, Any]:
    """Order instances, wait until they serve, and return their reports by id."""
    sim.order(*(echo_order(one) for one in ids))
    await sim.until(lambda: all(sim.state(one) == "ready" for one in ids), "all are ready")
    return {one: sim.report(one) for one in ids}


def test_it_starts_what_is_ordered_says_all_of_it_once_and_leaves_nothing_after_an_end(
    shared: Shared,
) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        facts = next(b.facts for b in sim.beats if b.facts is not None)
        assert "fake" in facts.engines
        assert facts.cpus
        assert facts.name == "b"
        sim.order(echo_order("aaaa01", worker_type=WorkerType.TEXT2VEC.value, concurrency=3))
        await sim.until(lambda: sim.state("aaaa01") == "ready", "it serves")
        found = sim.report("aaaa01")
        assert found is not None
        assert found.pid == host.workers()["aaaa01"]
        assert (found.epoch, found.concurrency) == (1, 3)
        full = [r for b in sim.beats for r in b.instances if r.metadata is not None]
        assert full[0].command_args, "the full report came with what it is started by"
        assert full[0].metadata is not None
        assert full[0].metadata.worker_type is WorkerType.TEXT2VEC
        assert os.stat(host.paths.host_membership).st_mode & 0o077 == 0
        await sim.until(lambda: sim.last.instances[0].metadata is None, "a short report")
        sim.wanted = ("aaaa01",)
        await sim.until(lambda: sim.last.instances[0].metadata is not None, "it is asked for again")
        assert [b.seq for b in sim.beats] == sorted({b.seq for b in sim.beats})
        assert sim.last.version == 2
        assert sim.last.incarnation == sim.incarnation
        sim.order(echo_order("aaaa01", wish=OrderWish.END))
        await sim.until(lambda: sim.state("aaaa01") == "stopped", "it has ended")
        assert host.left_behind() == []
        sim.order()
        await sim.until(lambda: not sim.last.instances, "its record is forgotten")

    play(body, shared)


def test_F35_F36_lists_that_are_stale_doubled_out_of_order_or_of_an_older_controller_change_nothing(
    shared: Shared,
) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        await ready(sim, "bbbb01", "bbbb02")
        pids = host.workers()
        sim.order(echo_order("bbbb01"), echo_order("bbbb02"), version=7)
        await sim.until(lambda: sim.last.version == 7, "the newer list is known")
        sim.order(version=1)  # an old list, without anything
        sim.order(version=7)  # the same number, another content
        sim.incarnation -= 1
        sim.order(version=100)
        await asyncio.sleep(1.0)
        assert host.workers() == pids
        assert sim.last.version == 7
        assert "another one serves, or its store is an old copy" in host.story()
        sim.incarnation += 1
        # ordered anew under the same id: nobody may restart it so
        sim.order(echo_order("bbbb01", params={"tokens": 3}), echo_order("bbbb02"), version=8)
        await sim.until(lambda: sim.last.version == 8, "the list is known")
        await asyncio.sleep(0.5)
        assert host.workers() == pids
        assert "host.order_changed" in host.story()
        sim.order(echo_order("bbbb02"), version=9)  # what is not in it is ended
        await sim.until(lambda: not sim.report("bbbb01"), "the other is gone")
        assert host.workers() == {"bbbb02": pids["bbbb02"]}

    play(body, shared)


def test_F25_F26_a_host_process_that_is_killed_adopts_its_workers_and_goes_on_with_its_list(
    shared: Shared,
) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        await ready(sim, "dddd01", "dddd02")
        pids, run_id = host.workers(), sim.last.run_id
        host.kill()
        host.start()
        await sim.until(lambda: sim.last.run_id != run_id, "the next process beats")
        await sim.until(lambda: len(sim.last.instances) == 2, "all are named")
        seen = [b for b in sim.beats if b.run_id != run_id]
        assert all(r.state == "ready" for b in seen for r in b.instances), "nobody seemed to load"
        assert host.workers() == pids
        reports = {one.instance_id: one.pid for one in sim.last.instances}
        assert reports == pids
        # one whose process died meanwhile is told as failed, and not started again under its id
        host.kill()
        host.kill_worker("dddd01")
        host.start()
        await sim.until(lambda: sim.state("dddd01") == "failed", "its end is told")
        assert host.workers() == {"dddd02": pids["dddd02"]}

    play(body, shared)


def test_F22_a_controller_that_is_away_for_long_ends_nobody_not_even_over_a_restart() -> None:
    async def main() -> None:
        with HostRun() as host:
            sim = SimController(host.root / "c.sock")
            host.join([sim.url])
            host.start()
            async with sim.running():
                await ready(sim, "ffff01", "ffff02")
            pids = host.workers()
            host.kill()
            host.start()  # nobody is there: it goes on with the list that was kept
            await asyncio.sleep(3.0)
            assert host.workers() == pids
            host.kill_worker("ffff02")
            began = len(sim.beats)
            async with sim.running():
                await sim.until(lambda: len(sim.beats) > began, "it is back")
                await sim.until(lambda: sim.state("ffff01") == "ready", "with what serves")
                told = [r for b in sim.beats[began:] for r in b.instances]
                assert any(r.instance_id == "ffff01" and r.metadata for r in told)
                await sim.until(lambda: sim.state("ffff02") == "failed", "what happened is told")
                sim.order(echo_order("ffff01"), echo_order("ffff03", epoch=2))
                await sim.until(lambda: sim.state("ffff03") == "ready", "its successor serves")
                assert sim.report("ffff02") is None

    asyncio.run(main())


def test_F33_F38_a_stopped_host_process_ends_nobody_and_a_silent_stream_is_opened_again(
    shared: Shared,
) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        await ready(sim, "gggg01")
        pids, beats = host.workers(), len(sim.beats)
        host.send(signal.SIGSTOP)
        await asyncio.sleep(2.5)
        host.send(signal.SIGCONT)
        await sim.until(lambda: len(sim.beats) > beats + 3, "it beats again")
        assert host.workers() == pids
        assert sim.state("gggg01") == "ready"
        opened = sim.streams
        sim.is_mute = True
        await sim.until(lambda: sim.streams > opened, "the silence was noticed")
        sim.is_mute = False
        sim.order()
        await sim.until(lambda: not sim.last.instances, "orders are heard again")

    play(body, shared)


def test_what_was_held_for_an_instance_reaches_its_engine_and_nothing_else_can(
    shared: Shared,
) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        sim.order(
            echo_order("gggg01", held={"gpus": ["1", "3"], "variables": {"LD_PRELOAD": "x"}}),
            echo_order("gggg02", held={"gpus": ["0;x"]}),
        )
        await sim.until(lambda: sim.state("gggg01") == "ready", "it serves")
        assert sim.state("gggg02") == "failed"
        for process in (found := psutil.Process(host.workers()["gggg01"])), *found.children():
            told = process.environ()
            assert told["CUDA_VISIBLE_DEVICES"] == told["HIP_VISIBLE_DEVICES"] == "1,3"
            assert "LD_PRELOAD" not in told

    play(body, shared)


def test_what_its_operator_does_not_allow_is_told_as_failed_with_the_reason(tmp_path: Path) -> None:
    rules = HostRules(
        engines=("fake", "llama.cpp"), folders=(str(tmp_path),), memory_bytes=100 << 20
    )
    outside = tmp_path / "link.gguf"
    outside.symlink_to("/etc/hostname")

    async def body(host: HostRun, sim: SimController) -> None:
        sim.order(
            echo_order("iiii01", engine="python", params={"class": "a:B"}),
            echo_order("iiii02", engine="llama.cpp", source="/etc/hostname"),
            echo_order("iiii03", engine="llama.cpp", source=str(outside)),
            echo_order("iiii04", engine="nonsense"),
            echo_order("iiii05", params={"no_such": 1}),
            echo_order("iiii06", params={"memory_bytes": 60 << 20}),
        )
        await sim.until(lambda: sim.state("iiii06") == "ready", "what is allowed serves")
        told = {one.instance_id: one for one in sim.last.instances}
        assert all(told[f"iiii0{n}"].state == "failed" for n in range(1, 6))
        codes = [told[f"iiii0{n}"].error_code for n in range(1, 6)]
        assert codes == ["host_refuses"] * 4 + ["invalid_value"]
        assert "allows fake, llama.cpp" in told["iiii01"].reason
        assert "takes files in" in told["iiii02"].reason
        assert "takes files" in told["iiii03"].reason
        assert "no_such" in told["iiii05"].reason
        assert list(host.workers()) == ["iiii06"]
        sim.order(echo_order("iiii06"), echo_order("iiii07", params={"memory_bytes": 60 << 20}))
        await sim.until(lambda: sim.state("iiii07") == "failed", "there is no room for a second")
        report = sim.report("iiii07")
        assert report is not None
        assert report.error_code == "placement_unavailable"
        assert "may take 100 MiB here in all" in report.reason

    play(body, rules=rules)


def test_a_host_that_is_asked_to_stop_drains_and_says_goodbye(shared: Shared) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        stubborn = {"script": '{"sigterm": "ignore"}'}
        sim.order(echo_order("kkkk01", params=stubborn), echo_order("kkkk02"))
        await sim.until(lambda: sim.state("kkkk01") == sim.state("kkkk02") == "ready", "ready")
        drained = echo_order("kkkk01", params=stubborn, wish=OrderWish.DRAIN)
        sim.order(drained, echo_order("kkkk02"))
        await sim.until(lambda: sim.state("kkkk01") == "draining", "one drains already")
        assert await asyncio.to_thread(host.stop) == 0
        assert sim.goodbyes == 1
        assert any(b.draining for b in sim.beats)
        assert host.left_behind() == []
        # the same list again, in the next run: under these ids there was a process
        host.start()
        await sim.until(lambda: sim.state("kkkk02") == "stopped", "it is told as stopped")
        assert host.workers() == {}

    play(body, shared)


def test_a_second_process_on_its_folder_is_refused(shared: Shared) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        first, host.process = host.process, None
        host.start()
        assert await asyncio.to_thread(host.ended) == 1
        host.process = first
        assert "another controller or worker manager serves it now" in host.story()
        count = len(sim.beats)
        await sim.until(lambda: len(sim.beats) > count, "the first one goes on")

    play(body, shared)


def test_a_host_that_its_controller_does_not_know_any_more_ends_its_models_and_itself() -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        await ready(sim, "mmmm01")
        sim.refusal = NotFound("host 'host0001' is not known here")
        assert await asyncio.to_thread(host.ended) == 78
        assert "the controller refuses this host" in host.output.read_text()
        assert host.left_behind() == []

    play(body)


class Drip(BaseHTTPRequestHandler):
    """A large file that comes slowly."""

    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("range"))
        self.send_response(200)
        self.send_header("content-length", str(64 << 20))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(600):
                self.wfile.write(b"x" * 4096)
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_restart_in_the_middle_of_a_fetch_goes_on_with_it(shared: Shared) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Drip)
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            source = f"http://127.0.0.1:{server.server_port}/model.gguf#sha256={'0' * 64}"
            sim.order(echo_order("nnnn01", engine="llama.cpp", source=source))
            await sim.until(lambda: any(b.events for b in sim.beats), "it is told of")
            assert sim.state("nnnn01") == "fetching"
            run_id, asked = sim.last.run_id, len(Drip.asked)
            host.kill()
            host.start()
            await sim.until(lambda: sim.last.run_id != run_id, "the next process beats")
            await sim.until(lambda: sim.state("nnnn01") == "fetching", "it fetches again")
            await sim.until(lambda: len(Drip.asked) > asked, "the server is asked again")
            sim.order()
            await sim.until(lambda: not sim.last.instances, "it is called off")
        finally:
            server.shutdown()
            server.server_close()

    play(body, shared)


def test_a_service_manager_is_told_that_it_is_ready_that_it_lives_and_that_it_stops() -> None:
    async def main() -> None:
        with HostRun() as host, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(host.root / "notify"))
            manager.settimeout(20)
            host.env["NOTIFY_SOCKET"] = str(host.root / "notify")
            host.join([f"unix:{host.root / 'nobody'}"])
            host.start()
            said = [await asyncio.to_thread(manager.recv, 64) for _ in range(3)]
            assert said == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert await asyncio.to_thread(host.stop) == 0
            while b"STOPPING=1" not in said:
                said.append(await asyncio.to_thread(manager.recv, 64))

    asyncio.run(main())


def test_of_several_controllers_the_one_that_answers_is_kept_to() -> None:
    async def main() -> None:
        with HostRun() as host:
            one, two = (SimController(host.root / f"{n}.sock") for n in "12")
            host.join([one.url, two.url])
            host.start()
            async with two.running():
                await two.until(lambda: bool(two.beats), "the second is found")
                await ready(two, "oooo01")
            pids = host.workers()
            one.incarnation = 2
            one.order(echo_order("oooo01"))
            async with one.running():
                await one.until(lambda: one.state("oooo01") == "ready", "the first has taken over")
                assert host.workers() == pids

    asyncio.run(main())


def test_a_start_under_way_is_told_of_and_ended_without_leaving_anything(shared: Shared) -> None:
    async def body(host: HostRun, sim: SimController) -> None:
        sim.order(echo_order("pppp01", params={"script": '{"load_s": 60}'}))
        await sim.until(lambda: any(b.events for b in sim.beats), "a load is told of")
        events = [event for b in sim.beats for event in b.events]
        assert {event.kind for event in events} == {"start.progress"}
        assert all(len(b.events) <= EVENTS_PER_BEAT for b in sim.beats)
        assert events[0].instance_id == "pppp01"
        assert events[0].at_s > 0
        sim.order()
        await sim.until(lambda: not sim.last.instances and sim.last.version == 3, "it is gone")
        assert host.left_behind() == []

    play(body, shared)
