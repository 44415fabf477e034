"""Hosts: a whole server, as `hostler up --tls` starts it, with 10 to 1,000 machines of ten instances each.

The machines are simulated (`hostler.testing.sim_hosts`), all in one process beside the server's, and speak
the real protocol to it: tokens, certificates, beats, orders, relays. A model has ten replicas on ten
machines; ten more models have one each: of these an instance is lost, while a client asks for that model.

    python -m bench.hosts 1000                          # one size alone
    python -m bench.hosts sim URL TOKEN COUNT FOLDER    # the machines: a process that answers lines
"""

import asyncio
import gc
import http.client
import json
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench import machine
from bench.figures import Part, median
from bench.fleet import ask, watching
from hostler.testing.cluster import LOOPBACK, Cluster, discard, fake_model
from hostler.testing.fleet import most_in_a_second
from hostler.testing.sim_hosts import SimFleet
from hostler.wire.door import raise_most_files

COUNTS = (10, 100, 1000)
PER_HOST = RACK = REPLICAS = 10  # instances a host, hosts a rack, instances of a model
ALONE = 10  # models of one instance
REST_S, WITHIN_S = 15.0, 300.0
FILES = 16_384

_FIGURES = (
    ("until all have joined", "s", None),
    ("controller while they join", "cores", 1.0),
    ("until all instances are ready", "s", None),
    ("controller while they start", "cores", 1.0),
    ("controller at rest", "cores", 1.0),
    ("gateway at rest", "cores", None),
    ("controller's memory", "MB", None),
    ("gateway's memory", "MB", None),
    ("beats a second", "", None),
    ("a beat, median", "ms", None),
    ("a beat, p99", "ms", 250.0),
    ("whole snapshot", "kB", None),
    ("told of one loss", "bytes", None),
    ("from a loss until the gateway chooses it no more, median", "ms", 1000.0),
    ("from a loss until the gateway chooses it no more, longest", "ms", 1000.0),
    ("from a loss until another one answers, median", "s", None),
    ("controller killed: until every host is heard", "s", None),
    ("controller killed: until all instances are ready", "s", None),
    ("controller killed: beats in the fullest second", "", None),
    ("controller killed: beats refused", "", None),
    ("controller killed: beats under way then", "", None),
    ("controller killed: its CPU until all are ready", "s", None),
    ("controller killed: failed requests", "", 0.0),
    ("controller killed: hosts declared lost", "", 0.0),
    ("controller killed: instances replaced", "", 0.0),
)


def measure(part: Part, counts: tuple[int, ...] = COUNTS) -> None:
    """Add the figures of this part: the largest fleet's, with how they grow in the note."""
    found: dict[int, dict[str, float]] = {}
    with machine.watch_noise() as noise:
        for count in counts:
            found[count] = one_size(count)
    part.add_growth(_FIGURES, found, "hosts", noise.others_cores)


def one_size(count: int, told: Callable[[str], None] = lambda line: None) -> dict[str, float]:
    """Return the figures of so many hosts. told: hears of each step."""
    trial = _Trial(count, told)
    with trial.running():
        for step in (trial.join, trial.start, trial.rest, trial.lose, trial.restart):
            step()
            told(f"{step.__name__}: {json.dumps(trial.found)}")
    return trial.found


# Private


class _Trial:
    """One server and its machines, from the first that joins to the last that is back."""

    def __init__(self, count: int, told: Callable[[str], None]) -> None:
        self.found: dict[str, float] = {}
        self._count, self._told = count, told
        self._server = Cluster(fake_model("here"), joined_at=LOOPBACK)
        self._folder = Path(tempfile.mkdtemp(prefix="hsm", dir="/tmp"))
        self._sim: subprocess.Popen[str]

    @contextmanager
    def running(self) -> Iterator[None]:
        try:
            self._server.start()
            yield
        finally:
            if hasattr(self, "_sim"):
                self._sim.kill()
                self._sim.communicate()
            discard(self._server)
            shutil.rmtree(self._folder, ignore_errors=True)

    def join(self) -> None:
        body = {"role": "host", "uses": 0}
        made = self._server.json("POST", "/api/v1/tokens", body)
        words = ["sim", made["url"], made["token"], str(self._count), str(self._folder)]
        cpu_s, began_s = self._cpu_s("controller"), time.monotonic()
        self._sim = subprocess.Popen(
            [sys.executable, "-m", "bench.hosts", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        ask(self._sim)
        self._until(lambda state: state["heard"] == self._count, "all have joined")
        took_s = time.monotonic() - began_s
        self.found["until all have joined"] = took_s
        self.found["controller while they join"] = (self._cpu_s("controller") - cpu_s) / took_s

    def start(self) -> None:
        cpu_s, began_s = self._cpu_s("controller"), time.monotonic()
        models = [(f"m{n}", REPLICAS, n // RACK) for n in range(self._count - 1)]
        models += [(f"alone{n}", 1, (self._count - 1) // RACK) for n in range(ALONE)]
        for name, replicas, rack in models:
            body = {
                "model": name, "worker_type": "llm", "engine": "fake", "concurrency": 4,
                "replicas": replicas, "labels": {"rack": f"r{rack}"},
            }  # fmt: skip
            self._server.json("POST", "/api/v1/models", body)
        self._until_ready()
        took_s = time.monotonic() - began_s
        self.found["until all instances are ready"] = took_s
        self.found["controller while they start"] = (self._cpu_s("controller") - cpu_s) / took_s

    def rest(self) -> None:
        time.sleep(2.0)
        ask(self._sim, "forget")
        names = ("controller", "gateway")
        before, began_s = {name: self._cpu_s(name) for name in names}, time.monotonic()
        time.sleep(REST_S)
        took_s = time.monotonic() - began_s
        for name in names:
            self.found[f"{name} at rest"] = (self._cpu_s(name) - before[name]) / took_s
            self.found[f"{name}'s memory"] = machine.memory_mb(self._server.pids(name))[1]
        beats = ask(self._sim, "beats")
        self.found["beats a second"] = beats["count"] / took_s
        self.found["a beat, median"] = 1000 * beats["median_s"]
        self.found["a beat, p99"] = 1000 * beats["p99_s"]

    def lose(self) -> None:
        ask(self._sim, f"watch {self._server.state_dir}/run/registry.sock")
        unknown_s, replaced_s = [], []
        told = ask(self._sim, "told")
        self.found["whole snapshot"] = told["first"] / 1000
        for number in range(ALONE):
            with self._client() as chat:
                _, victim = chat(f"alone{number}")
                failed_s = sent_s = ask(self._sim, f"fail {victim}")["at_s"]
                status, chosen = 200, victim
                while (status, chosen) == (200, victim):
                    last_s, sent_s = sent_s, time.monotonic()
                    status, chosen = chat(f"alone{number}")
                while status != 200:
                    time.sleep(0.01)
                    status, chosen = chat(f"alone{number}")
                replaced_s.append(time.monotonic() - failed_s)
            unknown_s.append(last_s - failed_s)
        name = "from a loss until the gateway chooses it no more"
        self.found[f"{name}, median"] = 1000 * median(unknown_s)
        self.found[f"{name}, longest"] = 1000 * max(unknown_s)
        self.found["from a loss until another one answers, median"] = median(replaced_s)
        # all that was told meanwhile: of the loss, of its successor, and of the model in between
        self.found["told of one loss"] = (ask(self._sim, "told")["all"] - told["all"]) / ALONE

    def restart(self) -> None:
        before = ask(self._sim, "state")["incarnation"]
        served = set(ask(self._sim, "served")["ids"])
        seen = self._server.json("GET", "/api/v1/events?limit=1")["next"]
        ask(self._sim, "forget")
        asking = _Asking(self._client, [f"m{n}" for n in range(0, self._count - 1, RACK)])
        asking.start()
        began_s = time.monotonic()
        self._server.kill("controller")
        heard = self._until(
            lambda state: state["incarnation"] > before and state["heard"] == self._count,
            "all are back",
        )
        self.found["controller killed: until every host is heard"] = heard["last_s"] - began_s
        self._until_ready()
        self.found["controller killed: until all instances are ready"] = time.monotonic() - began_s
        self.found["controller killed: its CPU until all are ready"] = self._cpu_s("controller")
        time.sleep(5.0)
        asking.stop()
        beats = ask(self._sim, "beats")
        self.found["controller killed: beats in the fullest second"] = beats["most"]
        self.found["controller killed: beats refused"] = beats["refused"]
        self.found["controller killed: beats under way then"] = beats["cut_off"]
        self.found["controller killed: failed requests"] = asking.failed
        self.found["controller killed: hosts declared lost"] = self._count_events(seen, "host.lost")
        self.found["controller killed: instances replaced"] = len(
            served.difference(ask(self._sim, "served")["ids"])
        )

    # Looks

    def _count_events(self, after: int, kind: str) -> int:
        count = 0
        while True:
            told = self._server.json("GET", f"/api/v1/events?limit=1000&after={after}")
            count += sum(one["kind"] == kind for one in told["events"])
            if not told["events"]:
                return count
            after = told["next"]

    def _cpu_s(self, role: str) -> float:
        return machine.cpu_s(self._server.pids(role))

    def _until(self, is_true: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait for a state of the machines, and return it."""
        ends_s = time.monotonic() + WITHIN_S
        while not is_true(state := ask(self._sim, "state")):
            if time.monotonic() > ends_s:
                raise TimeoutError(f"not within {WITHIN_S:g} s: {what}; {state}")
            self._told(f"{what}: {state}")
            time.sleep(0.2)
        return state

    def _until_ready(self) -> None:
        """Wait until the machines have everything, then until the controller knows it."""
        wanted = PER_HOST * self._count
        self._until(lambda state: state["ready"] == wanted, "all instances are ready")

        def is_known() -> bool:
            status, _, body = self._server.request("GET", "/api/v1/models")
            models = json.loads(body).get("models", ())
            ready = sum(one["ready"] for one in models if one["name"] != "here")
            self._told(f"the controller knows {ready} as ready ({status})")
            return ready == wanted

        ends_s = time.monotonic() + WITHIN_S
        while not is_known():
            if time.monotonic() > ends_s:
                raise TimeoutError(f"not within {WITHIN_S:g} s: the controller knows all as ready")
            time.sleep(0.5)

    @contextmanager
    def _client(self) -> "Iterator[Callable[[str], tuple[int, str]]]":
        """A client on one connection: ask for a model; status and the instance that answered."""
        where = urlsplit(self._server.url)
        context = ssl.create_default_context(cafile=self._server.ca)
        line = http.client.HTTPSConnection(
            where.hostname or "", where.port, timeout=30, context=context
        )
        fields = {
            "authorization": f"Bearer {self._server.admin_key}", "content-type": "application/json",
        }  # fmt: skip

        def chat(model: str) -> tuple[int, str]:
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            line.request("POST", "/v1/chat/completions", json.dumps(body), fields)
            answer = line.getresponse()
            answer.read()
            return answer.status, answer.headers.get("x-hostler-instance", "")

        try:
            yield chat
        finally:
            line.close()


class _Asking(threading.Thread):
    """A client that asks for one model after the other, fifty times a second, until it is stopped."""

    def __init__(self, client: Callable[[], Any], models: list[str]) -> None:
        super().__init__(daemon=True)
        self.failed = 0
        self._client, self._models = client, models
        self._over = threading.Event()

    def run(self) -> None:
        with self._client() as chat:
            number = 0
            while not self._over.wait(0.02):
                status, _ = chat(self._models[number % len(self._models)])
                self.failed += status != 200
                number += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


# The machines' process


class _Machines:
    """Answers lines about a simulated fleet."""

    def __init__(self, fleet: SimFleet, tasks: asyncio.TaskGroup) -> None:
        self._fleet, self._tasks = fleet, tasks
        self._told: list[int] = []

    async def answer(self, words: list[str]) -> dict[str, Any]:
        diary = self._fleet.diary
        match words:
            case ["state"]:
                return {
                    "joined": len(self._fleet.hosts),
                    "heard": len(diary.back_at_s),
                    "last_s": max(diary.back_at_s.values(), default=0.0),
                    "incarnation": diary.incarnation,
                    "ready": len(self._fleet.ready()),
                    "refused": diary.refused,
                }
            case ["served"]:
                return {"ids": sorted(self._fleet.ready())}
            case ["forget"]:
                diary.beats.clear()
                diary.refused = diary.cut_off = 0
                gc.collect()
                gc.freeze()  # a pause of this process would be one of all machines at once
                return {}
            case ["beats"]:
                times = sorted(took_s for _, took_s in diary.beats) or [0.0]
                return {
                    "count": len(diary.beats),
                    "median_s": median(times),
                    "p99_s": times[int(0.99 * (len(times) - 1))],
                    "most": most_in_a_second([at_s for at_s, _ in diary.beats]),
                    "refused": diary.refused,
                    "cut_off": diary.cut_off,
                }
            case ["fail", instance_id]:
                return {"at_s": self._fleet.ready()[instance_id].fail(instance_id)}
            case ["watch", socket]:
                self._tasks.create_task(self._watch(Path(socket)), name="watch")
                await asyncio.sleep(2.0)  # for the whole of it
                return {}
            case ["told"]:
                return {"first": self._told[0], "all": sum(self._told)}
        raise ValueError(f"no such question: {words}")

    async def _watch(self, socket: Path) -> None:
        async with watching(socket) as told:
            self._told = told
            await asyncio.Event().wait()


async def _serve(url: str, token: str, count: int, folder: Path) -> None:
    fleet = SimFleet(url, token, count, folder, lambda number: {"rack": f"r{number // RACK}"})
    loop = asyncio.get_running_loop()
    async with _ending_together() as tasks, fleet.running():
        machines = _Machines(fleet, tasks)
        _say({"up": True})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            _say(await machines.answer(line.split()))


@asynccontextmanager
async def _ending_together() -> AsyncIterator[asyncio.TaskGroup]:
    """A group of tasks that end with the block."""
    async with asyncio.TaskGroup() as tasks:
        before = asyncio.all_tasks()
        yield tasks
        for task in asyncio.all_tasks() - before:
            task.cancel()


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _main(*words: str) -> None:
    if words[0] == "sim":
        raise_most_files(FILES)
        _, url, token, count, folder = words
        uvloop.run(_serve(url, token, int(count), Path(folder)))
        return
    found = one_size(
        int(words[0]), lambda line: print(f"{time.monotonic():.1f} {line}", flush=True)
    )
    for name, unit, _ in _FIGURES:
        print(f"{name}: {found[name]:.4g} {unit}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
